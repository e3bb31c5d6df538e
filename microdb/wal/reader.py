"""The bytes of a log to values. Pure: it reads what it is given, and never repairs.

Of a frame there are three outcomes: it is valid; or the bytes from here on are a torn tail, when no valid frame follows
them; or the log is broken here, when one does. `read_frames` finds the first kind and stops at what is not;
`later_frames` tells the other two apart.
"""

import re
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple
from zlib import crc32

from microdb.wal.codec import CodecError, decode_names
from microdb.wal.format import (
    AFTER_FAILURE,
    BASE_BYTES,
    CRC,
    CRC_BYTES,
    DURABLE_BEFORE,
    FLAGS_KNOWN,
    FRAME,
    FRAME_BYTES_MIN,
    GENERATION_MAX,
    KEYS_BYTES_MAX,
    LOG_HEADER,
    MAGIC,
    PAYLOAD_BYTES_MAX,
    SEQUENCE_MAX,
    VERSION,
    LogHeader,
    Payload,
    Position,
)

__all__ = [
    "HeaderError",
    "LaterFrame",
    "NewerVersionError",
    "Run",
    "ends_of",
    "find_frame",
    "later_frames",
    "only_frame",
    "read_frames",
    "read_header",
]

_new: Final = tuple.__new__
_SMALL_BYTES: Final = 4_096
_CRC_AND_NEXT: Final = struct.Struct("<IIBQ")
"""The crc of one frame, and the header of the one behind it."""

_SEQUENCE_AT: Final = 5
_LOOKS_MAX: Final = 64
"""How many times `find_frame` looks closer at what has the right number."""

_SEARCH_FACTOR: Final = 16
"""How many times the bytes of a tail `later_frames` will sum before it gives up."""


class HeaderError(Exception):
    """These bytes are no log header: what was found, and at which byte."""

    def __init__(self, reason: str, offset: int) -> None:
        self.reason = reason
        self.offset = offset


class NewerVersionError(HeaderError):
    """A log header, of a version that this code does not know."""


class Run(NamedTuple):
    """The valid frames found from a position on.

    Attributes:
        payloads: Their payloads, in order; their sequences follow one another.
        end: The position behind the last of them.
        reason: Why the bytes at `end` are not a valid frame; None if they simply end.
    """

    payloads: list[Payload]
    end: Position
    reason: str | None


class LaterFrame(NamedTuple):
    """A valid frame behind bytes that are none.

    Attributes:
        offset: Where it stands.
        sequence: Its sequence.
        durable_before: Whether all before it had been fsynced when it was written.
    """

    offset: int
    sequence: int
    durable_before: bool


def read_header(data: bytes) -> LogHeader:
    """What a log says of itself, from its first bytes.

    Raises:
        NewerVersionError: Its magic is right, and its version is newer.
        HeaderError: It is no log, or a damaged one.
    """
    if not data.startswith(MAGIC):
        raise HeaderError(f"not a microdb log: it begins with {data[:8]!r}, not {MAGIC!r}", 0)
    if len(data) < BASE_BYTES:
        raise HeaderError(f"the log header ends after {len(data)} of its {BASE_BYTES} bytes", len(data))
    _, version, flags, generation, salt, boot_id, base, snapshot_hash, length = LOG_HEADER.unpack_from(data)
    if version != VERSION or flags & ~AFTER_FAILURE:
        raise NewerVersionError(f"log version {version}.{flags}, this microdb reads {VERSION}.0; upgrade microdb", 8)
    end = BASE_BYTES + length + CRC_BYTES
    if length > KEYS_BYTES_MAX or end > len(data):
        raise HeaderError(f"the log header should have {end} bytes, found {len(data)}", 72)
    (crc,) = CRC.unpack_from(data, end - CRC_BYTES)
    if crc != crc32(data[: end - CRC_BYTES]):
        raise HeaderError("the crc of the log header is wrong", end - CRC_BYTES)
    if generation > GENERATION_MAX or base > SEQUENCE_MAX:
        raise HeaderError(f"generation {generation} or base sequence {base} is beyond what any log can have", 16)
    try:
        names = decode_names(data[BASE_BYTES : end - CRC_BYTES])
    except CodecError as error:
        raise HeaderError(f"partition keys: {error}", BASE_BYTES) from error
    return LogHeader(generation, salt, boot_id, base, snapshot_hash, names, bool(flags), end, crc)


def read_frames(data: bytes, after: Position, *, last: int | None = None) -> Run:
    """The valid frames at the beginning of `data`, which is what the file holds from `after.offset` on.

    Stops behind the frame with the sequence `last`, if one is given. Costs one pass over the bytes; large payloads are
    views of `data`.
    """
    size = len(data)
    generation, offset, sequence, crc = after
    if size <= _SMALL_BYTES and last is None:
        found = _only_frame(data, 0, crc)  # What most reads meet, for a part of the price.
        if found is not None and found[0] == sequence + 1:
            end = _new(Position, (generation, offset + size, *found))
            return _new(Run, ([data[FRAME.size : -CRC_BYTES]], end, None))
    at = 0
    payloads: list[Payload] = []
    reason = None
    while True:
        at, (sequence, crc) = _take_small(data, at, (sequence, crc), last, payloads)
        if at == size or sequence == last:
            break
        view = memoryview(data)
        reason = _flaw(view, at, sequence + 1, crc)
        if reason is not None:
            break
        length = FRAME.unpack_from(view, at)[0]
        end = at + FRAME.size + length
        payloads.append(view[at + FRAME.size : end])
        (crc,) = CRC.unpack_from(view, end)
        sequence += 1
        at = end + CRC_BYTES
    # As `Run(…)` and `Position(…)`, in half the time.
    return _new(Run, (payloads, _new(Position, (generation, offset + at, sequence, crc)), reason))


def only_frame(data: bytes) -> tuple[int, int] | None:
    """Sequence and crc of the one frame that `data` holds behind the crc of the frame before; None if it is no such."""
    return _only_frame(data, CRC_BYTES, CRC.unpack_from(data)[0]) if len(data) > CRC_BYTES else None


def _only_frame(data: bytes, at: int, seed: int) -> tuple[int, int] | None:
    """Sequence and crc of the frame behind a crc, if it is all that is left of `data`; else None.

    The rules are those of `_flaw`, but for the sequence: whether that is right the caller must know.
    """
    end = len(data) - CRC_BYTES
    if end - at < FRAME.size:
        return None
    length, flags, sequence = FRAME.unpack_from(data, at)
    if length != end - at - FRAME.size or not length or flags & ~FLAGS_KNOWN:
        return None
    (crc,) = CRC.unpack_from(data, end)
    return (sequence, crc) if crc32(data[at:end], seed) == crc else None


def ends_of(data: bytes, after: Position, payloads: Sequence[Payload]) -> list[Position]:
    """The position behind each of the frames that `read_frames` found there, with these payloads."""
    at, sequence = 0, after.sequence
    ends = []
    for payload in payloads:
        at += FRAME_BYTES_MIN + len(payload)
        sequence += 1
        ends.append(Position(after.generation, after.offset + at, sequence, CRC.unpack_from(data, at - CRC_BYTES)[0]))
    return ends


def find_frame(data: bytes, sequence: int, *, seed: int | None = None) -> tuple[int, int] | None:
    """Where the frame with a sequence ends in a part of a log, and its crc; None if it is not found.

    Costs a search for the bytes of the number. Nothing is told of the frames before it.

    Args:
        data: The part. Unless `seed` is given, a frame within its first four bytes is not found.
        sequence: Of the frame.
        seed: The crc before `data`.
    """
    view = memoryview(data)
    number = sequence.to_bytes(8, "little")
    at = data.find(number) - _SEQUENCE_AT
    for _ in range(_LOOKS_MAX):
        if at < -_SEQUENCE_AT:
            break
        before = seed if at == 0 else CRC.unpack_from(view, at - CRC_BYTES)[0] if at >= CRC_BYTES else None
        if before is not None and _flaw(view, at, sequence, before) is None:
            end = at + FRAME_BYTES_MIN + FRAME.unpack_from(view, at)[0]
            return end, CRC.unpack_from(view, end - CRC_BYTES)[0]
        at = data.find(number, at + _SEQUENCE_AT + 1) - _SEQUENCE_AT
    return None


def _take_small(
    data: bytes, at: int, before: tuple[int, int], last: int | None, payloads: list[Payload]
) -> tuple[int, tuple[int, int]]:
    """Take small frames into `payloads` as long as they are without a flaw, and are followed by another or by nothing.

    The rules are those of `_flaw`. Half the price: a small frame costs less to copy than to look into, and one call
    unpacks its crc and the header of the next one.

    Args:
        data: As in `read_frames`.
        at: Where to begin.
        before: The sequence and the crc of the frame before.
        last: As in `read_frames`.
        payloads: What is found is appended here.

    Returns:
        Where it stopped; the sequence and the crc of the frame before that.
    """
    size = len(data)
    room = size - _CRC_AND_NEXT.size
    if size - at < FRAME_BYTES_MIN:
        return at, before
    sequence, crc = before
    unpack, header_bytes, flags_unknown = _CRC_AND_NEXT.unpack_from, FRAME.size, ~FLAGS_KNOWN
    length, flags, found = FRAME.unpack_from(data, at)
    while sequence != last:
        end = at + header_bytes + length
        if not 0 < length <= _SMALL_BYTES or flags & flags_unknown or found != sequence + 1:
            break
        frame = data[at:end]
        if end <= room:
            frame_crc, length, flags, found = unpack(data, end)
        elif end + CRC_BYTES == size:
            (frame_crc,), length = CRC.unpack_from(data, end), 0
        else:
            break
        if crc32(frame, crc) != frame_crc:
            break
        payloads.append(frame[header_bytes:])
        at, sequence, crc = end + CRC_BYTES, sequence + 1, frame_crc
    return at, (sequence, crc)


def _flaw(view: memoryview, at: int, sequence: int, seed: int) -> str | None:  # noqa: PLR0911  # One return a rule.
    """Why the bytes at `at` are not the frame with this sequence; None if they are."""
    size = len(view)
    if size - at < FRAME_BYTES_MIN:
        return f"{size - at} bytes are too few for a frame"
    length, flags, found = FRAME.unpack_from(view, at)
    end = at + FRAME.size + length
    if not length:
        return "a frame without a payload"
    if length > PAYLOAD_BYTES_MAX or end + CRC_BYTES > size:
        return f"a frame of {length} bytes does not fit into the {size - at} that are left"
    if flags & ~FLAGS_KNOWN:
        return f"unknown flags {flags:#x}"
    if found != sequence:
        return f"sequence {found} stands where {sequence} should"
    (crc,) = CRC.unpack_from(view, end)
    if crc != crc32(view[at:end], seed):
        return "the crc is wrong"
    return None


def later_frames(data: bytes, after: Position) -> list[LaterFrame]:
    """The valid frames of this log anywhere behind the first byte of `data`, which begins with none.

    A place is looked at only if a sequence stands there that the bytes before it leave room for; the work is bounded by
    a multiple of the bytes.

    Raises:
        HeaderError: So much of it looks like frames that the search was given up.
    """
    view = memoryview(data)
    room = len(data) // FRAME_BYTES_MIN + 1
    budget = _SEARCH_FACTOR * len(data)
    found: list[LaterFrame] = []
    next_at = CRC_BYTES
    at = _behind_wrong_crc(view, after)
    if at is not None:
        _, flags, sequence = FRAME.unpack_from(view, at)
        found.append(LaterFrame(after.offset + at, sequence, bool(flags & DURABLE_BEFORE)))
    for match in _pattern(after.sequence + 1, after.sequence + room).finditer(data):
        at = match.start()
        if at < next_at:
            continue
        length, flags, sequence = FRAME.unpack_from(view, at)
        if length > len(data) - at or not after.sequence < sequence <= after.sequence + room:
            continue
        budget -= length
        if budget < 0:
            raise HeaderError("too much in it looks like a frame to tell what happened", after.offset)
        (seed,) = CRC.unpack_from(view, at - CRC_BYTES)
        if _flaw(view, at, sequence, seed) is None:
            found.append(LaterFrame(after.offset + at, sequence, bool(flags & DURABLE_BEFORE)))
            next_at = at + FRAME_BYTES_MIN + length
    return found


def _behind_wrong_crc(view: memoryview, after: Position) -> int | None:
    """Where the frame behind the first one stands, if of the first only the crc is wrong, which is the seed of that."""
    if len(view) < FRAME_BYTES_MIN:
        return None
    end: int = FRAME.size + FRAME.unpack_from(view, 0)[0]
    at = end + CRC_BYTES
    return at if _flaw(view, at, after.sequence + 2, crc32(view[:end], after.crc)) is None else None


def _pattern(low: int, high: int) -> re.Pattern[bytes]:
    """Where a frame with a sequence from `low` to `high` may begin: its length is not 0, its high bytes are theirs."""
    varied = 8
    while varied and low >> 8 * (varied - 1) == high >> 8 * (varied - 1):
        varied -= 1
    fixed = re.escape((low >> 8 * varied).to_bytes(8 - varied, "little"))
    return re.compile(rb"(?=(?!\0{4}).{4}[\0\1].{%d}%b)" % (varied, fixed), re.DOTALL)
