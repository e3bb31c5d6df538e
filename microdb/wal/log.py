"""What a log is to a handle: a few verbs, and one word that says how far it goes."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from microdb.locks import WriteLock
from microdb.table import Overlay
from microdb.wal.format import Payload, Position
from microdb.wal.header import Slot

__all__ = ["GoneError", "Log", "Start"]


class GoneError(Exception):
    """The log no longer leads on from this position, at this generation. Begin anew with `Log.load`."""

    def __init__(self, generation: int) -> None:
        self.generation = generation


class Start(NamedTuple):
    """All that a table is built from.

    Attributes:
        snapshot: The bytes of the snapshot; None where there is none.
        overlay: What the log does to it.
        end: The position behind the last of them; None where a reader cannot go on from there.
        head: The head that the table then reflects.
    """

    snapshot: bytes | None
    overlay: Overlay
    end: Position | None
    head: int


class Log(Protocol):
    """The one truth that keeps all tables equal.

    Attributes:
        name: What errors call it.
        words: The page; ``words[HEAD]`` is how far the log goes. A reader compares it before each read.
        lock: Whoever appends holds it.
        keeps_all: Whether `load` can give everything again.
        slot: Where a handle tells how far it has come.
    """

    name: str
    words: memoryview
    lock: WriteLock
    keeps_all: bool
    slot: Slot

    def attach(self, recover: Callable[[Any, Any], Start], timeout_s: float | None) -> Start | None:
        """Open it, waiting that long for its lock. The first gets the content with it; for others there is `load`."""
        ...

    def detach(self) -> None:
        """Let go of it; in the child of a fork, without unlocking what the parent holds."""
        ...

    def close(self) -> None:
        """Let go of it, in the process that attached."""
        ...

    def is_followed(self) -> bool:
        """Whether the head tells of every change; if not, `follow` has to be asked before each read."""
        ...

    def follow(self) -> bool:
        """Follow it from now on, if the head tells of every change by now; whether that is so. Waits for nobody."""
        ...

    def load(self, timeout_s: float | None) -> Start:
        """The content as of now."""
        ...

    def read(
        self, after: Position, head: int, ends: list[Position] | None = None
    ) -> tuple[Sequence[Payload], Position]:
        """The batches from a position to a head that was read from the page, and the position behind them.

        `ends`, if given, gets the position behind each of them.

        Raises:
            GoneError: They are no longer kept.
            CorruptError: They are damaged.
        """
        ...

    def end_at(self, head: int) -> Position | None:
        """The position at the published head, without reading what leads there; None if it takes that.

        Under the lock.
        """
        ...

    def keep_history(self) -> None:
        """Keep what is appended from now on for those who read it later than the next append."""
        ...

    def check_kept(self, position: Position) -> None:
        """Raises GoneError unless it is a position of this log, from which `read` goes on."""
        ...

    def prepare(self) -> None:
        """Under the lock, before an append: undo what a dead owner left, and see that the files are still there."""
        ...

    def is_poisoned(self) -> bool:
        """Whether nothing may be appended before a save."""
        ...

    def append_one(self, payload: Payload, after: Position) -> Position | None:
        """As `prepare` and `append` of one payload without `sync`, where they do no more than that; else None."""
        ...

    def append(self, payloads: Sequence[Payload], after: Position, *, sync: bool) -> Position:
        """Under the lock: write a frame for each payload behind `after`, which is the end, and publish them at once.

        With `sync`, they are on the disk before they are published. The head tells whether they were published.
        """
        ...

    def sync(self, head: int) -> None:
        """Return once everything up to `head` is on the disk."""
        ...
