"""One open table, where threads, interrupts and damage meet it between two of its steps."""

import signal
import threading

import pytest

import microdb
from children import forked
from faulty import Faulty, Meanwhile, held_elsewhere, in_thread, interrupt, once, only, save_that_waits, wait_until
from microdb import appending, handle, open_table
from microdb.files import OS
from microdb.presence import is_alone
from microdb.wal.codec import encode_delete, encode_upsert, join
from microdb.wal.header import HEAD, LAST
from microdb.wal.log import GoneError
from walfiles import append_payload, overwrite

pytestmark = pytest.mark.usefixtures("way")

A = {"id": "a", "n": 1}
B = {"id": "b", "n": 2}


@pytest.fixture
def mdb(either):
    either.upsert(A)
    return either


def test_an_interrupt_in_the_middle_of_a_batch_does_not_empty_the_table(mdb, monkeypatch):
    monkeypatch.setattr(appending, "apply", interrupt)
    with pytest.raises(KeyboardInterrupt):
        mdb.upsert(B)
    monkeypatch.undo()
    mdb.upsert({"id": "c"})
    assert mdb["a",] == A


def test_a_signal_handler_that_writes_in_the_middle_of_a_write_is_refused(mdb, monkeypatch):
    name = "_write" if hasattr(mdb._log, "_write") else "append"  # Both ways lead through it.
    put, refused = getattr(mdb._log, name), []

    def interrupted(*args, **options):
        for write in (mdb.upsert, mdb.delete):
            with pytest.raises(microdb.ReentrantError, match="let it return first"):
                write(A)
            refused.append(write)
        return put(*args, **options)

    monkeypatch.setattr(mdb._log, name, interrupted)
    mdb.upsert(B)
    assert list(mdb.all()) == [A, B]
    assert len(refused) == 2


# Closing while others are on their way.


def test_a_read_that_finds_its_handle_closed_when_its_turn_comes_says_so(mdb):
    mdb._table_lock = Meanwhile(mdb._table_lock, lambda: in_thread(mdb.close))
    with pytest.raises(microdb.ClosedError, match="open another one"):
        list(mdb)


def test_a_write_that_finds_its_handle_closed_when_its_turn_comes_says_so_and_writes_nothing(open_db):
    mdb, other = open_db(), open_db()
    results = []

    def write():
        with pytest.raises(microdb.ClosedError):
            mdb.upsert(A)
        results.append("refused")

    writer = threading.Thread(target=write)
    held, let_go = threading.Event(), threading.Event()

    def hold():
        with other.lock():
            held.set()
            assert let_go.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(60)
    writer.start()
    wait_until(lambda: len(mdb._commits.waiting))
    mdb.close()
    let_go.set()
    holder.join()
    writer.join()
    assert results == ["refused"]
    assert len(other) == 0


def test_a_save_that_finds_its_handle_closed_when_its_turn_comes_says_so(open_db, path):
    faulty = Faulty()
    mdb = open_db(files=faulty)
    mdb.upsert(A)
    faulty.on["names"] = lambda _: in_thread(mdb.close)  # The save looks for leftovers, and then takes the write lock.
    with pytest.raises(microdb.ClosedError):
        mdb.save()
    faulty.on.clear()
    assert not path.exists()
    assert list(open_db()) == [("a",)]


def test_a_read_whose_signal_handler_closes_its_handle_as_it_loads_the_table_says_so(open_db, wal):
    mdb, other = open_db(), open_db()
    for record in (A, B):
        other.upsert(record)
        other.save()
        for history in wal.folder.glob("*.history"):
            history.unlink()
    load = mdb._log.load
    mdb._log.load = lambda timeout_s: (mdb.close(), load(timeout_s))[1]
    with pytest.raises(microdb.ClosedError):
        mdb.get(("a",))


def test_a_save_whose_handle_is_closed_as_it_writes_its_files_says_so(open_db, path):
    faulty = Faulty()
    mdb = open_db(files=faulty)
    mdb.upsert(A)
    with pytest.raises(microdb.ClosedError):
        faulty.on["create"] = once(lambda: in_thread(mdb.close))
        mdb.save()
    assert not path.exists()
    assert list(open_db()) == [("a",)]


def test_a_save_whose_handle_is_closed_before_the_switch_says_so(open_db, path):
    mdb, other = open_db(), open_db()
    mdb.upsert(A)
    kept_open = mdb.kept_open
    mdb.kept_open = lambda: (in_thread(mdb.close), kept_open())[1]
    with pytest.raises(microdb.ClosedError):
        mdb.save()
    assert not path.exists()
    assert (other.stats().generation, list(other)) == (1, [("a",)])


def test_who_closes_a_handle_amid_the_switch_of_a_save_waits_for_its_end(open_db, path):
    faulty = Faulty()
    mdb, other = open_db(files=faulty), open_db()
    mdb.upsert(A)
    closer = threading.Thread(target=mdb.close)

    def close():
        closer.start()
        closer.join(0.1)
        assert closer.is_alive()

    faulty.on["rename"] = only("mdb.json", once(close))
    mdb.save()
    closer.join()
    assert other.stats().dirty_pid is None
    other.upsert(B)
    assert list(other) == [("a",), ("b",)]


@pytest.mark.parametrize("filename", [None, ":memory:"])
def test_a_handle_closed_within_a_transaction_of_another_thread_stays_closed_after_it(open_db, filename):
    mdb = open_db(filename)
    with mdb.transaction():
        in_thread(mdb.close)
    with pytest.raises(microdb.ClosedError):
        mdb.get(("a",))


def test_a_close_by_a_signal_handler_amid_a_read_leaves_the_table_to_other_threads(either):
    either.upsert(A)
    with either._table_lock:  # As within a read.
        either.close()
    assert in_thread(lambda: either._table_lock.acquire(blocking=False))
    with pytest.raises(microdb.ClosedError):
        len(either)


def test_a_signal_handler_may_write_amid_a_read_that_keeps_a_close_of_another_thread_waiting(either):
    """The close keeps no writer out while it waits for the reader."""
    mdb = either
    mdb.upsert(A)
    closing = threading.Thread(target=mdb.close)
    looks = []
    table_lock = mdb._table_lock

    class Noting:
        def __enter__(self):
            looks.append(1)
            return table_lock.__enter__()

        def __exit__(self, *exc):
            return table_lock.__exit__(*exc)

        acquire, release, _is_owned = table_lock.acquire, table_lock.release, table_lock._is_owned

    with table_lock:  # As within a read.
        mdb._table_lock = Noting()
        closing.start()
        wait_until(lambda: looks)
        mdb.upsert(B)
        assert list(mdb._records) == [("a",), ("b",)]
    closing.join()
    with pytest.raises(microdb.ClosedError):
        len(mdb)


# The straight way to a record.


@pytest.mark.parametrize("filename", [None, ":memory:"])
def test_a_read_goes_straight_to_the_table_if_nothing_is_new(open_db, filename):
    mdb = open_db(filename)
    mdb._find = lambda _: pytest.fail("the long way")
    assert mdb.get(("a",)) is None
    mdb.upsert(A)
    assert mdb["a",] == A
    in_thread(lambda: mdb.upsert(B))
    assert ("b",) in mdb


# What another thread has done in between.


def test_a_batch_that_another_thread_read_from_the_log_first_is_not_applied_twice(mdb, way):
    seen = []
    time = 1 if way == "straight" else 2
    mdb._table_lock = Meanwhile(mdb._table_lock, lambda: seen.append(in_thread(lambda: mdb["b",])), time=time)
    mdb.upsert(B)
    assert seen == [B], "between the append and the table of its own process"
    assert mdb.stats().sequence == 2
    assert list(mdb.all()) == [A, B]


def test_nor_are_changes_that_would_come_to_something_else_the_second_time(mdb):
    seen = []
    changes = [(("a",), None), (("a",), A), (("b",), B)]
    encoded = [encode_upsert(record) if record else encode_delete(key) for key, record in changes]
    mdb._table_lock = Meanwhile(mdb._table_lock, lambda: seen.extend(in_thread(lambda: list(mdb.all()))), time=2)
    mdb._commit(changes, encoded)
    assert seen == list(mdb.all()) == [A, B]


def test_of_two_threads_of_a_child_that_write_first_one_opens_the_files(open_db):
    mdb = open_db()
    mdb.upsert(A)

    def child():
        attached = []
        attach = mdb._log.attach
        mdb._log.attach = lambda *args: attached.append(1) or attach(*args)
        mdb._attaching = Meanwhile(mdb._attaching, lambda: in_thread(lambda: mdb.upsert(B)))
        mdb.upsert({"id": "c"})
        assert attached == [1]
        assert list(mdb) == [("a",), ("b",), ("c",)]

    assert forked(child) == 0
    assert list(mdb) == [("a",), ("b",), ("c",)]


# Who writes behind others.


def one_behind(open_db):
    """A handle that has not seen the last write, and the one that made it."""
    mdb, other = open_db(), open_db()
    mdb.upsert(A)
    other.upsert(B)
    return mdb, other


@pytest.fixture
def behind(open_db, monkeypatch):
    """A handle that is two batches behind another one, and the depths of the lock at which it caught up since."""
    mdb, other = one_behind(open_db)
    other.upsert_many([{"id": "c"}, {**A, "n": 3}])
    depths = []
    apply = open_table.OpenTable._apply
    monkeypatch.setattr(
        open_table.OpenTable, "_apply", lambda self, *args: (depths.append(self._log.lock.depth), apply(self, *args))[1]
    )
    return mdb, other, depths


def test_who_writes_behind_others_leaves_what_they_wrote_for_its_next_read(behind):
    mdb, other, depths = behind
    for record in ({"id": "b", "n": 5}, {"id": "d"}):
        mdb.upsert(record)
    other.upsert({"id": "e"})
    mdb.upsert({"id": "f"})
    assert depths == []
    assert mdb["a",] == {"id": "a", "n": 3}
    assert depths == [0]
    assert list(mdb.all()) == list(other.all())
    assert [key for (key,) in mdb] == ["a", "b", "c", "d", "e", "f"]
    mdb.upsert({"id": "g"})
    assert mdb["g",] == {"id": "g"}
    assert depths == [0, 0]  # The second is that of the other handle.


@pytest.mark.parametrize(("nearer", "depth"), [(0, 1), (1, 0)])
def test_who_takes_the_lock_far_behind_catches_up_before_others_have_to_wait_for_it(behind, monkeypatch, nearer, depth):
    mdb, other, depths = behind
    monkeypatch.setattr(handle, "_FAR_BYTES", mdb._words[HEAD] - mdb._applied - nearer)
    with mdb.lock():
        assert mdb["c",] == {"id": "c"}
        mdb.upsert({"id": "d"})
    assert depths == [depth]
    assert list(mdb) == list(other)


def test_who_only_writes_never_reads_what_others_write(behind, wal):
    mdb, other, depths = behind
    for number in range(100):
        other.upsert({"id": "e", "n": number})
        mdb.upsert({"id": "f", "n": number})
    assert depths == []
    assert mdb["e",]["n"] == other["f",]["n"] == 99
    assert list(mdb.all()) == list(other.all())
    mdb.close()
    other.close()
    assert len(wal.frames()) == 203


@pytest.mark.parametrize("hint", ["none", "beyond the head", "within the last frame", "at the frame before"])
def test_a_wrong_hint_where_the_last_frame_begins_does_no_harm(behind, hint):
    mdb, other, _ = behind
    head, last = mdb._words[HEAD], mdb._words[LAST]
    mdb._words[LAST] = {
        "none": 0,
        "beyond the head": head % (1 << 36) + 5,
        "within the last frame": last + 1,
        "at the frame before": last - 30,
    }[hint]
    mdb.upsert({"id": "d"})
    mdb.upsert({"id": "e"})
    assert list(mdb) == list(other) == [("a",), ("b",), ("c",), ("d",), ("e",)]


def test_the_last_of_several_batches_that_were_written_together_tells_where_the_log_ends(behind):
    mdb, other, depths = behind
    payloads = [join([encode_upsert({"id": name})]) for name in "def"]
    assert len(other) == 3
    depths.clear()
    with other.lock():
        end = other._log.append(payloads, other._position, sync=False)
    assert mdb._log.end_at(end.head) == end
    mdb.upsert({"id": "g"})
    assert depths == []
    assert list(mdb) == list(other) == [(name,) for name in "abcdefg"]


def test_who_writes_behind_a_very_long_batch_catches_up(behind):
    mdb, other, depths = behind
    other.upsert({"id": "d", "text": "x" * (1 << 20)})
    mdb.upsert({"id": "e"})
    assert depths == [1]
    assert list(mdb) == list(other)


@pytest.mark.parametrize("writes_meanwhile", [False, True])
@pytest.mark.parametrize("is_kept", [False, True])
def test_who_writes_behind_a_save_leaves_what_was_before_it_for_later(open_db, wal, writes_meanwhile, is_kept):
    faulty = Faulty()
    mdb, other = open_db(), open_db(files=faulty)
    other.upsert(A)
    assert ("a",) in mdb
    other.upsert(B)
    with save_that_waits(other, faulty):
        if writes_meanwhile:
            other.upsert({"id": "c"})  # The new log begins with it.
            mdb.delete(("a",))
            other.upsert({"id": "d"})
    if not is_kept:
        for path in wal.folder.glob("*.history"):
            path.unlink()
    mdb._load_anew = lambda _: pytest.fail("the old log is still open")
    mdb.upsert({"id": "e"})
    mdb.upsert({"id": "f"})
    assert mdb._position.generation == 1
    assert list(mdb.all()) == list(other.all())
    assert mdb._position.generation == 2
    assert mdb._log.generations.before is None, "the old log can go"


def write_behind_saves(mdb, other, names):
    """Two handles write in turn, and the one that reads nothing stands behind the saves of the other."""
    for name in names:
        other.upsert({"id": name})
        other.save()
        mdb.upsert({"id": name.upper()})
        yield


def test_who_writes_behind_two_saves_reads_what_was_before_them_if_it_is_kept(open_db):
    mdb, other = open_db(), open_db()
    list(write_behind_saves(mdb, other, "ab"))
    assert mdb._position.generation == 1
    assert list(mdb) == list(other) == [("a",), ("A",), ("b",), ("B",)]


def test_who_loads_the_table_anew_keeps_no_log_open_that_is_gone(open_db, wal):
    mdb, other = open_db(), open_db()
    for _ in write_behind_saves(mdb, other, "abc"):
        for path in wal.folder.glob("*.history"):
            path.unlink()
    assert mdb._log.generations.before is not None
    assert list(mdb) == list(other)
    assert mdb._log.generations.before is None


def test_a_transaction_begins_with_what_others_wrote(behind):
    mdb, other, _ = behind
    with mdb.transaction():
        assert mdb["c",] == {"id": "c"}
        mdb.upsert({**mdb["a",], "m": 1})
    assert other["a",] == mdb["a",] == {"id": "a", "n": 3, "m": 1}


def test_a_transaction_that_begins_as_another_thread_loads_the_table_anew_sees_that(behind, monkeypatch):
    mdb, other, _ = behind
    mdb.upsert({"id": "d"})

    class Begun(handle.Transaction):
        def __init__(self, records):
            super().__init__(records)
            in_thread(mdb._load_anew)

    monkeypatch.setattr(handle, "Transaction", Begun)
    with mdb.transaction():
        mdb.upsert({"id": "a", "n": mdb["a",]["n"] + 1})
        assert len(mdb) == 4
    assert other["a",] == mdb["a",] == {"id": "a", "n": 4}


def test_an_interrupt_behind_a_write_that_left_others_for_later_makes_nothing_double(behind, monkeypatch):
    mdb, other, _ = behind
    other.delete(("a",))
    append = mdb._log.append
    monkeypatch.setattr(mdb._log, "append", lambda *args, **how: (append(*args, **how), interrupt()))
    with pytest.raises(KeyboardInterrupt):
        mdb.upsert(A)
    monkeypatch.undo()
    other.delete(("a",))
    mdb.upsert({"id": "d"})
    assert list(mdb) == list(other) == [("b",), ("c",), ("d",)]


def test_another_thread_that_reads_amid_a_write_behind_others_applies_it_once(open_db, monkeypatch):
    faulty = Faulty()
    mdb, other = open_db(files=faulty), open_db()
    mdb.upsert(A)
    other.upsert(B)
    counts = []
    apply = mdb._apply
    monkeypatch.setattr(
        mdb, "_apply", lambda payloads, *args: (counts.append(len(payloads)), apply(payloads, *args))[1]
    )
    faulty.on["write_at"] = lambda _: in_thread(lambda: mdb["b",])
    mdb.upsert({"id": "c"})
    faulty.on.clear()
    assert mdb["c",] == {"id": "c"}
    assert counts == [1, 1]
    other.delete(("c",))
    mdb.upsert({"id": "d"})
    assert list(mdb) == list(other) == [("a",), ("b",), ("d",)]


def test_a_write_is_made_behind_a_read_of_another_thread_that_failed_amid_the_changes(open_db, monkeypatch):
    mdb, other = one_behind(open_db)
    step = mdb._prepare_locked

    def out_of_memory(*_):
        raise MemoryError

    def then_fail_to_read():
        step()
        monkeypatch.setattr(mdb, "_prepare_locked", step)
        monkeypatch.setattr(open_table, "apply", out_of_memory)
        with pytest.raises(MemoryError):
            in_thread(lambda: mdb["b",])
        monkeypatch.setattr(open_table, "apply", apply)

    apply = open_table.apply
    monkeypatch.setattr(mdb, "_prepare_locked", then_fail_to_read)
    mdb.upsert({"id": "c"})
    assert list(mdb) == list(other) == [("a",), ("b",), ("c",)]


def test_what_was_left_for_later_is_dropped_when_the_table_is_built_anew(behind, wal):
    mdb, other, _ = behind
    mdb.upsert({"id": "d"})
    other.delete(("a",))
    other.save()
    other.save()
    for path in wal.folder.glob("*.history"):
        path.unlink()
    assert list(mdb) == list(other) == [("b",), ("c",), ("d",)]
    assert mdb._ahead is None


def test_a_child_of_a_fork_goes_on_from_what_its_parent_has_left_for_later(behind):
    mdb, other, _ = behind
    mdb.upsert({"id": "d"})
    assert forked(lambda: list(mdb) == list(other) or pytest.fail("differs")) == 0


@pytest.mark.parametrize("finds", [False, True])
@pytest.mark.parametrize("reads", [False, True])
def test_a_signal_handler_may_read_and_write_amid_the_look_ahead_of_a_writer(open_db, monkeypatch, finds, reads):
    mdb, other = one_behind(open_db)
    end_at = mdb._log.end_at

    def interrupted(head):
        monkeypatch.setattr(mdb._log, "end_at", end_at)
        found = end_at(head) if finds else None
        if reads:
            assert ("b",) in mdb
        mdb.upsert({"id": "handler"})
        return found

    monkeypatch.setattr(mdb._log, "end_at", interrupted)
    mdb.upsert({"id": "c"})
    assert (mdb._ahead is None) == (reads or not finds), "what the handler has applied is not ahead of the table"
    for name in "de":
        mdb.upsert({"id": name})
    assert [key for (key,) in mdb] == [key for (key,) in other] == ["a", "b", "handler", "c", "d", "e"]


def test_a_writer_behind_a_log_that_is_gone_builds_its_table_anew(open_db, monkeypatch):
    mdb, other = one_behind(open_db)

    def gone(*_):
        monkeypatch.undo()
        raise GoneError(1)

    monkeypatch.setattr(mdb._log.generations, "get", gone)
    mdb.upsert({"id": "c"})
    assert list(mdb) == list(other) == [("a",), ("b",), ("c",)]


@pytest.mark.parametrize("hint", ["right", "none"])
def test_damage_that_a_writer_meets_as_it_looks_ahead_is_told(open_db, wal, hint):
    mdb, _ = one_behind(open_db)
    if hint == "none":
        mdb._words[LAST] = 0
    data = bytearray(wal.log().read_bytes())
    data[-6] ^= 1
    wal.log().write_bytes(data)
    with pytest.raises(microdb.CorruptError, match="the crc is wrong"):
        mdb.upsert({"id": "c"})


def test_a_log_under_the_name_of_another_is_told_by_who_comes_to_it(open_db, wal):
    mdb, other = one_behind(open_db)
    before = wal.log().read_bytes()
    other.save()
    size = wal.log(2).stat().st_size
    wal.log(2).unlink()
    wal.log(2).write_bytes(before.ljust(size, b"\0"))
    for act in (lambda: mdb.upsert({"id": "c"}), lambda: mdb.get(("a",))):
        with pytest.raises(microdb.CorruptError, match="the log of generation 1, under the name of another"):
            act()


def test_who_has_met_damage_in_what_was_left_for_later_writes_no_more_behind_it(behind, wal):
    mdb, other, _ = behind
    at, length = wal.frames()[1]
    sound = wal.log().read_bytes()
    overwrite(wal.log(), at + length - 6, bytes([sound[at + length - 6] ^ 1]))
    mdb.upsert({"id": "d"})  # It has not looked.
    with pytest.raises(microdb.CorruptError, match="the crc is wrong"):
        mdb.get(("a",))
    size = wal.log().stat().st_size
    for write in (mdb.upsert, mdb.delete):
        with pytest.raises(microdb.CorruptError, match="the crc is wrong"):
            write({"id": "e"})
    assert wal.log().stat().st_size == size
    overwrite(wal.log(), at + length - 6, bytes([sound[at + length - 6]]))
    assert mdb["d",] == {"id": "d"}
    other.upsert({"id": "f"})
    mdb.upsert({"id": "e"})
    assert mdb._ahead is not None
    assert list(mdb) == list(other) == [(name,) for name in "abcdfe"]


def test_a_handler_that_comes_between_the_look_and_the_append_is_not_written_over(open_db, monkeypatch):
    mdb, other = one_behind(open_db)
    prepare = mdb._prepare_locked

    def then_write():
        prepare()
        monkeypatch.setattr(mdb, "_prepare_locked", prepare)
        other.upsert({"id": "handler"})

    monkeypatch.setattr(mdb, "_prepare_locked", then_write)
    mdb.upsert({"id": "c"})
    assert [key for (key,) in mdb] == [key for (key,) in other] == ["a", "b", "handler", "c"]


def test_a_table_in_memory_leaves_nothing_for_later(open_db, monkeypatch):
    """It could not be built anew from its log."""
    mdb = open_db(":memory:")
    mdb.upsert(A)
    monkeypatch.setattr(appending, "apply", interrupt)
    with pytest.raises(KeyboardInterrupt):
        mdb.upsert(B)
    monkeypatch.undo()
    mdb.upsert({"id": "c"})
    assert mdb._ahead is None
    assert list(mdb) == [("a",), ("b",), ("c",)]


# Interrupts. A trace function sees more places; these are followed to the end under coverage.


def test_an_interrupt_amid_the_changes_of_a_batch_leaves_a_table_that_is_loaded_anew(open_db, monkeypatch):
    mdb, other = open_db(), open_db()
    mdb.upsert(A)
    monkeypatch.setattr(appending, "apply", interrupt)
    with pytest.raises(KeyboardInterrupt):
        mdb.upsert(B)
    monkeypatch.undo()
    assert mdb._position is None
    assert list(mdb.all()) == list(other.all()) == [A, B], "published, so acknowledged to all others"


@pytest.mark.parametrize("act", ["save", "upsert", "lock"])
def test_whatever_comes_first_after_such_an_interrupt_starts_from_what_the_log_holds(open_db, monkeypatch, path, act):
    mdb = open_db()
    mdb.upsert(A)
    monkeypatch.setattr(appending, "apply", interrupt)
    with pytest.raises(KeyboardInterrupt):
        mdb.upsert(B)
    monkeypatch.undo()
    if act == "save":
        mdb.save()
        assert '"b"' in path.read_text()
    elif act == "upsert":
        mdb.upsert({"id": "c"})
        mdb.delete(("c",))
    else:
        with mdb.lock(), mdb.transaction():
            assert ("b",) in mdb
    assert list(mdb.all()) == [A, B]
    mdb.close()
    assert list(open_db().all()) == [A, B]


def test_an_interrupt_before_a_transaction_has_begun_leaves_none(mdb):
    mdb._table_lock = Meanwhile(mdb._table_lock, interrupt)
    with pytest.raises(KeyboardInterrupt), mdb.transaction():
        pytest.fail("it had not begun")
    assert mdb._transaction is None
    assert mdb["a",] == A
    in_thread(lambda: mdb.upsert(B))
    assert list(mdb.all()) == [A, B]


@pytest.mark.parametrize("call", ["upsert", "save"])
def test_a_signal_handler_that_writes_amid_a_write_of_its_own_thread_is_refused(open_db, call):
    faulty = Faulty()
    mdb, other = open_db(files=faulty), open_db()
    mdb.upsert(A)
    refused = []

    def handler(_):
        with pytest.raises(microdb.ReentrantError, match="let it return first"):
            other.upsert({"id": "handler"})
        refused.append(list(other))

    faulty.on["write_at" if call == "upsert" else "rename"] = only(".log", handler)
    if call == "upsert":
        mdb.upsert(B)
    else:
        mdb.save()
    assert refused == [[("a",)]]
    assert list(mdb.all()) == list(other.all()) == ([A, B] if call == "upsert" else [A])


# Signal handlers that come while their own thread is catching up.


@pytest.fixture
def handled_by():
    """Have a signal handled by a function; gives what sends it, once."""
    before = signal.getsignal(signal.SIGUSR1)

    def _handled_by(act):
        signal.signal(signal.SIGUSR1, lambda *_: act())
        return once(lambda: signal.raise_signal(signal.SIGUSR1))

    yield _handled_by
    signal.signal(signal.SIGUSR1, before)


def table(mdb):
    return {record["id"]: record["n"] for record in mdb.all()}


def before_reading(mdb, faulty, monkeypatch, send):
    faulty.on["read_at"] = only(".log", send)


def amid_the_changes(mdb, faulty, monkeypatch, send):
    apply = open_table.apply
    monkeypatch.setattr(open_table, "apply", lambda *args: (apply(*args), send()))


def before_the_gate_opens(mdb, faulty, monkeypatch, send):
    slot, sequence = mdb._log.slot, mdb._log.slot.sequence

    class Place:
        def __setitem__(self, at, value):
            monkeypatch.setattr(slot, "sequence", sequence)
            sequence[at] = value
            send()

    monkeypatch.setattr(slot, "sequence", Place())


PLACES = [before_reading, amid_the_changes, before_the_gate_opens]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("also_writes", [False, True], ids=["reads", "writes"])
def test_a_reader_whose_signal_handler_went_further_sees_one_moment(
    open_db, monkeypatch, handled_by, place, also_writes
):
    """Not the changes that it was about to apply, over a table that holds later ones already."""
    faulty = Faulty()
    mdb, other = open_db(files=faulty), open_db()
    other.upsert_many([{"id": "x", "n": 1}, {"id": "y", "n": 1}])
    table(mdb)
    other.upsert({"id": "x", "n": 2})
    other.upsert({"id": "z", "n": 2})
    seen = []

    def handler():
        with other.transaction():
            other.delete(("x",))
            other.upsert_many({"id": name, "n": 3} for name in "xyzw")
        if also_writes:
            mdb.upsert_many({"id": name, "n": 4} for name in "xy")
        seen.append(table(mdb))

    place(mdb, faulty, monkeypatch, handled_by(handler))
    found = table(mdb)
    last = {"y": 3, "z": 3, "x": 3, "w": 3} | ({"x": 4, "y": 4} if also_writes else {})
    assert seen == [last]
    assert found in ({"x": 2, "y": 1, "z": 2}, last)
    assert list(table(mdb).items()) == list(last.items()), "in the order in which all others have them"
    other.upsert({"id": "y", "n": 5})
    assert table(mdb) == last | {"y": 5}
    mdb.upsert({"id": "x", "n": 5})
    assert table(other) == table(mdb) == last | {"x": 5, "y": 5}


def test_a_reader_whose_signal_handler_went_past_a_damaged_frame_goes_on_from_there(open_db, handled_by, wal):
    """Another process has the change in memory, and saves it: the damage is history before anybody has to read it."""
    faulty = Faulty()
    mdb, other = open_db(files=faulty), open_db()
    other.upsert({"id": "x", "n": 1})
    table(mdb)
    other.upsert({"id": "x", "n": 2})
    at, length = wal.frames()[1]
    overwrite(wal.log(), at + length - 4, b"????")

    def handler():
        other.save()
        assert table(mdb) == {"x": 2}

    before_reading(mdb, faulty, None, handled_by(handler))
    assert table(mdb) == {"x": 2}


def test_a_reader_that_comes_to_a_damaged_frame_says_where_until_a_save_has_led_past_it(open_db, wal):
    mdb, other = open_db(), open_db()
    other.upsert({"id": "x", "n": 1})
    assert table(mdb) == {"x": 1}
    other.upsert({"id": "x", "n": 2})
    at, length = wal.frames()[1]
    overwrite(wal.log(), at + length - 4, b"????")
    for _ in range(2):
        with pytest.raises(microdb.CorruptError, match="the crc is wrong") as caught:
            table(mdb)
        assert (caught.value.path, caught.value.offset) == (str(wal.log()), at)
    other.save()
    assert table(mdb) == {"x": 2}


@pytest.mark.parametrize("place", PLACES)
def test_a_reader_whose_signal_handler_closed_its_handle_is_told_so_or_sees_the_table_as_it_was(
    open_db, monkeypatch, handled_by, place
):
    faulty = Faulty()
    mdb, other = open_db(files=faulty), open_db()
    other.upsert(A)
    place(mdb, faulty, monkeypatch, handled_by(mdb.close))
    try:
        assert table(mdb) == {"a": 1}
    except microdb.ClosedError:
        assert place is not before_the_gate_opens
    with pytest.raises(microdb.ClosedError):
        table(mdb)


def lock_and_unlock(mdb):
    with mdb.lock():
        pass


@pytest.mark.parametrize("by_another_handle", [False, True])
@pytest.mark.parametrize("amid", ["upsert", "save"])
@pytest.mark.parametrize(
    "act",
    [lambda mdb: mdb.upsert(B), lock_and_unlock, lambda mdb: mdb.save(), lambda mdb: mdb.save(timeout=60)],
    ids=["upsert", "lock", "save", "save with a time-out"],
)
def test_a_signal_handler_amid_a_read_is_refused_what_waits_for_who_waits_for_the_reader(
    open_db, handled_by, amid, act, by_another_handle
):
    faulty = Faulty()
    mdb, other = open_db(files=faulty), open_db()
    other.upsert(A)
    # Before it has the write lock a save waits for the reader, too; but nobody waits for it then.
    mdb.freshen = lambda: 0
    thread = threading.Thread(target=mdb.save if amid == "save" else lambda: mdb.upsert(B))
    refused = []

    def handler():
        thread.start()
        wait_until(lambda: mdb._log.lock.depth)
        with pytest.raises(microdb.ReentrantError, match="let it return first"):
            act(other if by_another_handle else mdb)
        refused.append(True)

    before_reading(mdb, faulty, None, handled_by(handler))
    assert table(mdb) == {"a": 1}
    thread.join()
    assert refused
    act(mdb)
    assert table(mdb) == table(other)


def test_a_signal_handler_amid_a_read_may_write_while_a_save_waits_for_the_reader_and_not_save(open_db, handled_by):
    faulty = Faulty()
    mdb, other = open_db(files=faulty), open_db()
    other.upsert(A)
    thread = threading.Thread(target=mdb.save)
    handled = []

    def handler():
        thread.start()
        wait_until(lambda: mdb._log.lock.savers)
        with pytest.raises(microdb.ReentrantError, match="let it return first"):
            mdb.save()
        other.upsert(B)
        handled.append(True)

    before_reading(mdb, faulty, None, handled_by(handler))
    table(mdb)
    thread.join()
    assert handled
    assert table(mdb) == {"a": 1, "b": 2}


def test_a_signal_handler_amid_a_read_cannot_close_a_handle_whose_automatic_save_waits_for_the_reader(
    open_db, handled_by
):
    faulty = Faulty()
    mdb, other = open_db(files=faulty, auto_save_bytes=1), open_db()
    other.upsert(A)
    refused = []

    def handler():
        mdb._auto_save.consider(1 << 30, mdb)
        with pytest.raises(microdb.ReentrantError, match="let it return first"):
            mdb.close()
        refused.append(True)

    before_reading(mdb, faulty, None, handled_by(handler))
    assert table(mdb) == {"a": 1}
    assert refused
    mdb.close()


@pytest.mark.parametrize("is_let_go", [False, True], ids=["before the files are let go of", "after that"])
def test_an_interrupt_within_close_leaves_the_handle_closed_and_nobody_present(mdb, wal, monkeypatch, is_let_go):
    let_go, interrupted = mdb._log.close, once(interrupt)

    def close():
        if is_let_go:
            let_go()
        interrupted()
        let_go()

    monkeypatch.setattr(mdb._log, "close", close)
    with pytest.raises(KeyboardInterrupt) as caught:
        mdb.close()
    with pytest.raises(microdb.ClosedError):
        mdb.get(("a",))
    mdb.close()
    if wal.header.exists():
        assert is_alone(OS.open(str(wal.header), write=True))
    assert caught.tb, "it refers to all that it went through, so that nothing was let go of by being forgotten"


# Damage that a checksum does not see.


@pytest.mark.parametrize("payload", [b"\xc1", b"\x91\x91\x03", b"\x01"], ids=["not msgpack", "no change", "no list"])
@pytest.mark.parametrize("read_only", [False, True])
def test_a_sound_frame_that_holds_no_changes_is_refused_and_named(ten, open_db, payload, read_only):
    ten.forget_boot()
    append_payload(ten, payload)
    with ten.log().open("ab") as file:
        file.write(b"\0\0\0")  # A torn tail, which is not cut either.
    before = {file.name: file.read_bytes() for file in ten.folder.iterdir()}
    with pytest.raises(microdb.CorruptError, match="a frame whose crc is right holds no changes") as caught:
        open_db(read_only=read_only)
    assert caught.value.path == str(ten.log())
    found = {file.name: file.read_bytes() for file in ten.folder.iterdir()}
    assert found | {"header": None} == before | {"header": None}
    assert not any(found.get("header", b"")), "a new page, which says nothing"


def test_a_table_in_memory_has_nothing_to_be_synced(open_db):
    mdb = open_db(":memory:")
    mdb.upsert({"id": 1})
    mdb.sync()
    assert mdb[1,] == {"id": 1}


def test_who_meets_damage_in_a_read_amid_its_write_writes_no_more(behind, wal):
    mdb, _, _ = behind
    at, length = wal.frames()[1]
    overwrite(wal.log(), at + length - 6, bytes([wal.log().read_bytes()[at + length - 6] ^ 1]))
    append = mdb._log.append

    def after_a_read(*args, **options):
        with pytest.raises(microdb.CorruptError, match="the crc is wrong"):
            in_thread(lambda: mdb.get(("a",)))
        return append(*args, **options)

    mdb._log.append = after_a_read
    mdb.upsert({"id": "d"})
    mdb._log.append = append
    size = wal.log().stat().st_size
    with pytest.raises(microdb.CorruptError, match="the crc is wrong"):
        mdb.upsert({"id": "e"})
    assert wal.log().stat().st_size == size


def test_who_is_closed_as_it_looks_at_its_files_is_told_that(open_db):
    mdb = open_db()
    prepare = mdb._log.prepare

    def closed_before(*_):
        mdb._close()
        mdb._log._look_at_s = 0
        prepare()

    mdb._log.prepare = closed_before
    with pytest.raises(microdb.ClosedError):
        mdb.upsert(A)


def test_a_reader_that_begins_to_follow_waits_for_nobody(path, open_db):
    path.write_text('[{"id": "a", "n": 1}]')
    reader = open_db(read_only=True)
    assert reader["a",] == A
    mdb = open_db()
    with mdb.lock():
        assert in_thread(lambda: reader.get(("a",))) == A
        mdb.upsert(B)
        assert in_thread(lambda: reader["b",]) == reader["b",] == B
        assert forked(lambda: reader["b",]) == 0
    mdb.close()
    open_db().upsert({"id": "c"})
    assert list(reader) == [("a",), ("b",), ("c",)]


def test_who_interrupts_a_read_of_one_that_came_to_follow_waits_for_no_writer(path, open_db):
    path.write_text('[{"id": "a", "n": 1}]')
    reader, mdb = open_db(read_only=True), open_db()
    assert reader["a",] == A
    with held_elsewhere(mdb.lock()), reader._table_lock, pytest.raises(microdb.ReentrantError):
        mdb.upsert(B)
