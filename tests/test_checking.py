"""`check`: what is wrong is found and said, and what is right is not."""

import math

import pytest

import microdb

A = {"id": "a", "n": 1, "tags": ["old"]}
B = {"id": "b", "n": math.nan}
HUGE = "record (0x31e20801036510f3...,)"


@pytest.fixture
def mdb(open_db):
    mdb = open_db(indexes=["n"], sorted_indexes=["n"])
    mdb.upsert_many([A, B])
    assert mdb.where(n=1).exists()
    assert mdb.where(n=microdb.at_least(1)).exists()
    return mdb


def test_a_sound_database_is_sound_whatever_was_done_to_it(mdb, open_db):
    other = open_db()
    assert mdb.check() == other.check() == (2, [])
    other.save()
    other.upsert({"id": "c"})
    mdb.delete(("a",))
    for handle in (mdb, other, open_db(read_only=True)):
        assert handle.check() == (2, [])
        assert handle.check().is_sound


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda records: records.pop(("a",)), "record ('a',) is in the files, and not in the table"),
        (lambda records: records.update({("x",): {"id": "x"}}), "record ('x',) is in the table, and not in the files"),
        (lambda records: records.update({(10**5_000,): {}}), f"{HUGE} is in the table, and not in the files"),
        (lambda records: records[("a",)].update(n=True), "record ('a',) is another one in the files"),
        (lambda records: records[("a",)]["tags"].append(1), "record ('a',) is another one in the files"),
        (
            lambda records: records.update({("a",): records.pop(("a",))}),
            "the records stand in another order in the files",
        ),
    ],
    ids=["one too few", "one too many", "a huge one too many", "another type", "another item", "another order"],
)
def test_a_table_that_is_not_what_the_files_say_is_found(open_db, damage, problem):
    mdb = open_db()
    mdb.upsert_many([A, B])
    damage(mdb._records)
    assert mdb.check().problems == [problem]
    assert not mdb.check().is_sound


@pytest.mark.parametrize("way", ["index on n", "sorted index on n"])
def test_an_index_that_names_too_few_or_too_many_is_found(mdb, way):
    (index,) = [index for plan, index in mdb._records.indexes.items() if str(plan) == way]
    index.add(("x",), {"n": 7})
    assert mdb.check().problems == [f"{way}: 0 records are not where they should be, 3 of 2 named"]
    index.forget(("x",), {"n": 7})
    assert mdb.check().is_sound
    index.forget(("a",), A)
    assert mdb.check().problems == [f"{way}: 1 records are not where they should be, 1 of 2 named"]


def test_damage_of_the_files_is_a_problem_and_no_error(mdb, wal):
    data = bytearray(wal.log().read_bytes())
    data[-6] ^= 1
    wal.log().write_bytes(data)
    (problem,) = mdb.check().problems
    assert "the crc is wrong" in problem


def test_a_table_in_memory_is_checked_too(open_db):
    mdb = open_db(":memory:", indexes=["n"])
    mdb.upsert(A)
    assert mdb.where(n=1).exists()
    assert mdb.check() == (1, [])
    next(iter(mdb._records.indexes.values())).forget(("a",), A)
    assert mdb.check().problems == ["index on n: 1 records are not where they should be, 0 of 1 named"]


def test_a_transaction_is_not_checked(mdb):
    with mdb.transaction(), pytest.raises(microdb.TransactionError, match=r"check\(\) inside a transaction"):
        mdb.check()
