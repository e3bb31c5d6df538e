"""Indexes: they never name a key too few, whatever happens to the table."""

import datetime as dt
import enum
import math
import random
import uuid
import zoneinfo
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

import microdb
from faulty import interrupt
from microdb.conditions import Range, family, one_of
from microdb.expiry import has_expired
from microdb.indexes import ExpiryIndex, HashIndex, IndexedRecords, SortedIndex
from microdb.values import Expiring
from strategies import values

ZONE = dt.timezone(dt.timedelta(hours=2))
MOMENT = dt.datetime(2026, 1, 1, 12)
LADDERS = [
    [-1, False, 0.5, Decimal("0.7"), 1, True, 2**70],
    ["", "a", "b"],
    [b"", b"a"],
    [MOMENT, MOMENT + dt.timedelta(1)],
    [MOMENT.replace(tzinfo=dt.UTC), MOMENT.replace(tzinfo=ZONE) + dt.timedelta(1)],
    [dt.date(2026, 1, 1), dt.date(2026, 1, 2)],
    [dt.time(1), dt.time(2)],
    [dt.timedelta(1), dt.timedelta(2)],
    [uuid.UUID(int=1), uuid.UUID(int=2)],
]
ODD = [None, math.nan, Decimal("nan"), Decimal("snan"), [1], (1,), {"a": 1}, ..., 1j, {1}, frozenset({1})]
ALL = [*(value for ladder in LADDERS for value in ladder), *ODD]


def two(open_db, values, **indexes):
    """One database with indexes and one without, of the same records."""
    both = open_db(":memory:", **indexes), open_db(":memory:")
    for each in both:
        each.upsert_many({"id": number, "v": value} for number, value in enumerate(values))
    return both


@pytest.mark.parametrize("low", ALL, ids=repr)
def test_a_sorted_index_finds_what_a_scan_finds_among_all_kinds_of_values(open_db, low):
    mdb, plain = two(open_db, ALL, sorted_indexes=["v"])
    for wanted in (Range(low=low), Range(high=low), Range(low=low, high=low), Range(low, low, with_low=False)):
        found = sorted(record["id"] for record in mdb.where(v=wanted))
        assert found == sorted(record["id"] for record in plain.where(v=wanted))
    assert mdb.where(v=Range(low=low)).explain().startswith("scan" if family(low) is None else "sorted index")


@pytest.mark.parametrize("wanted", ALL, ids=repr)
def test_a_hash_index_finds_what_a_scan_finds_among_all_kinds_of_values(open_db, wanted):
    mdb, plain = two(open_db, ALL, indexes=["v"])
    for question in (wanted, one_of([wanted, 1])):
        found = sorted(record["id"] for record in mdb.where(v=question))
        assert found == sorted(record["id"] for record in plain.where(v=question))


CHANGES = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.none() | st.fixed_dictionaries({}, optional={"v": values(), "w": st.integers(0, 1)}),
        st.none() | st.sampled_from([1.0, 2.0, 3.0]),
    ),
    max_size=20,
)


@given(changes=CHANGES)
def test_after_any_changes_each_index_names_each_record_once_and_nothing_else(changes):
    table = IndexedRecords({})
    indexes = [HashIndex(("v",)), HashIndex(("v", "w")), SortedIndex("v"), ExpiryIndex()]
    table.keep(0, indexes[0])
    for count, (number, fields, expires_at) in enumerate(changes):
        if count == len(changes) // 2:
            for name in (1, 2, 3):
                table.keep(name, indexes[name])
        if fields is None:
            table.pop((number,), None)
        else:
            record = {"id": number, **fields}
            table[number,] = record if expires_at is None else Expiring(record, expires_at)
    if 3 in table.indexes:
        for now in (0.0, 1.0, 2.5, 3.0):
            expired = [key for key, record in table.items() if has_expired(record, now)]
            assert sorted(indexes[3].find({"now": now})) == sorted(expired)
    for name, index in table.indexes.items():
        named = [key for bucket in buckets(index) for key in bucket]
        assert sorted(named) == sorted(table), name
        assert all(bucket for bucket in buckets(index)), "an empty one is not kept"
    table.clear()
    assert table.indexes == {}


def buckets(index):
    if isinstance(index, HashIndex):
        found = list(index._buckets.values())
    elif isinstance(index, ExpiryIndex):
        found = index._all()
    else:
        found = [bucket for family in index._families.values() for bucket in family.values()]
        found += [index._unordered] if index._unordered else []
    return [*found, *([index._aside] if index._aside else [])]


def test_amid_a_change_an_index_names_the_record_under_both_values():
    """For an interrupt that comes there in a table that is never loaded anew."""
    seen = []

    class Watched(IndexedRecords):
        def keep(self, name, index):
            super().keep(name, index)
            forget = index.forget
            index.forget = lambda *args: (seen.append([list(index.find({"v": v})) for v in (1, 2)]), forget(*args))

    table = Watched({("a",): {"id": "a", "v": 1}})
    table.keep("v", HashIndex(("v",)))
    table["a",] = {"id": "a", "v": 2}
    assert seen == [[[("a",)], [("a",)]]]
    assert [list(table.indexes["v"].find({"v": v})) for v in (1, 2)] == [[], [("a",)]]


def test_a_table_keeps_no_index_before_one_is_of_use(open_db):
    mdb = open_db(indexes=["v"])
    mdb.upsert({"id": 1, "v": 2})
    assert type(mdb._records) is dict
    assert mdb.where(v=2).count() == 1
    assert type(mdb._records) is IndexedRecords
    mdb.upsert({"id": 2, "v": 2})
    assert mdb.where(v=2).count() == 2
    assert len(mdb._records.indexes) == 1


def test_an_index_lives_through_what_happens_to_a_table(open_db, path):
    mdb, other = open_db(indexes=["v"]), open_db()
    mdb.upsert_many([{"id": n, "v": n % 3} for n in range(9)])
    assert mdb.where(v=1).count() == 3
    other.save()
    other.upsert({"id": 9, "v": 1})
    assert mdb.where(v=1).explain() == "index on v: 4 records"
    mdb._position = None  # As after an interrupt.
    mdb._applied = -1
    assert mdb.where(v=1).explain() == "index on v: 4 records"
    with mdb.transaction():
        assert mdb.where(v=1).count() == 4
        other_first_use = mdb.where(v=microdb.one_of([0, 2])).count()
    assert other_first_use == 6


class Level(enum.IntEnum):
    LOW = 1


class Moment(dt.datetime):
    """As pandas and freezegun have."""


@pytest.mark.parametrize(("bound", "value"), [(Level.LOW, 2), (Fraction(1, 2), 1), (Moment(2026, 1, 1), MOMENT)])
def test_a_bound_of_another_type_is_looked_for_everywhere(open_db, bound, value):
    mdb = open_db(":memory:", sorted_indexes=["v"])
    mdb.upsert({"id": 1, "v": value})
    assert mdb.where(v=microdb.at_least(bound)).count() == 1
    assert mdb.where(v=microdb.at_least(bound)).explain() == "scan: 1 record"


def test_moments_that_a_zone_has_twice_or_never_have_no_place_in_an_order(open_db):
    zones = [zoneinfo.ZoneInfo("Europe/Berlin"), zoneinfo.ZoneInfo("America/New_York"), dt.UTC]
    days = [dt.datetime(2026, 10, 25), dt.datetime(2026, 3, 29), dt.datetime(2026, 11, 1)]
    moments = [
        (day + dt.timedelta(minutes=20 * step)).replace(tzinfo=zone, fold=fold)
        for day in days
        for zone in zones
        for step in range(15)
        for fold in (0, 1)
    ]
    random.Random(1).shuffle(moments)
    mdb, plain = two(open_db, moments, sorted_indexes=["v"])
    mdb.where(v=microdb.at_least(MOMENT.replace(tzinfo=dt.UTC))).exists()
    for low in moments[::7]:
        wanted = microdb.between(low, low + dt.timedelta(hours=2))
        assert mdb.where(v=wanted).count() == plain.where(v=wanted).count()
    for number in range(len(moments)):
        mdb.delete((number,))
    assert mdb.check().is_sound


def test_an_interrupt_amid_a_change_of_an_index_makes_it_anew(open_db, monkeypatch):
    mdb = open_db(":memory:", indexes=["v"])
    mdb.upsert({"id": 1, "v": 1})
    assert mdb.where(v=1).count() == 1
    with monkeypatch.context() as patch:
        patch.setattr(HashIndex, "add", interrupt)
        with pytest.raises(KeyboardInterrupt):
            mdb.upsert({"id": 2, "v": 1})
    mdb.where(v=1).count()
    with monkeypatch.context() as patch:
        patch.setattr(HashIndex, "forget", interrupt)
        with pytest.raises(KeyboardInterrupt):
            mdb.delete((1,))
    assert mdb.check().is_sound
    assert mdb.where(v=1).count() == mdb.where(lambda record: record["v"] == 1).count()


def test_a_signal_handler_may_write_as_an_index_is_gone_through():
    table = IndexedRecords({})
    for index in (HashIndex(("v",)), SortedIndex("v")):
        table.keep(type(index), index)
    for number in range(9):
        table[number,] = {"id": number, "v": number % 2}
    for kind, wanted in ((HashIndex, {"v": 1}), (SortedIndex, {"v": microdb.at_least(0)})):
        for number, _ in enumerate(table.indexes[kind].find(wanted)):
            table[100 + number,] = {"id": number, "v": number}
            table.pop((number,), None)
