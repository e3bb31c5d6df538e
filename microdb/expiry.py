"""Until when a record is there: the time that a caller gives, and whether it has come. Pure: the clock is the caller's.

Times are those of the clock on the wall, in seconds since 1970.
"""

import datetime as dt
from collections.abc import Mapping
from typing import Any, TypeGuard

from microdb.keys import Key
from microdb.timeouts import finite
from microdb.values import Expiring, Record

__all__ = ["has_expired", "seconds", "unexpired", "when"]


def has_expired(record: Record | None, now: float) -> TypeGuard[Expiring]:
    """Whether a stored record is one whose time has come.

    >>> has_expired(Expiring({"id": 1}, 1000.0), 999.9), has_expired(Expiring({"id": 1}, 1000.0), 1000.0)
    (False, True)
    """
    return type(record) is Expiring and record.expires_at <= now


def unexpired(records: Mapping[Key, Record], now: float) -> dict[Key, Record]:
    """A table without what has expired. Costs a copy of the map.

    >>> unexpired({(1,): Expiring({"id": 1}, 1000.0), (2,): {"id": 2}}, 1000.0)
    {(2,): {'id': 2}}
    """
    return {key: record for key, record in records.items() if not has_expired(record, now)}


def when(ttl: float | None, expires_at: float | dt.datetime | None, now: float) -> float | None:
    """When a record expires that is to be there for `ttl` seconds from now on, or until a time; None: never.

    >>> when(60, None, 1000.0), when(None, dt.datetime(1970, 1, 2, tzinfo=dt.UTC), 1000.0), when(None, None, 1000.0)
    (1060.0, 86400.0, None)

    Raises:
        TypeError: Both are given; or one is no number, and the time no datetime with a time zone either.
        ValueError: `ttl` is not above 0; or one is not finite.
    """
    if ttl is not None and expires_at is not None:
        raise TypeError("give ttl or expires_at, not both")
    if ttl is not None:
        return now + seconds("ttl", ttl, "; to remove a record, delete it")
    if expires_at is None:
        return None
    if isinstance(expires_at, dt.datetime):
        if expires_at.utcoffset() is None:
            raise TypeError(f"expires_at: {expires_at!r} has no time zone; give it one, as with .astimezone()")
        return expires_at.timestamp()
    return finite("expires_at", "a number of seconds since 1970, or a datetime with a time zone", expires_at)


def seconds(name: str, given: Any, advice: str = "") -> float:
    """How many seconds an argument of this name stands for.

    Raises:
        TypeError: It is no number.
        ValueError: It is not above 0, where one may be advised what to do, or not finite.
    """
    found = finite(name, "a number of seconds", given)
    if found <= 0:
        raise ValueError(f"{name} is a number of seconds above 0, found {given!r}{advice}")
    return found
