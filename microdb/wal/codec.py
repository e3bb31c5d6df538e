"""Changes to bytes and back: the only user of msgpack.

A payload is one msgpack array with an item a change, and with none changes nothing. What the item is tells the change:

    map                 upsert: the record; its key follows from its fields
    [1, [value, …]]     delete: the key
    [2]                 clear
    [3, map, float]     upsert of a record that expires: itself, and when, in seconds since 1970; a finite float
    [4, map, float]     the same, as a save carries it over from the log before: it changes nothing, and no other stands
                        in a payload with such

A value that msgpack does not know, or would give back as another type, is an extension whose code is that of its form
in `values.FORMS` and whose data is the form's plain value, packed.
"""

import functools
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Final, cast

import msgpack

from microdb.changes import Change, Upserts
from microdb.errors import RecordError
from microdb.keys import Key, PartitionKeys
from microdb.values import (
    DEPTH_MAX,
    FLAT,
    FORMS,
    STR,
    Expiring,
    Nested,
    Record,
    are_dicts,
    check,
    checked,
    is_sound,
    kept,
)
from microdb.wal.format import PAYLOAD_BYTES_MAX, Payload

__all__ = [
    "NOTHING",
    "CodecError",
    "decode",
    "decode_all",
    "decode_names",
    "encode_carried",
    "encode_clear",
    "encode_delete",
    "encode_names",
    "encode_upsert",
    "encode_upserts",
    "is_carried",
    "join",
    "parts",
]

_ARRAY: Final = struct.Struct(">BI")
_ITEMS_BYTES_MAX: Final = PAYLOAD_BYTES_MAX - _ARRAY.size
_TOGETHER: Final = 4_096
_TOGETHER_BYTES: Final = 8 << 20
"""How many payloads to unpack at once, if that is not more than so many bytes."""
_TOGETHER_LARGE: Final = 16
"""How many to take one by one, if it is."""

_ARRAY_BYTES: Final = {0xDC: 3, 0xDD: 5}
"""How long the header of an array is that begins with a byte; of others one byte."""

NOTHING: Final = b"\x90"
"""The payload of no change at all."""

LIST: Final = frozenset({list})

_DELETE: Final = 1
_CLEAR: Final = 2
_EXPIRING: Final = 3
_CARRIED: Final = 4
_CARRIED_BEGINS: Final = bytes([0x93, _CARRIED])

_FORM_OF_TYPE: Final = {form.type: form for form in FORMS}
_FORM_OF_CODE: Final = {form.code: form for form in FORMS}


# What msgpack, and the forms, raise on bytes that nobody wrote.
_DECODE_ERRORS: Final = (
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError),
    *(OSError, RecordError, msgpack.UnpackException),
)


class CodecError(Exception):
    """These bytes are no payload. Whoever knows the file turns it into a CorruptError."""


def _default(value: Any) -> msgpack.ExtType:
    form = _FORM_OF_TYPE[type(value)]
    return msgpack.ExtType(form.code, _pack(form.to_plain(value)))


def _pack(value: Any) -> bytes:
    return cast("bytes", msgpack.packb(value, default=_default, strict_types=True))


def _unpack(data: Payload) -> Any:
    try:
        return msgpack.unpackb(data, ext_hook=_EXT_HOOKS[0], strict_map_key=False)
    except MemoryError:
        _check_is_whole(data)
        raise


def _ext_hook(depth: int, code: int, data: bytes) -> Any:
    if depth == len(_EXT_HOOKS) - 1:
        raise ValueError("nested too deep")
    # An Unpacker keeps its stack on the heap. That of `unpackb` takes so much of the thread's own that a few dozen
    # calls inside one another overflow it, which no exception can tell.
    unpacker = _unpacker(data, _EXT_HOOKS[depth + 1])
    try:
        plain = unpacker.unpack()
    except MemoryError:
        _check_is_whole(data)
        raise
    if unpacker.tell() != len(data):
        raise ValueError("more than one value")
    return _FORM_OF_CODE[code].from_plain(plain)


def _unpacker(data: Payload, ext_hook: Callable[[int, bytes], Any]) -> msgpack.Unpacker:
    size = len(data) + 1
    unpacker = msgpack.Unpacker(None, ext_hook=ext_hook, strict_map_key=False, read_size=size, max_buffer_size=size)
    unpacker.feed(data)
    return unpacker


def _check_is_whole(data: Payload) -> None:
    """Raises one of `_DECODE_ERRORS` if the data ends before what it declares.

    For msgpack makes room for each list as long as it is said to be: lists in one another may ask for a thousand times
    the data. Going over it takes none.
    """
    _unpacker(data, msgpack.ExtType).skip()


_EXT_HOOKS: Final = tuple(functools.partial(_ext_hook, depth) for depth in range(DEPTH_MAX + 4))
"""The hook of each depth: a form may hold a value that needs a form."""


_KEPT_BYTES_MAX: Final = 1 << 20

_packers: Final[list[msgpack.Packer]] = []
"""Packers that nobody is using: making one costs three times what packing a record does.

Whoever packs takes one out, because a packer in the middle of a record must not be used by another thread, nor by
a signal handler that runs in between.
"""


def encode_upsert(record: Record) -> bytes:
    """The item of an upsert; of an `Expiring` record with its time.

    Raises:
        RecordError: A str in the record has no UTF-8 form.
    """
    try:
        if type(record) is dict:
            return _packed(record)
        if type(record) is Expiring:
            return _packed([_EXPIRING, dict(record), record.expires_at])
        return _packed(dict(record))
    except UnicodeEncodeError:
        checked(dict(record))
        raise


def encode_carried(record: Expiring) -> bytes:
    """The item by which a save carries a record over."""
    return _packed([_CARRIED, dict(record), record.expires_at])


def is_carried(payload: Payload) -> bool:
    """Whether a payload holds only what a save carried over: nothing that who has read on to it does not know.

    >>> is_carried(join([encode_carried(Expiring({"id": 1}, 1.5))])), is_carried(join([encode_clear()]))
    (True, False)
    """
    at = _ARRAY_BYTES.get(payload[0], 1) if payload else 0
    return payload[at : at + 2] == _CARRIED_BEGINS


def encode_upserts(records: list[Record]) -> bytes:
    """The payload that upserts records, one after the other: a tenth of the price of `join` of their items.

    Raises:
        RecordError: A str in one of them has no UTF-8 form, or a name only equals one; or it would be longer than a
            frame may be.
    """
    try:
        payload = _packed(records)
    except (UnicodeEncodeError, KeyError):  # A KeyError for want of a form.
        for record in records:
            checked(record)
        raise  # pragma: no cover  # One of them was refused.
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise _too_large(len(payload))
    return payload


def _packed(value: Any) -> bytes:
    try:
        packer = _packers.pop()
    except IndexError:
        packer = msgpack.Packer(default=_default, strict_types=True)
    data: bytes = packer.pack(value)
    if len(data) <= _KEPT_BYTES_MAX:  # For it keeps as much memory as it ever needed.
        _packers.append(packer)
    return data


def _too_large(size: int) -> RecordError:
    return RecordError("record", f"{size} bytes encoded; one change or batch holds at most {_ITEMS_BYTES_MAX}")


def encode_delete(key: Key) -> bytes:
    """The item of a delete."""
    return _pack([_DELETE, list(key)])


def encode_clear() -> bytes:
    """The item of a clear."""
    return _pack([_CLEAR])


def join(items: Sequence[bytes]) -> bytes:
    """The payload of these items.

    Raises:
        RecordError: It would be longer than a frame may be.
    """
    if len(items) == 1:
        if len(items[0]) > _ITEMS_BYTES_MAX:
            raise _too_large(len(items[0]))
        return b"\x91" + items[0]
    size = sum(map(len, items))
    if size > _ITEMS_BYTES_MAX:
        raise _too_large(size)
    return cast("bytes", msgpack.Packer().pack_array_header(len(items))) + b"".join(items)


def parts(items: Sequence[bytes]) -> Iterator[slice]:
    """Where to cut items, so that `join` takes each part: of some MiB, or of one item that is longer."""
    begin = size = 0
    for at, item in enumerate(items):
        if size and size + len(item) > _TOGETHER_BYTES:
            yield slice(begin, at)
            begin, size = at, 0
        size += len(item)
    if size:
        yield slice(begin, len(items))


def decode(payload: Payload, keys: PartitionKeys) -> list[Change]:
    """The changes of a payload, their records ready to be stored.

    Raises:
        CodecError: These bytes are no payload.
    """
    try:
        items = _unpack(payload)
        if type(items) is not list:
            raise TypeError(f"expected an array, found {type(items).__name__}")
        return [_change(item, keys) for item in items]
    except _DECODE_ERRORS as error:
        raise CodecError(f"not a batch of changes ({type(error).__name__}: {error})") from error


def decode_all(payloads: Sequence[Payload], keys: PartitionKeys) -> Iterator[Iterable[Change]]:
    """The changes of many payloads, some thousand or some MiB at a time: a third of the price of `decode` of each.

    Of three or fewer `decode` is quicker.

    Raises:
        CodecError: On the way, at one that is no payload.
    """
    begin = 0
    while begin < len(payloads):
        some = payloads[begin : begin + _TOGETHER]
        is_large = sum(map(len, some)) > _TOGETHER_BYTES
        if is_large:
            some = some[:_TOGETHER_LARGE]
        begin += len(some)
        changes = None if is_large else _upserts(some, keys)
        if changes is not None:
            yield changes
        else:
            for payload in some:
                yield decode(payload, keys)


def _upserts(payloads: Sequence[Payload], keys: PartitionKeys) -> Upserts | None:
    """The changes of payloads that upsert records and do nothing else, none of which needs a closer look; else None.

    Bytes that are no payload alone might be one together. Nobody writes such, and who would has a right crc for them.
    """
    try:
        batches = _unpack(b"".join([_ARRAY.pack(0xDD, len(payloads)), *payloads]))
        items = list(chain.from_iterable(batches))
    except _DECODE_ERRORS:
        return None
    records = kept(items) if LIST.issuperset(map(type, batches)) and are_dicts(items) else None
    found = keys.all_plain(records) if records is not None else None
    return None if records is None or found is None else Upserts(found, records)


def _change(item: Any, keys: PartitionKeys) -> Change:
    if type(item) is dict:
        if FLAT.issuperset(map(type, item.values())) and STR.issuperset(map(type, item)):
            return keys.checked(item), item
        if not is_sound(item):
            check(item)
        return keys.checked(item), Nested(item)
    kind, *rest = item
    if kind == _DELETE:
        key = tuple(*rest)
        hash(key)
        return key, None
    if kind == _CLEAR and not rest:
        return None, None
    if kind in (_EXPIRING, _CARRIED):
        record, expires_at = rest
        if type(record) is not dict or type(expires_at) is not float or not math.isfinite(expires_at):
            raise ValueError("not a record and when it expires")
        key, upserted = cast("tuple[Key, Record]", _change(record, keys))
        return key, Expiring(upserted, expires_at)
    raise ValueError(f"unknown change {item[0]!r}")


def encode_names(names: Sequence[str]) -> bytes:
    """A list of names, for the header of a log."""
    return _pack(list(names))


def decode_names(data: bytes) -> tuple[str, ...]:
    """The names in the header of a log. Raises CodecError."""
    try:
        names = tuple(_unpack(data))
    except _DECODE_ERRORS as error:
        raise CodecError(f"not a list of names ({error})") from error
    if not all(type(name) is str for name in names):
        raise CodecError("not a list of names")
    return names
