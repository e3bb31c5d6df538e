"""The records of a snapshot that cannot be read as a whole, one by one. Pure."""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from microdb import literals, snapshot
from microdb.errors import CorruptError, RecordError, shown
from microdb.keys import PartitionKeys
from microdb.repair.findings import Finding, spans
from microdb.table import Records
from microdb.values import Record, checked

__all__ = ["Read", "mend", "read"]

_LINE_END: Final = b",\r\n \t"
_MARKS: Final = (b"", b"[", b"]", b"[]", b"[[]]")
_HEAD_BYTES: Final = 64
_OPENS: Final = re.compile(r"\s*\[\s*")
_GOES_ON: Final = re.compile(r"\s*,\s*")
_JSON: Final = json.JSONDecoder(parse_int=str, parse_float=str)
"""Tells where a value ends; it is `snapshot` that reads it."""
_SUMMED_BYTES_MAX: Final = 1 << 31
"""How much a search for a flipped bit will sum: about three seconds."""


class Read(NamedTuple):
    """What a snapshot says.

    Attributes:
        records: The records, by key.
        is_readable: Whether it was read as a whole.
        findings: What could not be read.
    """

    records: Records
    is_readable: bool
    findings: list[Finding]


def read(data: bytes, path: str, keys: PartitionKeys) -> Read:
    """All records of a snapshot that can be read."""
    findings: list[Finding] = []
    try:
        found, is_readable = snapshot.decode(data, path), True
    except CorruptError as error:
        findings.append(Finding("note", str(error).partition(": ")[0], f"{error.reason.partition(';')[0]}"))
        found, is_readable = _one_by_one(data, path, findings), False
    records: Records = {}
    for number, record in enumerate(found, 1):
        try:
            key = keys.checked(record)
        except RecordError as error:
            findings.append(Finding("lost", f"{path}, record {number}", str(error)))
            continue
        if key in records:
            findings.append(Finding("lost", path, f"a record with key {shown(key):.60}, which a later one has too"))
        records[key] = record
    return Read(records, is_readable, findings)


def _one_by_one(data: bytes, path: str, findings: list[Finding]) -> list[Record]:
    """Of a file that `save` wrote, the lines that can be read; of another one, what stands before the damage."""
    found: list[Record] = []
    lost = []
    for number, _, records in _lines(data, path):
        if records is None:
            lost.append(number)
        else:
            found += records
    if not found:
        found = _before_the_damage(data, path)
        findings.append(Finding("lost", path, f"all that stands behind the first {len(found)} records"))
        return found
    for first, last in spans(lost):
        which = f"line {first}" if first == last else f"lines {first} to {last}"
        findings.append(Finding("lost", f"{path}, {which}", "no record can be read there"))
    if not lost:
        what = "each line can be read, and yet not the whole; what stood between them or behind them, nothing tells"
        findings.append(Finding("in doubt", path, what))
    return found


def _lines(data: bytes, path: str) -> Iterator[tuple[int, int, list[Record] | None]]:
    """The number and the first byte of each line, and the records in it; None: it cannot be read."""
    head: bytes | None = None if snapshot.is_grid(data[:_HEAD_BYTES]) else b""
    at = 0
    for number, line in enumerate(data.split(b"\n"), 1):
        body = line.strip(_LINE_END)
        if body in _MARKS:
            records: list[Record] | None = []
        else:
            try:
                records = snapshot.decode(b"[" + (head or b"") + body + b"]", path)
            except CorruptError:
                records = None
            head = body + b"," if head is None else head
        yield number, at, records
        at += len(line) + 1


def mend(data: bytes, path: str, wanted: bytes) -> tuple[bytes, int] | None:
    """The snapshot as it was when it had the hash `wanted`, if one flipped bit is all that is wrong; and its byte.

    Of a large one only the lines that cannot be read are tried.
    """
    places: Sequence[range] = [range(len(data))]
    if 4 * len(data) ** 2 > _SUMMED_BYTES_MAX:
        starts = [(at, records is None) for _, at, records in _lines(data, path)]
        ends = [*(at for at, _ in starts[1:]), len(data)]
        places = [range(at, end) for (at, is_unread), end in zip(starts, ends, strict=True) if is_unread]
    if 8 * len(data) * sum(map(len, places)) > 2 * _SUMMED_BYTES_MAX:
        return None
    view = memoryview(data)
    for place in places:
        before = hashlib.blake2b(view[: place.start], digest_size=len(wanted))
        for at in place:
            for bit in range(8):
                state = before.copy()
                state.update(bytes([data[at] ^ 1 << bit]))
                state.update(view[at + 1 :])
                if state.digest() == wanted:
                    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :], at
            before.update(view[at : at + 1])
    return None


def _before_the_damage(data: bytes, path: str) -> list[Record]:
    """Of a file whose lines say nothing: as JSON if its first element is that, else as literals of microdb 0.1.3."""
    body = data.removeprefix(snapshot.BOM)
    elements = list(_json_elements(body))
    if not elements:
        return list(_of_literals(body, path))
    head = elements.pop(0) + b"," if snapshot.is_grid(body[:_HEAD_BYTES]) else b""
    records: list[Record] = []
    with contextlib.suppress(CorruptError):
        for element in elements:
            records += snapshot.decode(b"[" + head + element + b"]", path)
    return records


def _json_elements(body: bytes) -> Iterator[bytes]:
    """The text of each element of a JSON list, up to the first that is none."""
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        text = body[: error.start].decode()
    before = _OPENS.match(text)
    with contextlib.suppress(ValueError, RecursionError):
        while before is not None:
            start = before.end()
            _, end = _JSON.raw_decode(text, start)
            yield text[start:end].encode()
            before = _GOES_ON.match(text, end)


def _of_literals(body: bytes, path: str) -> Iterator[Record]:
    names: list[Any] | None = None
    with contextlib.suppress(CorruptError, RecordError):
        for number, (_, element) in enumerate(literals.elements(body, path)):
            if number == 0 and type(element) is list:
                names = element
            else:
                yield checked(element if names is None else _of_row(names, element))


def _of_row(names: list[Any], row: Any) -> Record:
    are_names = {str}.issuperset(map(type, names)) and len(set(names)) == len(names)
    if not are_names or type(row) is not list or len(row) != len(names):
        raise RecordError("record", "no row of this grid")
    return dict(zip(names, row, strict=True))
