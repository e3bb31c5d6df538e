"""The errors of microdb: one tree under `MicroDBError`.

A class that resembles a standard error is that, too, so that `except TimeoutError` and `except ValueError` do what a
reader expects. Each carries its facts as attributes and survives pickling. An `OSError` from the operating system is
never wrapped: it reaches the caller as it is.
"""

import errno
import os
from typing import Any, Final

__all__ = [
    "ClaimLostError",
    "ClosedError",
    "ConflictError",
    "CorruptError",
    "FailedError",
    "GridError",
    "LockTimeoutError",
    "MicroDBError",
    "ReadOnlyError",
    "RecordError",
    "ReentrantError",
    "SinceLostError",
    "StorageError",
    "TransactionError",
    "VersionError",
    "WaitTimeoutError",
]

StrPath = str | os.PathLike[str]


class MicroDBError(Exception):
    """Root of all errors of its own. Wrong arguments are a TypeError or a ValueError, a missing record is a KeyError.

    >>> import microdb
    >>> try:
    ...     microdb.MicroDB(":memory:", ["id"]).upsert({"id": object()})
    ... except microdb.MicroDBError as error:
    ...     print(type(error).__name__)
    RecordError
    """


class RecordError(MicroDBError, ValueError):
    """This record cannot be stored. Nothing was changed.

    >>> import microdb
    >>> try:
    ...     microdb.MicroDB(":memory:", ["id"]).upsert({"id": 1, "tags": ["a", object()]})
    ... except microdb.RecordError as error:
    ...     print(error.field)
    record['tags'][1]

    Attributes:
        field: Where the value stands, as a Python expression: ``record['tags'][3]``.
        reason: What is wrong with it, and what to do.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"


class GridError(MicroDBError, ValueError):
    """These records do not share their fields, so they make no grid. Nothing was written.

    >>> import microdb
    >>> mdb = microdb.MicroDB(":memory:", ["id"])
    >>> mdb.upsert_many([{"id": 1}, {"id": 2, "n": 5}])
    >>> mdb.pprint_all_as_grid()
    Traceback (most recent call last):
    microdb.errors.GridError: no grid: record {'id': 1} lacks 'n'; use save() instead

    Attributes:
        record: The first record that lacks a field which another record has.
        missing: The names of the fields that it lacks.
    """

    def __init__(self, record: dict[str, Any], missing: list[str]) -> None:
        super().__init__(record, missing)
        self.record = record
        self.missing = missing

    def __str__(self) -> str:
        missing = ", ".join(map(repr, self.missing))
        return f"no grid: record {shown(self.record):.500} lacks {missing}; use save() instead"


class ConflictError(MicroDBError):
    """Someone else changed it first, for instance a snapshot edited by hand. Nothing was written.

    >>> import microdb
    >>> mdb = microdb.MicroDB(":memory:", ["id"])
    >>> mdb.upsert({"id": 1, "n": 5})
    >>> try:
    ...     mdb.upsert({"id": 1, "n": 6}, expected={"id": 1, "n": 4})
    ... except microdb.ConflictError as error:
    ...     print(error.found)
    {'id': 1, 'n': 5}

    Attributes:
        found: If it is about one record, that which is there, or `ABSENT`; else None.
    """

    def __init__(self, reason: str, *, found: Any = None) -> None:
        super().__init__(reason)
        self.found = found


class ClaimLostError(MicroDBError):
    """A claim is its worker's no more: the lease ran out and another took it, or it has ended. Nothing was changed.

    >>> import microdb
    >>> mdb = microdb.MicroDB(":memory:", ["id"])
    >>> mdb.upsert({"id": 1})
    >>> claim = mdb.claim({"id": 1}, lease=60)
    >>> mdb.clear()
    >>> claim.complete()
    Traceback (most recent call last):
    microdb.errors.ClaimLostError: the claim on record (1,) with fence 2 is lost: the record is deleted

    Attributes:
        key: Of the record.
        fence: Of the claim that is lost.
        found: The claim that the record has now; None if it is deleted.
    """

    def __init__(self, key: tuple[Any, ...], fence: int, found: dict[str, Any] | None) -> None:
        super().__init__(key, fence, found)
        self.key = key
        self.fence = fence
        self.found = found

    def __str__(self) -> str:
        if self.found is None:
            now = "is deleted"
        elif self.found["owner"] is None:
            now = "is nobody's"
        else:
            now = f"belongs to {shown(self.found['owner']):.200}, with fence {shown(self.found['fence'])}"
        return f"the claim on record {shown(self.key):.200} with fence {self.fence} is lost: the record {now}"


class SinceLostError(MicroDBError):
    """What was at that position is kept no more: a save has come since.

    >>> import microdb
    >>> mdb = microdb.MicroDB(":memory:", ["id"])
    >>> mdb.as_of(mdb.position)
    Traceback (most recent call last):
    microdb.errors.SinceLostError: a table in memory, or without a log, keeps no history
    """


class WaitTimeoutError(MicroDBError, TimeoutError):
    """What was waited for did not come in time."""


class LockTimeoutError(MicroDBError, TimeoutError):
    """The lock was not free in time. Nothing was changed.

    >>> print(LockTimeoutError("mdb.json.wal/lock", 5, 4711))
    mdb.json.wal/lock: not free within 5 s; process 4711 holds it

    Attributes:
        path: The lock file.
        timeout_s: How long the caller was willing to wait, in seconds.
        owner_pid: The process that took it last and most likely holds it; None where that is not known.
    """

    def __init__(self, path: str, timeout_s: float, owner_pid: int | None) -> None:
        super().__init__(errno.ETIMEDOUT, "the lock was not free in time", path)
        self.path = path
        self.timeout_s = timeout_s
        self.owner_pid = owner_pid

    def __str__(self) -> str:
        holder = f"process {self.owner_pid} holds it" if self.owner_pid else "another process holds it"
        return f"{self.path}: not free within {self.timeout_s:g} s; {holder}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.timeout_s, self.owner_pid), self.__dict__


class ClosedError(MicroDBError):
    """This handle is closed. Open another one.

    >>> import microdb
    >>> mdb = microdb.MicroDB(":memory:", ["id"])
    >>> mdb.close()
    >>> mdb.upsert({"id": 1})
    Traceback (most recent call last):
    microdb.errors.ClosedError: this handle is closed; open another one
    """


class ReadOnlyError(MicroDBError):
    """This handle was opened with ``read_only=True``, so it changes nothing.

    >>> import microdb, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     microdb.MicroDB(f"{folder}/mdb.json", ["id"]).close()
    ...     microdb.MicroDB(f"{folder}/mdb.json", ["id"], read_only=True).clear()
    Traceback (most recent call last):
    microdb.errors.ReadOnlyError: this handle was opened with read_only=True; open another one to write
    """


class TransactionError(MicroDBError, RuntimeError):
    """This cannot be done inside a transaction, or the transaction belongs to another process.

    >>> import microdb
    >>> mdb = microdb.MicroDB(":memory:", ["id"])
    >>> with mdb.transaction():
    ...     mdb.check()
    Traceback (most recent call last):
    microdb.errors.TransactionError: check() inside a transaction; do it when the transaction has ended
    """


class ReentrantError(MicroDBError, RuntimeError):
    """A signal handler called into a read, write or save that it had itself interrupted. Nothing was changed."""


class StorageError(MicroDBError):
    """Something is wrong with the files.

    >>> import microdb, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     microdb.MicroDB(f"{folder}/mdb.json", ["id"]).close()
    ...     microdb.MicroDB(f"{folder}/mdb.json", ["name"])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    microdb.errors.StorageError: ...: keyed by ['id'], opened with partition_keys=['name']; ...

    Attributes:
        path: The file.
        offset: The byte of it where the trouble begins; None where it is the file as a whole.
        reason: What was found, and what to do.
    """

    def __init__(self, path: StrPath, reason: str, *, offset: int | None = None) -> None:
        super().__init__(path, reason)
        self.path = os.fspath(path)
        self.reason = reason
        self.offset = offset

    def __str__(self) -> str:
        place = self.path if self.offset is None else f"{self.path}, byte {self.offset}"
        return f"{place}: {self.reason}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.reason), self.__dict__


class CorruptError(StorageError):
    """These bytes are not what microdb wrote. Nothing was changed.

    Attributes:
        sequence: The last good sequence before the damage; None where that is not known.
    """

    def __init__(self, path: StrPath, reason: str, *, offset: int | None = None, sequence: int | None = None) -> None:
        super().__init__(path, reason, offset=offset)
        self.sequence = sequence


class VersionError(StorageError):
    """The file was written by a newer microdb: sound, but not for this version. Upgrade microdb."""


class FailedError(StorageError):
    """An earlier write or fsync failed, or the files were taken away: nothing pretends to be written."""


_HEX_CHARS: Final = 18


def shown(value: object) -> str:
    """A value for people: its `repr`, but of an int with more digits than Python writes the first ones, in hex.

    Of what is nested too deep for the stack only the type.

    >>> shown((1, "a")), shown([{"n": 10**5_000}])
    ("(1, 'a')", "[{'n': 0x31e20801036510f3...}]")
    """
    try:
        try:
            return repr(value)
        except ValueError:  # There is such an int in it.
            return _shown_in_parts(value)
    except RecursionError:
        return f"<{type(value).__name__}>"


def _shown_in_parts(value: Any) -> str:
    kind = type(value)
    if kind is int:
        return f"{hex(value)[:_HEX_CHARS]}..."
    if kind is dict:
        return f"{{{', '.join(f'{shown(name)}: {shown(one)}' for name, one in value.items())}}}"
    if kind is list:
        return f"[{', '.join(map(shown, value))}]"
    if kind is tuple:
        return f"({', '.join(map(shown, value))}{',' * (len(value) == 1)})"
    return f"<{kind.__name__}>"
