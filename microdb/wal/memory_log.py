"""The log of a table that has no file: ``":memory:"``. It keeps no more than its last append, unless it is watched."""

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from microdb.errors import ReentrantError
from microdb.locks import REENTRANT, WriteLock
from microdb.table import Overlay
from microdb.wal.format import Payload, Position, split_head
from microdb.wal.generations import HISTORY_BYTES
from microdb.wal.header import HEAD, HEADER_BYTES, Slot
from microdb.wal.log import GoneError, Start

__all__ = ["MemoryLog"]


class _History(NamedTuple):
    """What was appended since it was first watched: all behind the sequence `base`."""

    base: int
    payloads: list[Payload]


class MemoryLog:
    """A `Log` for the threads of one process. A frame lives until the next append, which waits until it is applied.

    Each counts as one byte, so the end of the log is its last sequence.
    """

    name: Final = ":memory:"
    keeps_all: Final = False

    def __init__(self) -> None:
        self.words = memoryview(bytearray(HEADER_BYTES)).cast("Q")
        self.lock = WriteLock()
        self.slot = Slot()  # Never claimed: there is nobody to be told.
        self._payloads: Sequence[Payload] = ()
        self._end = Position(0, 0, 0, 0)
        self._history: _History | None = None
        self._history_bytes = 0

    def attach(self, recover: Callable[[Any, Any], Start], timeout_s: float | None) -> None:
        """There is nothing to open."""

    def detach(self) -> None:
        """There is nothing to let go of."""

    def close(self) -> None:
        """There is nothing to let go of."""

    def is_followed(self) -> bool:
        """Always."""
        return True

    def follow(self) -> bool:
        """It is followed already."""
        return True

    def load(self, timeout_s: float | None) -> Start:  # noqa: ARG002  # Nobody to wait for.
        """An empty table."""
        return Start(None, Overlay(), self._end, self._end.head)

    def read(
        self, after: Position, head: int, ends: list[Position] | None = None
    ) -> tuple[Sequence[Payload], Position]:
        """The last append, if it lies behind `after`; with `ends`, all of them, as far as they are kept."""
        if ends is None:
            return (self._payloads if after.head != head else ()), self._end
        _, end = split_head(head)
        base, payloads = self._history or _History(end, [])
        if after.sequence < base:
            raise GoneError(after.generation)
        ends += [Position(0, sequence, sequence, 0) for sequence in range(after.sequence + 1, end + 1)]
        return payloads[after.sequence - base : end - base], Position(0, end, end, 0)

    def end_at(self, head: int) -> None:
        """None: who reads a table in memory has always caught up, for there is nothing to load it from again."""
        del head

    def keep_history(self) -> None:
        """From now on what is appended is kept, up to `HISTORY_BYTES`."""
        if self._history is None:
            self._history = _History(self._end.sequence, [])

    def check_kept(self, position: Position) -> None:
        """As there."""
        base, payloads = self._history or _History(self._end.sequence, [])
        sequence = position.sequence
        if position != (0, sequence, sequence, 0) or not base <= sequence <= base + len(payloads):
            raise GoneError(position.generation)

    def prepare(self) -> None:
        """Nothing can be left behind, but a signal handler may have interrupted a write."""
        if self.lock.writing is not None:
            raise ReentrantError(REENTRANT)

    def is_poisoned(self) -> bool:
        """Never."""
        return False

    def append_one(self, payload: Payload, after: Position) -> Position | None:
        """As there: there is nothing to prepare, but an append that was interrupted may have to be applied first."""
        return self.append((payload,), after, sync=False) if self.words[HEAD] == after.head else None

    def append(self, payloads: Sequence[Payload], after: Position, *, sync: bool) -> Position:  # noqa: ARG002  # No disk.
        """Keep the payloads and move the head."""
        self._payloads = payloads
        sequence = after.sequence + len(payloads)
        if self._history is not None:
            self._keep(self._history, payloads, after)
        self._end = Position(0, sequence, sequence, 0)
        self.words[HEAD] = self._end.head
        return self._end

    def _keep(self, history: _History, payloads: Sequence[Payload], after: Position) -> None:
        more_bytes = sum(map(len, payloads))
        if self._history_bytes + more_bytes > HISTORY_BYTES:
            # Half of it, and another list: a watcher may be reading this one. Before it grows, so that an append that
            # is interrupted, and made anew, finds its place.
            base = (history.base + after.sequence) // 2
            kept = history.payloads[base - history.base : after.sequence - history.base]
            self._history = history = _History(base, kept)
            self._history_bytes = sum(map(len, kept))
        history.payloads[after.sequence - history.base :] = payloads  # In the place of one that was interrupted.
        self._history_bytes += more_bytes

    def sync(self, head: int) -> None:
        """There is no disk."""
