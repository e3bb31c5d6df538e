"""Indexes: from the values of some fields to the keys of the records that have them. Pure; one set for each table.

An index only narrows down which records to look at: whoever asks looks at each of them again. So it may name a key too
many, as it does for a moment while a record changes, and after an interrupt amid that; it never names one too few.
"""

import contextlib
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, Final

from microdb.conditions import OneOf, Range, family
from microdb.keys import Key
from microdb.table import Records
from microdb.values import Expiring, Record

__all__ = ["ExpiryIndex", "HashIndex", "Index", "IndexedRecords", "SortedIndex"]

_Keys = dict[Key, None]


class Index(ABC):
    """Buckets of keys, one for each value. A record whose value has no place among others is kept aside."""

    def __init__(self) -> None:
        self._aside: _Keys = {}

    def add(self, key: Key, record: Record) -> None:
        """Name a key for a record that comes."""
        self._bucket(record)[key] = None

    def forget(self, key: Key, old: Record, new: Record | None = None) -> None:
        """Name a key no more for a record that goes, unless it is to be named all the same for the `new` one."""
        bucket = self._bucket(old)
        if new is None or self._bucket(new) is not bucket:
            bucket.pop(key, None)
            if not bucket:
                self._drop(old)

    def holds(self, key: Key, record: Record) -> bool:
        """Whether a key is named for a record."""
        return key in self._bucket(record)

    def named(self) -> list[Key]:
        """Every key, as often as it is named."""
        return [*self._aside, *chain.from_iterable(self._all())]

    @abstractmethod
    def _all(self) -> Iterable[_Keys]:
        """Every bucket."""

    @abstractmethod
    def find(self, wanted: Mapping[str, Any]) -> Iterator[Key]:
        """The keys of all records that may have the wanted values. Costs as many steps as there are."""

    @abstractmethod
    def _bucket(self, record: Record) -> _Keys:
        """The keys of the records that have the values of this one."""

    @abstractmethod
    def _drop(self, record: Record) -> None:
        """Forget the bucket of a record, which is empty, unless it is one for all that have no place."""


class HashIndex(Index):
    """From the values of fields to keys. A value without a hash, as a list, stands aside, and whoever asks is told."""

    def __init__(self, fields: tuple[str, ...]) -> None:
        super().__init__()
        self.fields: Final = fields
        self._buckets: dict[tuple[Any, ...], _Keys] = {}

    def _all(self) -> Iterable[_Keys]:
        return self._buckets.values()

    def _bucket(self, record: Record) -> _Keys:
        try:
            return self._buckets.setdefault(self._values(record), {})
        except TypeError:
            return self._aside

    def _drop(self, record: Record) -> None:
        with contextlib.suppress(TypeError):
            del self._buckets[self._values(record)]

    def _values(self, record: Record) -> tuple[Any, ...]:
        return tuple([record.get(field) for field in self.fields])

    def find(self, wanted: Mapping[str, Any]) -> Iterator[Key]:
        """See `Index`."""
        sought: Iterable[tuple[Any, ...]] = [tuple([wanted[field] for field in self.fields])]
        if len(self.fields) == 1 and isinstance(wanted[self.fields[0]], OneOf):
            sought = dict.fromkeys((value,) for value in wanted[self.fields[0]].values)
        for values in sought:
            yield from list(self._buckets.get(values, ()))  # A copy: see below.
        yield from list(self._aside)


class SortedIndex(Index):
    """From ranges of the values of a field to keys. Values that have no order among others stand aside."""

    def __init__(self, field: str) -> None:
        from sortedcontainers import SortedDict  # noqa: PLC0415  # For those alone who use it.

        super().__init__()
        self.field: Final = field
        self._unordered: _Keys = {}
        self._families: dict[str, Any] = defaultdict(SortedDict)

    def _all(self) -> Iterable[_Keys]:
        return [self._unordered, *chain.from_iterable(family.values() for family in self._families.values())]

    def _bucket(self, record: Record) -> _Keys:
        value = record.get(self.field)
        if value is None:
            return self._unordered
        name = family(value)
        return self._aside if name is None else self._families[name].setdefault(value, {})

    def _drop(self, record: Record) -> None:
        value = record.get(self.field)
        name = family(value)
        if name is not None:
            del self._families[name][value]

    def find(self, wanted: Mapping[str, Any]) -> Iterator[Key]:
        """See `Index`. In the order of the values."""
        span: Range = wanted[self.field]
        values = self._families[span.family or ""]
        # Copies, for a signal handler may change the table as one goes through it.
        for value in list(values.irange(*span.bounds, (span.with_low, span.with_high))):
            yield from list(values.get(value, ()))
        yield from list(self._aside)


class ExpiryIndex(Index):
    """From when records expire to their keys. Those that never do stand aside."""

    def __init__(self) -> None:
        from sortedcontainers import SortedDict  # noqa: PLC0415  # For those alone who use it.

        super().__init__()
        self._times: Any = SortedDict()

    def _all(self) -> Iterable[_Keys]:
        return list(self._times.values())

    def _bucket(self, record: Record) -> _Keys:
        if type(record) is not Expiring:
            return self._aside
        bucket: _Keys = self._times.setdefault(record.expires_at, {})
        return bucket

    def _drop(self, record: Record) -> None:
        if type(record) is Expiring:
            del self._times[record.expires_at]

    def find(self, wanted: Mapping[str, Any]) -> Iterator[Key]:
        """The keys of what has expired by the time that is wanted as ``now``, the earliest first."""
        for time in list(self._times.irange(None, wanted["now"])):  # Copies, as above.
            yield from list(self._times.get(time, ()))


class IndexedRecords(Records):
    """A table that keeps indexes up to date with each change. Looking up a key costs what it costs in a dict.

    An interrupt amid a change may leave an index half done: then none is kept any more, and they are made anew.
    """

    def __init__(self, records: Records) -> None:
        super().__init__(records)
        self.indexes: dict[Hashable, Index] = {}

    def keep(self, name: Hashable, index: Index) -> None:
        """Fill an index, and keep it up to date from now on. Costs one pass over the records."""
        for key, record in self.items():
            index.add(key, record)
        self.indexes[name] = index

    def __setitem__(self, key: Key, record: Record) -> None:
        try:
            old = self.get(key)
            for index in self.indexes.values():
                index.add(key, record)
            super().__setitem__(key, record)
            if old is not None:
                for index in self.indexes.values():
                    index.forget(key, old, record)
        except BaseException:
            self.indexes = {}
            raise

    def update(self, pairs: Iterable[tuple[Key, Record]], /) -> None:  # type: ignore[override]  # All that is asked of it.
        """As that of a dict."""
        for key, record in pairs:
            self[key] = record

    def pop(self, key: Key, default: Any = None, /) -> Any:
        """As that of a dict."""
        try:
            old = super().pop(key, default)
            if old is not None:
                for index in self.indexes.values():
                    index.forget(key, old)
        except BaseException:
            self.indexes = {}
            raise
        return old

    def clear(self) -> None:
        """As that of a dict. The indexes are made anew, too."""
        self.indexes = {}
        super().clear()
