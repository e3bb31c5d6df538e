"""Watching: every change once, in order, by whomever and across saves; or one word that some were lost."""

import json
import logging
import os
import pickle
import queue
import sys
import threading
import time

import pytest

import microdb
from children import (
    SPAWN,
    finish,
    forked,
    listen_and_end,
    spawned,
    start,
    write_behind_a_save,
    write_numbers,
    write_when_told,
    write_without_waking,
)
from faulty import Faulty, once, only
from microdb import Position, open_table, watching
from microdb.wal import bell, file_log
from microdb.wal.codec import encode_upsert, join
from microdb.wal.header import HEAD
from walfiles import overwrite

SAVED = [{"id": 1, "n": 1}, {"id": 2, "n": 2}]


def told(watch):
    """All that there is to be told now."""
    return list(iter(watch.take, None))


def short(events):
    return [(event.kind, event.key, event.old, event.new) for event in events]


def replay(events, table):
    """Do to a table what events tell."""
    for event in events:
        if event.kind == "clear":
            assert {part.key for part in event.parts} == table.keys()
        for one in event.parts or (event,):
            if one.kind == "delete":
                assert table.pop(one.key) == one.old or one.old is microdb.UNKNOWN
            elif one.kind == "upsert":
                assert one.old is microdb.UNKNOWN or table.get(one.key) == one.old
                table[one.key] = one.new


@pytest.fixture
def _only_the_woken_wake(monkeypatch):
    """Who sleeps and is not woken sleeps on until the test has failed."""
    monkeypatch.setattr(bell, "SLEEP_S_MAX", 3_600.0)


@pytest.fixture
def no_futex(monkeypatch):
    monkeypatch.setattr(bell, "_futex", lambda: None)


@pytest.fixture
def forgetful(open_db):
    """A database whose saves keep no history."""
    mdb = open_db()
    mdb._log.generations._history_bytes = 0
    return mdb


def test_each_change_is_told_with_what_was_there_and_what_is(either):
    either.upsert({"id": 1, "n": 0})
    watch = either.watch()
    either.upsert({"id": 1, "n": 1})
    either.upsert({"id": 2, "n": [2]})
    either.delete((1,))
    assert short(told(watch)) == [
        ("upsert", (1,), {"id": 1, "n": 0}, {"id": 1, "n": 1}),
        ("upsert", (2,), None, {"id": 2, "n": [2]}),
        ("delete", (1,), {"id": 1, "n": 1}, None),
    ]
    assert told(watch) == []


def test_a_clear_is_one_event_with_a_part_for_each_record(either):
    either.upsert_many(SAVED)
    watch = either.watch()
    either.clear()
    either.clear()
    (event,) = told(watch)
    assert (event.kind, event.key, event.old, event.new) == ("clear", None, None, None)
    assert short(event.parts) == [("delete", (record["id"],), record, None) for record in SAVED]


def test_what_is_told_is_the_callers_own(either):
    either.upsert({"id": 1, "tags": []})
    watch, other = either.watch(), either.watch()
    either.upsert({"id": 1, "tags": ["a"]})
    event = watch.take()
    event.old["tags"].append("b")
    event.new["tags"].append("b")
    either.upsert({"id": 1, "tags": []})
    assert watch.take().old == {"id": 1, "tags": ["a"]} == other.take().new
    assert event.old == {"id": 1, "tags": ["b"]}
    assert either[1,] == {"id": 1, "tags": []} == either.watch()._records[1,]


def test_what_stood_there_is_the_callers_own_too(either):
    either.upsert({"id": 1, "tags": []})
    watch, other = either.watch(), either.watch()
    either.delete((1,))
    watch.take().old["tags"].append("b")
    assert other.take().old == {"id": 1, "tags": []}


def test_a_transaction_is_told_when_it_has_ended_and_not_if_it_was_undone(either):
    watch = either.watch()
    with either.transaction():
        either.upsert({"id": 1})
        either.upsert({"id": 2})
        assert told(watch) == []
    with pytest.raises(RuntimeError), either.transaction():
        either.clear()
        raise RuntimeError
    assert [event.key for event in told(watch)] == [(1,), (2,)]


def test_of_changes_made_as_one_all_but_the_last_bear_the_position_before(either):
    before = either.position
    watch = either.watch()
    either.upsert_many({"id": n} for n in range(3))
    first = watch.take()
    assert watch.position == before
    assert [event.position for event in (first, *told(watch))] == [before, before, either.position]
    assert watch.position == either.position


def test_whoever_goes_on_from_the_position_of_an_event_misses_nothing_behind_it(open_db):
    mdb = open_db()
    watch = mdb.watch()
    mdb.upsert_many({"id": n} for n in range(3))
    mdb.delete((1,))
    with mdb.transaction():
        mdb.clear()
        mdb.upsert({"id": 7})
    events = told(watch)
    assert len(events) == 6
    for index, event in enumerate(events):
        again = told(mdb.watch(since=event.position))
        rest = events[index + 1 :]
        assert again[len(again) - len(rest) :] == rest


@pytest.mark.parametrize("before_the_last_save", [False, True])
def test_a_watch_since_a_position_is_complete_across_saves(open_db, before_the_last_save):
    mdb = open_db()
    mdb.upsert_many(SAVED)
    since = mdb.position
    mdb.upsert({"id": 1, "n": 5})
    if before_the_last_save:
        mdb.save()
    mdb.upsert({"id": 1, "n": 6})
    mdb.delete((2,))
    unknown = before_the_last_save
    assert short(told(mdb.watch(since=since))) == [
        ("upsert", (1,), microdb.UNKNOWN if unknown else {"id": 1, "n": 1}, {"id": 1, "n": 5}),
        ("upsert", (1,), {"id": 1, "n": 5}, {"id": 1, "n": 6}),
        ("delete", (2,), microdb.UNKNOWN if unknown else {"id": 2, "n": 2}, None),
    ]


def test_what_was_unknown_is_known_once_the_watch_has_come_to_the_present(open_db):
    mdb = open_db()
    mdb.upsert_many(SAVED)
    since = mdb.position
    mdb.delete((1,))
    mdb.upsert({"id": 1, "n": 7})
    mdb.save()
    watch = mdb.watch(since=since)
    assert [event.old for event in told(watch)] == [microdb.UNKNOWN, None]
    mdb.upsert({"id": 2, "n": 3})
    mdb.upsert({"id": 3})
    assert [event.old for event in told(watch)] == [{"id": 2, "n": 2}, None]
    assert repr(microdb.UNKNOWN) == "microdb.UNKNOWN"
    assert pickle.loads(pickle.dumps(microdb.UNKNOWN)) is microdb.UNKNOWN


def test_a_clear_that_is_replayed_without_its_table_tells_what_is_known(open_db):
    mdb = open_db()
    mdb.upsert_many(SAVED)
    since = mdb.position
    mdb.upsert({"id": 1, "n": 5})
    mdb.clear()
    mdb.upsert({"id": 1, "n": 6})
    mdb.save()
    first, clear, last = told(mdb.watch(since=since))
    assert (first.old, clear.kind, last.old) == (microdb.UNKNOWN, "clear", None)
    assert [part.key for part in clear.parts] == [(1,)]


def test_a_clear_is_told_even_if_it_is_unknown_what_was_there(open_db):
    mdb = open_db()
    mdb.upsert({"id": 1})
    since = mdb.position
    mdb.clear()
    mdb.save()
    for where in (None, {"id": 1}):
        assert [(event.kind, event.parts) for event in told(mdb.watch(since=since, where=where))] == [("clear", ())]


def test_an_old_watch_goes_on_across_saves_without_a_gap(open_db):
    mdb, saver = open_db(), open_db()
    watch = mdb.watch()
    for n in range(20):
        mdb.upsert({"id": n % 3, "n": n})
        saver.save()
    assert [event.new["n"] for event in told(watch)] == list(range(20))
    saver.save()
    assert told(watch) == []
    assert watch.position.generation == saver.stats().generation


def test_a_watch_whose_changes_are_gone_gets_one_resync_with_the_difference(forgetful):
    forgetful.upsert_many([*SAVED, {"id": 3, "n": 3}, {"id": 5, "n": 1}])
    watch = forgetful.watch()
    forgetful.delete((1,))
    forgetful.upsert({"id": 2, "n": 9})
    forgetful.upsert({"id": 4, "n": 4})
    forgetful.upsert({"id": 5, "n": True})  # Equal, and another one.
    forgetful.upsert({"id": 3, "n": 3})
    forgetful.save()
    forgetful.save()
    forgetful.upsert({"id": 6, "n": 6})
    (event,) = told(watch)
    assert (event.kind, event.position) == ("resync", forgetful.position)
    assert short(event.parts) == [
        ("delete", (1,), {"id": 1, "n": 1}, None),
        ("upsert", (2,), {"id": 2, "n": 2}, {"id": 2, "n": 9}),
        ("upsert", (5,), {"id": 5, "n": 1}, {"id": 5, "n": True}),
        ("upsert", (4,), None, {"id": 4, "n": 4}),
        ("upsert", (6,), None, {"id": 6, "n": 6}),
    ]
    forgetful.upsert({"id": 7})
    assert [event.key for event in told(watch)] == [(7,)]


def test_a_resync_is_told_even_if_nobody_asked_for_what_it_changes(forgetful):
    watch = forgetful.watch(where={"n": 1})
    for n in (2, 3):
        forgetful.upsert({"id": n, "n": n})
        forgetful.save()
    assert [(event.kind, event.parts) for event in told(watch)] == [("resync", ())]


def test_a_position_that_is_kept_no_more_is_refused(forgetful):
    since = forgetful.position
    for n in (2, 3):
        forgetful.upsert({"id": n, "n": n})
        forgetful.save()
    with pytest.raises(microdb.SinceLostError, match="watch from now on"):
        forgetful.watch(since=since)


def test_a_position_that_is_lost_while_nothing_is_known_of_its_table_is_an_error(forgetful):
    forgetful.upsert({"id": 1})
    since = forgetful.position
    forgetful._log.generations._history_bytes = 1 << 20
    forgetful.save()
    forgetful.upsert({"id": 2})
    watch = forgetful.watch(since=since)
    forgetful._log.generations._history_bytes = 0
    forgetful.save()
    with pytest.raises(microdb.SinceLostError, match="kept no more"):
        watch.take()


@pytest.mark.parametrize("crc", [0, 1])
def test_a_position_of_another_database_is_refused(open_db, tmp_path, crc):
    mdb, other = open_db(), open_db(tmp_path / "other.json")
    mdb.upsert({"id": 1})
    other.upsert({"id": 1})
    assert other.position[:3] == mdb.position[:3]
    mdb.upsert({"id": 2})
    with pytest.raises(microdb.SinceLostError, match="another database"):
        mdb.watch(since=other.position)
    with pytest.raises(microdb.SinceLostError):
        mdb.watch(since=mdb.position._replace(sequence=99))
    with pytest.raises(microdb.SinceLostError):
        mdb.watch(since=Position(2, 84, 0, crc))


def test_a_table_in_memory_keeps_what_comes_after_its_first_watch(open_db):
    mdb = open_db(":memory:")
    mdb.upsert({"id": 0})
    before = mdb.position
    mdb.upsert({"id": 1})
    with pytest.raises(microdb.SinceLostError):
        mdb.watch(since=before)
    mdb.watch()
    since = mdb.position
    for n in range(2, 5):
        mdb.upsert({"id": n})
    assert [event.key for event in told(mdb.watch(since=since))] == [(2,), (3,), (4,)]
    for wrong in (before, Position(0, 99, 99, 0), Position(1, 1, 1, 0)):
        with pytest.raises(microdb.SinceLostError):
            mdb.watch(since=wrong)


def test_a_table_in_memory_keeps_only_so_much(open_db, monkeypatch):
    monkeypatch.setattr("microdb.wal.memory_log.HISTORY_BYTES", 1_000)
    mdb = open_db(":memory:")
    watch = mdb.watch()
    early = mdb.position
    for n in range(500):
        mdb.upsert({"id": n})
        assert mdb._log._history_bytes <= 1_000
    with pytest.raises(microdb.SinceLostError):
        mdb.watch(since=early)
    (event,) = told(watch)
    assert event.kind == "resync"
    assert len(event.parts) == 500


def test_an_append_in_memory_that_was_interrupted_is_not_told(open_db):
    mdb = open_db(":memory:")
    watch = mdb.watch()
    mdb.upsert({"id": 1})
    mdb._log._history.payloads.append(b"of an append whose head was never stored")
    mdb.upsert({"id": 2})
    assert [event.key for event in told(watch)] == [(1,), (2,)]


def test_a_large_append_in_memory_that_was_interrupted_is_told_once_it_is_made(open_db, monkeypatch):
    monkeypatch.setattr("microdb.wal.memory_log.HISTORY_BYTES", 100)
    mdb = open_db(":memory:")
    watch = mdb.watch()
    mdb.upsert({"id": 0})
    payloads = [join([encode_upsert({"id": n, "text": "x" * 30})]) for n in range(1, 7)]
    log, end = mdb._log, mdb._position
    log._keep(log._history, payloads, end)  # All of an append but that it stores the head.
    log.append(payloads, end, sync=False)
    assert [event.key for event in told(watch)] == [(n,) for n in range(7)]


def test_only_changes_of_records_that_are_meant_before_or_after_are_told(either):
    either.upsert_many({"id": n, "status": "undone"} for n in range(3))
    for where in ({"status": "undone"}, either.where(status="undone"), lambda record: record["status"] == "undone"):
        watch = either.watch(where=where)
        either.upsert({"id": 0, "status": "done"})
        either.upsert({"id": 0, "status": "lost"})
        assert told(watch)[0].new["status"] == "done"
        either.upsert({"id": 0, "status": "undone"})
        with either.transaction():
            either.upsert({"id": 1, "status": "undone", "n": 1})
            either.upsert({"id": 9, "status": "else"})
            either.delete((9,))
        events = told(watch)
        assert [event.key for event in events] == [(0,), (1,)]
        assert events[-1].position == watch.position == either.position
    watch = either.watch(where={"status": "never"})
    either.clear()
    assert told(watch) == []
    assert watch.position == either.position


def test_what_cannot_be_told_counts_as_meant(open_db):
    mdb = open_db()
    mdb.upsert_many([{"id": 1, "n": 1}, {"id": 2, "n": 1}])
    since = mdb.position
    mdb.upsert({"id": 1, "n": 2})
    mdb.delete((2,))
    mdb.upsert({"id": 1, "n": 3})
    mdb.save()
    assert [event.kind for event in told(mdb.watch(since=since, where={"n": 1}))] == ["upsert", "delete"]


@pytest.mark.parametrize("is_first", [False, True])
def test_a_batch_that_is_interrupted_is_gone_through_once_more(open_db, is_first):
    mdb = open_db()
    mdb.upsert_many(SAVED)
    fails = []

    def meant(record):
        if record["n"] == 7 and fails:
            raise fails.pop()
        return True

    if is_first:  # Nothing is known of the table at this position.
        since = mdb.position
        mdb.save()
    with mdb.watch(where=meant, since=since if is_first else None) as watch:
        with mdb.transaction():
            mdb.delete((1,))
            mdb.upsert({"id": 3, "n": 3})
            mdb.clear()
            mdb.upsert({"id": 2, "n": 7})
        fails.append(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            watch.take()
        first, *others = told(watch)
    assert (first.kind, first.key) == ("delete", (1,))
    assert first.old == (microdb.UNKNOWN if is_first else SAVED[0])
    assert [event.kind for event in others] == ["upsert", "clear", "upsert"]
    assert short(others[-1:]) == [("upsert", (2,), None, {"id": 2, "n": 7})]
    if not is_first:
        assert {part.key: part.old for part in others[1].parts} == {(2,): SAVED[1], (3,): {"id": 3, "n": 3}}


def test_an_event_that_an_interrupt_keeps_from_being_given_is_given_next(forgetful, monkeypatch):
    watch = forgetful.watch()
    go_on = watch._go_on

    def interrupted(coming):
        go_on(coming)
        if watch._ready is not None:
            monkeypatch.undo()
            raise KeyboardInterrupt

    def take():
        before = watch.position
        monkeypatch.setattr(watch, "_go_on", interrupted)
        with pytest.raises(KeyboardInterrupt):
            watch.take()
        assert watch.position == before
        return watch.take()

    forgetful.upsert_many(SAVED)
    assert [take().key, take().key] == [(1,), (2,)]
    assert watch.position == forgetful.position
    forgetful.upsert({"id": 3})
    forgetful.save()
    forgetful.save()
    assert take().kind == "resync"
    assert told(watch) == []


def test_a_position_may_have_been_kept_as_json(either):
    either.watch()
    kept = json.loads(json.dumps(either.position))
    either.upsert({"id": 1})
    assert [event.key for event in told(either.watch(since=kept))] == [(1,)]


@pytest.mark.parametrize("how", ["watch", "awatch", "on_change"])
@pytest.mark.parametrize("since", [5, "abcd", (10**400, 1, 1, 1)])
def test_what_is_no_position_is_refused(either, how, since):
    given = {"callback": print} if how == "on_change" else {}
    with pytest.raises(TypeError, match="since is the position of an event, a watch, a view or a database, or its"):
        getattr(either, how)(since=since, **given)


@pytest.mark.parametrize("callback", ["abc", None, 5])
def test_what_is_no_function_is_not_called(either, callback):
    before = threading.active_count()
    with pytest.raises(TypeError, match=f"callback is a function, which gets each event; found {callback!r}"):
        either.on_change(callback)
    assert threading.active_count() == before


def test_a_query_of_another_database_is_refused(either, open_db):
    with pytest.raises(TypeError, match="of this database itself"):
        either.watch(where=open_db(":memory:").where(id=1))
    with pytest.raises(TypeError, match="of this database itself"):
        either.wait(open_db(":memory:").where(id=1))


def test_what_other_processes_write_is_told_completely_and_in_order(open_db, path):
    mdb = open_db(partition_keys=["writer", "n"], auto_save=False)
    watch = mdb.watch()
    jobs = [(write_numbers, path, writer, 500, {}) for writer in range(3)]
    with spawned(*jobs) as (pipes, _):
        start(pipes)
        events = []
        while len(events) < 1_500:
            events.append(watch.next(timeout=20))
            if len(events) % 400 == 0:
                mdb.save()
        finish(pipes)
    for writer in range(3):
        assert [event.key[1] for event in events if event.key[0] == writer] == list(range(500))
    assert [event.old for event in events] == [None] * 1_500
    assert told(watch) == []


def test_a_watch_goes_on_in_the_child_of_a_fork(open_db):
    mdb = open_db()
    watch = mdb.watch()
    mdb.upsert({"id": 1})

    def child():
        assert watch.take().key == (1,)
        mdb.upsert({"id": 2})
        assert watch.next(timeout=20).key == (2,)

    assert forked(child) == 0
    assert [event.key for event in told(watch)] == [(1,), (2,)]


@pytest.mark.usefixtures("_only_the_woken_wake")
def test_a_reader_watches_too(open_db):
    mdb = open_db()
    reader = open_db(read_only=True)
    watch = reader.watch()
    mdb.upsert({"id": 1})
    assert watch.next(timeout=20).key == (1,)
    assert watch.next(timeout=0.05) is None


@pytest.mark.usefixtures("_only_the_woken_wake")
def test_a_reader_watches_although_the_page_is_of_an_earlier_run_of_the_machine(open_db, path, wal):
    with open_db() as mdb:
        mdb.upsert({"id": 1})
        before = mdb.stats().head
        mdb.upsert({"id": 2})
    overwrite(wal.header, 8 * 20, b"another boot id!")
    overwrite(wal.header, 8 * HEAD, before.to_bytes(8, sys.byteorder))
    overwrite(wal.header, 8 * 30, bytes(8))  # The seal.
    reader = open_db(read_only=True)
    watch = reader.watch()
    assert told(watch) == []
    assert list(reader.as_of(reader.position)) == [(1,), (2,)]
    assert reader.check().problems == []
    open_db().upsert({"id": 3})
    assert short(told(watch)) == [("upsert", (3,), None, {"id": 3})]


def test_a_reader_that_came_first_sees_the_log_that_is_begun_later(open_db, path):
    path.write_text('[\n{"id":1}\n]\n')
    reader = open_db(read_only=True)
    watch = reader.watch()
    assert watch.next(timeout=0.02) is None
    writer = open_db()
    writer.upsert({"id": 2})
    table = {(1,): {"id": 1}}
    replay([watch.next(timeout=20)], table)
    assert table == dict(writer)


# Waiting, and its end.


def test_an_iterator_waits_for_the_next_and_ends_when_the_watch_is_closed(either):
    watch = either.watch()
    found = queue.Queue()
    thread = threading.Thread(target=lambda: found.put([event.key for event in watch if found.put(event.key) is None]))
    thread.start()
    either.upsert({"id": 1})
    assert found.get(timeout=20) == (1,)
    watch.close()
    watch.close()
    assert found.get(timeout=20) == [(1,)]
    thread.join()
    assert (watch.take(), watch.next(), watch.sleep(None)) == (None, None, None)
    assert "closed" in repr(watch)


def test_a_watch_of_a_closed_database_raises(either):
    watch = either.watch()
    errors = queue.Queue()

    def run():
        try:
            next(watch)
        except microdb.ClosedError as error:
            errors.put(error)

    thread = threading.Thread(target=run)
    thread.start()
    either.close()
    errors.get(timeout=20)
    thread.join()
    with pytest.raises(microdb.ClosedError):
        either.watch()
    watch.close()


@pytest.mark.parametrize("what", ["watch", "database"])
def test_whoever_closes_rings(either, what, monkeypatch):
    """For who is asleep by then; who is just going to sleep may sleep through it, for `SLEEP_S_MAX`."""
    rung = []
    for module in (watching, open_table):
        monkeypatch.setattr(module, "ring", rung.append)
    words = either._words
    watch = either.watch()
    watch.next(timeout=0.01)
    (watch if what == "watch" else either).close()
    assert rung == [words]


def test_a_save_rings_for_who_sleeps_at_the_head_before(open_db, monkeypatch):
    rung = []
    monkeypatch.setattr(file_log, "ring", rung.append)
    mdb = open_db()
    mdb.save()
    assert rung == []
    mdb.watch().next(timeout=0.01)
    mdb.save()
    assert rung == [mdb._words]


def test_nobody_waits_inside_a_lock_of_his_own(either):
    watch = either.watch()
    with either.lock():
        with pytest.raises(microdb.TransactionError, match="nobody else can write"):
            next(watch)
        with pytest.raises(microdb.TransactionError, match="nobody else can write"):
            either.wait((1,))
        either.upsert({"id": 1})
        assert next(watch).key == (1,)
        assert either.wait((1,)) == {"id": 1}


def test_a_time_out_gives_none_and_not_before(either):
    began_s = time.monotonic()
    assert either.watch().next(timeout=0.3) is None
    assert 0.3 <= time.monotonic() - began_s


@pytest.mark.usefixtures("_only_the_woken_wake")
def test_whoever_waits_is_woken_by_the_write_of_another_process(open_db, path):
    mdb = open_db()
    with spawned((write_when_told, path, [{"id": n} for n in range(50)])) as ((pipe,), _):
        assert pipe.recv() == "ready"
        watch = mdb.watch()
        for n in range(50):
            pipe.send("go")
            assert watch.next(timeout=20).key == (n,)


@pytest.mark.usefixtures("_only_the_woken_wake")
def test_a_save_between_sleep_and_write_keeps_nobody_asleep(open_db, path):
    mdb = open_db()
    with spawned((write_behind_a_save, path)) as ((pipe,), _):
        assert pipe.recv() == "ready"
        watch = mdb.watch()
        for n in range(20):
            pipe.send("go")
            assert watch.next(timeout=20).key == (n,)


@pytest.mark.parametrize("_", range(5))
def test_a_wake_that_was_missed_costs_a_time_out_and_no_event(open_db, path, _):
    mdb = open_db()
    with spawned((write_without_waking, path)) as ((pipe,), (process,)):
        assert pipe.recv() == "ready"
        watch = mdb.watch()
        threading.Timer(0.05, pipe.send, ["go"]).start()  # By then this thread sleeps; if not, it is no less true.
        assert watch.next(timeout=20).key == (1,)
        process.join()


@pytest.mark.usefixtures("_only_the_woken_wake")
def test_many_who_sleep_are_all_woken(open_db):
    mdb = open_db()
    handles = [mdb, open_db(), open_db()]
    found = queue.Queue()
    threads = [threading.Thread(target=lambda one=one: found.put(one.wait((1,)))) for one in handles * 3]
    for thread in threads:
        thread.start()
    while not mdb._words[bell.WAITING]:
        time.sleep(0.001)  # sleep: until the first is asleep
    mdb.upsert({"id": 1})
    assert [found.get(timeout=20) for _ in threads] == [{"id": 1}] * 9


def test_without_a_futex_it_looks_now_and_then(either, no_futex):
    watch = either.watch()
    found = queue.Queue()
    thread = threading.Thread(target=lambda: found.put(next(watch).key))
    thread.start()
    either.upsert({"id": 1})
    assert found.get(timeout=20) == (1,)
    thread.join()
    watch.close()


def test_without_a_futex_it_looks_less_often_the_longer_nothing_comes(monkeypatch, no_futex):
    sleeps = []
    monkeypatch.setattr(bell.time, "sleep", sleeps.append)
    words = memoryview(bytearray(4096)).cast("Q")
    one = bell.Bell()
    for head in [5] * 6 + [6, 6]:
        one.wait(words, head, None)
    one.wait(words, 6, 0.0005)
    assert sleeps == [0.001, 0.002, 0.004, 0.008, 0.01, 0.01, 0.001, 0.002, 0.0005]


def test_a_machine_without_the_call_or_where_it_is_forbidden_does_without(monkeypatch):
    for machine in ("z80", "x86_64"):
        monkeypatch.setattr(bell, "_NUMBERS", {"x86_64": 0xFFFF})  # No such call.
        monkeypatch.setattr(bell.os, "uname", lambda machine=machine: os.uname_result(["", "", "", "", machine]))
        bell._futex.cache_clear()
        assert bell._futex() is None
    monkeypatch.undo()
    bell._futex.cache_clear()


def test_an_error_of_the_call_that_nobody_expects_is_raised():
    futex = bell._futex()
    if futex is None:
        pytest.skip("no futex on this system")
    with pytest.raises(OSError, match="not implemented"):
        futex(memoryview(bytearray(4096)).cast("Q"), 99, 0, 0)


def test_wait_gives_what_the_predicate_was_shown(either):
    either.upsert_many(SAVED)
    assert either.wait((1,)) == SAVED[0]
    assert either.wait({"id": 9}, lambda record: record is None) is None
    assert either.wait(either.where(n=2)) == [SAVED[1]]
    assert either.wait(either.where(n=7), lambda records: not records) == []
    with pytest.raises(microdb.WaitTimeoutError, match=r"\(9,\) is not so after 0\.01 s") as caught:
        either.wait((9,), timeout=0.01)
    assert isinstance(caught.value, TimeoutError)


def test_wait_ends_when_another_process_has_written_what_it_is_for(open_db, path):
    mdb = open_db()
    records = [{"id": 1, "n": n} for n in range(3)]
    with spawned((write_when_told, path, records)) as ((pipe,), _):
        assert pipe.recv() == "ready"
        for _ in records:
            pipe.send("go")
        assert mdb.wait((1,), lambda record: record and record["n"] == 2, timeout=20) == records[-1]


# In a thread.


def test_a_listener_is_called_with_each_event_until_it_is_closed(either):
    events = queue.Queue()
    with either.on_change(events.put, where={"n": 1}) as listener:
        either.upsert({"id": 1, "n": 1})
        either.upsert({"id": 2, "n": 2})
        either.upsert({"id": 3, "n": 1})
        assert [events.get(timeout=20).key for _ in range(2)] == [(1,), (3,)]
    either.upsert({"id": 4, "n": 1})
    assert events.empty()
    assert not listener._thread.is_alive()


def test_a_listener_may_write_and_may_close_itself(either):
    closed = threading.Event()

    def follow(event):
        if event.key == (1,):
            either.upsert({"id": 2})
        else:
            listener.close()
            closed.set()

    listener = either.on_change(follow)
    either.upsert({"id": 1})
    assert closed.wait(20)
    listener.close()


def test_what_a_listener_raises_is_logged_and_the_next_event_comes(either, caplog):
    events = queue.Queue()

    def fail(event):
        events.put(event.key)
        raise ValueError("on purpose")

    with either.on_change(fail):
        either.upsert({"id": 1})
        either.upsert({"id": 2})
        assert [events.get(timeout=20), events.get(timeout=20)] == [(1,), (2,)]
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    assert "ValueError: on purpose" in caplog.text


def test_a_listener_ends_with_its_database(either, caplog):
    listener = either.on_change(print)
    either.close()
    listener._thread.join(20)
    assert not listener._thread.is_alive()
    assert not caplog.records


def test_a_listener_that_cannot_go_on_says_so(open_db, caplog):
    mdb = open_db()
    listener = mdb.on_change(print)
    mdb._changes_of = None

    def broken(payload):
        raise microdb.CorruptError("here", "on purpose")

    listener._watch._source = listener._watch._source._replace(changes_of=broken)
    mdb.upsert({"id": 1})
    listener._thread.join(20)
    assert "the listener has ended" in caplog.text


def test_a_listener_whose_query_fails_says_so(open_db, caplog):
    mdb = open_db()
    listener = mdb.on_change(print, where=lambda record: record["n"] > 0)
    mdb.upsert({"id": 1})
    listener._thread.join(20)
    assert "the listener has ended" in caplog.text
    assert "KeyError" in caplog.text


def test_a_process_ends_although_a_listener_waits(path):
    process = SPAWN.Process(target=listen_and_end, args=(path,))
    process.start()
    process.join(20)
    assert process.exitcode == 0


def test_one_who_sleeps_costs_next_to_nothing(open_db):
    """Counted, not timed: how often it wakes while nothing happens."""
    mdb = open_db()
    watch = mdb.watch()
    looks = []
    source = watch._source
    watch._source = source._replace(news=lambda *given: looks.append(given) or source.news(*given))
    assert watch.next(timeout=1.0) is None
    assert len(looks) <= (7 if bell._futex() else 130)


# What expires.


class Clock:
    now = 1_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(params=["file", "memory"])
def timed(request, open_db, clock):
    """A database whose clock is set by hand."""
    return open_db(*([] if request.param == "file" else [":memory:"]), clock=clock)


def test_what_expires_is_told_at_its_time_once(timed, clock):
    timed.upsert({"id": 0}, ttl=1)
    watch = timed.watch()
    timed.upsert({"id": 1}, ttl=20)
    timed.upsert({"id": 2}, expires_at=1_010)
    assert [(event.kind, event.expires_at) for event in told(watch)] == [("upsert", 1_020.0), ("upsert", 1_010.0)]
    assert told(watch) == []
    clock.now = 1_030
    assert short(told(watch)) == [
        ("expire", (0,), {"id": 0}, None),
        ("expire", (2,), {"id": 2}, None),
        ("expire", (1,), {"id": 1}, None),
    ]
    assert told(watch) == told(timed.watch()) == []


def test_what_has_expired_and_is_written_again_is_told_as_both(timed, clock):
    timed.upsert({"id": 1, "n": 1}, ttl=1)
    timed.upsert({"id": 2, "n": 1}, ttl=1)
    watch = timed.watch()
    clock.now += 2
    timed.upsert({"id": 1, "n": 2})
    assert short(told(watch)) == [
        ("expire", (1,), {"id": 1, "n": 1}, None),
        ("upsert", (1,), None, {"id": 1, "n": 2}),
        ("expire", (2,), {"id": 2, "n": 1}, None),
    ]


def test_a_time_that_is_put_off_or_taken_away_counts_no_more(timed, clock):
    timed.upsert_many([{"id": 1}, {"id": 2}, {"id": 3}], ttl=10)
    watch = timed.watch()
    timed.set_expiry((1,), ttl=20)
    timed.set_expiry((2,))
    timed.delete((3,))
    assert [(event.kind, event.expires_at) for event in told(watch)] == [
        ("upsert", 1_020.0),
        ("upsert", None),
        ("delete", None),
    ]
    clock.now += 15
    assert told(watch) == []
    clock.now += 15
    assert [(event.kind, event.key) for event in told(watch)] == [("expire", (1,))]


def test_a_save_that_drops_what_has_expired_and_carries_the_rest_over_tells_nothing_new(open_db, clock):
    mdb = open_db(clock=clock)
    mdb.upsert({"id": 1}, ttl=10)
    mdb.upsert({"id": 2}, ttl=30)
    early, late = mdb.watch(), mdb.watch()
    clock.now += 20
    assert [event.kind for event in told(early)] == ["expire"]
    mdb.save()
    assert told(early) == []
    assert [(event.kind, event.key) for event in told(late)] == [("expire", (1,))]
    assert early.position == late.position == mdb.position
    clock.now += 20
    assert [event.key for event in told(early)] == [(2,)] == [event.key for event in told(late)]


@pytest.mark.parametrize("is_saved", [False, True])
def test_what_has_expired_since_a_position_is_told(open_db, clock, is_saved):
    mdb = open_db(clock=clock)
    mdb.upsert({"id": 1}, ttl=10)
    since = mdb.position
    mdb.upsert({"id": 2}, ttl=10)
    if is_saved:
        mdb.save()
    clock.now += 20
    events = short(told(mdb.watch(since=since)))
    assert events[0] == ("upsert", (2,), None if not is_saved else microdb.UNKNOWN, {"id": 2})
    assert sorted(events[1:]) == [("expire", (1,), {"id": 1}, None), ("expire", (2,), {"id": 2}, None)]


def test_a_position_amid_a_save_knows_when_its_records_expire(open_db, clock):
    faulty = Faulty()
    mdb = open_db(clock=clock, files=faulty)
    mdb.upsert({"id": 1}, ttl=10)
    watch = mdb.watch()
    faulty.on["sync"] = only(".tmp", once(lambda: mdb.upsert({"id": 2})))
    mdb.save()
    position = told(watch)[-1].position
    assert (position.generation, position.sequence) == (2, 2)
    with pytest.raises(microdb.SinceLostError):
        mdb.as_of(position)
    since = mdb.watch(since=position)
    clock.now += 10
    assert [(event.kind, event.key) for event in told(since)] == [("expire", (1,))]
    assert list(mdb.as_of(mdb.position)) == [(2,)]


def test_a_resync_counts_what_has_expired_as_gone(forgetful, clock):
    forgetful._clock = clock
    forgetful.upsert({"id": 1}, ttl=10)
    watch = forgetful.watch()
    for n in (2, 3):
        forgetful.upsert({"id": n}, ttl=n)
        forgetful.save()
    clock.now += 20
    (event,) = told(watch)
    assert (event.kind, short(event.parts)) == ("resync", [("delete", (1,), {"id": 1}, None)])


def test_only_what_is_meant_is_told_as_it_expires(timed, clock):
    timed.upsert_many([{"id": 1, "n": 1}, {"id": 2, "n": 2}], ttl=1)
    watch = timed.watch(where={"n": 2})
    clock.now += 2
    assert [event.key for event in told(watch)] == [(2,)]


def test_whoever_waits_is_told_of_what_expires_without_a_write(either):
    either.upsert({"id": 1}, ttl=0.05)
    watch = either.watch()
    assert watch.next(timeout=20).kind == "expire"
    either.upsert({"id": 2}, ttl=0.05)
    assert either.wait((2,), lambda record: record is None, timeout=20) is None


def test_an_expiry_that_is_interrupted_is_told_later(timed, clock):
    fails = [KeyboardInterrupt()]

    def meant(record):
        if fails and clock.now > 1_000:
            raise fails.pop()
        return True

    with timed.watch(where=meant) as watch:
        timed.upsert({"id": 1}, ttl=1)
        assert watch.take().kind == "upsert"
        clock.now += 2
        with pytest.raises(KeyboardInterrupt):
            watch.take()
        assert [(event.kind, event.key) for event in told(watch)] == [("expire", (1,))]


def test_a_record_that_is_renewed_again_and_again_costs_no_more_memory(timed):
    with timed.watch() as watch:
        for n in range(3_000):
            timed.upsert({"id": 1, "n": n}, ttl=1_000)
            told(watch)
        assert len(watch._times) < 2_000


def test_a_watch_that_is_closed_as_it_looks_tells_nothing_more(either):
    watch = either.watch()
    either.upsert_many(SAVED)
    news = watch._source.news

    def slow(*args):
        found = news(*args)
        watch.close()
        return found

    watch._source = watch._source._replace(news=slow)
    assert told(watch) == []


def test_a_watch_whose_database_is_closed_as_it_looks_is_told_that(open_db):
    mdb = open_db()
    mdb.upsert({"id": 1})
    watch = mdb.watch()
    settle = mdb._settle

    def then_close():
        settle()
        mdb._settle = settle
        mdb.close()

    mdb._settle = then_close
    with pytest.raises(microdb.ClosedError):
        watch.take()
    assert mdb._log.generations.last is None
