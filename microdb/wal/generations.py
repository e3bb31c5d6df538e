"""The logs of a database by their generations: the current one, those that were saved over, what nobody needs."""

import contextlib
import os
from collections.abc import Sequence
from typing import Final

from microdb import notes
from microdb.errors import CorruptError, StorageError
from microdb.files import Files
from microdb.keys import PartitionKeys
from microdb.paths import Paths
from microdb.wal.format import GENERATION_MAX, Payload, Position, split_head
from microdb.wal.log import GoneError
from microdb.wal.log_file import LogFile, ends_in, frames_to, frames_until, open_log, place_of

__all__ = ["HISTORY_BYTES", "Generations"]

HISTORY_BYTES: Final = 16 << 20
HISTORY_LOGS: Final = 64
"""How much of the logs before the current one is kept for slow readers, and how many of them."""


class Generations:
    """The log files of one database.

    Attributes:
        last: The log that was used last, kept open; None after a fork.
        before: The one that was used before it: whoever writes behind a save has not yet read what came before that.
    """

    def __init__(self, paths: Paths, keys: PartitionKeys, files: Files, *, read_only: bool, history_bytes: int) -> None:
        self.last: LogFile | None = None
        self.before: LogFile | None = None
        self._paths = paths
        self._keys = keys
        self._files = files
        self._read_only = read_only
        self._history_bytes = history_bytes

    def numbers(self, kind: str) -> list[int]:
        """Which logs there are, in order: the ``log`` or the ``history`` ones."""
        names = self._files.names(self._paths.folder)
        numbers = (self._paths.generation_of(name, kind) for name in names)
        return [number for number in numbers if number is not None and number <= GENERATION_MAX]

    def open(self, generation: int) -> LogFile:
        """The log of a generation, current or history. Raises GoneError if it is not kept."""
        # A save renames a log to history; the name that is gone now may be there under the other one by then.
        for path in (self._paths.log(generation), self._paths.history(generation)):
            with contextlib.suppress(FileNotFoundError):
                log = open_log(self._files.open(path, write=not self._read_only))
                self.check_keys(log)
                if log.generation != generation:
                    reason = f"the log of generation {log.generation}, under the name of another"
                    raise CorruptError(log.file.path, reason, offset=16)
                return log
        raise GoneError(generation)

    def get(self, generation: int) -> LogFile:
        """As `open`, without opening it again if it is one of the last two."""
        last, before = self.last, self.before
        if last is None or last.generation != generation:
            found = before if before is not None and before.generation == generation else self.open(generation)
            self.last, self.before = found, last
            return found
        return last

    def drop(self) -> None:
        """Keep none open."""
        self.last = self.before = None

    def check_keys(self, log: LogFile) -> None:
        """Raises StorageError if the log is keyed by other fields."""
        if log.header.partition_keys != self._keys.names:
            raise StorageError(
                log.file.path,
                f"keyed by {list(log.header.partition_keys)}, opened with partition_keys={list(self._keys.names)}; "
                "open it with its own keys, or upsert its records into a database of another name",
            )

    def read(
        self, after: Position, head: int, ends: list[Position] | None = None
    ) -> tuple[Sequence[Payload], Position]:
        """The batches from a position to a published head, across the saves that came in between.

        `ends`, if given, gets the position behind each of them.
        """
        generation, offset = split_head(head)
        log = self.last
        if ends is None and log is not None and after.generation == generation == log.generation:
            return frames_to(log, after, offset)  # As below, for a part of the price.
        payloads: list[Payload] = []
        is_searched = after.generation < generation
        while after.generation < generation:
            following = self.open(after.generation + 1)
            base = following.header.base_sequence
            if base > after.sequence:
                log = self.get(after.generation)
                run = frames_until(log, after, base)
                payloads += run.payloads
                if ends is not None:
                    ends += ends_in(log, after, run.payloads, run.end)
            after = place_of(following, max(after.sequence, base))
            self.last = following
            notes.add(notes.DEBUG, "%s: followed a save to generation %d", self._paths.snapshot, after.generation)
        log = self.get(after.generation)
        try:
            more, end = frames_to(log, after, offset)
        except CorruptError:
            if not is_searched:
                raise
            # The place may be within a record that holds a copy of a log: count from the beginning.
            after = frames_until(log, log.header.start, after.sequence).end
            more, end = frames_to(log, after, offset)
        self.before = None
        if ends is not None:
            ends += ends_in(log, after, more, end)
        return [*payloads, *more] if payloads else more, end

    def check(self, position: Position) -> LogFile:
        """The log of a position, current or history. Raises GoneError if it is not kept, or no frame ends there."""
        log = self.open(position.generation)
        if frames_until(log, log.header.start, position.sequence).end != position:
            raise GoneError(position.generation)
        return log

    def retire(self, newest: int) -> None:
        """Rename logs up to a generation to history, and delete the oldest history above the bound.

        If that fails it is logged: nothing depends on it, and the next save or recovery does it again.
        """
        try:
            for generation in self.numbers("log"):
                if generation <= newest:
                    self._files.rename(self._paths.log(generation), self._paths.history(generation))
            kept = 0
            for count, generation in enumerate(reversed(self.numbers("history")), 1):
                identity = self._files.identity(self._paths.history(generation))
                kept += identity.size if identity is not None else 0
                if kept > self._history_bytes or count > HISTORY_LOGS:
                    self._files.unlink(self._paths.history(generation))
        except OSError as error:
            notes.add(notes.WARNING, "%s: old logs could not be put away: %s", self._paths.folder, str(error))

    def remove_temporaries(self, *, inside_lock: bool) -> None:
        """Remove what dead savers left: those that saved inside the write lock, or the others."""
        for name in self._files.names(self._paths.folder):
            if self._paths.is_temporary(name, inside_lock=inside_lock):
                self._files.unlink(os.path.join(self._paths.folder, name))
