"""The queue of group commit, with a lock that does what the test tells it to."""

import threading

import pytest

from faulty import Faulty, fail, in_thread, wait_until
from microdb import commits
from microdb.commits import Commit, CommitQueue
from microdb.errors import LockTimeoutError
from microdb.locks import WriteLock

A = {"id": "a"}
B = {"id": "b"}


class ScriptedLock:
    """The queue of a lock whose answers are known beforehand: an act, and then a value or an exception.

    At first somebody else is in it; whoever looks once more finds that nobody is.
    """

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []
        self.is_free = False

    def enter_queue_now(self):
        was_free, self.is_free = self.is_free, True
        return was_free

    def check_may_wait(self):
        pass

    def enter_queue(self, timeout_s):
        self.asked.append(timeout_s)
        act, answer = self.answers.pop(0)
        act()
        if isinstance(answer, BaseException):
            raise answer
        return answer


TIMED_OUT = LockTimeoutError("lock", 5, None)


@pytest.fixture
def queue():
    return CommitQueue()


@pytest.fixture
def commit():
    return Commit(b"mine", [])


def other():
    return Commit(b"another's", [])


def test_whoever_is_let_in_is_told_what_time_is_left(queue, commit):
    lock = ScriptedLock((lambda: None, 3.5))
    assert queue.enter(commit, lock, 5) == 3.5
    assert lock.asked == [5]
    assert len(queue) == 1


def test_whoever_is_let_in_takes_all_that_wait_in_their_order_and_itself_first(queue, commit):
    first, second = other(), other()
    for each in (first, commit, second):
        queue.enter(each, ScriptedLock((lambda: None, None)), None)
    assert queue.take_all(commit) == [commit, first, second]
    assert len(queue) == 0
    assert queue.take_all(commit) == [commit]


def test_whoever_is_not_let_in_and_was_not_taken_along_leaves_the_queue(queue, commit):
    waiting = other()
    queue.enter(waiting, ScriptedLock((lambda: None, None)), None)
    with pytest.raises(LockTimeoutError) as caught:
        queue.enter(commit, ScriptedLock((lambda: None, TIMED_OUT)), 5)
    assert caught.value is TIMED_OUT
    assert queue.take_all(waiting) == [waiting]


@pytest.mark.parametrize("is_written", [True, False])
def test_whoever_was_taken_along_as_its_time_was_up_waits_for_the_outcome(queue, commit, is_written):
    def write():
        commit.done = is_written

    lock = ScriptedLock((lambda: queue.take_all(other()), TIMED_OUT), (write, None))
    if is_written:
        assert queue.enter(commit, lock, 5) is None
    else:
        with pytest.raises(LockTimeoutError) as caught:
            queue.enter(commit, lock, 5)
        assert caught.value is TIMED_OUT
    assert lock.asked == [5, None], "the second time however long it takes"
    assert len(queue) == 0


def test_one_that_withdraws_as_it_is_about_to_be_taken_is_left_out(queue, commit):
    waiting = other()
    queue.enter(waiting, ScriptedLock((lambda: None, None)), None)

    class Withdrawing(type(queue._waiting)):
        def popleft(self):
            self.clear()
            return super().popleft()

    queue._waiting = Withdrawing(queue._waiting)
    assert queue.take_all(commit) == [commit]


def test_two_batches_that_say_the_same_are_two_batches(queue):
    first, second = other(), other()
    for each in (first, second):
        queue.enter(each, ScriptedLock((lambda: None, None)), None)
    group = queue.take_all(second)
    assert [one is wanted for one, wanted in zip(group, (second, first), strict=True)] == [True, True]


def test_leaving_twice_does_no_harm_and_leaves_alone_what_others_hold(queue, commit):
    lock = WriteLock()
    level = lock.level()
    waiting = other()
    queue.enter(commit, ScriptedLock((lambda: None, None)), None)
    queue.enter(waiting, ScriptedLock((lambda: None, None)), None)
    lock.acquire()
    lock.writing = commit
    queue.leave(commit, lock, level)
    assert (lock.writing, lock.level()) == (None, level)
    assert len(queue) == 1
    another = in_thread(lambda: (lock.acquire(), other())[1])
    lock.writing = another
    queue.leave(commit, lock, level)
    assert lock.writing is another
    assert len(queue) == 1


def test_a_write_that_is_not_let_in_in_time_is_withdrawn_and_never_made(open_db):
    mdb, other = open_db(timeout=0.01), open_db()
    with other.lock():
        with pytest.raises(LockTimeoutError) as caught:
            in_thread(lambda: mdb.upsert(A))
        assert len(mdb._commits) == 0
    assert caught.value.timeout_s == 0.01
    mdb.upsert(B)
    assert list(mdb.all()) == [B]


def test_if_a_batch_fails_each_of_its_writers_gets_an_error_and_none_is_written(open_db):
    faulty = Faulty()
    mdb = open_db(files=faulty)
    errors = {}

    def write(name):
        try:
            mdb.upsert({"id": name})
        except OSError as error:
            errors[name] = error

    faulty.on["write_at"] = fail
    threads = [threading.Thread(target=write, args=(name,)) for name in "xyz"]
    with mdb.lock():
        for thread in threads:
            thread.start()
        wait_until(lambda: len(mdb._commits) == 3)
    for thread in threads:
        thread.join()
    assert sorted(errors) == ["x", "y", "z"]
    assert len(mdb) == 0
    faulty.on.clear()
    mdb.upsert(A)
    assert list(mdb.all()) == [A]


def test_inside_a_lock_nobody_elses_batch_is_taken_along(open_db):
    mdb = open_db()
    thread = threading.Thread(target=mdb.upsert, args=(B,))
    with mdb.lock():
        thread.start()
        wait_until(lambda: len(mdb._commits))
        mdb.upsert(A)
        assert (len(mdb._commits), list(mdb.all())) == (1, [A])
    thread.join()
    assert list(mdb.all()) == [A, B]


def test_an_interrupt_while_a_writer_leaves_lets_the_next_one_in(open_db, monkeypatch):
    mdb = open_db()
    leave = CommitQueue.leave
    calls = []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        leave(*args)

    monkeypatch.setattr(CommitQueue, "leave", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mdb.upsert(A)
    monkeypatch.undo()
    in_thread(lambda: mdb.upsert(B))
    assert list(mdb.all()) == [A, B]


def test_a_batch_that_was_taken_along_is_done_when_its_leader_is(queue, commit):
    follower = other()
    for each in (commit, follower):
        queue.enter(each, ScriptedLock((lambda: None, None)), None)
    assert queue.take_all(commit) == [commit, follower]
    assert not follower.is_done()
    commit.done = True
    assert follower.is_done()


def test_whoever_does_not_wait_can_be_woken_as_often_as_one_likes(queue, commit):
    commit.wake()
    for each in (other(), commit):
        queue.enter(each, ScriptedLock((lambda: None, None)), None)
    for _ in range(2):
        commit.wake()
        assert not commit.asleep.locked()


def test_when_the_first_withdraws_the_next_one_is_woken_to_be_the_first(queue, commit):
    first = other()
    for each in (first, commit):
        queue.enter(each, ScriptedLock((lambda: None, None)), None)
    assert commit.asleep.locked()
    queue.leave(first, WriteLock(), WriteLock().level())
    assert not commit.asleep.locked()


def test_of_several_that_wait_all_but_the_first_wait_for_their_batch_alone(open_db, monkeypatch):
    """Else each of them would have to get the lock, only to give it back."""
    mdb = open_db()
    entered = []
    enter = WriteLock.enter_queue
    threads = [threading.Thread(target=mdb.upsert, args=({"id": name},)) for name in "wxyz"]
    with mdb.lock():
        monkeypatch.setattr(WriteLock, "enter_queue", lambda *args: (entered.append(args), enter(*args))[1])
        monkeypatch.setattr(commits, "_LOOK_EVERY_S", 60)
        for thread in threads:
            thread.start()
        wait_until(lambda: len(mdb._commits) == 4 and entered)
    for thread in threads:
        thread.join()
    assert len(mdb) == 4
    assert len(entered) == 1


def test_a_batch_behind_one_of_its_own_thread_is_let_in_nevertheless(queue, commit):
    """As that of a signal handler that has interrupted the wait for the other."""
    lock = WriteLock()
    outer = other()
    queue.enter(outer, ScriptedLock((lambda: None, None)), None)
    is_held, may_end = threading.Event(), threading.Event()

    def hold():
        lock.acquire()
        is_held.set()
        may_end.wait()
        lock.release()

    thread = threading.Thread(target=hold)
    thread.start()
    is_held.wait()
    threading.Timer(0.2, may_end.set).start()
    assert queue.enter(commit, lock, None) is None
    assert lock.is_mine()
    thread.join()


def test_a_batch_that_sleeps_is_refused_when_its_time_is_up(queue, commit):
    lock = WriteLock()
    queue.enter(other(), ScriptedLock((lambda: None, None)), None)
    in_thread(lock.acquire)
    with pytest.raises(LockTimeoutError):
        queue.enter(commit, lock, 0.12)
    assert len(queue) == 1
