"""Values to the bytes of a log. Pure. The reader is `wal.reader`; both share `wal.format` and nothing else."""

import secrets
from collections.abc import Sequence
from typing import Final
from zlib import crc32

from microdb.wal.codec import encode_names
from microdb.wal.format import (
    AFTER_FAILURE,
    CRC,
    FRAME,
    LOG_HEADER,
    MAGIC,
    SALT_BYTES,
    VERSION,
    LogHeader,
    Payload,
    Position,
)

__all__ = ["log_header", "write_frame", "write_frames"]

_new: Final = tuple.__new__
_frame: Final = FRAME.pack
_crc: Final = CRC.pack


def log_header(
    *,
    generation: int,
    boot_id: bytes,
    base_sequence: int,
    snapshot_hash: bytes,
    partition_keys: tuple[str, ...],
    after_failure: bool = False,
) -> tuple[bytes, LogHeader]:
    """The bytes of a new log's header, with a fresh salt, and what they say."""
    salt = secrets.token_bytes(SALT_BYTES)
    names = encode_names(partition_keys)
    flags = AFTER_FAILURE if after_failure else 0
    fixed = LOG_HEADER.pack(MAGIC, VERSION, flags, generation, salt, boot_id, base_sequence, snapshot_hash, len(names))
    crc = crc32(fixed + names)
    data = fixed + names + CRC.pack(crc)
    return data, LogHeader(
        generation, salt, boot_id, base_sequence, snapshot_hash, partition_keys, after_failure, len(data), crc
    )


def write_frame(payload: Payload, after: Position, flags: int) -> tuple[bytes, Position]:
    """As `write_frames` of one payload, in two thirds of the time."""
    generation, offset, sequence, crc = after
    sequence += 1
    frame = _frame(len(payload), flags, sequence) + payload
    crc = crc32(frame, crc)
    data = frame + _crc(crc)
    # As `Position(…)`, in half the time.
    return data, _new(Position, (generation, offset + len(data), sequence, crc))


def write_frames(payloads: Sequence[Payload], after: Position, *, flags: int = 0) -> tuple[bytes, Position]:
    """The bytes of one frame for each payload, and the position behind them. Only the first frame bears the flags."""
    if len(payloads) == 1:
        return write_frame(payloads[0], after, flags)
    generation, offset, sequence, crc = after
    frames: list[bytes] = []
    for payload in payloads:
        sequence += 1
        frame = _frame(len(payload), flags, sequence) + payload
        crc = crc32(frame, crc)
        frames += frame, _crc(crc)
        flags = 0
    data = b"".join(frames)
    return data, _new(Position, (generation, offset + len(data), sequence, crc))
