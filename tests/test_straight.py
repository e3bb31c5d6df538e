"""The straight way of an upsert: when it is taken, when it is left to the long one, and that both come to the same."""

import contextlib
import linecache
import threading
import types

import pytest

import microdb
from faulty import Faulty, Meanwhile, fail, held_elsewhere, in_thread, interrupt, wait_until
from microdb import appending
from microdb.appending import Appending
from microdb.files import OS
from microdb.locks import WriteLock
from microdb.wal import file_log
from microdb.wal.file_log import FileLog
from microdb.wal.format import OFFSET_MAX
from microdb.wal.header import DIRTY, HEAD, LAST, OWNER, POISONED, WAITING
from microdb.wal.log_file import open_log
from microdb.wal.memory_log import MemoryLog
from microdb.wal.reader import read_frames
from test_locks import interrupted_at, lines_of

A = {"id": "a", "n": 1}
B = {"id": "b", "n": 2}
C = {"id": "c", "n": 3}


@pytest.fixture
def mdb(open_db):
    """A table with one record, whose files have been looked at just now."""
    mdb = open_db()
    mdb.upsert(A)
    return mdb


def straight(mdb, record):
    """What comes of the straight way alone."""
    change, item = mdb._upserting(record, None)
    return mdb._upsert_straight((change,), (item,))


def goes_straight(mdb, record, write=None):
    """Whether an upsert that is made goes straight."""
    ways = []
    mdb._upsert_straight = lambda *args: (ways.append(Appending._upsert_straight(mdb, *args)), ways[-1])[1]
    try:
        (write or mdb.upsert)(record)
    finally:
        del mdb._upsert_straight
    assert len(ways) == 1
    return ways[0]


def refused(mdb, wal, generation=1):
    """That it is left to the long way with nothing done, but that the page may name another owner of the lock."""

    def state():
        words = [word for number, word in enumerate(mdb._words[:64]) if number != OWNER]
        return words, wal.log(generation).read_bytes(), mdb._position, mdb._ahead, mdb._applied, list(mdb._records)

    before = state()
    lock = mdb._log.lock
    level = lock.level()
    assert straight(mdb, B) is False
    assert state() == before
    assert (lock.level(), lock.writing) == (level, None)
    return True


@pytest.mark.parametrize("filename", [None, ":memory:"])
def test_an_upsert_by_whoever_is_alone_goes_straight(open_db, filename):
    mdb = open_db(filename)
    mdb.upsert(A)
    assert goes_straight(mdb, B)
    assert goes_straight(mdb, {"id": "nested", "of": [{"n": 1}]})
    assert goes_straight(mdb, C, lambda record: mdb.__setitem__(("c",), record))
    assert list(mdb) == [("a",), ("b",), ("nested",), ("c",)]


def test_what_does_not_go_straight_by_its_nature(mdb):
    mdb._upsert_straight = lambda *_: pytest.fail("straight")
    mdb.upsert(B, ttl=60)
    mdb.upsert_many([C])
    mdb.delete(("c",))
    assert list(mdb) == [("a",), ("b",)]


def test_the_writes_of_another_process_are_met_the_long_way_once(open_db, mdb):
    other = open_db()
    other.upsert(B)
    assert not goes_straight(mdb, C)
    assert mdb._ahead is not None, "the table is left for later"
    assert goes_straight(mdb, {"id": "d"})
    assert goes_straight(mdb, {"id": "e"})
    assert mdb._ahead is not None
    assert list(other) == list(mdb) == [(name,) for name in "abcde"]
    assert mdb._ahead is None
    assert goes_straight(mdb, {"id": "f"})
    assert list(other) == list(mdb) == [(name,) for name in "abcdef"]


def test_both_ways_leave_the_same(tmp_path, monkeypatch):
    """But for the salt of the log, and with it the crcs."""
    found = []
    for way in ("straight", "long"):
        if way == "long":
            monkeypatch.setattr(Appending, "_upsert_straight", lambda *_: False)
        with microdb.MicroDB(tmp_path / f"{way}.json", ["id"]) as mdb:
            for record in (A, B, {"id": "a", "n": 5}):
                mdb.upsert(record)
            mdb.sync()  # The next frame says so.
            mdb.upsert(C)
            log = open_log(OS.open(str(tmp_path / f"{way}.json.wal" / "0000000001.log")))
            data = log.file.read_at(log.header.end, 1 << 20)
            run = read_frames(data, log.header.start)
            flags = [data[at + 4] for at in _begins(run.payloads)]
            assert run.reason is None
            assert mdb._position == run.end
            assert mdb._head == mdb._applied == mdb._words[HEAD] == run.end.head
            words = [mdb._words[word] for word in (HEAD, LAST, DIRTY)]
            found.append((run.payloads, flags, words, mdb.stats().positions, list(mdb.all()), run.end[:3]))
    assert found[0] == found[1]
    assert found[0][1] == [0, 0, 0, 1]


def _begins(payloads):
    at = 0
    for payload in payloads:
        yield at
        at += 17 + len(payload)


# When it is left to the long way.


def test_a_thread_inside_a_lock_or_a_transaction_takes_the_long_way(mdb, wal):
    with mdb.lock():
        assert refused(mdb, wal)
        assert not goes_straight(mdb, B)
    with mdb.transaction():
        assert refused(mdb, wal)
        assert not goes_straight(mdb, C)
    assert list(mdb) == [("a",), ("b",), ("c",)]


def test_so_does_one_beside_another_thread_inside_a_lock_or_a_transaction(mdb, wal):
    for context in (mdb.lock(), mdb.transaction()):
        with held_elsewhere(context):
            assert refused(mdb, wal)


def test_so_does_one_beside_another_process_that_has_the_lock(mdb, wal, open_db):
    """Another open file stands for the process."""
    file = OS.open(str(wal.folder / "lock"), write=True)
    lock = WriteLock(file)
    lock.acquire()
    assert refused(mdb, wal)
    lock.release()
    assert straight(mdb, B)


def test_so_does_whoever_waits_for_the_disk_or_may_not_write(open_db, mdb, wal):
    durable, reader = open_db(durability="power"), open_db(read_only=True)
    for other in (durable, reader):
        assert list(other) == [("a",)]
        assert refused(other, wal)


def test_so_does_one_before_which_others_wait(mdb, wal):
    """It takes them along."""
    mdb._commits.waiting.append(object())
    assert refused(mdb, wal)
    mdb._commits.waiting.clear()
    assert straight(mdb, B)


def test_so_does_one_to_whom_something_is_new(open_db, mdb, wal):
    other = open_db()
    other.upsert(C)
    assert refused(mdb, wal), "what another wrote"
    mdb.upsert({"id": "d"})
    other.upsert({"id": "e"})
    mdb._log.lock.take_now = lambda: pytest.fail("it need not even take the lock")
    assert refused(mdb, wal), "what it wrote since"
    del mdb._log.lock.take_now


def test_so_does_one_behind_whom_another_writes_as_it_takes_the_lock(open_db, mdb):
    other = open_db()
    lock = mdb._log.lock
    take_now = lock.take_now
    for name in "bc":  # The first time from its table, the second time from what is ahead of it.

        def late(name=name):
            del lock.take_now
            other.upsert({"id": name})
            return take_now()

        lock.take_now = late
        assert not goes_straight(mdb, {"id": f"behind {name}"})
    assert list(mdb) == list(other) == [("a",), ("b",), ("behind b",), ("c",), ("behind c",)]


def test_nothing_is_written_over_what_another_wrote_though_a_stranger_has_cut_it(open_db, mdb, wal):
    other = open_db()
    lock, size = mdb._log.lock, wal.log().stat().st_size
    take_now = lock.take_now

    def late():
        del lock.take_now
        other.upsert(B)
        with wal.log().open("r+b") as file:
            file.truncate(size)
        return take_now()

    lock.take_now = late
    with pytest.raises(microdb.CorruptError):
        mdb.upsert(C)
    assert wal.log().stat().st_size == size


@pytest.mark.parametrize(("word", "value"), [(DIRTY, 1), (POISONED, 1)])
def test_so_does_one_that_finds_a_write_unfinished_or_a_disk_that_failed(mdb, wal, word, value):
    mdb._words[word] = value
    assert refused(mdb, wal)
    mdb._words[word] = 0
    assert straight(mdb, B)


@pytest.mark.parametrize("by", [-1, 1])
def test_so_does_one_whose_log_something_else_has_cut_or_appended_to(mdb, wal, by):
    size = wal.log().stat().st_size
    with wal.log().open("r+b") as file:
        file.truncate(size + by)
    assert refused(mdb, wal)


def test_so_does_one_that_has_not_looked_at_its_files_for_a_second(mdb, wal, monkeypatch):
    now = file_log.time.monotonic()
    monkeypatch.setattr(file_log, "time", types.SimpleNamespace(monotonic=lambda: now + 1.1))
    assert refused(mdb, wal)


def test_so_does_one_behind_a_save_until_it_has_the_new_log_open(open_db, mdb, wal):
    mdb.save()
    mdb._log.generations.drop()
    assert refused(mdb, wal, generation=2)
    assert not goes_straight(mdb, B)
    assert goes_straight(mdb, C)


def test_so_does_one_that_has_an_old_log_open_however_well_it_would_fit(open_db, wal):
    mdb = open_db()
    mdb.save()
    mdb.upsert(A)
    old = open_log(OS.open(str(wal.folder / "0000000001.history"), write=True))
    old.file.truncate(wal.log(2).stat().st_size)
    mdb._log.generations.last = old
    assert refused(mdb, wal, generation=2)
    assert not goes_straight(mdb, B)
    assert goes_straight(mdb, C)
    assert old.file.size() == wal.frames(2)[1][0]


def test_so_does_one_whose_table_is_to_be_loaded_anew(mdb, wal):
    mdb._position = None
    assert refused(mdb, wal)
    assert not goes_straight(mdb, B)
    assert list(mdb) == [("a",), ("b",)]


def test_so_does_one_that_would_fill_the_log(mdb, wal):
    log, end = mdb._log, mdb._position
    payload = b"\x91\x91\x02"
    last = end._replace(offset=OFFSET_MAX - 17 - len(payload))
    size = wal.log().stat().st_size
    with mdb.lock():
        try:
            for at, fits in ((last._replace(offset=last.offset + 1), False), (last, True)):
                log.words[HEAD] = at.head
                with wal.log().open("r+b") as file:
                    file.truncate(at.offset)  # A file of 64 GiB that takes no room.
                found = log.append_one(payload, at)
                assert (found.offset == OFFSET_MAX) if fits else (found is None)
        finally:
            with wal.log().open("r+b") as file:
                file.truncate(size)
            log.words[HEAD] = end.head


def test_a_record_that_is_too_large_is_refused_by_both(mdb, monkeypatch):
    monkeypatch.setattr("microdb.wal.codec._ITEMS_BYTES_MAX", 50)
    with pytest.raises(microdb.RecordError, match="bytes encoded; one change or batch holds at most 50"):
        mdb.upsert({"id": "b", "text": "x" * 60})
    assert list(mdb) == [("a",)]


def test_whoever_is_closed_as_it_takes_the_lock_is_told_that(mdb, wal):
    lock = mdb._log.lock
    take_now, size = lock.take_now, wal.log().stat().st_size
    lock.take_now = lambda: (in_thread(mdb.close), take_now())[1]
    with pytest.raises(microdb.ClosedError):
        mdb.upsert(B)
    assert wal.log().stat().st_size == size
    assert not lock.is_mine()


def test_a_table_in_memory_loses_nothing_that_was_interrupted_between_the_log_and_the_table(open_db, monkeypatch):
    mdb = open_db(":memory:")
    mdb.upsert(A)
    lock = mdb._log.lock
    take_now = lock.take_now

    def late():
        del lock.take_now
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(mdb, "_carry_over", interrupt)
            mdb.upsert_many([B])
        return take_now()

    lock.take_now = late
    assert not goes_straight(mdb, C)
    assert list(mdb) == [("a",), ("b",), ("c",)]


# What comes in between.


@pytest.mark.parametrize("filename", [None, ":memory:"])
def test_what_another_thread_reads_from_the_log_first_is_not_applied_twice(open_db, filename):
    mdb = open_db(filename)
    mdb.upsert(A)
    seen = []
    mdb._table_lock = Meanwhile(mdb._table_lock, lambda: seen.append(in_thread(lambda: mdb["b",])))
    assert goes_straight(mdb, B)
    assert seen == [B]
    assert list(mdb.all()) == [A, B]
    assert mdb.stats().sequence == 2


def test_a_table_in_which_records_expire_keeps_its_gate_closed(open_db):
    now = [1_000.0]
    mdb = open_db(clock=lambda: now[0])
    mdb.upsert(A, expires_at=1_010)
    assert goes_straight(mdb, B)
    now[0] = 1_020.0
    assert mdb.get(("a",)) is None
    assert mdb.get(("b",)) == B


@pytest.mark.parametrize("is_awaited", [True, False])
def test_whoever_waits_for_news_is_woken(mdb, monkeypatch, is_awaited):
    rung = []
    monkeypatch.setattr(appending, "ring", lambda words: rung.append(words[HEAD]))
    if is_awaited:
        mdb._words[WAITING] = mdb._words[HEAD]
    assert straight(mdb, B)
    assert rung == [mdb._words[HEAD]] * is_awaited


def test_a_close_waits_for_it(open_db, wal):
    faulty = Faulty()
    mdb = open_db(files=faulty)
    mdb.upsert(A)
    looks, closing = [], threading.Thread(target=mdb.close)

    def close(_):
        faulty.on.clear()
        mdb._log.lock.check_may_wait = lambda: looks.append(1)
        closing.start()
        wait_until(lambda: looks)

    faulty.on["write_at"] = close
    assert goes_straight(mdb, B)
    closing.join()
    assert list(open_db().all()) == [A, B]


def test_the_thread_that_waits_for_the_lock_is_woken(mdb):
    """Not by chance, at its next look: it is told."""
    told = []
    lock = mdb._log.lock
    lock.sleepers.append(types.SimpleNamespace(wake=lambda: (told.append(1), True)[1]))
    assert straight(mdb, B)
    lock.sleepers.clear()
    assert told == [1]


def test_an_error_of_the_disk_changes_nothing_and_is_told_at_once(open_db, wal, caplog):
    faulty = Faulty()
    mdb = open_db(files=faulty)
    mdb.upsert(A)
    size = wal.log().stat().st_size
    faulty.on["write_at"] = faulty.on["truncate"] = fail
    with pytest.raises(OSError, match="made to fail"):
        straight(mdb, B)
    faulty.on.clear()
    assert "could not be cut off" in caplog.text
    assert wal.log().stat().st_size == size
    assert list(mdb) == [("a",)]
    mdb.upsert(C)  # Begins with a save.
    assert list(mdb) == [("a",), ("c",)]
    assert mdb.stats().saves == 1


@pytest.mark.parametrize("log", [FileLog, MemoryLog])
def test_an_interrupt_at_any_line_leaves_the_lock_free_and_the_write_made_or_not(open_db, tmp_path, log):
    functions = [
        Appending._upsert_straight,
        Appending._carry_over,
        WriteLock.let_go,
        WriteLock.take_now,
        log.append_one,
    ]
    functions += [FileLog._write] if log is FileLog else [log.append]
    came = 0
    for number, place in enumerate(sorted(set(lines_of(*functions)), key=lambda place: place[1])):
        mdb = open_db(":memory:" if log is MemoryLog else tmp_path / f"{number}.json")
        mdb.upsert(A)
        lock, head = mdb._log.lock, mdb._words[HEAD]
        came += interrupted_at(place, lambda mdb=mdb: straight(mdb, B))
        line = linecache.getline(place[0].co_filename, place[1]).strip()
        is_made = mdb._words[HEAD] != head
        assert (lock.is_mine(), lock.depth, lock.writing) == (False, 0, None), line
        with mdb.lock(timeout=0):
            assert list(mdb.all()) == ([A, B] if is_made else [A]), line
        in_thread(lambda mdb=mdb: mdb.upsert(C))
        assert list(mdb.all()) == ([A, B, C] if is_made else [A, C]), line
        if log is FileLog:
            with contextlib.closing(microdb.MicroDB(tmp_path / f"{number}.json", ["id"])) as other:
                assert list(other.all()) == list(mdb.all()), line
            assert mdb._head == mdb._applied, "the gate is open again"
    assert came > 20


def test_an_interrupt_as_it_leaves_after_an_error_leaves_the_lock_free(open_db, tmp_path):
    came = 0
    for number, place in enumerate(sorted(set(lines_of(WriteLock.return_to)), key=lambda place: place[1])):
        faulty = Faulty()
        mdb = open_db(tmp_path / f"{number}.json", files=faulty)
        mdb.upsert(A)
        faulty.on["write_at"] = fail
        with contextlib.suppress(OSError):
            came += interrupted_at(place, lambda mdb=mdb: straight(mdb, B))
        faulty.on.clear()
        lock = mdb._log.lock
        assert (lock.is_mine(), lock.depth, lock.writing) == (False, 0, None), place
        in_thread(lambda mdb=mdb: mdb.upsert(C))
        assert list(mdb.all()) == [A, C]
    assert came > 5
