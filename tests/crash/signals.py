"""Real signals, sent at random moments by one process to another that works on a database.

The worker tells over a pipe what it begins and what was acknowledged. From that alone the sender makes the table that
should be there, and compares it with what its own handle reads whenever the worker was interrupted and waits. One
signal is under way at a time: the next one is sent when the worker has told of the last one.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import microdb
from microdb.errors import LockTimeoutError, ReentrantError, TransactionError

KEYS = 20
WAIT_S = 30
"""Longer than anything takes."""


# What is done, and what becomes of it.


def random_act(rng, who, number):
    verbs = ["upsert", "upsert_many", "pop", "transaction", "rollback", "lock", "save", "get"]
    (verb,) = rng.choices(verbs, [6, 2, 2, 2, 2, 2, 2, 2])
    return verb, [{"id": f"{who}{rng.randrange(KEYS)}", "n": number} for _ in range(3)]


def do(mdb, verb, records):
    first, *others = records
    match verb:
        case "upsert":
            mdb.upsert(first)
        case "upsert_many":
            mdb.upsert_many(records)
        case "pop":
            mdb.pop((first["id"],), None)
        case "transaction" | "rollback":
            _transact(mdb, first, others, abandon=verb == "rollback")
        case "lock":
            with mdb.lock():
                mdb.upsert(first)
        case "save":
            mdb.save()
        case "get":
            mdb.get((first["id"],))


def _transact(mdb, first, others, *, abandon):
    try:
        with mdb.transaction():
            mdb.pop((first["id"],), None)
            mdb.upsert_many(others)
            if abandon:
                raise ZeroDivisionError  # noqa: TRY301  # The block is what is tested.
    except ZeroDivisionError:
        return


def model(table, verb, records):
    """What `do` makes of a table; the given one stays as it is."""
    after = dict(table)
    if verb in ("pop", "transaction"):
        after.pop(records[0]["id"], None)
    made = {"upsert": records[:1], "lock": records[:1], "upsert_many": records, "transaction": records[1:]}
    after.update((record["id"], record) for record in made.get(verb, []))
    return after


def part_of(mdb, who):
    """The records of one of several, by id."""
    return {record["id"]: record for record in mdb.all() if record["id"].startswith(who)}


# In the worker.


def be_interrupted(pipe, path, seed, options):
    """Work until told to stop; tell each act as it begins and when it is done, and each interrupt."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.unraisablehook = lambda lost: pipe.send(("lost", f"{lost.object!r}: {lost.exc_value!r}"))
    rng = random.Random(seed)
    mdb = microdb.MicroDB(path, ["id"], timeout=WAIT_S, **options)
    number = 0
    pipe.send(("ready", None))
    while pipe.recv() != "stop":
        try:
            while True:
                number += 1
                act = random_act(rng, "w", number)
                pipe.send(("begin", act))
                do(mdb, *act)
                pipe.send(("done", act))
        except KeyboardInterrupt:
            # No other signal comes before this is told.
            pipe.send(("interrupted", part_of(mdb, "w")))
    mdb.close()
    pipe.send(("closed", len(os.listdir("/proc/self/fd"))))


def be_called(pipe, path, seed, options):
    """As `be_interrupted`, but the signal is handled by an act on the same database, which may be refused."""
    rng, numbers = random.Random(seed), iter(range(1, 10**9))
    mdb = microdb.MicroDB(path, ["id"], timeout=WAIT_S, **options)
    handled = []

    def handle(*_):
        act = random_act(rng, "h", next(numbers))
        try:
            if act[0] == "save":
                mdb.save(timeout=0)  # It may have interrupted a save of this very thread, and would wait for it.
            else:
                do(mdb, *act)
        except (ReentrantError, LockTimeoutError, TransactionError) as error:
            handled.append(("refused", type(error).__name__))
        else:
            handled.append(("handled", act))

    signal.signal(signal.SIGUSR1, handle)
    pipe.send(("ready", None))
    asked = pipe.recv()
    while asked != "stop":
        act = random_act(rng, "w", next(numbers))
        if act[0] == "rollback":
            continue  # What a handler does within a transaction of its thread goes with it, and is not to be found.
        do(mdb, *act)
        pipe.send(("done", act))
        while handled:  # Told here alone: the handler may have come into the middle of a message.
            pipe.send(handled.pop(0))
        asked = pipe.recv() if pipe.poll() else None
    mdb.close()
    pipe.send(("closed", None))


def be_rival(pipe, path):
    """Write and save beside the worker until told to stop, and never wait for long."""
    with microdb.MicroDB(path, ["id"], timeout=WAIT_S / 2) as mdb:
        pipe.send(("ready", None))
        number = 0
        while not pipe.poll():
            mdb.upsert({"id": f"r{number % KEYS}", "n": number})
            if number % 50 == 0:
                mdb.save()
            number += 1
    pipe.send(("closed", number))


def be_kept_waiting(pipe, path):
    """Wait in the ways that are asked for until interrupted each time; then write."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    mdb = microdb.MicroDB(path, ["id"])
    acts = {
        "open": lambda: microdb.MicroDB(path, ["id"]),
        "lock": lambda: mdb.lock().__enter__(),
        "lock with a timeout": lambda: mdb.lock(timeout=WAIT_S).__enter__(),
        "upsert": lambda: mdb.upsert({"id": "w"}),
        "transaction": lambda: mdb.transaction().__enter__(),
        "save": mdb.save,
        "save with a timeout": lambda: mdb.save(timeout=WAIT_S),
    }
    pipe.send(list(acts))
    while (how := pipe.recv()) != "stop":
        try:
            acts[how]()
            pipe.send("got it")
        except KeyboardInterrupt:
            pipe.send("interrupted")
        assert pipe.recv() == "write"
        mdb.upsert({"id": how})
        pipe.send("wrote")


def wait_until_blocked(pid):
    """Until a process waits for a lock, or sleeps before it tries again."""
    while not any(
        word in Path(f"/proc/{pid}/wchan").read_text() for word in ("flock", "lock_inode", "futex", "nanosleep")
    ):
        assert Path(f"/proc/{pid}/status").exists()


# In the sender.


class Sender:
    """Sends signals to a worker, and follows what it tells.

    Attributes:
        table: What follows from what was acknowledged to the worker.
        pending: The act that it has begun, and of which it has not told the end.
        told: How many acknowledgements it told.
        lost: Interrupts that came in a finalizer, where Python drops them.
        handled: What the handlers did.
        refused: What the handlers met.
    """

    def __init__(self, pipe, process, seed):
        self._pipe = pipe
        self._process = process
        self._random = random.Random(seed)
        self.table = {}
        self.pending = None
        self.told = 0
        self.lost = []
        self.handled = {}
        self.refused = []

    def send(self, number, until):
        """Send a signal at a random moment of its work, and wait until the worker tells of it. Gives what it told."""
        self.wait_for({"begin", "done"})
        deadline = time.monotonic() + self._random.uniform(0, 0.004)
        while (left_s := deadline - time.monotonic()) > 0:
            if self._pipe.poll(left_s):
                self.take()
        os.kill(self._process.pid, number)
        return self.wait_for(until)

    def wait_for(self, until):
        while self._pipe.poll(WAIT_S):
            kind, what = self.take()
            if kind in until:
                return kind, what
        raise AssertionError(f"the worker tells nothing any more; it had begun {self.pending}")

    def take(self):
        kind, what = self._pipe.recv()
        match kind:
            case "begin":
                self.pending = what
            case "done":
                self.table = model(self.table, *what)
                self.pending = None
                self.told += 1
            case "lost":
                self.lost.append(what)
            case "handled":
                self.handled = model(self.handled, *what)
            case "refused":
                self.refused.append(what)
            case "error":
                raise AssertionError(what)
        return kind, what

    def settle(self, found):
        """What was interrupted was done wholly, or not at all."""
        may_be = [self.table] if self.pending is None else [self.table, model(self.table, *self.pending)]
        assert found in may_be, f"{self.pending} was interrupted, and found {found} instead of one of {may_be}"
        self.table, self.pending = found, None
