"""A queue of jobs for worker processes, one of which dies with a job in its hands.

    python examples/jobs.py

Each worker claims a job, does it, and completes it. The first one dies and keeps nothing: when its lease runs out,
another worker is given the job, with a higher fence.
"""

import multiprocessing
import os
import signal
import tempfile
import time

import microdb

JOBS = 20
LEASE_S = 0.5


def work(path: str, number: int) -> None:
    """Do jobs until all are done."""
    with microdb.MicroDB(path, ["job"], indexes=["status"]) as jobs:
        undone = jobs.where(status="undone").order_by("job")
        while undone.exists():
            claim = jobs.claim(undone, LEASE_S, owner=f"worker {number}")
            if claim is None:  # All that is left is in the hands of others.
                time.sleep(LEASE_S / 10)
                continue
            with claim:
                if number == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(0.01)  # The work.
                claim.complete(status="done", by=number)


def main() -> None:
    """Start four workers on a new queue, and tell what became of it."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "jobs.json")
        with microdb.MicroDB(path, ["job"], indexes=["status"]) as jobs:
            jobs.upsert_many({"job": number, "status": "undone"} for number in range(JOBS))
            workers = [multiprocessing.Process(target=work, args=(path, number)) for number in range(4)]
            workers[0].start()
            workers[0].join()
            for worker in workers[1:]:
                worker.start()
            for worker in workers[1:]:
                worker.join()
            done = jobs.where(status="done")
            print(f"{done.count()} of {JOBS} jobs done, {sum(worker.exitcode != 0 for worker in workers)} worker died")
            for worker, records in sorted(done.group_by("by").items()):
                print(f"worker {worker}: {len(records)} jobs")


if __name__ == "__main__":
    main()
