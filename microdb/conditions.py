"""What a field may be asked for beside equality: a range, or one of several values. Pure."""

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from microdb.values import equal

__all__ = ["OneOf", "Range", "above", "at_least", "at_most", "below", "between", "one_of"]

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

    def holds(self, value: Any) -> bool:
        """Whether a value is in it."""
        try:
            return bool(
                (self.low is _OPEN or self.low < value or (self.with_low and self.low == value))
                and (self.high is _OPEN or value < self.high or (self.with_high and self.high == value))
            )
        except (TypeError, ArithmeticError):  # As of a nan of Decimal.
            return False

    def __str__(self) -> str:
        low, high = self.bounds
        return " and ".join(
            f"{sign} {end!r}"
            for sign, end in ((">=" if self.with_low else ">", low), ("<=" if self.with_high else "<", high))
            if end is not None
        )


class OneOf(NamedTuple):
    """Values that equal one of these."""

    values: tuple[Any, ...]

    def holds(self, value: Any) -> bool:
        """Whether a value is one of them."""
        return any(equal(value, one) for one in self.values)

    def __str__(self) -> str:
        return f"one of {list(self.values)!r}"


def between(low: Any, high: Any) -> Range:
    """From `low` to `high`, both included.

    >>> between(1, 3).holds(3)
    True
    """
    return Range(low, high)


def at_least(low: Any) -> Range:
    """`low` and more."""
    return Range(low=low)


def above(low: Any) -> Range:
    """More than `low`."""
    return Range(low=low, with_low=False)


def at_most(high: Any) -> Range:
    """`high` and less."""
    return Range(high=high)


def below(high: Any) -> Range:
    """Less than `high`."""
    return Range(high=high, with_high=False)


def one_of(values: Iterable[Any]) -> OneOf:
    """Any of these values.

    >>> one_of(["undone", "failed"]).holds("failed")
    True
    """
    return OneOf(tuple(values))
