"""A table of records that any number of processes share.

In memory as a dict in each process, on disk as a JSON file and a write-ahead log. See `MicroDB`.

>>> import microdb
>>> mdb = microdb.MicroDB(":memory:", partition_keys=["job", "name"])
>>> mdb.upsert({"job": "clean", "name": "Alice", "status": "undone"})
>>> mdb.upsert({"job": "clean", "name": "Alice", "status": "finished"})
>>> mdb.get({"job": "clean", "name": "Alice"})
{'job': 'clean', 'name': 'Alice', 'status': 'finished'}
>>> len(mdb)
1
"""

from microdb.checking import Report
from microdb.claims import Claim
from microdb.conditions import above, at_least, at_most, below, between, one_of
from microdb.database import MicroDB
from microdb.errors import (
    ClaimLostError,
    ClosedError,
    ConflictError,
    CorruptError,
    FailedError,
    GridError,
    LockTimeoutError,
    MicroDBError,
    ReadOnlyError,
    RecordError,
    ReentrantError,
    SinceLostError,
    StorageError,
    TransactionError,
    VersionError,
    WaitTimeoutError,
)
from microdb.feed import Event, Watch
from microdb.query import Query
from microdb.stats import Stats
from microdb.values import ABSENT, UNKNOWN
from microdb.view import View
from microdb.wal.format import Position
from microdb.watching import Listener

__all__ = [
    "ABSENT",
    "UNKNOWN",
    "Claim",
    "ClaimLostError",
    "ClosedError",
    "ConflictError",
    "CorruptError",
    "Event",
    "FailedError",
    "GridError",
    "Listener",
    "LockTimeoutError",
    "MicroDB",
    "MicroDBError",
    "Position",
    "Query",
    "ReadOnlyError",
    "RecordError",
    "ReentrantError",
    "Report",
    "SinceLostError",
    "Stats",
    "StorageError",
    "TransactionError",
    "VersionError",
    "View",
    "WaitTimeoutError",
    "Watch",
    "above",
    "at_least",
    "at_most",
    "below",
    "between",
    "one_of",
]

__version__ = "1.0.0"
