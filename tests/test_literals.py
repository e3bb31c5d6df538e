import math
import sys
import time
import tracemalloc

import pytest

from microdb.errors import CorruptError
from microdb.literals import elements
from strategies import same


def read(text):
    data = text if isinstance(text, bytes) else text.encode()
    return [value for _, value in elements(data, "old.json")]


def refused(text):
    with pytest.raises(CorruptError) as caught:
        read(text)
    assert caught.value.path == "old.json"
    return caught.value


VALUES = [
    None, True, False, ..., 0, -1, 10**40, -(10**40), 1.5, -0.0, 1e308, 5e-324, 1e-07, math.nan, math.inf, -math.inf,
    "", "it's", 'a "b"', "it's \"b\"", "naïve", "日本語 😀", "\x00\x1f\x7f\x85\u2028\U000e0001", "\ud800",
    "tab\tnl\n\\", "[{('#,",
    b"", b"\x00\xff'\"\\\n", b"it's", 4j, -4j, 3 + 4j, complex(math.nan, 1), complex(-0.0, -0.0), complex(0, -4),
    complex(1, math.nan), complex(math.inf, -math.inf), complex(1e300, 1e-7),
    [], [1, [2]], (), (1,), (1, (2,)), {}, {"a": {"b": 1}}, {1: 2, (3,): 4, None: 5, "x": 6, b"y": 7, 1.5: 8},
    {"$a": 1, "$it's": 2, 'x"$y': 3},
    set(), {1}, {1, "a", (2,)}, frozenset(), frozenset({1, 2}), {frozenset(): frozenset({frozenset()})}, [set(), {}],
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))  # A set has no one text.
def test_what_repr_writes_is_read_back_the_same(value):
    assert same(read(repr([value])), [value])


@pytest.mark.parametrize("value", [2**20_000, -(2**20_000)], ids=["positive", "negative"])
def test_an_int_longer_than_python_converts_at_once_is_read(value):
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    text = repr([value])
    sys.set_int_max_str_digits(640)
    try:
        assert read(text) == [value]
    finally:
        sys.set_int_max_str_digits(limit)


def test_each_element_comes_with_its_byte_offset():
    data = " [ {'é': 1},\n (2, 3), 'x' ]".encode()
    found = list(elements(data, "old.json"))
    assert [data[offset : offset + 1] for offset, _ in found] == [b"{", b"(", b"'"]


def test_a_first_element_is_given_before_the_rest_is_read():
    found = elements(b"[1, oops", "old.json")
    assert next(found) == (1, 1)


def test_reading_begins_where_it_is_told_to():
    assert list(elements(b"\xef\xbb\xbf[1]", "old.json", start=3)) == [(4, 1)]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[\n  1,\r\n\t2 , ]\n", [1, 2]),
        ("# mine\n[1, # one\n2]# end", [1, 2]),
        ("[(1), (2,), [3,], {4,}, {5: 6,}, ...]", [1, (2,), [3], {4}, {5: 6}, ...]),
        (r"['\a\b\f\v\'\"']", ["\a\b\f\v'\""]),
    ],
)
def test_what_a_person_adds_is_read(text, value):
    assert read(text) == value


def test_equal_names_are_one_object():
    first, second = read("[{'a long name': 1}, {'a long name': 2}]")
    assert next(iter(first)) is next(iter(second))


WRONG = [
    ("", 0, "expected the [ of a list, found the end of the file"),
    ("{'a': 1}", 0, "expected the [ of a list, found '{'"),
    ("[1", 2, "expected , or ], found the end of the file"),
    ("[1,", 3, "expected a value, found the end of the file"),
    ("[,]", 1, "expected a value, found ','"),
    ("[1 2]", 3, "expected , or ], found '2'"),
    ("[1] 2", 4, "expected the end of the file, found '2'"),
    ("[(1]", 3, "expected , or ), found ']'"),
    ("[{1: }]", 5, "expected a value, found '}'"),
    ("[{1: 2, 3}]", 9, "expected :, found '}'"),
    ("[{1: 2 3}]", 7, "expected , or }, found '3'"),
    ("[{1 2}]", 4, "expected : or , or }, found '2'"),
    ("[{[]: 1}]", 2, "unhashable"),
    ("[{1, {2}}]", 5, "unhashable"),
    ("[frozenset({[]})]", 12, "unhashable"),
    ("[frozenset({1}]", 14, "expected ), found ']'"),
    ("['abc]", 1, 'expected a value, found "\'"'),
    ("['a\nb']", 1, "expected a value"),
    ("['a' 'b']", 5, "expected , or ]"),
    ("['\\q']", 1, "unknown escape '\\\\q'"),
    ("['\\U00110000']", 1, "is no value"),
    ("[b'\\u0041']", 1, "unknown escape"),
    ("[b'é']", 3, "not ASCII"),
    (b"['\xff']", 2, "not UTF-8"),
    ("[1\0]", 2, "expected , or ], found '\\x00'"),
    ('[{"$set": [1]}]', 2, "in double quotes has a meaning in JSON alone"),
    ("[null]", 1, "b'null' is no value: no such name"),
    ("[open('x')]", 1, "no such name"),
    ("[__import__('os').system('x')]", 1, "no such name"),
    ("[1 + 1]", 3, "expected , or ], found '+'"),
    ("[--1]", 1, "expected a value, found '-'"),
    ("[0x10]", 1, "expected a value"),
    ("[1_000]", 1, "expected a value"),
    ("[f'{1}']", 1, "no such name"),
    ("[" + "9" * 100_001 + "]", 1, "an int of more than 100000 digits"),
    ("[" * 1_000_000, 66, "nested more than 64 deep"),
    ("[" + "(" * 1_000_000, 66, "nested more than 64 deep"),
    ("[" + "{1:" * 1_000_000, 196, "nested more than 64 deep"),
    ("[" + "frozenset({" * 100_000, 716, "nested more than 64 deep"),
]


@pytest.mark.parametrize(("text", "offset", "reason"), WRONG, ids=[ascii(row[0])[:30] for row in WRONG])
def test_what_repr_never_writes_is_refused_at_its_byte(text, offset, reason):
    error = refused(text)
    assert (error.offset, reason in error.reason) == (offset, True), error


HOSTILE = {
    "signs": b"[" + b"-" * 1_000_000,
    "spaces": b"[" + b" " * 1_000_000,
    "comments": b"[" + b"#\n" * 500_000,
    "escapes": b"['" + b"\\n" * 500_000,
    "an unterminated string": b"['" + b"a" * 1_000_000,
    "quotes": b"[" + b"'" * 1_000_001,
    "words": b"[" + b"a" * 1_000_000,
    "digits": b"[(" + b"1" * 1_000_000,
    "exponents": b"[" + b"1e" * 500_000,
    "NULs": b"[" + b"\0" * 1_000_000,
    "commas": b"[" + b"," * 1_000_000,
    "sums": b"[1" + b"+1" * 500_000,
    "attributes": b"[a" + b".a" * 500_000,
    "calls": b"[a" + b"()" * 500_000,
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_bytes_are_refused_in_little_time_and_memory(data):
    tracemalloc.start()
    began = time.process_time()
    try:
        refused(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < 5
    assert peak < 20 * len(data)
