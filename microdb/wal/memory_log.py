"""The log of a table that has no file: ``":memory:"``. It keeps no more than its last append."""

from collections.abc import Callable, Sequence
from typing import Any, Final

from microdb.errors import ReentrantError
from microdb.locks import REENTRANT, WriteLock
from microdb.table import Overlay
from microdb.wal.format import Payload, Position
from microdb.wal.header import HEAD, HEADER_BYTES, Slot
from microdb.wal.log import Start

__all__ = ["MemoryLog"]


class MemoryLog:
    """A `Log` for the threads of one process. A frame lives until the next append, which waits until it is applied."""

    name: Final = ":memory:"
    keeps_all: Final = False

    def __init__(self) -> None:
        self.words = memoryview(bytearray(HEADER_BYTES)).cast("Q")
        self.lock = WriteLock()
        self.slot = Slot()  # Never claimed: there is nobody to be told.
        self._payloads: Sequence[Payload] = ()
        self._end = Position(0, 0, 0, 0)

    def attach(self, recover: Callable[[Any, Any], Start], timeout_s: float | None) -> None:
        """There is nothing to open."""

    def detach(self) -> None:
        """There is nothing to let go of."""

    def close(self) -> None:
        """There is nothing to let go of."""

    def must_attach_again(self) -> bool:
        """Never."""
        return False

    def is_followed(self) -> bool:
        """Always."""
        return True

    def load(self, timeout_s: float | None) -> Start:  # noqa: ARG002  # Nobody to wait for.
        """An empty table."""
        return Start(None, Overlay(), self._end, self._end.head)

    def read(self, after: Position, head: int) -> tuple[Sequence[Payload], Position]:
        """The last append, if it lies behind `after`."""
        return (self._payloads if after.head != head else ()), self._end

    def prepare(self) -> None:
        """Nothing can be left behind, but a signal handler may have interrupted a write."""
        if self.lock.writing is not None:
            raise ReentrantError(REENTRANT)

    def is_poisoned(self) -> bool:
        """Never."""
        return False

    def append(self, payloads: Sequence[Payload], after: Position, *, sync: bool) -> Position:  # noqa: ARG002  # No disk.
        """Keep the payloads and move the head."""
        self._payloads = payloads
        self._end = after._replace(offset=after.offset + 1, sequence=after.sequence + len(payloads))
        self.words[HEAD] = self._end.head
        return self._end

    def sync(self, head: int) -> None:
        """There is no disk."""
