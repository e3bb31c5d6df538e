"""How long a caller is willing to wait, as it is given. Pure."""

import math
from typing import Any

from microdb.errors import shown

__all__ = ["in_seconds"]


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
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(f"timeout is a number of seconds, or None; found {shown(timeout):.60}")
    try:
        found = float(timeout)
    except OverflowError:
        return math.inf
    if math.isnan(found):
        raise ValueError("timeout is a number of seconds, or None; found nan, which never comes")
    return found
