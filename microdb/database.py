"""`MicroDB`: what a user calls. Threads, locks and logs are the business of `handle`."""

import os
from collections.abc import ItemsView, Iterable, Iterator, Mapping, MutableMapping, Sequence, ValuesView
from contextlib import AbstractContextManager
from typing import Any, Final, Literal, Self, TypeVar, overload

from microdb import mounts, snapshot
from microdb.changes import CLEAR, Change
from microdb.errors import RecordError, StrPath
from microdb.files import OS, Files
from microdb.handle import Handle
from microdb.keys import Key, PartitionKeys
from microdb.paths import Paths, resolved
from microdb.save import Encode, export
from microdb.stats import Stats
from microdb.values import Record, are_dicts, are_flat, stored
from microdb.wal.codec import encode_clear, encode_delete, encode_upsert, encode_upserts
from microdb.wal.file_log import FileLog
from microdb.wal.format import split_head
from microdb.wal.header import DIRTY, HEAD, OWNER, REPAIRS, SAVES, TORN
from microdb.wal.memory_log import MemoryLog

__all__ = ["MEMORY", "Durability", "MicroDB"]

MEMORY: Final = ":memory:"
AUTO_SAVE_BYTES: Final = 64 << 20

T = TypeVar("T")
Durability = Literal["process", "power"]


class _Values(ValuesView[Record]):
    """The records at one moment: iterating never meets a key that someone just deleted."""

    _mapping: "MicroDB"

    def __iter__(self) -> Iterator[Record]:
        return self._mapping.all()

    def __contains__(self, value: object) -> bool:
        return any(record == value for record in self)


class _Items(ItemsView[Key, Record]):
    """The keys and records at one moment."""

    _mapping: "MicroDB"

    def __iter__(self) -> Iterator[tuple[Key, Record]]:
        with self._mapping._whole() as records:  # noqa: SLF001  # A view is part of its mapping.
            pairs = list(records.items())
        return ((key, record.copy()) for key, record in pairs)


class MicroDB(Handle, MutableMapping[Key, Record]):
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
        files: Files = OS,
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
            files: The file system; another one is for tests.

        Raises:
            CorruptError: The files are damaged; where, and what to do. Nothing was changed.
            ConflictError: The snapshot was edited while the log holds changes to the old one.
            VersionError: A newer microdb wrote them.
            StorageError: They are keyed by other fields, or the file system cannot share memory.
            LockTimeoutError: Only with a timeout.
            OSError: As the system says.
        """
        if durability not in ("process", "power"):
            raise ValueError(f'durability is "process" or "power", found {durability!r}')
        keys = PartitionKeys(partition_keys)
        self.filename: Final = filename
        self.partition_keys: Final = list(keys.names)
        self.durability: Final = durability
        super().__init__(
            _log(filename, keys, files=files, read_only=read_only),
            keys,
            sync=durability == "power",
            read_only=read_only,
            auto_save_bytes=auto_save_bytes if auto_save else None,
            timeout_s=timeout,
        )

    # Reading.

    def gen_key(self, record: Mapping[str, Any]) -> Key:
        """The key of a record: the tuple of its partition fields, None for one that it lacks.

        >>> MicroDB(":memory:", ["job", "name"]).gen_key({"job": "clean", "name": "Bob", "what": "ever"})
        ('clean', 'Bob')
        """
        return self._keys.of(record)

    @overload
    def get(self, record_or_key: Mapping[str, Any] | Key, /) -> Record | None: ...
    @overload
    def get(self, record_or_key: Mapping[str, Any] | Key, /, d: T) -> Record | T: ...
    def get(self, record_or_key: Mapping[str, Any] | Key, /, d: Any = None) -> Any:
        """The record with that key, as of now; `d` if there is none.

        Args:
            record_or_key: A key tuple, or anything with the key fields.
            d: The default.
        """
        key = record_or_key if type(record_or_key) is tuple else self._key(record_or_key)
        record = self._records.get(key) if self._words[HEAD] == self._head else self._find(key)
        return d if record is None else record.copy()

    def __getitem__(self, key: Key) -> Record:
        """The record with that key, as of now. Raises KeyError."""
        record = self._records.get(key) if self._words[HEAD] == self._head else self._find(key)
        if record is None:
            raise KeyError(key)
        return record.copy()

    def __contains__(self, record_or_key: object) -> bool:
        """Whether there is a record with the key that is given, or that a record has."""
        key = record_or_key if type(record_or_key) is tuple else self._key(record_or_key)
        return (self._records.get(key) if self._words[HEAD] == self._head else self._find(key)) is not None

    def __len__(self) -> int:
        """How many records there are now."""
        with self._whole() as records:
            return len(records)

    def __iter__(self) -> Iterator[Key]:
        """The keys of this moment, in insertion order."""
        with self._whole() as records:
            return iter(list(records))

    def all(self) -> Iterator[Record]:
        """The records of this moment, in insertion order; an overwritten one keeps its place."""
        with self._whole() as records:
            found = list(records.values())
        return (record.copy() for record in found)

    def values(self) -> ValuesView[Record]:
        """A view of the records. Iterating it gives those of one moment."""
        return _Values(self)

    def items(self) -> ItemsView[Key, Record]:
        """A view of keys and records. Iterating it gives those of one moment."""
        return _Items(self)

    def __str__(self) -> str:
        """The records as a list."""
        return str(list(self.all()))

    def __repr__(self) -> str:
        """How it was opened."""
        return f"{type(self).__name__}({os.fspath(self.filename)!r}, partition_keys={self.partition_keys!r})"

    def pprint_all(self) -> None:
        """Print the records as a list, neatly."""
        import pprint  # noqa: PLC0415  # It imports a good deal.

        pprint.pprint(list(self.all()))  # noqa: T203  # That is what it is for.

    def pprint_all_as_grid(self) -> None:
        """Print the field names, then one row a record.

        Raises:
            GridError: A record lacks a field that another has.
        """
        import pprint  # noqa: PLC0415  # As above.

        pprint.pprint(snapshot.grid(list(self.all())))  # noqa: T203  # That is what it is for.

    def stats(self) -> Stats:
        """How the database is now."""
        with self._whole() as records:
            log = self._log
            generation, end = split_head(log.words[HEAD])
            identity = log.files.identity(log.paths.snapshot) if isinstance(log, FileLog) else None
            return Stats(
                records=len(records),
                generation=generation,
                sequence=self._position.sequence if self._position is not None else 0,
                log_bytes=end,
                snapshot_bytes=identity.size if identity is not None else 0,
                owner_pid=log.words[OWNER] or None,
                dirty_pid=log.words[DIRTY] or None,
                saves=log.words[SAVES],
                repairs=log.words[REPAIRS],
                torn_tails=log.words[TORN],
            )

    # Writing.

    def upsert(self, record: Record) -> None:
        """Add a record, or put it in the place of the one with the same key. It is in the log when this returns.

        Raises:
            RecordError: It cannot be stored; which field, and why. Nothing was changed.
            OSError: The log could not be written. Nothing was changed.
        """
        change, encoded = self._upserting(record)
        self._commit((change,), (encoded,))

    def upsert_many(self, records: Iterable[Record]) -> None:
        """Upsert all or none: for a crash, for every reader, and for an error in any of them."""
        self._settle_for_write(self._timeout_s)
        given = list(records)
        if self._transaction is None and are_dicts(given):
            copies = list(map(dict.copy, given))  # First: what another thread does to the records changes nothing.
            keys = self._keys.all_plain(copies) if are_flat(copies) else None
            if keys:
                self._append(encode_upserts(copies), list(zip(keys, copies, strict=True)))
                return
        pairs = [self._upserting(record) for record in given]
        if pairs:
            self._commit([change for change, _ in pairs], [encoded for _, encoded in pairs])

    def delete(self, record_or_key: Mapping[str, Any] | Key) -> bool:
        """Remove the record with that key. Tells whether there was one."""
        return self.pop(self._key(record_or_key), None) is not None

    def __setitem__(self, key: Key, record: Record) -> None:
        """Upsert a record under the key that it has.

        Raises:
            RecordError: It has another key.
        """
        change, encoded = self._upserting(record)
        if change[0] != key:
            raise RecordError("record", f"its key is {change[0]!r}, not {key!r}; use upsert(record)")
        self._commit((change,), (encoded,))

    def __delitem__(self, key: Key) -> None:
        """Remove the record with that key. Raises KeyError."""
        if self.pop(key, None) is None:
            raise KeyError(key)

    _MISSING: Final[Any] = object()

    def pop(self, key: Key, default: Any = _MISSING) -> Any:
        """Remove the record with that key and return it, to one caller alone; `default` if there is none.

        Raises:
            KeyError: There is none, and no default.
        """
        with self.lock():
            record = self.get(key)
            if record is not None:
                key = self._keys.of(record)  # As it is stored: a key that equals it may be of a type that is not.
                self._commit(((key, None),), (encode_delete(key),))
                return record
        if default is self._MISSING:
            raise KeyError(key)
        return default

    def popitem(self) -> tuple[Key, Record]:
        """Remove the record that was added last, and return its key and itself. Raises KeyError if there is none."""
        with self.lock():
            with self._whole() as records:
                key = next(reversed(records), None)
            if key is None:
                raise KeyError("popitem(): the table is empty")
            return key, self.pop(key)

    def setdefault(self, key: Key, default: Record | None = None) -> Record:
        """The record with that key; if there is none, `default`, upserted."""
        with self.lock():
            record = self.get(key)
            if record is not None:
                return record
            if default is None:
                raise RecordError("record", f"no record with key {key!r}, and None is none")
            self[key] = default
            return self[key]

    def update(self, other: Any = (), /, **kwargs: Any) -> None:
        """As `dict.update`, all or none."""
        with self.transaction():
            super().update(other, **kwargs)

    def clear(self) -> None:
        """Remove all records."""
        self._commit((CLEAR,), (encode_clear(),))

    def erase_all(self) -> None:
        """Remove all records, and save."""
        self._refuse_in_transaction("erase_all()")
        with self.lock():
            self.clear()
            self.save()

    def lock(self, timeout: float | None = None) -> AbstractContextManager[None]:
        """Exclude every other writer, in this process and in all others, for the length of a ``with`` block.

        For a read and a write that belong together. Reentrant in its thread. Readers never wait for it. The changes
        inside are acknowledged one by one; for all or none, use `transaction`.

        Args:
            timeout: How many seconds to wait at most; None: as long as the handle's own timeout says.

        Raises:
            LockTimeoutError: It was not free in time; the error says who holds it.
            ReadOnlyError: This handle cannot write.
        """
        return self._lock_held(self._timeout_s if timeout is None else timeout)

    def transaction(self, timeout: float | None = None) -> AbstractContextManager[None]:
        """Make the changes of a ``with`` block one: all or nothing, for a crash and for every reader.

        Excludes other writers from its beginning, as `lock` does. Reads of the same thread see its changes. An
        exception leaves nothing of it behind. An inner one is undone alone if its exception is caught outside of it.
        """
        return self._transact(self._timeout_s if timeout is None else timeout)

    # Files.

    def save(self, filename: StrPath | None = None, *, timeout: float | None = None) -> None:
        """Write the records as a JSON list, one a line, and begin a new log: compaction. Others write on meanwhile.

        Args:
            filename: Write them there instead, and leave the database as it is. None: the database's own file.
            timeout: How many seconds to wait at most for another save to end, and for writers; None: as long as the
                handle's own timeout says.

        Raises:
            ConflictError: The snapshot was edited since it was read, or another database lives at `filename`.
            LockTimeoutError: Another save, or a writer, did not end in time.
            OSError: Nothing was changed.
        """
        self._save_to(filename, snapshot.encode_list, timeout)

    def save_as_grid(self, filename: StrPath | None = None, *, timeout: float | None = None) -> None:
        """As `save`, as a grid: the field names first, then one row a record. Smaller when all fields are common.

        Raises:
            GridError: A record lacks a field that another has. Nothing was written.
        """
        self._save_to(filename, snapshot.encode_grid, timeout)

    def sync(self) -> None:
        """Return once everything acknowledged before this call is on the disk.

        Raises:
            OSError: It is not; the next write begins with a save.
        """
        self._settle_for_write(self._timeout_s)
        if self._log.is_poisoned():
            with self.lock():
                self._prepare_locked()  # Saves, which is more.
        with self._whole():
            head = self._applied
        self._log.sync(head)

    def __enter__(self) -> Self:
        """This handle, to be closed at the end of the block."""
        self._settle()
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    # Inside.

    def _key(self, record_or_key: object) -> Key:
        if isinstance(record_or_key, Mapping):
            return self._keys.of(record_or_key)
        if isinstance(record_or_key, tuple):
            return record_or_key
        raise TypeError(f"expected a record or a key tuple {tuple(self.partition_keys)}, found {record_or_key!r:.60}")

    def _upserting(self, record: Record) -> tuple[Change, bytes]:
        copy = stored(record)
        return (self._keys.checked(copy), copy), encode_upsert(copy)

    def _save_to(self, filename: StrPath | None, encode: Encode, timeout: float | None) -> None:
        if filename is not None and not self._is_own(filename):
            self._export(filename, encode)
            return
        self._settle_for_write(self._timeout_s)
        self._refuse_in_transaction("save()")
        timeout_s = self._timeout_s if timeout is None else timeout
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
    if os.path.isdir(paths.snapshot):
        raise IsADirectoryError(21, "a folder is in the way of the snapshot; name a file in it", paths.snapshot)
    mounts.check(paths.folder)
    return FileLog(paths, keys, files=files, read_only=read_only)
