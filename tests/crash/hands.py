"""What the processes of a history do: each of their threads carries out operations at random, and notes them.

An operation is noted in a file of its thread before it begins, and once more after it has returned, so that the death
of the process leaves behind that it had begun. All stamps are of the one monotonic clock of the machine.
"""

import contextlib
import itertools
import json
import os
import signal
import sys
import threading
import time
import traceback
from random import Random

import microdb
from crash.linearizability import ABSENT
from microdb.files import File, Files

REGISTERS = ("r0", "r1", "r2", "r3")
"""Keys that are written one by one."""
PAIR, LOOSE = REGISTERS[:2], REGISTERS[2:]
"""Those that are sometimes written at once, and those that come and go."""
GROUP = ("g0", "g1", "g2")
"""Keys that only transactions write, all at once: they always bear the same value, and count the transactions."""
_AUTO_SAVE_BYTES = 4 << 10


def open_in(folder, durability, **options):
    """The database of a history."""
    path = os.path.join(folder, "mdb.json")
    return microdb.MicroDB(path, ["id"], durability=durability, auto_save_bytes=_AUTO_SAVE_BYTES, **options)


def work(mdb, notes_of_threads, random, operations):
    """Let each thread carry out so many operations, and then close the handle."""
    sys.setswitchinterval(1e-5)
    threads = []
    for notes in notes_of_threads:
        hand = Hand(mdb, notes, Random(random.randrange(2**32)))
        threads.append(threading.Thread(target=hand.work, args=(operations,)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    mdb.close()


class Hand:
    """One thread at work. Each method is an operation: it notes what it will write, acts, and notes what it read."""

    def __init__(self, mdb, notes, random):
        self.mdb = mdb
        self.notes = notes
        self.random = random
        self.count = itertools.count()

    def work(self, operations):
        try:
            for _ in range(operations):
                self.random.choice(_WORK)(self)
        except BaseException:
            self.notes.error()

    def unique(self):
        return f"{self.notes.name}/{next(self.count)}"

    def get(self):
        key = self.random.choice((*REGISTERS, *GROUP))
        with self.notes.of("get", {}) as reads:
            reads[key] = _value(self.mdb.get((key,)))

    def upsert(self):
        record = {"id": self.random.choice(REGISTERS), "v": self.unique()}
        with self.notes.of("upsert", {record["id"]: record["v"]}):
            self.mdb.upsert(record)

    def upsert_two(self):
        value = self.unique()
        with self.notes.of("upsert_many", dict.fromkeys(PAIR, value)):
            self.mdb.upsert_many([{"id": key, "v": value} for key in PAIR])

    def delete(self):
        key = self.random.choice(LOOSE)
        with self.notes.of("delete", {key: ABSENT}) as reads, self.mdb.lock():
            reads[key] = _value(self.mdb.get((key,)))
            halt(self.random)
            assert self.mdb.delete((key,)) == (reads[key] is not ABSENT)

    def pop(self):
        key = self.random.choice(LOOSE)
        with self.notes.of("pop", {key: ABSENT}) as reads:
            reads[key] = _value(self.mdb.pop((key,), None))

    def swap(self):
        record = {"id": self.random.choice(REGISTERS), "v": self.unique()}
        with self.notes.of("swap", {record["id"]: record["v"]}) as reads, self.mdb.lock():
            reads[record["id"]] = _value(self.mdb.get((record["id"],)))
            halt(self.random)
            self.mdb.upsert(record)

    def count_up(self):
        value = self.unique()
        with self.notes.of("count", dict.fromkeys(GROUP, value)) as reads, self.mdb.transaction():
            for key in GROUP:
                record = self.mdb.get((key,)) or {"id": key, "v": ABSENT, "n": 0}
                reads[key] = record["v"]
                halt(self.random)
                self.mdb.upsert({"id": key, "v": value, "n": record["n"] + 1})

    def change_mind(self):
        with self.notes.of("change of mind", {}), contextlib.suppress(_ChangedMindError), self.mdb.transaction():
            for key in (*REGISTERS, *GROUP):
                self.mdb.upsert({"id": key, "v": self.unique(), "n": -1})
                halt(self.random)
            raise _ChangedMindError

    def all(self):
        with self.notes.of("all", {}) as reads:
            found = list(self.mdb.all())
            reads.update(dict.fromkeys((*REGISTERS, *GROUP), ABSENT))
            reads.update((record["id"], record["v"]) for record in found)

    def save(self):
        with self.notes.of("save", {}):
            self.mdb.save()


_WORK = [
    *(Hand.get,) * 6,
    *(Hand.all,) * 3,
    *(Hand.upsert,) * 4,
    *(Hand.count_up,) * 3,
    *(Hand.upsert_two, Hand.delete, Hand.pop, Hand.swap) * 2,
    Hand.change_mind,
    Hand.save,
]


class _ChangedMindError(Exception):
    pass


def _value(record):
    return ABSENT if record is None else record["v"]


class Notes:
    """What one thread notes, line by line: none of it is lost with its process."""

    def __init__(self, folder, name):
        self.name = name
        path = os.path.join(folder, f"{name}.notes")
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    @contextlib.contextmanager
    def of(self, name, writes):
        """Note the operation that the block is: what it is to write before, and what it read after."""
        reads = {}
        self.add({"invoked": time.monotonic_ns(), "name": f"{self.name} {name}", "writes": writes})
        invoked = time.monotonic_ns()
        yield reads
        self.add({"invoked": invoked, "returned": time.monotonic_ns(), "reads": reads})

    def error(self):
        self.add({"error": traceback.format_exc(), "name": self.name, "writes": {}, "invoked": 0})

    def add(self, note):
        os.write(self.file, json.dumps(note).encode() + b"\n")


class Halting(Files):
    """The real file system, in which a write takes a while, and others come in between; or the process dies in it.

    Attributes:
        left: In how many writes from now on it dies; None: never.
    """

    def __init__(self, random):
        self.random = random
        self.left = None

    def open(self, path, **options):
        return self._watched(super().open(path, **options))

    def create(self, path):
        return self._watched(super().create(path))

    def _watched(self, file):
        watched = _HaltingFile(os.dup(file.fd), file.path)
        watched.files = self
        return watched


class _HaltingFile(File):
    files: Halting

    def write_at(self, data, offset):
        half = self.files.random.randrange(len(data) + 1)
        super().write_at(data[:half], offset)
        if self.files.left is not None:
            self.files.left -= 1
            if self.files.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        halt(self.files.random)
        super().write_at(data[half:], offset + half)


def halt(random):
    """Let others come in between, now and then for longer than they need. Nothing is waited for."""
    time.sleep(random.choice((0, 0, 0.0001, 0.0005)))
