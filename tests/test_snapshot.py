import math
import pathlib
import subprocess
import sys

import pytest

from microdb import snapshot
from microdb.errors import CorruptError, GridError, RecordError
from microdb.values import Nested
from strategies import same

LEGACY = pathlib.Path(__file__).parent / "data" / "legacy"

CHORES = [
    {"job": "clean", "status": "undone", "name": "Alice"},
    {"job": "study", "status": "undone", "name": "Alice"},
    {"job": "clean", "status": "undone", "name": "Bob"},
    {"job": "study", "status": "undone", "name": "Bob"},
]

OLD_VALUES = [
    None, True, False, 0, -1, 2**63, 2**64, 10**40, -(10**40), 1.5, -0.0, 1e308, "", "naïve", "日本語", "a\u2028b",
    'quote\'s "x"', "tab\tnl\n\\", b"\x00\xff", (1, "two", (3,)), [1, [2, [3]]], {"a": {"b": [1, 2]}}, {1, 2, 3},
    {1: "int key", ("t",): "tuple key", None: "none key"}, 3 + 4j, ...,
]  # fmt: skip

OLD_FILES = {
    "empty.json": [],
    "empty_grid.json": [],
    "grid.json": CHORES,
    "keys.json": [{"a": 1, "b": None}, {"a": "1"}, {"a": 1.5, "b": True}, {"b": 2, "x": 1}, {"x": "no key fields"}],
    "list.json": [{name: chore[name] for name in ("job", "name", "status")} for chore in CHORES],
    "nan.json": [{"id": 1, "v": math.nan}, {"id": 2, "v": math.inf}],
    "types.json": [{"id": index, "value": value} for index, value in enumerate(OLD_VALUES)],
}


def listed(records):
    return b"".join(snapshot.encode_list(records))


def as_grid(records):
    return b"".join(snapshot.encode_grid(records))


def decode(data):
    return snapshot.decode(data if isinstance(data, bytes) else data.encode(), "mdb.json")


def test_every_old_file_is_among_those_that_are_tested():
    assert {path.name for path in LEGACY.iterdir()} == OLD_FILES.keys()


@pytest.mark.parametrize("name", OLD_FILES)
def test_a_file_of_0_1_3_opens_for_ever(name):
    assert same(snapshot.decode((LEGACY / name).read_bytes(), name), OLD_FILES[name])


def test_a_list_has_one_record_a_line():
    assert listed([{"a": 1, "b": "é"}, {}]).decode() == '[\n{"a":1,"b":"é"},\n{}\n]\n'


def test_a_grid_has_its_names_first_and_one_record_a_line():
    assert as_grid([{"a": 1, "b": b""}, {"b": 2, "a": None}]) == b'[\n["a","b"],\n[1,{"$bytes":""}],\n[null,2]\n]\n'


def test_no_records_have_a_form_of_their_own():
    assert (listed([]), as_grid([])) == (b"[]\n", b"[[]]\n")
    assert (decode(b"[]\n"), decode(b"[[]]\n")) == ([], [])


@pytest.mark.parametrize("count", [1, 2, 1000, 1001])
def test_empty_records_survive_in_both_formats(count):
    assert decode(listed([{}] * count)) == decode(as_grid([{}] * count)) == [{}] * count


@pytest.mark.parametrize("count", [999, 1000, 1001, 2500])
def test_many_records_come_in_chunks_of_one_file(count):
    records = [{"id": number, "tags": [number]} for number in range(count)]
    assert decode(listed(iter(records))) == decode(as_grid(records)) == records
    assert len(list(snapshot.encode_list(records))) == math.ceil(count / 1000) + 1


def test_names_of_a_grid_have_no_escape():
    records = [{"$a": {"$b": 1}}]
    assert as_grid(records) == b'[\n["$a"],\n[{"$$b":1}]\n]\n'
    assert decode(as_grid(records)) == records


def test_records_that_do_not_share_their_fields_make_no_grid():
    with pytest.raises(GridError) as caught:
        snapshot.encode_grid([{"a": 1}, {"b": 2, "a": 1}, {"c": 3}])
    assert (caught.value.record, caught.value.missing) == ({"a": 1}, ["b", "c"])


def test_a_grid_of_values_has_its_names_first():
    assert snapshot.grid([{"a": 1, "b": b""}, {"b": 2, "a": None}]) == [["a", "b"], [1, b""], [None, 2]]
    assert snapshot.grid([]) == [[]]
    with pytest.raises(GridError):
        snapshot.grid([{"a": 1}, {}])


def test_a_lone_surrogate_is_refused_with_its_place():
    with pytest.raises(RecordError, match="lone surrogate") as caught:
        listed([{"a": "fine"}, {"a": ["\ud800"]}])
    assert caught.value.field == "record['a'][0]"
    with pytest.raises(RecordError, match="lone surrogate"):
        as_grid([{"\udfff": 1}])


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ('\ufeff[{"a": 1}]', [{"a": 1}]),
        ("\ufeff[{'a': 1}]", [{"a": 1}]),
        (' \r\n[\t{"a"\n:1} , {} ]\n\n', [{"a": 1}, {}]),
        ('[["a"],\n\n[1]]', [{"a": 1}]),
        ('[{"a": "[{}]", "b": 1e5}]', [{"a": "[{}]", "b": 1e5}]),
        ('[{"a": 123456789012345678901234567890}]', [{"a": 123456789012345678901234567890}]),
        (r'[{"a": {"\u0024bytes": "AP8="}}]', [{"a": b"\x00\xff"}]),
        ("[[], []]", [{}]),
        ("[['a', 'b'], [1, (2,)]]", [{"a": 1, "b": (2,)}]),
    ],
)
def test_what_a_person_or_another_tool_writes_is_read(data, expected):
    assert same(decode(data), expected)


def test_a_flat_record_is_a_plain_dict_and_a_nested_one_copies_deeply():
    kinds = [type(record) for record in decode('[{"a": 1}, {"a": []}, {"a": {"$bytes": ""}}]')]
    assert kinds == [dict, Nested, dict]


WRONG = {
    "": (0, "0 bytes and no JSON in them; write [] for no records, or restore a copy"),
    " \n": (0, "2 bytes and no JSON in them"),
    '[{"a": 1},': (10, "this is not JSON: Expecting value"),
    '[{"a": 1} {"b": 2}]': (10, "this is not JSON: Expecting ',' delimiter"),
    '[{"é": tru}]': (8, "this is not JSON: Expecting value"),
    '[{"a": {"$set": [1]}}]#': (22, "this is not JSON: Extra data"),
    '\ufeff[{"a" 1}]': (9, "this is not JSON: Expecting ':' delimiter"),
    '[{"a": 1}] x': (11, "this is not JSON: Extra data"),
    '[{"a": NaN}]': (None, 'this is not JSON: NaN is not JSON; write {"$float": "nan"}'),
    '[{"a": -Infinity}]': (None, 'write {"$float": "-inf"}'),
    '[{"a": 1e999, "b": null}]': (None, "out of range"),
    '[{"a": "\\ud800"}]': (1, "record 1: record['a']: lone surrogate"),
    "[{'a': 1}, {'b': oops}]": (17, "neither JSON nor a list of microdb 0.1.3: b'oops' is no value: no such name"),
    "[{'a': 1": (8, "neither JSON nor a list of microdb 0.1.3: expected , or }, found the end of the file"),
    "[{'a': 1}, {2: 3}]": (11, "record 2: record: field names are str, found 2 (int)"),
    "[{'a': '\\ud800'}]": (1, "record 1: record['a']: lone surrogate"),
    "[{'a': 1}, (2,)]": (11, "element 2 is a tuple, but each element of a snapshot is an object"),
    "[[1], [2]]": (None, "name 1 of the grid's first row is a number, but names are strings"),
    "[['a', 1], [2]]": (1, "name 2 of the grid's first row is a number, but names are strings"),
    '{"a": 1}': (None, "this is an object, not a list of records or a grid"),
    '"text"': (None, "this is a string, not a list of records or a grid"),
    "null": (None, "this is null, not a list"),
    "[1, 2]": (None, "element 1 is a number, but each element of a snapshot is an object"),
    '[{"a": 1}, true]': (None, "element 2 is a bool, but each element of a snapshot is an object"),
    '[{"a": 1}, ["a"]]': (None, "element 2 is a list, but each element of a snapshot is an object"),
    '[["a"], {"a": 1}]': (None, "element 2 is an object, but each element of a grid is a list"),
    '[["a", "a"]]': (None, "name 2 of the grid's first row, 'a', stands in it twice"),
    '[["a", "b"], [1, 2], [3]]': (None, "record 2 of the grid has 1 values for 2 fields"),
    "[['a'],\n [1, 2]]": (9, "record 1 of the grid has 2 values for 1 fields"),
    '[["a"], [1], [{"$foo": 1}]]': (None, "record 2: record['a']: unknown type '$foo'"),
    '[{"a": 1}, {"a": {"b": [{"$foo": 1}]}}]': (None, "record 2: record['a']['b'][0]: unknown type '$foo'"),
    '[{"$set": 1}]': (None, "record 1: record: the name '$set' begins with one $, which marks a type; write '$$set'"),
    r'[{"\u0024set": 1}]': (None, "write '$$set'"),
    '[{"a": ' + "[" * 65 + "]" * 65 + "}]": (None, "record 1: record['a']"),
    "[" * 100_000: (None, "nested deeper than any record"),
    '{"a":' * 100_000: (None, "nested deeper than any record"),
    "[{'a':" * 100_000: (198, "nested more than 64 deep"),
}


@pytest.mark.parametrize("data", WRONG, ids=[ascii(data)[:40] for data in WRONG])
def test_anything_else_is_refused_with_its_byte_what_was_found_and_a_way_out(data):
    offset, reason = WRONG[data]
    with pytest.raises(CorruptError) as caught:
        decode(data)
    error = caught.value
    assert reason in error.reason
    assert (error.path, error.offset) == ("mdb.json", offset)
    assert error.reason.endswith("restore a copy")


def test_a_byte_that_is_not_utf_8_is_named():
    with pytest.raises(CorruptError, match=r"mdb.json, byte 8: this is not JSON: a byte that is not UTF-8"):
        decode(b'[{"a": "\xff"}]')


def test_a_grid_with_very_many_names_is_checked_in_little_time():
    names = b",".join(b'"%d"' % number for number in range(100_000))
    assert decode(b"[[" + names + b"]]") == []


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"", False), (b"[", False), (b"[]", False), (b'[{"a":[[]]}]', False), (b"{", False), (b"[[", True),
        (b"[[]]\n", True), (b"[\n[", True), (b" [ [", True), (b"\xef\xbb\xbf[[", True), (b"[['a'], [1]]", True),
    ],
)  # fmt: skip
def test_a_grid_shows_at_its_start(head, expected):
    assert snapshot.is_grid(head) is expected


def test_msgspec_is_imported_only_for_use():
    code = "import sys, microdb.snapshot; sys.exit('msgspec' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("text", [b"# none yet\n[]", b"[ # none\n ]", snapshot.BOM + b"[]#"])
def test_a_list_without_records_that_somebody_commented_on_is_empty(text):
    assert snapshot.decode(text, "old.json") == []


def test_a_text_that_cannot_be_encoded_and_stands_in_no_record_is_an_error_all_the_same():
    """Whatever the encoder refuses and the check does not find must not pass as an empty piece."""
    with pytest.raises(UnicodeEncodeError):
        snapshot._encoded([{"a": 1}], ["\ud800"])
