"""What is logged, at which level, and that a handler may do with the database what it likes."""

import contextlib
import logging
import os
import re
from types import SimpleNamespace

import pytest

import microdb
from faulty import Faulty, fail, only
from microdb import notes
from microdb.wal.header import DIRTY
from steps import Child, in_thread

SECRET = "what nobody may log"


@pytest.fixture
def faulty():
    return Faulty()


@pytest.fixture
def stage(open_db, ten, faulty):
    """What an event needs: how to open a database, the files of one with ten records, and a file system that fails."""
    return SimpleNamespace(open_db=open_db, wal=ten, faulty=faulty)


@pytest.fixture
def said(caplog):
    """What was logged since it was last called, by level."""
    caplog.set_level(logging.DEBUG, "microdb")

    def _said(level):
        found = [entry.getMessage() for entry in caplog.records if entry.levelname == level]
        caplog.clear()
        return found

    return _said


def torn(stage):
    with stage.wal.log().open("ab") as log:
        log.write(b"torn")
    stage.open_db().close()
    return ".+0000000001.log, byte [0-9]+: .+; 4 bytes of unfinished writes were cut and kept in .+torn"


def edited(stage):
    mdb = stage.open_db()
    mdb.save()
    mdb.close()
    stage.wal.snapshot.write_text('[{"id": "edited"}]')
    stage.open_db().close()
    return ".+mdb.json: edited by hand; the new content is taken over"


def left_in_a_write(stage):
    mdb = stage.open_db()
    mdb._words[DIRTY] = 4711
    mdb.upsert({"id": "after"})
    return ".+mdb.json: process 4711 left a write unfinished; it was rolled back"


def left_before_a_transaction(stage):
    mdb = stage.open_db()
    mdb._words[DIRTY] = 4711
    with mdb.transaction():
        mdb.upsert({"id": "after"})
    return ".+mdb.json: process 4711 left a write unfinished; it was rolled back"


def left_before_a_read(stage):
    """The table is loaded anew, by a read, in the moment after a saver died: under the table lock."""
    mdb = stage.open_db()

    def dies_between_its_renames():
        dying = Faulty()
        other = microdb.MicroDB(stage.wal.snapshot, ["id"], files=dying)
        yield b"o"
        dying.on["sync_folder"] = only(str(stage.wal.snapshot.parent), lambda _: os._exit(9))
        other.save()

    with Child(dies_between_its_renames) as child:
        child.step()
        assert child.end() == 9
    mdb._position = None
    mdb._applied = mdb._head = -1
    assert (0,) in mdb
    return ".+mdb.json: process [0-9]+ left a save unfinished; it was completed"


def not_put_away(stage):
    mdb = stage.open_db(files=stage.faulty)
    stage.faulty.on["rename"] = only(".history")
    mdb.save()
    stage.faulty.on.clear()
    return ".+mdb.json.wal: old logs could not be put away: .+made to fail"


def automatic_save_failed(stage):
    mdb = stage.open_db(files=stage.faulty, auto_save_bytes=1_000)
    stage.faulty.on["create"] = fail
    mdb.upsert({"id": "long", "text": "x" * 1_000})
    mdb._auto_save.wait()
    stage.faulty.on.clear()
    return ".+mdb.json: the automatic save failed; the log goes on growing\n.+made to fail\n"


def no_thread_for_a_save(stage):
    mdb = stage.open_db(files=stage.faulty, auto_save_bytes=1_000)
    stage.faulty.on["identity"] = only("mdb.json")
    mdb.upsert({"id": "long", "text": "x" * 1_000})
    stage.faulty.on.clear()
    return ".+mdb.json: no automatic save .+made to fail.+; the log goes on growing"


def failed_fsync(stage):
    mdb = stage.open_db(files=stage.faulty, durability="power")
    stage.faulty.on["sync_data"] = fail
    with pytest.raises(OSError, match="made to fail"):
        mdb.upsert({"id": "lost"})
    stage.faulty.on.clear()
    return ".+0000000001.log: fsync failed .+made to fail.+; the next write saves first"


def failed_sync(stage):
    mdb = stage.open_db(files=stage.faulty)
    stage.faulty.on["sync_data"] = fail
    with pytest.raises(OSError, match="made to fail"):
        mdb.sync()
    stage.faulty.on.clear()
    return ".+0000000001.log: fsync failed .+made to fail.+; the next write saves first"


def failed_cut(stage):
    mdb = stage.open_db(files=stage.faulty)
    stage.faulty.on.update(write_at=fail, truncate=fail)
    with pytest.raises(OSError, match="made to fail"):
        mdb.upsert({"id": "lost"})
    stage.faulty.on.clear()
    return ".+0000000001.log: a write that failed could not be cut off .+made to fail.+; the next write saves first"


def failed_last_fsync(stage):
    mdb = stage.open_db(files=stage.faulty)
    stage.faulty.on["sync_folder"] = only(str(stage.wal.snapshot.parent))
    with pytest.raises(OSError, match="made to fail"):
        mdb.save()
    stage.faulty.on.clear()
    return ".+mdb.json: the last fsync of a save failed .+made to fail.+; the next write saves again"


def recovered(stage):
    stage.open_db()
    return ".+mdb.json: recovered, up to sequence 10 in generation 1"


def saved(stage):
    mdb = stage.open_db()
    mdb.save()
    size = stage.wal.snapshot.stat().st_size
    return rf".+mdb.json: saved 10 records, {size} bytes, in [0-9]+\.[0-9]{{3}} seconds"


def opened(stage):
    stage.open_db()
    return r".+mdb.json: opened, 10 records at Position\(generation=1, .+\)"


def closed(stage):
    stage.open_db().close()
    return ".+mdb.json: closing"


def followed(stage):
    mdb, other = stage.open_db(), stage.open_db()
    other.save()
    assert (0,) in mdb
    return ".+mdb.json: followed a save to generation 2"


def loaded_anew(stage):
    mdb, other = stage.open_db(), stage.open_db()
    other.upsert({"id": "unseen"})
    other.save()
    stage.wal.log(1).with_suffix(".history").unlink()
    other.upsert({"id": "unseen"})
    mdb._log.generations.last = None
    assert mdb.where(id="unseen").exists()
    return r".+mdb.json: loaded anew, 11 records at Position\(generation=2, .+\)"


EVENTS = {
    "WARNING": [
        *(torn, edited, left_in_a_write, left_before_a_transaction, left_before_a_read),
        *(not_put_away, automatic_save_failed, no_thread_for_a_save),
    ],
    "ERROR": [failed_fsync, failed_sync, failed_cut, failed_last_fsync],
    "INFO": [recovered, saved],
    "DEBUG": [opened, closed, followed, loaded_anew],
}
each_event = pytest.mark.parametrize(
    ("level", "event"),
    [pytest.param(level, event, id=event.__name__) for level, events in EVENTS.items() for event in events],
)


@each_event
def test_each_event_is_logged_once_at_its_level(stage, said, level, event):
    text = event(stage)
    found = said(level)
    assert [bool(re.fullmatch(text, line, re.DOTALL)) for line in found].count(True) == 1, found
    assert len(found) == 1 or level in ("DEBUG", "INFO"), found


class Handler(logging.Handler):
    """Notes what came of its work on a database, or the path of one."""

    def __init__(self, what):
        super().__init__()
        self.what = what
        self.results = []


class Using(Handler):
    """Reads and writes the database in another thread, and waits for that: which ends only if nobody holds a lock."""

    def emit(self, record):
        self.results.append(in_thread(self._use))

    def _use(self):
        notes._telling.is_on = True  # What this thread does, the handler does.
        with microdb.MicroDB(self.what, ["id"], timeout=20) as mdb:
            mdb.upsert({"id": "told"})
            return ("told",) in mdb


class UsingItsOwn(Handler):
    """Reads and writes through a handle that it keeps, in the thread that logs."""

    def emit(self, record):
        self.what.upsert({"id": "told"})
        self.results.append(("told",) in self.what)


@pytest.fixture
def add_handler():
    """Let a handler hear what is logged at some level or above, until the test ends."""
    logger = logging.getLogger("microdb")
    added = []

    def _add(handler, level):
        logger.addHandler(handler)
        added.append(handler)
        logger.setLevel(level)
        return handler

    yield _add
    logger.setLevel(logging.NOTSET)
    for handler in added:
        logger.removeHandler(handler)


@each_event
def test_a_handler_may_use_the_database_that_it_is_told_of(stage, add_handler, level, event):
    handler = add_handler(Using(stage.wal.snapshot), level)
    event(stage)
    assert handler.results
    assert set(handler.results) == {True}, handler.results


def test_a_handler_may_use_the_very_handle_that_tells_it(open_db, add_handler):
    mdb = open_db()
    handler = add_handler(UsingItsOwn(mdb), "DEBUG")
    mdb._words[DIRTY] = 4711
    mdb.upsert({"id": 1})
    with mdb.lock():
        mdb.save()
        assert len(handler.results) == 1, "inside lock() nobody is told"
    with mdb.transaction():
        mdb.upsert({"id": 2})
    mdb.save()
    mdb.close()
    assert handler.results == [True] * 4


def test_what_a_handler_does_is_not_logged_so_that_it_ends(open_db, path, add_handler):
    class Opening(logging.Handler):
        told = 0

        def emit(self, record):
            self.told += 1
            with microdb.MicroDB(path, ["id"]) as mdb:
                mdb.save()

    handler = add_handler(Opening(), "DEBUG")
    mdb = open_db()
    assert handler.told == 2, "recovered and opened"
    len(mdb)
    assert handler.told == 4, "that it has followed the two saves of the handler"


def test_an_error_in_a_handler_is_printed_and_fails_no_write(open_db, add_handler, capsys, monkeypatch):
    class Failing(logging.Handler):
        def emit(self, record):
            raise ZeroDivisionError("in the handler")

    mdb = open_db()
    add_handler(Failing(), "DEBUG")
    for raises, printed in ((True, "ZeroDivisionError: in the handler"), (False, "")):
        monkeypatch.setattr(logging, "raiseExceptions", raises)
        mdb._words[DIRTY] = 4711
        mdb.upsert({"id": raises})
        assert printed in capsys.readouterr().err
        assert bool(printed) is raises
    assert len(mdb) == 2
    mdb._words[DIRTY] = 4711
    mdb.upsert({"id": 3})
    assert capsys.readouterr().err == "", "as logging does it in production"


def test_an_interrupt_of_a_handler_is_not_caught_and_the_next_message_comes(open_db, add_handler):
    class Interrupted(logging.Handler):
        told = 0

        def emit(self, record):
            self.told += 1
            raise KeyboardInterrupt

    mdb = open_db()
    handler = add_handler(Interrupted(), "WARNING")
    for _ in range(2):
        mdb._words[DIRTY] = 4711
        with pytest.raises(KeyboardInterrupt):
            mdb.upsert({"id": 1})
    assert handler.told == 2


def test_what_nobody_wants_to_hear_is_neither_kept_nor_formatted(add_handler):
    class Unspeakable:
        def __str__(self):
            raise AssertionError("it was formatted")

    add_handler(logging.NullHandler(), "WARNING")
    notes.add(notes.INFO, "%s", Unspeakable())
    assert not notes.waiting
    notes.add(notes.WARNING, "%s", Unspeakable())
    assert notes.waiting
    notes.tell()  # A handler that writes nothing formats nothing.
    assert not notes.waiting


def test_a_handle_that_came_through_a_fork_is_opened_by_its_first_write(open_db, said):
    mdb = open_db()

    def child():
        len(mdb)
        yield bytes([len(said("DEBUG"))])
        mdb.upsert({"id": 1})
        mdb.upsert({"id": 2})
        yield bytes([len(said("DEBUG"))])

    said("DEBUG")
    with Child(child) as forked:
        assert (forked.step(), forked.step()) == (b"\0", b"\1")


def test_what_a_parent_has_noted_its_child_does_not_tell(said):
    notes.add(notes.ERROR, "of the parent")

    def child():
        yield b"y" if notes.waiting else b"n"

    with Child(child) as forked:
        assert forked.step() == b"n"
    notes.tell()
    assert said("ERROR") == ["of the parent"]


def test_who_comes_with_a_read_into_a_change_of_the_table_tells_nobody(open_db, said):
    mdb = open_db()
    said("ERROR")
    with mdb._table_lock:  # As a signal handler that has interrupted one.
        notes.add(notes.ERROR, "later")
        assert list(mdb) == []
        assert said("ERROR") == []
    assert list(mdb) == []
    assert said("ERROR") == ["later"]


def test_what_happens_in_other_threads_while_a_handler_works_is_told_too(add_handler):
    class Working(logging.Handler):
        told = ()

        def emit(self, record):
            self.told += (record.getMessage(),)
            if len(self.told) == 1:
                in_thread(lambda: notes.add(notes.ERROR, "second"))

    handler = add_handler(Working(), "ERROR")
    notes.add(notes.ERROR, "first")
    notes.tell()
    assert handler.told == ("first", "second")


def test_while_a_thread_holds_a_lock_another_one_tells(open_db, said):
    mdb = open_db()
    said("INFO")
    with mdb.lock():
        mdb.save()
        assert said("INFO") == []
        other = open_db(":memory:")
        in_thread(other.close)
        assert len(said("INFO")) == 1


def test_nothing_that_records_hold_is_logged(open_db, faulty, caplog):
    caplog.set_level(logging.DEBUG, "microdb")
    mdb = open_db(files=faulty, auto_save_bytes=2_000, durability="power")
    for call in ("create", "sync_data", "sync_folder", "write_at", "identity"):
        faulty.on[call] = fail
        for n in range(50):
            for act in (lambda n=n: mdb.upsert({"id": SECRET + str(n), SECRET: SECRET}), mdb.save, mdb.sync):
                with contextlib.suppress(OSError, microdb.MicroDBError):
                    act()
        mdb._auto_save.wait()
        faulty.on.clear()
        mdb.save()
    mdb.close()
    assert {entry.levelname for entry in caplog.records} == {"DEBUG", "INFO", "WARNING", "ERROR"}
    assert {entry.name for entry in caplog.records} == {"microdb"}
    assert SECRET not in caplog.text


def test_whoever_holds_the_lock_of_another_database_tells_when_he_has_left_it(open_db, tmp_path, said):
    mdb, other = open_db(), open_db(tmp_path / "other.json")
    said("INFO")
    with other.lock():
        mdb.save()
        assert said("INFO") == []
        mdb.upsert({"id": 1})
        assert said("INFO") == []
    assert len(said("INFO")) == 1
