"""Changes to bytes and back: the only user of msgpack.

A payload is one msgpack array with an item a change. What the item is tells the change:

    map                 upsert: the record; its key follows from its fields
    [1, [value, …]]     delete: the key
    [2]                 clear

A value that msgpack does not know, or would give back as another type, is an extension whose code is that of its form
in `values.FORMS` and whose data is the form's plain value, packed.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import msgpack

from microdb.changes import Change
from microdb.errors import RecordError
from microdb.keys import Key, PartitionKeys
from microdb.values import DEPTH_MAX, FLAT, FORMS, STR, Nested, Record, check, checked
from microdb.wal.format import PAYLOAD_BYTES_MAX

__all__ = [
    "CodecError",
    "decode",
    "decode_names",
    "encode_clear",
    "encode_delete",
    "encode_names",
    "encode_upsert",
    "join",
]

_DELETE: Final = 1
_CLEAR: Final = 2

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


def _unpack(data: bytes | memoryview) -> Any:
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


def _unpacker(data: bytes | memoryview, ext_hook: Callable[[int, bytes], Any]) -> msgpack.Unpacker:
    size = len(data) + 1
    unpacker = msgpack.Unpacker(None, ext_hook=ext_hook, strict_map_key=False, read_size=size, max_buffer_size=size)
    unpacker.feed(data)
    return unpacker


def _check_is_whole(data: bytes | memoryview) -> None:
    """Raises one of `_DECODE_ERRORS` if the data ends before what it declares.

    For msgpack makes room for each list as long as it is said to be: lists in one another may ask for a thousand times
    the data. Going over it takes none.
    """
    _unpacker(data, msgpack.ExtType).skip()


_EXT_HOOKS: Final = tuple(functools.partial(_ext_hook, depth) for depth in range(DEPTH_MAX + 4))
"""The hook of each depth: a form may hold a value that needs a form."""


_packers: Final[list[msgpack.Packer]] = []
"""Packers that nobody is using: making one costs three times what packing a record does.

Whoever packs takes one out, because a packer in the middle of a record must not be used by another thread, nor by
a signal handler that runs in between.
"""


def encode_upsert(record: Record) -> bytes:
    """The item of an upsert.

    Raises:
        RecordError: A str in the record has no UTF-8 form.
    """
    try:
        packer = _packers.pop()
    except IndexError:
        packer = msgpack.Packer(default=_default, strict_types=True)
    try:
        data = packer.pack(record if type(record) is dict else dict(record))
    except UnicodeEncodeError:
        checked(dict(record))
        raise
    _packers.append(packer)
    return cast("bytes", data)


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
    if len(items) == 1 and len(items[0]) < PAYLOAD_BYTES_MAX - 5:
        return b"\x91" + items[0]
    size = sum(map(len, items))
    if size > PAYLOAD_BYTES_MAX - 5:
        raise RecordError("record", f"{size} bytes encoded; one change or batch holds at most {PAYLOAD_BYTES_MAX - 5}")
    return cast("bytes", msgpack.Packer().pack_array_header(len(items))) + b"".join(items)


def decode(payload: bytes | memoryview, keys: PartitionKeys) -> list[Change]:
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


def _change(item: Any, keys: PartitionKeys) -> Change:
    if type(item) is dict:
        if FLAT.issuperset(map(type, item.values())) and STR.issuperset(map(type, item)):
            return keys.checked(item), item
        check(item)
        return keys.checked(item), Nested(item)
    kind, *rest = item
    if kind == _DELETE:
        key = tuple(*rest)
        hash(key)
        return key, None
    if kind == _CLEAR and not rest:
        return None, None
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
