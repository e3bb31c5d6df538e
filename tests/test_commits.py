"""The queue of group commit, with a lock that does what the test tells it to."""

import contextlib
import gc
import threading
import types
import weakref

import pytest

import microdb
from faulty import Faulty, fail, in_thread, wait_until
from microdb import commits
from microdb.commits import Commit, CommitQueue
from microdb.errors import LockTimeoutError, ReentrantError
from microdb.handle import Handle
from microdb.locks import WriteLock, held
from steps import SOON_S, WAIT_S

A = {"id": "a"}
B = {"id": "b"}


class ScriptedLock(WriteLock):
    """Tells beforehand what each attempt to enter its queue will come to, and what is done before."""

    def __init__(self, *answers):
        super().__init__()
        self.answers = list(answers)

    def enter_queue_now(self):
        answer = self.answers.pop(0)
        return answer() if callable(answer) else answer


def together(mdb, threads):
    """Run threads that write, so that the batches of all wait at once."""
    with mdb.lock():
        for thread in threads:
            thread.start()
        wait_until(lambda: len(mdb._commits.waiting) == len(threads))
    for thread in threads:
        thread.join()


@pytest.fixture
def queue(monkeypatch):
    monkeypatch.setattr(commits, "_LOOK_EVERY_S", 0)
    return CommitQueue()


@pytest.fixture
def commit():
    return Commit(b"mine", [])


def other():
    return Commit(b"another's", [])


def enter(queue, commit, *answers, timeout_s=None):
    return queue.enter(commit, ScriptedLock(*answers), timeout_s)


def wait_in(queue, *waiting):
    """Let them wait as if each had a thread, which has not looked yet whether it may go on."""
    for commit in waiting:
        enter(queue, commit, True)


def test_whoever_is_let_in_is_told_what_time_is_left(queue, commit, monkeypatch):
    now = iter([100, 101.5])
    monkeypatch.setattr(commits, "time", types.SimpleNamespace(monotonic=lambda: next(now)))
    assert enter(queue, commit, False, True, timeout_s=5) == 3.5
    assert len(queue.waiting) == 1


def test_whoever_is_let_in_takes_all_that_wait_in_their_order_and_itself_first(queue, commit):
    first, second = other(), other()
    wait_in(queue, first, commit, second)
    assert queue.take_all(commit) == [commit, first, second]
    assert len(queue.waiting) == 0
    assert queue.take_all(commit) == [commit]


def test_whoever_is_not_let_in_and_was_not_taken_along_leaves_the_queue(queue, commit):
    waiting = other()
    wait_in(queue, waiting)
    with pytest.raises(LockTimeoutError) as caught:
        enter(queue, commit, *[False] * 1_000, timeout_s=0)
    assert caught.value.timeout_s == 0
    assert queue.take_all(waiting) == [waiting]


@pytest.mark.parametrize("is_written", [True, False])
def test_whoever_was_taken_along_as_its_time_was_up_waits_for_the_outcome(queue, commit, is_written):
    leader = other()

    def is_writing():
        queue.take_all(leader)
        return False

    def has_written():
        leader.done = is_written
        return not is_written

    enters = lambda: enter(queue, commit, is_writing, False, has_written, timeout_s=0)  # noqa: E731
    if is_written:
        assert enters() == 0
        assert commit.is_done()
    else:
        with pytest.raises(LockTimeoutError):
            enters()
    assert len(queue.waiting) == 0


def test_one_that_withdraws_as_it_is_about_to_be_taken_is_left_out(queue, commit):
    wait_in(queue, other())

    class Withdrawing(type(queue.waiting)):
        def popleft(self):
            self.clear()
            return super().popleft()

    queue.waiting = Withdrawing(queue.waiting)
    assert queue.take_all(commit) == [commit]


def test_two_batches_that_say_the_same_are_two_batches(queue):
    first, second = other(), other()
    wait_in(queue, first, second)
    group = queue.take_all(second)
    assert [one is wanted for one, wanted in zip(group, (second, first), strict=True)] == [True, True]


def test_leaving_twice_does_no_harm_and_leaves_alone_what_others_hold(queue, commit):
    lock = WriteLock()
    level = lock.level()
    wait_in(queue, commit, other())
    lock.acquire()
    lock.writing = commit
    queue.leave(commit, lock, level)
    assert (lock.writing, lock.level()) == (None, level)
    assert len(queue.waiting) == 1
    another = in_thread(lambda: (lock.acquire(), other())[1])
    lock.writing = another
    queue.leave(commit, lock, level)
    assert lock.writing is another
    assert len(queue.waiting) == 1


def test_a_batch_that_was_taken_along_is_done_when_its_leader_is(queue, commit):
    follower = other()
    wait_in(queue, commit, follower)
    assert queue.take_all(commit) == [commit, follower]
    assert not follower.is_done()
    commit.done = True
    assert follower.is_done()


def test_whoever_is_awake_can_be_woken_as_often_as_one_likes(queue, commit):
    assert not commit.wake()
    commit.sleep(0)
    wait_in(queue, commit)
    assert [commit.wake() for _ in range(3)] == [True, False, False]


def test_who_lets_go_of_the_lock_wakes_one_that_sleeps_for_it():
    lock = WriteLock()
    awake, first, second = other(), other(), other()
    lock.sleepers.extend([awake, first, second])
    for each in (first, second):
        each.fall_asleep()
    lock.acquire()
    lock.acquire()
    lock.release()
    assert first._asleep.locked()
    lock.release()
    assert [each._asleep.locked() for each in (first, second)] == [False, True]


def test_who_waits_sleeps_a_few_times_and_then_blocks(commit, monkeypatch):
    acts = []

    class Looking(ScriptedLock):
        def enter_queue_soon(self, timeout_s):
            acts.append(timeout_s)
            return len(acts) > looks + 1

    looks = commits._LOOKS_MAX
    monkeypatch.setattr(Commit, "sleep", lambda _, timeout_s: acts.append(timeout_s))
    lock = Looking(*[False] * (looks + 2))
    assert CommitQueue().enter(commit, lock, None) is None
    assert acts == [commits._LOOK_EVERY_S] * looks + [commits._BLOCK_S] * 2
    assert lock.answers == []


def test_who_waits_does_not_look_before_it_is_woken(queue, commit, monkeypatch):
    monkeypatch.setattr(commits, "_LOOK_EVERY_S", 60)
    lock = ScriptedLock(False, True)
    thread = threading.Thread(target=queue.enter, args=(commit, lock, None))
    thread.start()
    wait_until(lambda: len(lock.answers) == 1)
    thread.join(SOON_S)
    assert (thread.is_alive(), lock.answers) == (True, [True])
    commit.wake()
    thread.join(WAIT_S)
    assert not thread.is_alive()


@pytest.mark.parametrize("timeout_s", [None, 1, -1])
def test_who_must_not_wait_is_refused_before_it_is_in_the_queue(queue, commit, timeout_s):
    lock = ScriptedLock()
    table_lock = threading.RLock()
    lock.comes_before(table_lock)
    with table_lock, pytest.raises(ReentrantError):
        queue.enter(commit, lock, timeout_s)
    assert not queue.waiting


def test_who_does_not_wait_is_let_in_wherever_it_may_be(queue, commit):
    lock = ScriptedLock(True)
    table_lock = threading.RLock()
    lock.comes_before(table_lock)
    with table_lock:
        assert queue.enter(commit, lock, 0) == 0


def test_whoever_was_taken_along_goes_on_to_its_leaders_failure_with_the_time_that_is_left(queue, commit, monkeypatch):
    now = iter([100, 101.5])
    monkeypatch.setattr(commits, "time", types.SimpleNamespace(monotonic=lambda: next(now)))
    assert enter(queue, commit, lambda: (queue.take_all(other()), False)[1], True, timeout_s=2) == 0.5


def test_who_lets_go_of_the_lock_wakes_the_first_that_needs_it():
    """Those whose batch was taken along need none: whoever wrote them wakes them."""
    lock = WriteLock()
    followers = [other() for _ in range(4)]
    lock.sleepers.extend(followers)
    for each in followers:
        each.fall_asleep()
    followers[0].leader = followers[1].leader = other()
    followers[0].leader.done = followers[1].leader.done = True
    lock.acquire()
    lock.release()
    assert [each._asleep.locked() for each in followers] == [True, True, False, True]


def test_of_those_that_are_taken_along_each_tells_the_next(queue, commit):
    followers = [other() for _ in range(3)]
    wait_in(queue, *followers)
    queue.take_all(commit)
    assert [each.next for each in (commit, *followers)] == [None, *followers[1:], None]
    for each in followers:
        each.fall_asleep()
    enter(queue, followers[1], True)
    assert [each._asleep.locked() for each in followers] == [True, True, False]


def test_whoever_is_interrupted_in_its_sleep_tells_the_next_nevertheless(queue, commit, monkeypatch):
    commit.next = other()
    commit.next.fall_asleep()
    asleep = commit.next._asleep

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Commit, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        enter(queue, commit, False)
    assert not asleep.locked()


def test_batches_that_were_written_together_are_freed_at_once(queue):
    class Weak(Commit):
        """One that a test can see go."""

    leader, follower = Weak(b"", []), Weak(b"", [])
    wait_in(queue, follower)
    queue.take_all(leader)
    gone = weakref.ref(leader)
    gc.disable()
    del leader, follower
    is_gone = gone() is None
    gc.enable()
    assert is_gone


def test_who_gives_up_wakes_another_in_its_place(queue, commit):
    lock = WriteLock()
    waiting = other()
    waiting.fall_asleep()
    lock.sleepers.append(waiting)
    in_thread(lock.acquire)
    with pytest.raises(LockTimeoutError):
        queue.enter(commit, lock, 0)
    assert not waiting._asleep.locked()


@pytest.mark.parametrize("durability", ["process", "power"])
def test_of_several_that_wait_none_takes_the_lock_only_to_give_it_back(open_db, monkeypatch, durability):
    monkeypatch.setattr(commits, "_LOOK_EVERY_S", 60)
    mdb = open_db(durability=durability)
    groups = []
    monkeypatch.setattr(Handle, "_append_locked", _noting(Handle._append_locked, groups))
    threads = [threading.Thread(target=mdb.upsert, args=({"id": name},)) for name in "wxyz"]
    taken = []
    with mdb.lock():
        lock = mdb._log.lock
        for thread in threads:
            thread.start()
        wait_until(lambda: len(mdb._commits.waiting) == len(lock.sleepers) == 4)
        monkeypatch.setattr(WriteLock, "acquire_queued", _noting(WriteLock.acquire_queued, taken))
    for thread in threads:
        thread.join()
    assert [len(group) for _, group in groups] == [4]
    assert (len(mdb), len(taken)) == (4, 1)
    assert not lock.sleepers


def _noting(function, calls):
    def noting(*args):
        calls.append(args)
        return function(*args)

    return noting


def test_who_writes_next_waits_for_as_many_as_the_last_write_took_along(queue, monkeypatch):
    monkeypatch.setattr(commits, "_COME_S", 60)
    queue.company = 2
    gathering = threading.Thread(target=queue.gather)
    gathering.start()
    wait_in(queue, other())
    gathering.join(SOON_S)
    assert gathering.is_alive()
    wait_in(queue, other())
    gathering.join(WAIT_S)
    assert not gathering.is_alive()


@pytest.mark.parametrize("waiting", [0, 1])
def test_it_does_not_wait_for_more_than_the_last_write_took_along(queue, monkeypatch, waiting):
    monkeypatch.setattr(commits, "_COME_S", 60)
    wait_in(queue, *[other() for _ in range(waiting)])
    queue.company = waiting
    queue.gather()


def test_it_does_not_wait_for_long(queue):
    queue.company = 2
    queue.gather()


def test_those_who_wrote_together_write_together_again(open_db, monkeypatch):
    monkeypatch.setattr(commits, "_COME_S", 60)
    mdb = open_db(durability="power")
    groups = []
    monkeypatch.setattr(Handle, "_append_locked", _noting(Handle._append_locked, groups))

    def write():
        for n in range(3):
            mdb.upsert({"id": threading.get_ident(), "n": n})

    threads = [threading.Thread(target=write) for _ in range(3)]
    together(mdb, threads)
    assert [len(group) for _, group in groups] == [3] * 3
    monkeypatch.undo()
    mdb.upsert(A)
    assert mdb._commits.company == 0


@pytest.mark.parametrize("durability", ["process", "power"])
def test_nobody_waits_for_company_in_vain(open_db, monkeypatch, durability):
    """Not where the disk is not waited for; and not inside `lock()`, where nobody is taken along."""
    monkeypatch.setattr(commits, "_COME_S", 60)
    mdb = open_db(durability=durability)
    mdb._commits.company = 1
    with mdb.lock() if durability == "power" else contextlib.nullcontext():
        mdb.upsert(A)


def test_an_interrupt_while_one_waits_for_company_lets_the_next_one_in(open_db, monkeypatch):
    mdb = open_db(durability="power")

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(CommitQueue, "gather", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mdb.upsert(A)
    monkeypatch.undo()
    in_thread(lambda: mdb.upsert(B))
    assert list(mdb.all()) == [B]


def test_a_batch_behind_one_of_its_own_thread_is_let_in_nevertheless(queue, commit):
    """As that of a signal handler that has interrupted the wait for the other."""
    lock = WriteLock()
    wait_in(queue, other())
    is_held, may_end = threading.Event(), threading.Event()

    def hold():
        with held(lock, None):
            is_held.set()
            may_end.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    is_held.wait()
    threading.Timer(0.1, may_end.set).start()
    assert queue.enter(commit, lock, None) is None
    assert lock.is_mine()
    thread.join()


def test_a_batch_that_sleeps_is_refused_when_its_time_is_up(queue, commit):
    lock = WriteLock()
    in_thread(lock.acquire)
    with pytest.raises(LockTimeoutError):
        queue.enter(commit, lock, 0.12)
    assert (len(queue.waiting), len(lock.sleepers)) == (0, 0)


def test_a_write_that_is_not_let_in_in_time_is_withdrawn_and_never_made(open_db):
    mdb, other = open_db(timeout=0.01), open_db()
    with other.lock():
        with pytest.raises(LockTimeoutError) as caught:
            in_thread(lambda: mdb.upsert(A))
        assert len(mdb._commits.waiting) == 0
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
    together(mdb, threads)
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
        wait_until(lambda: len(mdb._commits.waiting))
        mdb.upsert(A)
        assert (len(mdb._commits.waiting), list(mdb.all())) == (1, [A])
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


def test_a_thread_that_locks_again_and_again_starves_none_that_writes(open_db):
    """Its own writes take nobody along."""
    mdb = open_db()
    is_done = threading.Event()
    turns = []

    def lock_again_and_again():
        while not is_done.is_set():
            with mdb.lock():
                turns.append(mdb.upsert(A))

    def write():
        for n in range(50):
            mdb.upsert({"id": n})
        is_done.set()

    threads = [threading.Thread(target=target) for target in (lock_again_and_again, write)]
    for thread in threads:
        thread.start()
    assert is_done.wait(30)
    for thread in threads:
        thread.join()
    assert len(turns) < 50_000


def test_a_handle_is_closed_when_the_write_of_another_thread_has_ended(open_db):
    faulty = Faulty()
    mdb = open_db(files=faulty, durability="power")
    is_writing, may_fail = threading.Event(), threading.Event()

    def fail_late(_):
        is_writing.set()
        may_fail.wait()
        raise OSError(5, "made to fail")

    outcomes = {}

    def write(name):
        try:
            outcomes[name] = mdb.upsert({"id": name})
        except (OSError, microdb.MicroDBError) as error:
            outcomes[name] = type(error)

    threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    with mdb.lock():
        for thread in threads:
            thread.start()
        wait_until(lambda: len(mdb._commits.waiting) == 2)
        faulty.on["sync_data"] = fail_late
    is_writing.wait()
    looks = []
    mdb._log.lock.check_may_wait = lambda: looks.append(1)
    closing = threading.Thread(target=mdb.close)
    closing.start()
    wait_until(lambda: looks)
    may_fail.set()
    for thread in (*threads, closing):
        thread.join()
    assert sorted(outcomes) == ["a", "b"]
    assert None not in outcomes.values(), "nobody is told that it was made"
    assert len(open_db()) == 0


@pytest.mark.parametrize("is_taken", [True, False])
def test_an_interrupt_just_as_a_close_keeps_writers_out_lets_them_in_again(open_db, is_taken):
    mdb = open_db()
    lock = mdb._appending

    class Interrupting:
        def acquire(self, **options):
            if is_taken:
                lock.acquire(**options)
            raise KeyboardInterrupt

        release, _is_owned = lock.release, lock._is_owned

    mdb._appending = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        mdb.close()
    mdb._appending = lock
    in_thread(lambda: mdb.upsert(A))
    assert list(mdb.all()) == [A]


def test_a_write_whose_handle_is_closed_as_it_begins_is_refused(open_db):
    mdb = open_db()
    mdb._prepare_locked = lambda: in_thread(mdb.close)
    with pytest.raises(microdb.ClosedError):
        mdb.upsert(A)
    assert len(open_db()) == 0
