import contextlib
import ctypes
import gc
import linecache
import os
import sys
import threading
import time
import types

import pytest

from microdb import locks
from microdb.errors import LockTimeoutError, ReentrantError
from microdb.files import OS
from microdb.locks import WriteLock, held, shared_write_lock
from microdb.presence import be_absent, become_present, is_alone
from steps import SOON_S, WAIT_S, Child, in_thread


@pytest.fixture
def path(tmp_path):
    path = str(tmp_path / "lock")
    OS.create(path)
    return path


def new_lock(path):
    """A lock on a descriptor of its own, as another process has it."""
    return WriteLock(OS.open(path, write=True))


def is_free(path):
    """Whether nobody holds the lock on the file, told by a stranger."""
    stranger = new_lock(path)
    try:
        stranger.acquire(0)
    except LockTimeoutError:
        return False
    stranger.release()
    return True


def holder(path, *, words=None):
    """Steps of a child: take the lock, let it go."""

    def steps():
        lock = new_lock(path)
        if words is not None:
            lock.tell_owner_in(words)
        lock.acquire()
        yield b"+"
        lock.release()
        yield b"-"

    return steps


def test_a_lock_is_reentrant_in_its_thread_and_free_after_as_many_releases(path):
    lock = new_lock(path)
    for depth in (1, 2, 3):
        lock.acquire(0)
        assert (lock.depth, lock.is_mine(), is_free(path)) == (depth, True, False)
    for depth in (2, 1):
        lock.release()
        assert (lock.depth, lock.is_mine(), is_free(path)) == (depth, True, False)
    lock.release()
    assert (lock.depth, lock.is_mine(), is_free(path)) == (0, False, True)


def test_a_lock_can_be_taken_again_and_again(path):
    lock = new_lock(path)
    for _ in range(100):
        lock.acquire()
        lock.release()
    assert is_free(path)


def test_a_with_block_holds_the_lock_and_lets_it_go_whatever_happens(path):
    lock = new_lock(path)
    with held(lock, None):
        with pytest.raises(ZeroDivisionError), held(lock, None):
            assert lock.depth == 2
            raise ZeroDivisionError
        assert (lock.depth, is_free(path)) == (1, False)
    assert is_free(path)


def test_a_thread_keeps_another_one_out(path):
    lock = new_lock(path)
    lock.acquire()
    assert not in_thread(lock.is_mine)
    assert isinstance(in_thread(lambda: lock.acquire(0)), LockTimeoutError)
    assert isinstance(in_thread(lambda: lock.acquire(SOON_S)), LockTimeoutError)
    lock.release()
    assert in_thread(lambda: (lock.acquire(0), lock.depth, lock.release())) == (None, 1, None)
    assert is_free(path)


def test_a_lock_without_a_file_excludes_threads_too():
    lock = WriteLock()
    lock.acquire()
    error = in_thread(lambda: lock.acquire(0))
    assert (type(error), error.path, error.owner_pid) == (LockTimeoutError, ":memory:", os.getpid())
    lock.release()
    assert in_thread(lambda: (lock.acquire(0), lock.release())) == (None, None)


def test_threads_that_count_together_lose_nothing(path):
    lock = new_lock(path)
    total = [0]

    def count():
        for _ in range(500):
            with held(lock, None):
                total[0] = total[0] + 1

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert total == [2000]


def test_a_process_keeps_another_one_out(path):
    lock = new_lock(path)
    with Child(holder(path)) as child:
        child.step()
        for timeout_s in (0, SOON_S):
            with pytest.raises(LockTimeoutError):
                lock.acquire(timeout_s)
        assert (lock.depth, lock.is_mine()) == (0, False)
        child.step()
        lock.acquire(0)
    assert not is_free(path)


def test_the_lock_of_a_process_that_was_killed_is_free(path):
    with Child(holder(path)) as child:
        child.step()
        assert not is_free(path)
        child.kill()
        assert is_free(path)


@pytest.mark.parametrize("timeout_s", [None, WAIT_S])
def test_whoever_waits_gets_the_lock_when_it_becomes_free(path, timeout_s):
    lock = new_lock(path)
    lock.acquire()

    def steps():
        mine = new_lock(path)
        mine.acquire(timeout_s)
        yield b"+"

    with Child(steps) as child:
        child.begin_step()
        lock.release()
        assert child.end_step() == b"+"
        assert not is_free(path)


def test_a_timeout_names_the_file_the_time_and_the_process_that_holds_it(path, tmp_path):
    page = OS.create(str(tmp_path / "page"))
    page.write_at(bytes(4096), 0)
    words = page.map_words(4096, writable=True)
    lock = new_lock(path)
    lock.tell_owner_in(words)
    with Child(holder(path, words=words)) as child:
        child.step()
        with pytest.raises(LockTimeoutError, match=f"process {child.pid} holds it") as caught:
            lock.acquire(SOON_S)
        assert (caught.value.path, caught.value.timeout_s, caught.value.owner_pid) == (path, SOON_S, child.pid)
    lock.acquire()
    assert words[0] == os.getpid()
    assert in_thread(lambda: lock.acquire(0)).owner_pid == os.getpid()


def test_a_timeout_without_a_page_says_that_another_process_holds_it(path):
    lock = new_lock(path)
    lock.acquire()
    with pytest.raises(LockTimeoutError, match="another process") as caught:
        new_lock(path).acquire(0)
    assert caught.value.owner_pid is None


def test_a_timeout_is_neither_much_shorter_nor_much_longer_than_asked(path):
    lock = new_lock(path)
    lock.acquire()
    began = time.monotonic()
    with pytest.raises(LockTimeoutError):
        new_lock(path).acquire(0.2)
    assert 0.2 <= time.monotonic() - began < 5


def test_a_lock_that_timed_out_can_be_taken_later_and_by_any_thread(path):
    lock, other = new_lock(path), new_lock(path)
    other.acquire()
    with pytest.raises(LockTimeoutError):
        lock.acquire(0)
    other.release()
    assert in_thread(lambda: (lock.acquire(0), lock.release())) == (None, None)
    assert is_free(path)


def test_two_files_of_one_path_share_one_lock_and_two_paths_do_not(path):
    one = shared_write_lock(OS.open(path, write=True))
    assert shared_write_lock(OS.open(path, write=True)) is one
    os.symlink(path, path + ".link")
    os.link(path, path + ".hard")
    assert shared_write_lock(OS.open(path + ".link", write=True)) is one
    assert shared_write_lock(OS.open(path + ".hard", write=True)) is one
    assert shared_write_lock(OS.create(path + "2")) is not one


def test_a_shared_lock_outlives_the_file_of_whoever_asked_first(path):
    file = OS.open(path, write=True)
    lock = shared_write_lock(file)
    del file
    gc.collect()
    shared_write_lock(OS.open(path, write=True)).acquire()
    assert lock.is_mine()
    assert not is_free(path)


def test_a_shared_lock_that_nobody_uses_is_forgotten(path):
    file = OS.open(path, write=True)
    shared_write_lock(file)
    gc.collect()
    assert file.identity().file not in locks._write_locks


def test_a_new_file_under_the_same_name_has_another_lock(path):
    one = shared_write_lock(OS.open(path, write=True))
    OS.unlink(path)
    OS.create(path)
    assert shared_write_lock(OS.open(path, write=True)) is not one


def test_a_child_that_leaves_a_with_block_of_its_parent_does_not_free_its_lock(path):
    lock = new_lock(path)
    lock.acquire()
    lock.acquire()

    def steps():
        lock.release()
        lock.release()
        yield b"-"
        assert not is_free(path)
        yield b"."

    with Child(steps) as child:
        child.step()
        assert not is_free(path)
        child.step()
        assert child.end() == 0
    assert not is_free(path)
    assert lock.depth == 2
    lock.release()
    assert not is_free(path)
    lock.release()
    assert is_free(path)


def test_a_child_of_a_fork_that_python_did_not_see_does_not_free_its_parents_lock_either(path):
    lock = new_lock(path)
    lock.acquire()
    pid = ctypes.PyDLL(None).fork()
    if pid == 0:
        lock.release()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert not is_free(path)
    lock.release()
    assert is_free(path)


def test_a_child_does_not_hold_what_its_parent_holds(path):
    lock = shared_write_lock(OS.open(path, write=True))
    lock.acquire()

    def steps():
        mine = shared_write_lock(OS.open(path, write=True))
        assert mine is not lock
        with pytest.raises(LockTimeoutError):
            mine.acquire(0)
        yield b"."
        mine.acquire()
        yield b"+"

    with Child(steps) as child:
        child.step()
        lock.release()
        child.step()
        assert not is_free(path)
        child.kill()
    assert is_free(path)


def test_the_parents_lock_is_free_once_it_lets_go_though_its_child_lives(path):
    lock = new_lock(path)
    lock.acquire()
    with Child(lambda: iter([b"."])) as child:
        child.step()
        lock.release()
        assert is_free(path)


def test_a_fork_waits_for_no_lock_of_another_thread_and_its_child_keeps_none(path):
    lock = new_lock(path)
    taken, release = threading.Event(), threading.Event()

    def hold():
        with held(lock, None):
            taken.set()
            release.wait(WAIT_S)

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait(WAIT_S)
    with Child(lambda: iter([b"."])) as child:
        child.step()
        assert not is_free(path)
        release.set()
        thread.join(WAIT_S)
        assert is_free(path), "though the child lives"


def lines_of(*functions):
    """Every line of these functions at which an interrupt may come."""
    return [(each.__code__, line) for each in functions for _, _, line in each.__code__.co_lines() if line is not None]


def interrupted_at(place, function):
    """Whether `function` was ended by a KeyboardInterrupt as it came to a line, as if somebody had pressed Ctrl-C."""
    came = []

    def trace(frame, event, _):
        if event == "line" and (frame.f_code, frame.f_lineno) == place and not came:
            came.append(True)
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def is_left(lock, path):
    """Whether a lock is free to other processes, which a thread that takes it would make it, and to threads."""
    if lock.depth or not is_free(path):
        return False
    return in_thread(lambda: (lock.acquire(0), lock.release())) == (None, None)


def test_an_interrupt_within_acquire_leaves_the_lock_free(path):
    places = sorted(set(lines_of(WriteLock.acquire, WriteLock.acquire_queued)), key=lambda place: place[1])
    left = []
    for place in places:
        lock = new_lock(path)
        if not interrupted_at(place, lock.acquire):
            continue
        if not is_left(lock, path):
            left.append(linecache.getline(place[0].co_filename, place[1]).strip())
    assert left == []


def test_an_interrupt_within_take_now_is_met_by_one_return(path):
    left = []
    for place in sorted(set(lines_of(WriteLock.take_now)), key=lambda place: place[1]):
        lock = new_lock(path)
        level = lock.level()
        if interrupted_at(place, lock.take_now):
            lock.return_to(level)
            if not is_left(lock, path):
                left.append(linecache.getline(place[0].co_filename, place[1]).strip())
    assert left == []


def test_a_lock_that_another_process_holds_is_not_taken_now_and_stays_free_to_the_threads(path):
    lock = new_lock(path)
    with Child(holder(path)) as child:
        child.step()
        assert not lock.take_now()
        assert (lock.depth, lock.is_mine()) == (0, False)
        child.step()
    assert lock.take_now()
    assert not in_thread(lock.take_now)
    lock.release()
    assert is_free(path)


TURNS = 2_800

WORK = range(10_000)
"""What to do in a turn, about a quarter of a millisecond. In shorter turns the lock is mostly free, so that polling for
it, which starves, looks as fair as waiting in the queue of the system."""


def contend(path, words, number):
    """Steps of one of several processes that take turns until all turns are taken."""

    def steps():
        lock = new_lock(path)
        yield b"."
        while True:
            with held(lock, None):
                if words[0] == TURNS:
                    break
                words[0] += 1
                words[1 + number] += 1
                for _ in WORK:
                    pass
        yield b"."

    return steps


def turns_of_four(path, page_path):
    """How many of the turns each of four processes that contend has had."""
    page = OS.create(page_path)
    page.write_at(bytes(4096), 0)
    words = page.map_words(4096, writable=True)
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(Child(contend(path, words, number))) for number in range(4)]
        gate = new_lock(path)
        gate.acquire()
        for child in children:
            child.step()
        for child in children:
            child.begin_step()
        gate.release()
        for child in children:
            child.end_step()
    turns = list(words[1:5])
    assert sum(turns) == words[0] == TURNS
    return turns


def test_four_processes_that_contend_are_served_fairly_and_lose_no_turn(path, tmp_path):
    """Where a neighbour takes a core away for a while, once more."""
    tries = [turns_of_four(path, str(tmp_path / "page"))]
    while min(tries[-1]) < TURNS / 4 / 4 and len(tries) < 5:
        tries.append(turns_of_four(path, str(tmp_path / f"page {len(tries)}")))
    assert min(tries[-1]) >= TURNS / 4 / 4, tries


def present(path):
    """Steps of a child: become present, become absent."""

    def steps():
        file = OS.open(path, write=True)
        become_present(file)
        yield b"+"
        be_absent(file)
        yield b"-"

    return steps


def test_whoever_is_present_is_seen_by_others_until_absent(path):
    file = OS.open(path, write=True)
    assert is_alone(file)
    be_absent(file)
    with Child(present(path)) as child:
        child.step()
        assert not is_alone(file)
        child.step()
        assert is_alone(file)


def test_whoever_is_killed_is_no_longer_present(path):
    file = OS.open(path, write=True)
    with Child(present(path)) as child:
        child.step()
        assert not is_alone(file)
        child.kill()
        assert is_alone(file)


def test_many_are_present_at_once(path):
    one, other, third = (OS.open(path, write=True) for _ in range(3))
    become_present(one)
    become_present(other)
    assert not is_alone(third)
    be_absent(one)
    assert not is_alone(third)
    del other
    gc.collect()
    assert is_alone(third)


def test_whoever_looks_while_somebody_is_making_sure_waits_for_the_outcome(path):
    """As an opener does whose predecessor is dying in its recovery, and has let go of the write lock already."""
    file = OS.open(path, write=True)
    assert is_alone(file)

    def steps():
        mine = OS.open(path, write=True)
        yield b"."
        assert not is_alone(mine)
        yield b"+"

    with Child(steps) as child:
        child.step()
        become_present(file)
        child.step()
        assert not is_alone(file)


def test_a_failed_look_takes_no_presence_away(path):
    one, other = OS.open(path, write=True), OS.open(path, write=True)
    become_present(one)
    assert not is_alone(other)
    assert not is_alone(other)
    be_absent(one)
    assert is_alone(other)


def test_a_table_that_is_gone_keeps_nobody_from_waiting(path):
    lock, table, gone = WriteLock(), threading.RLock(), threading.RLock()
    for one in (gone, table):
        lock.comes_before(one)
    del gone, one
    lock.check_may_wait()
    lock.comes_before(threading.RLock())
    with table, pytest.raises(ReentrantError):
        lock.check_may_wait()
    lock.check_may_wait()


def test_a_return_by_a_thread_that_holds_nothing_changes_nothing(path):
    lock = new_lock(path)
    outside = lock.level()
    with held(lock, None):
        assert in_thread(lambda: lock.return_to(outside)) is None
        assert (lock.depth, is_free(path)) == (1, False)
    lock.return_to(outside)
    assert (lock.depth, is_free(path)) == (0, True)


def test_an_interrupt_as_a_with_block_lets_go_leaves_the_lock_free(path, monkeypatch):
    lock = new_lock(path)
    flock = locks.flock

    def interrupted(fd, flags):
        if flags == locks.UNLOCK:
            monkeypatch.setattr(locks, "flock", flock)
            raise KeyboardInterrupt
        flock(fd, flags)

    monkeypatch.setattr(locks, "flock", interrupted)
    with pytest.raises(KeyboardInterrupt), held(lock, None):
        pass
    assert (lock.depth, is_free(path)) == (0, True)
    assert in_thread(lambda: lock.acquire(0)) is None


def test_whoever_polls_for_the_lock_has_it_as_soon_as_it_is_free(path, monkeypatch):
    lock = new_lock(path)
    with Child(holder(path)) as child:
        child.step()
        pauses = []

        def sleep(pause_s):
            pauses.append(pause_s)
            if len(pauses) == 12:
                child.step()  # It lets go.

        monkeypatch.setattr(locks, "time", types.SimpleNamespace(monotonic=lambda: 0, sleep=sleep))
        lock.acquire(1)
        monkeypatch.undo()
        assert (lock.depth, is_free(path)) == (1, False)
    assert len(pauses) == 12
    assert pauses[:2] == [0.000_05, 0.000_1], "it begins with short pauses"
    assert max(pauses) == pauses[-1] == 0.01, "and ends with longer ones"
    lock.release()


def test_a_block_that_was_left_without_its_exit_is_left_when_it_is_forgotten():
    lock = WriteLock()
    block = held(lock, None)
    block.__enter__()
    assert lock.is_mine()
    del block
    assert not lock.is_mine()


def test_a_forgotten_block_takes_the_lock_from_no_block_that_has_begun_since():
    lock = WriteLock()
    block = held(lock, None)
    block.__enter__()
    with held(lock, None):
        with held(lock, None):
            del block
            assert lock.depth == 3
        assert lock.depth == 2
    assert not lock.is_mine()
    assert lock.depth == 0
    with held(lock, None):
        assert lock.depth == 1
    assert not lock.is_mine()


def test_whoever_waits_for_another_thread_is_told_what_time_is_left(path, monkeypatch):
    lock = new_lock(path)
    now = iter([100, 103])
    monkeypatch.setattr(locks, "time", types.SimpleNamespace(monotonic=lambda: next(now)))
    monkeypatch.setattr(lock, "enter_queue_now", lambda: False)  # By now it is free.
    assert lock.enter_queue(10) == 7


@pytest.mark.parametrize("amid", ["taking", "letting go"])
def test_a_signal_handler_amid_the_taking_or_leaving_of_the_lock_does_not_go_without_it(path, monkeypatch, amid):
    """For the note of how often its thread has it is made before, and taken back after."""
    lock, outcomes = new_lock(path), []
    flock = locks.flock

    def interrupted(fd, flags):
        if (flags == locks.UNLOCK) == (amid == "letting go"):
            monkeypatch.setattr(locks, "flock", flock)
            with pytest.raises(ReentrantError), held(lock, None):
                outcomes.append("went without it")
            outcomes.append("refused")
        flock(fd, flags)

    monkeypatch.setattr(locks, "flock", interrupted)
    with held(lock, None):
        pass
    assert outcomes == ["refused"]
    assert (lock.depth, is_free(path)) == (0, True)
    with held(lock, None), held(lock, None):
        assert lock.depth == 2


def test_whoever_blocks_for_a_moment_is_told_whether_it_has_come_to_be_the_first(path):
    lock = new_lock(path)
    assert lock.enter_queue_soon(0.001)
    assert in_thread(lambda: lock.enter_queue_soon(0.001)) is False
