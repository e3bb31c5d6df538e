"""Amounts of time, as callers give them. Pure."""

import math
from typing import Any

from microdb.errors import shown

__all__ = ["finite", "in_seconds"]


def in_seconds(timeout: Any, otherwise: float | None = None) -> float | None:
    """A time-out in seconds; `otherwise` if none is given. At once if it is below 0.

    >>> in_seconds(5), in_seconds(10**400), in_seconds(None), in_seconds(None, 0.5)
    (5.0, inf, None, 0.5)

    Raises:
        TypeError: It is no number.
        ValueError: It is a nan.
    """
    if timeout is None:
        return otherwise
    found = _number("timeout", "a number of seconds, or None;", timeout)
    if math.isnan(found):
        raise ValueError("timeout is a number of seconds, or None; found nan, which never comes")
    return found


def finite(name: str, what: str, given: Any) -> float:
    """The number that an argument of this name stands for.

    Raises:
        TypeError: It is none.
        ValueError: It is not finite.
    """
    found = _number(name, f"{what},", given)
    if not math.isfinite(found):
        raise ValueError(f"{name} is {what}, and finite; found {found!r}")
    return found


def _number(name: str, what: str, given: Any) -> float:
    """As a float; infinite if it is too large for one."""
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise TypeError(f"{name} is {what} found {shown(given):.60}")
    try:
        return float(given)
    except OverflowError:
        return math.inf if given > 0 else -math.inf
