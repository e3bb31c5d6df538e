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

from microdb.database import MicroDB
from microdb.errors import (
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
    StorageError,
    TransactionError,
    VersionError,
)
from microdb.stats import Stats

__all__ = [
    "ClosedError",
    "ConflictError",
    "CorruptError",
    "FailedError",
    "GridError",
    "LockTimeoutError",
    "MicroDB",
    "MicroDBError",
    "ReadOnlyError",
    "RecordError",
    "ReentrantError",
    "Stats",
    "StorageError",
    "TransactionError",
    "VersionError",
]

__version__ = "1.0.0"
