"""The sound frames of a damaged log. Pure: from bytes to frames.

From the header on, each frame is proved by the crc before it, wherever it stands: so frames that were swapped, doubled
or moved are found, and nothing is missing. One flipped bit is flipped back, if the crc is right then. Where that chain
ends, it goes on behind a gap: with the next frame whose seed is the four bytes before it. That frame is sound, and its
sequence tells its place; but that it is of this log, and not a piece of another, nothing can prove.
"""

import re
from collections.abc import Iterator
from typing import Final, NamedTuple
from zlib import crc32

from microdb.wal.format import CRC, CRC_BYTES, FRAME, FRAME_BYTES_MIN, LogHeader, Payload, Position
from microdb.wal.reader import HeaderError, NewerVersionError, read_frames, read_header

__all__ = ["Frame", "Gap", "find_frames", "find_header"]

_BYTES_MENDED: Final = 4096
"""A flipped bit is looked for in headers and frames up to this length: so in one of 100,000 a wrong bit would fit."""

_FRAME_LIKE: Final = re.compile(rb"(?=(?!\0{4}).{4}[\0\1].{5}\0{3})", re.DOTALL)
"""Where a frame may begin: its length is not 0, its flags are known, its sequence is below 2**40."""

_SEARCH_FACTOR: Final = 64
"""How many times the bytes of a log a search will sum before it gives up."""


class Frame(NamedTuple):
    """A sound frame, and where it stands."""

    sequence: int
    payload: Payload
    offset: int
    end: int


class Gap(NamedTuple):
    """Bytes that are no sound frame.

    Attributes:
        after: The sequence of the frame before.
        before: That of the next sound frame; None where there is none.
        start: The first of the bytes.
        end: The byte behind them.
        reason: What is wrong with them.
    """

    after: int
    before: int | None
    start: int
    end: int
    reason: str


def find_header(data: bytes) -> tuple[LogHeader | None, str | None]:
    """The header of a log, and what is wrong with it. One flipped bit is flipped back: the crc proves it.

    Raises:
        NewerVersionError: A newer microdb wrote it.
    """
    try:
        return read_header(data), None
    except HeaderError as error:
        reason, newer = error.reason, isinstance(error, NewerVersionError)
    head = bytearray(data[:_BYTES_MENDED])
    for bit in range(8 * len(head)):
        head[bit // 8] ^= 1 << bit % 8
        try:
            return read_header(bytes(head)), f"{reason}; byte {bit // 8} had a flipped bit"
        except HeaderError:
            head[bit // 8] ^= 1 << bit % 8
    if newer:
        raise NewerVersionError(reason, 8)
    return None, reason


def find_frames(data: bytes, start: Position | None) -> tuple[list[Frame], list[Gap]]:
    """Every sound frame of a log behind `start`, by sequence; and what is between them.

    Args:
        data: The whole file.
        start: The position before its first frame; None if the header cannot be read.
    """
    if start is None:
        return _Search(data, Position(0, 0, -1, 0)).run("the header of the log is damaged", is_joined=False)
    run = read_frames(data[start.offset :], start)
    frames = list(_placed(run.payloads, start))
    if run.reason is None:
        return frames, []
    found, gaps = _Search(data, run.end).run(run.reason)
    return frames + found, gaps


def _placed(payloads: list[Payload], start: Position) -> Iterator[Frame]:
    at = start.offset
    for sequence, payload in enumerate(payloads, start.sequence + 1):
        end = at + FRAME_BYTES_MIN + len(payload)
        yield Frame(sequence, payload, at, end)
        at = end


_Found = tuple[Frame, int, Gap | None]
"""A frame, its crc, and what stands between it and the one before."""


class _GaveUpError(Exception):
    """Too much looks like a frame."""


class _Search:
    """The walk along the sequences, from the place where reading in order came to an end."""

    def __init__(self, data: bytes, after: Position) -> None:
        self._view = memoryview(data)
        self._after = after
        self._budget = _SEARCH_FACTOR * len(data)
        self._places: dict[int, list[int]] = {}
        self._foreign: set[int] = set()
        for match in _FRAME_LIKE.finditer(data, after.offset):
            at = match.start()
            length, _, sequence = FRAME.unpack_from(data, at)
            if sequence > after.sequence and at + FRAME_BYTES_MIN + length <= len(data):
                self._places.setdefault(sequence, []).append(at)

    def run(self, reason: str, *, is_joined: bool = True) -> tuple[list[Frame], list[Gap]]:
        """All frames and gaps behind the place where the search begins, where `reason` is what is wrong."""
        frames: list[Frame] = []
        gaps: list[Gap] = []
        after = self._after
        has_given_up = False
        try:
            while True:
                found = self._joined(after) if is_joined else None
                found = found or self._behind_gap(after, reason if not frames else None)
                if found is None:
                    break
                frame, crc, gap = found
                frames.append(frame)
                gaps += [gap] if gap is not None else []
                after, is_joined = Position(0, frame.end, frame.sequence, crc), True
        except _GaveUpError:
            has_given_up = True
            reason = "so much in it looks like frames that the search was given up"
        end = max([after.offset, *(frame.end for frame in frames)])
        if end < len(self._view):
            reason = reason if has_given_up or not frames else self._flaw(end, after.sequence + 1)
            gaps.append(Gap(after.sequence, None, end, len(self._view), reason))
        return frames, gaps

    def _joined(self, after: Position) -> _Found | None:
        """The frame that the crc before it proves, wherever it stands."""
        for at in self._places.get(after.sequence + 1, ()):
            frame, summed = self._frame(at), self._sum(at, after.crc)
            if summed == self._crc(frame.end):
                gap = None if at == after.offset else self._gap(after, frame)
                return frame, summed, gap
            if self._is_seed(summed, frame.sequence + 1):
                reason = "the crc is wrong; the frame after it tells the right one"
                return frame, summed, Gap(after.sequence, frame.sequence, frame.end - CRC_BYTES, frame.end, reason)
        return self._mended(after)

    def _is_seed(self, crc: int, sequence: int) -> bool:
        """Whether a frame with a sequence follows from a crc."""
        places = self._places.get(sequence, ())
        return any(self._sum(at, crc) == self._crc(self._frame(at).end) for at in places)

    def _mended(self, after: Position) -> _Found | None:
        """The frame that should stand here, if one flipped bit is all that is wrong with it."""
        at = after.offset
        for bit in range(8 * min(len(self._view) - at, _BYTES_MENDED)):
            data = self._flipped(at, bit)
            if data is None:
                break
            run = read_frames(data, after, last=after.sequence + 1)
            if run.payloads:
                frame = Frame(run.end.sequence, run.payloads[0], at, run.end.offset)
                reason = f"one bit of byte {at + bit // 8:,} was flipped, and is flipped back"
                return frame, run.end.crc, Gap(after.sequence, frame.sequence, at, frame.end, reason)
        return None

    def _flipped(self, at: int, bit: int) -> bytes | None:
        """The frame at a place with one bit the other way; None if it is shorter than that."""
        head = bytearray(self._view[at : at + FRAME.size])
        if bit < 8 * len(head):
            head[bit // 8] ^= 1 << bit % 8
        length = FRAME.unpack_from(head)[0] if len(head) == FRAME.size else 0
        data = bytearray(self._view[at : at + FRAME_BYTES_MIN + min(length, _BYTES_MENDED)])
        if bit // 8 >= len(data):
            return None
        data[bit // 8] ^= 1 << bit % 8
        return bytes(data)

    def _behind_gap(self, after: Position, reason: str | None) -> _Found | None:
        """The next frame that the bytes before it prove, unless it is surely none of this log.

        The next frame of this log is joined to the last one. One with its sequence that is not, is of another log; and
        so are those that follow from it.
        """
        for sequence in sorted(one for one in self._places if one > after.sequence):
            for at in self._places[sequence]:
                frame = self._frame(at)
                if at < CRC_BYTES or self._sum(at, self._crc(at)) != self._crc(frame.end):
                    continue
                if sequence > after.sequence + 1 and at not in self._foreign:
                    return frame, self._crc(frame.end), self._gap(after, frame, reason)
                self._foreign.add(frame.end)
        return None

    def _gap(self, after: Position, frame: Frame, reason: str | None = None) -> Gap:
        start, end = sorted((after.offset, frame.offset))
        return Gap(after.sequence, frame.sequence, start, end, reason or self._flaw(after.offset, after.sequence + 1))

    def _frame(self, at: int) -> Frame:
        length, _, sequence = FRAME.unpack_from(self._view, at)
        end = at + FRAME.size + length
        return Frame(sequence, self._view[at + FRAME.size : end], at, end + CRC_BYTES)

    def _sum(self, at: int, seed: int) -> int:
        """The crc that the frame at a place should have."""
        end = at + FRAME.size + FRAME.unpack_from(self._view, at)[0]
        self._budget -= end - at
        if self._budget < 0:
            raise _GaveUpError
        return crc32(self._view[at:end], seed)

    def _crc(self, end: int) -> int:
        crc: int = CRC.unpack_from(self._view, end - CRC_BYTES)[0]
        return crc

    def _flaw(self, at: int, sequence: int) -> str:
        """What is wrong with the bytes where a frame should stand."""
        reason = read_frames(bytes(self._view[at:]), Position(0, at, sequence - 1, 0), last=sequence).reason
        return reason or "no frame of this log"
