"""What needs something running beside it: Manager().dict(), Redis, a block of shared memory (UltraDict)."""

import contextlib
import multiprocessing as mp
import multiprocessing.managers
import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, Final

import msgpack

from benchmarks.data import DataSet, Key, Record
from benchmarks.peers.base import Peer, Store, encode_key, not_installed

__all__ = ["Manager", "Redis", "RedisAlways", "Ultra"]

_START_S: Final = 10.0
_AUTH: Final = b"benchmark"


class _ProxyStore(Store):
    """Over a mapping that copies what goes through it."""

    def __init__(self, mapping: Any, fields: tuple[str, ...]) -> None:
        self.mapping = mapping
        self.fields = fields

    def _key_of(self, record: Record) -> Key:
        return tuple([record[field] for field in self.fields])

    def get(self, key: Key) -> Record:
        return self.mapping[key]

    def put(self, record: Record) -> None:
        self.mapping[self._key_of(record)] = record

    def put_many(self, records: Sequence[Record]) -> None:
        self.mapping.update({self._key_of(record): record for record in records})

    def count(self) -> int:
        return len(self.mapping)

    def close(self) -> None:
        self.mapping = None


_shared: dict[Key, Record] = {}


def _shared_dict() -> dict[Key, Record]:
    return _shared


class _Manager(mp.managers.BaseManager):
    """A manager that others can reach by the name of its socket."""


_Manager.register("shared", _shared_dict, mp.managers.DictProxy)


class Manager(Peer):
    """A dict in the process of a multiprocessing manager, reached through its proxies."""

    name: ClassVar[str] = "Manager().dict()"
    is_shared: ClassVar[bool] = True
    records_max: ClassVar[int] = 200_000

    @contextlib.contextmanager
    def served(self, folder: str, data: DataSet) -> Iterator[None]:
        manager = _Manager(os.path.join(folder, "manager"), _AUTH, ctx=mp.get_context("spawn"))
        with manager:
            yield

    def open(self, folder: str, fields: tuple[str, ...]) -> Store:
        manager = _Manager(os.path.join(folder, "manager"), _AUTH)
        manager.connect()
        return _ProxyStore(manager.shared(), fields)


class _UltraStore(_ProxyStore):
    def close(self) -> None:
        self.mapping.close()

    def get(self, key: Key) -> Record:
        return self.mapping[key].copy()

    def read(self, keys: Iterable[Key]) -> None:
        mapping = self.mapping
        for key in keys:
            mapping[key].copy()


class Ultra(Peer):
    """UltraDict with the lock that processes started anew can share, and with room for every record."""

    name: ClassVar[str] = "UltraDict"
    is_shared: ClassVar[bool] = True
    records_max: ClassVar[int] = 20_000

    def missing(self) -> str | None:
        return not_installed("UltraDict", "UltraDict atomics")

    def _name(self, folder: str) -> str:
        return f"bench-{os.path.basename(folder)}"

    @contextlib.contextmanager
    def served(self, folder: str, data: DataSet) -> Iterator[None]:
        import UltraDict

        room = 64 * 1024 + 400 * max(1_000, len(data.records))
        block = UltraDict.UltraDict(
            name=self._name(folder), create=True, shared_lock=True, buffer_size=room, full_dump_size=4 * room
        )
        try:
            yield
        finally:
            block.unlink()

    def open(self, folder: str, fields: tuple[str, ...]) -> Store:
        import UltraDict

        return _UltraStore(UltraDict.UltraDict(name=self._name(folder), create=False, shared_lock=True), fields)


class _RedisStore(Store):
    def __init__(self, folder: str, fields: tuple[str, ...]) -> None:
        import redis

        self._fields = fields
        self._redis = redis.Redis(unix_socket_path=os.path.join(folder, "redis.sock"))

    def get(self, key: Key) -> Record:
        return msgpack.unpackb(self._redis.get(encode_key(key)))

    def put(self, record: Record) -> None:
        self._redis.set(encode_key([record[field] for field in self._fields]), msgpack.packb(record))

    def put_many(self, records: Sequence[Record]) -> None:
        fields, pack = self._fields, msgpack.Packer().pack
        self._redis.mset({encode_key([record[field] for field in fields]): pack(record) for record in records})

    def count(self) -> int:
        return self._redis.dbsize()

    def close(self) -> None:
        self._redis.close()


class Redis(Peer):
    """Redis over a Unix socket, its append-only file synced each second."""

    name: ClassVar[str] = "redis"
    is_shared: ClassVar[bool] = True
    _fsync: ClassVar[str] = "everysec"

    def missing(self) -> str | None:
        if shutil.which("redis-server") is None:
            return "no redis-server on the PATH: apt-get install redis-server"
        return not_installed("redis", "redis")

    @contextlib.contextmanager
    def served(self, folder: str, data: DataSet) -> Iterator[None]:
        options = ["--port", "0", "--unixsocket", os.path.join(folder, "redis.sock"), "--dir", folder, "--save", ""]
        options += ["--appendonly", "yes", "--appendfsync", self._fsync]
        with subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL) as server:
            try:
                _wait_for(folder)
                yield
            finally:
                server.terminate()

    def open(self, folder: str, fields: tuple[str, ...]) -> Store:
        return _RedisStore(folder, fields)


def _wait_for(folder: str) -> None:
    import redis

    until = time.monotonic() + _START_S
    while True:
        try:
            with redis.Redis(unix_socket_path=os.path.join(folder, "redis.sock")) as client:
                client.ping()
                return
        except redis.ConnectionError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)


class RedisAlways(Redis):
    """Redis, each write on the disk."""

    name: ClassVar[str] = "redis, always"
    is_durable: ClassVar[bool] = True
    _fsync: ClassVar[str] = "always"
