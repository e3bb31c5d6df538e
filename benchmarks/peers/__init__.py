"""Who is measured, in the order in which tables list them."""

from benchmarks.peers.base import Peer
from benchmarks.peers.dicts import DiskCache, Shelve, ShelveSqlite, SqliteDict, TinyDb
from benchmarks.peers.engines import Lmdb, LmdbSync, RocksDb, Sqlite, SqliteFull
from benchmarks.peers.floors import Bare, GroupCommit, InPlace, OnDisk, OneFunction
from benchmarks.peers.local import Dict, Microdb, MicrodbPower
from benchmarks.peers.servers import Manager, Redis, RedisAlways, Ultra

__all__ = ["PEERS", "Peer"]

PEERS: tuple[Peer, ...] = (
    Microdb(),
    Dict(),
    Bare(),
    OneFunction(),
    Lmdb(),
    Sqlite(),
    RocksDb(),
    Ultra(),
    DiskCache(),
    SqliteDict(),
    Shelve(),
    ShelveSqlite(),
    Redis(),
    Manager(),
    TinyDb(),
    MicrodbPower(),
    OnDisk(),
    InPlace(),
    GroupCommit(),
    LmdbSync(),
    SqliteFull(),
    RedisAlways(),
)
