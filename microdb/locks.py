"""Locks between threads and processes: the only user of portalocker and filelock.

Measured, lock and unlock together: a bare flock 0.4 µs, the methods of portalocker's FlockLocker 1.4 µs,
`portalocker.Lock` 15 µs, `filelock.FileLock` 57 µs. Hence FlockLocker's own primitive on one long-lived descriptor
where it is hot, and FileLock for saves, where its time-out matters. `portalocker.Lock` is not safe over a fork. Never
both libraries on one file.

A blocking flock is fair among processes (616 to 777 turns each of four); polling starves (1 to 1,082). So: try once,
then block; poll, with a pause that grows, only when a time-out was asked for.
"""

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Final

import filelock
from portalocker.constants import LockFlags
from portalocker.portalocker import FlockLocker

from microdb.errors import LockTimeoutError
from microdb.files import File

__all__ = [
    "Held",
    "Queue",
    "WriteLock",
    "after_fork_in_child",
    "after_fork_in_parent",
    "be_absent",
    "become_present",
    "before_fork",
    "is_alone",
    "save_lock",
    "shared_write_lock",
]

_flock: Final = FlockLocker().locker
# As plain numbers: an operation on the enum costs more than the system call.
_EXCLUSIVE: Final = int(LockFlags.EXCLUSIVE)
_EXCLUSIVE_NOW: Final = int(LockFlags.EXCLUSIVE | LockFlags.NON_BLOCKING)
_SHARED: Final = int(LockFlags.SHARED)
_UNLOCK: Final = int(LockFlags.UNBLOCK)

_PAUSE_S_MIN: Final = 0.000_05
_PAUSE_S_MAX: Final = 0.01


_every_lock: weakref.WeakSet["WriteLock"] = weakref.WeakSet()


class WriteLock:
    """Excludes every other thread of this process, and every other process, from writing. Reentrant in its thread.

    A thread lock stands in front of the lock on the file, so that the threads of a process queue among themselves.

    Attributes:
        depth: How often the thread that holds it has taken it.
    """

    def __init__(self, file: File | None = None) -> None:
        """A lock on `file`; None: only among threads."""
        self._file = file
        self._owner_words: memoryview | None = None
        self._pid = os.getpid()
        self._threads = threading.RLock()
        self._thread: int | None = None
        self.depth = 0
        _every_lock.add(self)

    def tell_owner_in(self, words: memoryview) -> None:
        """From now on, each holder writes its pid into ``words[0]``."""
        self._owner_words = words

    def is_mine(self) -> bool:
        """Whether the calling thread holds it."""
        return self._thread == threading.get_ident()

    def acquire(self, timeout_s: float | None = None) -> None:
        """Wait until it is free, at most `timeout_s` seconds (None: for ever), and take it.

        Raises:
            LockTimeoutError: It was not free in time.
            OSError: The file system refuses to lock.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self.enter_queue(timeout_s)
        try:
            if self.depth == 0 and self._file is not None:
                self._lock_file(self._file, timeout_s, deadline)
            self.depth += 1
            self._thread = threading.get_ident()
        except BaseException:
            if self.depth == 0:
                self._unlock_file()
            self._threads.release()
            raise

    def release(self) -> None:
        """Undo one `acquire` of this thread."""
        self.depth -= 1
        if self.depth == 0:
            self._thread = None
            try:
                self._unlock_file()
            finally:
                self._threads.release()
        else:
            self._threads.release()

    def enter_queue(self, timeout_s: float | None) -> None:
        """Only exclude the other threads of this process; to see whether the lock is needed at all."""
        if not self._threads.acquire(timeout=-1 if timeout_s is None else max(timeout_s, 0)):
            raise self._timeout(timeout_s)

    def leave_queue(self) -> None:
        """Undo one `enter_queue` of this thread."""
        self._threads.release()

    def _lock_file(self, file: File, timeout_s: float | None, deadline: float | None) -> None:
        try:
            _flock(file.fd, _EXCLUSIVE_NOW)
        except BlockingIOError:
            if deadline is None:
                _flock(file.fd, _EXCLUSIVE)
            else:
                self._poll(file, timeout_s, deadline)
        if self._owner_words is not None:
            self._owner_words[0] = self._pid

    def _poll(self, file: File, timeout_s: float | None, deadline: float) -> None:
        pause_s = _PAUSE_S_MIN
        while True:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise self._timeout(timeout_s)
            time.sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, _PAUSE_S_MAX)
            with contextlib.suppress(BlockingIOError):
                _flock(file.fd, _EXCLUSIVE_NOW)
                return

    def _unlock_file(self) -> None:
        # An flock belongs to the open file, which the child of a fork shares with its parent: only the parent unlocks.
        if self._file is not None and self._pid == os.getpid():
            _flock(self._file.fd, _UNLOCK)

    def _before_fork(self) -> None:
        self._threads.acquire()

    def _after_fork_in_parent(self) -> None:
        self._threads.release()

    def _after_fork_in_child(self) -> None:
        """Let go of the file without unlocking it. A ``with`` that began in the parent may still end here."""
        self._file = None
        self._owner_words = None
        self._threads = threading.RLock()
        for _ in range(self.depth):
            self._threads.acquire()

    def _timeout(self, timeout_s: float | None) -> LockTimeoutError:
        owner = self._owner_words[0] if self._owner_words is not None else None
        return LockTimeoutError(self._file.path if self._file else ":memory:", timeout_s or 0, owner or None)


class Queue:
    """``with`` of a lock's first half: the queue of the threads of this process. It has no state, as `Held`."""

    __slots__ = ("_lock", "_timeout_s")

    def __init__(self, lock: WriteLock, timeout_s: float | None) -> None:
        self._lock = lock
        self._timeout_s = timeout_s

    def __enter__(self) -> None:
        self._lock.enter_queue(self._timeout_s)

    def __exit__(self, *_: object) -> None:
        self._lock.leave_queue()


class Held:
    """``with`` of a lock with a time-out. It has no state of its own, so one serves all threads and levels."""

    __slots__ = ("_lock", "_timeout_s")

    def __init__(self, lock: WriteLock, timeout_s: float | None) -> None:
        self._lock = lock
        self._timeout_s = timeout_s

    def __enter__(self) -> None:
        self._lock.acquire(self._timeout_s)

    def __exit__(self, *_: object) -> None:
        self._lock.release()


_write_locks: weakref.WeakValueDictionary[tuple[int, int], WriteLock] = weakref.WeakValueDictionary()
_write_locks_guard = threading.Lock()


def shared_write_lock(file: File) -> WriteLock:
    """The lock on a file that all handles of this process share.

    So a thread that holds it through one handle may write through another, where two descriptors would wait for each
    other for ever.
    """
    with _write_locks_guard:
        identity = file.identity().file
        lock = _write_locks.get(identity)
        if lock is None:
            lock = _write_locks[identity] = WriteLock(file)
        return lock


def before_fork() -> list[WriteLock]:
    """Wait until no other thread of this process holds a write lock, and keep it so. Gives the locks that it took."""
    taken = list(_every_lock)
    for lock in taken:
        lock._before_fork()  # noqa: SLF001  # Same module.
    return taken


def after_fork_in_parent(taken: list[WriteLock]) -> None:
    """Undo `before_fork`."""
    for lock in reversed(taken):
        lock._after_fork_in_parent()  # noqa: SLF001  # Same module.


def after_fork_in_child() -> None:
    """The locks that a child inherits are its parent's: forget them. Handles attach to new ones."""
    global _write_locks_guard  # noqa: PLW0603  # A thread that does not exist here may hold the old one.
    _write_locks_guard = threading.Lock()
    for lock in list(_every_lock):
        lock._after_fork_in_child()  # noqa: SLF001  # Same module.
    _write_locks.clear()


def is_alone(file: File) -> bool:
    """Whether nobody is present on `file`. If so, nobody can become present until `become_present` or the close."""
    try:
        _flock(file.fd, _EXCLUSIVE_NOW)
    except BlockingIOError:
        return False
    return True


def become_present(file: File) -> None:
    """Be seen as alive by `is_alone` of every other open file of the same name, until this one is closed."""
    _flock(file.fd, _SHARED)


def be_absent(file: File) -> None:
    """Undo `is_alone` or `become_present`."""
    _flock(file.fd, _UNLOCK)


@contextlib.contextmanager
def save_lock(path: str, timeout_s: float | None) -> Iterator[None]:
    """Hold the lock that admits one save at a time, over threads and processes.

    Raises:
        LockTimeoutError: Another save was going on all the time.
    """
    lock = filelock.FileLock(path, timeout=-1 if timeout_s is None else timeout_s, thread_local=False)
    try:
        lock.acquire(poll_interval=_PAUSE_S_MAX)
    except filelock.Timeout:
        raise LockTimeoutError(path, timeout_s or 0, None) from None
    try:
        yield
    finally:
        lock.release()
