"""Fields to key: the tuple under which a record stands in the table."""

import datetime as dt
import uuid
import zoneinfo
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from types import NoneType
from typing import Any, Final

from microdb.errors import RecordError, shown

__all__ = ["Key", "PartitionKeys"]

Key = tuple[Any, ...]

_PLAIN: Final = frozenset({NoneType, bool, int, str, bytes, dt.date, dt.timedelta, uuid.UUID})
"""Types of which every value is hashable and equal to itself, by whatever way it came."""


NAMES_CHARS_MAX: Final = 8_000
"""The names stand in the header of every log, where 64 KiB are the most that is read."""


class PartitionKeys:
    """The names of the fields that make a key, and what they make of a record.

    Attributes:
        names: The fields, in order.

    Raises:
        TypeError: Not an iterable of str.
        ValueError: None at all, or one twice.
    """

    def __init__(self, names: Iterable[str]) -> None:
        if isinstance(names, str):
            raise TypeError(f"partition_keys is a list of field names; write [{names!r}]")
        if not isinstance(names, Iterable):
            raise TypeError(f"partition_keys is a list of field names, found {shown(names):.60}")
        self.names: Final = tuple(names)
        for name in self.names:
            if type(name) is not str:
                raise TypeError(f"partition_keys is a list of field names, found {shown(name):.60} in it")
            if not _is_utf8(name):
                raise ValueError(f"partition_keys: a lone surrogate in {name!a}, which has no UTF-8 form")
        if sum(map(len, self.names)) > NAMES_CHARS_MAX:
            raise ValueError(f"partition_keys: the names are together longer than {NAMES_CHARS_MAX} characters")
        if not self.names or len(set(self.names)) < len(self.names):
            raise ValueError(f"partition_keys names one or more different fields, found {list(self.names)!r}")
        self._single: Final = self.names[0] if len(self.names) == 1 else None
        self._several: Final = itemgetter(*self.names)

    def of(self, record: Mapping[str, Any]) -> Key:
        """The key of a record; a field that it lacks counts as None.

        >>> PartitionKeys(["job", "name"]).of({"name": "Bob", "what": "ever"})
        (None, 'Bob')
        """
        try:
            if self._single is not None:
                return (record[self._single],)
            return self._several(record)  # type: ignore[no-any-return]  # A tuple, as there are two names or more.
        except KeyError:
            return tuple([record.get(name) for name in self.names])

    def given(self, record_or_key: object) -> Key:
        """The key that is given, or that a record has. Raises TypeError if it is neither."""
        if isinstance(record_or_key, tuple):
            return record_or_key
        if isinstance(record_or_key, Mapping):
            return self.of(record_or_key)
        raise TypeError(f"expected a record or {self._no_key(record_or_key)}")

    def missing(self, key: object) -> KeyError:
        """The error of a key that is not there: the key, or if this is no tuple, how to write one.

        >>> PartitionKeys(["name"]).missing("Bob")
        KeyError("expected a key tuple ('name',), found 'Bob'; write ['Bob',]")
        """
        if isinstance(key, tuple):
            return KeyError(key)
        advice = f"; write [{shown(key):.60},]" if self._single is not None else ""
        return KeyError(f"expected {self._no_key(key)}{advice}")

    def check_hash(self, key: object) -> None:
        """Raises TypeError, with what a key is, if this cannot be looked up."""
        try:
            hash(key)
        except TypeError as error:
            raise TypeError(f"expected {self._no_key(key)}: {error}") from None

    def _no_key(self, found: object) -> str:
        return f"a key tuple {self.names}, found {shown(found):.60}"

    def all_plain(self, records: Sequence[Mapping[str, Any]]) -> list[Key] | None:
        """What `checked` gives of each record, at a fraction of its price; None if any needs a closer look."""
        try:
            found = list(map(self._several, records))
        except KeyError:
            return None
        if self._single is None:
            return found if _PLAIN.issuperset(map(type, chain.from_iterable(found))) else None
        return list(zip(found, strict=True)) if _PLAIN.issuperset(map(type, found)) else None

    def checked(self, record: Mapping[str, Any]) -> Key:
        """The key of a record that is to be stored.

        Raises:
            RecordError: A key field holds something mutable, or a nan, which is not even equal to itself.
        """
        try:
            # As `of`, for a part of the price.
            key = (record[self._single],) if self._single is not None else self._several(record)
        except KeyError:
            key = self.of(record)
        if not _PLAIN.issuperset(map(type, key)):
            for name, value in zip(self.names, key, strict=True):
                _check(value, f"record[{name!r}]")
        return key


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check(value: Any, path: str) -> None:
    try:
        hash(value)
    except TypeError:
        found = type(value).__name__
        raise RecordError(path, f"a key field cannot hold a {found}; use a str, a number or a tuple of such") from None
    if value != value:  # noqa: PLR0124  # Only a nan differs from itself.
        raise RecordError(path, "a key field cannot hold nan, which equals nothing; leave the field out or use None")
    zone = getattr(value, "tzinfo", None)
    if isinstance(zone, zoneinfo.ZoneInfo) and zone is not zoneinfo.ZoneInfo(zone.key):
        # In a fold or a gap it would not equal the same moment of the zone that everybody else reads back.
        raise RecordError(path, "a key field cannot hold a private ZoneInfo; use ZoneInfo(key)")
    if isinstance(value, tuple | frozenset):
        for item in value:
            _check(item, path)
