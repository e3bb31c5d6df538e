import signal
import threading
import time

import filelock
import pytest

from microdb import save_lock as module
from microdb.errors import LockTimeoutError, ReentrantError
from microdb.files import OS
from microdb.locks import WriteLock
from microdb.save_lock import save_lock
from steps import SOON_S, Child, in_thread


@pytest.fixture
def path(tmp_path):
    path = str(tmp_path / "save.lock")
    OS.create(path)
    return path


def test_one_save_at_a_time(path):
    lock, other = WriteLock(), WriteLock()
    with save_lock(lock, path, None), pytest.raises(LockTimeoutError) as caught, save_lock(other, path, SOON_S):
        pass
    assert (caught.value.path, caught.value.timeout_s, caught.value.owner_pid) == (path, SOON_S, None)
    with save_lock(WriteLock(), path, 0):
        pass


def test_a_save_inside_a_save_of_the_same_thread_is_refused(path):
    lock = WriteLock()
    with save_lock(lock, path, None):
        with pytest.raises(ReentrantError, match="signal handler"), save_lock(lock, path, None):
            pass
        assert isinstance(in_thread(lambda: save_lock(lock, path, 0).__enter__()), LockTimeoutError)
    with save_lock(lock, path, 0):
        pass


def test_a_save_of_another_thread_is_waited_for(path):
    def try_once():
        with save_lock(WriteLock(), path, 0):
            pass

    with save_lock(WriteLock(), path, None):
        assert isinstance(in_thread(try_once), LockTimeoutError)
    assert in_thread(try_once) is None


def test_a_save_of_another_process_is_waited_for_and_ends_with_it(path):
    def steps():
        with save_lock(WriteLock(), path, None):
            yield b"+"

    with Child(steps) as child:
        child.step()
        with pytest.raises(LockTimeoutError), save_lock(WriteLock(), path, SOON_S):
            pass
        child.kill()
        with save_lock(WriteLock(), path, 0):
            pass


def test_a_save_that_fails_lets_the_next_one_in(path):
    with pytest.raises(ZeroDivisionError), save_lock(WriteLock(), path, None):
        raise ZeroDivisionError
    with save_lock(WriteLock(), path, 0):
        pass


@pytest.mark.parametrize(("step", "is_after"), [("take", False), ("take", True), ("let_go", False), ("let_go", True)])
def test_an_interrupt_of_a_save_leaves_the_save_lock_free_for_others_and_for_its_own_thread(
    path, monkeypatch, step, is_after
):
    lock = WriteLock()
    sound = getattr(module._Holder, step)

    def interrupted(holder):
        monkeypatch.setattr(module._Holder, step, sound)
        if is_after:
            sound(holder)
        raise KeyboardInterrupt

    monkeypatch.setattr(module._Holder, step, interrupted)
    with pytest.raises(KeyboardInterrupt) as caught, save_lock(lock, path, None):
        pass
    for other in (WriteLock(), lock):
        with save_lock(other, path, 0):
            pass
    assert caught.tb, "it refers to all that it went through, so that nothing was let go of by being forgotten"


def test_filelock_is_never_called_where_a_signal_handler_could_interrupt_it(path, monkeypatch):
    """An interrupted filelock keeps locks of its own, for which the next save, or fork, waits for ever."""
    callers, main = set(), threading.get_ident()
    for name in ("__init__", "acquire", "release"):
        call = getattr(filelock.FileLock, name)

        def noted(*args, _call=call, **kwargs):
            callers.add(threading.get_ident())
            return _call(*args, **kwargs)

        monkeypatch.setattr(filelock.FileLock, name, noted)
    with save_lock(WriteLock(), path, None), pytest.raises(LockTimeoutError), save_lock(WriteLock(), path, 0):
        pass
    assert callers
    assert main not in callers


def test_a_save_goes_on_where_no_more_threads_can_be_started(path, monkeypatch):
    def start(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(module._thread, "start_new_thread", start)
    for _ in range(2):
        with save_lock(WriteLock(), path, 0), pytest.raises(LockTimeoutError), save_lock(WriteLock(), path, SOON_S):
            pass


def test_a_save_lock_that_nobody_wants_any_more_is_not_taken(path):
    """Whoever waited for it has been interrupted."""
    assert module._Holder(path, None)._acquired() is None
    with save_lock(WriteLock(), path, 0):
        pass


def test_a_save_lock_never_vanishes(path):
    before = OS.identity(path).file
    for _ in range(3):
        with save_lock(WriteLock(), path, 0):
            pass
    assert OS.identity(path).file == before


def test_a_save_lock_for_whose_thread_there_was_no_memory_is_held_without_one(path, monkeypatch):
    """Such a thread has begun, and ends before it comes to any code of ours."""
    start = module._thread.start_new_thread
    monkeypatch.setattr(module._thread, "start_new_thread", lambda _, args: start(lambda *_: None, args))
    with save_lock(WriteLock(), path, 0), pytest.raises(LockTimeoutError), save_lock(WriteLock(), path, SOON_S):
        pass
    monkeypatch.undo()
    with save_lock(WriteLock(), path, 0):
        pass


def test_an_interrupt_before_a_save_knows_that_its_thread_has_ended_does_not_wait_for_that(path, monkeypatch):
    start = module._thread.start_new_thread

    def start_and_interrupt(_, args):
        monkeypatch.setattr(module._Holder, "_try_inline", interrupted)
        return start(lambda *_: None, args)

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module._thread, "start_new_thread", start_and_interrupt)
    with pytest.raises(KeyboardInterrupt), save_lock(WriteLock(), path, 0):
        pass


def test_a_save_that_waits_for_another_one_for_longer_than_one_look_is_refused_in_time(path):
    with save_lock(WriteLock(), path, None), pytest.raises(LockTimeoutError), save_lock(WriteLock(), path, 0.25):
        pass


def test_a_save_lock_is_free_when_the_block_has_ended_however_long_that_takes(path, monkeypatch):
    release = filelock.FileLock.release

    def release_late(lock, **how):
        threading.Event().wait(0.25)
        release(lock, **how)

    monkeypatch.setattr(filelock.FileLock, "release", release_late)
    with save_lock(WriteLock(), path, None):
        pass
    monkeypatch.undo()
    with save_lock(WriteLock(), path, 0):
        pass


@pytest.fixture
def _heeds_ctrl_c():
    """A shell starts what it puts in the background with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_heeds_ctrl_c")
def test_a_ctrl_c_that_the_system_gave_to_another_thread_ends_the_wait_for_a_save(path, monkeypatch):
    """As one that comes just before the wait, it wakes nobody."""
    acquire, looks = filelock.FileLock.acquire, []

    def acquire_and_interrupt(*args, **how):
        looks.append(threading.get_ident())
        if len(looks) == 5:
            signal.pthread_kill(looks[-1], signal.SIGINT)
        return acquire(*args, **how)

    with save_lock(WriteLock(), path, None):
        monkeypatch.setattr(filelock.FileLock, "acquire", acquire_and_interrupt)
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt), save_lock(WriteLock(), path, 20):
            pass
    assert time.monotonic() - began < 10
    assert looks[-1] != threading.get_ident()
