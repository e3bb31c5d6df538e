"""Embedded engines that hold bytes, with msgpack in front: LMDB, SQLite, RocksDB."""

import os
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from typing import ClassVar, Final

import msgpack

from benchmarks.data import Key, Record
from benchmarks.peers.base import Peer, Store, encode_key, not_installed

__all__ = ["Lmdb", "LmdbSync", "RocksDb", "Sqlite", "SqliteFull"]

_MAP_BYTES: Final = 8 << 30
_WAIT_S: Final = 60.0


class _LmdbStore(Store):
    def __init__(self, folder: str, fields: tuple[str, ...], *, sync: bool) -> None:
        import lmdb

        self._fields = fields
        self._env = lmdb.open(os.path.join(folder, "lmdb"), map_size=_MAP_BYTES, sync=sync, max_readers=512)

    def get(self, key: Key) -> Record:
        with self._env.begin(buffers=True) as transaction:
            return msgpack.unpackb(transaction.get(encode_key(key)))

    def put(self, record: Record) -> None:
        with self._env.begin(write=True) as transaction:
            transaction.put(encode_key([record[field] for field in self._fields]), msgpack.packb(record))

    def put_many(self, records: Sequence[Record]) -> None:
        fields, pack = self._fields, msgpack.Packer().pack
        pairs = [(encode_key([record[field] for field in fields]), pack(record)) for record in records]
        with self._env.begin(write=True) as transaction, transaction.cursor() as cursor:
            cursor.putmulti(pairs)

    def count(self) -> int:
        return self._env.stat()["entries"]

    def close(self) -> None:
        self._env.close()

    def read(self, keys: Iterable[Key]) -> None:
        begin, unpackb = self._env.begin, msgpack.unpackb
        for key in keys:
            with begin(buffers=True) as transaction:
                unpackb(transaction.get("\0".join(key).encode()))

    def write(self, records: Iterable[Record]) -> None:
        begin, packb, fields = self._env.begin, msgpack.packb, self._fields
        for record in records:
            with begin(write=True) as transaction:
                transaction.put("\0".join([record[field] for field in fields]).encode(), packb(record))


class Lmdb(Peer):
    """LMDB without fsync: it survives the death of a process, as microdb by default. A transaction for each read."""

    name: ClassVar[str] = "lmdb, sync off"
    is_shared: ClassVar[bool] = True

    def missing(self) -> str | None:
        return not_installed("lmdb", "lmdb")

    def open(self, folder: str, fields: tuple[str, ...]) -> Store:
        return _LmdbStore(folder, fields, sync=False)


class LmdbSync(Lmdb):
    """LMDB as it comes: each transaction on the disk."""

    name: ClassVar[str] = "lmdb, sync"
    is_durable: ClassVar[bool] = True

    def open(self, folder: str, fields: tuple[str, ...]) -> Store:
        return _LmdbStore(folder, fields, sync=True)


class _SqliteStore(Store):
    """A connection for each thread, as SQLite's users are told."""

    _UPSERT = "INSERT INTO records VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET record = excluded.record"
    _SELECT = "SELECT record FROM records WHERE key = ?"

    def __init__(self, folder: str, fields: tuple[str, ...], synchronous: str) -> None:
        self._path = os.path.join(folder, "sqlite.db")
        self._fields = fields
        self._synchronous = synchronous
        self._threads = threading.local()
        self._all: list[sqlite3.Connection] = []

    def _connection(self) -> sqlite3.Connection:
        try:
            return self._threads.connection
        except AttributeError:
            connection = sqlite3.connect(self._path, timeout=_WAIT_S, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            connection.execute("CREATE TABLE IF NOT EXISTS records (key TEXT PRIMARY KEY, record BLOB) WITHOUT ROWID")
            self._all.append(connection)
            self._threads.connection = connection
            return connection

    def get(self, key: Key) -> Record:
        return msgpack.unpackb(self._connection().execute(self._SELECT, ("\0".join(key),)).fetchone()[0])

    def put(self, record: Record) -> None:
        key = "\0".join([record[field] for field in self._fields])
        self._connection().execute(self._UPSERT, (key, msgpack.packb(record)))

    def put_many(self, records: Sequence[Record]) -> None:
        fields, pack = self._fields, msgpack.Packer().pack
        rows = [("\0".join([record[field] for field in fields]), pack(record)) for record in records]
        connection = self._connection()
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(self._UPSERT, rows)
        connection.execute("COMMIT")

    def count(self) -> int:
        return self._connection().execute("SELECT count(*) FROM records").fetchone()[0]

    def close(self) -> None:
        for connection in self._all:
            connection.close()

    def read(self, keys: Iterable[Key]) -> None:
        execute, unpackb, select = self._connection().execute, msgpack.unpackb, self._SELECT
        for key in keys:
            unpackb(execute(select, ("\0".join(key),)).fetchone()[0])

    def write(self, records: Iterable[Record]) -> None:
        execute, packb, upsert, fields = self._connection().execute, msgpack.packb, self._UPSERT, self._fields
        for record in records:
            execute(upsert, ("\0".join([record[field] for field in fields]), packb(record)))


class Sqlite(Peer):
    """SQLite in WAL mode; synchronous NORMAL is what its documentation recommends there."""

    name: ClassVar[str] = "sqlite, NORMAL"
    is_shared: ClassVar[bool] = True

    def open(self, folder: str, fields: tuple[str, ...]) -> Store:
        return _SqliteStore(folder, fields, "NORMAL")


class SqliteFull(Sqlite):
    """SQLite in WAL mode, each transaction on the disk."""

    name: ClassVar[str] = "sqlite, FULL"
    is_durable: ClassVar[bool] = True

    def open(self, folder: str, fields: tuple[str, ...]) -> Store:
        return _SqliteStore(folder, fields, "FULL")


class _RocksStore(Store):
    def __init__(self, folder: str, fields: tuple[str, ...]) -> None:
        import rocksdict

        path = os.path.join(folder, "rocks")
        self._fields = fields
        self._batch = lambda: rocksdict.WriteBatch(raw_mode=True)
        self._rocks = rocksdict.Rdict(path, options=rocksdict.Options(raw_mode=True))

    def get(self, key: Key) -> Record:
        return msgpack.unpackb(self._rocks[encode_key(key)])

    def put(self, record: Record) -> None:
        self._rocks[encode_key([record[field] for field in self._fields])] = msgpack.packb(record)

    def put_many(self, records: Sequence[Record]) -> None:
        batch, pack = self._batch(), msgpack.Packer().pack
        for record in records:
            batch.put(encode_key([record[field] for field in self._fields]), pack(record))
        self._rocks.write(batch)

    def count(self) -> int:
        return sum(1 for _ in self._rocks.keys())  # noqa: SIM118 - An Rdict has no __iter__.

    def close(self) -> None:
        self._rocks.close()

    def read(self, keys: Iterable[Key]) -> None:
        rocks, unpackb = self._rocks, msgpack.unpackb
        for key in keys:
            unpackb(rocks["\0".join(key).encode()])

    def write(self, records: Iterable[Record]) -> None:
        rocks, packb, fields = self._rocks, msgpack.packb, self._fields
        for record in records:
            rocks["\0".join([record[field] for field in fields]).encode()] = packb(record)


class RocksDb(Peer):
    """RocksDB by rocksdict. Only one process may open it."""

    name: ClassVar[str] = "rocksdict"

    def missing(self) -> str | None:
        return not_installed("rocksdict", "rocksdict")

    def open(self, folder: str, fields: tuple[str, ...]) -> Store:
        return _RocksStore(folder, fields)
