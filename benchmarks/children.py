"""Measurements that need a fresh interpreter: opening, saving, replaying, memory.

``python -m benchmarks.children NAME ARGUMENT…`` prints what it cost, in seconds or bytes. Each one checks its work.
"""

import ctypes
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from benchmarks.data import Key, Record, synthetic

__all__ = ["CHILDREN"]

_FIELDS: Final = ("id",)


def open_microdb(path: str, size: int) -> float:
    """Open a database, be it by its snapshot or by its log."""
    import microdb

    begin = time.perf_counter()
    mdb = microdb.MicroDB(path, _FIELDS)
    took = time.perf_counter() - begin
    _check(len(mdb), mdb[synthetic(1, size - 1).keys[0]], size)
    mdb.close()
    return took


def load_json(path: str, size: int) -> float:
    """What a store on the standard library's json does: load the list, build the dict."""
    return _load(path, size, json.loads)


def load_msgspec(path: str, size: int) -> float:
    """The same by msgspec."""
    import msgspec

    return _load(path, size, msgspec.json.decode)


def load_orjson(path: str, size: int) -> float:
    """The same by orjson."""
    import orjson

    return _load(path, size, orjson.loads)


def _load(path: str, size: int, loads: Callable[[bytes], Any]) -> float:
    begin = time.perf_counter()
    with open(path, "rb") as file:
        records = {(record["id"],): record for record in loads(file.read())}
    took = time.perf_counter() - begin
    _check(len(records), records[synthetic(1, size - 1).keys[0]], size)
    return took


def replay_dict(path: str, size: int) -> float:
    """What replaying a log costs at least: unpack each change, store it in a dict. The bytes are there already."""
    import msgpack

    payloads = [msgpack.packb([record]) for record in synthetic(size).records]
    table: dict[Key, Record] = {}
    unpackb = msgpack.unpackb
    begin = time.perf_counter()
    for payload in payloads:
        for record in unpackb(payload):
            table[record["id"],] = record
    took = time.perf_counter() - begin
    _check(len(table), table[synthetic(1, size - 1).keys[0]], size)
    return took


def save_microdb(path: str, size: int) -> float:
    """Save, after a change."""
    import microdb

    with microdb.MicroDB(path, _FIELDS) as mdb:
        mdb.upsert(synthetic(1).records[0] | {"age": time.time_ns()})
        begin = time.perf_counter()
        mdb.save()
        took = time.perf_counter() - begin
        _check(len(mdb), mdb[synthetic(1, size - 1).keys[0]], size)
    _check_saved(path, size)
    return took


def save_json(path: str, size: int) -> float:
    """`json.dump` of the list, as most who keep a table in JSON do it: in place, without fsync."""
    records = synthetic(size).records
    begin = time.perf_counter()
    with open(f"{path}.json-dump", "w", encoding="utf-8") as file:
        json.dump(records, file)
    took = time.perf_counter() - begin
    _check_saved(f"{path}.json-dump", size)
    return took


def save_json_safely(path: str, size: int) -> float:
    """The same so that a crash leaves the old file or the new one: aside, fsync, rename."""
    records = synthetic(size).records
    aside, there = f"{path}.json-aside", f"{path}.json-there"
    begin = time.perf_counter()
    with open(aside, "w", encoding="utf-8") as file:
        json.dump(records, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, there)
    took = time.perf_counter() - begin
    _check_saved(there, size)
    return took


def memory_microdb(path: str, size: int) -> int:
    """What an open table takes."""
    import microdb

    def opened() -> tuple[object, int, Record]:
        mdb = microdb.MicroDB(path, _FIELDS)
        return mdb, len(mdb), mdb[synthetic(1, size - 1).keys[0]]

    return _grown(opened, size)


def memory_dict(path: str, size: int) -> int:
    """What a dict of the same dicts under the same key tuples takes, decoded from the same file."""
    import msgspec

    def loaded() -> tuple[object, int, Record]:
        with open(path, "rb") as file:
            records = {(record["id"],): record for record in msgspec.json.decode(file.read())}
        return records, len(records), records[synthetic(1, size - 1).keys[0]]

    return _grown(loaded, size)


def _grown(build: Callable[[], tuple[object, int, Record]], size: int) -> int:
    before = _resident_bytes()
    table, count, last = build()
    _check(count, last, size)
    after = _resident_bytes()
    del table
    return after - before


def _resident_bytes() -> int:
    """Memory that is in use, after what is free was given back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _check(count: int, last: Record, size: int) -> None:
    if (count, last) != (size, synthetic(1, size - 1).records[0]):
        raise AssertionError(f"{count:,} records instead of {size:,}, or another last one")


def _check_saved(path: str, size: int) -> None:
    with open(path, "rb") as file:
        if len(json.load(file)) != size:
            raise AssertionError(f"{path}: not {size:,} records")


CHILDREN: Final[dict[str, Callable[[str, int], float]]] = {
    child.__name__: child
    for child in (
        *(open_microdb, load_json, load_msgspec, load_orjson, replay_dict),
        *(save_microdb, save_json, save_json_safely, memory_microdb, memory_dict),
    )
}


if __name__ == "__main__":
    print(CHILDREN[sys.argv[1]](sys.argv[2], int(sys.argv[3])))
