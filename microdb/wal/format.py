"""The byte layout of a log, once. Little-endian throughout.

    log header                                          frame
    offset  size  field                                 offset  size  field
    0       8     magic, b"microdbL"                    0       4     length of the payload, n
    8       4     version, 1                            4       1     flags
    12      4     flags: 1 or 0, see AFTER_FAILURE      5       8     sequence
    16      8     generation                            13      n     payload: one msgpack array of changes
    24      8     salt, random                          13 + n  4     crc
    32      16    boot id of the machine's run
    48      8     base sequence: of the change before the first frame
    56      16    hash of the snapshot that the log follows; zeros where there is none
    72      4     length of the partition keys, k
    76      k     partition keys: one msgpack array of str
    76 + k  4     crc

A header is valid if, in this order: the magic is right; the version and the flags are known; the crc is the CRC-32 of
all before it.

A frame is valid if: its length is at most PAYLOAD_BYTES_MAX and ends within the file; its flags are known; its sequence
is that of the frame before it plus one; its crc is the CRC-32 of all of it before the crc, seeded with the crc before
it. The first seed is the crc of the log header, whose salt is random, so no frame of another log or generation passes.
As the seed stands in the four bytes before a frame, a frame can be checked without its predecessors.
"""

import struct
from typing import Final, NamedTuple

from microdb.errors import shown

__all__ = [
    "AFTER_FAILURE",
    "BASE_BYTES",
    "CRC",
    "CRC_BYTES",
    "DURABLE_BEFORE",
    "FLAGS_KNOWN",
    "FRAME",
    "FRAME_BYTES_MIN",
    "GENERATION_MAX",
    "HASH_BYTES",
    "KEYS_BYTES_MAX",
    "LOG_HEADER",
    "MAGIC",
    "NO_SNAPSHOT",
    "OFFSET_BITS",
    "OFFSET_MAX",
    "PAYLOAD_BYTES_MAX",
    "SALT_BYTES",
    "SEQUENCE_MAX",
    "VERSION",
    "LogHeader",
    "Payload",
    "Position",
    "head_of",
    "position_of",
    "split_head",
]

Payload = bytes | memoryview

MAGIC: Final = b"microdbL"
VERSION: Final = 1

LOG_HEADER: Final = struct.Struct("<8sIIQ8s16sQ16sI")
BASE_BYTES: Final = 76
FRAME: Final = struct.Struct("<IBQ")
CRC: Final = struct.Struct("<I")
CRC_BYTES: Final = 4
FRAME_BYTES_MIN: Final = 17
"""A frame's bytes besides its payload."""

SALT_BYTES: Final = 8
HASH_BYTES: Final = 16
NO_SNAPSHOT: Final = bytes(HASH_BYTES)

AFTER_FAILURE: Final = 1
"""Flag of a log: an fsync of the one before failed, which may so end before the sequence with which this one begins."""

DURABLE_BEFORE: Final = 1
"""Flag: when this frame was written, every byte before it had been fsynced."""
FLAGS_KNOWN: Final = DURABLE_BEFORE

KEYS_BYTES_MAX: Final = 1 << 16
PAYLOAD_BYTES_MAX: Final = 1 << 28
"""256 MiB: the largest atomic batch. Checked before a write, and before memory is asked for a read."""

OFFSET_BITS: Final = 36
GENERATION_MAX: Final = (1 << 64 - OFFSET_BITS) - 1
"""A save a second for eight years."""
SEQUENCE_MAX: Final = (1 << 63) - 1
OFFSET_MAX: Final = (1 << OFFSET_BITS) - 1
"""64 GiB: no log grows longer. Automatic saves keep it far below."""

if (LOG_HEADER.size, FRAME.size + CRC.size, CRC.size) != (BASE_BYTES, FRAME_BYTES_MIN, CRC_BYTES):
    raise AssertionError("the structs do not match the layout above")


class LogHeader(NamedTuple):
    """What a log says of itself.

    Attributes:
        generation: Its number.
        salt: Random, so that no two logs share a crc chain.
        boot_id: The machine's run in which it was created.
        base_sequence: The sequence of the last change that the snapshot holds.
        snapshot_hash: Of the one snapshot that it follows; NO_SNAPSHOT where it follows none.
        partition_keys: The fields that make a key.
        after_failure: Whether an fsync of the log before it failed.
        end: Its length in bytes: where the first frame begins.
        crc: Its crc: the seed of the first frame.
    """

    generation: int
    salt: bytes
    boot_id: bytes
    base_sequence: int
    snapshot_hash: bytes
    partition_keys: tuple[str, ...]
    after_failure: bool
    end: int
    crc: int

    @property
    def start(self) -> "Position":
        """The position before the first frame."""
        return Position(self.generation, self.end, self.base_sequence, self.crc)


class Position(NamedTuple):
    """A place between two frames, and all that is needed to read on, or write on, from it.

    >>> Position(generation=2, offset=311, sequence=40, crc=7) < Position(2, 340, 41, 9)
    True

    Attributes:
        generation: Which log.
        offset: The byte where the next frame begins.
        sequence: Of the frame before.
        crc: Of the frame before: the seed of the next.
    """

    generation: int
    offset: int
    sequence: int
    crc: int

    @property
    def head(self) -> int:
        """The word that publishes everything up to here.

        >>> Position(generation=1, offset=100, sequence=2, crc=0).head == head_of(1, 100)
        True
        """
        return self.generation << OFFSET_BITS | self.offset  # Not by `head_of`: it is asked for in every write.


def position_of(given: object, argument: str) -> Position:
    """A position as a caller gives it: itself, or its four numbers, as JSON gives them back.

    >>> position_of([2, 311, 40, 7], "since")
    Position(generation=2, offset=311, sequence=40, crc=7)

    Raises:
        TypeError: It is neither; says so of the argument of this name.
    """
    if not isinstance(given, tuple | list) or len(given) != len(Position._fields) or not all(map(_is_word, given)):
        raise TypeError(
            f"{argument} is the position of an event, a watch, a view or a database, or its four numbers; "
            f"found {shown(given):.60}"
        )
    return Position._make(given)


def _is_word(number: object) -> bool:
    return type(number) is int and 0 <= number < 1 << 64


def head_of(generation: int, offset: int) -> int:
    """One word for a place in the logs: a single aligned store publishes it whole.

    >>> head_of(1, 100) == (1 << 36) + 100
    True
    """
    return generation << OFFSET_BITS | offset


def split_head(head: int) -> tuple[int, int]:
    """Generation and offset of a head.

    >>> split_head(head_of(7, 4096))
    (7, 4096)
    """
    return head >> OFFSET_BITS, head & OFFSET_MAX
