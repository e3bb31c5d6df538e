"""What tests run in other processes, and how they start it. Children report through pipes; nobody sleeps."""

import contextlib
import gc
import multiprocessing as mp
import os
import random
import resource
import sys
import traceback
from pathlib import Path

import microdb
from microdb import appending

SPAWN = mp.get_context("spawn")


@contextlib.contextmanager
def spawned(*jobs):
    """One new interpreter a job, which is ``(target, *args)``, running ``target(pipe, *args)``.

    Gives our ends of their pipes, and the processes. At the end all are gone.
    """
    pipes, processes = [], []
    try:
        for target, *args in jobs:
            ours, theirs = SPAWN.Pipe()
            process = SPAWN.Process(target=reporting, args=(target, theirs, *args))
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        yield pipes, processes
    finally:
        for process in processes:
            process.kill()
            process.join()
        for pipe in pipes:
            pipe.close()


def start(pipes):
    """Let all begin at once, when all are ready."""
    for pipe in pipes:
        assert pipe.recv() == "ready"
    for pipe in pipes:
        pipe.send("go")


def finish(pipes):
    """Wait until all are done."""
    for pipe in pipes:
        assert pipe.recv() == "done"


def reporting(target, pipe, *args):
    """Run ``target(pipe, *args)``, and tell through the pipe what it raised."""
    try:
        target(pipe, *args)
    except BaseException:
        pipe.send(("error", traceback.format_exc()))
        raise


def forked(body):
    """Run ``body()`` in a fork of this process and give its exit code: 0 if it returned."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            body()
            code = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def with_little_memory(margin, body):
    """What ``body()`` raised while this process could have only `margin` bytes more than it has."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + margin, limits[1]))
    try:
        body()
    except Exception as error:
        return error
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def write_numbers(pipe, path, writer, count, options):
    """Upsert {writer, n} for n below `count`, telling each after it is acknowledged."""
    with microdb.MicroDB(path, ["writer", "n"], **options) as mdb:
        pipe.send("ready")
        pipe.recv()
        for n in range(count):
            mdb.upsert({"writer": writer, "n": n})
        pipe.send("done")


def save_often(pipe, path, times):
    with microdb.MicroDB(path, ["writer", "n"]) as mdb:
        pipe.send("ready")
        pipe.recv()
        for _ in range(times):
            mdb.save()
        pipe.send("done")


def write_batches(pipe, path, size, count):
    """Upsert batches in which all records bear one number; then a transaction that does the same by single upserts."""
    with microdb.MicroDB(path, ["id"]) as mdb:
        pipe.send("ready")
        pipe.recv()
        for number in range(count):
            if number % 2:
                mdb.upsert_many({"id": i, "number": number} for i in range(size))
            else:
                with mdb.transaction():
                    for i in range(size):
                        mdb.upsert({"id": i, "number": number})
            if number % 50 == 49:
                mdb.save()
        pipe.send("done")


def increment(pipe, path, count, how):
    with microdb.MicroDB(path, ["id"]) as mdb:
        pipe.send("ready")
        pipe.recv()
        for _ in range(count):
            with mdb.lock() if how == "lock" else mdb.transaction():
                record = mdb.get(("counter",)) or {"id": "counter", "n": 0}
                record["n"] += 1
                mdb.upsert(record)
        pipe.send("done")


def answer_reads(pipe, path):
    """For each number received, read the record at once and send what it says."""
    with microdb.MicroDB(path, ["id"]) as mdb:
        pipe.send("ready")
        while (number := pipe.recv()) is not None:
            pipe.send(mdb["x",]["n"] == number)


def write_when_told(pipe, path, records):
    with microdb.MicroDB(path, ["id"]) as mdb:
        pipe.send("ready")
        for record in records:
            pipe.recv()
            mdb.upsert(record)


def write_without_waking(pipe, path):
    """As a writer that is killed between the store and the wake."""
    appending.ring = None
    with microdb.MicroDB(path, ["id"]) as mdb:
        pipe.send("ready")
        pipe.recv()
        try:
            mdb.upsert({"id": 1})
        except TypeError:
            os._exit(0)
        pipe.send("nobody was asleep")


def write_behind_a_save(pipe, path):
    with microdb.MicroDB(path, ["id"]) as mdb:
        pipe.send("ready")
        for n in range(20):
            pipe.recv()
            mdb.save()
            mdb.upsert({"id": n})


def listen_and_end(path):
    microdb.MicroDB(path, ["id"]).on_change(print)


def write_for_ever(pipe, path, seed):
    rng = random.Random(seed)
    with microdb.MicroDB(path, ["id"]) as mdb:
        pipe.send("ready")
        for n in range(1 << 40):
            what = rng.random()
            if what < 0.6:
                mdb.upsert({"id": rng.randrange(20), "n": n, "by": seed}, ttl=rng.choice([None, None, None, 0.002]))
            elif what < 0.8:
                mdb.upsert_many({"id": rng.randrange(20), "n": (n, i), "by": seed} for i in range(rng.randrange(4)))
            elif what < 0.97:
                mdb.delete((rng.randrange(20),))
            elif what < 0.998:
                mdb.clear()
            else:
                mdb.save()
