"""The header: one page that every process maps, and that says how far the log goes.

It is a hint about *how far*, never about *what*: each frame is checked by its own crc. All fields are native 8-byte
words; one aligned store publishes one of them whole. The page is written in full at creation and never truncated,
because a process that touches a mapped page without a block behind it is killed by the system.

    word   field
    0      magic, b"microdbH"
    1      version, 1
    8      head: generation << 36 | end of the log, in a cache line of its own
    16     dirty: pid of the process that is inside a write, or died inside one; else 0
    17     poisoned: the generation in which a write or an fsync failed; else 0
    18     owner: pid of the process that took the write lock last
    19     durable: every byte of the current log before this offset has been fsynced
    20-21  boot id of the run of the machine in which the page was last rebuilt
    22     inode of the page's own file, so that a copy is known as one
    23     expiring: one more than the last generation in whose log stands a record that expires; else 0
    24     repairs: dead owners' writes that were rolled back
    25     torn: tails that recovery cut
    26     saves
    27     waiting: a head at which somebody sleeps, or slept, until it moves on
    28-29  salt of the log of the present generation, at 28 + generation modulo 2, set before the head
    30     sealed: a head below which everything was published and fsynced
    31     seal: crc-32 of that word, of word 22 and of its salt, plus 2**32
    32     lock_waits: how often a process had to wait for the write lock
    33     conflicts: upserts that found another record than they expected
    34     save_us: duration of the last save in µs; 0 before the first
    35     last: where the last frame of the current log begins, 0 before the first write to it; only a hint
    64-511 slots of two words, one for each open handle that can write: its pid, or 0 where the slot is free; and the
           sequence up to which it has read the log

The page is never fsynced: after a power cut it may be any mixture, word by word, of all that it ever was. The seal
tells whether the few words that recovery then asks belong together.
"""

import os
import struct
import sys
from collections.abc import Collection
from typing import Final
from zlib import crc32

from microdb.errors import CorruptError, VersionError
from microdb.files import File
from microdb.wal.format import Position, head_of, split_head

__all__ = [
    "CONFLICTS",
    "DIRTY",
    "DURABLE",
    "EXPIRING",
    "HEAD",
    "HEADER_BYTES",
    "LAST",
    "LOCK_WAITS",
    "OWNER",
    "POISONED",
    "REPAIRS",
    "SAVES",
    "SAVE_US",
    "TORN",
    "WAITING",
    "Slot",
    "Words",
    "count",
    "create",
    "is_current",
    "open_words",
    "positions",
    "publish",
    "rebuild",
    "salt_of",
    "seal",
    "sealed",
]

Words = memoryview

HEADER_BYTES: Final = 4096
VERSION: Final = 1
MAGIC: Final = int.from_bytes(b"microdbH", sys.byteorder)

HEAD: Final = 8
DIRTY: Final = 16
POISONED: Final = 17
OWNER: Final = 18
DURABLE: Final = 19
_BOOT: Final = 20
_INODE: Final = 22
EXPIRING: Final = 23
_SALT: Final = 28
_SEALED: Final = 30
_SEAL: Final = 31
REPAIRS: Final = 24
TORN: Final = 25
SAVES: Final = 26
WAITING: Final = 27
LOCK_WAITS: Final = 32
CONFLICTS: Final = 33
SAVE_US: Final = 34
LAST: Final = 35
_SLOTS: Final = range(64, HEADER_BYTES // 8, 2)


def create(file: File) -> None:
    """Give a header file all its blocks, keeping what is in it. Only under the write lock, while alone."""
    is_whole = file.size() >= HEADER_BYTES
    file.write_at(file.read_at(0, HEADER_BYTES).ljust(HEADER_BYTES, b"\0"), 0)
    if not is_whole:
        file.sync()


def open_words(file: File, *, writable: bool) -> Words:
    """The words of the page.

    Raises:
        CorruptError: Something else has cut the page.
        VersionError: The page was made by a newer microdb.
    """
    size = file.size()
    if size < HEADER_BYTES:
        reason = f"the page has {size} of its {HEADER_BYTES} bytes; close all handles, and the next to open it mends it"
        raise CorruptError(file.path, reason, offset=size)
    words = file.map_words(HEADER_BYTES, writable=writable)
    if words[0] == MAGIC and words[1] > VERSION:
        reason = f"header version {words[1]}, this microdb knows {VERSION}; upgrade microdb"
        raise VersionError(file.path, reason, offset=8)
    return words


def is_current(words: Words, file: File, boot_id: bytes) -> bool:
    """Whether the page was rebuilt in this very file and in this run of the machine: then its head is exact."""
    return (
        (words[0], words[1]) == (MAGIC, VERSION)
        and any(boot_id)
        and (words[_BOOT], words[_BOOT + 1]) == struct.unpack("=QQ", boot_id)
        and words[_INODE] == file.identity().inode
    )


def seal(words: Words, generation: int, offset: int) -> None:
    """Note that a log was published and fsynced up to an offset. Only under the write lock."""
    words[_SEALED] = head_of(generation, offset)
    words[_SEAL] = _seal_of(words)


def sealed(words: Words, file: File) -> tuple[int, int] | None:
    """Generation and offset of the last `seal`; None if it was made in another file, or is not whole."""
    if words[_SEAL] != _seal_of(words) or words[_INODE] != file.identity().inode:
        return None
    return split_head(words[_SEALED])


def _seal_of(words: Words) -> int:
    generation, _ = split_head(words[_SEALED])
    return 1 << 32 | crc32(struct.pack("=QQ", words[_SEALED], words[_INODE]) + salt_of(words, generation))


def salt_of(words: Words, generation: int) -> bytes:
    """The salt of the log of the generation in the head, or in the sealed one."""
    return struct.pack("=Q", words[_SALT + generation % 2])


def count(words: Words, word: int) -> None:
    """Add one to a counter."""
    words[word] = (words[word] + 1) % (1 << 64)


def publish(words: Words, generation: int, offset: int, salt: bytes) -> None:
    """Make another log the current one: with one store of the head, to which its salt then belongs."""
    (words[_SALT + generation % 2],) = struct.unpack("=Q", salt)
    words[LAST] = 0
    words[HEAD] = head_of(generation, offset)


def rebuild(
    words: Words, file: File, boot_id: bytes, *, end: Position, salt: bytes, poisoned: int, expires: bool
) -> None:
    """Make the page say what recovery found. Only under the write lock, while nobody is present who writes.

    A reader may follow it unseen: what it must know of the new head, as whether records expire, stands there first.
    """
    words[1] = VERSION
    words[0] = MAGIC
    words[DIRTY] = 0
    words[POISONED] = poisoned
    for slot in _SLOTS:
        if words[slot]:
            words[slot] = 0
    words[DURABLE] = 0
    words[WAITING] = 0
    words[EXPIRING] = end.generation + 1 if expires else 0
    publish(words, end.generation, end.offset, salt)
    words[_BOOT], words[_BOOT + 1] = struct.unpack("=QQ", boot_id)
    words[_INODE] = file.identity().inode


class Slot:
    """Where one handle tells how far it has come, for `positions`, from `claim` to `free` or to the end of its life.

    Attributes:
        sequence: A store to ``sequence[0]`` tells. Before `claim`, and after `free`, it tells nobody.
    """

    _pid = 0
    _place: Words | None = None

    def __init__(self) -> None:
        self.sequence: Words = memoryview(bytearray(8)).cast("Q")

    def claim(self, words: Words, present: Collection[int]) -> None:
        """Take a free place in the page; if all are taken, one of the dead; else go without. Only under the write lock.

        Args:
            words: The page.
            present: The processes that had it open before; none where the system does not tell.
        """
        pid = os.getpid()
        pids = [words[slot] for slot in _SLOTS]
        is_full = 0 not in pids
        if present and (is_full or pid in pids):
            # Another process may have had this pid. Else the dead may rest: who is in another container looks dead.
            for place, slot in enumerate(_SLOTS):
                if pids[place] not in present and (is_full or pids[place] == pid):
                    words[slot] = pids[place] = 0
        if 0 in pids:
            slot = _SLOTS[pids.index(0)]
            # First of all, so that an interrupt leaves nothing behind.
            self._pid, self._place, self.sequence = pid, words[slot : slot + 1], words[slot + 1 : slot + 2]
            self.sequence[0] = 0
            self._place[0] = pid

    def free(self) -> None:
        """Give the place back, unless it is the parent's of this process."""
        place, self._place = self._place, None
        self.sequence = memoryview(bytearray(8)).cast("Q")
        if place is not None and place[0] == self._pid == os.getpid():
            place[0] = 0

    def __del__(self) -> None:
        self.free()


def positions(words: Words, pids: Collection[int]) -> dict[int, int]:
    """The sequence up to which each of these processes has read the log; of several handles the lowest."""
    found: dict[int, int] = {}
    for slot in _SLOTS:
        pid, sequence = words[slot], words[slot + 1]
        if pid in pids:
            found[pid] = min(sequence, found.get(pid, sequence))
    return dict(sorted(found.items()))
