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
from typing import Final, NamedTuple

import filelock
from portalocker.constants import LockFlags
from portalocker.portalocker import FlockLocker

from microdb.errors import LockTimeoutError, ReentrantError
from microdb.files import File

__all__ = [
    "Held",
    "Level",
    "WriteLock",
    "after_fork_in_child",
    "after_fork_in_parent",
    "be_absent",
    "become_present",
    "before_fork",
    "check_reentrance",
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


class Level(NamedTuple):
    """How often a thread is in the queue of a lock, and how often it has taken it."""

    entries: int
    depth: int


_FREE: Final = Level(0, 0)


class WriteLock:
    """Excludes every other thread of this process, and every other process, from writing. Reentrant in its thread.

    A queue of the threads of this process stands in front of the lock on the file. Whoever takes the lock, or enters
    the queue, notes the level before and returns to it at the end, which does no harm twice. So an interrupt at any
    place leaves nothing held, if it is met with one more return. For the same reason the thread lock and the note who
    has it change on one line each: no signal handler runs between them.

    Attributes:
        depth: How often the thread that holds it has taken it.
        writing: What its holder is just writing, so that a signal handler which interrupts that keeps away; else None.
    """

    def __init__(self, file: File | None = None) -> None:
        """A lock on `file`; None: only among threads."""
        self._file = file
        self._owner_words: memoryview | None = None
        self._pid = os.getpid()
        self._mutex = threading.Lock()
        self._thread: int | None = None
        self._entries = 0
        self.depth = 0
        self.writing: object | None = None
        _every_lock.add(self)

    def tell_owner_in(self, words: memoryview) -> None:
        """From now on, each holder writes its pid into ``words[0]``."""
        self._owner_words = words

    def is_mine(self) -> bool:
        """Whether the calling thread holds it, or is first in its queue."""
        return self._thread == threading.get_ident()

    def level(self) -> Level:
        """Where the calling thread stands."""
        return Level(self._entries, self.depth) if self.is_mine() else _FREE

    def enter_queue(self, timeout_s: float | None) -> float | None:
        """Exclude the other threads of this process alone, to see whether the lock is needed at all.

        Returns:
            What is left of `timeout_s`.

        Raises:
            LockTimeoutError: They did not let it in within `timeout_s` seconds (None: for ever).
        """
        me = threading.get_ident()
        if self._thread == me:
            self._entries += 1
            return timeout_s
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        wait_s = -1 if timeout_s is None else max(timeout_s, 0)
        # fmt: off
        if self._mutex.acquire(timeout=wait_s): self._thread, self._entries = me, 1  # noqa: E701  # See the class.
        # fmt: on
        else:
            raise self._timeout(timeout_s)
        return None if deadline is None else max(deadline - time.monotonic(), 0)

    def acquire(self, timeout_s: float | None = None) -> None:
        """Wait until it is free, at most `timeout_s` seconds (None: for ever), and take it.

        Raises:
            LockTimeoutError: It was not free in time.
            OSError: The file system refuses to lock.
        """
        level = self.level()
        try:
            left_s = self.enter_queue(timeout_s)
            self.depth += 1
            if self.depth == 1 and self._file is not None:
                self._lock_file(self._file, left_s, timeout_s)
        except BaseException:
            self.return_to(level)
            raise

    def release(self) -> None:
        """Undo one `acquire` of this thread."""
        self.return_to(Level(self._entries - 1, self.depth - 1))

    def return_to(self, level: Level) -> None:
        """Undo what this thread has taken since it stood at `level`."""
        if not self.is_mine():
            return
        if level.depth == 0 and self.depth > 0:
            self.writing = None
            self._unlock_file()
        self.depth = level.depth
        self._entries = level.entries
        if level.entries == 0:
            # fmt: off
            self._thread = None; self._mutex.release()  # noqa: E702  # See the class.
            # fmt: on

    def _lock_file(self, file: File, left_s: float | None, timeout_s: float | None) -> None:
        try:
            _flock(file.fd, _EXCLUSIVE_NOW)
        except BlockingIOError:
            if left_s is None:
                _flock(file.fd, _EXCLUSIVE)
            else:
                self._poll(file, time.monotonic() + left_s, timeout_s)
        if self._owner_words is not None:
            self._owner_words[0] = self._pid

    def _poll(self, file: File, deadline: float, timeout_s: float | None) -> None:
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

    def _forget(self, level: Level) -> None:
        """In a child: let go of the file without unlocking it. Blocks that began in the parent still end here."""
        self._file = None
        self._owner_words = None
        self._pid = os.getpid()
        self._mutex = threading.Lock()
        self._entries, self.depth = level
        self._thread = threading.get_ident() if level.entries and self._mutex.acquire() else None

    def _timeout(self, timeout_s: float | None) -> LockTimeoutError:
        owner = self._owner_words[0] if self._owner_words is not None else None
        return LockTimeoutError(self._file.path if self._file else ":memory:", timeout_s or 0, owner or None)


class Held:
    """``with`` of a lock with a time-out, for one block."""

    __slots__ = ("_level", "_lock", "_timeout_s")

    def __init__(self, lock: WriteLock, timeout_s: float | None) -> None:
        self._lock = lock
        self._timeout_s = timeout_s
        self._level = lock.level()

    def __enter__(self) -> None:
        self._lock.acquire(self._timeout_s)

    def __exit__(self, *_: object) -> None:
        try:
            self._lock.return_to(self._level)
        except BaseException:
            self._lock.return_to(self._level)
            raise


def check_reentrance(lock: WriteLock) -> None:
    """Raises ReentrantError if the thread that holds the lock is in mid-write, so that this is a signal handler."""
    if lock.writing is not None:
        raise ReentrantError("a signal handler called into a write that it had interrupted; let it return first")


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


def before_fork() -> list[tuple[WriteLock, Level]]:
    """Wait until no other thread of this process holds a write lock, and keep it so. Gives what to undo."""
    taken = [(lock, lock.level()) for lock in _every_lock]
    for lock, _ in taken:
        lock.enter_queue(None)
    return taken


def after_fork_in_parent(taken: list[tuple[WriteLock, Level]]) -> None:
    """Undo `before_fork`."""
    for lock, level in taken:
        lock.return_to(level)


def after_fork_in_child(taken: list[tuple[WriteLock, Level]]) -> None:
    """The locks that a child inherits are its parent's: forget them. Handles attach to new ones.

    Args:
        taken: What `before_fork` gave; nothing, if the fork called no hooks.
    """
    global _write_locks_guard  # noqa: PLW0603  # A thread that does not exist here may hold the old one.
    _write_locks_guard = threading.Lock()
    levels = dict(taken)
    for lock in list(_every_lock):
        if lock._pid != os.getpid():  # noqa: SLF001  # Same module.
            lock._forget(levels.get(lock) or lock.level())  # noqa: SLF001  # Same module.
            for identity in [identity for identity, one in _write_locks.items() if one is lock]:
                del _write_locks[identity]


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


def save_lock(path: str, timeout_s: float | None) -> contextlib.AbstractContextManager[object]:
    """Take the lock that admits one save at a time, over threads and processes; ``with`` gives it back.

    Raises:
        LockTimeoutError: Another save was going on all the time.
    """
    lock = filelock.FileLock(path, timeout=-1 if timeout_s is None else timeout_s, thread_local=False)
    try:
        return lock.acquire(poll_interval=_PAUSE_S_MAX)
    except filelock.Timeout:
        raise LockTimeoutError(path, timeout_s or 0, None) from None
