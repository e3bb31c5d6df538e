"""Finding records: conditions, order, parts, groups; and by which way."""

import datetime as dt
import math
import re
import sys
from decimal import Decimal

import pytest

import microdb
from microdb.conditions import OneOf, Range
from microdb.finder import plan

CITIES = [
    {"id": 1, "city": "Rome", "country": "IT", "size": 28, "tags": ["old"]},
    {"id": 2, "city": "Bonn", "country": "DE", "size": 3, "tags": []},
    {"id": 3, "city": "Pisa", "country": "IT", "size": 1},
    {"id": 4, "city": "Ulm", "country": "DE", "size": None, "tags": ["old"]},
    {"id": 5, "country": "FR", "size": "many", "tags": ["new"]},
]


@pytest.fixture(params=["scan", "indexes"])
def mdb(request, open_db):
    indexes = {
        "indexes": ["city", ("country", "city"), "country", "tags"],
        "sorted_indexes": ["size"],
    }
    mdb = open_db(**(indexes if request.param == "indexes" else {}))
    mdb.upsert_many(CITIES)
    return mdb


def ids(found):
    return sorted(record["id"] for record in found)


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({}, [1, 2, 3, 4, 5]),
        ({"country": "IT"}, [1, 3]),
        ({"country": "IT", "city": "Rome"}, [1]),
        ({"country": "IT", "city": "Bonn"}, []),
        ({"city": None}, [5]),
        ({"id": 3}, [3]),
        ({"id": 3, "city": "Rome"}, []),
        ({"id": 7}, []),
        ({"id": [3]}, []),
        ({"size": 28.0}, [1]),
        ({"tags": ["old"]}, [1, 4]),
        ({"tags": None}, [3]),
        ({"tags": ("old",)}, []),
        ({"size": microdb.between(1, 3)}, [2, 3]),
        ({"size": microdb.at_least(3)}, [1, 2]),
        ({"size": microdb.above(3)}, [1]),
        ({"size": microdb.at_most(3)}, [2, 3]),
        ({"size": microdb.below(3)}, [3]),
        ({"size": microdb.at_least("m")}, [5]),
        ({"size": microdb.between(1, "m")}, []),
        ({"size": microdb.between(math.nan, 5)}, []),
        ({"size": microdb.at_most(None)}, []),
        ({"size": microdb.between(3, 1)}, []),
        ({"size": microdb.above(Decimal("2.5")), "country": "DE"}, [2]),
        ({"tags": microdb.at_least(["a"])}, [1, 4, 5]),
        ({"country": microdb.one_of(["FR", "DE", "FR"])}, [2, 4, 5]),
        ({"country": microdb.one_of([])}, []),
        ({"tags": microdb.one_of([["old"], ["new"]])}, [1, 4, 5]),
        ({"city": microdb.one_of(["Ulm", None])}, [4, 5]),
    ],
)
def test_where_finds_what_meets_all_conditions(mdb, conditions, expected):
    query = mdb.where(**conditions)
    assert ids(query) == ids(mdb.where(conditions)) == expected
    assert query.count() == len(expected)
    assert query.exists() == bool(expected)
    assert (query.first() is None) == (not expected)
    assert all(record in CITIES for record in query)


def test_functions_are_conditions_too(mdb):
    assert ids(mdb.where(lambda record: record["id"] > 2, country="DE")) == [4]
    assert ids(mdb.where(lambda record: record["id"] > 2).where(country="DE").where(lambda _: True)) == [4]
    assert ids(mdb.where(country="IT").where(country="IT", city="Pisa")) == [3]


def test_bad_questions_are_refused(mdb):
    with pytest.raises(TypeError, match="where\\(\\) takes field=value, a mapping of such, or a function"):
        mdb.where("city")
    with pytest.raises(ValueError, match="asks field 'country' for two values"):
        mdb.where(country="IT").where(country="DE")
    with pytest.raises(ValueError, match="asks field 'country' for two values"):
        mdb.where({"country": microdb.at_least("A")}, {"country": microdb.below("B")})
    with pytest.raises(ValueError, match="asks field 'country' for two values"):
        mdb.where({"country": "IT"}, country="DE")
    with pytest.raises(TypeError, match=r"one_of takes several values; write \['IT'\]"):
        microdb.one_of("IT")
    with pytest.raises(TypeError, match=r"one_of takes several values; write \[5\]"):
        microdb.one_of(5)
    with pytest.raises(TypeError, match="fields are asked for by their names; found 0"):
        mdb.where({0: 1})
    with pytest.raises(TypeError, match="fields are asked for by their names; found 0"):
        mdb.where().where({0: 1})
    with pytest.raises(ValueError, match=r"where\(\) after limit\(\)"):
        mdb.where().limit(3).where(country="IT")
    with pytest.raises(ValueError, match=r"order_by\(\) after limit\(\)"):
        mdb.where().limit(3).order_by("id")
    with pytest.raises(ValueError, match="negative"):
        mdb.where().limit(-1)
    with pytest.raises(ValueError, match="twice"):
        mdb.where().limit(1).limit(1)
    with pytest.raises(TypeError, match="name one field"):
        mdb.where().distinct()
    for ask in (mdb.where().distinct, mdb.where().group_by):
        with pytest.raises(TypeError, match="fields are asked for by their names; found 5"):
            ask("city", 5)
    with pytest.raises(TypeError, match=r"order_by\('size',\): .*; order by a function"):
        list(mdb.where().order_by("size"))
    with pytest.raises(TypeError, match=r"order_by\(\) takes field names, and functions of a record; found \['size'\]"):
        mdb.where().order_by("id", ["size"])
    with pytest.raises(TypeError, match="reverse is True or False, found None"):
        mdb.where().order_by("id", reverse=None)


@pytest.mark.parametrize("number", ["5", None, 1.5])
def test_a_limit_is_of_whole_numbers(mdb, number):
    with pytest.raises(TypeError, match=re.escape(f"limit() takes whole numbers, found {number!r} and offset=0")):
        mdb.where().limit(number)
    with pytest.raises(TypeError, match=re.escape(f"limit() takes whole numbers, found 1 and offset={number!r}")):
        mdb.where().limit(1, offset=number)


def test_a_limit_is_within_what_can_be_counted(mdb):
    assert ids(mdb.where().order_by("id").limit(sys.maxsize - 4, offset=4)) == [5]
    for count, offset in ((10**30, 0), (1, 10**30), (sys.maxsize, 1)):
        with pytest.raises(ValueError, match=f"numbers up to {sys.maxsize}, found {count} and offset={offset}"):
            mdb.where().limit(count, offset=offset)
    with pytest.raises(ValueError, match="no negative numbers, found 1 and offset=-1"):
        mdb.where().limit(1, offset=-1)


@pytest.mark.parametrize("error", [TypeError, ZeroDivisionError])
def test_what_a_function_of_the_caller_raises_is_not_reworded(mdb, error):
    def fail(_):
        raise error("of its own")

    with pytest.raises(error, match=r"^of its own$"):
        list(mdb.where().order_by(fail))


def test_order_by_is_stable_and_puts_none_first(mdb):
    numbers = mdb.where(lambda record: record["size"] != "many")
    assert [record["id"] for record in numbers.order_by("size")] == [4, 3, 2, 1]
    assert [record["id"] for record in numbers.order_by("size", reverse=True)] == [1, 2, 3, 4]
    assert [record["id"] for record in numbers.order_by("country", "size")] == [4, 2, 3, 1]
    assert [record["id"] for record in numbers.order_by("id", reverse=True).order_by("country")] == [4, 2, 3, 1]
    assert [record["id"] for record in mdb.where().order_by(lambda record: -record["id"])] == [5, 4, 3, 2, 1]


def test_limit_takes_a_part_of_them(mdb):
    ordered = mdb.where().order_by("id")
    assert ids(ordered.limit(2)) == [1, 2]
    assert ids(ordered.limit(2, offset=4)) == [5]
    assert ids(ordered.limit(0)) == []
    assert ordered.limit(3).count() == 3
    assert ordered.limit(1, offset=1).first()["id"] == 2
    assert not ordered.limit(1, offset=5).exists()


def test_distinct_and_group_by_tell_values_apart_as_where_does(mdb):
    mdb.upsert_many([{"id": 6, "size": 28.0}, {"id": 7, "size": math.nan}, {"id": 8, "size": True}])
    assert sorted(mdb.where().distinct("country"), key=str) == ["DE", "FR", "IT", None]
    assert sorted(mdb.where(country="IT").distinct("country", "city")) == [("IT", "Pisa"), ("IT", "Rome")]
    assert [value for value in mdb.where().distinct("tags") if value] == [["old"], ["new"]]
    sizes = {value: ids(group) for value, group in mdb.where().group_by("size").items() if str(value) != "nan"}
    assert sizes == {28: [1, 6], 3: [2], 1: [3, 8], None: [4], "many": [5]}
    assert mdb.where(country="IT").group_by("country", "city").keys() == {("IT", "Rome"), ("IT", "Pisa")}
    with pytest.raises(microdb.RecordError, match="tags: a value without a hash cannot be the key"):
        mdb.where().group_by("tags")


def test_distinct_values_without_a_hash_are_told_apart_by_being_equal(open_db):
    mdb = open_db(":memory:")
    mdb.upsert_many({"id": number, "v": v} for number, v in enumerate([{0, 8}, {8, 0}, [1], [1.0], {"a": 1, "b": 2}]))
    mdb.upsert({"id": 9, "v": {"b": 2, "a": 1}})
    assert mdb.where().distinct("v") == [{0, 8}, [1], {"a": 1, "b": 2}]


def test_what_is_found_is_the_callers_own(mdb):
    for record in mdb.where(city="Rome"):
        record["tags"].append("mine")
    mdb.where(city="Rome").first()["tags"].append("mine")
    mdb.where(city="Rome").group_by("city")["Rome"][0]["tags"].append("mine")
    mdb.where(city="Rome").distinct("tags")[0].append("mine")
    assert mdb.where(lambda record: record.get("tags", []).append("mine"), city="Rome").count() == 0
    assert mdb.where().order_by(lambda record: (record.get("tags", []).append("mine"), record["id"])[1]).count() == 5
    assert mdb[1,] == CITIES[0]


def test_a_query_is_asked_anew_each_time_and_an_iteration_is_of_one_moment(mdb):
    query = mdb.where(country="IT")
    found = iter(query)
    mdb.upsert({"id": 0, "country": "IT"})
    mdb.delete((1,))
    assert ids(query) == [0, 3]
    assert ids(found) in ([1, 3], [0, 3])
    found = iter(query)
    first = next(found)
    mdb.clear()
    assert ids([first, *found]) == [0, 3]


def test_a_query_sees_the_changes_of_its_transaction_and_others_do_not(mdb, open_db):
    other = open_db()
    assert mdb.where(country="IT").count() == 2
    with mdb.transaction():
        mdb.upsert({"id": 6, "country": "IT", "size": 4})
        mdb.patch((1,), country="VA")
        mdb.delete((3,))
        assert ids(mdb.where(country="IT")) == [6]
        assert ids(mdb.where(country="VA")) == [1]
        assert ids(mdb.where(size=microdb.at_least(4))) == [1, 6]
        assert ids(mdb.where(id=6)) == [6]
        assert ids(mdb.where(id=3)) == []
        assert ids(mdb.where()) == [1, 2, 4, 5, 6]
        assert ids(other.where(country="IT")) == [1, 3]
        mdb.clear()
        assert ids(mdb.where(country="DE")) == []
    assert mdb.where().count() == other.where().count() == 0


def test_what_others_write_is_found(mdb, open_db):
    other = open_db()
    assert ids(mdb.where(country="IT")) == [1, 3]
    other.patch((1,), country="VA")
    other.upsert({"id": 6, "country": "IT"})
    assert (ids(mdb.where(country="IT")), ids(mdb.where(country="VA"))) == ([3, 6], [1])
    other.save()
    other.delete((3,))
    assert ids(mdb.where(country="IT")) == [6]
    other.clear()
    assert ids(mdb.where(country="IT")) == []


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, "scan: 5 records"),
        ({"size": 28}, "scan: 5 records"),
        ({"id": 1}, "key: 1 record"),
        ({"id": 1, "country": "IT"}, "key: 1 record"),
        ({"id": 9}, "key: 0 records"),
        ({"id": microdb.one_of([1])}, "scan: 5 records"),
        ({"country": "IT"}, "index on country: 2 records"),
        ({"country": "IT", "size": 28}, "index on country: 2 records"),
        ({"country": "IT", "city": "Rome"}, "index on country, city: 1 record"),
        ({"country": microdb.one_of(["IT", "FR"])}, "index on country: 3 records"),
        ({"size": microdb.at_least(3)}, "sorted index on size: 2 records"),
        ({"country": "IT", "size": microdb.at_least(3)}, "index on country: 2 records"),
        ({"tags": ["old"]}, "scan: 5 records"),
        ({"tags": "old"}, "index on tags: 4 records"),
    ],
)
def test_explain_tells_the_way_and_how_many_it_leads_to(open_db, wanted, expected):
    mdb = open_db(indexes=["country", ("country", "city"), "tags"], sorted_indexes=["size"])
    mdb.upsert_many(CITIES)
    assert mdb.where(wanted).explain() == expected


def test_the_first_partition_keys_are_an_index_without_being_told(open_db):
    mdb = open_db(partition_keys=["a", "b", "c"])
    mdb.upsert_many({"a": a, "b": b, "c": c} for a in range(3) for b in range(3) for c in range(3))
    assert mdb.where(a=1).explain() == "index on a: 9 records"
    assert mdb.where(a=1, b=2).explain() == "index on a, b: 3 records"
    assert mdb.where(a=1, c=2).explain() == "index on a: 9 records"
    assert mdb.where(b=1).explain() == "scan: 27 records"
    assert mdb.where(a=1, b=2, c=0).explain() == "key: 1 record"
    assert ids_of(mdb.where(a=1, c=2)) == [(1, 0, 2), (1, 1, 2), (1, 2, 2)]


def ids_of(found):
    return sorted((record["a"], record["b"], record["c"]) for record in found)


def test_the_index_with_the_most_fields_is_taken():
    assert plan({"a": 1, "b": 2, "c": 3}, ("id",), [("a",), ("b", "c")], []).fields == ("b", "c")
    assert plan({"a": 1, "b": 2}, ("a", "b", "c"), [("b",)], []).fields == ("a", "b")


@pytest.mark.parametrize("argument", ["indexes", "sorted_indexes"])
@pytest.mark.parametrize("bad", ["status", None, 5, [1], [()], [["a", 1]]])
def test_what_names_no_fields_is_no_index(open_db, path, argument, bad):
    with pytest.raises(TypeError, match=f"^{argument} (is a list|lists field names)"):
        open_db(**{argument: bad})
    assert not path.parent.joinpath("mdb.json.wal").exists()


def test_a_sorted_index_is_on_one_field(open_db):
    with pytest.raises(TypeError, match="sorted_indexes takes single fields"):
        open_db(sorted_indexes=[("a", "b")])


def test_conditions_and_queries_say_what_they_are(mdb):
    assert repr(mdb.where(city="Rome")) == "<Query where(city='Rome')>"
    query = mdb.where(len, age=microdb.above(1)).order_by("n").order_by(len, "m", reverse=True)
    text = "where(<built-in function len>, age=> 1).order_by('n').order_by(<built-in function len>, 'm', reverse=True)"
    assert repr(query) == f"<Query {text}>"
    assert repr(query.limit(3)) == f"<Query {text}.limit(3)>"
    assert repr(query.limit(3, offset=2)) == f"<Query {text}.limit(3, offset=2)>"
    assert str(microdb.between(1, 2)) == ">= 1 and <= 2"
    assert str(microdb.above(1)) == "> 1"
    assert str(microdb.below(dt.date(2026, 1, 1))) == "< datetime.date(2026, 1, 1)"
    assert str(microdb.one_of(iter("ab"))) == "one of ['a', 'b']"
    assert (type(microdb.at_most(1)), type(microdb.one_of(()))) == (Range, OneOf)
