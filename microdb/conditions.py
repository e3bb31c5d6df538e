"""What a field may be asked for beside equality: a range, or one of several values. Pure."""

import datetime as dt
import uuid
from collections.abc import Iterable
from decimal import Decimal
from typing import Any, Final, NamedTuple

from microdb.errors import shown
from microdb.values import equal

__all__ = ["OneOf", "Range", "above", "at_least", "at_most", "below", "between", "family", "one_of"]

_OPEN: Final[Any] = object()


class Range(NamedTuple):
    """Values from `low` to `high`. What cannot be compared with them, None above all, is in no range."""

    low: Any = _OPEN
    high: Any = _OPEN
    with_low: bool = True
    with_high: bool = True

    @property
    def bounds(self) -> tuple[Any, Any]:
        """Its ends; None where it is open."""
        return tuple([None if end is _OPEN else end for end in (self.low, self.high)])  # type: ignore[return-value]

    @property
    def family(self) -> str | None:
        """The family of its ends, if both have the same."""
        families = {family(end) for end in (self.low, self.high) if end is not _OPEN}
        return families.pop() if len(families) == 1 else None

    def holds(self, value: Any) -> bool:
        """Whether a value is in it."""
        try:
            return bool(
                (self.low is _OPEN or self.low < value or (self.with_low and self.low == value))
                and (self.high is _OPEN or value < self.high or (self.with_high and self.high == value))
            )
        except (TypeError, ArithmeticError):  # As of a nan of Decimal.
            return False

    def __repr__(self) -> str:
        low, high = self.bounds
        return " and ".join(
            f"{sign} {shown(end)}"
            for sign, end in ((">=" if self.with_low else ">", low), ("<=" if self.with_high else "<", high))
            if end is not None
        )


class OneOf(NamedTuple):
    """Values that equal one of these."""

    values: tuple[Any, ...]

    def holds(self, value: Any) -> bool:
        """Whether a value is one of them."""
        return any(equal(value, one) for one in self.values)

    def __repr__(self) -> str:
        return f"one of {shown(list(self.values))}"


def family(value: Any) -> str | None:
    """A name for the values that can be compared with this one, and with each other; None if there is none.

    Moments that their time zone has twice, or not at all, have no place: within the zone the clock on the wall counts,
    and between zones UTC.
    """
    kind = type(value)
    if kind is dt.datetime or kind is dt.time:
        offset = value.utcoffset()
        if offset != value.replace(fold=not value.fold).utcoffset():
            return None
        return f"{kind.__name__}, {'naive' if offset is None else 'aware'}"
    return _FAMILIES.get(kind) if equal(value, value) else None  # A nan differs from itself.


_FAMILIES: Final[dict[type, str]] = {
    **dict.fromkeys([bool, int, float, Decimal], "number"),
    **{kind: kind.__name__ for kind in (str, bytes, dt.date, dt.timedelta, uuid.UUID)},
}


def between(low: Any, high: Any) -> Range:
    """From `low` to `high`, both included.

    >>> between(1, 3).holds(3)
    True
    """
    return Range(low, high)


def at_least(low: Any) -> Range:
    """`low` and more.

    >>> at_least(3).holds(3), at_least(3).holds(None)
    (True, False)
    """
    return Range(low=low)


def above(low: Any) -> Range:
    """More than `low`.

    >>> above(3).holds(3)
    False
    """
    return Range(low=low, with_low=False)


def at_most(high: Any) -> Range:
    """`high` and less.

    >>> at_most("m").holds("a")
    True
    """
    return Range(high=high)


def below(high: Any) -> Range:
    """Less than `high`.

    >>> below(3).holds(3), below(3).holds("a")
    (False, False)
    """
    return Range(high=high, with_high=False)


def one_of(values: Iterable[Any]) -> OneOf:
    """Any of these values.

    >>> one_of(["undone", "failed"]).holds("failed")
    True

    Raises:
        TypeError: One value is given, not several.
    """
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise TypeError(f"one_of takes several values; write [{shown(values):.60}]")
    return OneOf(tuple(values))
