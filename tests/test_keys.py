import datetime as dt
import math
import uuid
import zoneinfo
from decimal import Decimal

import pytest

from microdb.errors import RecordError
from microdb.keys import PartitionKeys

ONE = PartitionKeys(["id"])
TWO = PartitionKeys(["job", "name"])

NANS = {
    "float": math.nan,
    "quiet Decimal": Decimal("NaN"),
    "signalling Decimal": Decimal("sNaN"),
    "complex, real": complex(math.nan, 0),
    "complex, imaginary": complex(0, math.nan),
    "in a tuple": (1, math.nan),
    "in a frozenset": frozenset({math.nan}),
    "deep": (1, (frozenset({(Decimal("NaN"),)}),)),
}

UNHASHABLE = {
    "list": [],
    "dict": {},
    "set": set(),
    "list in a tuple": (1, [2]),
    "set in a deep tuple": (1, (2, ({3},))),
}

HASHABLE = [
    None, True, 0, 1.5, -0.0, math.inf, 1j, "", b"", ..., (), (1, ("a", None)), frozenset(), frozenset({1, (2,)}),
    Decimal("1.10"), Decimal("Infinity"), dt.date(2024, 1, 1), dt.datetime(2024, 1, 1, tzinfo=dt.UTC), dt.time(1),
    dt.timedelta(1), uuid.UUID(int=1),
]  # fmt: skip


def test_the_key_is_the_values_of_the_fields_in_the_order_of_the_names():
    record = {"name": "Bob", "status": "done", "job": "clean"}
    assert TWO.of(record) == ("clean", "Bob")
    assert PartitionKeys(["name", "job"]).of(record) == ("Bob", "clean")


def test_the_key_of_one_field_is_a_tuple_too():
    assert ONE.of({"id": 7, "x": 1}) == (7,)
    assert ONE.of({"id": (1, 2)}) == ((1, 2),)


@pytest.mark.parametrize(
    ("record", "key"),
    [({}, (None, None)), ({"job": 1}, (1, None)), ({"name": 2}, (None, 2)), ({"x": 3}, (None, None))],
)
def test_a_missing_field_counts_as_none(record, key):
    assert TWO.of(record) == TWO.checked(record) == key


def test_a_missing_field_and_one_that_is_none_make_the_same_key():
    assert ONE.of({}) == ONE.of({"id": None}) == (None,)


def test_equal_numbers_of_different_types_are_one_key():
    assert len({ONE.of({"id": value}) for value in (1, 1.0, True, Decimal(1), 1 + 0j)}) == 1


@pytest.mark.parametrize("value", HASHABLE, ids=repr)
def test_every_immutable_value_may_stand_in_a_key(value):
    assert ONE.checked({"id": value}) == (value,)
    assert TWO.checked({"job": value, "name": "x"}) == (value, "x")


@pytest.mark.parametrize("what", NANS)
def test_nan_anywhere_in_a_key_is_refused_with_the_path_of_the_field(what):
    for keys, record in ((ONE, {"id": NANS[what]}), (TWO, {"job": 1, "name": NANS[what]})):
        with pytest.raises(RecordError) as caught:
            keys.checked(record)
        assert caught.value.field == f"record[{keys.names[-1]!r}]"


@pytest.mark.parametrize("what", [what for what in NANS if what != "signalling Decimal"])
def test_the_message_says_that_nan_equals_nothing(what):
    with pytest.raises(RecordError, match="nan"):
        ONE.checked({"id": NANS[what]})


@pytest.mark.parametrize("what", UNHASHABLE)
def test_something_mutable_in_a_key_is_refused_with_the_path_of_the_field(what):
    for keys, record in ((ONE, {"id": UNHASHABLE[what]}), (TWO, {"job": 1, "name": UNHASHABLE[what]})):
        with pytest.raises(RecordError, match=f"cannot hold a {type(UNHASHABLE[what]).__name__}") as caught:
            keys.checked(record)
        assert caught.value.field == f"record[{keys.names[-1]!r}]"


def test_nan_and_mutable_values_outside_the_key_are_none_of_its_business():
    assert ONE.checked({"id": 1, "a": math.nan, "b": []}) == (1,)


def test_names_may_come_from_any_iterable():
    assert PartitionKeys(iter(["a", "b"])).names == PartitionKeys({"a": 1, "b": 2}).names == ("a", "b")


@pytest.mark.parametrize("names", ["id", None, 1, b"id", [1], ["a", None], [("a",)], [["a"]], [b"a"]], ids=repr)
def test_names_that_are_no_iterable_of_str_are_refused(names):
    with pytest.raises(TypeError):
        PartitionKeys(names)


def test_one_name_without_a_list_is_refused_with_what_to_write():
    with pytest.raises(TypeError, match=r"write \['id'\]"):
        PartitionKeys("id")


@pytest.mark.parametrize("names", [[], ["a", "a"], ["a", "b", "a"]])
def test_no_name_or_the_same_twice_is_refused(names):
    with pytest.raises(ValueError, match="different fields"):
        PartitionKeys(names)


def test_a_private_time_zone_in_a_key_is_refused_and_a_shared_one_is_not():
    """Two of one key differ in an hour that a clock shows twice: nobody would find the record again."""
    private = dt.datetime(2024, 10, 27, 2, 30, tzinfo=zoneinfo.ZoneInfo.no_cache("Europe/Berlin"))
    for value in (private, (1, (private,))):
        with pytest.raises(RecordError, match=r"use ZoneInfo\(key\)") as caught:
            ONE.checked({"id": value})
        assert caught.value.field == "record['id']"
    shared = private.replace(tzinfo=zoneinfo.ZoneInfo("Europe/Berlin"))
    assert ONE.checked({"id": shared}) == (shared,)
