"""How quick a write in Python could be: loops that do what a write has to do, and nothing to be called a store.

They show what is out of reach. None is a peer: what they write nobody reads.
"""

import fcntl
import mmap
import os
import struct
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import ClassVar, Final
from zlib import crc32

import msgpack

from benchmarks.data import Record
from benchmarks.peers.base import Peer, Store
from benchmarks.peers.local import DictStore

__all__ = ["CRC", "FLAT", "HEADER", "Bare", "GroupCommit", "InPlace", "OnDisk", "OneFunction"]

_ROOM_BYTES: Final = 16 << 20
_PAGE_BYTES: Final = 4_096
FLAT: Final = frozenset({type(None), bool, int, float, str, bytes})
_STR: Final = frozenset({str})
HEADER: Final = struct.Struct("<IBQ")
CRC: Final = struct.Struct("<I")
_LOCK: Final = fcntl.LOCK_EX | fcntl.LOCK_NB
_HEAD, _DIRTY, _POISONED, _OWNER, _DURABLE, _WAITING, _LAST, _SEEN = range(8, 16)


class _Floor(DictStore):
    """A dict, and a file behind it."""

    def __init__(self, folder: str, fields: tuple[str, ...]) -> None:
        super().__init__(fields)
        self._file = self._open(folder, "log")
        self._end = 0

    def _open(self, folder: str, what: str) -> int:
        return os.open(os.path.join(folder, f"{type(self).__name__}.{what}"), os.O_RDWR | os.O_CREAT)

    def write(self, records: Iterable[Record]) -> None:
        for record in records:
            self.put(record)

    def put_many(self, records: Sequence[Record]) -> None:
        DictStore.write(self, records)

    def close(self) -> None:
        os.close(self._file)


class _BareStore(_Floor):
    def __init__(self, folder: str, fields: tuple[str, ...]) -> None:
        super().__init__(folder, fields)
        self._lock_file = self._open(folder, "lock")
        page = self._open(folder, "page")
        os.ftruncate(page, _PAGE_BYTES)
        self._words = memoryview(mmap.mmap(page, _PAGE_BYTES)).cast("Q")
        os.close(page)
        self._pack = msgpack.Packer(strict_types=True).pack
        self._field = fields[0]
        self._sequence = self._chain = 0

    def put(self, record: Record) -> None:
        copy = record.copy()
        payload = self._pack([copy])
        fcntl.flock(self._lock_file, _LOCK)
        sequence = self._sequence + 1
        frame = HEADER.pack(len(payload), 0, sequence) + payload
        chain = crc32(frame, self._chain)
        data = frame + CRC.pack(chain)
        end = self._end
        os.pwrite(self._file, data, end)
        self._end = self._words[_HEAD] = end + len(data)
        self._sequence, self._chain = sequence, chain
        self.records[copy[self._field],] = copy
        fcntl.flock(self._lock_file, fcntl.LOCK_UN)

    def close(self) -> None:
        super().close()
        os.close(self._lock_file)


class _OneFunctionStore(_BareStore):
    """As the bare loop, with what makes such a write safe in `microdb`: nothing left out, nothing in a function.

    That is: names and values of types that can be stored, and a key that can be looked up; a process that was forked;
    threads of its own process; the owner of the lock; whether another has written, died within a write, or seen a disk
    fail; whether the files are still there, and the log ends where it did; a page that tells of the write before it is
    made; an error, or an interrupt, at any place; a reader in another thread; somebody who sleeps until there is news.
    """

    def __init__(self, folder: str, fields: tuple[str, ...]) -> None:
        super().__init__(folder, fields)
        self._packers = [self._pack]
        self._pid = os.getpid()
        self._threads, self._closing, self._readers = threading.RLock(), threading.RLock(), threading.RLock()
        self._waiting: deque[object] = deque()
        self._look_at_s = float("inf")
        self._writing: object = None
        self._position = (1, 0, 0, 0)
        self._applied = 0
        self._full = 1 << 36
        self._auto_save = 1 << 30

    def put(self, record: Record) -> None:  # noqa: C901, PLR0915  # One function is the point.
        if type(record) is not dict:
            raise TypeError("no record")
        copy = record.copy()
        if not _STR.issuperset(map(type, copy)) or not FLAT.issuperset(map(type, copy.values())):
            raise TypeError("to be looked at closer")
        key = (copy[self._field],)
        if not FLAT.issuperset(map(type, key)):
            raise TypeError("to be looked at closer")
        pack = self._packers.pop()
        payload = pack([copy])
        self._packers.append(pack)
        words, threads, is_awaited = self._words, self._threads, False
        head = words[_HEAD]
        if self._pid != os.getpid() or self._waiting or head != self._applied:
            raise RuntimeError("not alone")
        try:
            threads.acquire()
            try:
                fcntl.flock(self._lock_file, _LOCK)
            except BlockingIOError:
                threads.release()
                raise
            words[_OWNER] = self._pid
            self._writing = payload
            with self._closing:
                before = self._position
                generation, offset, sequence, chain = before
                if words[_HEAD] != offset or words[_DIRTY] or words[_POISONED] or time.monotonic() > self._look_at_s:
                    raise RuntimeError("not alone")
                sequence += 1
                frame = HEADER.pack(len(payload), 1 if words[_DURABLE] == offset + 1 else 0, sequence) + payload
                chain = crc32(frame, chain)
                data = frame + CRC.pack(chain)
                end = offset + len(data)
                if end > self._full or os.lseek(self._file, 0, os.SEEK_END) != offset:
                    raise RuntimeError("not alone")
                try:
                    words[_DIRTY] = self._pid
                    if os.pwrite(self._file, data, offset) != len(data):
                        raise RuntimeError("not all of it")  # noqa: TRY301
                    words[_LAST] = offset
                    words[_HEAD] = end
                    words[_DIRTY] = 0
                except BaseException:
                    os.ftruncate(self._file, offset)
                    words[_DIRTY] = 0
                    raise
                is_awaited = words[_WAITING] > head
                with self._readers:
                    if self._position is before:
                        self.records[key] = copy
                        self._position = (generation, end, sequence, chain)
                        self._applied = end
                        words[_SEEN] = sequence
        finally:
            self._writing = None
            fcntl.flock(self._lock_file, fcntl.LOCK_UN)
            threads.release()
        if is_awaited or end > self._auto_save:
            raise RuntimeError("not alone")


class _DiskStore(_Floor):
    """What a write must cost at least that is on the disk when it returns."""

    room_bytes: ClassVar[int] = 0

    def __init__(self, folder: str, fields: tuple[str, ...]) -> None:
        super().__init__(folder, fields)
        os.pwrite(self._file, bytes(self.room_bytes), 0)
        os.fsync(self._file)

    def put(self, record: Record) -> None:
        data = msgpack.packb(record)
        if self.room_bytes and self._end + len(data) > self.room_bytes:
            self._end = 0
        os.pwrite(self._file, data, self._end)
        os.fdatasync(self._file)
        self._end += len(data)
        DictStore.put(self, record)


class _InPlaceStore(_DiskStore):
    room_bytes: ClassVar[int] = _ROOM_BYTES


class _Turn:
    """A record on its way to the disk, and what its thread sleeps on."""

    __slots__ = ("data", "is_done", "lock", "record")

    def __init__(self, record: Record) -> None:
        self.record = record
        self.data: bytes = msgpack.packb(record)
        self.is_done = False
        self.lock = threading.Lock()
        self.lock.acquire()


class _GroupStore(_Floor):
    def __init__(self, folder: str, fields: tuple[str, ...]) -> None:
        super().__init__(folder, fields)
        self._guard = threading.Lock()
        self._queue: list[_Turn] = []
        self._is_led = False

    def put(self, record: Record) -> None:
        mine = _Turn(record)
        with self._guard:
            self._queue.append(mine)
            leads, self._is_led = not self._is_led, True
        if not leads:
            mine.lock.acquire()
        if not mine.is_done:
            self._lead(mine)

    def _lead(self, mine: _Turn) -> None:
        with self._guard:
            group, self._queue = self._queue, []
        data = b"".join([turn.data for turn in group])
        os.pwrite(self._file, data, self._end)
        os.fdatasync(self._file)
        self._end += len(data)
        for turn in group:
            DictStore.put(self, turn.record)
            turn.is_done = True
            if turn is not mine:
                turn.lock.release()
        with self._guard:
            if self._queue:
                self._queue[0].lock.release()
            else:
                self._is_led = False


class _FloorPeer(Peer):
    """What all of them say of themselves."""

    is_floor: ClassVar[bool] = True
    is_threaded: ClassVar[bool] = False
    store: ClassVar[type[_Floor]]

    def open(self, folder: str, fields: tuple[str, ...]) -> Store:
        return self.store(folder, fields)


class Bare(_FloorPeer):
    """Copy, pack, lock, frame, write, publish, store into a dict, unlock, unchecked: less no shared log can do."""

    name: ClassVar[str] = "floor: unchecked"
    store = _BareStore


class OneFunction(_FloorPeer):
    """The same with all the checks of a write in microdb, in one function: as quick as Python can be with these."""

    name: ClassVar[str] = "floor: one function"
    store = _OneFunctionStore


class OnDisk(_FloorPeer):
    """A bare loop of packing, `pwrite` and `fdatasync`: the floor under every durable write."""

    name: ClassVar[str] = "pwrite + fdatasync"
    is_durable: ClassVar[bool] = True
    store = _DiskStore


class InPlace(_FloorPeer):
    """The same into a file that has its length already: the file system has nothing to note down but the data."""

    name: ClassVar[str] = "pwrite + fdatasync, in place"
    is_durable: ClassVar[bool] = True
    store = _InPlaceStore


class GroupCommit(_FloorPeer):
    """A bare group commit: who comes while another waits for the disk is written along with the next."""

    name: ClassVar[str] = "floor: group commit"
    is_durable: ClassVar[bool] = True
    is_threaded: ClassVar[bool] = True
    store = _GroupStore
