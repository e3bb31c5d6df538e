"""fork, spawn, forkserver: a child works on, and never harms its parent."""

import ctypes
import functools
import multiprocessing as mp
import os
import signal
import subprocess
import sys
import threading

import pytest

import microdb
from children import finish, forked, write_numbers
from faulty import Faulty, in_thread
from microdb import forks
from microdb.wal.header import DIRTY

A = {"id": "a", "n": 1}


def test_a_child_reads_what_the_parent_had_and_what_comes_later(open_db):
    mdb = open_db()
    mdb.upsert(A)
    told, tell = os.pipe()
    answer, answered = os.pipe()

    def child():
        assert mdb["a",] == A
        os.write(answered, b"1")
        os.read(told, 1)
        assert mdb["b",] == {"id": "b"}
        mdb.upsert({"id": "c"})
        assert list(mdb) == [("a",), ("b",), ("c",)]

    pid = os.fork()
    if pid == 0:
        os._exit(run(child))
    os.read(answer, 1)
    mdb.upsert({"id": "b"})
    os.write(tell, b"1")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert list(mdb) == [("a",), ("b",), ("c",)]


def run(body):
    try:
        body()
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def test_a_child_loads_nothing_again(open_db):
    mdb = open_db()
    mdb.upsert(A)

    def child():
        mdb._log.load = lambda: pytest.fail("loaded again")
        assert mdb["a",] == A
        mdb.upsert({"id": "b"})
        assert len(mdb) == 2

    assert forked(child) == 0
    assert len(mdb) == 2


def test_a_child_signs_its_writes_with_its_own_pid(open_db):
    """So that who repairs after it knows whose death it was."""
    faulty = Faulty()
    mdb = open_db(files=faulty)

    def child():
        signed = []
        faulty.on["write_at"] = lambda _: signed.append(mdb._words[DIRTY])
        mdb.upsert(A)
        assert signed == [os.getpid()]

    pid = os.fork()
    if pid == 0:
        os._exit(run(child))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_prefork_server_opens_before_it_forks(open_db):
    mdb = open_db(partition_keys=["worker", "n"])
    mdb.upsert({"worker": "master", "n": 0})

    def worker(number):
        for n in range(200):
            mdb.upsert({"worker": number, "n": n})
            assert mdb[number, n]["n"] == n

    pids = []
    for number in range(6):
        pid = os.fork()
        if pid == 0:
            os._exit(run(lambda number=number: worker(number)))
        pids.append(pid)
    for pid in pids:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert len(mdb) == 1_201
    for number in range(6):
        assert [n for who, n in mdb if who == number] == list(range(200))


def test_a_child_neither_holds_nor_frees_its_parents_lock(open_db, path):
    mdb, other = open_db(), open_db(timeout=0)
    held, go = os.pipe(), os.pipe()
    with mdb.lock():
        pid = os.fork()
        if pid == 0:

            def child():
                mdb.close()  # The handle forgets that it was inside the lock.
                os.write(held[1], b"1")
                os.read(go[0], 1)

            os._exit(run(child))
        os.read(held[0], 1)
        assert forked(lambda: refused(path)) == 0
    other.upsert(A)  # Free, although the child lives.
    assert forked(lambda: microdb.MicroDB(path, ["id"], timeout=0).upsert(A)) == 0
    os.write(go[1], b"1")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def refused(path):
    with pytest.raises(microdb.LockTimeoutError):
        microdb.MicroDB(path, ["id"], timeout=0)


def test_a_fork_inside_a_lock_leaves_the_block_in_both(open_db, path):
    mdb = open_db()
    reader, writer = os.pipe()
    with mdb.lock():
        pid = os.fork()
    if pid == 0:

        def child():
            os.close(writer)
            os.read(reader, 1)  # Until the parent has seen that its lock is free.
            mdb.upsert({"id": "child"})

        os._exit(run(child))
    mdb.upsert(A)
    os.close(writer)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert list(mdb) == [("a",), ("child",)]


def test_a_child_that_leaves_the_lock_first_does_not_free_it(open_db, path):
    mdb = open_db()
    left, leave = os.pipe()
    context = mdb.lock()
    context.__enter__()
    pid = os.fork()
    if pid == 0:
        code = run(lambda: context.__exit__(None, None, None))
        os.write(leave, b"1")
        os._exit(code)
    os.read(left, 1)
    assert forked(lambda: refused(path)) == 0
    context.__exit__(None, None, None)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_child_reads_while_its_parent_holds_the_lock(open_db):
    mdb = open_db()
    mdb.upsert(A)
    with mdb.lock():
        mdb.upsert({"id": "b"})

        def child():
            assert list(mdb) == [("a",), ("b",)]
            assert mdb["b",] == {"id": "b"}

        assert forked(child) == 0


def test_forks_while_threads_are_in_mid_write_lose_nothing(open_db):
    mdb = open_db(partition_keys=["thread", "n"])
    counts = [0] * 8
    enough = threading.Event()

    def write(thread):
        while not enough.is_set():
            mdb.upsert({"thread": thread, "n": counts[thread]})
            counts[thread] += 1

    def child(number):
        assert len(mdb) >= 0
        mdb.upsert({"thread": "child", "n": number})
        assert mdb["child", number]
        with mdb.transaction():
            mdb.upsert({"thread": "child", "n": -number})

    threads = [threading.Thread(target=write, args=(t,)) for t in range(8)]
    for thread in threads:
        thread.start()
    try:
        codes = [forked(functools.partial(child, number)) for number in range(1, 9)]
    finally:
        enough.set()
        for thread in threads:
            thread.join()
    assert codes == [0] * 8
    for thread, count in enumerate(counts):
        assert [n for who, n in mdb if who == thread] == list(range(count))
    assert len([1 for who, _ in mdb if who == "child"]) == 16


def test_a_fork_without_pythons_hooks_is_noticed(open_db, path):
    mdb = open_db()
    mdb.upsert(A)
    with mdb.lock():
        pid = ctypes.PyDLL(None).fork()
        if pid == 0:

            def child():
                assert mdb["a",] == A
                assert forked_lock_is_not_ours(mdb)

            os._exit(run(child))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert forked(lambda: refused(path)) == 0, "the child did not free it"
    mdb.upsert(A)
    pid = ctypes.PyDLL(None).fork()
    if pid == 0:
        lock = mdb._log.lock
        os._exit(run(lambda: (mdb.upsert({"id": "child"}), mdb._log.lock is not lock or pytest.fail("the parent's"))))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert mdb["child",] == {"id": "child"}
    mdb.upsert({"id": "after"})
    assert list(open_db()) == [("a",), ("child",), ("after",)]


def test_every_handle_of_a_child_of_a_fork_without_hooks_notices_it(open_db, tmp_path):
    """The first to notice forgets the locks of all; the next must leave alone what the child has locked by then."""
    mdb, other = open_db(), open_db(tmp_path / "other.json")
    pid = ctypes.PyDLL(None).fork()
    if pid == 0:

        def child():
            with mdb.lock():
                mdb.upsert(A)
                other.upsert({"id": "b"})
                assert forked(lambda: refused(mdb.filename)) == 0, "still locked"
            assert forked(lambda: microdb.MicroDB(mdb.filename, ["id"], timeout=0).close()) == 0

        os._exit(run(child))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert list(mdb) == [("a",)]
    assert list(other) == [("b",)]


def test_a_fork_is_told_to_a_handle_once_however_many_threads_notice_it():
    class Handle:
        told = 0

        def begin_in_child(self, *, is_sound):
            assert not is_sound
            self.told += 1

    def child():
        handle = Handle()
        for _ in range(2):
            forks.notice(handle, lambda: handle.told == 0)
        assert handle.told == 1

    assert forked(child) == 0


def forked_lock_is_not_ours(mdb):
    with pytest.raises(microdb.LockTimeoutError), mdb.lock(timeout=0):
        pass
    return True


def test_a_parent_that_dies_leaves_no_lock_and_no_presence_behind(open_db, path):
    """The child inherits every descriptor; when the parent is killed in its lock, nobody waits for the child."""
    ready, go = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        mdb = microdb.MicroDB(path, ["id"])
        mdb.upsert(A)
        mdb.lock().__enter__()
        grandchild = os.fork()
        if grandchild == 0:
            os.write(ready[1], b"1")
            os.read(go[0], 1)
            os._exit(0)
        signal.pause()
    os.read(ready[0], 1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    mdb = open_db(timeout=5)
    mdb.upsert({"id": "b"})
    assert list(mdb) == [("a",), ("b",)]
    os.write(go[1], b"1")


def test_a_closed_handle_stays_closed_in_a_child(open_db):
    mdb = open_db()
    mdb.close()

    def child():
        with pytest.raises(microdb.ClosedError):
            mdb.get(("a",))

    assert forked(child) == 0


def test_a_child_closes_its_parents_files_even_if_a_thread_that_it_lacks_still_refers_to_them(open_db):
    mdb = open_db()
    mdb.upsert(A)
    files = [mdb._log.header_file, mdb._log._lock_file, mdb._log.generations.last.file]
    assert forked(lambda: pytest.fail("still open") if any(file.fd >= 0 for file in files) else None) == 0
    assert all(file.fd >= 0 for file in files)


def test_a_read_only_handle_reads_on_in_a_child(open_db):
    mdb = open_db()
    reader = open_db(read_only=True)
    mdb.upsert(A)

    def child():
        assert reader["a",] == A
        with pytest.raises(microdb.ReadOnlyError):
            reader.upsert(A)

    assert forked(child) == 0


def test_a_table_in_memory_becomes_two_with_a_fork(open_db):
    mdb = open_db(":memory:")
    mdb.upsert(A)

    def child():
        mdb.upsert({"id": "child"})
        assert len(mdb) == 2

    with mdb.lock():
        assert forked(child) == 0
    assert list(mdb) == [("a",)]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_started_by_any_method_share_it(open_db, path, method):
    mdb = open_db(partition_keys=["writer", "n"])
    context = mp.get_context(method)
    pipes, processes = [], []
    for writer in range(3):
        ours, theirs = context.Pipe()
        process = context.Process(target=write_numbers, args=(theirs, str(path), writer, 50, {}))
        process.start()
        pipes.append(ours)
        processes.append(process)
    for pipe in pipes:
        assert pipe.recv() == "ready"
        pipe.send("go")
    finish(pipes)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(mdb) == 150


def upsert_that_forks(mdb, record, pids, refused, method="upsert"):
    """The child that is made amid it is refused, and nothing more; in the parent it is made."""
    try:
        getattr(mdb, method)(record)
    except refused as error:
        assert pids == [0]
        os._exit(isinstance(error, microdb.ReentrantError) and "forked" not in str(error))
    finally:
        if pids == [0]:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) == 0


@pytest.mark.parametrize(
    ("durability", "step", "method"),
    [("process", "take_now", "upsert"), ("process", "take_now", "upsert_many"), ("power", "acquire_queued", "upsert")],
)
def test_a_child_that_a_signal_handler_forked_amid_a_write_leaves_that_write_to_its_parent(
    open_db, durability, step, method
):
    """It has no lock of its own, and goes on within a write that waits for the parent's."""
    mdb = open_db(durability=durability)
    mdb.upsert({"id": "first"})
    lock = mdb._log.lock
    acquire, pids = getattr(lock, step), []

    def acquire_after_a_fork(*args):
        pids.append(os.fork())
        return acquire(*args)

    setattr(lock, step, acquire_after_a_fork)
    record = {"id": "a"}
    upsert_that_forks(mdb, record if method == "upsert" else [record], pids, microdb.ReentrantError, method)
    delattr(lock, step)
    mdb.upsert({"id": "b"})
    assert list(mdb) == [("first",), ("a",), ("b",)]


def test_a_thread_of_a_child_takes_the_lock_that_another_one_has_just_opened(open_db):
    """Not the one that nobody else knows, which it had before."""
    mdb = open_db()
    mdb.upsert(A)

    class Commits(type(mdb._commits)):
        def __init__(self, waiting):
            self._waiting = waiting

        @property
        def waiting(self):
            mdb._commits = commits
            if mdb._pid != os.getpid():  # It is looked at before any file was opened.
                in_thread(mdb.sync)
            return self._waiting

    def child():
        nonlocal commits
        commits = mdb._commits
        mdb._commits = Commits(commits.waiting)
        mdb.upsert({"id": "child"})
        assert mdb.stats().owner_pid == os.getpid()

    commits = None
    assert forked(child) == 0
    assert ("child",) in mdb


def test_a_child_forked_amid_a_transaction_writes_nothing_in_it_though_a_thread_of_its_own_has_files(open_db):
    """The fork has closed its own; a thread that has no part in the transaction opens others."""
    mdb = open_db()
    mdb.upsert(A)
    refusals = []

    def child():
        in_thread(lambda: [mdb.upsert({"id": name}) for name in ("one", "two")])
        for write in (lambda: mdb.upsert(A), lambda: mdb.upsert_many([A])):
            with pytest.raises(microdb.TransactionError, match="began before a fork"):
                write()
            refusals.append(write)
        assert len(refusals) == 2

    read_end, write_end = os.pipe()
    with mdb.transaction():
        mdb.upsert({"id": "b"})
        pid = os.fork()
        if pid == 0:
            os.read(read_end, 1)
            os._exit(run(child))
    os.write(write_end, b"x")  # The lock is free to the child's thread.
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    for end in (read_end, write_end):
        os.close(end)
    assert list(mdb) == [("a",), ("b",), ("one",), ("two",)]


@pytest.mark.parametrize("writes", [False, True], ids=["", "and writes in its handler"])
@pytest.mark.parametrize(
    ("method", "step"),
    [("upsert", "append_one"), ("upsert", "_write"), ("upsert_many", "append"), ("upsert_many", "_write")],
)
def test_so_does_one_that_it_forked_as_the_log_was_just_asked(open_db, step, method, writes):
    """By then the child may have a lock of its own; it has not taken that."""
    mdb = open_db()
    mdb.upsert({"id": "first"})
    log, pids = mdb._log, []
    ask = getattr(log, step)

    def ask_after_a_fork(*args, **options):
        delattr(log, step)
        pids.append(os.fork())
        if pids == [0] and writes:
            mdb.upsert({"id": "child"})
        return ask(*args, **options)

    setattr(log, step, ask_after_a_fork)
    record = {"id": "a"}
    upsert_that_forks(mdb, record if method == "upsert" else [record], pids, microdb.ReentrantError, method)
    stats = mdb.stats()
    assert (stats.saves, stats.repairs, stats.dirty_pid) == (0, 0, None)
    mdb.upsert({"id": "b"})
    assert [key for (key,) in mdb if key != "child"] == ["first", "a", "b"]


def test_so_does_one_that_it_forked_right_behind_the_look_at_the_lock(open_db):
    mdb = open_db()
    mdb.upsert({"id": "first"})
    lock, pids = mdb._log.lock, []
    is_mine = lock.is_mine

    def is_mine_before_a_fork():
        found = is_mine()
        if found and lock.writing is not None:
            lock.is_mine = is_mine
            pids.append(os.fork())
        return found

    lock.is_mine = is_mine_before_a_fork
    upsert_that_forks(mdb, {"id": "a"}, pids, microdb.ReentrantError)
    mdb.upsert({"id": "b"})
    assert (list(mdb), mdb.stats().dirty_pid) == ([("first",), ("a",), ("b",)], None)


@pytest.mark.parametrize("is_written", [False, True])
def test_a_child_that_a_signal_handler_forked_within_an_append_leaves_the_page_alone(open_db, is_written):
    faulty = Faulty()
    mdb = open_db(files=faulty)
    mdb.upsert({"id": "a"})
    file, pids = mdb._log.generations.last.file, []
    write_at = file.write_at

    def forked_amid(data, offset):
        if is_written:
            write_at(data, offset)
        pids.append(os.fork())
        if not is_written:
            write_at(data, offset)

    file.write_at = forked_amid
    upsert_that_forks(mdb, {"id": "b"}, pids, (OSError, microdb.ReentrantError))
    del file.write_at
    mdb.upsert({"id": "c"})
    stats = mdb.stats()
    assert (list(mdb), stats.saves, stats.repairs, stats.dirty_pid) == ([("a",), ("b",), ("c",)], 0, 0, None)


def test_a_transaction_of_a_thread_that_is_not_in_the_child_is_not_that_of_a_new_one(open_db):
    mdb = open_db()
    is_inside, may_end = threading.Event(), threading.Event()

    def transact():
        with mdb.transaction():
            mdb.upsert(A)
            is_inside.set()
            may_end.wait()

    def child():
        threads = [threading.Thread(target=mdb.upsert, args=({"id": n},)) for n in range(8)]
        numbers = []
        for thread in threads:
            thread.start()
            numbers.append(thread.ident)
            thread.join()
        assert owner.ident in numbers, "the system gives a number again"
        mdb.save()
        assert set(mdb) == {("a",), *((n,) for n in range(8))}

    owner = threading.Thread(target=transact)
    owner.start()
    is_inside.wait()
    pid = os.fork()
    if pid == 0:
        os._exit(run(child))
    may_end.set()
    owner.join()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


FORKING_AMID_AN_IMPORT = """
import os, sys, threading
import microdb

mdb = microdb.MicroDB(sys.argv[1], ["id"], timeout=5)
mdb.upsert({"id": 1})
is_importing, has_forked = threading.Event(), threading.Event()

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[2]:
            is_importing.set()
            has_forked.wait(0.5)

sys.meta_path.insert(0, Slow())
thread = threading.Thread(target=eval(sys.argv[3]))
thread.start()
is_importing.wait()
pid = os.fork()
if pid == 0:
    mdb.claim({}, 60)
    mdb.upsert({"id": 2})
    mdb.save(timeout=5)
    os._exit(0)
has_forked.set()
thread.join()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.parametrize(
    ("module", "act"),
    [
        ("filelock", "mdb.save"),
        ("msgspec", "mdb.save"),
        ("ctypes", "lambda: mdb.watch().sleep(0.1)"),
    ],
)
def test_a_fork_waits_for_a_module_that_another_thread_is_importing(path, module, act):
    command = [sys.executable, "-c", FORKING_AMID_AN_IMPORT, str(path), module, act]
    subprocess.run(command, check=True, timeout=60)
