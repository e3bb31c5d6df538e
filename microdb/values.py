"""What may be stored in a record, how it is checked and copied, and its portable form.

Pure: nothing here knows of files, logs or JSON text. The log (`wal.codec`) and the snapshot (`json_values`) both carry
a value that their format does not know by its *portable form*: the row of `FORMS` for its type.
"""

import datetime as dt
import enum
import uuid
import zoneinfo
from collections.abc import Callable, Sequence
from decimal import Decimal
from itertools import chain
from types import EllipsisType, NoneType
from typing import Any, Final, NamedTuple, TypeVar

from microdb.errors import RecordError, shown

__all__ = [
    "ABSENT",
    "DEPTH_MAX",
    "FORMS",
    "UNKNOWN",
    "Absent",
    "Expiring",
    "Form",
    "Nested",
    "Record",
    "Unknown",
    "are_dicts",
    "check",
    "checked",
    "equal",
    "is_sound",
    "kept",
    "stored",
]

T = TypeVar("T")
Record = dict[str, Any]


class Absent(enum.Enum):
    """The type of `ABSENT`, which stands for a record that is not there.

    >>> import microdb
    >>> mdb = microdb.MicroDB(":memory:", ["name"])
    >>> mdb.upsert({"name": "Bob"}, expected=microdb.ABSENT)  # Only if there is none.
    >>> ("Bob",) in mdb
    True
    """

    ABSENT = "absent"

    def __repr__(self) -> str:
        return "microdb.ABSENT"


ABSENT: Final = Absent.ABSENT


class Unknown(enum.Enum):
    """The type of `UNKNOWN`, which stands for a record that cannot be told any more.

    >>> UNKNOWN
    microdb.UNKNOWN
    """

    UNKNOWN = "unknown"

    def __repr__(self) -> str:
        return "microdb.UNKNOWN"


UNKNOWN: Final = Unknown.UNKNOWN

DEPTH_MAX: Final = 64
"""How deep containers may nest inside a record. msgpack packs 1,024 levels and cannot unpack them."""

SIMPLE: Final = frozenset(
    {NoneType, bool, int, float, complex, bytes, EllipsisType, dt.date, dt.timedelta, Decimal, uuid.UUID}
)
"""Immutable types of which every value is accepted."""

FLAT: Final = SIMPLE | {str}
"""Types that need no copy. Of `str` only a lone surrogate is refused, which the encoder finds."""

STR: Final = frozenset({str})
DICT: Final = frozenset({dict})

_DECIMAL_BITS: Final = 2_000
"""Longer ints are written in hex: Python refuses decimals beyond a limit that a program may lower to 640 digits."""


class Form(NamedTuple):
    """How a value of one type becomes a value that every format carries, and back.

    Attributes:
        type: The exact type.
        name: Its tag in JSON, without the dollar sign.
        code: Its msgpack extension code.
        to_plain: Value to str, list or None. A list may hold values that need a form themselves.
        from_plain: The inverse. Raises ValueError, TypeError or LookupError on what `to_plain` never gives.
    """

    type: type
    name: str
    code: int
    to_plain: Callable[[Any], Any]
    from_plain: Callable[[Any], Any]


class Nested(dict[str, Any]):
    """A stored record with something mutable or deep inside: its copy is deep, and a plain dict.

    A record of immutable values alone is stored as a plain dict, whose own `copy` does. So a reader calls
    ``record.copy()`` and gets what is its own in either case, at the least price.
    """

    __slots__ = ()

    def copy(self) -> Record:
        """A plain dict that shares nothing mutable with this one."""
        found = dict(self)
        for name, value in self.items():
            if type(value) not in FLAT:
                found[name] = _copied(value)
        return found


class Expiring(Nested):
    """A stored record that is there until a time, and counts as absent from then on. Its copy is a plain dict, too.

    It stays in the table, at its place, until a delete of it is in the log: were each process to drop it by its own
    clock, the order of keys would differ between processes.

    Attributes:
        expires_at: The time, in seconds since 1970.
    """

    __slots__ = ("expires_at",)

    def __init__(self, record: Record, expires_at: float) -> None:
        super().__init__(record)
        self.expires_at = expires_at


def stored(record: Record) -> Record:
    """The private copy of a record that a table keeps.

    Costs a pass or two over the values' types where they are immutable, or lists and dicts of such. Lone surrogates
    pass here: whoever encodes the record meets them, and calls `checked` for the message.

    Raises:
        RecordError: It cannot be stored; the error names the path of the field.
    """
    if type(record) is dict:
        copy = record.copy()  # First: what another thread does to the record changes nothing.
        if STR.issuperset(map(type, copy)):
            if FLAT.issuperset(map(type, copy.values())):
                return copy
            if is_sound(copy):
                return Nested(Nested(copy).copy())
    return checked(record)


def equal(one: Any, other: Any) -> bool:
    """Whether two stored values are equal. A signalling nan, which refuses to be compared, equals nothing."""
    try:
        return bool(one == other)
    except ArithmeticError:
        return False


def are_dicts(records: Sequence[Any]) -> bool:
    """Whether all are dicts, and none of a subclass."""
    return DICT.issuperset(map(type, records))


def kept(records: list[Any]) -> list[Record] | None:
    """Dicts as a table keeps them, its own from now on; None if any of them needs a closer look. See `are_dicts`.

    Costs next to nothing a record where all values are immutable, and little where they are lists and dicts of such.
    A name that is no str passes if it equals one that a record before has; the encoder refuses it. Lone surrogates pass
    as they do in `stored`.
    """
    # The names of all together: mostly they share them.
    if not STR.issuperset(map(type, set().union(*records))):
        return None
    if FLAT.issuperset(map(type, chain.from_iterable(map(dict.values, records)))):
        return records
    found: list[Record] = []
    for record in records:
        if FLAT.issuperset(map(type, record.values())):
            found.append(record)
        elif is_sound(record):
            found.append(Nested(record))
        else:
            return None
    return found


def is_sound(value: Any, depth: int = DEPTH_MAX + 1) -> bool:
    """Whether a record surely can be stored, told at little price. Lone surrogates pass.

    Args:
        value: A record, or what is in one.
        depth: How many levels of containers it may have.
    """
    kind = type(value)
    if kind is list:
        items = value
    elif kind is dict and STR.issuperset(map(type, value)):
        items = value.values()
    else:
        return kind in FLAT
    if depth == 0:
        return False
    if FLAT.issuperset(map(type, items)):
        return True
    return all(is_sound(item, depth - 1) for item in items if type(item) not in FLAT)


def checked(record: Record) -> Record:
    """As `stored`, looking at every value, lone surrogates included."""
    check(record)
    if FLAT.issuperset(map(type, record.values())):
        return record.copy()
    return Nested(Nested(record).copy())


def check(record: Record) -> None:
    """Raises RecordError if a record cannot be stored."""
    if type(record) is not dict:
        raise RecordError("record", f"expected a dict, found {_name(record)}")
    for name, value in record.items():
        if type(name) is not str:
            raise RecordError("record", f"field names are str, found {shown(name):.60} ({_name(name)})")
        _check_str(name, "record (a field name)")
        _check(value, f"record[{name!r}]", DEPTH_MAX)


def _copied(value: Any) -> Any:
    kind = type(value)
    if kind is list:
        copy = value.copy()
        return copy if FLAT.issuperset(map(type, copy)) else list(map(_copied, copy))
    if kind is dict:
        copy = value.copy()
        return copy if FLAT.issuperset(map(type, copy.values())) else {key: _copied(copy[key]) for key in copy}
    if kind is tuple:
        return tuple([_copied(item) for item in value])
    if kind is set:
        return value.copy()
    return value


def _check(value: Any, path: str, depth: int) -> None:  # noqa: C901  # One branch a kind of value.
    """Refuse what cannot be stored, naming its path; `depth` is how many more levels may follow."""
    kind = type(value)
    if kind in SIMPLE:
        return
    if kind is str:
        _check_str(value, path)
    elif kind is dt.datetime or kind is dt.time:
        _check_zone(value.tzinfo, path)
    elif depth == 0:
        raise RecordError(path, f"nested more than {DEPTH_MAX} deep")
    elif kind is list or kind is tuple:
        for index, item in enumerate(value):
            _check(item, f"{path}[{index}]", depth - 1)
    elif kind is dict:
        for key, item in value.items():
            _check(key, f"{path} (a key)", depth - 1)
            _check(item, f"{path}[{shown(key):.60}]", depth - 1)
    elif kind is set or kind is frozenset:
        for item in value:
            _check(item, f"{path} (a member)", depth - 1)
    else:
        raise RecordError(path, f"a value of type {_name(value)} cannot be stored; {_advice(value)}")


def _check_str(value: str, path: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        found = value[error.start]
        raise RecordError(path, f"lone surrogate {found!a} at position {error.start}; it has no UTF-8 form") from None


def _check_zone(zone: dt.tzinfo | None, path: str) -> None:
    if zone is None:
        return
    if type(zone) is dt.timezone:
        _check_str(zone.tzname(None), f"{path} (the name of its time zone)")
    elif type(zone) is not zoneinfo.ZoneInfo or not _is_known(zone):
        raise RecordError(
            path, f"time zone {zone!r:.60}: use datetime.timezone or a zoneinfo.ZoneInfo with a known key"
        )


def _is_known(zone: zoneinfo.ZoneInfo) -> bool:
    """Whether its key finds a zone again: `ZoneInfo.from_file` takes any key or none."""
    try:
        return bool(zoneinfo.ZoneInfo(zone.key or "").key)
    except (LookupError, ValueError, OSError):
        return False


def _name(value: Any) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _advice(value: Any) -> str:
    base = next((base for base in type(value).__mro__[1:] if base in FLAT or base in CONTAINERS), None)
    if base is None:
        return "store its parts as plain values"
    return f"store it as {base.__name__}"


CONTAINERS: Final = frozenset({list, tuple, dict, set, frozenset, dt.datetime, dt.time})


def _int_to_plain(value: int) -> str:
    return str(value) if value.bit_length() < _DECIMAL_BITS else hex(value)


def _moment_to_plain(value: dt.datetime | dt.time) -> str | list[Any]:
    """ISO text; with a fold, a named offset or a zone: [text, fold, zone or None, name of the offset or None].

    A zone is the key of a `ZoneInfo`, or the microseconds of an offset below a second, which `fromisoformat` takes for
    UTC.
    """
    zone = value.tzinfo
    if isinstance(zone, zoneinfo.ZoneInfo):
        return [value.replace(tzinfo=None, fold=0).isoformat(), value.fold, zone.key, None]
    offset = (zone and zone.utcoffset(None)) or dt.timedelta()
    name = zone.tzname(None) if zone is not None and zone.tzname(None) != dt.timezone(offset).tzname(None) else None
    if offset and abs(offset) < dt.timedelta(seconds=1):
        return [value.replace(tzinfo=None, fold=0).isoformat(), value.fold, offset // dt.timedelta.resolution, name]
    text = value.replace(fold=0).isoformat()
    return text if not value.fold and name is None else [text, value.fold, None, name]


def _moment_from_plain(kind: type[dt.datetime] | type[dt.time], plain: Any) -> dt.datetime | dt.time:
    if type(plain) is str:
        return kind.fromisoformat(plain)
    text, fold, zone, name = plain
    value = kind.fromisoformat(text)
    if type(zone) is str:
        return value.replace(fold=fold, tzinfo=zoneinfo.ZoneInfo(zone))
    if zone is None and name is None:
        return value.replace(fold=fold)
    offset = value.utcoffset() if zone is None else dt.timedelta(microseconds=zone)
    if offset is None:
        raise ValueError("a name for an offset, and no offset")
    return value.replace(fold=fold, tzinfo=dt.timezone(offset) if name is None else dt.timezone(offset, name))


def _only(kind: type[T], plain: Any) -> T:
    """What `to_plain` gave, and nothing else that the constructor would take, some of it for a long time."""
    if type(plain) is not kind:
        raise TypeError(f"expected {kind.__name__}, found {_name(plain)}")
    return plain


def _ellipsis_from_plain(plain: Any) -> EllipsisType:
    if plain is not None:
        raise ValueError("an ellipsis carries null")
    return ...


FORMS: Final = (
    Form(tuple, "tuple", 1, list, lambda plain: tuple(_only(list, plain))),
    Form(set, "set", 2, list, lambda plain: set(_only(list, plain))),
    Form(frozenset, "frozenset", 3, list, lambda plain: frozenset(_only(list, plain))),
    Form(int, "int", 4, _int_to_plain, lambda plain: int(_only(str, plain), 0)),
    Form(complex, "complex", 5, lambda value: [value.real, value.imag], lambda plain: complex(*plain)),
    Form(EllipsisType, "ellipsis", 6, lambda _: None, _ellipsis_from_plain),
    Form(dt.datetime, "datetime", 7, _moment_to_plain, lambda plain: _moment_from_plain(dt.datetime, plain)),
    Form(dt.date, "date", 8, dt.date.isoformat, dt.date.fromisoformat),
    Form(dt.time, "time", 9, _moment_to_plain, lambda plain: _moment_from_plain(dt.time, plain)),
    Form(
        dt.timedelta,
        "timedelta",
        10,
        lambda value: [value.days, value.seconds, value.microseconds],
        lambda plain: dt.timedelta(*plain),
    ),
    Form(Decimal, "decimal", 11, str, lambda plain: Decimal(_only(str, plain))),
    Form(uuid.UUID, "uuid", 12, str, lambda plain: uuid.UUID(_only(str, plain))),
)
"""The portable forms. A code is never used again for another type: old logs hold them.

A format leaves out the types that it knows itself: msgpack carries an `int` of 64 bits, JSON every `int` below 2**64.
"""
