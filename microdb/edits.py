"""Change a record in place: read, compute and write as one, whoever else does the same."""

import contextlib
import datetime as dt
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any, Final, NamedTuple

from microdb.errors import ConflictError, RecordError, shown
from microdb.expiry import has_expired, when
from microdb.keys import Key
from microdb.mapping import RecordMapping
from microdb.values import ABSENT, Expiring, Record, stored
from microdb.wal.codec import encode_upsert

__all__ = ["Edits"]

NUMBERS: Final = (int, float, complex, Decimal)


class _Begun(NamedTuple):
    """What an edit begins with, under the write lock.

    Attributes:
        key: That of the record.
        record: Itself, to be changed at will.
        before: The bytes of what is stored, also of what has expired; None if there is nothing.
        expires_at: When the record expires; None: never.
    """

    key: Key
    record: Record
    before: bytes | None
    expires_at: float | None


class Edits(RecordMapping):
    """What reads a record, computes, and writes it back.

    Each method holds the write lock from its read to its write, so that no other thread or process changes the record
    in between; each is applied once, and in a transaction at its end. A record has its key for life: to give it another
    one, delete it and upsert the new one in a transaction. What expires goes on to do so at its time.

    All of them raise KeyError if there is no such record, unless ``create=True``; then they begin with a record of the
    key alone.
    """

    def patch(
        self,
        record_or_key: Mapping[str, Any] | Key,
        changes: Mapping[str, Any] | None = None,
        /,
        *,
        create: bool = False,
        **fields: Any,
    ) -> Record:
        """Set some fields of a record and leave the others as they are; the record as it is then.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["name"])
        >>> mdb.upsert({"name": "Bob", "age": 40})
        >>> mdb.patch(("Bob",), age=41, city="Rome")
        {'name': 'Bob', 'age': 41, 'city': 'Rome'}

        Args:
            record_or_key: A key tuple, or anything with the key fields, of which nothing else is looked at.
            changes: The same as `fields`, for names that are no Python names, or are ``create``.
            create: Begin with the key alone if there is no such record.
            fields: The new values.

        Raises:
            KeyError: There is no such record.
            RecordError: It cannot be stored so, or would have another key. Nothing was changed.
            TypeError: `changes` is no mapping. Nothing was changed.
        """
        if changes is not None and not isinstance(changes, Mapping):
            raise TypeError(f"changes is a mapping from field to value, found {shown(changes):.60}")
        with self.edit(record_or_key, create=create) as record:
            record.update(changes or {})
            record.update(fields)
        return record

    def modify(
        self, record_or_key: Mapping[str, Any] | Key, function: Callable[[Record], Record], *, create: bool = False
    ) -> Record:
        """Put what a function makes of a record in its place, and return that.

        The function is called once, inside the write lock: others wait for it.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["name"])
        >>> mdb.upsert({"name": "Bob", "tags": ["new"]})
        >>> mdb.modify(("Bob",), lambda record: {**record, "tags": [*record["tags"], "paid"]})
        {'name': 'Bob', 'tags': ['new', 'paid']}

        Args:
            record_or_key: A key tuple, or anything with the key fields.
            function: Gets the record, which is its own to change, and returns the one to be stored.
            create: Begin with the key alone if there is no such record.

        Raises:
            KeyError: There is no such record.
            RecordError: What it returned cannot be stored, or has another key. Nothing was changed.
            ConflictError: The function has itself changed this record in the database.
        """
        with self.lock():
            begun = self._begin(record_or_key, create=create)
            made = function(begun.record)
            if made is None:
                raise RecordError("record", "the function returned None; let it return the record to be stored")
            self._end(begun, made)
        return made

    def get_or_create(self, record: Record) -> tuple[Record, bool]:
        """The record with the key of this one, and whether it had to be made: of many callers, one makes it.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["name"])
        >>> mdb.get_or_create({"name": "Bob", "age": 40})
        ({'name': 'Bob', 'age': 40}, True)
        >>> mdb.get_or_create({"name": "Bob", "age": 7})
        ({'name': 'Bob', 'age': 40}, False)

        Raises:
            RecordError: It cannot be stored, whether it had to be made or not.
        """
        key = self._keys.checked(stored(record))
        found = self.get(key)
        if found is None:
            with self.lock():
                found = self.get(key)
                if found is None:
                    self.upsert(record)
                    return self[key], True
        return found, False

    def increment(
        self, record_or_key: Mapping[str, Any] | Key, field: str, by: Any = 1, *, create: bool = False
    ) -> Any:
        """Add to a number, and return the sum. A field that is missing, or None, counts as 0.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["page"])
        >>> mdb.increment(("home",), "visits", create=True)
        1
        >>> mdb.increment(("home",), "visits", 10)
        11

        Raises:
            KeyError: There is no such record.
            RecordError: The field holds no number, or the sum is none, as of a float and a huge int. Nothing was
                changed.
            TypeError: `field` is no name; or `by` is no number, or cannot be added to this one, as a float to a
                Decimal.
        """
        if not isinstance(field, str):
            raise TypeError(f"field is the name of one, found {shown(field):.60}")
        if type(by) not in NUMBERS:
            raise TypeError(f"by is a number, found {shown(by):.60}")
        with self.edit(record_or_key, create=create) as record:
            value = record.get(field)
            if value is None:
                value = 0
            if type(value) not in NUMBERS:
                raise RecordError(f"record[{field!r}]", f"holds {shown(value):.60}, which is no number to add to")
            try:
                record[field] = value + by
            except ArithmeticError as error:
                reason = f"holds {shown(value):.60}, to which {shown(by):.60} cannot be added: {type(error).__name__}"
                raise RecordError(f"record[{field!r}]", reason) from error
        return record[field]

    @contextlib.contextmanager
    def edit(self, record_or_key: Mapping[str, Any] | Key, *, create: bool = False) -> Iterator[Record]:
        """A record to be changed at will in a ``with`` block, and stored at its end.

        Other writers wait as long as the block takes. If it changes nothing, nothing is written; if it raises, nothing
        is changed.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["name"])
        >>> mdb.upsert({"name": "Bob", "tags": ["new"]})
        >>> with mdb.edit(("Bob",)) as record:
        ...     record["tags"].append("paid")
        >>> mdb["Bob",]
        {'name': 'Bob', 'tags': ['new', 'paid']}

        Raises:
            KeyError: There is no such record.
            RecordError: It cannot be stored as it is at the end, or has another key. Nothing was changed.
            ConflictError: The block has itself changed this record in the database, by other means.
        """
        with self.lock():
            begun = self._begin(record_or_key, create=create)
            yield begun.record
            self._end(begun, begun.record)

    def set_expiry(
        self,
        record_or_key: Mapping[str, Any] | Key,
        *,
        ttl: float | None = None,
        expires_at: float | dt.datetime | None = None,
    ) -> float | None:
        """Let a record expire at another time, or never, and return that time as `expiry` gives it.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["name"])
        >>> mdb.upsert({"name": "Bob"}, ttl=60)
        >>> mdb.set_expiry(("Bob",), expires_at=4102444800)
        4102444800.0
        >>> mdb.set_expiry(("Bob",)), mdb.expiry(("Bob",))
        (None, None)

        Args:
            record_or_key: A key tuple, or anything with the key fields.
            ttl: As in `upsert`.
            expires_at: As in `upsert`. If neither is given, it is there for good.

        Raises:
            KeyError: There is no such record, or no more.
            TypeError: As `upsert`. Nothing was changed.
            ValueError: As `upsert`. Nothing was changed.
        """
        at = when(ttl, expires_at, self._clock())
        with self.lock():
            begun = self._begin(record_or_key, create=False)
            self._end(begun._replace(expires_at=at), begun.record)
        return at

    def _begin(self, record_or_key: Mapping[str, Any] | Key, *, create: bool) -> _Begun:
        key = self._keys.given(record_or_key)
        found = self._find_any(key)
        before = None if found is None else encode_upsert(found)
        if found is not None and not has_expired(found, self._clock()):
            return _Begun(key, found.copy(), before, found.expires_at if type(found) is Expiring else None)
        if not create:
            raise KeyError(key)
        if len(key) != len(self._keys.names):
            raise RecordError("key", f"{shown(key):.200} has not one value for each of {list(self._keys.names)!r}")
        begun = {name: value for name, value in zip(self._keys.names, key, strict=True) if value is not None}
        return _Begun(key, begun, before, None)

    def _end(self, begun: _Begun, record: Record) -> None:
        """Store a record if it is another one now, and nothing else of its own thread has changed it meanwhile."""
        change, encoded = self._upserting(record, begun.expires_at)
        if encoded == begun.before:
            return
        found = self._find_any(begun.key)
        if (None if found is None else encode_upsert(found)) != begun.before:
            raise ConflictError(
                f"record {shown(begun.key):.200} was changed within its own edit; change what edit() or the function "
                "is given",
                found=self.get(begun.key, ABSENT),
            )
        self._put(begun.key, change, encoded)
