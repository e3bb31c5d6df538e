"""Find records by what is in them: a small question that is asked anew each time it is iterated. Pure.

Where its records come from is told by a `Source`, which may know a short way.
"""

import operator
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, Protocol, Self

from microdb.conditions import OneOf, Range
from microdb.errors import RecordError, shown
from microdb.values import Record, equal

__all__ = ["Candidates", "Query", "Source", "conditions"]

Predicate = Callable[[Record], object]


class Candidates(NamedTuple):
    """The records among which all that are asked for are.

    Attributes:
        records: As they are stored: not to be changed, nor given away.
        how: The way to them, for people: ``index on status``, ``scan``.
    """

    records: Sequence[Record]
    how: str


class Source(Protocol):
    """A table that can be asked."""

    def candidates(self, wanted: Mapping[str, Any]) -> Candidates:
        """All records of this moment that may have the wanted values, and perhaps others."""
        ...


class _Order(NamedTuple):
    fields: tuple[str | Callable[[Record], Any], ...]
    reverse: bool


class Query:
    """Which records are wanted. Each method gives a new query; to iterate one looks at the table of that moment.

    The records are the caller's own. Without `order_by` no order is promised: a scan gives them in the order of the
    table, an index in its own.

    >>> import microdb
    >>> mdb = microdb.MicroDB(":memory:", ["name"])
    >>> mdb.upsert_many({"name": name, "age": age} for name, age in [("Bob", 40), ("Eve", 30), ("Ann", 40)])
    >>> [record["name"] for record in mdb.where(age=40).order_by("name")]
    ['Ann', 'Bob']
    >>> mdb.where(lambda record: record["age"] < 40).first()
    {'name': 'Eve', 'age': 30}
    """

    def __init__(
        self,
        source: Source,
        wanted: Mapping[str, Any],
        predicates: tuple[Predicate, ...] = (),
        order: tuple[_Order, ...] = (),
        part: slice = slice(None),
    ) -> None:
        self._source = source
        self._wanted = wanted
        self._predicates = predicates
        self._order = order
        self._part = part

    def where(self, *conditions_: Mapping[str, Any] | Predicate, **fields: Any) -> Self:
        """Those of them that also meet these conditions; see `MicroDB.where`.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["id"])
        >>> mdb.upsert_many([{"id": 1, "n": 5}, {"id": 2, "n": 5}])
        >>> fives = mdb.where(n=5)
        >>> list(fives.where(id=2))
        [{'id': 2, 'n': 5}]

        Raises:
            TypeError: A condition is none.
            ValueError: After `limit`, of which it would be a part; or one field is asked for two values.
        """
        if self._part != slice(None):
            raise ValueError("where() after limit() would look among the first only; call it before")
        wanted, predicates = conditions(conditions_, fields)
        check_agree(self._wanted, wanted)
        return type(self)(
            self._source, {**self._wanted, **wanted}, (*self._predicates, *predicates), self._order, self._part
        )

    def order_by(self, *fields: str | Callable[[Record], Any], reverse: bool = False) -> Self:
        """Sorted by these fields, or by what functions make of the record. None, and a missing field, comes first.

        Of two calls the later one counts more: sort by what matters least first.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["id"])
        >>> mdb.upsert_many([{"id": 1, "n": 5}, {"id": 2}, {"id": 3, "n": 7}])
        >>> [record["id"] for record in mdb.where().order_by("n", reverse=True)]
        [3, 1, 2]

        Raises:
            TypeError: One is neither a name nor a function, or `reverse` no bool. When it is iterated: values, of which
                one is not less than the other.
            ValueError: After `limit`, of which it would sort the first only.
        """
        _check_names("order_by() takes field names, and functions of a record", [f for f in fields if not callable(f)])
        if not isinstance(reverse, int):
            raise TypeError(f"reverse is True or False, found {shown(reverse):.60}")
        if self._part != slice(None):
            raise ValueError("order_by() after limit() would sort the first only; call it before")
        return type(self)(
            self._source, self._wanted, self._predicates, (*self._order, _Order(fields, reverse)), self._part
        )

    def limit(self, count: int, *, offset: int = 0) -> Self:
        """At most `count` of them, behind the first `offset`.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["id"])
        >>> mdb.upsert_many({"id": n} for n in range(10))
        >>> [record["id"] for record in mdb.where().order_by("id").limit(3, offset=4)]
        [4, 5, 6]

        Raises:
            TypeError: One is no whole number.
            ValueError: One is negative, or beyond what a list can hold; or there was a limit already.
        """
        found = f"found {shown(count):.60} and offset={shown(offset):.60}"
        try:
            count, offset = operator.index(count), operator.index(offset)
        except TypeError:
            raise TypeError(f"limit() takes whole numbers, {found}") from None
        if count < 0 or offset < 0:
            raise ValueError(f"limit() takes no negative numbers, {found}")
        if count + offset > sys.maxsize:
            raise ValueError(f"limit() takes numbers up to {sys.maxsize}, {found}")
        if self._part != slice(None):
            raise ValueError("limit() twice; once is enough")
        return type(self)(self._source, self._wanted, self._predicates, self._order, slice(offset, offset + count))

    def __iter__(self) -> Iterator[Record]:
        """The records, all of one moment: that at which the iteration begins."""
        return (record.copy() for record in self._stored())

    def first(self) -> Record | None:
        """The first of them; None if there is none.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["id"])
        >>> mdb.upsert_many([{"id": 1, "n": 5}, {"id": 2, "n": 7}])
        >>> mdb.where().order_by("n", reverse=True).first()
        {'id': 2, 'n': 7}
        """
        return next(iter(self), None)

    def count(self) -> int:
        """How many there are now.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["id"])
        >>> mdb.upsert_many([{"id": 1, "n": 5}, {"id": 2, "n": 7}])
        >>> mdb.where(n=microdb.above(5)).count()
        1
        """
        return sum(1 for _ in self._stored())

    def exists(self) -> bool:
        """Whether there is one. Looks no further than to the first.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["id"])
        >>> mdb.upsert({"id": 1, "n": 5})
        >>> mdb.where(n=5).exists(), mdb.where(n=6).exists()
        (True, False)
        """
        return next(iter(self._stored()), None) is not None

    def distinct(self, *fields: str) -> list[Any]:
        """The different values of a field, or tuples of those of several, those without a hash last.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["id"])
        >>> mdb.upsert_many([{"id": 1, "city": "Rome"}, {"id": 2, "city": "Bonn"}, {"id": 3, "city": "Rome"}])
        >>> mdb.where().distinct("city")
        ['Rome', 'Bonn']
        """
        return [_values(group[0], fields) for group in self._groups(fields)]

    def group_by(self, *fields: str) -> dict[Any, list[Record]]:
        """The records by the value of a field, or by the tuple of those of several.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["id"])
        >>> mdb.upsert_many([{"id": 1, "city": "Rome"}, {"id": 2, "city": "Bonn"}, {"id": 3, "city": "Rome"}])
        >>> {city: len(records) for city, records in mdb.where().group_by("city").items()}
        {'Rome': 2, 'Bonn': 1}

        Raises:
            RecordError: A value has no hash, as a list, so that it cannot be the key of a dict.
        """
        groups = self._groups(fields)
        try:
            return {_values(group[0], fields): [record.copy() for record in group] for group in groups}
        except TypeError:
            raise RecordError(", ".join(fields), "a value without a hash cannot be the key of a dict") from None

    def asks(self, source: object) -> bool:
        """Whether it is a table that is asked."""
        return self._source is source

    def means(self, record: Record) -> bool:
        """Whether a record, of wherever, meets all conditions."""
        return all(_has(record, field, value) for field, value in self._wanted.items()) and all(
            predicate(record.copy()) for predicate in self._predicates
        )

    def explain(self) -> str:
        """How its records are found, and how many are looked at, in one line.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["id"], indexes=["city"])
        >>> mdb.upsert_many([{"id": 1, "city": "Rome"}, {"id": 2, "city": "Bonn"}])
        >>> mdb.where(city="Rome").explain()
        'index on city: 1 record'
        >>> mdb.where(id=2).explain()
        'key: 1 record'
        >>> mdb.where(size=7).explain()
        'scan: 2 records'
        """
        records, how = self._source.candidates(self._wanted)
        return f"{how}: {len(records)} record{'' if len(records) == 1 else 's'}"

    def __repr__(self) -> str:
        """What is asked for. Looks at no record."""
        asked = [f"{field}={shown(value)}" for field, value in self._wanted.items()]
        text = f"where({', '.join([*map(shown, self._predicates), *asked])})"
        for fields, reverse in self._order:
            text += f".order_by({', '.join([*map(shown, fields), *['reverse=True'] * reverse])})"
        if self._part != slice(None):
            behind = f", offset={self._part.start}" if self._part.start else ""
            text += f".limit({self._part.stop - self._part.start}{behind})"
        return f"<Query {text}>"

    def _stored(self) -> Iterable[Record]:
        """The stored records that are meant, in their order."""
        found: Iterable[Record] = self._matching()
        for order in self._order:
            found = _sorted(list(found), order)
        return islice(found, self._part.start, self._part.stop)

    def _matching(self) -> Iterator[Record]:
        return filter(self.means, self._source.candidates(self._wanted).records)

    def _groups(self, fields: tuple[str, ...]) -> Iterable[list[Record]]:
        if not fields:
            raise TypeError("name one field or more")
        _check_names("fields are asked for by their names", fields)
        groups: dict[Hashable, list[Record]] = {}
        others: list[tuple[Any, list[Record]]] = []
        for record in self._stored():
            values = tuple([record.get(field) for field in fields])
            try:
                groups.setdefault(values, []).append(record)
            except TypeError:  # It has no hash.
                for known, group in others:
                    if equal(known, values):
                        group.append(record)
                        break
                else:
                    others.append((values, [record]))
        return [*groups.values(), *(group for _, group in others)]


def conditions(
    given: Iterable[Mapping[str, Any] | Predicate], fields: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[Predicate, ...]]:
    """The arguments of a `where`: the values that are wanted by field, and the functions.

    Raises:
        TypeError: One is neither a mapping nor a function.
        ValueError: One field is asked for two values.
    """
    wanted: dict[str, Any] = {}
    predicates: list[Predicate] = []
    for one in (*given, fields):
        if isinstance(one, Mapping):
            _check_names("fields are asked for by their names", one)
            check_agree(wanted, one)
            wanted.update(one)
        elif callable(one):
            predicates.append(one)
        else:
            raise TypeError(
                f"where() takes field=value, a mapping of such, or a function of a record; found {shown(one):.60}"
            )
    return wanted, tuple(predicates)


def _check_names(what: str, names: Iterable[object]) -> None:
    """Raises TypeError, with what is wanted, if one is no name."""
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"{what}; found {shown(name):.60}")


def check_agree(wanted: Mapping[str, Any], more: Mapping[str, Any]) -> None:
    """Raises ValueError if one field is asked for two values."""
    for field in wanted.keys() & more.keys():
        if not equal(wanted[field], more[field]):
            raise ValueError(f"where() asks field {field!r} for two values; use a function")


def _has(record: Record, field: str, wanted: Any) -> bool:
    value = record.get(field)
    return wanted.holds(value) if isinstance(wanted, Range | OneOf) else equal(value, wanted)


def _values(record: Record, fields: tuple[str, ...]) -> Any:
    own = record.copy()
    values = tuple([own.get(field) for field in fields])
    return values[0] if len(fields) == 1 else values


def _sorted(records: list[Record], order: _Order) -> list[Record]:
    # By their numbers, so that what a function of the caller raises is not taken for trouble in comparing.
    places = [_place(order.fields, record) for record in records]
    try:
        numbers = sorted(range(len(records)), key=places.__getitem__, reverse=order.reverse)
    except (TypeError, ArithmeticError) as error:
        raise TypeError(
            f"order_by{shown(order.fields)}: {error}; order by a function that makes them comparable"
        ) from error
    return [records[number] for number in numbers]


def _place(fields: tuple[str | Callable[[Record], Any], ...], record: Record) -> list[tuple[bool, Any]]:
    """Where a record stands among others by these fields: None comes first."""
    values = [field(record.copy()) if callable(field) else record.get(field) for field in fields]
    return [(value is not None, value) for value in values]
