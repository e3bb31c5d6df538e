"""`stats`: who has it open, and the numbers as others read them."""

import os

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

import microdb
from microdb import locks
from steps import Child


def test_stats_tell_who_has_it_open(open_db, path):
    mdb = open_db()

    def another():
        other = microdb.MicroDB(path, ["id"])
        yield b"o"
        other.close()
        yield b"c"

    with Child(another) as child:
        assert mdb.stats().pids == (os.getpid(),)
        child.step()
        assert mdb.stats().pids == tuple(sorted([os.getpid(), child.pid]))
        child.step()
        assert mdb.stats().pids == (os.getpid(),)
    mdb.close()


def test_a_table_in_memory_is_open_here_alone(open_db):
    assert open_db(":memory:").stats().pids == (os.getpid(),)


def test_where_the_system_tells_nothing_nobody_is_named(open_db, monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(locks, "open", missing, raising=False)
    assert open_db().stats().pids == ()


def test_a_database_whose_page_was_removed_names_nobody(open_db, wal):
    mdb = open_db()
    wal.header.unlink()
    assert mdb.stats().pids == ()


@pytest.mark.parametrize("database", ["jobs", 'a "quoted" \\ name\nof two lines'])
def test_the_numbers_are_read_by_others_as_they_are(open_db, database):
    mdb = open_db()
    mdb.upsert_many({"id": number} for number in range(5))
    mdb.save()
    mdb.delete((0,))
    stats = mdb.stats()
    families = list(text_string_to_metric_families(stats.openmetrics(database)))
    samples = [sample for family in families for sample in family.samples]
    assert {sample.labels["database"] for sample in samples} == {database}
    numbers = {sample.name.removeprefix("microdb_").removesuffix("_total"): sample.value for sample in samples}
    assert numbers == {name: getattr(stats, name) for name in numbers}
    assert (numbers["records"], numbers["saves"]) == (4, 1)
    assert {family.type for family in families} == {"gauge", "counter"}
    assert stats._fields[0] == "records"
