"""The mapping that a database is, to be read."""

from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from typing import Any, TypeVar, overload

from microdb.errors import shown
from microdb.handle import Handle
from microdb.keys import Key
from microdb.values import Expiring, Record
from microdb.wal.header import HEAD

__all__ = ["Reading"]

T = TypeVar("T")


class _Values(ValuesView[Record]):
    """The records at one moment: iterating never meets a key that someone just deleted."""

    _mapping: "Reading"

    def __iter__(self) -> Iterator[Record]:
        return self._mapping.all()

    def __contains__(self, value: object) -> bool:
        return any(record == value for record in self)


class _Items(ItemsView[Key, Record]):
    """The keys and records at one moment."""

    _mapping: "Reading"

    def __iter__(self) -> Iterator[tuple[Key, Record]]:
        with self._mapping._whole() as records:  # noqa: SLF001  # A view is part of its mapping.
            pairs = list(records.items())
        return ((key, record.copy()) for key, record in pairs)


class Reading(Handle, Mapping[Key, Record]):
    """What reads records by their keys, or all of them: as of now, and each the caller's own."""

    def gen_key(self, record: Mapping[str, Any]) -> Key:
        """The key of a record: the tuple of its partition fields, None for one that it lacks.

        >>> import microdb
        >>> microdb.MicroDB(":memory:", ["job", "name"]).gen_key({"job": "clean", "name": "Bob", "what": "ever"})
        ('clean', 'Bob')

        Raises:
            TypeError: It is no record.
        """
        if type(record) is not dict and not isinstance(record, Mapping):
            raise TypeError(f"expected a record, found {shown(record):.60}")
        return self._keys.of(record)

    @overload
    def get(self, record_or_key: Mapping[str, Any] | Key, /) -> Record | None: ...
    @overload
    def get(self, record_or_key: Mapping[str, Any] | Key, /, d: T) -> Record | T: ...
    def get(self, record_or_key: Mapping[str, Any] | Key, /, d: Any = None) -> Any:
        """The record with that key, as of now; `d` if there is none.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["name"])
        >>> mdb.upsert({"name": "Bob", "age": 40})
        >>> mdb.get(("Bob",))["age"], mdb.get({"name": "Eve"}, "nobody")
        (40, 'nobody')

        Args:
            record_or_key: A key tuple, or anything with the key fields.
            d: The default.

        Raises:
            TypeError: It is neither, or a value in the key cannot be looked up, as a list.
        """
        key = record_or_key if type(record_or_key) is tuple else self._keys.given(record_or_key)
        try:
            record = self._records.get(key) if self._words[HEAD] == self._head else self._find(key)
        except TypeError:
            self._keys.check_hash(key)
            raise
        return d if record is None else record.copy()

    def __getitem__(self, key: Key) -> Record:
        """The record with that key, as of now. Raises KeyError; of what has no hash TypeError."""
        try:
            record = self._records.get(key) if self._words[HEAD] == self._head else self._find(key)
        except TypeError:
            self._keys.check_hash(key)
            raise
        if record is None:
            raise self._keys.missing(key)
        return record.copy()

    def __contains__(self, record_or_key: object) -> bool:
        """Whether there is a record with the key that is given, or that a record has."""
        key = record_or_key if type(record_or_key) is tuple else self._keys.given(record_or_key)
        try:
            return (self._records.get(key) if self._words[HEAD] == self._head else self._find(key)) is not None
        except TypeError:
            self._keys.check_hash(key)
            raise

    def __len__(self) -> int:
        """How many records there are now."""
        if self._words[HEAD] == self._head:
            return len(self._records)
        with self._whole() as records:
            return len(records)

    def __iter__(self) -> Iterator[Key]:
        """The keys of this moment, in insertion order."""
        with self._whole() as records:
            return iter(list(records))

    def all(self) -> Iterator[Record]:
        """The records of this moment, in insertion order; an overwritten one keeps its place.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["id"])
        >>> mdb.upsert_many([{"id": 1}, {"id": 2}, {"id": 1, "n": 5}])
        >>> list(mdb.all())
        [{'id': 1, 'n': 5}, {'id': 2}]
        """
        with self._whole() as records:
            found = list(records.values())
        return (record.copy() for record in found)

    def values(self) -> ValuesView[Record]:
        """A view of the records. Iterating it gives those of one moment.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["id"])
        >>> mdb.upsert({"id": 1, "n": 5})
        >>> {"id": 1, "n": 5} in mdb.values()
        True
        """
        return _Values(self)

    def items(self) -> ItemsView[Key, Record]:
        """A view of keys and records. Iterating it gives those of one moment, so the table may change meanwhile.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["id"])
        >>> mdb.upsert_many([{"id": 1, "n": 5}, {"id": 2, "n": 0}])
        >>> for key, record in mdb.items():
        ...     if not record["n"]:
        ...         del mdb[key]
        >>> list(mdb)
        [(1,)]
        """
        return _Items(self)

    def expiry(self, record_or_key: Mapping[str, Any] | Key) -> float | None:
        """When the record with that key expires, in seconds since 1970; None if it is there for good.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["name"])
        >>> mdb.upsert({"name": "Bob"}, expires_at=4102444800)
        >>> mdb.expiry(("Bob",))
        4102444800.0

        Raises:
            KeyError: There is no such record, or no more.
        """
        key = self._keys.given(record_or_key)
        record = self._find(key)
        if record is None:
            raise KeyError(key)
        return record.expires_at if type(record) is Expiring else None
