"""`MicroDB`: what a user calls: opening, finding, saving. Threads, locks and logs are the business of `handle`."""

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, Self

from microdb import mounts, snapshot
from microdb.errors import SinceLostError, StrPath, shown
from microdb.expiry import unexpired
from microdb.files import OS, Files
from microdb.finder import index_fields
from microdb.inspecting import Inspecting
from microdb.keys import PartitionKeys
from microdb.open_table import CLOSED, records_of
from microdb.paths import MEMORY, Paths, refuse_folder, resolved
from microdb.query import Query, conditions
from microdb.save import Encode, export
from microdb.timeouts import in_seconds
from microdb.values import Record
from microdb.view import View
from microdb.wal.file_log import FileLog
from microdb.wal.format import Position, position_of
from microdb.wal.log import GoneError
from microdb.wal.memory_log import MemoryLog
from microdb.watching import Since

__all__ = ["Durability", "MicroDB"]

AUTO_SAVE_BYTES: Final = 64 << 20

Durability = Literal["process", "power"]


class MicroDB(Inspecting):
    """A table of records that any number of processes and threads share: a mapping from key tuple to record.

    The key of a record is the tuple of its partition fields; one that it lacks counts as None. Records are private on
    both sides: what is passed in is copied, and what is returned is the caller's own, at any depth.

    Every write is in a checked log when it returns, and seen by every later read in every process. A read costs a dict
    look-up, one comparison and the copy; no system call. A write costs one lock and one `pwrite`.

    >>> mdb = MicroDB(":memory:", partition_keys=["job", "name"])
    >>> mdb.upsert({"job": "clean", "name": "Bob", "status": "undone"})
    >>> mdb["clean", "Bob"]["status"]
    'undone'

    Attributes:
        filename: The snapshot, as it was given.
        partition_keys: The fields that make a key.
        durability: What an acknowledged write survives.

    All methods may be called by any thread at any time. A handle opened before a fork works in the child.
    """

    def __init__(
        self,
        filename: StrPath,
        partition_keys: Iterable[str],
        *,
        durability: Durability = "process",
        read_only: bool = False,
        auto_save: bool = True,
        auto_save_bytes: int = AUTO_SAVE_BYTES,
        timeout: float | None = None,
        indexes: Iterable[str | Iterable[str]] = (),
        sorted_indexes: Iterable[str] = (),
        files: Files = OS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open a database, or begin one: ``filename`` and the folder ``filename.wal`` beside it.

        Whoever finds no other process using it recovers it first. Costs reading the snapshot and the log.

        Args:
            filename: The snapshot. ``":memory:"`` is a table without files, for the threads of this process.
            partition_keys: The fields that make a key; the same for all who open it.
            durability: With ``"process"`` an acknowledged write survives the death of any process; after a power cut
                the log goes back to a consistent earlier state. With ``"power"`` it survives that too, for one fsync.
            read_only: Change nothing, and write nothing, not even the files that recovery would.
            auto_save: Save in a background thread when the log has grown beyond ``auto_save_bytes`` and twice the
                snapshot.
            auto_save_bytes: As said.
            timeout: How many seconds a call waits for the write lock at most; None waits as long as it takes.
            indexes: Fields by whose values `where` finds records without looking at all; several names in a tuple make
                one index on all of them. Each process keeps its own in memory, from the first use on.
            sorted_indexes: Fields of which `where` finds ranges.
            files: The file system; another one is for tests.
            clock: Tells by what time records expire, in seconds since 1970; another one is for tests.

        Raises:
            CorruptError: The files are damaged; where, and what to do. Nothing was changed.
            ConflictError: The snapshot was edited while the log holds changes to the old one.
            VersionError: A newer microdb wrote them.
            StorageError: They are keyed by other fields, or the file system cannot share memory.
            LockTimeoutError: Only with a timeout.
            OSError: As the system says.
            TypeError: An argument is of the wrong type; which, and what it should be. Nothing was made.
            ValueError: An argument has a value that means nothing. Nothing was made.
        """
        if durability not in ("process", "power"):
            raise ValueError(f'durability is "process" or "power", found {shown(durability):.60}')
        keys = PartitionKeys(partition_keys)
        hashed, ordered = index_fields(indexes, "indexes"), index_fields(sorted_indexes, "sorted_indexes")
        if any(len(fields) > 1 for fields in ordered):
            raise TypeError(f"sorted_indexes takes single fields, found {ordered!r}")
        if not callable(clock):
            raise TypeError(f"clock is a function that tells the seconds since 1970, found {shown(clock):.60}")
        self.filename: Final = filename
        self.partition_keys: Final = list(keys.names)
        self.durability: Final = durability
        super().__init__(
            _log(filename, keys, files=files, read_only=read_only),
            keys,
            sync=durability == "power",
            read_only=read_only,
            auto_save_bytes=auto_save_bytes if auto_save else None,
            timeout_s=in_seconds(timeout),
            clock=clock,
        )
        self._indexes = hashed
        self._sorted_indexes = [field for (field,) in ordered]

    # Finding.

    def where(self, *conditions_: Mapping[str, Any] | Callable[[Record], object], **fields: Any) -> Query:
        """The records that meet all conditions: a `Query`, to be iterated, sorted, counted.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["job", "name"])
        >>> mdb.upsert({"job": "clean", "name": "Bob", "hours": 3})
        >>> mdb.upsert({"job": "clean", "name": "Eve", "hours": 9})
        >>> [record["name"] for record in mdb.where(job="clean", hours=microdb.at_least(5))]
        ['Eve']
        >>> mdb.where(lambda record: "o" in record["name"]).count()
        1

        Args:
            conditions_: Functions of a record, which get a copy and tell whether it is meant; or mappings with the same
                as `fields`, for names that are no Python names.
            fields: The values that fields must have. A field that is missing counts as None. In place of a value
                `between`, `at_least`, `above`, `at_most`, `below` or `one_of`.
        """
        return Query(self, *conditions(conditions_, fields))

    def snapshot(self) -> View:
        """The table of this moment, to be read in peace while others write. Costs a copy of the map, not the records.

        >>> mdb = MicroDB(":memory:", ["id"])
        >>> mdb.upsert({"id": 1})
        >>> with mdb.snapshot() as view:
        ...     mdb.clear()
        ...     len(view), len(mdb)
        (1, 0)
        """
        with self._whole() as records:
            position = self._position if self._own_view() is None else None
            return View(dict(records), self._keys, position)

    @property
    def position(self) -> Position | None:
        """How far the table goes now, for `as_of`; None for a snapshot that nobody has written a log to.

        >>> mdb = MicroDB(":memory:", ["id"])
        >>> mdb.upsert({"id": 1})
        >>> mdb.position.sequence
        1
        """
        with self._fresh():
            return self._position

    def as_of(self, position: Since | None) -> View:
        """The table as it was at a position, if no save has come since. Costs reading the snapshot and the log.

        What has expired by now is not there, for a log holds no times of day.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, MicroDB(f"{folder}/mdb.json", ["id"]) as mdb:
        ...     before = mdb.position
        ...     mdb.upsert({"id": 1})
        ...     len(mdb.as_of(before)), len(mdb)
        (0, 1)

        Args:
            position: As `position` gives it, or its four numbers, as JSON gives them back.

        Raises:
            SinceLostError: A save has come: what was before it cannot be told any more. Or it is no position of this
                database, or None.
            TypeError: It is none at all.
        """
        at = None if position is None else position_of(position, "position")
        if isinstance(self._log, MemoryLog):
            raise SinceLostError("a table in memory, or without a log, keeps no history")
        if at is None:
            raise SinceLostError(
                f"{self._log.name}: None is the position of a snapshot that nobody has written a log to, which keeps "
                "no history"
            )
        self._settle()
        try:
            start = self._log.load_as_of(at)
        except GoneError:
            raise SinceLostError(
                f"{self._log.name}: {at} is not in the log, which begins with the last save; the table of then "
                "cannot be told any more"
            ) from None
        records = records_of(start, self._log.name, self._keys)
        return View(unexpired(records, self._clock()), self._keys, at)

    # Files.

    def save(self, filename: StrPath | None = None, *, timeout: float | None = None) -> None:
        """Write the records as a JSON list, one a line, and begin a new log: compaction. Others write on meanwhile.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, MicroDB(f"{folder}/mdb.json", ["id"]) as mdb:
        ...     mdb.upsert({"id": 1})
        ...     mdb.save()
        ...     mdb.stats().saves, mdb.stats().snapshot_bytes
        (1, 13)

        Args:
            filename: Write them there instead, and leave the database as it is. None: the database's own file.
            timeout: How many seconds to wait at most for another save to end, and for writers; None: as long as the
                handle's own timeout says.

        Raises:
            ConflictError: The snapshot was edited since it was read, or another database lives at `filename`.
            LockTimeoutError: Another save, or a writer, did not end in time.
            OSError: Nothing was changed.
            TypeError: A table in memory has no file of its own; or `timeout` is no number.
            ValueError: `filename` is ``":memory:"``, which is no file; or `timeout` a nan.
        """
        self._save_to(filename, snapshot.encode_list, timeout)

    async def asave(self, filename: StrPath | None = None, *, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """As `save`, in a thread, while the event loop goes on; inside `alock`, which belongs to its thread, it waits.

        >>> import asyncio, tempfile
        >>> mdb = MicroDB(":memory:", ["id"])
        >>> asyncio.run(mdb.asave(tempfile.mkdtemp() + "/copy.json"))
        """
        import asyncio  # noqa: PLC0415  # For those alone who use it.

        if self._has_lock():
            self.save(filename, timeout=timeout)
        else:
            await asyncio.to_thread(self.save, filename, timeout=timeout)

    def save_as_grid(self, filename: StrPath | None = None, *, timeout: float | None = None) -> None:
        """As `save`, as a grid: the field names first, then one row a record. Smaller when all fields are common.

        >>> import pathlib, tempfile
        >>> mdb = MicroDB(":memory:", ["id"])
        >>> mdb.upsert_many([{"id": 1, "n": 5}, {"id": 2, "n": 6}])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     mdb.save_as_grid(f"{folder}/grid.json")
        ...     pathlib.Path(folder, "grid.json").read_text().split()
        ['[', '["id","n"],', '[1,5],', '[2,6]', ']']

        Raises:
            GridError: A record lacks a field that another has. Nothing was written.
        """
        self._save_to(filename, snapshot.encode_grid, timeout)

    def sync(self) -> None:
        """Return once everything acknowledged before this call is on the disk.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, MicroDB(f"{folder}/mdb.json", ["id"]) as mdb:
        ...     mdb.upsert_many([{"id": 1}, {"id": 2}])
        ...     mdb.sync()  # From here on they survive a power cut, for one fsync for all.

        Raises:
            OSError: It is not; the next write begins with a save.
        """
        self._settle_for_write(self._timeout_s)
        if self._log.is_poisoned():
            with self.lock():
                self._prepare_locked()  # Saves, which is more.
        with self._fresh():
            head = self._applied
        with self._telling():
            self._log.sync(head)

    def __repr__(self) -> str:
        """How it was opened, and how much this process last saw in it. Looks at no file, and waits for nobody."""
        how = f"{os.fspath(self.filename)!r}, partition_keys={self.partition_keys!r}"
        if self.durability != "process":
            how += f", durability={self.durability!r}"
        if self._read_only:
            how += ", read_only=True"
        count = len(self._records)
        state = "closed" if self._pid == CLOSED else f"{count} record{'' if count == 1 else 's'}"
        return f"<{type(self).__name__}({how}): {state}>"

    def __enter__(self) -> Self:
        """This handle, to be closed at the end of the block."""
        self._settle()
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def erase_all(self) -> None:
        """Remove all records, and save.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, MicroDB(f"{folder}/mdb.json", ["id"]) as mdb:
        ...     mdb.upsert({"id": 1})
        ...     mdb.erase_all()
        ...     len(mdb), mdb.stats().saves
        (0, 1)

        Raises:
            TypeError: It is in memory, and has no file to save to: `clear` is enough. The records are gone.
        """
        self._refuse_in_transaction("erase_all()")
        with self.lock():
            self.clear()
            self.save()

    # Inside.

    def _save_to(self, filename: StrPath | None, encode: Encode, timeout: float | None) -> None:
        timeout_s = in_seconds(timeout, self._timeout_s)
        if filename is not None and not self._is_own(filename):
            self._export(filename, encode)
            return
        self._settle_for_write(self._timeout_s)
        self._refuse_in_transaction("save()")
        self._save(encode, timeout_s=timeout_s, save_timeout_s=timeout_s)

    def _is_own(self, filename: StrPath) -> bool:
        return isinstance(self._log, FileLog) and resolved(filename) == self._log.paths.snapshot

    def _export(self, filename: StrPath, encode: Encode) -> None:
        with self._whole() as records:
            found: Sequence[Record] = list(records.values())
        export(self._log.files if isinstance(self._log, FileLog) else OS, filename, encode(found))


def _log(filename: StrPath, keys: PartitionKeys, *, files: Files, read_only: bool) -> FileLog | MemoryLog:
    if filename == MEMORY:
        return MemoryLog()
    paths = Paths(filename)
    refuse_folder(paths.snapshot)
    mounts.check(paths.folder)
    return FileLog(paths, keys, files=files, read_only=read_only)
