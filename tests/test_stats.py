"""`stats`: who has it open, and the numbers as others read them."""

import os
import sys
import time

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

import microdb
from microdb import presence
from microdb.wal.header import DIRTY
from steps import Child, in_thread


def another(path):
    """In a child: open, then read at each step."""
    with microdb.MicroDB(path, ["id"]) as other:
        yield b"o"
        while True:
            len(other)
            yield b"r"


def slots(mdb):
    """The pids in the page, the dead included."""
    return [pid for pid in mdb._words[64::2] if pid]


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


def test_where_the_system_tells_nothing_nobody_is_named(open_db, monkeypatch, tmp_path):
    monkeypatch.setattr(presence, "_LOCKS", str(tmp_path / "missing"))
    stats = open_db().stats()
    assert (stats.pids, stats.positions) == ((), {})


def test_a_database_whose_page_was_removed_names_nobody(open_db, wal):
    mdb = open_db()
    wal.header.unlink()
    assert mdb.stats().pids == ()


@pytest.mark.parametrize("database", ["jobs", 'a "quoted" name\nof two lines', r"C:\new\\"])
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
    assert numbers.pop("last_save_seconds") == stats.last_save_s
    assert numbers.pop("lag") == 0
    assert numbers == {name: getattr(stats, name) for name in numbers}
    assert (numbers["records"], numbers["saves"], numbers["conflicts"], numbers["lock_waits"]) == (4, 1, 0, 0)
    kinds = {family.name.removeprefix("microdb_"): (family.type, family.unit) for family in families}
    assert {name for name, kind in kinds.items() if kind == ("counter", "")} == {
        *("saves", "repairs", "torn_tails", "lock_waits", "conflicts")
    }
    assert kinds["last_save_seconds"] == ("gauge", "seconds")
    assert kinds["lag"] == kinds["records"] == ("gauge", "")


def test_others_read_how_far_each_process_is_behind_and_of_no_save_before_the_first(open_db):
    stats = open_db(":memory:").stats()._replace(sequence=12, positions={7: 12, 8: 3, 9: 13})
    families = {family.name: family for family in text_string_to_metric_families(stats.openmetrics("jobs"))}
    lags = {sample.labels["pid"]: sample.value for sample in families["microdb_lag"].samples}
    assert lags == {"7": 0, "8": 9, "9": 0}, "who has read on since is not ahead"
    assert "microdb_last_save_seconds" not in families


def test_the_head_moves_with_each_change(either):
    before = either.stats().head
    either.upsert({"id": 1})
    stats = either.stats()
    assert stats.head > before
    assert stats.head == stats.generation << 36 | stats.log_bytes


def test_positions_tell_how_far_each_process_has_read(open_db, path):
    mdb = open_db()
    mdb.upsert({"id": 1})
    with Child(lambda: another(path)) as child:
        child.step()
        assert mdb.stats().positions == {os.getpid(): 1, child.pid: 1}
        mdb.upsert_many([{"id": 2}, {"id": 3}])
        mdb.upsert({"id": 4})
        assert mdb.stats().positions == {os.getpid(): 3, child.pid: 1}
        child.step()
        assert mdb.stats().positions == {os.getpid(): 3, child.pid: 3}
        mdb.save()
        assert child.kill() == -9
        assert mdb.stats().positions == {os.getpid(): 3}


def test_who_opens_reads_and_writes_tells_each_time_how_far_it_has_come(open_db):
    mdb = open_db()
    mdb.upsert({"id": 1})
    other = open_db()
    told = other._log.slot.sequence
    assert told[0] == 1
    mdb.upsert({"id": 2})
    assert (2,) in other
    assert told[0] == 2
    mdb.upsert({"id": 3})
    other.upsert({"id": 4})
    assert told[0] == 2, "who writes behind others has not read what they wrote"
    mdb.upsert({"id": 5})
    with other.transaction():
        assert (5,) in other
    assert told[0] == 5
    assert mdb.stats().positions == {os.getpid(): 5}
    mdb.save()
    other._position = None
    assert len(other) == 5
    assert told[0] == 5, "and who had to load anew"


def test_of_two_handles_of_a_process_the_one_that_is_behind_counts(open_db):
    mdb, other = open_db(), open_db()
    mdb.upsert({"id": 1})
    assert mdb.stats().positions == {os.getpid(): 0}
    len(other)
    assert mdb.stats().positions == {os.getpid(): 1}


def test_who_only_reads_says_nothing_in_the_page(open_db):
    mdb = open_db()
    reader = open_db(read_only=True)
    mdb.upsert({"id": 1})
    assert len(reader) == 1
    assert slots(mdb) == [os.getpid()]
    assert reader.stats().positions == {os.getpid(): 1}


@pytest.mark.parametrize("how", ["closed", "dropped"])
def test_a_handle_that_ends_gives_its_slot_back(open_db, path, how):
    mdb = open_db()
    other = microdb.MicroDB(path, ["id"])
    assert slots(mdb) == [os.getpid()] * 2
    if how == "closed":
        other.close()
    else:
        del other
    assert slots(mdb) == [os.getpid()]


def test_a_child_of_a_fork_gets_a_slot_of_its_own_with_its_first_write(open_db):
    mdb, other = open_db(), open_db()

    def child():
        other.upsert({"id": 1})  # Through the handle that the test does not look at.
        yield b"w"
        len(mdb)
        yield b"r"
        mdb.upsert({"id": 2})
        yield b"w"

    with Child(child) as forked:
        forked.step()
        forked.step()
        assert mdb._log.slot.sequence[0] == 0, "what the child has read is not told as its parent's"
        forked.step()
        assert sorted(slots(mdb)) == sorted([os.getpid()] * 2 + [forked.pid] * 2)
        assert mdb._log.slot.sequence[0] == 0
        assert mdb.stats().positions == {os.getpid(): 0, forked.pid: 1}


def test_recovery_empties_the_slots_and_keeps_the_counts(open_db, path):
    mdb = open_db()
    mdb.upsert({"id": 1})
    mdb.save()
    with pytest.raises(microdb.ConflictError):
        mdb.upsert({"id": 1}, expected=None)
    saved = mdb.stats()
    with Child(lambda: another(path)) as child:
        child.step()
        mdb.close()
        assert child.kill() == -9
    mdb = open_db()
    assert slots(mdb) == [os.getpid()]
    stats = mdb.stats()
    assert (stats.conflicts, stats.last_save_s, stats.saves) == (1, saved.last_save_s, 1)


def test_who_waited_for_another_process_is_counted_once_it_has_the_lock(open_db, path, monkeypatch):
    mdb = open_db()
    lock = mdb._log.lock
    wait = lock._wait_for_file

    def holding():
        with microdb.MicroDB(path, ["id"]) as other:
            with other.lock():
                yield b"l"
            yield b"u"

    with Child(holding) as child:
        child.step()
        with pytest.raises(microdb.LockTimeoutError), mdb.lock(timeout=0):
            pass
        assert mdb.stats().lock_waits == 0, "who gave up has not got it"
        monkeypatch.setattr(lock, "_wait_for_file", lambda *_: (child.step(), wait(*_)))
        mdb.upsert({"id": 1})
        mdb.upsert({"id": 2})
        assert mdb.stats().lock_waits == 1


def test_a_thread_that_waits_for_another_of_its_process_is_not_counted(open_db):
    mdb = open_db()
    with mdb.lock():
        error = in_thread(lambda: mdb.lock(timeout=0.001).__enter__())
    assert isinstance(error, microdb.LockTimeoutError)
    assert mdb.stats().lock_waits == 0


def test_conflicts_are_counted_and_upserts_that_find_what_they_expect_are_not(either):
    either.upsert({"id": 1}, expected=None)
    for expected in (None, {"id": 1, "n": 2}):
        with pytest.raises(microdb.ConflictError):
            either.upsert({"id": 1}, expected=expected)
    either.upsert({"id": 1, "n": 1}, expected={"id": 1})
    assert either.stats().conflicts == 2


def test_stats_tell_how_long_the_last_save_took(open_db, path):
    mdb = open_db()
    mdb.upsert({"id": 1})
    assert mdb.stats().last_save_s is None
    began_s = time.monotonic()
    mdb.save()
    took_s = time.monotonic() - began_s
    saved = mdb.stats()
    assert 0 < saved.last_save_s <= took_s
    path.write_text("[]")
    with pytest.raises(microdb.ConflictError):
        mdb.save()
    assert mdb.stats().last_save_s == saved.last_save_s, "one that failed is none"


def test_garbage_in_the_words_of_the_page_that_are_for_stats_alone_does_no_harm(open_db):
    mdb = open_db()
    for word in (32, 33, 34, *range(64, 512)):
        mdb._words[word] = 2**64 - 1
    other = open_db()
    other.upsert({"id": 1})
    with pytest.raises(microdb.ConflictError):
        other.upsert({"id": 1}, expected=None)
    other.save()
    assert other.stats().positions == {os.getpid(): 1}
    assert other.stats().conflicts == 0, "a counter goes on from its word"
    assert not other._words[DIRTY]
    assert list(mdb) == [(1,)]


def test_the_position_of_a_dead_process_is_not_taken_for_that_of_a_new_one_with_its_number(open_db, path, wal):
    with Child(lambda: another(path)) as child:
        child.step()
        with wal.header.open("r+b") as page:
            page.seek(8 * 70)
            page.write(os.getpid().to_bytes(8, sys.byteorder))
        mdb = open_db()
        mdb.upsert({"id": 1})
        assert mdb.stats().positions == {os.getpid(): 1, child.pid: 0}


@pytest.mark.parametrize("database", [None, 5, b"jobs"])
def test_a_database_that_is_called_nothing_has_no_metrics(either, database):
    with pytest.raises(TypeError, match="database is what to call it, a str; found "):
        either.stats().openmetrics(database)
