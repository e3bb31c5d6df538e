"""microdb itself, and the limit that nothing can beat: a plain dict."""

import os
from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import ClassVar

import microdb
from benchmarks.data import Key, Record
from benchmarks.peers.base import Peer, Store

__all__ = ["Dict", "DictStore", "Microdb", "MicrodbPower"]


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


class DictStore(Store):
    """A dict that copies in and out."""

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
        return DictStore(fields)
