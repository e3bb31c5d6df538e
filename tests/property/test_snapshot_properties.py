import json

from hypothesis import example, given
from hypothesis import strategies as st

from microdb import snapshot
from microdb.errors import CorruptError
from microdb.values import Nested, stored
from strategies import literals, names, plain, records, same, values


def listed(table):
    return b"".join(snapshot.encode_list(table))


def as_grid(table):
    return b"".join(snapshot.encode_grid(table))


def rows_of(of):
    """The names of some fields, and rows of values for them."""
    return st.lists(names(), unique=True, max_size=3).flatmap(
        lambda fields: st.tuples(st.just(fields), st.lists(st.tuples(*[of] * len(fields)), max_size=3))
    )


def tables():
    """Records of any kind."""
    return st.lists(records(), max_size=3)


def grids():
    """Records that share their fields."""
    return rows_of(values()).map(lambda grid: [dict(zip(grid[0], row, strict=True)) for row in grid[1]])


@given(tables())
def test_what_a_list_gives_back_is_the_same(table):
    assert same(snapshot.decode(listed(table), "mdb.json"), table)


@given(grids())
def test_what_a_grid_gives_back_is_the_same(table):
    assert same(snapshot.decode(as_grid(table), "mdb.json"), table)


@given(tables())
def test_a_decoded_record_is_what_stored_makes_of_it(table):
    decoded = snapshot.decode(listed(table), "mdb.json")
    assert [type(record) for record in decoded] == [type(stored(record)) for record in table]


@given(tables())
def test_encoding_twice_gives_the_same_bytes_and_changes_no_record(table):
    kept = [Nested(record).copy() for record in table]
    assert listed(table) == listed(table)
    assert same(table, kept)


@given(tables())
def test_decoding_and_encoding_again_gives_the_same_bytes(table):
    assert listed(snapshot.decode(listed(table), "mdb.json")) == listed(table)


def refuse(name):
    raise AssertionError(f"{name} is not JSON")


@given(tables())
def test_the_standard_library_reads_every_list(table):
    assert len(json.loads(listed(table), parse_constant=refuse)) == len(table)


@given(grids())
def test_the_standard_library_reads_every_grid(table):
    rows = json.loads(as_grid(table), parse_constant=refuse)
    assert len(rows) == 1 + len(table)
    assert {len(row) for row in rows} == {len(rows[0])}


@given(st.lists(st.dictionaries(names().filter(lambda name: not name.startswith("$")), plain(), max_size=4)))
def test_the_standard_library_reads_plain_records_as_they_are(table):
    assert same(json.loads(listed(table)), table)


@given(st.lists(records(), min_size=1, max_size=4))
def test_each_line_is_one_record(table):
    first, *lines, last = listed(table).decode().removesuffix("\n").split("\n")
    assert (first, last) == ("[", "]")
    assert [type(json.loads(line.removesuffix(","))) for line in lines] == [dict] * len(table)


@given(grids())
def test_whether_a_file_is_a_grid_shows_at_its_start(table):
    assert snapshot.is_grid(as_grid(table)[:16])
    assert not snapshot.is_grid(listed(table)[:16])


@given(st.lists(records(literals()), max_size=4))
def test_what_0_1_3_wrote_gives_back_the_same(table):
    assert same(snapshot.decode(repr(table).encode(), "mdb.json"), table)


@given(rows_of(literals()))
def test_what_0_1_3_wrote_as_a_grid_gives_back_the_same(grid):
    fields, rows = grid
    written = repr([fields, *map(list, rows)]).encode()
    assert same(snapshot.decode(written, "mdb.json"), [dict(zip(fields, row, strict=True)) for row in rows])


FRAGMENTS = st.sampled_from(
    [
        *(b"[ ] { } ( ) , : ' \" \\ # $ b' j + - . e nan inf set() frozenset({ None null true Ellipsis ...".split()),
        b" ", b"\n", b"\0", b"\xff", b"\xef\xbb\xbf", b"1", b"0", b"1e999", b'"a"', b"'a'", b'"$', b'{"$set":[',
        b"\\u0024", b'{"$dict":[[', b'{"$tuple":', b'{"$datetime":"', b'{"$zone', b'"NaN"', b"\\ud800",
        b"9" * 400, b"[" * 70, b"]" * 70,
    ]
)  # fmt: skip


def gives_a_list_or_corrupt_error(data):
    try:
        found = snapshot.decode(data, "mdb.json")
    except CorruptError as error:
        offset = error.offset
    else:
        offset = None
        assert same(snapshot.decode(listed(found), "mdb.json"), found)
    assert offset is None or 0 <= offset <= len(data)


@given(st.binary() | st.lists(FRAGMENTS).map(b"".join) | st.lists(FRAGMENTS).map(lambda parts: b"[" + b"".join(parts)))
@example(b"[{1: 2}]")
def test_any_bytes_give_records_or_corrupt_error(data):
    gives_a_list_or_corrupt_error(data)


@given(st.lists(records(literals()), min_size=1, max_size=3), st.booleans(), st.data())
def test_damage_to_a_sound_file_gives_records_or_corrupt_error(table, is_literal, data):
    sound = repr(table).encode() if is_literal else listed(table)
    at = data.draw(st.integers(0, len(sound)))
    gives_a_list_or_corrupt_error(sound[:at] + data.draw(FRAGMENTS) + sound[at + data.draw(st.integers(0, 3)) :])


TAGS = ["bytes", "float", "dict", "tuple", "set", "frozenset", "int", "complex", "ellipsis", "datetime", "date", "time"]
TAGS += ["timedelta", "decimal", "uuid", "", "unknown", "$set"]

JSON = st.recursive(
    plain()
    | st.sampled_from(["", "nan", "12:30", "2024-01-01", "2024-01-01T00:00:00+00:00", "UTC", "America", "../x"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["a", "$a", "$$a"]), inner, max_size=2)
        | st.builds(lambda tag, inner: {f"${tag}": inner}, st.sampled_from(TAGS), inner)
    ),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(st.sampled_from(["a", "b", "$$c"]), JSON, max_size=2), max_size=2))
def test_any_tags_give_records_or_corrupt_error(table):
    gives_a_list_or_corrupt_error(json.dumps(table).encode())
