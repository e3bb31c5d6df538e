"""Which way to the records that are asked for is the shortest. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, NamedTuple

from microdb.conditions import OneOf, Range
from microdb.errors import shown

__all__ = ["EXPIRY", "Plan", "index_fields", "plan"]


class Plan(NamedTuple):
    """A way to records.

    Attributes:
        way: By their key, by an index on the fields, by when they expire, or by looking at all.
        fields: On which.
    """

    way: Literal["key", "index", "sorted index", "expiry", "scan"]
    fields: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.way} on {', '.join(self.fields)}" if self.fields else self.way


EXPIRY: Final = Plan("expiry")
"""To the records that have expired. It is no way to what a query asks for."""


def plan(
    wanted: Mapping[str, Any],
    partition_keys: tuple[str, ...],
    indexes: Iterable[tuple[str, ...]],
    sorted_indexes: Iterable[str],
) -> Plan:
    """The way that looks at the fewest records, as far as one can tell without looking.

    The first fields of the partition keys count as an index.
    """
    equal = {field for field, value in wanted.items() if not isinstance(value, Range | OneOf) and _has_hash(value)}
    if equal.issuperset(partition_keys):
        return Plan("key")
    prefixes = [partition_keys[:count] for count in range(1, len(partition_keys))]
    fitting = [fields for fields in (*indexes, *prefixes) if equal.issuperset(fields)]
    if fitting:
        return Plan("index", max(fitting, key=len))
    singles = {fields[0] for fields in indexes if len(fields) == 1}
    for field, value in wanted.items():
        if isinstance(value, OneOf) and field in singles and _has_hash(value.values):
            return Plan("index", (field,))
    for field, value in wanted.items():
        if isinstance(value, Range) and field in sorted_indexes and value.family is not None:
            return Plan("sorted index", (field,))
    return Plan("scan")


def _has_hash(value: Any) -> bool:
    """Whether it can be looked up. Without a hash it may equal values that have one, as a set equals a frozenset."""
    try:
        hash(value)
    except TypeError:
        return False
    return True


def index_fields(indexes: Iterable[object], argument: str) -> list[tuple[str, ...]]:
    """The fields of each index, as they are given to a database: a name, or several for one index.

    Raises:
        TypeError: Not so.
    """
    if isinstance(indexes, str):
        raise TypeError(f"{argument} is a list; write [{indexes!r}]")
    if not isinstance(indexes, Iterable):
        raise TypeError(f"{argument} lists field names, or tuples of such; found {shown(indexes):.60}")
    found: list[tuple[str, ...]] = []
    for fields in indexes:
        names = (fields,) if isinstance(fields, str) else tuple(fields) if isinstance(fields, Iterable) else ()
        if not names or not all(type(name) is str for name in names):
            raise TypeError(f"{argument} lists field names, or tuples of such; found {shown(fields):.60} in it")
        found.append(names)
    return found
