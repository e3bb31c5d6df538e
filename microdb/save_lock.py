"""The lock that admits one save at a time: the only user of filelock, whose time-out matters there."""

import _thread
import contextlib
import os
import threading
import time
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from microdb import imports
from microdb.errors import LockTimeoutError, ReentrantError
from microdb.locks import REENTRANT, WriteLock

if TYPE_CHECKING:
    import filelock

__all__ = ["save_lock"]

_PAUSE_S: Final = 0.01
_WAIT_S: Final = 0.1


@contextlib.contextmanager
def save_lock(lock: WriteLock, path: str, timeout_s: float | None) -> Iterator[None]:
    """Hold the lock that admits one save at a time, over threads and processes.

    Raises:
        LockTimeoutError: Another save was going on all the time.
        ReentrantError: The one that goes on is that of this very thread, which a signal handler has interrupted.
    """
    thread = threading.get_ident()
    if thread in lock.savers:
        raise ReentrantError(REENTRANT)
    if lock.savers:
        lock.check_may_wait()
    holder = _Holder(path, timeout_s)
    try:
        try:
            lock.savers.add(thread)
            holder.take()
            yield
        finally:
            holder.let_go()
            lock.savers.discard(thread)
    except BaseException:
        # An interrupt may have come within that; twice does no harm.
        holder.let_go()
        lock.savers.discard(thread)
        raise


class _Life:
    """An argument of a thread that refers to it until it ends, also if there is no memory to begin with."""


class _Holder:
    """Holds a FileLock in a thread of its own, where no signal handler can interrupt what filelock does.

    For a filelock 4.3 that was interrupted keeps locks of its own for ever, and whoever saves or forks next waits for
    them. What the saver itself calls are locks made in C, which are taken and let go of whole or not at all.
    """

    def __init__(self, path: str, timeout_s: float | None) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._file_lock: "filelock.BaseFileLock | None" = None  # noqa: UP037  # Imported later.
        self._error: BaseException | None = None
        self._settled = threading.Lock()
        self._wanted = threading.Lock()
        self._ended = threading.Lock()
        self._pid = os.getpid()
        self._is_threaded = self._is_inline = False
        self._life: weakref.ref[_Life] = weakref.ref(_Life())

    def take(self) -> None:
        """Return when it is held; or raise why not."""
        self._settled.acquire()
        self._wanted.acquire()
        self._ended.acquire()
        life = _Life()
        self._life = weakref.ref(life)
        try:
            # Not a `threading.Thread`, which waits for its own beginning: an interrupt leaves that with a lock held.
            self._is_threaded = _thread.start_new_thread(self._run, (life,)) is not None
        except RuntimeError:  # There can be no more threads; as in a process that is at its end.
            self._try_inline()
        del life
        # A signal that comes just before a wait is not seen by it: so this one has an end, and is begun anew.
        while not self._settled.acquire(timeout=_WAIT_S):
            if self._life() is None and self._settled.locked():
                self._try_inline()
        if self._error is not None:
            raise self._error

    def let_go(self) -> None:
        """Return when it is held no more. Does no harm twice."""
        if self._wanted.locked():
            self._wanted.release()
        if self._is_inline:
            self._release()
        elif self._is_threaded and self._pid == os.getpid():
            while not self._ended.acquire(timeout=_WAIT_S) and self._life() is not None:
                pass
            with contextlib.suppress(RuntimeError):  # It ended between the two.
                self._ended.release()

    def _try_inline(self) -> None:
        self._is_inline = True
        self._try()

    def _run(self, life: "_Life") -> None:  # pragma: no cover  # No tracer is told of such a thread.
        del life
        try:
            self._try()
            self._wanted.acquire()
            self._release()
        finally:
            self._ended.release()

    def _try(self) -> None:
        try:
            self._file_lock = self._acquired()
        except BaseException as error:  # noqa: BLE001  # It is raised where it is waited for.
            # Its frames refer to the FileLock, whose finalizer is filelock, too.
            self._error = error.with_traceback(None)
        finally:
            self._settled.release()

    def _acquired(self) -> "filelock.BaseFileLock | None":
        with imports.guard:
            import filelock  # noqa: PLC0415  # It takes longer to import than all of microdb, and many never save.

        file_lock = filelock.FileLock(self._path, thread_local=False)
        deadline = None if self._timeout_s is None else time.monotonic() + self._timeout_s
        while self._wanted.locked():
            with contextlib.suppress(filelock.Timeout):
                file_lock.acquire(blocking=False)
                return file_lock
            if deadline is not None and time.monotonic() >= deadline:
                raise LockTimeoutError(self._path, self._timeout_s or 0, None)
            time.sleep(_PAUSE_S)
        return None

    def _release(self) -> None:
        file_lock, self._file_lock = self._file_lock, None
        if file_lock is not None:
            file_lock.release()
