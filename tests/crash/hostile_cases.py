"""The hostile files, made by hand: each a function from a path and a size to a database, or to what looks like one."""

import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgpack

from crash.hostile import RATIO, log_header, write_log, write_page
from microdb.wal.format import FRAME, OFFSET_MAX, PAYLOAD_BYTES_MAX
from microdb.wal.header import DIRTY, DURABLE, EXPIRING, HEAD, POISONED

Ext = msgpack.ExtType
pack = msgpack.packb

FRAME_RECORD = pack([{"id": 1}])
MERSENNE = 2**61 - 1
"""Ints that differ by a multiple of this have the same hash."""


class Case(NamedTuple):
    """One hostile database.

    Attributes:
        build: Makes it at a path; if it is one that can be of any size, of about `size` bytes.
        keys: Its partition keys.
        is_place: Whether something that is no file stands in a file's place, so that the system's own error is right.
        ratio: How many bytes of memory a byte of it may take.
    """

    build: Callable[[Path, int], None]
    keys: tuple[str, ...] = ("id",)
    is_place: bool = False
    ratio: int = RATIO


SMALL: dict[str, Case] = {}
"""Files of one size."""

LARGE: dict[str, Case] = {}
"""Files of any size: what they cost may grow with it, and no faster."""


def _small(name, build, **options):
    assert name not in SMALL
    SMALL[name] = Case(lambda path, _: build(path), **options)


def _large(name, build, **options):
    assert name not in LARGE
    LARGE[name] = Case(build, **options)


def _repeated(unit, size, before=b"", after=b""):
    return before + unit * (size // len(unit)) + after


# ------------------------------------------------------------------------------------------ Payloads whose crc is right


def ext(code, plain):
    return Ext(code, pack(plain))


def _signed_ext(code, data):
    """An extension with any code, which msgpack itself writes only from 0 on."""
    return struct.pack(">BBb", 0xC7, len(data), code) + data


def _nested_ext(depth, inner=b"\xc0", code=1):
    """Extensions inside one another, each holding a list of the next."""
    data = inner
    for _ in range(depth):
        data = pack(Ext(code, b"\x91" + data))
    return data


def _item(value):
    """The payload of one upsert whose field holds what is packed already."""
    return b"\x91\x82" + pack("id") + b"\x01" + pack("v") + value


PAYLOADS = {
    "nil": pack(None),
    "an int": pack(7),
    "a str": pack("upsert"),
    "a map": pack({"id": 1}),
    "an empty array": pack([]),
    "two values": pack([{"id": 1}]) + pack([{"id": 2}]),
    "an array cut short": pack([{"id": 1}, {"id": 2}])[:-1],
    "a byte that msgpack never uses": b"\x91\xc1",
    "a change that is nil": pack([None]),
    "a change that is an int": pack([1]),
    "a change that is a str": pack(["\x01\x02"]),
    "a change that is empty": pack([[]]),
    "an unknown change": pack([[5]]),
    "what is carried over and is nothing": pack([[4]]),
    "what is carried over and is an upsert": pack([[4, {"id": 1}, 1e12], {"id": 1}]),
    "what is carried over and expires at a nan": pack([[4, {"id": 1}, float("nan")]]),
    "a record that expires without a time": pack([[3, {"id": 1}]]),
    "a record that expires twice": pack([[3, {"id": 1}, 1e12, 1e12]]),
    "a record that expires at an int": pack([[3, {"id": 1}, 10**12]]),
    "a record that expires at true": pack([[3, {"id": 1}, True]]),
    "a record that expires at nil": pack([[3, {"id": 1}, None]]),
    "a record that expires at a str": pack([[3, {"id": 1}, "tomorrow"]]),
    "a record that expires at a datetime": pack([[3, {"id": 1}, ext(7, "2024-01-01T00:00:00+00:00")]]),
    "a record that expires at a nan": pack([[3, {"id": 1}, float("nan")]]),
    "a record that expires at infinity": pack([[3, {"id": 1}, float("inf")]]),
    "a record that expires before all time": pack([[3, {"id": 1}, -float("inf")]]),
    "a record that has long expired": pack([[3, {"id": 1}, -1.7976931348623157e308]]),
    "what expires and is an int": pack([[3, 1, 1e12]]),
    "what expires and is a delete": pack([[3, [1, [1]], 1e12]]),
    "what expires and is another that expires": pack([[3, [3, {"id": 1}, 1e12], 1e12]]),
    "a record that expires and has a list for a key": pack([[3, {"id": [1]}, 1e12]]),
    "a record that expires and has a name that is an int": pack([[3, {5: 1}, 1e12]]),
    "a change that is true": pack([[True, [1]]]),
    "a change that is 1.0": pack([[1.0, [1]]]),
    "a delete without a key": pack([[1]]),
    "a delete of too much": pack([[1, [1], [2]]]),
    "a delete of a key too short": pack([[1, []]]),
    "a delete of a key too long": pack([[1, [1, 2]]]),
    "a delete of a str": pack([[1, "x"]]),
    "a delete of an int": pack([[1, 1]]),
    "a delete of a map": pack([[1, {1: 2}]]),
    "a delete of a list in a key": pack([[1, [[1]]]]),
    "a delete of a map in a key": pack([[1, [{}]]]),
    "a delete of a set in a key": pack([[1, [ext(2, [1])]]]),
    "a delete of a nan": pack([[1, [float("nan")]]]),
    "a clear of too much": pack([[2, 1]]),
    "a name that is an int": pack([{"id": 1, 5: 1}]),
    "a name that is nil": pack([{"id": 1, None: 1}]),
    "a name that is bytes": pack([{"id": 1, b"x": 1}]),
    "a name that is a tuple": pack([{"id": 1, ext(1, [1]): 1}]),
    "a name that is a nan": pack([{"id": 1, float("nan"): 1}]),
    "a name that is a list": b"\x91\x82" + pack("id") + b"\x01\x90\x01",
    "a name that is a map": b"\x91\x82" + pack("id") + b"\x01\x80\x01",
    "a name that stands there twice": b"\x91\x82" + pack("id") + b"\x01" + pack("id") + b"\x02",
    "a name that is not UTF-8": b"\x91\x82" + pack("id") + b"\x01\xa1\xff\x01",
    "a str that is not UTF-8": _item(b"\xa1\xff"),
    "a str that is a surrogate": _item(b"\xa3\xed\xa0\x80"),
    "a key that is a list": pack([{"id": [1]}]),
    "a key that is a map": pack([{"id": {"a": 1}}]),
    "a key that is a set": pack([{"id": ext(2, [1])}]),
    "a key that is a tuple of a list": pack([{"id": ext(1, [[1]])}]),
    "a key that is a nan": pack([{"id": float("nan")}]),
    "a key that is a tuple of a nan": pack([{"id": ext(1, [float("nan")])}]),
    "a key that is a signalling nan": pack([{"id": ext(11, "sNaN")}]),
    "a record without its key": pack([{"v": 1}]),
    "an empty record": pack([{}]),
    "a msgpack timestamp": _item(_signed_ext(-1, struct.pack(">I", 1))),
    "a msgpack timestamp as key": b"\x91\x81" + pack("id") + _signed_ext(-1, struct.pack(">I", 1)),
    "a msgpack timestamp of 96 bits": _item(_signed_ext(-1, struct.pack(">Iq", 10**9 - 1, 2**63 - 1))),
    "a msgpack timestamp of no length": _item(_signed_ext(-1, b"")),
    "an unknown extension": _item(pack(Ext(99, b"\xc0"))),
    "a reserved extension": _item(_signed_ext(-128, b"\xc0")),
    "an extension of nothing": _item(pack(Ext(1, b""))),
    "an extension of two values": _item(pack(Ext(1, b"\x90\x90"))),
    "an array of 2^32 - 1": b"\xdd\xff\xff\xff\xff",
    "a map of 2^32 - 1": b"\x91\xdf\xff\xff\xff\xff",
    "a str of 2^32 - 1": _item(b"\xdb\xff\xff\xff\xff"),
    "bytes of 2^32 - 1": _item(b"\xc6\xff\xff\xff\xff"),
    "an extension of 2^32 - 1": _item(b"\xc9\xff\xff\xff\xff\x01"),
    "an extension that holds an array of 2^32 - 1": _item(pack(Ext(1, b"\xdd\xff\xff\xff\xff"))),
    "lists 66 deep": _item(b"\x91" * 66 + b"\xc0"),
    "lists 900 deep": _item(b"\x91" * 900 + b"\xc0"),
    "lists 1015 deep": _item(b"\x91" * 1015 + b"\xc0"),
    "lists 100000 deep": _item(b"\x91" * 100_000 + b"\xc0"),
    "maps 1000 deep": _item(b"\x81\xa1a" * 1000 + b"\xc0"),
    "tuples 64 deep": _item(_nested_ext(64)),
    "tuples 66 deep": _item(_nested_ext(66)),
    "tuples 1000 deep": _item(_nested_ext(1000)),
    "a tuple of lists 900 deep": _item(pack(Ext(1, b"\x91" * 900 + b"\xc0"))),
    "tuples 60 deep of lists 900 deep": _item(_nested_ext(60, b"\x91" * 900 + b"\xc0")),
    "a set of lists": _item(pack(ext(2, [[1]]))),
    "a set of a str": _item(pack(ext(2, "abc"))),
    "a tuple of a str": _item(pack(ext(1, "abc"))),
    "a tuple of a map": _item(pack(ext(1, {1: 2}))),
    "a tuple of an int": _item(pack(ext(1, 5))),
    "an int that is a list": _item(pack(ext(4, [1]))),
    "an int of 10^5 decimal digits": _item(pack(ext(4, "9" * 10**5))),
    "an int with underscores": _item(pack(ext(4, "1_0"))),
    "an int in binary": _item(pack(ext(4, "0b101"))),
    "an int of bytes": _item(pack(ext(4, b"0x10"))),
    "an int with a NUL": _item(pack(ext(4, "1\0"))),
    "an int of full-width digits": _item(pack(ext(4, "\uff11"))),
    "a complex of one": _item(pack(ext(5, [1]))),
    "a complex of strs": _item(pack(ext(5, ["1j", 2]))),
    "a complex of a str": _item(pack(ext(5, "1"))),
    "a complex of a huge int": _item(pack(ext(5, [ext(4, "0x" + "f" * 300), 0]))),
    "an ellipsis of something": _item(pack(ext(6, 1))),
    "a datetime in the year 0": _item(pack(ext(7, "0000-01-01T00:00:00"))),
    "a datetime with fold 2": _item(pack(ext(7, ["2020-01-01T00:00:00", 2, None, None]))),
    "a datetime with fold 'a'": _item(pack(ext(7, ["2020-01-01T00:00:00", "a", None, None]))),
    "a datetime in an unknown zone": _item(pack(ext(7, ["2020-01-01T00:00:00", 0, "No/Where", None]))),
    "a datetime in a zone above": _item(pack(ext(7, ["2020-01-01T00:00:00", 0, "../../etc/passwd", None]))),
    "a datetime in a zone with a NUL": _item(pack(ext(7, ["2020-01-01T00:00:00", 0, "UTC\0", None]))),
    "a datetime in a zone that is a folder": _item(pack(ext(7, ["2020-01-01T00:00:00", 0, "Europe", None]))),
    "a datetime in the empty zone": _item(pack(ext(7, ["2020-01-01T00:00:00", 0, "", None]))),
    "a datetime in a zone of 10^5 letters": _item(pack(ext(7, ["2020-01-01T00:00:00", 0, "x" * 10**5, None]))),
    "a datetime in a zone that is no zone": _item(pack(ext(7, ["2020-01-01T00:00:00", 0, "tzdata.zi", None]))),
    "a datetime with an offset of 2^62": _item(pack(ext(7, ["2020-01-01T00:00:00", 0, 2**62, None]))),
    "a datetime with an offset of nan": _item(pack(ext(7, ["2020-01-01T00:00:00", 0, float("nan"), None]))),
    "a datetime with a name that is an int": _item(pack(ext(7, ["2020-01-01T00:00:00+01:00", 0, None, 5]))),
    "a datetime of three": _item(pack(ext(7, [1, 2, 3]))),
    "a date of an int": _item(pack(ext(8, 1))),
    "a timedelta of 2^62": _item(pack(ext(10, [2**62, 0, 0]))),
    "a timedelta of nan": _item(pack(ext(10, [float("nan")]))),
    "a timedelta of ten": _item(pack(ext(10, list(range(10))))),
    "a timedelta of fractions": _item(pack(ext(10, [0.5]))),
    "a decimal of nothing": _item(pack(ext(11, ""))),
    "a decimal of a huge exponent": _item(pack(ext(11, "1E+999999999999999999"))),
    "a decimal beyond every exponent": _item(pack(ext(11, "1E+9999999999999999999999"))),
    "a decimal of a float": _item(pack(ext(11, 0.1))),
    "a decimal of a list": _item(pack(ext(11, [0, [1, 2], 3]))),
    "a decimal of a tuple": _item(pack(ext(11, ext(1, [0, ext(1, [1, 2]), 3])))),
    "a decimal as key with a huge exponent": pack([{"id": ext(11, "1E+999999999999999999")}]),
    "a uuid of an int": _item(pack(ext(12, 1))),
    "a uuid of nothing": _item(pack(ext(12, ""))),
    "a sound one": pack([{"id": 1, "v": [1, {"a": ext(1, [2])}]}, [1, [5]], [2], {"id": 3}]),
}

for _name, _payload in PAYLOADS.items():
    _small(f"payload, {_name}", lambda path, payload=_payload: write_log(path, [payload]))

for _name in ("a key that is a list", "a msgpack timestamp", "lists 900 deep", "a sound one"):
    _small(
        f"payload behind a snapshot, {_name}",
        lambda path, payload=PAYLOADS[_name]: write_log(path, [payload], snapshot=b'[\n{"id":7}\n]\n'),
    )

_small("two keys, a delete of one", lambda path: write_log(path, [pack([[1, [1]]])]), keys=("a", "b"))
_small("two keys, a record of neither", lambda path: write_log(path, [pack([{"c": 1}])]), keys=("a", "b"))


def _flood(count, key):
    return [pack([{"id": key(n)}]) for n in range(count)]


_large("log, frames of the least length", lambda path, size: write_log(path, [b"\x90"] * (size // 18)), ratio=40)
_large("log, frames of an empty record", lambda path, size: write_log(path, [b"\x91\x80"] * (size // 19)), ratio=80)
_large(
    "log, one frame of empty records",
    lambda path, size: write_log(path, [b"\xdd" + struct.pack(">I", size) + b"\x80" * size]),
    ratio=300,
)
_large(
    "log, one frame of empty records that expire",
    lambda path, size: write_log(path, [b"\xdd" + struct.pack(">I", size // 12) + pack([3, {}, 1e12]) * (size // 12)]),
    ratio=60,
)
_large(
    "log, one record of empty lists",
    lambda path, size: write_log(path, [_item(b"\xdd" + struct.pack(">I", size) + b"\x90" * size)]),
    ratio=230,
)
_large(
    "log, one record of small ints",
    lambda path, size: write_log(path, [_item(b"\xdd" + struct.pack(">I", size) + b"\x01" * size)]),
    ratio=30,
)
_large("log, one long str", lambda path, size: write_log(path, [_item(pack("x" * size))]))
_large("log, one str of wide letters", lambda path, size: write_log(path, [_item(pack("x" * size + "\U0001f600"))]))
_large("log, lists as deep as it is long", lambda path, size: write_log(path, [b"\x91" * size]))
_large(
    "log, arrays in one another that declare all that may be",
    lambda path, size: write_log(path, [_item((b"\xdd" + struct.pack(">I", size)) * 1000 + b"\xc0" * size)]),
)
_large(
    "log, maps in one another that declare all that may be",
    lambda path, size: write_log(
        path, [_item((b"\xdf" + struct.pack(">I", size // 3) + b"\xa0") * 1000 + b"\xc0" * size)]
    ),
)
_large(
    "log, tuples around one long str",
    lambda path, size: write_log(path, [_item(_nested_ext(60, pack("x" * size)))]),
    ratio=150,
)
_large(
    "log, tuples around long bytes, too deep",
    lambda path, size: write_log(path, [_item(_nested_ext(90, pack(b"x" * size)))]),
    ratio=150,
)
_large("log, one int in hex", lambda path, size: write_log(path, [_item(pack(ext(4, "0x" + "f" * size)))]))
_large("log, one int in decimal", lambda path, size: write_log(path, [_item(pack(ext(4, "9" * size)))]))
_large("log, one decimal", lambda path, size: write_log(path, [_item(pack(ext(11, "9" * size)))]))
_large(
    "log, one decimal of an int in hex",
    lambda path, size: write_log(path, [_item(pack(ext(11, ext(4, "0x" + "f" * size))))]),
)
_large("log, one uuid", lambda path, size: write_log(path, [_item(pack(ext(12, "9" * size)))]))
_large("log, one complex", lambda path, size: write_log(path, [_item(pack(ext(5, "9" * size)))]))
_large("log, one complex of a list", lambda path, size: write_log(path, [_item(pack(ext(5, [0] * size)))]), ratio=30)
_large("log, one datetime", lambda path, size: write_log(path, [_item(pack(ext(7, "9" * size)))]))
_large(
    "log, a delete of a long key",
    lambda path, size: write_log(path, [b"\x91\x92\x01\xdd" + struct.pack(">I", size) + b"\x01" * size]),
    ratio=30,
)
_large(
    "log, keys whose hashes collide",
    lambda path, size: write_log(path, _flood(min(size // 60, 4000), lambda n: ext(4, hex((n + 9) * MERSENNE)))),
    ratio=80,
)
_large(
    "log, a dict whose keys' hashes collide",
    lambda path, size: write_log(
        path,
        [_item(pack({ext(1, [-1 - (n >> bit & 1) for bit in range(12)]): 0 for n in range(min(size // 20, 4000))}))],
    ),
    ratio=80,
)

# ----------------------------------------------------------------------------------------------- Log headers and frames

_small("log header, an int for names", lambda path: write_log(path, names=pack(1)))
_small("log header, a name that is an int", lambda path: write_log(path, names=pack([1])))
_small("log header, a map for names", lambda path: write_log(path, names=pack({"id": 1})))
_small("log header, names with an extension", lambda path: write_log(path, names=pack([ext(1, ["id"])])))
_small("log header, deep names", lambda path: write_log(path, names=b"\x91" * 60_000))
_small("log header, names of 64 KiB", lambda path: write_log(path, names=pack(["x" * 65_530])))
_small("log header, an array of 2^32 - 1 names", lambda path: write_log(path, names=b"\xdd\xff\xff\xff\xff"))
_small("log header, no names", lambda path: write_log(path, names=b""))
_small("log header, another key", lambda path: write_log(path, names=("name",)))
_small("log header, names that are not UTF-8", lambda path: write_log(path, names=b"\x91\xa1\xff"))
_small("log header, names that declare more than there is", lambda path: _raw(path, log_header()[:72] + b"\xff" * 4))
_small("log header, version 2^32 - 1", lambda path: write_log(path, version=2**32 - 1))
_small("log header, flags", lambda path: write_log(path, flags=1))
_small(
    "log header, another generation than its name", lambda path: write_log(path, generation=2, name="0000000001.log")
)
for _generation in (0, 2**28 - 1, 2**28, 2**33, 9_999_999_999):
    _small(
        f"log header, generation {_generation}",
        lambda path, generation=_generation: write_log(path, [FRAME_RECORD], generation=generation),
    )
    _small(
        f"history, generation {_generation}",
        lambda path, generation=_generation: write_log(path, generation=generation, name=f"{generation:010}.history"),
    )
    _small(
        f"log header, generation {_generation}, edited",
        lambda path, generation=_generation: _edited(path, generation=generation),
    )
for _base in (2**63, 2**64 - 2, 2**64 - 1):
    _small(f"log header, base {_base}", lambda path, base=_base: write_log(path, base=base))
    _small(f"log header, base {_base}, edited", lambda path, base=_base: _edited(path, base=base))
    _small(f"log header, base {_base}, a tail", lambda path, base=_base: write_log(path, base=base, tail=b"\1" * 99))
_small("log header, base 2^64 - 2, a frame", lambda path: write_log(path, [FRAME_RECORD], base=2**64 - 2))
_small("frame, sequence 0", lambda path: write_log(path, [(FRAME_RECORD, 0, 0)]))
_small("frame, sequence 2^64 - 1", lambda path: write_log(path, [(FRAME_RECORD, 0, 2**64 - 1)]))
_small("frame, unknown flags", lambda path: write_log(path, [(FRAME_RECORD, 254, 1)]))
_small("frame, no payload", lambda path: write_log(path, [(b"", 0, 1)]))
_small("frame, a length of 2^32 - 1", lambda path: write_log(path, tail=FRAME.pack(2**32 - 1, 0, 1) + bytes(50)))
_small("frame, the greatest length", lambda path: write_log(path, tail=FRAME.pack(PAYLOAD_BYTES_MAX, 0, 1) + bytes(50)))
_small("log, empty", lambda path: _raw(path, b""))
_small("log, its magic alone", lambda path: _raw(path, b"microdbL"))
_small("log, a gap between two", lambda path: (write_log(path, [FRAME_RECORD]), write_log(path, generation=2, base=9)))
_small("log, two that are the same", lambda path: [write_log(path, [FRAME_RECORD], generation=n) for n in (1, 2)])
_small(
    "log, the newer goes further and is bound to nothing here",
    lambda path: (
        write_log(path, [FRAME_RECORD], snapshot=b"[]\n"),
        write_log(path, [FRAME_RECORD] * 3, generation=2),
    ),
)


def _raw(path, data, name="0000000001.log"):
    folder = Path(f"{path}.wal")
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)


def _edited(path, **fields):
    """A log without a change in it, and a snapshot that is not the one it follows."""
    write_log(path, snapshot=b"[]\n", **fields)
    path.write_bytes(b'[\n{"id":1}\n]\n')


_large("log, a tail of zeros", lambda path, size: write_log(path, [FRAME_RECORD], tail=bytes(size)))
_large("log, a tail of ones", lambda path, size: write_log(path, [FRAME_RECORD], tail=b"\1" * size))
_large(
    "log, a tail in which every byte may begin a frame",
    lambda path, size: write_log(path, [], base=0x0101_0101_0100_0000, tail=b"\1" * size),
)
_large(
    "log, a tail in which every byte may begin a short frame",
    lambda path, size: write_log(path, [], base=0, tail=_repeated(b"\x01\x01\x00\x00\x00", size)),
)
_large(
    "log, a tail of frames with wrong crcs",
    lambda path, size: write_log(path, tail=b"".join(FRAME.pack(1, 0, n) + b"\xc0abcd" for n in range(2, size // 18))),
)
_large(
    "log, a tail of long frames with wrong crcs",
    lambda path, size: write_log(
        path, tail=b"".join(FRAME.pack(size // 2, 0, n) + b"\xc0abcd" for n in range(2, size // 18))
    ),
)


def _holed(path, size):
    write_log(path, [FRAME_RECORD] * (size // 22))
    log = Path(f"{path}.wal", "0000000001.log")
    data = bytearray(log.read_bytes())
    start = len(log_header())
    for at in range(start + 13, len(data), 44):
        data[at] ^= 0xFF
    log.write_bytes(data)


_large("log, every second frame broken", _holed)

# ---------------------------------------------------------------------------------------------------------- Header page

for _name, _words in {
    "a head at its limits": {HEAD: 2**64 - 1},
    "a head of 0": {HEAD: 0},
    "a head beyond the log": {HEAD: 1 << 36 | OFFSET_MAX},
    "a head before the first frame": {HEAD: 1 << 36 | 3},
    "a head in the middle of a frame": {HEAD: 1 << 36 | 90},
    "a head of the next generation": {HEAD: 2 << 36 | 84},
    "a head of generation 2^28 - 1": {HEAD: (2**28 - 1) << 36 | 84},
    "a head of another log": {HEAD: 1 << 36 | 84, 28: 5, 29: 5},
    "dirty by process 1": {HEAD: 1 << 36 | 84, DIRTY: 1},
    "dirty by its opener's parent": {HEAD: 1 << 36 | 84, DIRTY: os.getpid()},
    "dirty by no process": {HEAD: 1 << 36 | 84, DIRTY: 2**64 - 1},
    "poisoned": {HEAD: 1 << 36 | 102, POISONED: 1},
    "poisoned in another generation": {HEAD: 1 << 36 | 102, POISONED: 2**64 - 1},
    "all durable": {HEAD: 1 << 36 | 84, DURABLE: 2**64 - 1},
    "expiring for ever": {HEAD: 1 << 36 | 102, EXPIRING: 2**64 - 1},
    "every word full": dict.fromkeys(range(2, 512), 2**64 - 1),
    "every word full but what makes it current": {
        word: 2**64 - 1 for word in range(2, 512) if word not in (20, 21, 22, HEAD)
    }
    | {HEAD: 1 << 36 | 102},
    "another magic": {0: 1, HEAD: 2**64 - 1},
    "version 0": {1: 0},
    "version 2^64 - 1": {1: 2**64 - 1},
}.items():
    _small(
        f"page, {_name}",
        lambda path, words=_words: (write_log(path, [FRAME_RECORD]), write_page(path, words)),
    )
for _size in (0, 1, 4095, 8, 72):
    _small(
        f"page of {_size} bytes",
        lambda path, size=_size: (write_log(path, [FRAME_RECORD]), write_page(path, {HEAD: 2**64 - 1}, size=size)),
    )
_small("page alone", lambda path: write_page(path, {HEAD: 1 << 36 | 84}))
_small("page and snapshot alone", lambda path: (path.write_bytes(b"[]"), write_page(path, {HEAD: 1 << 36 | 84})))
_large("page, long", lambda path, size: (write_log(path, [FRAME_RECORD]), _raw(path, b"\1" * size, "header")))

# ------------------------------------------------------------------------------------------------------------ Snapshots


def _value(text):
    return b'[\n{"id":1,"v":' + text + b"}\n]\n"


SNAPSHOTS = {
    "empty": b"",
    "spaces": b" \n\t ",
    "a NUL": b"\0",
    "NULs": bytes(5000),
    "a BOM": b"\xef\xbb\xbf",
    "a BOM and a list": b'\xef\xbb\xbf[{"id":1}]',
    "two BOMs": b"\xef\xbb\xbf\xef\xbb\xbf[]",
    "UTF-16": '[{"id":1}]'.encode("utf-16"),
    "null": b"null",
    "a number": b"7",
    "a number beyond all": b"9" * 5000,
    "a str": b'"x"',
    "an object": b'{"id":1}',
    "an open list": b"[",
    "a list in a list in a list": b"[[[]]]",
    "a list of lists of nothing": b"[[],[]]",
    "a list of numbers": b"[1,2]",
    "a list of nulls": b"[null]",
    "records and rows": b'[{"id":1},["id"]]',
    "rows and records": b'[["id"],{"id":1}]',
    "a grid without names": b"[[],[1]]",
    "a grid with numbers as names": b"[[1],[2]]",
    "a grid with a name twice": b'[["id","id"],[1,2]]',
    "a grid with a short row": b'[["id","v"],[1]]',
    "a grid with a list as key": b'[["id"],[[1]]]',
    "a grid with an object as name": b'[[{"$int":"1"}],[1]]',
    "a name that stands there twice": b'[{"id":1,"id":2}]',
    "a key that stands there twice": b'[{"id":1},{"id":1}]',
    "a key that stands there as true": b'[{"id":1},{"id":true}]',
    "a key that is a list": b'[{"id":[1]}]',
    "a key that is an object": b'[{"id":{}}]',
    "a key that is a nan": b'[{"id":{"$float":"nan"}}]',
    "a key that is a signalling nan": b'[{"id":{"$decimal":"sNaN"}}]',
    "a key that is a tuple of a nan": b'[{"id":{"$tuple":[{"$float":"nan"}]}}]',
    "a record without its key": b'[{"v":1}]',
    "a byte that is not UTF-8": _value(b'"\xff"'),
    "a surrogate in UTF-8": _value(b'"\xed\xa0\x80"'),
    "a lone surrogate": _value(b'"\\ud800"'),
    "a lone surrogate as name": b'[{"id":1,"\\ud800":1}]',
    "a pair of surrogates": _value(b'"\\ud83d\\ude00"'),
    "a surrogate in a tag": _value(b'{"$bytes":"\\ud800"}'),
    "a surrogate in a zone": _value(b'{"$datetime":["2020-01-01T00:00:00",0,"\\ud800",null]}'),
    "a NUL in a str": _value(b'"\0"'),
    "an escaped NUL": _value(b'"\\u0000"'),
    "an escaped dollar": _value(b'{"\\u0024int":"1"}'),
    "NaN": _value(b"NaN"),
    "Infinity": _value(b"-Infinity"),
    "a float beyond all": _value(b"1e999"),
    "a float of 10^4 digits": _value(b"1." + b"1" * 10_000),
    "an int of 5000 digits": _value(b"1" * 5000),
    "an int of 5000 digits as name": b'[{"' + b"1" * 5000 + b'":1}]',
    "lists 66 deep": _value(b"[" * 66 + b"]" * 66),
    "lists 500 deep": _value(b"[" * 500 + b"]" * 500),
    "lists 900 deep": _value(b"[" * 900 + b"]" * 900),
    "lists 980 deep": _value(b"[" * 980 + b"]" * 980),
    "lists 10000 deep": _value(b"[" * 10_000 + b"]" * 10_000),
    "lists 10^6 deep": b"[" * 10**6,
    "objects 100000 deep": b'{"a":' * 100_000,
    "tuples 64 deep": _value(b'{"$tuple":[' * 64 + b"]}" * 64),
    "tuples 66 deep": _value(b'{"$tuple":[' * 66 + b"]}" * 66),
    "tuples 490 deep": _value(b'{"$tuple":[' * 490 + b"]}" * 490),
    "ints of ints 400 deep": _value(b'{"$int":' * 400 + b"1" + b"}" * 400),
    "an unknown tag": _value(b'{"$what":1}'),
    "a name with one dollar": _value(b'{"$a":1,"b":2}'),
    "an empty tag": _value(b'{"$":1}'),
    "a long tag": _value(b'{"$' + b"x" * 10**5 + b'":1}'),
    "a dict of a list as key": _value(b'{"$dict":[[[1],2]]}'),
    "a dict of an object as key": _value(b'{"$dict":[[{},2]]}'),
    "a dict of three": _value(b'{"$dict":[[1,2,3]]}'),
    "a dict of strs": _value(b'{"$dict":["ab"]}'),
    "a dict of a number": _value(b'{"$dict":5}'),
    "a dict of an object": _value(b'{"$dict":{"a":1}}'),
    "a dict with a key twice": _value(b'{"$dict":[[1,2],[1,3]]}'),
    "a dict with a key as true": _value(b'{"$dict":[[1,2],[true,3]]}'),
    "a set of lists": _value(b'{"$set":[[1]]}'),
    "a set of sets": _value(b'{"$set":[{"$set":[]}]}'),
    "a set with a member twice": _value(b'{"$set":[1,1.0]}'),
    "a frozenset of an object": _value(b'{"$frozenset":{}}'),
    "a tuple of a str": _value(b'{"$tuple":"abc"}'),
    "a float of a number": _value(b'{"$float":1}'),
    "a float of a list": _value(b'{"$float":[1]}'),
    "a float of an object": _value(b'{"$float":{}}'),
    "bytes that are no base64": _value(b'{"$bytes":"*"}'),
    "bytes that are not ASCII": _value('{"$bytes":"é"}'.encode()),
    "bytes of a list": _value(b'{"$bytes":[1]}'),
    "bytes of an int": _value(b'{"$bytes":5}'),
    "an int of null": _value(b'{"$int":null}'),
    "an int of nothing": _value(b'{"$int":""}'),
    "an int of a float": _value(b'{"$int":"1.0"}'),
    "an int of 10^5 decimal digits": _value(b'{"$int":"' + b"9" * 10**5 + b'"}'),
    "a complex of three": _value(b'{"$complex":[1,2,3]}'),
    "a complex of ints of 300 digits": _value(b'{"$complex":[{"$int":"0x' + b"f" * 300 + b'"},0]}'),
    "a decimal of an int": _value(b'{"$decimal":{"$int":"0x' + b"f" * 300 + b'"}}'),
    "a decimal of a list": _value(b'{"$decimal":[0,[1],2]}'),
    "a decimal of a huge exponent": _value(b'{"$decimal":"1E+999999999999999999"}'),
    "a decimal beyond every exponent": _value(b'{"$decimal":"1E+99999999999999999999"}'),
    "decimals of huge exponents as keys": _value(
        b'{"$dict":[[{"$decimal":"1E+999999999999999999"},1],[{"$decimal":"1E-999999999999999999"},2],[1e308,3]]}'
    ),
    "a uuid of a number": _value(b'{"$uuid":1}'),
    "a timedelta of 10^30": _value(b'{"$timedelta":[1e30,0,0]}'),
    "a timedelta of strs": _value(b'{"$timedelta":["1"]}'),
    "a timedelta of an object": _value(b'{"$timedelta":{"a":1}}'),
    "a datetime in a zone that is a folder": _value(b'{"$datetime":["2020-01-01T00:00:00",0,"Europe",null]}'),
    "a datetime in a zone above": _value(b'{"$datetime":["2020-01-01T00:00:00",0,"../../../etc/passwd",null]}'),
    "a datetime in a zone with a NUL": _value(b'{"$datetime":["2020-01-01T00:00:00",0,"UTC\\u0000",null]}'),
    "a datetime in a zone of 10^5 letters": _value(
        b'{"$datetime":["2020-01-01T00:00:00",0,"' + b"x" * 10**5 + b'",null]}'
    ),
    "a time in an offset of 10^30": _value(b'{"$time":["00:00:00",0,1e30,null]}'),
    "a time of one": _value(b'{"$time":["00:00:00"]}'),
    "an ellipsis of an object": _value(b'{"$ellipsis":{}}'),
    "a wrong pair, deep": _value(b'{"$dict":[[1,2,' + b"[" * 970 + b"]" * 970 + b"]]}"),
    "a wrong member, deep": _value(b'{"$tuple":' + b'{"a":' * 970 + b"1" + b"}" * 970 + b"}"),
    "a literal, an expression": b"[{'id': 1, 'v': 2**99}]",
    "a literal, a call": b"[{'id': 1, 'v': __import__('os').system('true')}]",
    "a literal, a name": b"[{'id': 1, 'v': x}]",
    "a literal, signs": b"[{'id': " + b"-" * 100_000 + b"1}]",
    "a literal, 900 deep": b"[{'id': 1, 'v': " + b"[" * 900 + b"]" * 900 + b"}]",
    "a literal, 10^6 deep": b"[{'id': " + b"(" * 10**6,
    "a literal, a set of lists": b"[{'id': 1, 'v': {[1]}}]",
    "a literal, a key that is a list": b"[{'id': [1]}]",
    "a literal, an int of 10^5 digits": b"[{'id': 1, 'v': " + b"9" * 10**5 + b"}]",
    "a literal, an int of 10^6 digits": b"[{'id': 1, 'v': " + b"9" * 10**6 + b"}]",
    "a literal, a surrogate": b"[{'id': 1, 'v': '\\ud800'}]",
    "a literal, an escape beyond all": b"[{'id': 1, 'v': '\\U00110000'}]",
    "a literal, a NUL": b"[{'id': 1, 'v': '\0'}]",
    "a literal, a byte that is not UTF-8": b"[{'id': 1, 'v': '\xff'}]",
    "a literal, bytes that are not ASCII": b"[{'id': 1, 'v': b'\xc3\xa9'}]",
    "a literal, an open string": b"[{'id': 'aaa",
    "a literal, a float beyond all": b"[{'id': 1, 'v': 1e999}]",
    "a literal, a nan as key": b"[{'id': nan}]",
    "a literal, a comment at the end": b"[{'id': 1}] # ",
}

for _name, _text in SNAPSHOTS.items():
    _small(f"snapshot, {_name}", lambda path, text=_text: path.write_bytes(text))


def _snapshot(path, data):
    path.write_bytes(data)


_large("snapshot, empty records", lambda path, size: _snapshot(path, _repeated(b"{},", size, b"[", b"{}]")), ratio=40)
_large(
    "snapshot, records of one field",
    lambda path, size: _snapshot(path, b"[" + b",".join(b'{"id":%d}' % n for n in range(size // 12)) + b"]"),
    ratio=50,
)
_large(
    "snapshot, rows of a grid",
    lambda path, size: _snapshot(path, b'[["id"],' + b",".join(b"[%d]" % n for n in range(size // 8)) + b"]"),
    ratio=80,
)
_large(
    "snapshot, a grid of many names",
    lambda path, size: _snapshot(path, b"[[" + b",".join(b'"%d"' % n for n in range(size // 8)) + b"]]"),
    ratio=40,
)
_large(
    "snapshot, empty lists", lambda path, size: _snapshot(path, _value(_repeated(b"[],", size, b"[", b"[]]"))), ratio=70
)
_large(
    "snapshot, empty objects",
    lambda path, size: _snapshot(path, _value(_repeated(b"{},", size, b"[", b"{}]"))),
    ratio=70,
)
_large(
    "snapshot, small ints", lambda path, size: _snapshot(path, _value(_repeated(b"1,", size, b"[", b"1]"))), ratio=20
)
_large("snapshot, floats", lambda path, size: _snapshot(path, _value(_repeated(b".1,", size, b"[0", b"1]"))), ratio=40)
_large(
    "snapshot, tags",
    lambda path, size: _snapshot(path, _value(_repeated(b'{"$set":[]},', size, b"[", b"1]"))),
    ratio=60,
)
_large("snapshot, one long str", lambda path, size: _snapshot(path, _value(b'"' + b"x" * size + b'"')))
_large(
    "snapshot, one str of wide letters",
    lambda path, size: _snapshot(path, _value(b'"' + b"x" * size + b'\xf0\x9f\x98\x80"')),
)
_large("snapshot, a str that does not end", lambda path, size: _snapshot(path, b'[{"id":"' + b"\\" * size))
_large("snapshot, spaces", lambda path, size: _snapshot(path, b" " * size))
_large("snapshot, NULs", lambda path, size: _snapshot(path, bytes(size)))
_large("snapshot, lists as deep as it is long", lambda path, size: _snapshot(path, b"[" * size))
_large("snapshot, a digit too many", lambda path, size: _snapshot(path, _value(b"9" * size)))
_large("snapshot, one int in hex", lambda path, size: _snapshot(path, _value(b'{"$int":"0x' + b"f" * size + b'"}')))
_large("snapshot, one int in octal", lambda path, size: _snapshot(path, _value(b'{"$int":"0o' + b"7" * size + b'"}')))
_large("snapshot, one int in decimal", lambda path, size: _snapshot(path, _value(b'{"$int":"' + b"9" * size + b'"}')))
_large("snapshot, one decimal", lambda path, size: _snapshot(path, _value(b'{"$decimal":"' + b"9" * size + b'"}')))
_large(
    "snapshot, one decimal of an int in hex",
    lambda path, size: _snapshot(path, _value(b'{"$decimal":{"$int":"0x' + b"f" * size + b'"}}')),
)
_large("snapshot, one float of many digits", lambda path, size: _snapshot(path, _value(b"0." + b"9" * size)))
_large("snapshot, one wrong content", lambda path, size: _snapshot(path, _value(b'{"$uuid":"' + b"9" * size + b'"}')))
_large(
    "snapshot, one wrong content that is a long list",
    lambda path, size: _snapshot(path, _value(b'{"$uuid":' + _repeated(b"1,", size, b"[", b"1]") + b"}")),
    ratio=30,
)
_large(
    "snapshot, a wrong content at the end of a long list",
    lambda path, size: _snapshot(path, _value(_repeated(b"[1],", size, b"[", b'{"$uuid":"9"}]'))),
    ratio=60,
)
_large(
    "snapshot, a wrong content 60 deep behind long lists",
    lambda path, size: _snapshot(path, _value(_steps(size))),
    ratio=60,
)
_large(
    "snapshot, an error in the last byte",
    lambda path, size: _snapshot(path, b"[" + b",".join(b'{"id":%d}' % n for n in range(size // 12)) + b",]"),
    ratio=60,
)
_large(
    "snapshot, a key twice in the end",
    lambda path, size: _snapshot(path, b"[" + b",".join(b'{"id":%d}' % n for n in range(size // 12)) + b',{"id":0}]'),
    ratio=60,
)
_large(
    "snapshot, keys whose hashes collide",
    lambda path, size: _snapshot(path, _colliding(min(size // 40, 4000))),
    ratio=60,
)
_large("snapshot, lines that are no records", lambda path, size: _snapshot(path, _repeated(b"x\n", size)))
_large("snapshot, lines that begin records", lambda path, size: _snapshot(path, _repeated(b'{"id":\n', size)))
_large(
    "literal, dicts",
    lambda path, size: _snapshot(path, b"[" + b",".join(b"{'id':%d}" % n for n in range(size // 12)) + b"]"),
    ratio=60,
)
_large(
    "literal, empty lists", lambda path, size: _snapshot(path, _repeated(b"[],", size, b"[{'id':[", b"[]]}]")), ratio=60
)
_large("literal, one long str", lambda path, size: _snapshot(path, b"[{'id':'" + b"x" * size + b"'}]"))
_large(
    "literal, one str of escapes",
    lambda path, size: _snapshot(path, _repeated(b"\\n", size, b"[{'id':'", b"'}]")),
    ratio=60,
)
_large("literal, comments", lambda path, size: _snapshot(path, _repeated(b"#\n", size, b"[", b"{'id': 1}]")))
_large("literal, an int of too many digits", lambda path, size: _snapshot(path, b"[{'id':" + b"9" * size + b"}]"))
_large(
    "literal, ints of as many digits as may be",
    lambda path, size: _snapshot(path, _repeated(b"9" * 99_999 + b",", size, b"[{'id':[", b"1]}]")),
)


def _steps(size):
    """Lists inside one another, each with a long list of other things before the next."""
    level = _repeated(b"[],", size // 60)
    return (b"[" + level) * 60 + b'{"$uuid":"9"}' + b"]" * 60


def _colliding(count):
    return b"[" + b",".join(b'{"id":{"$int":"%#x"}}' % ((n + 9) * MERSENNE) for n in range(count)) + b"]"


# ------------------------------------------------------------------------------------- Something else in a file's place


def _sound(path):
    write_log(path, [FRAME_RECORD], snapshot=b'[\n{"id":0}\n]\n')


def _placed(name, make):
    """A sound database in which `make` makes what stands in the place of a file."""

    def build(path):
        _sound(path)
        place = path if name == "snapshot" else Path(f"{path}.wal", name)
        place.unlink(missing_ok=True)
        make(place)

    return build


_NAMES = (
    "snapshot",
    "0000000001.log",
    "0000000002.log",
    "0000000001.history",
    "header",
    "lock",
    "save.lock",
    "1-2.save.tmp",
)


def _socket(place):
    with socket.socket(socket.AF_UNIX) as server:
        folder = os.open(place.parent, os.O_RDONLY)
        try:
            server.bind(f"/proc/self/fd/{folder}/{place.name}")
        finally:
            os.close(folder)


_THINGS = {
    "a FIFO": os.mkfifo,
    "a folder": os.mkdir,
    "a loop of links": lambda place: place.symlink_to(place.name),
    "a link to nothing": lambda place: place.symlink_to("nothing"),
    "a link to /dev/zero": lambda place: place.symlink_to("/dev/zero"),
    "a link to /dev/full": lambda place: place.symlink_to("/dev/full"),
    "a link to /proc/self/mem": lambda place: place.symlink_to("/proc/self/mem"),
    "a socket": _socket,
    "nothing": lambda place: None,
}
for _name in _NAMES:
    for _thing, _make in _THINGS.items():
        _small(f"{_thing} in the place of {_name}", _placed(_name, _make), is_place=True)


_small("a file in the place of the folder", lambda path: Path(f"{path}.wal").write_bytes(b"x"), is_place=True)
_small("a FIFO in the place of the folder", lambda path: os.mkfifo(f"{path}.wal"), is_place=True)
_small(
    "a loop of links in the place of the folder",
    lambda path: Path(f"{path}.wal").symlink_to(f"{path.name}.wal"),
    is_place=True,
)


def _lookalikes(path):
    _sound(path)
    for name in (
        "00000000001.log",
        "1.log",
        "0000000001.log.log",
        "0000000002.LOG",
        "٠٠٠٠٠٠٠٠٠٢.log",
        "-000000001.log",
        "000000001\n.log",
    ):
        _raw(path, b"x", name)


_small("a folder with names that look like logs", _lookalikes)
