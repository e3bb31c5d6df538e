"""One log file: how it is created, opened and named."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from microdb import collecting
from microdb.changes import Change
from microdb.errors import CorruptError, StorageError, VersionError
from microdb.files import File, Files
from microdb.keys import PartitionKeys
from microdb.table import Overlay
from microdb.wal.codec import CodecError, decode, decode_all
from microdb.wal.format import (
    BASE_BYTES,
    CRC_BYTES,
    FRAME_BYTES_MIN,
    GENERATION_MAX,
    HASH_BYTES,
    KEYS_BYTES_MAX,
    NO_SNAPSHOT,
    LogHeader,
    Payload,
    Position,
)
from microdb.wal.log import GoneError
from microdb.wal.reader import (
    HeaderError,
    NewerVersionError,
    Run,
    ends_of,
    find_frame,
    only_frame,
    read_frames,
    read_header,
)
from microdb.wal.writer import log_header, write_frames

__all__ = [
    "LogFile",
    "changes_in",
    "create_log",
    "end_from",
    "ends_in",
    "frames_to",
    "frames_until",
    "open_log",
    "overlay_of",
    "place_of",
    "snapshot_hash",
]

_new: Final = tuple.__new__
_SEARCH_BYTES: Final = (1 << 20, 1 << 24)
_FEW: Final = 3
"""Payloads, of which it is not worth it to decode them together."""
_LOOK_BYTES_MAX: Final = 1 << 20
"""How much is read only to know where it ends."""

_HEADER_BYTES_MAX: Final = BASE_BYTES + KEYS_BYTES_MAX + CRC_BYTES


class LogFile:
    """An open log and what its header says.

    Attributes:
        file: Itself.
        header: What it says.
        generation: That of the header.
    """

    __slots__ = ("file", "generation", "header")  # Each write asks them: a third of what a NamedTuple takes.

    def __init__(self, file: File, header: LogHeader) -> None:
        self.file = file
        self.header = header
        self.generation = header.generation


def snapshot_hash(data: bytes | None) -> bytes:
    """What binds a log to a snapshot; NO_SNAPSHOT for None."""
    return NO_SNAPSHOT if data is None else hashlib.blake2b(data, digest_size=HASH_BYTES).digest()


def open_log(file: File) -> LogFile:
    """An open file as a log.

    Raises:
        VersionError: A newer microdb wrote it.
        CorruptError: It is no log, or its header is damaged.
    """
    try:
        return LogFile(file, read_header(file.read_at(0, _HEADER_BYTES_MAX)))
    except NewerVersionError as error:
        raise VersionError(file.path, error.reason, offset=error.offset) from None
    except HeaderError as error:
        reason = f"{error.reason}. `microdb repair` saves what can be saved"
        raise CorruptError(file.path, reason, offset=error.offset) from None


def create_log(
    path: str,
    files: Files,
    *,
    generation: int,
    base_sequence: int,
    bound_to: bytes,
    partition_keys: tuple[str, ...],
    after_failure: bool = False,
    payloads: Sequence[Payload] = (),
) -> tuple[LogFile, Position]:
    """A new log at `path`, fsynced, and the position at its end. Raises StorageError if there were too many."""
    if generation > GENERATION_MAX:
        raise StorageError(path, f"no log follows generation {GENERATION_MAX}; save(another_filename) and begin there")
    data, fields = log_header(
        generation=generation,
        boot_id=files.boot_id(),
        base_sequence=base_sequence,
        snapshot_hash=bound_to,
        partition_keys=partition_keys,
        after_failure=after_failure,
    )
    frames, end = write_frames(payloads, fields.start)
    file = files.create(path)
    try:
        file.write_at(data + frames, 0)
        file.sync()
    except BaseException:
        files.unlink(file.path)
        raise
    return LogFile(file, fields), end


def frames_until(log: LogFile, after: Position, last: int) -> Run:
    """The frames behind a position up to a sequence. Raises GoneError if this log does not lead there."""
    run = read_frames(log.file.read_at(after.offset, log.file.size()), after, last=last)
    if run.end.sequence != last:
        raise GoneError(after.generation)
    return run


def place_of(log: LogFile, sequence: int) -> Position:
    """The position behind a frame that one knows from an earlier log. Raises GoneError if it is not in this one.

    It is searched for from the end: while a save was going on others may have written millions.
    """
    start = log.header.start
    if sequence == start.sequence:
        return start
    size = log.file.size()
    for length in _SEARCH_BYTES:
        at = max(size - length, start.offset)
        found = find_frame(log.file.read_at(at, size - at), sequence, seed=start.crc if at == start.offset else None)
        if found is not None:
            return Position(start.generation, at + found[0], sequence, found[1])
    return frames_until(log, start, sequence).end


def end_from(log: LogFile, begin: int, offset: int) -> Position | None:
    """The position at a published offset, told by the one frame from `begin` to there; None if that is none.

    It is checked by the crc before it. Before the first write to a log, when no frame is known to be the last, all are
    read.
    """
    file, header = log.file, log.header
    begin = max(header.end, begin)
    if not 0 <= offset - begin <= _LOOK_BYTES_MAX:
        return None
    data = file.read_at(begin - CRC_BYTES, CRC_BYTES + offset - begin)
    found = only_frame(data)
    if found is not None:
        return _new(Position, (header.generation, offset, *found))
    end = read_frames(data[CRC_BYTES:], header.start).end if begin == header.end else None
    return end if end is not None and end.offset == offset else None


def frames_to(log: LogFile, after: Position, offset: int) -> tuple[list[Payload], Position]:
    """The frames behind a position up to an offset that was published."""
    run = read_frames(log.file.read_at(after.offset, max(offset - after.offset, 0)), after)
    if run.end.offset != offset:
        raise _broken(log, run.end, run.reason or f"the log ends here, and its head is at byte {offset}")
    return run.payloads, run.end


def ends_in(log: LogFile, after: Position, payloads: Sequence[Payload], end: Position) -> list[Position]:
    """The position behind each of the frames from one position to another, which have these payloads."""
    before = payloads[:-1]
    length = len(before) * FRAME_BYTES_MIN + sum(map(len, before))
    found = ends_of(log.file.read_at(after.offset, length), after, before) if before else []
    return [*found, *[end] * bool(payloads)]


def changes_in(payloads: Sequence[Payload], keys: PartitionKeys, path: str) -> Iterable[Iterable[Change]]:
    """The changes that payloads hold, in order, some thousand payloads at a time.

    Raises:
        CorruptError: At once or on the way, at one that nobody can have written. `path` is for its message.
    """
    if len(payloads) > _FEW:
        return _changes_in_many(payloads, keys, path)
    try:
        return [decode(payload, keys) for payload in payloads]
    except CodecError as error:
        raise _no_changes(path, error) from error


def _changes_in_many(payloads: Sequence[Payload], keys: PartitionKeys, path: str) -> Iterator[Iterable[Change]]:
    try:
        yield from decode_all(payloads, keys)
    except CodecError as error:
        raise _no_changes(path, error) from error


def _no_changes(path: str, error: CodecError) -> CorruptError:
    return CorruptError(path, f"a frame whose crc is right holds no changes: {error}")


def overlay_of(payloads: Sequence[Payload], keys: PartitionKeys, path: str) -> Overlay:
    """What the changes of a log come to. Raises CorruptError, as `changes_in` does."""
    overlay = Overlay()
    with collecting.paused():
        for changes in changes_in(payloads, keys, path):
            overlay.add(changes)
    return overlay


def _broken(log: LogFile, end: Position, reason: str) -> CorruptError:
    return CorruptError(
        log.file.path,
        f"{reason}; all up to sequence {end.sequence} is sound. `microdb repair` saves what can be saved",
        offset=end.offset,
        sequence=end.sequence,
    )
