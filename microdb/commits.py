"""Batches on their way into the log: of several threads that wait, the first takes the batches of all along.

Whoever waits sleeps, until its batch is written or the write lock is free. So a thread wakes once for each write, and
the write lock is not handed from one to the next only to be given back. It looks now and then, too: nothing depends on
being woken, which an interrupt may prevent. Whoever takes the lock again and again and takes nobody along, as `lock()`
does, would starve those that sleep: after a few vain looks they block.

Those whose batches were written together come with their next ones together, too. Without more, the first of them would
write its own alone, and the others would wait for the disk twice. So the first waits a moment for them.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

from microdb.changes import Change
from microdb.locks import Level, WriteLock

__all__ = ["Commit", "CommitQueue"]

_LOOK_EVERY_S: Final = 0.05
_LOOKS_MAX: Final = 4
_BLOCK_S: Final = 0.01
_COME_S: Final = 0.000_05
"""About twice what a thread takes to wake and to come with its next batch."""


class Commit:
    """One batch on its way into the log.

    Attributes:
        payload: Its changes as the log will hold them.
        changes: The same for the table.
        expires: Whether a record in it is one that expires.
        done: Whether it is in the log, if its own thread writes it.
        leader: The batch along with which another thread writes it.
        next: The one behind it that is taken along, too: it is told when this one has been.
    """

    # What most never set stands in the class: one is made for each write.
    done = False
    leader: "Commit | None" = None
    next: "Commit | None" = None
    _asleep: "threading.Lock | None" = None

    def __init__(self, payload: bytes, changes: Iterable[Change], *, expires: bool = False) -> None:
        self.payload = payload
        self.changes = changes
        self.expires = expires

    def is_done(self) -> bool:
        """Whether it is in the log."""
        return self.done or (self.leader is not None and self.leader.done)

    def fall_asleep(self) -> None:
        """From now on, `sleep` does not return before a `wake`."""
        self._asleep = threading.Lock()
        self._asleep.acquire()

    def sleep(self, timeout_s: float) -> None:
        """Return when it has been woken since the last time, or after some seconds."""
        if self._asleep is not None:
            self._asleep.acquire(timeout=timeout_s)

    def wake(self) -> bool:
        """Let its thread take the lock; False if it was awake, or is in the log, so needs none."""
        return not self.is_done() and self.tell()

    def tell(self) -> bool:
        """Let its thread see what has become of it; False if it was awake."""
        try:
            if self._asleep is None:
                return False
            self._asleep.release()
        except RuntimeError:
            return False
        return True


class CommitQueue:
    """The batches of the threads of this process that wait for the write lock through one handle.

    Attributes:
        waiting: They, in the order in which they came.
        company: How many of them the last write took along.
    """

    def __init__(self) -> None:
        self.waiting: deque[Commit] = deque()
        self.company = 0
        self._gathering = threading.Lock()

    def enter(self, commit: Commit, lock: WriteLock, timeout_s: float | None) -> float | None:
        """Wait until no other thread of this process writes; by then one of them may have taken the batch along.

        For whoever finds that `WriteLock.enter_queue_now` does not let it in.

        Returns:
            What is left of `timeout_s`.

        Raises:
            LockTimeoutError: They did not let it in within `timeout_s` seconds (None: for ever).
        """
        if timeout_s != 0:
            lock.check_may_wait()
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        left_s = timeout_s
        commit.fall_asleep()
        self.waiting.append(commit)
        if self._gathering.locked() and len(self.waiting) >= self.company:
            with contextlib.suppress(RuntimeError):  # Another has come at the same time.
                self._gathering.release()
        looks = 0
        try:
            lock.sleepers.append(commit)
            while not commit.is_done() and not lock.enter_queue_now():
                if left_s is not None and left_s <= 0 and self._withdraw(commit):
                    raise lock.timeout(timeout_s)
                # If it could not withdraw, whoever is writing has taken it along: that ends in a moment.
                wait_s = _LOOK_EVERY_S if not left_s else min(left_s, _LOOK_EVERY_S)
                looks += 1
                if looks <= _LOOKS_MAX:
                    commit.sleep(wait_s)
                elif lock.enter_queue_soon(min(wait_s, _BLOCK_S)):
                    break
                left_s = None if deadline is None else max(deadline - time.monotonic(), 0)
        finally:
            if commit.next is not None:
                commit.next.tell()
            with contextlib.suppress(ValueError):
                lock.sleepers.remove(commit)
            if not commit.is_done() and not lock.is_mine():
                lock.wake_next()  # It gives up, and may have been woken to take the lock.
        if commit.leader is not None and not commit.is_done() and left_s is not None and left_s <= 0:
            raise lock.timeout(timeout_s)
        return left_s

    def gather(self) -> None:
        """Wait until as many wait as the last write took along; but no longer than they need to come.

        For whoever is first in the queue of the lock.
        """
        self._gathering.acquire(blocking=False)  # From now on, `enter` tells.
        if len(self.waiting) < self.company:
            self._gathering.acquire(timeout=_COME_S * self.company)
        self.company = 0  # Unless this one takes somebody along.

    def take_all(self, commit: Commit) -> list[Commit]:
        """A batch, and all that other threads have waiting; whoever waits for one of them leaves it to us now."""
        group = [commit]
        while self.waiting:
            with contextlib.suppress(IndexError):  # It has just withdrawn.
                follower = self.waiting.popleft()
                if follower is not commit:
                    follower.leader = commit
                    if group[-1] is not commit:
                        group[-1].next = follower
                    group.append(follower)
        self.company = len(group) - 1
        return group

    def tell(self, group: Sequence[Commit], *, in_turn: bool) -> None:
        """Let the threads of those that were taken along see what has become of them.

        Told all at once, they wake on every core to wait for Python's own lock. Told in turn, one by the other, they
        would stay behind the calling thread, unless that waits for the disk with its next write.
        """
        for follower in group[1:2] if in_turn else group[1:]:
            follower.tell()

    def leave(self, commit: Commit, lock: WriteLock, level: Level) -> None:
        """Return to where the thread stood before it came. Does no harm twice."""
        if self.waiting:
            self._withdraw(commit)
        if lock.writing is commit:
            lock.writing = None
        lock.return_to(level)

    def _withdraw(self, commit: Commit) -> bool:
        """Whether nobody had taken it yet."""
        try:
            self.waiting.remove(commit)
        except ValueError:
            return False
        return True
