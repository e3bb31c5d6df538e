"""The golden databases: what is in each, and how this version makes them: ``python tests/golden.py FOLDER``.

A folder that was committed is never made anew: a later format gets one of its own, beside it. What is random in a
database is fixed here, all but the names of temporary files and what the header page says of processes and inodes; so
whoever makes them twice has the same snapshots and logs. The records are written down, not read from a database.
"""

import contextlib
import datetime as dt
import math
import os
import sys
import uuid
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock
from zoneinfo import ZoneInfo

import microdb
from faulty import Faulty, fail, only
from microdb.wal import writer
from microdb.wal.format import FRAME

BOOT_ID = b"microdb golden 1"
SALT = b"goldsalt"

Record = dict[str, Any]


class Run(Faulty):
    """The run of the machine in which the golden databases were made."""

    def boot_id(self):
        return BOOT_ID


class Golden(NamedTuple):
    """One database.

    Attributes:
        make: Makes it at a path.
        records: All that is in it, in order.
        keys: Its partition keys.
        has_page: Whether its header page is kept.
    """

    make: Callable[[Path, list[Record]], None]
    records: list[Record]
    keys: tuple[str, ...] = ("id",)
    has_page: bool = True


def make(folder):
    """Make all of them, each in a folder of its own."""
    fixed = SimpleNamespace(token_bytes=lambda size: SALT[:size])
    for name, golden in DATABASES.items():
        path = Path(folder, name, "mdb.json")
        path.parent.mkdir(parents=True)
        with mock.patch.object(writer, "secrets", fixed):
            golden.make(path, golden.records)
        for lock in ("lock", "save.lock", *([] if golden.has_page else ["header"])):
            Path(f"{path}.wal", lock).unlink(missing_ok=True)


def opened(path, keys=("id",), **options):
    """A database of that run of the machine."""
    return microdb.MicroDB(path, keys, auto_save=False, **({"files": Run()} | options))


# ------------------------------------------------------------------------------------------------------------- Makers


def _values(path, records):
    """The first half in the snapshot, all in the log behind it."""
    with opened(path) as mdb:
        mdb.upsert_many(records[: len(records) // 2])
        mdb.save()
        for record in records:
            mdb.upsert(record)


def _grid(path, records):
    with opened(path, ("job", "name")) as mdb:
        mdb.upsert_many(records)
        mdb.save_as_grid()


def _log(path, records):
    with opened(path) as mdb:
        mdb.upsert({"id": 0, "v": "cleared"})
        mdb.clear()
        mdb.upsert({"id": 1, "v": "first"})
        mdb.upsert_many([{"id": 2, "v": "batch"}, {"id": 3, "v": "batch"}, {"id": 4, "v": "deleted"}])
    with opened(path, durability="power") as mdb:
        mdb.upsert({"id": 5, "v": "fsynced"})
        mdb.delete((4,))
        with mdb.transaction():
            mdb.upsert({"id": 6, "v": "transaction"})
            mdb.upsert({"id": 1, "v": "changed"})
            mdb.delete((2,))
    with opened(path) as mdb:
        mdb.upsert({"id": 2, "v": "again"})


def _keys(path, records):
    with opened(path, ("a", "b")) as mdb:
        mdb.upsert_many(records)
        mdb.upsert({"a": "gone", "b": 1})
        mdb.delete(("gone", 1))


def _history(path, records):
    with opened(path) as mdb:
        for record in records:
            mdb.upsert(record)
            if record["id"] in (1, 2, 3):
                mdb.save()


def _expiring(path, records):
    """Times in a log, and in one into which a save has carried them. One record has expired in the year 1970."""
    with opened(path) as mdb:
        mdb.upsert_many(records[:3], expires_at=FAR)
        mdb.upsert({"id": 0}, expires_at=1)
        mdb.save()
        mdb.upsert(records[1])
        mdb.upsert_many(records[3:], expires_at=FAR)
        mdb.upsert({"id": 0}, expires_at=1)


def _torn(path, records):
    with opened(path) as mdb:
        for record in records:
            mdb.upsert(record)
    with open(f"{path}.wal/0000000001.log", "ab") as log:
        log.write(FRAME.pack(32, 0, len(records) + 1) + b"\x91\x82\xa2id\x09\xa1v")


def _died_before(path, records):
    _dying_saver(path, records, "rename")


def _died_after(path, records):
    _dying_saver(path, records, "sync_folder")


def _dying_saver(path, records, call):
    """A saver that dies when it comes to this call for the snapshot: to the rename, or to the fsync behind it."""
    with opened(path) as mdb:
        mdb.upsert(records[0])
        mdb.save()
        mdb.upsert_many(records[1:])
    pid = os.fork()
    if pid == 0:
        try:
            run = Run()
            with opened(path, files=run) as mdb:
                place = path if call == "rename" else path.parent
                run.on[call] = only(place.name, lambda _: os._exit(0))
                mdb.save()
        finally:
            os._exit(1)
    if os.waitpid(pid, 0)[1]:
        raise AssertionError("the saver did not die where it should")


def _failed(path, records):
    """An fsync fails; the next write begins with a save, and its log tells."""
    run = Run()
    with opened(path, files=run) as mdb:
        mdb.upsert(records[0])
        run.on["sync_data"] = only(".log", fail)
        with contextlib.suppress(OSError):
            mdb.sync()
        run.on.clear()
        mdb.upsert(records[1])


# ------------------------------------------------------------------------------------------------------------ Records

HOUR = dt.timedelta(hours=1)
NOON = dt.datetime(2024, 2, 29, 12, 30, 59, 123456)

VALUES = (
    *(None, False, True, ...),
    *(0, -1, 2**63 - 1, -(2**63), 2**64 - 1, 2**64, -(2**63) - 1, 10**40, -(10**700)),
    *(1.5, -0.0, 5e-324, 1.7976931348623157e308, 1e22, math.nan, math.inf, -math.inf),
    *(3 + 4j, complex(-0.0, math.inf)),
    *("", "naïve", "日本語", "\U0001f600", "a\u2028b\0c", 'quote\'s "x"\\\t\n', "x" * 300),
    *(b"", b"\x00\xff" * 40),
    *([], [1, [2, [3, []]]], (), (1, "two", (3,)), set(), {1, 2, 3}, frozenset(), frozenset({(1, b"x")})),
    *({}, {"a": {"b": [1, (2,)]}}, {1: "int", ("t",): "tuple", None: "none", 1.5: "float", b"b": "bytes"}),
    *({"$int": 1}, {"$": 1, "$$bytes": [2], "b": 3}, {"$unknown": {"$dict": {}}}, {"z": 1, "a": 2, "": 3}),
    *(Decimal("1.10"), Decimal("-0"), Decimal("1E+1000"), Decimal("NaN"), Decimal("-Infinity"), Decimal("sNaN1")),
    *(dt.date(1, 1, 1), dt.date(9999, 12, 31), dt.timedelta(0), dt.timedelta(-1, 1, 1), dt.timedelta.max),
    *(NOON, NOON.replace(tzinfo=dt.UTC), NOON.replace(tzinfo=dt.timezone(-HOUR, "name"), fold=1)),
    *(NOON.replace(tzinfo=ZoneInfo("Europe/Berlin")), NOON.replace(tzinfo=ZoneInfo("UTC")), NOON.replace(fold=1)),
    *(dt.time(0), dt.time(23, 59, 59, 999999, tzinfo=dt.timezone(dt.timedelta(seconds=1)), fold=1)),
    *(uuid.UUID(int=0), uuid.UUID("12345678-1234-5678-9abc-123456789abc")),
)

FAR = 1e11
"""The year 5138."""

FEW = [{"id": n, "v": f"value {n}"} for n in range(1, 7)]

DATABASES = {
    "values": Golden(_values, [{"id": n, "v": value} for n, value in enumerate(VALUES)]),
    "grid": Golden(
        _grid,
        [
            {"job": job, "name": name, "n": n, "due": dt.date(2024, 1, 1)}
            for n, (job, name) in enumerate([("clean", "Alice"), ("study", "Alice"), ("clean", "Bob"), (None, 7)])
        ],
        keys=("job", "name"),
        has_page=False,
    ),
    "log": Golden(
        _log,
        [
            {"id": 1, "v": "changed"},
            {"id": 3, "v": "batch"},
            {"id": 5, "v": "fsynced"},
            {"id": 6, "v": "transaction"},
            {"id": 2, "v": "again"},
        ],
    ),
    "keys": Golden(
        _keys,
        [
            {"a": 1, "b": "x"},
            {"b": (1, frozenset({2})), "c": "no a"},
            {"c": "neither"},
            {"a": dt.date(2024, 1, 1), "b": b"\0"},
            {"b": None, "a": 2**70},
        ],
        keys=("a", "b"),
        has_page=False,
    ),
    "history": Golden(_history, FEW),
    "expiring": Golden(_expiring, [*FEW[:4], {"id": 5, "v": ["nested", {"deep": (1,)}]}]),
    "torn": Golden(_torn, FEW[:3]),
    "torn-no-page": Golden(_torn, FEW[:3], has_page=False),
    "saver-died-before-commit": Golden(_died_before, FEW),
    "saver-died-after-commit": Golden(_died_after, FEW),
    "saver-died-after-commit-no-page": Golden(_died_after, FEW, has_page=False),
    "fsync-failed": Golden(_failed, FEW[:2]),
}


if __name__ == "__main__":
    make(sys.argv[1])
