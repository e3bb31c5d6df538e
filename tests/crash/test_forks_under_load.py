"""Forks of a process that is in the middle of everything: the child works and ends, the parent loses nothing.

The oracle is what the threads of the parent counted for themselves, and what the children were told to write. A child
that hangs is found by an alarm, whose signal ends it.
"""

import contextlib
import ctypes
import faulthandler
import functools
import gc
import os
import random
import signal
import sys
import threading

import pytest

import microdb
from children import spawned
from crash.interrupts import Guest, be_guest

CHILD_S = 60
"""An alarm ends a child that takes longer."""


@pytest.fixture(scope="module")
def stranger():
    """A process that is no child of anybody who holds a lock."""
    with spawned((be_guest,)) as ((pipe,), _):
        yield Guest(pipe)
        pipe.send(None)


# What a child does to end must not free what its parent holds.


def leave_by_exit(mdb):
    sys.exit(0)


def leave_at_once(mdb):
    os._exit(0)


def leave_after_closing(mdb):
    with contextlib.suppress(microdb.TransactionError):  # It may say that this is inside a block.
        mdb.close()


def leave_after_collecting(mdb):
    for handle in [one for one in gc.get_objects() if isinstance(one, microdb.MicroDB)]:
        handle.__dict__.clear()
    gc.collect()


def leave_after_reading(mdb):
    assert mdb["a",]["n"] == 1


def leave_after_being_refused(mdb):
    with pytest.raises((microdb.LockTimeoutError, microdb.TransactionError)), mdb.lock(timeout=0):
        pass


def leave_by_exec(mdb):
    os.execv(sys.executable, [sys.executable, "-c", "import os; os._exit(0)"])


WAYS = [
    leave_by_exit,
    leave_at_once,
    leave_after_closing,
    leave_after_collecting,
    leave_after_reading,
    leave_after_being_refused,
    leave_by_exec,
]


def exit_code(leave, fork):
    """That of a child that leaves in some way."""
    return os.waitstatus_to_exitcode(os.waitpid(start_child(leave, fork), 0)[1])


def start_child(body, fork):
    """A child that runs ``body()``; its exit code is 0 if that returned or exited so."""
    pid = fork()
    if pid == 0:
        code = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            faulthandler.register(signal.SIGALRM, sys.__stderr__, chain=True)
            signal.alarm(CHILD_S)
            body()
            code = 0
        except SystemExit as error:
            code = error.code
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)
    return pid


FORKS = {"fork": os.fork, "a fork in C": ctypes.PyDLL(None).fork, "a fork in C without the GIL": ctypes.CDLL(None).fork}


@pytest.mark.parametrize("how", FORKS)
@pytest.mark.parametrize("inside", ["lock", "transaction"])
def test_however_a_child_ends_its_parent_still_holds_its_lock(open_db, path, stranger, how, inside):
    mdb = open_db()
    mdb.upsert({"id": "a", "n": 1})
    with mdb.lock() if inside == "lock" else mdb.transaction():
        mdb.upsert({"id": "b"})
        for way in WAYS:
            assert exit_code(functools.partial(way, mdb), FORKS[how]) == 0, way.__name__
            with pytest.raises(microdb.LockTimeoutError):
                stranger.visit(path, timeout_s=0.01)
        mdb.upsert({"id": "c"})
    mdb.upsert({"id": "d"})
    assert [record["id"] for record in stranger.visit(path, ("upsert", {"id": "e"}))] == ["a", "b", "c", "d"]
    assert len(mdb) == 5


def test_a_program_that_a_child_became_holds_no_lock_of_its_dead_grandparent(path, stranger):
    """A worker dies inside its lock, and what it started by fork and exec lives on."""
    told, tell = os.pipe()
    end, ended = os.pipe()
    os.set_inheritable(end, True)
    os.set_inheritable(tell, True)
    worker = os.fork()
    if worker == 0:
        mdb = microdb.MicroDB(path, ["id"])
        with mdb.transaction():
            mdb.upsert({"id": "never"})
            code = f"import os; os.write({tell}, b'1'); os.read({end}, 1)"
            if os.fork() == 0:
                os.close(ended)
                os.execv(sys.executable, [sys.executable, "-c", code])
            signal.pause()
    os.read(told, 1)
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
    assert stranger.visit(path, ("upsert", {"id": "a"})) == []
    assert stranger.visit(path) == [{"id": "a"}]
    for fd in (told, tell, end, ended):
        os.close(fd)


# Forks under load.


class Load:
    """Threads that write all the time, in every way there is, each its own keys, and a counter that all share.

    Attributes:
        counts: How many times each thread has counted.
    """

    def __init__(self, mdb, threads, seed):
        self.mdb = mdb
        self.counts = [0] * threads
        self.tables = [{} for _ in range(threads)]
        self.errors = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n, seed + n)) for n in range(threads)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if self.errors:
            raise self.errors[0]

    def _run(self, number, seed):
        rng = random.Random(seed)
        try:
            while not self._stop.is_set():
                self._step(number, rng)
        except BaseException as error:
            self.errors.append(error)
            self._stop.set()

    def _step(self, number, rng):
        mdb, table = self.mdb, self.tables[number]
        record = {"id": (number, rng.randrange(20)), "n": rng.random()}
        key = (record["id"],)
        match rng.randrange(8):
            case 0 | 1 | 2:
                mdb.upsert(record)
                table[key] = record
            case 3:
                assert mdb.pop(key, None) == table.pop(key, None)
            case 4:
                with mdb.lock():
                    mdb.upsert(record)
                    table[key] = record
            case 5:
                with mdb.transaction():
                    n = mdb["counter",]["n"]
                    mdb.upsert({"id": "counter", "n": n + 1})
                    mdb.upsert(record)
                self.counts[number] += 1
                table[key] = record
            case 6:
                with contextlib.suppress(ZeroDivisionError), mdb.transaction():
                    mdb.upsert({"id": "counter", "n": -1})
                    raise ZeroDivisionError
            case _:
                assert mdb.get(key) == table.get(key)
                assert len(mdb) > 0

    def check(self, mdb):
        """All that was acknowledged to a thread is there, and nothing else of it."""
        for number, table in enumerate(self.tables):
            found = {key: record for key, record in mdb.items() if key[0][0] == number}
            assert found == table, f"thread {number}"
        return mdb["counter",]["n"]


def fork_under_load(path, forks, threads, seed, options):
    """Fork so often; each child counts once, too. Gives how often the threads counted.

    Not by a fork in C: amid running threads that leaves the child with Python's own lock in the middle of things.
    """
    with microdb.MicroDB(path, ["id"], **options) as mdb:
        mdb.upsert({"id": "counter", "n": 0})
        with Load(mdb, threads, seed) as load:
            for number in range(forks):
                inside = (None, mdb.lock, mdb.transaction)[number % 3]
                with contextlib.nullcontext() if inside is None else inside():
                    pid = start_child(functools.partial(live, path, mdb, number, inside), os.fork)
                assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, f"child {number}"
        with microdb.MicroDB(path, ["id"]) as other:
            for one in (mdb, other):
                assert load.check(one) == sum(load.counts) + forks
                assert sorted(key[0][1] for key in one if key[0][0] == "child") == list(range(forks))
        return sum(load.counts)


def live(path, mdb, number, inside):
    """What each child does."""
    assert mdb["counter",]["n"] >= 0
    if inside == mdb.transaction:
        # That of its parent is refused here; a handle of its own works.
        with microdb.MicroDB(path, ["id"]) as own:
            count_once(own, number)
    else:
        count_once(mdb, number)
        assert mdb[("child", number),]


def count_once(mdb, number):
    with mdb.transaction():
        mdb.upsert({"id": "counter", "n": mdb["counter",]["n"] + 1})
        mdb.upsert({"id": ("child", number)})


DURABILITIES = pytest.mark.parametrize("durability", ["process", "power"])


@DURABILITIES
def test_forks_of_a_process_with_threads_in_mid_write_lose_nothing(path, seed, durability):
    fork_under_load(path, 6, 16, seed, {"durability": durability})


@pytest.mark.long
@pytest.mark.timeout(900)
@DURABILITIES
def test_a_thousand_forks_of_a_process_with_threads_in_mid_write_lose_nothing(path, seed, durability):
    """A minute or two each. Automatic saves keep the log short, which every child reads as it opens."""
    options = {"durability": durability, "auto_save_bytes": 1_000_000}
    counted = fork_under_load(path, 1_000, 16, seed, options)
    print(f"figures: 1,000 forks amid 16 threads, {counted:,} transactions counted meanwhile, 0 lost")


# Threads that take turns as often as Python can.


@pytest.fixture
def restless():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def run_restlessly(path, threads, steps, seed):
    with microdb.MicroDB(path, ["id"], auto_save_bytes=50_000) as mdb:
        mdb.upsert({"id": "counter", "n": 0})
        load = Load(mdb, threads, seed)
        with load:
            for _ in range(steps):
                mdb.save()
        with microdb.MicroDB(path, ["id"]) as other:
            assert load.check(mdb) == load.check(other) == sum(load.counts)
            assert list(mdb.items()) == list(other.items())
        return sum(load.counts)


def test_threads_that_switch_all_the_time_are_served_as_if_one_by_one(path, seed, restless):
    run_restlessly(path, 8, 8, seed)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_sixteen_threads_that_switch_for_long_are_served_as_if_one_by_one(path, seed, restless):
    """About two minutes."""
    counted = run_restlessly(path, 16, 1_500, seed)
    print(f"figures: 16 threads switching each microsecond amid 1,500 saves, {counted:,} transactions counted, 0 lost")
