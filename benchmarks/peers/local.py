"""microdb itself, and the limits that nothing can beat: a plain dict, and a bare loop of `pwrite` and `fdatasync`."""

import os
from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import ClassVar, Final

import msgpack

import microdb
from benchmarks.data import Key, Record
from benchmarks.peers.base import Peer, Store

__all__ = ["Dict", "Floor", "FloorInPlace", "Microdb", "MicrodbPower"]

_ROOM_BYTES: Final = 16 << 20


class _MicrodbStore(Store):
    def __init__(self, folder: str, fields: tuple[str, ...], durability: microdb.database.Durability) -> None:
        self.mdb = microdb.MicroDB(os.path.join(folder, "mdb.json"), fields, durability=durability)
        self.get = self.mdb.__getitem__
        self.put = self.mdb.upsert

    def get(self, key: Key) -> Record:
        return self.mdb[key]

    def put(self, record: Record) -> None:
        self.mdb.upsert(record)

    def put_many(self, records: Sequence[Record]) -> None:
        self.mdb.upsert_many(records)

    def count(self) -> int:
        return len(self.mdb)

    def close(self) -> None:
        self.mdb.close()

    def read(self, keys: Iterable[Key]) -> None:
        mdb = self.mdb
        for key in keys:
            mdb[key]

    def write(self, records: Iterable[Record]) -> None:
        mdb = self.mdb
        for record in records:
            mdb.upsert(record)


class Microdb(Peer):
    """microdb as it comes."""

    name: ClassVar[str] = "microdb"
    is_shared: ClassVar[bool] = True

    def open(self, folder: str, fields: tuple[str, ...]) -> Store:
        return _MicrodbStore(folder, fields, "process")


class MicrodbPower(Peer):
    """microdb, each write on the disk."""

    name: ClassVar[str] = "microdb, power"
    is_shared: ClassVar[bool] = True
    is_durable: ClassVar[bool] = True

    def open(self, folder: str, fields: tuple[str, ...]) -> Store:
        return _MicrodbStore(folder, fields, "power")


class _DictStore(Store):
    def __init__(self, fields: tuple[str, ...]) -> None:
        self.records: dict[Key, Record] = {}
        self.fields = fields

    def get(self, key: Key) -> Record:
        return self.records[key].copy()

    def put(self, record: Record) -> None:
        self.records[tuple([record[field] for field in self.fields])] = record.copy()

    def put_many(self, records: Sequence[Record]) -> None:
        self.write(records)

    def count(self) -> int:
        return len(self.records)

    def close(self) -> None:
        self.records = {}

    def read(self, keys: Iterable[Key]) -> None:
        records = self.records
        for key in keys:
            records[key].copy()

    def write(self, records: Iterable[Record]) -> None:
        if len(self.fields) > 1:
            key_of = itemgetter(*self.fields)
            self.records.update((key_of(record), record.copy()) for record in records)
            return
        mine, (field,) = self.records, self.fields
        for record in records:
            mine[record[field],] = record.copy()


class Dict(Peer):
    """A plain dict, copying in and out, one level deep: the limit, which shares and keeps nothing."""

    name: ClassVar[str] = "dict"

    def open(self, folder: str, fields: tuple[str, ...]) -> Store:
        return _DictStore(fields)


class _FloorStore(_DictStore):
    """What a write must cost at least that is on the disk when it returns."""

    def __init__(self, folder: str, fields: tuple[str, ...], *, room_bytes: int = 0) -> None:
        super().__init__(fields)
        self._file = os.open(os.path.join(folder, "floor"), os.O_RDWR | os.O_CREAT)
        self._room_bytes = room_bytes
        self._end = 0
        os.pwrite(self._file, bytes(room_bytes), 0)
        os.fsync(self._file)

    def put(self, record: Record) -> None:
        data = msgpack.packb(record)
        if self._room_bytes and self._end + len(data) > self._room_bytes:
            self._end = 0
        os.pwrite(self._file, data, self._end)
        os.fdatasync(self._file)
        self._end += len(data)
        super().put(record)

    def write(self, records: Iterable[Record]) -> None:
        for record in records:
            self.put(record)

    def put_many(self, records: Sequence[Record]) -> None:
        super().write(records)

    def close(self) -> None:
        os.close(self._file)


class Floor(Peer):
    """A bare loop of packing, `pwrite` and `fdatasync`: the floor under every durable write."""

    name: ClassVar[str] = "pwrite + fdatasync"
    is_threaded: ClassVar[bool] = False
    is_durable: ClassVar[bool] = True

    def open(self, folder: str, fields: tuple[str, ...]) -> Store:
        return _FloorStore(folder, fields)


class FloorInPlace(Peer):
    """The same into a file that has its length already: the file system has nothing to note down but the data."""

    name: ClassVar[str] = "pwrite + fdatasync, in place"
    is_threaded: ClassVar[bool] = False
    is_durable: ClassVar[bool] = True

    def open(self, folder: str, fields: tuple[str, ...]) -> Store:
        return _FloorStore(folder, fields, room_bytes=_ROOM_BYTES)
