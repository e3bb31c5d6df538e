"""Batches on their way into the log: of several threads that wait, the first takes the batches of all along."""

import contextlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from microdb.changes import Change
from microdb.errors import LockTimeoutError
from microdb.locks import Level, WriteLock

__all__ = ["Commit", "CommitQueue"]


@dataclass(slots=True, eq=False)
class Commit:
    """One batch on its way into the log.

    Attributes:
        payload: Its changes as the log will hold them.
        changes: The same for the table.
        done: Whether it is in the log.
    """

    payload: bytes
    changes: Sequence[Change]
    done: bool = False


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
        self._waiting.append(commit)
        try:
            return lock.enter_queue(timeout_s)
        except LockTimeoutError:
            if self._withdraw(commit):
                raise
            # Whoever is writing has taken it along: what becomes of it is known in a moment.
            lock.enter_queue(None)
            if commit.done:
                return None
            raise

    def take_all(self, commit: Commit) -> list[Commit]:
        """A batch, and all that other threads have waiting; whoever waits for one of them leaves it to us now."""
        self._withdraw(commit)
        group = [commit]
        while self._waiting:
            with contextlib.suppress(IndexError):  # It has just withdrawn.
                group.append(self._waiting.popleft())
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
        return True
