"""A table as it was at one moment: a mapping that nobody changes any more. Pure."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Self, TypeVar, overload

from microdb.finder import plan
from microdb.keys import Key, PartitionKeys
from microdb.query import Candidates, Query, conditions
from microdb.table import Records
from microdb.values import Record
from microdb.wal.format import Position

__all__ = ["View"]

T = TypeVar("T")


class View(Mapping[Key, Record]):
    """The records of one moment, to be read by any thread as long as one likes. What it gives is the caller's own.

    >>> import microdb
    >>> mdb = microdb.MicroDB(":memory:", ["id"])
    >>> mdb.upsert({"id": 1})
    >>> view = mdb.snapshot()
    >>> mdb.upsert({"id": 1, "n": 5})
    >>> view[1,], mdb[1,]
    ({'id': 1}, {'id': 1, 'n': 5})

    Attributes:
        position: Which moment; None in a transaction, and for a snapshot that nobody has written a log to.
    """

    def __init__(self, records: Records, keys: PartitionKeys, position: Position | None) -> None:
        self._records = records
        self._keys = keys
        self.position: Final = position

    @overload
    def get(self, record_or_key: Mapping[str, Any] | Key, /) -> Record | None: ...
    @overload
    def get(self, record_or_key: Mapping[str, Any] | Key, /, d: T) -> Record | T: ...
    def get(self, record_or_key: Mapping[str, Any] | Key, /, d: Any = None) -> Any:
        """The record with that key; `d` if there is none.

        >>> import microdb
        >>> view = microdb.MicroDB(":memory:", ["id"]).snapshot()
        >>> view.get({"id": 1}, "none")
        'none'
        """
        record = self._stored(self._keys.given(record_or_key))
        return d if record is None else record.copy()

    def __getitem__(self, key: Key) -> Record:
        """The record with that key. Raises KeyError; of what has no hash TypeError."""
        record = self._stored(key)
        if record is None:
            raise self._keys.missing(key)
        return record.copy()

    def __contains__(self, record_or_key: object) -> bool:
        """Whether there is a record with the key that is given, or that a record has."""
        return self._stored(self._keys.given(record_or_key)) is not None

    def __len__(self) -> int:
        """How many records there are."""
        return len(self._records)

    def __iter__(self) -> Iterator[Key]:
        """The keys, in insertion order."""
        return iter(self._records)

    def all(self) -> Iterator[Record]:
        """The records, in insertion order.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["id"])
        >>> mdb.upsert_many([{"id": 1}, {"id": 2}])
        >>> list(mdb.snapshot().all())
        [{'id': 1}, {'id': 2}]
        """
        return (record.copy() for record in self._records.values())

    def where(self, *conditions_: Mapping[str, Any] | Callable[[Record], object], **fields: Any) -> Query:
        """See `MicroDB.where`. Without the indexes, which are of the present.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["id"])
        >>> mdb.upsert_many([{"id": 1, "n": 5}, {"id": 2, "n": 7}])
        >>> mdb.snapshot().where(n=7).first()
        {'id': 2, 'n': 7}
        """
        return Query(self, *conditions(conditions_, fields))

    def candidates(self, wanted: Mapping[str, Any]) -> Candidates:
        """See `query.Source`."""
        if plan(wanted, self._keys.names, (), ()).way == "key":
            found = self._records.get(self._keys.of(wanted))
            return Candidates([] if found is None else [found], "key")
        return Candidates(list(self._records.values()), "scan")

    def __enter__(self) -> Self:
        """This view."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing has to be given back: a view holds no lock."""

    def _stored(self, key: Key) -> Record | None:
        try:
            return self._records.get(key)
        except TypeError:
            self._keys.check_hash(key)
            raise

    def __repr__(self) -> str:
        """How many records, and of when."""
        return f"<View of {len(self)} records at {self.position or 'no position'}>"
