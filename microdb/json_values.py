"""Values as JSON carries them, and back.

Pure: from values to what any JSON encoder writes, and from what any JSON decoder gives. No text, no files.

The notation, which a person may also write by hand:

    None, bool, float, str, list       plain
    int                                plain from -2**63 to 2**64 - 1, for other readers; else {"$int": "0x..."}
    nan, inf, -inf                     {"$float": "nan"}
    dict with str keys alone           an object; a key that begins with $ gets one more $ in front
    any other dict                     {"$dict": [[key, value], ...]}
    bytes                              {"$bytes": base64}
    the types of `values.FORMS`        {"$name": portable form}

So an object with exactly one key, which begins with one $, is a tag, and a single $ stands nowhere else. A record is
always an object and its keys are always names: only values have tags.
"""

import base64
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, compress, islice
from math import isfinite
from operator import length_hint
from types import MappingProxyType, NoneType
from typing import Any, Final

from microdb.errors import RecordError, shown
from microdb.values import DEPTH_MAX, FLAT, FORMS, STR, Nested, Record

__all__ = ["decode_record", "decode_row", "encode_records", "encode_rows"]

INT_MIN: Final = -(2**63)
INT_MAX: Final = 2**64 - 1

NUMBERS: Final = frozenset({int, float})
UNCHANGED: Final = frozenset({NoneType, bool, str})
LEAVES: Final = UNCHANGED | NUMBERS
"""The types that JSON carries as they are and that hold nothing else; of numbers, those that `_is_plain` passes."""

PLAIN: Final = LEAVES | {list, dict}
"""The types that JSON may carry as they are."""

NOT_PLAIN: Final = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, OSError)
"""What a constructor may raise on the content of a tag: Decimal an ArithmeticError, UUID an AttributeError, ZoneInfo an
OSError where the key names a folder."""


def encode_records(records: list[Record]) -> list[Record]:
    """JSON-able objects for records, in order; what needs no change is not copied.

    Costs a pass at C speed where all records are plain.
    """
    values = list(chain.from_iterable(map(dict.values, records)))
    if _is_plain(values) and not _has_dollar(chain.from_iterable(records)):
        return records
    return [_encoded_object(record) for record in records]


def encode_rows(rows: list[list[Any]]) -> list[list[Any]]:
    """JSON-able lists for the rows of a grid, in order; what needs no change is not copied."""
    if _is_plain(list(chain.from_iterable(rows))):
        return rows
    return [_encoded_list(row) for row in rows]


def decode_record(plain: Record) -> Record:
    """The record that a JSON object stands for, as `values.stored` would give it. `plain` belongs to it from now on.

    Raises:
        RecordError: A tag is unknown or has a wrong content, a name needs one more `$`, or it is nested too deep. The
            error names the place in the JSON.
    """
    if _has_dollar(plain):
        return _decoded_record(plain, _decoded_name)
    return plain if LEAVES.issuperset(map(type, plain.values())) else _decoded_record(plain, str)


def decode_row(names: Sequence[str], row: Sequence[Any]) -> Record:
    """The record that one row of a grid stands for: its names are plain, its values are as those of `decode_record`.

    Raises:
        RecordError: As `decode_record`.
    """
    plain = dict(zip(names, row, strict=True))
    return plain if LEAVES.issuperset(map(type, row)) else _decoded_record(plain, str)


def _is_plain(values: Sequence[Any]) -> bool:
    """Whether JSON carries them all as they are. False may also mean that telling would cost too much.

    A sum is finite only if every term is, and it is the cheapest look at many numbers. What is nested is looked at one
    level after the other.
    """
    kinds = list(map(type, values))
    if not PLAIN.issuperset(kinds):
        return False
    numbers = list(compress(values, map(NUMBERS.__contains__, kinds)))
    try:
        if numbers and not (isfinite(sum(numbers)) and min(numbers) >= INT_MIN and max(numbers) <= INT_MAX):
            return False
    except OverflowError:
        return False
    if LEAVES.issuperset(kinds):
        return True
    lists: list[list[Any]] = [value for value in values if type(value) is list]
    dicts: list[Record] = [value for value in values if type(value) is dict]
    names = set().union(*dicts)
    return (
        STR.issuperset(map(type, names))
        and not _has_dollar(names)
        and _is_plain([*chain.from_iterable(lists), *chain.from_iterable(map(dict.values, dicts))])
    )


def _has_dollar(names: Iterable[str]) -> bool:
    return "$" in "".join(set(names))


def _encoded(value: Any) -> Any:
    kind = type(value)
    if kind is list:
        return _encoded_list(value)
    if kind is int:
        return value if INT_MIN <= value <= INT_MAX else TO_TAG[int](value)
    if kind is float:
        return value if isfinite(value) else {"$float": repr(value)}
    return TO_TAG[kind](value) if kind in TO_TAG else value


def _encoded_list(value: list[Any]) -> list[Any]:
    return value if _is_plain(value) else [item if type(item) in UNCHANGED else _encoded(item) for item in value]


def _encoded_object(value: Record) -> Record:
    if not _has_dollar(value):
        if _is_plain(list(value.values())):
            return value
        return {name: item if type(item) in UNCHANGED else _encoded(item) for name, item in value.items()}
    return {f"${name}" if name.startswith("$") else name: _encoded(item) for name, item in value.items()}


def _encoded_dict(value: dict[Any, Any]) -> Record:
    if STR.issuperset(map(type, value)):
        return _encoded_object(value)
    return {"$dict": [[_encoded(key), _encoded(item)] for key, item in value.items()]}


def _encoded_bytes(value: bytes) -> Record:
    return {"$bytes": base64.b64encode(value).decode("ascii")}


def _encoded_members(tag: str, members: Iterable[Any]) -> Record:
    # The order of a set differs from run to run, and a snapshot kept in git should not.
    return {tag: sorted(map(_encoded, members), key=json.dumps)}


def _encoder_of(kind: type, tag: str, to_plain: Callable[[Any], Any]) -> Callable[[Any], Any]:
    if kind is set or kind is frozenset:
        return lambda value: _encoded_members(tag, value)
    return lambda value: {tag: _encoded(to_plain(value))}


TO_TAG: Final[Mapping[type, Callable[[Any], Any]]] = MappingProxyType(
    {form.type: _encoder_of(form.type, f"${form.name}", form.to_plain) for form in FORMS}
    | {dict: _encoded_dict, bytes: _encoded_bytes}
)


def _decoded_record(plain: Record, decoded_name: Callable[[str], str]) -> Record:
    items = iter(plain.items())
    try:
        record = {
            decoded_name(name): value if type(value) in LEAVES else _decoded(value, DEPTH_MAX) for name, value in items
        }
    except RecordError as error:
        raise RecordError("record" + _place(error, plain, items), error.reason) from error.__cause__
    return record if FLAT.issuperset(map(type, record.values())) else Nested(record)


def _decoded(value: Any, depth: int) -> Any:
    """What a JSON value stands for; `depth` is how many more levels may follow."""
    kind = type(value)
    if kind is not list and kind is not dict:
        return value
    if (tag := _tag(value)) is not None:
        return _decoded_tag(tag, value[tag], depth)
    _check_depth(depth)
    if kind is list:
        return value if LEAVES.issuperset(map(type, value)) else _decoded_list(value, depth - 1)
    items = iter(value.items())
    try:
        return {_decoded_name(name): _decoded(item, depth - 1) for name, item in items}
    except RecordError as error:
        raise RecordError(_place(error, value, items), error.reason) from error.__cause__


def _decoded_list(values: list[Any], depth: int) -> list[Any]:
    items = iter(values)
    try:
        return [_decoded(value, depth) for value in items]
    except RecordError as error:
        raise RecordError(_place(error, values, items), error.reason) from error.__cause__


def _place(error: RecordError, container: Collection[Any], items: Iterator[Any]) -> str:
    """Where something is wrong as seen from a container, of which it is what an iterator gave last, or in that."""
    if isinstance(error, _NameError):
        return ""
    step: Any = len(container) - length_hint(items) - 1
    if type(container) is dict:
        step = next(islice(container, step, None))
    return f"[{step!r:.60}]{error.field}"


class _NameError(RecordError):
    """It is not the value that is wrong."""


def _tag(value: Any) -> str | None:
    """The one key of an object that is a tag."""
    if type(value) is not dict or len(value) != 1:
        return None
    name: str = next(iter(value))
    return name if name.startswith("$") and not name.startswith("$$") else None


def _decoded_name(name: str) -> str:
    if not name.startswith("$"):
        return name
    if not name.startswith("$$"):
        reason = f"the name {name!r:.60} begins with one $, which marks a type; write {'$' + name!r:.60}"
        raise _NameError("", reason)
    return name[1:]


def _decoded_tag(tag: str, plain: Any, depth: int) -> Any:
    try:
        if tag in FROM_CONTAINER_TAG:
            _check_depth(depth)
            return FROM_CONTAINER_TAG[tag](_checked_list(plain), depth - 1)
        if tag in FROM_TAG:
            return FROM_TAG[tag](_content(plain))
    except RecordError as error:
        if not error.field:
            raise
        raise RecordError(f"[{tag!r}]{error.field}", error.reason) from error.__cause__
    except NOT_PLAIN as error:
        raise _refused(f"{shown(plain):.60} is no content of {tag}: {error}") from error
    raise _refused(f"unknown type {tag!r:.60}; if it is a name, write {'$' + tag!r:.60}")


def _content(plain: Any) -> Any:
    """The plain value of a form that is no container: nothing in it is nested, but for a nan in a list."""
    if type(plain) is not list:
        return plain
    return [_float(item["$float"]) if _tag(item) == "$float" else item for item in plain]


def _check_depth(depth: int) -> None:
    if depth == 0:
        raise _refused(f"nested more than {DEPTH_MAX} deep")


def _checked_list(plain: Any) -> list[Any]:
    if type(plain) is not list:
        raise TypeError("expected a list")
    return plain


def _refused(reason: str) -> RecordError:
    """An error whose place is put in front on its way out."""
    return RecordError("", reason)


def _tuple(items: list[Any], depth: int) -> tuple[Any, ...]:
    return tuple(_decoded_list(items, depth))


def _set(items: list[Any], depth: int) -> set[Any]:
    members = set(_decoded_list(items, depth))
    if len(members) < len(items):
        raise ValueError("a member stands in it twice")
    return members


def _frozenset(items: list[Any], depth: int) -> frozenset[Any]:
    return frozenset(_set(items, depth))


def _dict(items: list[Any], depth: int) -> dict[Any, Any]:
    pairs = dict(_pair(item, f"[{number}]", depth) for number, item in enumerate(items))
    if len(pairs) < len(items):
        raise ValueError("a key stands in it twice")
    return pairs


def _pair(item: Any, step: str, depth: int) -> tuple[Any, Any]:
    _key, _value = _checked_list(item)
    try:
        key, value = _decoded_list(item, depth)
    except RecordError as error:
        raise RecordError(step + error.field, error.reason) from error.__cause__
    return key, value


def _float(plain: Any) -> float:
    # A new object each time: two nans that are one object would become one member of a set.
    if plain not in {"nan", "inf", "-inf"}:
        raise ValueError("expected 'nan', 'inf' or '-inf'")
    return float(plain)


def _bytes(plain: Any) -> bytes:
    return base64.b64decode(plain, validate=True)


FROM_CONTAINER_TAG: Final[Mapping[str, Callable[[list[Any], int], Any]]] = MappingProxyType(
    {"$tuple": _tuple, "$set": _set, "$frozenset": _frozenset, "$dict": _dict}
)

FROM_TAG: Final[Mapping[str, Callable[[Any], Any]]] = MappingProxyType(
    {f"${form.name}": form.from_plain for form in FORMS if f"${form.name}" not in FROM_CONTAINER_TAG}
    | {"$float": _float, "$bytes": _bytes}
)
