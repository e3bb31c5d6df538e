"""Saving by itself: when it begins, and what it does when somebody else was faster or is in the way."""

import json
import logging
import threading

import pytest

from faulty import Faulty, fail, only, save_that_waits
from microdb.auto_save import AutoSave
from microdb.wal.file_log import FileLog

A = {"id": "a", "n": 1}
TEXT = "x" * 100


def fill(mdb, above):
    """Write until the log is longer than that, or a save has begun for it, which may end before one looks."""
    len(mdb)  # Behind a save it stands at the beginning of the new log.
    saves = mdb._auto_save
    before = saves._thread
    while mdb._position.offset <= above and saves._thread is before:
        mdb.upsert({"id": "filler", "text": TEXT})


def bounds(mdb, min_bytes):
    """An automatic save of a handle, not its own, that tells when it would begin and does nothing."""
    begun = []
    saver = AutoSave(mdb._log, min_bytes, None)
    saver._run = lambda *_: begun.append(1)
    return saver, begun


@pytest.fixture
def log_text(caplog):
    caplog.set_level(logging.DEBUG, "microdb")
    return lambda: caplog.text


def test_a_log_is_saved_above_its_bound_and_not_at_it(open_db):
    mdb = open_db(auto_save=False)
    saver, begun = bounds(mdb, 1_000)
    assert saver.above == 1_000
    saver.consider(1_000, mdb)
    saver.wait()
    assert (begun, saver.above) == ([], 1_000)
    saver.consider(1_001, mdb)
    saver.wait()
    assert begun == [1]


def test_a_log_is_saved_above_twice_the_snapshot_and_not_at_it(open_db, path):
    mdb = open_db(auto_save=False)
    fill(mdb, 0)
    mdb.upsert({"id": "large", "text": 10 * TEXT})
    mdb.save()
    saver, begun = bounds(mdb, 1_000)
    bound = 2 * path.stat().st_size
    assert bound > 1_000
    saver.consider(bound, mdb)
    saver.wait()
    assert (begun, saver.above) == ([], bound)
    saver.consider(bound + 1, mdb)
    saver.wait()
    assert (begun, saver.above) == ([1], bound + 1 + 1_000), "not again before the log has grown by as much"


def test_while_one_is_going_on_no_other_begins(open_db):
    mdb = open_db(auto_save=False)
    saver, begun = bounds(mdb, 100)
    go_on = threading.Event()
    saver._run = lambda *_: (begun.append(1), go_on.wait(60))
    for offset in (101, 1_000, 100_000):
        saver.consider(offset, mdb)
    go_on.set()
    saver.wait()
    assert begun == [1]
    saver.consider(1_000_000, mdb)
    saver.wait()
    assert begun == [1, 1]


def test_the_child_of_a_fork_waits_for_no_thread_of_its_parent(open_db):
    mdb = open_db(auto_save=False)
    saver, begun = bounds(mdb, 100)
    go_on = threading.Event()
    saver._run = lambda *_: (begun.append(1), go_on.wait(60))
    saver.consider(101, mdb)
    thread = saver._thread
    saver.forget_thread()
    saver.wait()
    saver.consider(102, mdb)
    assert saver._thread is not thread
    go_on.set()
    for each in (thread, saver._thread):
        each.join()
    assert begun == [1, 1]


@pytest.mark.parametrize("filename", [":memory:", None])
def test_what_cannot_or_must_not_be_saved_is_not(open_db, filename):
    mdb = open_db(filename, auto_save=filename is not None, auto_save_bytes=0)
    saver = AutoSave(mdb._log, 0 if filename else None, None)
    saver.consider(10_000, mdb)
    for n in range(100):
        mdb.upsert({"id": n})
    assert saver._thread is mdb._auto_save._thread is None
    assert len(mdb) == 100


def test_what_another_has_saved_meanwhile_is_not_saved_again(open_db):
    mdb, other = open_db(auto_save_bytes=2_000), open_db(auto_save=False)
    with mdb._table_lock:  # So the save in the background stands before its first look.
        fill(mdb, 2_000)
        mdb.upsert(A)
        assert mdb._auto_save._thread.is_alive()
        other.save()
    mdb._auto_save.wait()
    assert mdb.stats().saves == 1
    fill(mdb, mdb._auto_save.above)
    mdb._auto_save.wait()
    assert mdb.stats().saves == 2, "and the next one comes in its time"


def test_who_only_writes_behind_others_saves_when_the_log_is_long_enough(open_db):
    mdb, other = open_db(auto_save_bytes=2_000), open_db(auto_save=False)
    other.upsert(A)
    for _ in range(100):
        mdb.upsert({"id": "filler", "text": TEXT})
        if mdb._auto_save._thread is not None:
            break
    mdb._auto_save.wait()
    assert mdb.stats().saves == 1


def test_while_another_saves_it_gives_up_at_once_and_that_is_no_trouble(open_db, log_text):
    faulty = Faulty()
    mdb, other = open_db(auto_save_bytes=2_000), open_db(auto_save=False, files=faulty)
    other.upsert(A)
    with save_that_waits(other, faulty):
        fill(mdb, 2_000)
        mdb.upsert(A)
        mdb._auto_save.wait()
        assert mdb.stats().saves == 0
    assert "no automatic save: " in log_text()
    assert "save.lock: not free within 0 s" in log_text()
    assert "WARNING" not in log_text()


def test_a_handle_that_is_closed_as_it_saves_gives_up_and_that_is_no_trouble(open_db, log_text, path):
    faulty = Faulty()
    mdb = open_db(auto_save=False, files=faulty)
    saver = AutoSave(mdb._log, 100, None)
    fill(mdb, 100)
    faulty.on["names"] = lambda _: mdb.close()
    saver.consider(101, mdb)
    saver.wait()
    faulty.on.clear()
    assert "no automatic save: this handle is closed" in log_text()
    assert "WARNING" not in log_text()
    assert not path.exists()


def test_where_no_thread_can_be_started_the_write_is_made_and_the_trouble_told(open_db, log_text, monkeypatch, path):
    mdb = open_db(auto_save_bytes=2_000)

    def refuse(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    fill(mdb, 2_000)
    mdb.upsert(A)
    assert mdb["a",] == A
    assert not mdb._auto_save.is_running()
    assert log_text().count("no automatic save (can't start new thread); the log goes on growing") == 1
    assert str(path) in log_text()
    monkeypatch.undo()
    mdb.upsert(A)
    assert mdb._auto_save._thread.ident is None, "not at each write"
    fill(mdb, mdb._auto_save.above)
    mdb._auto_save.wait()
    assert mdb.stats().saves == 1


def test_where_the_system_does_not_tell_of_the_snapshot_the_write_is_made_and_the_trouble_told(open_db, log_text):
    faulty = Faulty()
    mdb = open_db(auto_save_bytes=0, files=faulty)
    mdb.upsert(A)
    mdb._auto_save.wait()
    faulty.on["identity"] = only("mdb.json", fail)
    mdb.upsert({"id": "b", "text": TEXT})
    assert ("b",) in mdb
    assert "made to fail); the log goes on growing" in log_text()


@pytest.mark.parametrize("form", ["list", "grid", "none"])
def test_it_keeps_the_form_that_the_snapshot_has(open_db, path, form):
    mdb = open_db(auto_save=False)
    mdb.upsert({"id": "filler", "text": TEXT})
    if form == "list":
        mdb.save()
    elif form == "grid":
        mdb.save_as_grid()
    fill(mdb, 100)
    saver = AutoSave(mdb._log, 100, None)
    saver.above = 0
    saver.consider(100_000, mdb)
    saver.wait()
    assert saver.above == 100
    first = json.loads(path.read_text())[0]
    assert first == ["id", "text"] if form == "grid" else first["id"] == "filler"
    assert isinstance(mdb._log, FileLog)


def test_a_save_that_fails_waits_until_the_log_has_grown_by_as_much_again(open_db, log_text):
    faulty = Faulty()
    mdb = open_db(auto_save=False, files=faulty)
    fill(mdb, 100)
    saver = AutoSave(mdb._log, 100, None)

    faulty.on["create"] = fail
    saver.consider(500, mdb)
    saver.wait()
    assert saver.above == 600
    assert "the automatic save failed; the log goes on growing" in log_text()
    assert "made to fail" in log_text()


def test_an_interrupt_just_as_it_begins_leaves_a_save_that_is_waited_for(open_db, monkeypatch):
    mdb = open_db(auto_save=False)
    fill(mdb, 1_000)
    saver, begun = bounds(mdb, 1_000)
    may_end = threading.Event()
    saver._run = lambda *_: (may_end.wait(), begun.append(1))
    start = threading.Thread.start

    def interrupted(thread):
        start(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        saver.consider(1_001, mdb)
    monkeypatch.undo()
    assert saver.is_running()
    may_end.set()
    saver.wait()
    assert begun == [1]


def test_what_a_save_carries_over_is_no_reason_for_the_next_one(open_db):
    """Of a grid, it is far longer than the snapshot."""
    first = open_db(auto_save=False)
    first.upsert_many([{"id": n, "x" * 100: n} for n in range(50)], ttl=86_400)
    first.save_as_grid()
    mdb = open_db(auto_save_bytes=1_000)
    saves = mdb.stats().saves
    for n in range(30):
        mdb.upsert({"id": 0, "x" * 100: n})
        mdb._auto_save.wait()
    assert saves < mdb.stats().saves <= saves + 2
    assert mdb.stats().log_bytes > 2 * mdb.stats().snapshot_bytes
