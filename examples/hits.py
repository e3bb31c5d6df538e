"""Count hits per page from several processes, and show the pages that are asked for most.

    python examples/hits.py

As it would be in the workers of a web server: each opens the same file, and each sees what all of them counted.
"""

import multiprocessing
import os
import random
import tempfile

import microdb

PAGES = ["/", "/news", "/about", "/shop"]
HITS = 500


def serve(path: str, seed: int) -> None:
    """Answer some requests."""
    rng = random.Random(seed)
    with microdb.MicroDB(path, ["page"]) as hits:
        for _ in range(HITS):
            (page,) = rng.choices(PAGES, [8, 4, 2, 1])
            hits.increment((page,), "count", create=True)


def main() -> None:
    """Let four workers serve, and show the table."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "hits.json")
        workers = [multiprocessing.Process(target=serve, args=(path, seed)) for seed in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        with microdb.MicroDB(path, ["page"]) as hits:
            for record in hits.where().order_by("count", reverse=True).limit(3):
                print(f"{record['page']:8} {record['count']:5}")
            print(f"all      {sum(record['count'] for record in hits.all()):5}")


if __name__ == "__main__":
    main()
