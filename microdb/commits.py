"""Batches on their way into the log: of several threads that wait, the first takes the batches of all along.

The first that waits waits for the write lock. The others sleep, each on a lock of its own: until their batch is
written, or until they have become the first. So a thread wakes once for each write, and the write lock is not handed
from one to the next only to be given back. Whoever sleeps looks now and then, too, whether the write lock is free:
nothing depends on being woken, which an interrupt may prevent.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Final

from microdb.changes import Change
from microdb.errors import LockTimeoutError
from microdb.locks import Level, WriteLock

__all__ = ["Commit", "CommitQueue"]

_LOOK_EVERY_S: Final = 0.05


class Commit:
    """One batch on its way into the log.

    Attributes:
        payload: Its changes as the log will hold them.
        changes: The same for the table.
        done: Whether it is in the log, if its own thread writes it.
        leader: The batch along with which another thread writes it.
        asleep: What its thread waits for; None if it does not wait.
    """

    __slots__ = ("asleep", "changes", "done", "leader", "payload")

    def __init__(self, payload: bytes, changes: Sequence[Change]) -> None:
        self.payload = payload
        self.changes = changes
        self.done = False
        self.leader: Commit | None = None
        self.asleep: threading.Lock | None = None

    def is_done(self) -> bool:
        """Whether it is in the log."""
        return self.done or (self.leader is not None and self.leader.done)

    def wake(self) -> None:
        """Let its thread see what has become of it. Does no harm twice."""
        if self.asleep is not None:
            with contextlib.suppress(RuntimeError):  # It is awake.
                self.asleep.release()


class CommitQueue:
    """The batches of the threads of this process that wait for the write lock through one handle."""

    def __init__(self) -> None:
        self._waiting: deque[Commit] = deque()

    def __len__(self) -> int:
        """How many are waiting."""
        return len(self._waiting)

    def enter(self, commit: Commit, lock: WriteLock, timeout_s: float | None) -> float | None:
        """Wait until no other thread of this process writes; by then one of them may have taken the batch along.

        Returns:
            What is left of `timeout_s`.

        Raises:
            LockTimeoutError: They did not let it in within `timeout_s` seconds (None: for ever).
        """
        if lock.enter_queue_now():
            return timeout_s
        if timeout_s != 0:
            lock.check_may_wait()
        commit.asleep = threading.Lock()
        commit.asleep.acquire()
        self._waiting.append(commit)
        left_s = self._sleep(commit, commit.asleep, lock, timeout_s)
        if commit.is_done():
            return None
        try:
            return lock.enter_queue(left_s)
        except LockTimeoutError:
            if self._withdraw(commit):
                raise
            # Whoever is writing has taken it along: what becomes of it is known in a moment.
            lock.enter_queue(None)
            if commit.is_done():
                return None
            raise

    def _sleep(self, commit: Commit, asleep: threading.Lock, lock: WriteLock, timeout_s: float | None) -> float | None:
        """Return when the batch is written, or is the first that waits, or the time is up; with what is left of it."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        left_s = timeout_s
        while not self._is_first(commit) and (left_s is None or left_s > 0):
            if asleep.acquire(timeout=_LOOK_EVERY_S if left_s is None else min(left_s, _LOOK_EVERY_S)):
                break
            if lock.enter_queue_now():  # The first may be a batch of this very thread, which a signal has interrupted.
                break
            left_s = None if deadline is None else max(deadline - time.monotonic(), 0)
        return left_s

    def _is_first(self, commit: Commit) -> bool:
        try:
            return self._waiting[0] is commit
        except IndexError:
            return False

    def take_all(self, commit: Commit) -> list[Commit]:
        """A batch, and all that other threads have waiting; whoever waits for one of them leaves it to us now."""
        group = [commit]
        while self._waiting:
            with contextlib.suppress(IndexError):  # It has just withdrawn.
                follower = self._waiting.popleft()
                if follower is not commit:
                    follower.leader = commit
                    group.append(follower)
        return group

    def leave(self, commit: Commit, lock: WriteLock, level: Level) -> None:
        """Return to where the thread stood before it came. Does no harm twice."""
        if self._waiting:
            self._withdraw(commit)
        if lock.writing is commit:
            lock.writing = None
        lock.return_to(level)

    def _withdraw(self, commit: Commit) -> bool:
        """Whether nobody had taken it yet."""
        try:
            self._waiting.remove(commit)
        except ValueError:
            return False
        with contextlib.suppress(IndexError):
            self._waiting[0].wake()
        return True
