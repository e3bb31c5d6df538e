"""What people take who want a dict that stays: diskcache, sqlitedict, tinydb, shelve."""

import os
import shelve
import sys
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from benchmarks.data import Key, Record
from benchmarks.peers.base import Peer, Store, not_installed

__all__ = ["DiskCache", "Shelve", "ShelveSqlite", "SqliteDict", "TinyDb"]


class _DiskCacheStore(Store):
    def __init__(self, folder: str, fields: tuple[str, ...]) -> None:
        import diskcache

        self._fields = fields
        self._cache = diskcache.Cache(os.path.join(folder, "cache"), eviction_policy="none")

    def get(self, key: Key) -> Record:
        return self._cache["\0".join(key)]

    def put(self, record: Record) -> None:
        self._cache["\0".join([record[field] for field in self._fields])] = record

    def put_many(self, records: Sequence[Record]) -> None:
        with self._cache.transact():
            self.write(records)

    def count(self) -> int:
        return len(self._cache)

    def close(self) -> None:
        self._cache.close()

    def read(self, keys: Iterable[Key]) -> None:
        cache = self._cache
        for key in keys:
            cache["\0".join(key)]


class DiskCache(Peer):
    """diskcache as it comes, without eviction."""

    name: ClassVar[str] = "diskcache"
    is_shared: ClassVar[bool] = True

    def missing(self) -> str | None:
        return not_installed("diskcache", "diskcache")

    def open(self, folder: str, fields: tuple[str, ...]) -> Store:
        return _DiskCacheStore(folder, fields)


class _MappingStore(Store):
    """Over any mapping from str to a record that pickles it."""

    def __init__(self, mapping: Any, fields: tuple[str, ...]) -> None:
        self.mapping = mapping
        self.fields = fields

    def get(self, key: Key) -> Record:
        return self.mapping["\0".join(key)]

    def put(self, record: Record) -> None:
        self.mapping["\0".join([record[field] for field in self.fields])] = record

    def put_many(self, records: Sequence[Record]) -> None:
        self.mapping.update({"\0".join([record[field] for field in self.fields]): record for record in records})

    def count(self) -> int:
        return len(self.mapping)

    def close(self) -> None:
        self.mapping.close()


class SqliteDict(Peer):
    """sqlitedict with autocommit, so that others see a write when it returns."""

    name: ClassVar[str] = "sqlitedict"
    records_max: ClassVar[int] = 200_000

    def missing(self) -> str | None:
        return not_installed("sqlitedict", "sqlitedict")

    def open(self, folder: str, fields: tuple[str, ...]) -> Store:
        import sqlitedict

        path = os.path.join(folder, "sqlitedict.db")
        return _MappingStore(sqlitedict.SqliteDict(path, autocommit=True, journal_mode="WAL"), fields)


class _TinyStore(Store):
    def __init__(self, folder: str, fields: tuple[str, ...]) -> None:
        import tinydb

        self._fields = fields
        self._tiny = tinydb.TinyDB(os.path.join(folder, "tiny.json"))
        self._query = tinydb.Query().fragment

    def get(self, key: Key) -> Record:
        return dict(self._tiny.get(self._query(dict(zip(self._fields, key, strict=True)))))

    def put(self, record: Record) -> None:
        self._tiny.upsert(record, self._query({field: record[field] for field in self._fields}))

    def put_many(self, records: Sequence[Record]) -> None:
        self._tiny.insert_multiple(records)

    def count(self) -> int:
        return len(self._tiny)

    def close(self) -> None:
        self._tiny.close()


class TinyDb(Peer):
    """TinyDB as it comes: it reads its whole file for each operation, and writes it for each change."""

    name: ClassVar[str] = "tinydb"
    is_threaded: ClassVar[bool] = False
    records_max: ClassVar[int] = 1_000

    def missing(self) -> str | None:
        return not_installed("tinydb", "tinydb")

    def open(self, folder: str, fields: tuple[str, ...]) -> Store:
        return _TinyStore(folder, fields)


class Shelve(Peer):
    """shelve over the dbm that this Python picks."""

    name: ClassVar[str] = "shelve"
    is_threaded: ClassVar[bool] = False
    records_max: ClassVar[int] = 20_000

    def open(self, folder: str, fields: tuple[str, ...]) -> Store:
        return _MappingStore(shelve.open(os.path.join(folder, "shelf")), fields)


class ShelveSqlite(Peer):
    """shelve over dbm.sqlite3."""

    name: ClassVar[str] = "shelve, dbm.sqlite3"
    is_threaded: ClassVar[bool] = False
    records_max: ClassVar[int] = 20_000

    def missing(self) -> str | None:
        return None if sys.version_info >= (3, 13) else "dbm.sqlite3 came with Python 3.13: run it with that"

    def open(self, folder: str, fields: tuple[str, ...]) -> Store:
        import dbm.sqlite3

        database: Any = dbm.sqlite3.open(os.path.join(folder, "dbm.sqlite3"), "c")  # noqa: SIM115 - Its shelf closes it.
        return _MappingStore(shelve.Shelf(database), fields)
