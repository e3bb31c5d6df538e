"""The formats of a snapshot: a JSON list of records, a JSON grid, and the Python literals of microdb 0.1.3.

Pure: from records to bytes and back. It knows no files; a path is for messages alone.

    list    [          grid    [
            {"a":1},           ["a"],
            {"a":2}            [1],
            ]                  [2]
                               ]

One record a line, UTF-8. An empty list is `[]`, an empty grid `[[]]`. The first row of a grid is the names of the
fields, which every record of it shares. `json_values` says how each value is written. Records are numbered from 1 in
messages.
"""

import contextlib
import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from types import MappingProxyType, NoneType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from microdb import imports, json_values
from microdb.errors import CorruptError, GridError, RecordError, shown
from microdb.keys import Key, PartitionKeys
from microdb.values import Record, are_dicts, checked, kept

if TYPE_CHECKING:
    import msgspec

__all__ = ["decode", "encode_grid", "encode_list", "grid", "is_grid", "load"]

CHUNK_RECORDS: Final = 1_000
_SOME_BYTES: Final = 100
BOM: Final = b"\xef\xbb\xbf"
GRID_START: Final = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[\s*\[")

MSGSPEC_OFFSET: Final = re.compile(r" \(byte \d+\)")

KINDS: Final = MappingProxyType(
    {dict: "an object", list: "a list", str: "a string", int: "a number", float: "a number", NoneType: "null"}
)

REMEDY: Final = "mend it by hand, or restore a copy"


def encode_list(records: Iterable[Record]) -> Iterator[bytes]:
    """The bytes of a list, in chunks of about 1,000 records.

    Raises:
        RecordError: On the way, at a record that `values.checked` refuses.
    """
    iterator = iter(records)
    chunks = iter(lambda: list(islice(iterator, CHUNK_RECORDS)), [])
    return _joined(_encoded(chunk, json_values.encode_records(chunk)) for chunk in chunks)


def encode_grid(records: Sequence[Record]) -> Iterator[bytes]:
    """The bytes of a grid, in chunks of about 1,000 records. Its columns stand in first-seen order.

    Raises:
        GridError: At once, before the first byte: a record lacks a field that another has.
        RecordError: On the way, at a record that `values.checked` refuses.
    """
    names = _shared_names(records)
    if not records:
        return iter([b"[[]]\n"])
    starts = range(0, len(records), CHUNK_RECORDS)
    chunks = (_encoded_rows(records[start : start + CHUNK_RECORDS], names) for start in starts)
    return _joined(chain([_encoded(records[:1], [names])], chunks))


def grid(records: Sequence[Record]) -> list[list[Any]]:
    """The names of the fields, in first-seen order, then one row a record.

    Raises:
        GridError: A record lacks a field that another has.
    """
    names = _shared_names(records)
    return [names, *[list(map(record.__getitem__, names)) for record in records]]


def decode(data: bytes, path: str) -> list[Record]:
    """The records of a snapshot, as `values.stored` would give them. Costs the whole file in memory.

    Raises:
        CorruptError: It is none of the three formats; says what was found, where, and what to do.
    """
    if not data[:_SOME_BYTES].strip() and not data.strip():
        reason = f"{len(data)} bytes and no JSON in them; write [] for no records, or restore a copy"
        raise CorruptError(path, reason, offset=0)
    body = data.removeprefix(BOM)
    has_tags = _may_have_tags(body)
    if not has_tags:
        with contextlib.suppress(ValueError):  # Of whatever is more than that, or less, the general way tells.
            return _flat_decoder().decode(body)
    try:
        found = _decoder().decode(body)
    except RecursionError:
        raise CorruptError(path, f"nested deeper than any record; {REMEDY}") from None
    except ValueError as error:
        return _from_literals(data, path, error)
    return _from_json(found, path, has_tags=has_tags)


def load(data: bytes, path: str, keys: PartitionKeys) -> dict[Key, Record]:
    """The records of a snapshot by their keys.

    Raises:
        CorruptError: As `decode`; or a record has no key, or that of another one.
    """
    found = decode(data, path)
    plain_keys = keys.all_plain(found)
    if plain_keys is not None:
        records = dict(zip(plain_keys, found, strict=True))
        if len(records) == len(found):
            return records
    records = {}
    for number, record in enumerate(found, 1):
        try:
            key = keys.checked(record)
        except RecordError as error:
            raise CorruptError(path, f"record {number}: {error}; {REMEDY}") from None
        if key in records:
            raise CorruptError(
                path,
                f"record {number} has the same key {shown(key):.200} as one before it; keep one of them, or see "
                f"whether partition_keys={list(keys.names)} is right",
            )
        records[key] = record
    return records


def is_grid(head: bytes) -> bool:
    """Whether the snapshot that begins with these bytes is a grid."""
    return GRID_START.match(head) is not None


@functools.cache
def _encoder() -> "msgspec.json.Encoder":
    with imports.guard:
        import msgspec  # noqa: PLC0415  # It takes longer to import than all of microdb, and may never be needed.

    return msgspec.json.Encoder()


@functools.cache
def _decoder() -> "msgspec.json.Decoder[Any]":
    with imports.guard:
        import msgspec  # noqa: PLC0415  # As above.

    return msgspec.json.Decoder()


@functools.cache
def _flat_decoder() -> "msgspec.json.Decoder[list[Record]]":
    """Of records with nothing nested. It checks that as it goes, at no price; any other look would cost a tenth."""
    with imports.guard:
        import msgspec  # noqa: PLC0415  # As above.

    return msgspec.json.Decoder(list[dict[str, bool | int | float | str | None]])


def _shared_names(records: Sequence[Record]) -> list[str]:
    names = list(dict.fromkeys(chain.from_iterable(records)))
    for record in records:
        if len(record) != len(names):
            raise GridError(record, [name for name in names if name not in record])
    return names


def _encoded_rows(records: Sequence[Record], names: list[str]) -> bytes:
    rows = [list(map(record.__getitem__, names)) for record in records]
    return _encoded(records, json_values.encode_rows(rows))


def _encoded(records: Sequence[Record], plain: Sequence[Any]) -> bytes:
    try:
        return _encoder().encode_lines(plain)
    except UnicodeEncodeError:
        # The encoder does not say where the lone surrogate stands, and a check of every string beforehand is dear.
        for record in records:
            checked(record)
        raise


def _joined(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """One JSON list of chunks of lines. JSON text holds no raw newline, so each newline ends an element."""
    before = b"[\n"
    for lines in chunks:
        yield before + lines[:-1].replace(b"\n", b",\n")
        before = b",\n"
    yield b"[]\n" if before == b"[\n" else b"\n]\n"


class _Source(NamedTuple):
    """What is known of the elements of a file, whatever its format.

    Attributes:
        path: For messages.
        offsets: The byte of each element, where the format tells.
        read_record: From an object to a record; raises RecordError.
        read_row: From names and a row to a record; raises RecordError.
    """

    path: str
    offsets: Sequence[int] | None
    read_record: Callable[[Record], Record]
    read_row: Callable[[Sequence[str], Sequence[Any]], Record]

    def corrupt(self, index: int, reason: str) -> CorruptError:
        """The error of one element, counted from 0."""
        offset = None if self.offsets is None else self.offsets[index]
        return CorruptError(self.path, f"{reason}; {REMEDY}", offset=offset)


def _from_json(found: Any, path: str, *, has_tags: bool) -> list[Record]:
    if type(found) is not list:
        raise CorruptError(path, f"this is {_kind(found)}, not a list of records or a grid; {REMEDY}")
    records = None if has_tags or not are_dicts(found) else kept(found)
    if records is not None:
        return records
    return _records(found, _Source(path, None, json_values.decode_record, json_values.decode_row))


def _may_have_tags(body: bytes) -> bool:
    """Whether the name of a field may begin with a dollar sign."""
    # First a single byte: that is looked for at the speed of memory.
    return (b"$" in body and b'"$' in body) or (b"\\" in body and b"\\u0024" in body)


def _from_literals(data: bytes, path: str, json_error: ValueError) -> list[Record]:
    from microdb import literals  # noqa: PLC0415  # Only the files of microdb 0.1.3 need it.

    start = len(BOM) if data.startswith(BOM) else 0
    try:
        elements = list(literals.elements(data, path, start=start))
    except CorruptError as error:
        raise _neither(data, path, json_error, error) from None
    found = [value for _, value in elements]
    source = _Source(path, [offset for offset, _ in elements], checked, _checked_row)
    return _records(found, source)


def _checked_row(names: Sequence[str], row: Sequence[Any]) -> Record:
    return checked(dict(zip(names, row, strict=True)))


def _neither(data: bytes, path: str, json_error: ValueError, literal_error: CorruptError) -> CorruptError:
    """The error of the format that the file is more likely meant to be: the one that was read further."""
    offset, reason = _json_trouble(data, json_error)
    if offset is None or offset >= (literal_error.offset or 0):
        return CorruptError(path, f"this is not JSON: {reason}; {REMEDY}", offset=offset)
    reason = f"this is neither JSON nor a list of microdb 0.1.3: {literal_error.reason}; {REMEDY}"
    return CorruptError(path, reason, offset=literal_error.offset)


def _json_trouble(data: bytes, error: ValueError) -> tuple[int | None, str]:
    """The byte and the reason. msgspec names a byte near the trouble; the standard library, more slowly, the byte."""
    try:
        text = data.decode()
    except UnicodeDecodeError as wrong:
        return wrong.start, "a byte that is not UTF-8"
    try:
        json.loads(text.removeprefix("\ufeff"), parse_constant=_refuse_constant)
    except json.JSONDecodeError as wrong:
        characters = wrong.pos + text.startswith("\ufeff")
        return len(text[:characters].encode()), wrong.msg
    except (ValueError, RecursionError) as wrong:
        return None, str(wrong)
    return None, MSGSPEC_OFFSET.sub("", str(error))


def _refuse_constant(name: str) -> None:
    plain = {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}[name]
    raise ValueError(f'{name} is not JSON; write {{"$float": "{plain}"}}')


def _records(found: list[Any], source: _Source) -> list[Record]:
    if not found:
        return []
    if type(found[0]) is list:
        return _records_of_grid(found, source)
    _check_kinds(found, dict, source)
    return _read(found, source.read_record, source, first=0)


def _records_of_grid(found: list[Any], source: _Source) -> list[Record]:
    _check_kinds(found, list, source)
    names = found[0]
    _check_names(names, source)
    for index, row in enumerate(found):
        if len(row) != len(names):
            raise source.corrupt(index, f"record {index} of the grid has {len(row)} values for {len(names)} fields")
    return _read(found[1:], functools.partial(source.read_row, names), source, first=1)


def _check_kinds(found: list[Any], kind: type, source: _Source) -> None:
    if {kind}.issuperset(map(type, found)):
        return
    index = next(index for index, element in enumerate(found) if type(element) is not kind)
    expected = "each element of a grid is a list" if kind is list else "each element of a snapshot is an object"
    raise source.corrupt(index, f"element {index + 1} is {_kind(found[index])}, but {expected}")


def _check_names(names: list[Any], source: _Source) -> None:
    seen = set()
    for number, name in enumerate(names, 1):
        if type(name) is not str:
            raise source.corrupt(0, f"name {number} of the grid's first row is {_kind(name)}, but names are strings")
        if name in seen:
            raise source.corrupt(0, f"name {number} of the grid's first row, {name!r:.60}, stands in it twice")
        seen.add(name)


def _read(elements: list[Any], read: Callable[[Any], Record], source: _Source, *, first: int) -> list[Record]:
    records: list[Record] = []
    try:
        for element in elements:
            records.append(read(element))  # noqa: PERF401  # Its length tells which element was refused.
    except RecordError as error:
        index = len(records)
        raise source.corrupt(index + first, f"record {index + 1}: {error}") from error
    return records


def _kind(value: Any) -> str:
    return KINDS.get(type(value), f"a {type(value).__name__}")
