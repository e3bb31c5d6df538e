import datetime as dt
import json
import math
import uuid
import zoneinfo
from decimal import Decimal

import pytest

from microdb.errors import RecordError
from microdb.json_values import decode_record, decode_row, encode_records, encode_rows
from microdb.values import DEPTH_MAX, Nested
from strategies import same

BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")

NOTATION = [
    (None, None),
    (True, True),
    (1.5, 1.5),
    (-0.0, -0.0),
    ("é", "é"),
    ([1, ["a"]], [1, ["a"]]),
    ({"a": {"b": 1}}, {"a": {"b": 1}}),
    ({}, {}),
    (-(2**63), -(2**63)),
    (2**64 - 1, 2**64 - 1),
    (2**64, {"$int": "18446744073709551616"}),
    (-(2**63) - 1, {"$int": "-9223372036854775809"}),
    (2**2000, {"$int": hex(2**2000)}),
    (math.nan, {"$float": "nan"}),
    (math.inf, {"$float": "inf"}),
    (-math.inf, {"$float": "-inf"}),
    (complex(-0.0, math.nan), {"$complex": [-0.0, {"$float": "nan"}]}),
    (b"\x00\xff", {"$bytes": "AP8="}),
    (..., {"$ellipsis": None}),
    ((), {"$tuple": []}),
    ((1, (2,)), {"$tuple": [1, {"$tuple": [2]}]}),
    ({10, 9, "a"}, {"$set": ["a", 10, 9]}),
    (frozenset({b"b", b"a"}), {"$frozenset": [{"$bytes": "YQ=="}, {"$bytes": "Yg=="}]}),
    ({1: "a", (2,): [None]}, {"$dict": [[1, "a"], [{"$tuple": [2]}, [None]]]}),
    ({"$": 1, "$a": 2, "a$": 3}, {"$$": 1, "$$a": 2, "a$": 3}),
    ({"$bytes": "AP8="}, {"$$bytes": "AP8="}),
    ({"$$bytes": math.inf}, {"$$$bytes": {"$float": "inf"}}),
    (dt.date(2024, 2, 29), {"$date": "2024-02-29"}),
    (dt.datetime(2024, 2, 29, 1, 2, tzinfo=dt.UTC), {"$datetime": "2024-02-29T01:02:00+00:00"}),
    (dt.datetime(2024, 2, 29, tzinfo=BERLIN), {"$datetime": ["2024-02-29T00:00:00", 0, "Europe/Berlin", None]}),
    (dt.time(tzinfo=dt.timezone(dt.timedelta(microseconds=-1))), {"$time": ["00:00:00", 0, -1, None]}),
    (dt.time(tzinfo=dt.timezone(dt.timedelta(microseconds=1), "x")), {"$time": ["00:00:00", 0, 1, "x"]}),
    (dt.time(tzinfo=dt.timezone(dt.timedelta(hours=1), "x")), {"$time": ["00:00:00+01:00", 0, None, "x"]}),
    (dt.time(1, 2, fold=1), {"$time": ["01:02:00", 1, None, None]}),
    (dt.timedelta(-1, 2, 3), {"$timedelta": [-1, 2, 3]}),
    (Decimal("-0.10"), {"$decimal": "-0.10"}),
    (uuid.UUID(int=1), {"$uuid": "00000000-0000-0000-0000-000000000001"}),
]


# The value may be a set, whose text depends on the order in which it was built.
each_notation = pytest.mark.parametrize(("value", "plain"), NOTATION, ids=[repr(plain) for _, plain in NOTATION])


@each_notation
def test_each_value_has_one_notation(value, plain):
    (encoded,) = encode_records([{"v": value}])
    assert same(encoded, {"v": plain})


@each_notation
def test_each_notation_gives_the_value_back(value, plain):
    assert same(decode_record({"v": plain}), {"v": value})
    assert same(decode_row(["v"], [plain]), {"v": value})


@each_notation
def test_a_row_writes_a_value_as_a_record_does(value, plain):
    assert same(encode_rows([[1, value]]), [[1, plain]])


def test_plain_records_are_not_copied():
    table = [{"a": 1, "b": "x"}, {"c": None}]
    assert encode_records(table) is table


def test_among_others_a_plain_record_is_not_copied():
    plain = {"a": 1}
    assert encode_records([plain, {"a": b""}])[0] is plain


def test_plain_rows_are_not_copied():
    rows = [[1, 2.5], ["x", None]]
    assert encode_rows(rows) is rows


def test_numbers_too_large_for_a_sum_are_still_told_apart():
    table = [{"a": 1e308, "b": 1e308, "c": 10**400}]
    assert encode_records(table) == [{"a": 1e308, "b": 1e308, "c": {"$int": str(10**400)}}]


def test_members_of_a_set_are_written_in_one_order():
    members = [f"member {n}" for n in range(100)]
    (encoded,) = encode_records([{"v": set(members)}])
    assert encoded["v"]["$set"] == sorted(members)


def test_two_nans_in_a_set_stay_two():
    decoded = decode_record({"v": {"$set": [{"$float": "nan"}, {"$float": "nan"}]}})
    assert len(decoded["v"]) == 2


def test_an_int_of_any_size_may_be_written_plainly():
    assert decode_record({"v": 10**100}) == {"v": 10**100}


def test_a_record_of_one_field_with_the_name_of_a_type_is_no_tag():
    record = {"$bytes": "AP8="}
    assert encode_records([record]) == [{"$$bytes": "AP8="}]
    assert decode_record({"$$bytes": "AP8="}) == record


def test_the_names_of_a_row_have_no_escape():
    assert decode_row(["$a", "$$b"], [1, {"$$c": 2}]) == {"$a": 1, "$$b": {"$c": 2}}


@pytest.mark.parametrize("value", [1, "x", {"$bytes": ""}, {"$date": "2024-01-01"}])
def test_a_record_of_immutable_values_is_a_plain_dict(value):
    assert type(decode_record({"v": value})) is dict


@pytest.mark.parametrize("value", [[], {}, {"$tuple": []}, {"$set": []}, {"$time": "01:02"}])
def test_a_record_with_something_nested_copies_deeply(value):
    assert type(decode_record({"v": value})) is Nested


REFUSED = [
    ({"$foo": 1}, "record['v']", r"unknown type '\$foo'; if it is a name, write '\$\$foo'"),
    ({"$": 1}, "record['v']", r"unknown type '\$'; if it is a name, write '\$\$'"),
    ({"$a": 1, "b": 2}, "record['v']", r"the name '\$a' begins with one \$, which marks a type; write '\$\$a'"),
    ([0, {"x": {"$b": 1, "$c": 2}}], "record['v'][1]['x']", r"write '\$\$b'"),
    ({"$tuple": [1, {"$foo": 1}]}, "record['v']['$tuple'][1]", "unknown type"),
    ({"$dict": [[1, 2], [3, {"$foo": 1}]]}, "record['v']['$dict'][1][1]", "unknown type"),
    ({"$int": {"$int": "0x1"}}, "record['v']", r"is no content of \$int: "),
    ({"$complex": [{"$float": 1}, 2.0]}, "record['v']", r"is no content of \$complex: expected 'nan'"),
    ({"$bytes": "A"}, "record['v']", r"'A' is no content of \$bytes: "),
    ({"$bytes": "é"}, "record['v']", r"is no content of \$bytes: "),
    ({"$bytes": 1}, "record['v']", r"is no content of \$bytes: "),
    ({"$float": "1.5"}, "record['v']", r"is no content of \$float: expected 'nan', 'inf' or '-inf'"),
    ({"$float": ["nan"]}, "record['v']", r"is no content of \$float: "),
    ({"$int": 5}, "record['v']", r"is no content of \$int: "),
    ({"$int": "9" * 5000}, "record['v']", r"is no content of \$int: "),
    ({"$ellipsis": 1}, "record['v']", r"is no content of \$ellipsis: "),
    ({"$complex": ["x", "y"]}, "record['v']", r"is no content of \$complex: "),
    ({"$tuple": "abc"}, "record['v']", r"is no content of \$tuple: expected a list"),
    ({"$set": {"a": 1}}, "record['v']", r"is no content of \$set: expected a list"),
    ({"$set": [[1]]}, "record['v']", r"is no content of \$set: unhashable"),
    ({"$set": [1, 1]}, "record['v']", "a member stands in it twice"),
    ({"$frozenset": [1, True]}, "record['v']", "a member stands in it twice"),
    ({"$dict": [[1, 2], [1, 3]]}, "record['v']", "a key stands in it twice"),
    ({"$dict": [[1, 2, 3]]}, "record['v']", r"is no content of \$dict: "),
    ({"$dict": ["ab"]}, "record['v']", r"is no content of \$dict: expected a list"),
    ({"$dict": [[[], 1]]}, "record['v']", r"is no content of \$dict: unhashable"),
    ({"$datetime": "yesterday"}, "record['v']", r"is no content of \$datetime: "),
    ({"$datetime": ["2024-01-01", 0, "No/Zone", None]}, "record['v']", r"is no content of \$datetime: .*No/Zone"),
    ({"$datetime": ["2024-01-01", 0, "America", None]}, "record['v']", r"is no content of \$datetime: "),
    ({"$timedelta": [10**10]}, "record['v']", r"is no content of \$timedelta: "),
    ({"$decimal": "1,5"}, "record['v']", r"is no content of \$decimal: "),
    ({"$uuid": 5}, "record['v']", r"is no content of \$uuid: "),
    ({"$date": {"$set": [1]}}, "record['v']", r"is no content of \$date: "),
]


@pytest.mark.parametrize(("plain", "field", "reason"), REFUSED, ids=repr)
def test_what_was_never_written_is_refused_with_its_place(plain, field, reason):
    with pytest.raises(RecordError, match=reason) as caught:
        decode_record({"u": 1, "v": plain})
    assert caught.value.field == field


def test_a_content_of_which_python_writes_no_decimals_is_refused_as_others():
    with pytest.raises(RecordError, match=r"0x31e20801036510f3\.\.\. is no content of \$float: "):
        decode_record({"v": {"$float": 10**5_000}})


def test_a_field_name_with_one_dollar_is_refused():
    with pytest.raises(RecordError, match=r"write '\$\$bytes'") as caught:
        decode_record({"$bytes": "AP8="})
    assert caught.value.field == "record"


def nested(depth, wrap, innermost):
    for _ in range(depth):
        innermost = wrap(innermost)
    return innermost


WRAPS = {
    "list": lambda inner: [inner],
    "object": lambda inner: {"a": inner},
    "tuple": lambda inner: {"$tuple": [inner]},
    "dict": lambda inner: {"$dict": [[0, inner]]},
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
@pytest.mark.parametrize("leaf", [1, {"$complex": [{"$float": "nan"}, 0.0]}, {"$date": "2024-01-01"}], ids=repr)
def test_values_as_deep_as_is_allowed_are_given_back(wrap, leaf):
    plain = {"v": nested(DEPTH_MAX, wrap, leaf)}
    expected = json.dumps(plain)
    assert json.dumps(encode_records([decode_record(plain)])) == f"[{expected}]"


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
@pytest.mark.parametrize("leaf", [[], {}, {"$set": []}], ids=repr)
def test_a_level_more_is_refused(wrap, leaf):
    with pytest.raises(RecordError, match="nested more than 64 deep"):
        decode_record({"v": nested(DEPTH_MAX, wrap, leaf)})
