"""The write lock, between threads and processes: the only user of portalocker.

Measured, lock and unlock together: a bare flock 0.4 µs, the methods of portalocker's FlockLocker 1.4 µs,
`portalocker.Lock` 15 µs, `filelock.FileLock` 57 µs. Hence FlockLocker's own primitive on one long-lived descriptor.
`portalocker.Lock` is not safe over a fork. The lock on saves is in `save_lock`: never both libraries on one file.

A blocking flock is fair among processes (616 to 777 turns each of four); polling for ever starves (1 to 1,082). But
whoever unlocks wakes all that block, for a turn of microseconds that one of them gets: two processes that wrote came to
0.37 of what one does. So each looks again after 0.1 ms, for a lock that was taken by chance, and after 4 ms more, in
which one or two others write without meeting anybody; and only then it blocks. With a time-out the looks go on, with a
pause that grows.
"""

import contextlib
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, NoReturn, Protocol

from portalocker.constants import LockFlags
from portalocker.portalocker import FlockLocker

from microdb.errors import LockTimeoutError, ReentrantError
from microdb.files import File

__all__ = [
    "EXCLUSIVE_NOW",
    "OUTSIDE",
    "REENTRANT",
    "SHARED",
    "UNLOCK",
    "Level",
    "WriteLock",
    "after_fork_in_child",
    "flock",
    "has_any",
    "held",
    "is_owned",
    "refuse_in_child",
    "refuse_reentry",
    "shared_write_lock",
]

flock: Final = FlockLocker().locker
# As plain numbers: an operation on the enum costs more than the system call.
_EXCLUSIVE: Final = int(LockFlags.EXCLUSIVE)
EXCLUSIVE_NOW: Final = int(LockFlags.EXCLUSIVE | LockFlags.NON_BLOCKING)
SHARED: Final = int(LockFlags.SHARED)
UNLOCK: Final = int(LockFlags.UNBLOCK)

_PAUSES_S: Final = (0.000_1, 0.004)
_PAUSE_S_MIN: Final = 0.000_05
_PAUSE_S_MAX: Final = 0.01

REENTRANT: Final = "a signal handler called into a read, write or save that it had interrupted; let it return first"

_every_lock: weakref.WeakSet["WriteLock"] = weakref.WeakSet()


class Sleeper(Protocol):
    """A thread that waits for the lock."""

    def wake(self) -> bool:
        """Let it look; False if it was awake, or needs the lock no more, so that the next one is to be woken."""
        ...


class Level(NamedTuple):
    """Whether a thread is in the queue of a lock, and how often it has taken the lock."""

    is_queued: bool
    depth: int


OUTSIDE: Final = Level(is_queued=False, depth=0)


class WriteLock:
    """Excludes every other thread of this process, and every other process, from writing. Reentrant in its thread.

    A queue of the threads of this process stands in front of the lock on the file. Whoever takes the lock, or enters
    the queue, notes the level before and returns to it at the end, which does no harm twice. So an interrupt at any
    place leaves nothing held, if it is met with one more return. Who is first in the queue only the thread lock itself
    knows: a signal handler may run between taking it and any note of that.

    Attributes:
        sleepers: Who waits for it without blocking on it: they are to be woken when it is free.
        is_mine: Tells whether the calling thread holds it, or is first in its queue.
        depth: How often the thread that holds it has taken it.
        writing: What its holder is just writing; else None. A holder that finds something here is in a signal handler
            that has interrupted the write, and must raise ReentrantError.
        savers: The threads that are saving, or wait for that: a signal handler must not wait for its own.
    """

    def __init__(self, file: File | None = None) -> None:
        """A lock on `file`; None: only among threads."""
        self._file = file
        self._owner_words: memoryview | None = None
        self._tells_owner = False
        self._waits: memoryview | None = None
        self._pid = os.getpid()
        self._threads = threading.RLock()
        # Bound, for it is asked several times for each write. So `threading.Condition` asks.
        self.is_mine: Callable[[], bool] = self._threads._is_owned  # type: ignore[attr-defined]  # noqa: SLF001
        self.depth = 0
        self._is_taken = False
        self.sleepers: deque[Sleeper] = deque()
        self.writing: object | None = None
        self.savers: set[int] = set()
        self._abandoned: Level | None = None
        self._tables: tuple[weakref.ref[threading.RLock], ...] = ()
        _every_lock.add(self)

    def tell_owner_in(self, words: memoryview | None, waits: memoryview | None = None) -> None:
        """From now on each holder writes its pid into ``words[0]``, if that may be written, and errors name it.

        None where there is no page any more: to touch a mapping of it would be the end of the process. Who had to wait
        for another process adds one to ``waits[0]``.
        """
        if words is None or self._owner_words is None or self._owner_words.readonly:
            self._owner_words = words
            self._tells_owner = words is not None and not words.readonly
            self._waits = waits

    def comes_before(self, table_lock: threading.RLock) -> None:
        """Note that whoever holds it may wait for the lock of a table, so that nobody does the reverse."""
        # Replaced, not changed: another thread may be going through it.
        with _write_locks_guard:
            known = (table for table in self._tables if table() is not None)
            self._tables = (*known, weakref.ref(table_lock))

    def check_may_wait(self) -> None:
        """Raises ReentrantError if the calling thread holds a table for which the owner of this lock may be waiting.

        Only a signal handler that interrupted a read of that table can get here so.
        """
        for table in self._tables:
            table_lock = table()
            if table_lock is not None:
                refuse_reentry(table_lock)

    def level(self) -> Level:
        """Where the calling thread stands."""
        return Level(is_queued=True, depth=self.depth) if self.is_mine() else OUTSIDE

    def take_now(self) -> bool:
        """As `acquire`, by whoever is outside, if nobody has it here or elsewhere; whether that was so.

        What most writes need, for a part of the price.
        """
        if not self._threads.acquire(blocking=False):
            return False
        self.depth = 1
        if self._file is not None:
            try:
                flock(self._file.fd, EXCLUSIVE_NOW)
            except BlockingIOError:
                self.depth = 0
                self._threads.release()
                return False
            if self._tells_owner:
                self._owner_words[0] = self._pid  # type: ignore[index]  # Then there are words.
        self._is_taken = True
        return True

    def let_go(self) -> None:
        """Undo `take_now`, at the end of a block in which nothing was unusual; else `return_to` does."""
        self.writing = None
        self._is_taken = False
        if self._file is not None:
            flock(self._file.fd, UNLOCK)
        self.depth = 0
        self._threads.release()
        if self.sleepers:
            self.wake_next()

    def enter_queue_now(self) -> bool:
        """Be first in the queue, if no other thread of this process is; whether that was so."""
        return self.is_mine() or self._threads.acquire(blocking=False)

    def enter_queue_soon(self, timeout_s: float) -> bool:
        """As `enter_queue_now`, blocking for some seconds at most."""
        return self._threads.acquire(timeout=timeout_s)

    def enter_queue(self, timeout_s: float | None) -> float | None:
        """Exclude the other threads of this process alone, to see whether the lock is needed at all.

        Returns:
            What is left of `timeout_s`.

        Raises:
            LockTimeoutError: They did not let it in within `timeout_s` seconds (None: for ever).
            ReentrantError: It would have to wait for a thread that may wait for this one.
        """
        if self.enter_queue_now():
            return timeout_s
        if timeout_s != 0:
            self.check_may_wait()
        if timeout_s is None:
            self._threads.acquire()
            return None
        deadline = time.monotonic() + timeout_s
        if not self._threads.acquire(timeout=min(max(timeout_s, 0), threading.TIMEOUT_MAX)):
            raise self.timeout(timeout_s)
        return max(deadline - time.monotonic(), 0)

    def acquire(self, timeout_s: float | None = None) -> None:
        """Wait until it is free, at most `timeout_s` seconds (None: for ever), and take it.

        Raises:
            LockTimeoutError: It was not free in time.
            OSError: The file system refuses to lock.
        """
        level = self.level()
        try:
            self.acquire_queued(self.enter_queue(timeout_s), timeout_s)
        except BaseException:
            self.return_to(level)
            raise

    def acquire_queued(self, left_s: float | None, timeout_s: float | None) -> None:
        """The second half of `acquire`: for whoever is first in the queue, and returns to where it was before.

        Args:
            left_s: How many seconds to wait at most; None: for ever.
            timeout_s: The same as it was in the beginning, for the error.

        Raises:
            ReentrantError: A signal handler calls, which has interrupted this.
        """
        if self.depth > 0 and not self._is_taken:
            # A signal handler that has interrupted its own thread as that takes the lock, or lets go of it.
            raise ReentrantError(REENTRANT)
        self.depth += 1
        if self.depth == 1:
            if self._file is not None:
                try:
                    flock(self._file.fd, EXCLUSIVE_NOW)
                except BlockingIOError:
                    self._wait_for_file(self._file, left_s, timeout_s)
                    if self._waits is not None:
                        self._waits[0] = (self._waits[0] + 1) % (1 << 64)
                if self._tells_owner:
                    self._owner_words[0] = self._pid  # type: ignore[index]  # Then there are words.
            self._is_taken = True

    def release(self) -> None:
        """Undo one `acquire` of this thread."""
        self.leave(Level(is_queued=self.depth > 1, depth=self.depth - 1))

    def leave(self, level: Level) -> None:
        """As `return_to`, at the end of a block that may have been forked in C, which calls no hooks, meanwhile."""
        if self._pid != os.getpid():
            # An flock belongs to the open file, which a child shares with its parent: only the parent unlocks.
            after_fork_in_child()
        self.return_to(level)

    def return_to(self, level: Level) -> None:
        """Undo what this thread has taken since it stood at `level`."""
        if not self.is_mine():
            return
        if self._abandoned is not None and level.depth <= self._abandoned.depth + 1:
            level = min(level, self._abandoned)
            self._abandoned = None
        is_queued, depth = level
        if depth == 0 and self.depth > 0:
            self.writing = None
            self._is_taken = False
            if self._file is not None:
                flock(self._file.fd, UNLOCK)
        self.depth = depth
        if not is_queued:
            while self.is_mine():
                self._threads.release()
            if self.sleepers:
                self.wake_next()

    def wake_next(self) -> None:
        """Let the next that sleeps try to take it."""
        any(sleeper.wake() for sleeper in tuple(self.sleepers))

    def abandon(self, level: Level) -> None:
        """As `return_to`, some time after a block that began at `level`; blocks that began since end where they would.

        The last of them then goes on to `level`.
        """
        if self.depth > level.depth + 1:
            self._abandoned = level
        else:
            self.leave(level)

    def _wait_for_file(self, file: File, left_s: float | None, timeout_s: float | None) -> None:
        if left_s is None:
            for pause_s in _PAUSES_S:
                time.sleep(pause_s)
                with contextlib.suppress(BlockingIOError):
                    flock(file.fd, EXCLUSIVE_NOW)
                    return
            flock(file.fd, _EXCLUSIVE)
            return
        deadline = time.monotonic() + left_s
        pause_s = _PAUSE_S_MIN
        while True:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise self.timeout(timeout_s)
            time.sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, _PAUSE_S_MAX)
            with contextlib.suppress(BlockingIOError):
                flock(file.fd, EXCLUSIVE_NOW)
                return

    def _forget(self) -> None:
        """In a child: let go of the file without unlocking it. Blocks that began in the parent still end here."""
        level = self.level()
        if self._file is not None:
            self._file.close()
        self._file = None
        self._owner_words = None
        self._tells_owner = False
        self._waits = None
        self._pid = os.getpid()
        self._threads = threading.RLock()
        self.is_mine = self._threads._is_owned  # type: ignore[attr-defined]  # noqa: SLF001
        self.depth = level.depth
        self._is_taken = level.depth > 0
        self.writing = None
        self.savers = set()
        self.sleepers = deque()
        self._abandoned = None
        if level.is_queued:
            self._threads.acquire()

    def timeout(self, timeout_s: float | None) -> LockTimeoutError:
        """The error that says who holds it."""
        if self._file is None:
            return LockTimeoutError(":memory:", timeout_s or 0, os.getpid())
        owner = self._owner_words[0] if self._owner_words is not None else None
        return LockTimeoutError(self._file.path, timeout_s or 0, owner or None)


@contextlib.contextmanager
def held(lock: WriteLock, timeout_s: float | None) -> Iterator[None]:
    """``with`` of a lock with a time-out, for one block.

    Python runs signal handlers on entering a function. A Ctrl-C that comes as the block's exit is entered leaves the
    block without leaving the lock. That is done when this generator goes, with the traceback that still refers to it.
    """
    level = lock.level()
    leave = lock.leave
    try:
        try:
            lock.acquire(timeout_s)
            yield
        except GeneratorExit:
            leave = lock.abandon
            raise
        finally:
            leave(level)
    except BaseException:
        # An interrupt may have come within the first time; twice does no harm.
        leave(level)
        raise


def is_owned(lock: threading.RLock) -> bool:
    """Whether the calling thread has a lock."""
    return lock._is_owned()  # type: ignore[attr-defined,no-any-return]  # noqa: SLF001  # So `threading.Condition` asks.


def refuse_reentry(lock: threading.RLock) -> None:
    """Raises ReentrantError if the calling thread has a lock: then a signal handler came while it had."""
    if is_owned(lock):
        raise ReentrantError(REENTRANT)


def refuse_in_child() -> NoReturn:
    """Raises ReentrantError: a write goes on in the child of a fork that was made amid it."""
    raise ReentrantError("a signal handler forked amid this write, which is the parent's alone")


_write_locks: weakref.WeakValueDictionary[tuple[int, int], WriteLock] = weakref.WeakValueDictionary()
_write_locks_guard = threading.RLock()


def shared_write_lock(file: File) -> WriteLock:
    """The lock on a file that all handles of this process share.

    So a thread that holds it through one handle may write through another, where two descriptors would wait for each
    other for ever.
    """
    with _write_locks_guard:
        identity = file.identity().file
        return _write_locks.get(identity) or _write_locks.setdefault(identity, WriteLock(file))


def has_any() -> bool:
    """Whether the calling thread holds the write lock of any database in files, or is first in its queue."""
    with _write_locks_guard:
        return any(lock.is_mine() for lock in _write_locks.values())


def after_fork_in_child() -> None:
    """The locks that a child inherits are its parent's: forget them. Handles attach to new ones."""
    global _write_locks_guard  # noqa: PLW0603  # A thread that does not exist here may hold the old one.
    _write_locks_guard = threading.RLock()
    for lock in list(_every_lock):
        if lock._pid != os.getpid():  # noqa: SLF001  # Same module.
            lock._forget()  # noqa: SLF001  # Same module.
            for identity in [identity for identity, one in _write_locks.items() if one is lock]:
                del _write_locks[identity]
