"""The mapping that a database is: what a dict does, and several at once."""

import datetime as dt
from collections.abc import Iterable, Mapping, MutableMapping
from contextlib import AbstractContextManager
from typing import Any, Final

from microdb.changes import CLEAR, Change, Upserts
from microdb.errors import ConflictError, RecordError, shown
from microdb.expiry import when
from microdb.keys import Key
from microdb.reading import Reading
from microdb.timeouts import in_seconds
from microdb.values import ABSENT, Absent, Expiring, Nested, Record, are_dicts, equal, kept, stored
from microdb.wal.codec import encode_clear, encode_delete, encode_upsert, encode_upserts
from microdb.wal.header import CONFLICTS, count

__all__ = ["RecordMapping"]

_ANYTHING: Final[Record] = {}
"""Stands for what was not given."""


class RecordMapping(Reading, MutableMapping[Key, Record]):
    """From key tuple to record: what a dict does, for all processes at once."""

    def upsert(
        self,
        record: Record,
        *,
        expected: Record | Absent | None = _ANYTHING,
        ttl: float | None = None,
        expires_at: float | dt.datetime | None = None,
    ) -> None:
        """Add a record, or put it in the place of the one with the same key. It is in the log when this returns.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["name"])
        >>> mdb.upsert({"name": "Bob", "age": 40}, expected=microdb.ABSENT)
        >>> mdb.upsert({"name": "Bob", "age": 41}, expected={"name": "Bob", "age": 39})
        Traceback (most recent call last):
        microdb.errors.ConflictError: record ('Bob',) is not what was expected: someone else has changed it
        >>> mdb.upsert({"name": "Eve"}, ttl=3600)

        A record that expires counts as absent from that time on, for everybody and in everything. It goes from memory
        and disk with the next save; and before that, as such records are upserted, when they are many. The time is that
        of the clock of the machine: if that is set forward records expire early, if it is set back late, and one that
        is not yet gone is there again. One that is upserted anew before it is gone keeps its place. Reads of a table in
        which records expire cost a microsecond or two more.

        Args:
            record: It is copied; what is done to it later changes nothing.
            expected: Only if the record that is there now equals this one; `ABSENT`, or None as `get` gives it: only if
                there is none.
            ttl: For how many seconds from now on it is there, above 0. Without it, and without `expires_at`, for good,
                also if the record before was one that expires.
            expires_at: Until when it is there, in seconds since 1970, or as a datetime with a time zone. One that is
                past makes it absent at once.

        Raises:
            RecordError: It cannot be stored; which field, and why. Nothing was changed.
            ConflictError: The record is not as expected; the error has it as ``found``. Nothing was changed.
            TypeError: `ttl` and `expires_at` are both given, or one is no time; or `expected` is no record, `ABSENT` or
                None. Nothing was changed.
            ValueError: One is not finite, or `ttl` not above 0. Nothing was changed.
            OSError: The log could not be written. Nothing was changed.
        """
        at = None if ttl is None and expires_at is None else when(ttl, expires_at, self._clock())
        change, encoded = self._upserting(record, at)
        if expected is not _ANYTHING:
            self._put_expecting(expected, change, encoded)
            return
        changes, items = (change,), (encoded,)
        if at is not None or not self._upsert_straight(changes, items):
            self._commit(changes, items, expires=at is not None)

    def upsert_many(
        self, records: Iterable[Record], *, ttl: float | None = None, expires_at: float | dt.datetime | None = None
    ) -> None:
        """Upsert all or none: for a crash, for every reader, and for an error in any of them.

        Costs one lock and one write, however many they are.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["id"])
        >>> mdb.upsert_many({"id": n} for n in range(1_000))
        >>> len(mdb), mdb.stats().sequence
        (1000, 1)

        Args:
            records: As in `upsert`.
            ttl: As in `upsert`, for all of them.
            expires_at: As in `upsert`, for all of them.

        Raises:
            RecordError: One of them cannot be stored. Nothing was changed.
            TypeError: As `upsert`; or `records` cannot be iterated. Nothing was changed.
            ValueError: As `upsert`. Nothing was changed.
            OSError: As `upsert`. Nothing was changed.
        """
        self._settle_for_write(self._timeout_s)
        at = None if ttl is None and expires_at is None else when(ttl, expires_at, self._clock())
        try:
            given = list(records)
        except TypeError:
            if isinstance(records, Iterable):
                raise  # It comes from within.
            raise TypeError(f"upsert_many takes several records, found {shown(records):.60}") from None
        if at is None and self._transaction is None and are_dicts(given):
            plain = list(map(dict.copy, given))  # First: what another thread does to the records changes nothing.
            copies = kept(plain)
            keys = self._keys.all_plain(plain) if copies is not None else None
            if copies is not None and keys:
                if copies is not plain:  # What is nested, they share with what was given.
                    plain = [one.copy() for one in copies]
                    copies = [
                        Nested(mine) if type(one) is Nested else mine for one, mine in zip(copies, plain, strict=True)
                    ]
                self._append(encode_upserts(plain), Upserts(keys, copies))
                return
        pairs = [self._upserting(record, at) for record in given]
        if pairs:
            changes, encoded = zip(*pairs, strict=True)
            self._commit(changes, encoded, expires=at is not None)

    def delete(self, record_or_key: Mapping[str, Any] | Key) -> bool:
        """Remove the record with that key. Tells whether there was one: of several callers, one is told so.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["id"])
        >>> mdb.upsert({"id": 1})
        >>> mdb.delete((1,)), mdb.delete((1,))
        (True, False)
        """
        return self.pop(self._keys.given(record_or_key), None) is not None

    def __setitem__(self, key: Key, record: Record) -> None:
        """Upsert a record under the key that it has.

        Raises:
            RecordError: It has another key.
        """
        self._put(key, *self._upserting(record, None))

    def __delitem__(self, key: Key) -> None:
        """Remove the record with that key. Raises KeyError."""
        if self.pop(key, None) is None:
            raise KeyError(key)

    _MISSING: Final[Any] = object()

    def pop(self, key: Key, default: Any = _MISSING) -> Any:
        """Remove the record with that key and return it, to one caller alone; `default` if there is none.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["id"])
        >>> mdb.upsert({"id": 1})
        >>> mdb.pop((1,)), mdb.pop((1,), None)
        ({'id': 1}, None)

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
        """Remove the record that was added last, and return its key and itself. Raises KeyError if there is none.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["id"])
        >>> mdb.upsert_many([{"id": 1}, {"id": 2}])
        >>> mdb.popitem()
        ((2,), {'id': 2})
        """
        with self.lock():
            with self._whole() as records:
                last = next(reversed(records.items()), None)
            if last is None:
                raise KeyError("popitem(): the table is empty")
            key, record = last
            self._commit(((key, None),), (encode_delete(key),))
            return key, record.copy()

    def setdefault(self, key: Key, default: Record | None = None) -> Record:
        """The record with that key; if there is none, `default`, upserted. `get_or_create` needs the key only once.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["id"])
        >>> mdb.setdefault((1,), {"id": 1, "n": 5})
        {'id': 1, 'n': 5}

        Raises:
            RecordError: `default` has another key, or is None and needed.
        """
        with self.lock():
            record = self.get(key)
            if record is not None:
                return record
            if default is None:
                raise RecordError("record", f"no record with key {shown(key):.200}, and None is none")
            self[key] = default
            return self[key]

    def update(self, other: Any = (), /, **kwargs: Any) -> None:
        """As `dict.update`, all or none: from key to record, as in a mapping or in pairs.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["id"])
        >>> mdb.update({(1,): {"id": 1}, (2,): {"id": 2}})
        >>> len(mdb)
        2

        Raises:
            RecordError: A record cannot be stored, or has another key. Nothing was changed.
        """
        with self.transaction():
            super().update(other, **kwargs)

    def clear(self) -> None:
        """Remove all records.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["id"])
        >>> mdb.upsert({"id": 1})
        >>> mdb.clear()
        >>> len(mdb)
        0
        """
        self._commit((CLEAR,), (encode_clear(),))

    def lock(self, timeout: float | None = None) -> AbstractContextManager[None]:
        """Exclude every other writer, in this process and in all others, for the length of a ``with`` block.

        For a read and a write that belong together. Reentrant in its thread. Readers never wait for it. The changes
        inside are acknowledged one by one; for all or none, use `transaction`.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["id"])
        >>> with mdb.lock(timeout=5):
        ...     if (1,) not in mdb:
        ...         mdb.upsert({"id": 1})

        Args:
            timeout: How many seconds to wait at most; None: as long as the handle's own timeout says.

        Raises:
            LockTimeoutError: It was not free in time; the error says who holds it.
            ReadOnlyError: This handle cannot write.
            TypeError: `timeout` is no number of seconds.
            ValueError: It is a nan.
        """
        return self._lock_held(in_seconds(timeout, self._timeout_s))

    def transaction(self, timeout: float | None = None) -> AbstractContextManager[None]:
        """Make the changes of a ``with`` block one: all or nothing, for a crash and for every reader.

        Excludes other writers from its beginning, as `lock` does. Reads of the same thread see its changes. An
        exception leaves nothing of it behind. An inner one is undone alone if its exception is caught outside of it.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["name"])
        >>> with mdb.transaction():
        ...     mdb.upsert({"name": "Bob", "money": 70})
        ...     mdb.upsert({"name": "Eve", "money": 30})
        >>> sum(record["money"] for record in mdb.all()), mdb.stats().sequence
        (100, 1)

        Args:
            timeout: As of `lock`.

        Raises:
            LockTimeoutError, ReadOnlyError, TypeError, ValueError: As `lock`.
        """
        return self._transact(in_seconds(timeout, self._timeout_s))

    # Inside.

    def _put_expecting(self, expected: Record | Absent | None, change: Change, encoded: bytes) -> None:
        if not isinstance(expected, dict) and expected is not None and expected is not ABSENT:
            raise TypeError(f"expected is a record, microdb.ABSENT or None, found {shown(expected):.60}")
        with self.lock():
            key: Any = change[0]
            found = self.get(key)
            if not _is(found, expected):
                count(self._words, CONFLICTS)
                raise ConflictError(
                    f"record {shown(key):.200} is not what was expected: someone else has changed it",
                    found=ABSENT if found is None else found,
                )
            self._put(key, change, encoded)

    def _put(self, key: Key, change: Change, encoded: bytes) -> None:
        """Commit the upsert of a record, which must have this key."""
        if change[0] != key:
            own = shown(change[0])
            raise RecordError("record", f"its key is {own:.200}, not {shown(key):.200}; use upsert(record)")
        changes, items, expires = (change,), (encoded,), type(change[1]) is Expiring
        if expires or not self._upsert_straight(changes, items):
            self._commit(changes, items, expires=expires)

    def _upserting(self, record: Record, expires_at: float | None) -> tuple[Change, bytes]:
        copy = stored(record)
        if expires_at is not None:
            copy = Expiring(copy, expires_at)
        return (self._keys.checked(copy), copy), encode_upsert(copy)


def _is(found: Record | None, expected: Record | Absent | None) -> bool:
    """Whether a record is as it is expected: equal, or the same bytes, for a nan differs even from itself."""
    if found is None or expected is None or isinstance(expected, Absent):
        return found is None and (expected is None or expected is ABSENT)
    return equal(found, expected) or encode_upsert(found) == encode_upsert(stored(expected))
