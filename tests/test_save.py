"""Saving: others go on meanwhile, the log is compacted, and an error changes nothing."""

import json
import logging
import os
import threading

import pytest

import microdb
from children import forked
from faulty import Faulty, fail, in_thread, only, save_that_waits
from microdb import save as save_module
from microdb import snapshot
from microdb.files import OS
from microdb.save import save
from microdb.wal import log_file
from microdb.wal.format import GENERATION_MAX, NO_SNAPSHOT
from microdb.wal.log_file import create_log
from microdb.wal.reader import find_frame

A = {"id": "a", "n": 1}
B = {"id": "b", "n": 2}


@pytest.fixture
def faulty():
    return Faulty()


def listing(path):
    return sorted(file.name for file in (path.parent / (path.name + ".wal")).iterdir())


def test_a_save_begins_a_new_log_and_keeps_the_old_one_as_history(open_db, path):
    mdb = open_db()
    mdb.upsert_many([A, B])
    mdb.save()
    stats = mdb.stats()
    assert (stats.generation, stats.saves, stats.records) == (2, 1, 2)
    assert stats.snapshot_bytes == path.stat().st_size
    assert listing(path) == ["0000000001.history", "0000000002.log", "header", "lock", "save.lock"]
    assert json.loads(path.read_text()) == [A, B]


def test_a_database_of_the_last_generation_refuses_to_save_and_works_on(open_db, path, wal, tmp_path):
    open_db().close()
    for file in wal.folder.glob("*.log"):
        file.unlink()
    wal.forget_boot()
    create_log(
        str(wal.log(GENERATION_MAX)),
        OS,
        generation=GENERATION_MAX,
        base_sequence=0,
        bound_to=NO_SNAPSHOT,
        partition_keys=("id",),
    )
    mdb = open_db()
    mdb.upsert(A)
    before = listing(path)
    with pytest.raises(microdb.StorageError, match="no log follows generation 268435455") as caught:
        mdb.save()
    assert caught.value.path.startswith(str(wal.folder))
    assert (path.exists(), listing(path)) == (False, sorted({*before, "save.lock"}))
    mdb.upsert(B)
    assert list(open_db().all()) == [A, B]
    mdb.save(tmp_path / "elsewhere.json")
    assert list(open_db(tmp_path / "elsewhere.json").all()) == [A, B]


def test_history_is_deleted_above_its_bound_oldest_first(open_db, path):
    mdb = open_db()
    for n in range(3):
        mdb.upsert({"id": n, "text": "x" * (6 << 20)})
        mdb.save()
    assert [name for name in listing(path) if name.endswith("history")] == ["0000000002.history", "0000000003.history"]


def test_a_reader_that_was_far_behind_goes_on_across_saves(open_db):
    mdb, reader = open_db(), open_db()
    for n in range(5):
        mdb.upsert({"id": n})
        mdb.save()
        mdb.delete((n - 1,))
    loads = []
    reader._log.load = lambda: loads.append(1)
    assert list(reader) == list(mdb)
    assert not loads, "by history, without a reload"


def test_a_reader_whose_history_is_gone_loads_anew(open_db, path):
    mdb, reader = open_db(), open_db()
    for n in range(3):
        mdb.upsert({"id": n})
        mdb.save()
    for name in listing(path):
        if name.endswith("history"):
            os.unlink(f"{path}.wal/{name}")
    mdb.upsert({"id": "last"})
    reader._log.generations.last = None
    assert list(reader) == list(mdb)


def test_writers_go_on_while_a_save_writes_and_nothing_of_theirs_is_lost(open_db, faulty):
    mdb, other = open_db(files=faulty), open_db()
    mdb.upsert(A)
    with save_that_waits(mdb, faulty):
        other.upsert(B)
        other.delete(("a",))
        mdb.upsert({"id": "c"})
    assert list(mdb) == list(other) == [("b",), ("c",)]
    assert mdb.stats().generation == 2
    mdb.close()
    other.close()
    assert list(open_db()) == [("b",), ("c",)]


def test_a_save_inside_a_lock_waits_for_no_other_and_makes_the_other_give_up(open_db, faulty):
    mdb, other = open_db(files=faulty), open_db()
    mdb.upsert(A)
    with save_that_waits(mdb, faulty), other.lock():
        other.upsert(B)
        other.save()
    stats = mdb.stats()
    assert (stats.generation, stats.saves, stats.records) == (2, 1, 2)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        ("create", ".tmp"),
        ("write_at", ".tmp"),
        ("sync", ".tmp"),
        ("rename", ".log"),
        ("sync_folder", ".wal"),
        ("rename", "mdb.json"),
    ],
)
def test_a_save_that_fails_changes_nothing(open_db, path, faulty, call, name):
    mdb, other = open_db(files=faulty), open_db()
    mdb.upsert(A)
    mdb.save()
    mdb.upsert(B)
    before = path.read_bytes()
    faulty.on[call] = only(name)
    with pytest.raises(OSError, match="made to fail"):
        mdb.save()
    faulty.on.clear()
    assert path.read_bytes() == before
    assert mdb.stats().generation == 2
    assert listing(path) == ["0000000001.history", "0000000002.log", "header", "lock", "save.lock"]
    assert list(mdb) == list(other) == [("a",), ("b",)]
    other.upsert({"id": "c"})
    mdb.upsert({"id": "d"})
    mdb.save()
    expected = [("a",), ("b",), ("c",), ("d",)]
    assert list(mdb) == list(other) == expected
    mdb.close()
    other.close()
    assert list(open_db()) == expected


def test_a_log_that_cannot_become_history_does_not_fail_the_save(open_db, path, faulty, caplog):
    mdb = open_db(files=faulty)
    mdb.upsert(A)
    faulty.on["rename"] = only(".history")
    mdb.save()
    assert "0000000001.log" in listing(path)
    assert "made to fail" in caplog.text
    mdb.upsert(B)
    mdb.close()
    mdb = open_db()
    assert list(mdb) == [("a",), ("b",)]
    assert "0000000001.history" in listing(path)


def test_after_the_last_fsync_of_a_save_failed_the_next_write_saves_again(open_db, path, faulty):
    mdb = open_db(files=faulty)
    mdb.upsert(A)
    faulty.on["sync_folder"] = only(str(path.parent))
    with pytest.raises(OSError, match="made to fail"):
        mdb.save()
    assert mdb.stats().generation == 2
    with pytest.raises(microdb.FailedError, match="reads go on"):
        mdb.upsert(B)
    assert list(mdb) == [("a",)]
    faulty.on.clear()
    generation = mdb.stats().generation
    mdb.upsert(B)
    assert mdb.stats().generation > generation
    assert mdb.stats().repairs == 0, "nobody has died"
    assert list(open_db()) == [("a",), ("b",)]


def test_a_signal_handler_that_writes_as_a_save_puts_its_files_in_place_is_refused(open_db, faulty):
    mdb = open_db(files=faulty)
    mdb.upsert(A)
    refused = []

    def handler(_):
        with pytest.raises(microdb.ReentrantError):
            mdb.upsert(B)
        refused.append(1)

    faulty.on["rename"] = only("mdb.json", handler)
    mdb.save()
    assert (refused, list(mdb), list(open_db())) == ([1], [("a",)], [("a",)])


def test_after_a_save_inside_a_lock_one_may_write_on(open_db):
    mdb = open_db()
    with mdb.lock():
        mdb.upsert(A)
        mdb.save()
        mdb.upsert(B)
    assert list(mdb) == list(open_db()) == [("a",), ("b",)]


def test_a_failed_fsync_of_a_write_poisons_the_generation_until_a_save(open_db, faulty):
    mdb, other = open_db(files=faulty, durability="power"), open_db()
    mdb.upsert(A)
    faulty.on["sync_data"] = fail
    with pytest.raises(OSError, match="made to fail"):
        mdb.upsert(B)
    assert list(mdb) == list(other) == [("a",)]
    generation = mdb.stats().generation
    faulty.on.clear()
    other.upsert({"id": "c"})
    assert other.stats().generation == generation + 1, "never a second fsync that says it is good"
    mdb.upsert(B)
    assert list(mdb) == list(other) == [("a",), ("c",), ("b",)]


def test_while_no_save_succeeds_a_poisoned_store_is_read_only_and_says_so(open_db, faulty):
    mdb = open_db(files=faulty, durability="power")
    mdb.upsert(A)
    faulty.on["sync_data"] = faulty.on["sync"] = fail
    with pytest.raises(OSError, match="made to fail"):
        mdb.upsert(B)
    for _ in range(2):
        with pytest.raises(microdb.FailedError, match="an earlier write to the disk failed"):
            mdb.upsert(B)
    assert mdb["a",] == A
    faulty.on.clear()
    mdb.upsert(B)
    assert list(mdb) == [("a",), ("b",)]


def test_a_failed_sync_raises_and_the_next_write_saves(open_db, faulty):
    mdb = open_db(files=faulty)
    mdb.upsert(A)
    faulty.on["sync_data"] = fail
    with pytest.raises(OSError, match="made to fail"):
        mdb.sync()
    faulty.on.clear()
    mdb.upsert(B)
    assert mdb.stats().generation == 2


def test_a_write_that_fails_leaves_the_log_as_it_was(open_db, path, faulty):
    mdb, other = open_db(files=faulty), open_db()
    mdb.upsert(A)
    log = path.parent / "mdb.json.wal" / "0000000001.log"
    before = log.read_bytes()
    faulty.on["write_at"] = fail
    with pytest.raises(OSError, match="made to fail"):
        mdb.upsert(B)
    assert log.read_bytes() == before
    assert list(mdb) == list(other) == [("a",)]
    faulty.on.clear()
    mdb.upsert(B)
    assert list(other) == [("a",), ("b",)]


def test_a_write_whose_undoing_fails_too_is_undone_by_the_next_writer(open_db, path, faulty):
    mdb, other = open_db(files=faulty, durability="power"), open_db()
    mdb.upsert(A)
    faulty.on["sync_data"] = faulty.on["truncate"] = fail
    with pytest.raises(OSError, match="made to fail"):
        mdb.upsert(B)
    assert list(other) == [("a",)]
    faulty.on.clear()
    other.upsert({"id": "c"})
    assert list(mdb) == [("a",), ("c",)]
    assert mdb.stats().repairs == 1
    mdb.close()
    other.close()
    assert list(open_db()) == [("a",), ("c",)]


def test_with_power_durability_each_write_is_fsynced_before_it_is_published(open_db, faulty):
    mdb, other = open_db(files=faulty, durability="power"), open_db()
    seen = []
    faulty.on["sync_data"] = lambda _: seen.append(len(other))
    mdb.upsert(A)
    mdb.upsert_many([B, {"id": "c"}])
    assert seen == [0, 1]
    assert len(other) == 3


def test_with_process_durability_no_write_is_fsynced_and_sync_does_it(open_db, faulty):
    mdb = open_db(files=faulty)
    faulty.calls.clear()
    mdb.upsert(A)
    assert "sync_data" not in dict(faulty.calls)
    mdb.sync()
    assert "sync_data" in dict(faulty.calls)


def test_a_save_refuses_when_the_snapshot_was_edited_meanwhile(open_db, path, tmp_path):
    mdb = open_db()
    mdb.upsert(A)
    mdb.save()
    sound = path.read_bytes()
    path.write_text("[]")
    mdb.upsert(B)
    with pytest.raises(microdb.ConflictError, match=r"save\(another_filename\)"):
        mdb.save()
    assert path.read_text() == "[]"
    mdb.save(tmp_path / "kept.json")
    assert json.loads((tmp_path / "kept.json").read_text()) == [A, B]
    path.write_bytes(sound)
    mdb.save()
    assert json.loads(path.read_text()) == [A, B]


def test_an_edit_between_draft_and_switch_is_noticed(open_db, path, faulty):
    mdb = open_db(files=faulty)
    mdb.upsert(A)
    mdb.save()
    faulty.on["sync"] = only(".tmp", lambda _: path.write_text("[]"))
    with pytest.raises(microdb.ConflictError):
        mdb.save()
    assert path.read_text() == "[]"
    assert mdb.stats().generation == 2


def test_a_grid_that_cannot_be_is_refused_before_anything_is_written(open_db, path):
    mdb = open_db()
    mdb.upsert_many([A, {"id": "b"}])
    before = listing(path)
    with pytest.raises(microdb.GridError, match="lacks 'n'"):
        mdb.save_as_grid()
    assert not path.exists()
    assert listing(path) in (before, [*before, "save.lock"])


def test_saving_over_another_database_is_refused(open_db, tmp_path):
    mdb, other = open_db(), open_db(tmp_path / "other.json")
    other.upsert(A)
    with pytest.raises(microdb.ConflictError, match="another database"):
        mdb.save(tmp_path / "other.json")
    assert list(other) == [("a",)]


def test_saving_to_its_own_name_by_another_spelling_is_a_save(open_db, path, monkeypatch):
    monkeypatch.chdir(path.parent)
    mdb = open_db()
    mdb.upsert(A)
    mdb.save("./mdb.json")
    assert mdb.stats().generation == 2


def test_a_new_snapshot_keeps_the_permissions_of_the_old_one(open_db, path):
    mdb = open_db()
    mdb.save()
    path.chmod(0o640)
    mdb.upsert(A)
    mdb.save()
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_save_that_waits_for_another_gives_up_in_time(open_db, faulty):
    mdb, other = open_db(files=faulty), open_db()
    mdb.upsert(A)
    with save_that_waits(mdb, faulty):
        with pytest.raises(microdb.LockTimeoutError) as caught:
            other.save(timeout=0.05)
        assert caught.value.path.endswith("save.lock")


def test_the_log_is_saved_by_itself_when_it_has_outgrown_its_bound(open_db, path):
    mdb = open_db(auto_save_bytes=20_000)
    for n in range(2_000):
        mdb.upsert({"id": n % 10, "text": "x" * 100})
        if n % 500 == 499:
            mdb._auto_save.wait()  # A save is not always faster than those who write on meanwhile.
    mdb.close()
    again = open_db()
    assert len(again) == 10
    stats = again.stats()
    assert stats.saves >= 1
    assert stats.log_bytes < 200_000
    assert json.loads(path.read_text())


def test_auto_save_can_be_turned_off(open_db):
    mdb = open_db(auto_save=False, auto_save_bytes=1_000)
    for n in range(100):
        mdb.upsert({"id": n, "text": "x" * 100})
    assert mdb.stats().saves == 0
    assert mdb._auto_save._thread is None


def test_an_automatic_save_keeps_the_form_of_the_snapshot_while_it_can(open_db, path):
    mdb = open_db(auto_save_bytes=2_000)
    mdb.upsert(A)
    mdb.save_as_grid()
    for n in range(100):
        mdb.upsert({"id": "a", "n": n})
    mdb._auto_save.wait()
    assert json.loads(path.read_text())[0] == ["id", "n"]
    saves = mdb.stats().saves
    mdb.upsert({"id": "no n"})
    while mdb.stats().saves == saves:
        mdb.upsert(A)
    mdb._auto_save.wait()
    assert isinstance(json.loads(path.read_text())[0], dict)


def test_a_failed_automatic_save_is_logged_and_the_writer_goes_on(open_db, faulty, caplog):
    mdb = open_db(files=faulty, auto_save_bytes=1_000)
    faulty.on["create"] = fail
    with caplog.at_level(logging.WARNING, "microdb"):
        for n in range(50):
            mdb.upsert({"id": n, "text": "x" * 100})
        mdb._auto_save.wait()
    assert "the automatic save failed" in caplog.text
    assert len(mdb) == 50
    faulty.on.clear()
    for n in range(50):
        mdb.upsert({"id": n, "text": "x" * 100})
    mdb._auto_save.wait()
    assert mdb.stats().saves >= 1


def die(*_):
    os._exit(9)


@pytest.mark.parametrize("call", ["create", "write_at", "sync", "rename", "sync_folder", "open"])
@pytest.mark.parametrize("survivor", [True, False])
def test_a_saver_that_dies_at_any_step_loses_nothing(open_db, path, call, survivor):
    """Die at the first, second, … such call of a save, until a save makes no more; with others alive or alone."""
    for step in range(50):
        other = open_db() if survivor else None
        mdb = other or open_db()
        mdb.upsert({"id": step})
        expected = list(mdb)
        if not survivor:
            mdb.close()

        def child(step=step):
            faulty = Faulty()
            mdb = microdb.MicroDB(path, ["id"], files=faulty)
            left = [step]

            def count_down(_):
                left[0] -= 1
                if left[0] < 0:
                    die()

            faulty.on[call] = count_down
            mdb.save()

        code = forked(child)
        mdb = other or open_db()
        assert list(mdb) == expected
        mdb.upsert({"id": f"after {step}"})
        mdb.save()
        assert len(mdb) == len(expected) + 1
        mdb.close()
        again = open_db()
        assert list(again) == [*expected, (f"after {step}",)]
        again.close()
        if code == 0:
            assert step > 0
            return
        assert code == 9
    raise AssertionError("a save makes fewer calls than that")


def test_threads_that_wait_for_the_disk_share_its_fsyncs(open_db, faulty):
    mdb = open_db(files=faulty, durability="power")
    barrier = threading.Barrier(16)

    def write(number):
        barrier.wait()
        for n in range(20):
            mdb.upsert({"id": (number, n)})

    faulty.on["sync_data"] = lambda _: threading.Event().wait(0.002)  # A disk of that speed.
    faulty.calls.clear()
    threads = [threading.Thread(target=write, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    fsyncs = [name for name, _ in faulty.calls].count("sync_data")
    assert len(mdb) == mdb.stats().sequence == 320
    assert fsyncs < 320


def test_a_save_makes_all_durable_before_it_is_in_place_and_its_place_before_it_is_published(open_db, path, faulty):
    mdb, other = open_db(files=faulty), open_db()
    mdb.upsert(A)
    published = []
    faulty.on["sync_folder"] = lambda _: published.append(other.stats().generation)
    faulty.calls.clear()
    mdb.save()
    steps = [
        (name, base if not base.endswith(".tmp") else "aside")
        for name, base in faulty.calls
        if name in ("sync", "sync_data", "sync_folder", "rename")
    ]
    assert steps == [
        ("sync", "aside"),  # The snapshot.
        ("sync_data", "0000000001.log"),
        ("sync", "aside"),  # The new log.
        ("sync_data", "0000000001.log"),
        ("rename", "0000000002.log"),
        ("sync_folder", "mdb.json.wal"),
        ("rename", "mdb.json"),
        ("sync_folder", path.parent.name),
        ("rename", "0000000001.history"),
    ]
    assert published == [1, 1]
    assert other.stats().generation == 2


def test_the_first_to_open_makes_durable_what_a_dead_process_could_not(open_db, path, faulty):
    path.write_text('[{"id": "by hand"}]')
    open_db(files=faulty)
    steps = [call for call in faulty.calls if call[0] in ("sync", "sync_folder", "rename")]
    assert ("sync_folder", path.parent.name) in steps
    assert steps.index(("sync", "mdb.json")) < steps.index(("rename", "0000000001.log"))
    assert steps[-1] == ("sync_folder", "mdb.json.wal")


def test_a_reader_sees_all_after_a_saver_died_between_its_two_renames(open_db, path):
    mdb = open_db()
    mdb.upsert(A)
    mdb.save()
    mdb.upsert(B)

    def child():
        faulty = Faulty()
        saver = microdb.MicroDB(path, ["id"], files=faulty)
        faulty.on["sync_folder"] = only(str(path.parent), die)
        saver.save()

    assert forked(child) == 9
    assert json.loads(path.read_text()) == [A, B], "the snapshot is in place, and not published"
    reader = open_db(read_only=True)
    assert list(reader) == [("a",), ("b",)]
    opener = open_db()
    assert list(opener) == [("a",), ("b",)]
    mdb.upsert({"id": "c"})
    assert list(reader) == list(opener) == list(mdb) == [("a",), ("b",), ("c",)]
    assert mdb.stats().repairs == 1


def test_a_write_that_was_taken_along_before_its_time_was_up_is_no_timeout(open_db, faulty):
    mdb = open_db(files=faulty, durability="power", timeout=0.3)
    results = {}

    def write(name):
        try:
            results[name] = mdb.upsert({"id": name})
        except microdb.LockTimeoutError as error:
            results[name] = error

    faulty.on["sync_data"] = lambda _: threading.Event().wait(1)  # A disk slower than the time-out.
    threads = [threading.Thread(target=write, args=(name,)) for name in "xy"]
    with mdb.lock():
        for thread in threads:
            thread.start()
        while len(mdb._commits.waiting) < 2:
            threading.Event().wait(0.001)
    for thread in threads:
        thread.join()
    assert results == {"x": None, "y": None}
    assert sorted(mdb) == [("x",), ("y",)]


def second(act):
    """Act at the second call on an unfinished file, which is the new log: the snapshot comes before it."""
    seen = []
    return only(".tmp", lambda path: act(path) if seen.append(1) or len(seen) == 2 else None)


def locked_save(mdb):
    with mdb.lock():
        mdb.upsert(B)
        mdb.save()


def test_a_save_whose_log_was_saved_over_and_thrown_away_meanwhile_gives_up(open_db, path, faulty):
    mdb, other = open_db(files=faulty), open_db()
    mdb.upsert(A)
    with save_that_waits(mdb, faulty):
        for generation in (1, 2):
            locked_save(other)
            os.unlink(f"{path}.wal/{generation:010}.history")
    assert (mdb.stats().generation, mdb.stats().saves) == (3, 2)
    assert not [left for left in listing(path) if left.endswith(".tmp")]
    assert list(mdb) == list(other) == [("a",), ("b",)]


@pytest.fixture
def followed(open_db, faulty, monkeypatch):
    """A handle whose save follows the least that is written meanwhile, and another one."""
    monkeypatch.setattr(save_module, "_BEHIND_BYTES", 1)
    mdb, other = open_db(files=faulty), open_db()
    mdb.upsert(A)
    return mdb, other


def test_a_save_follows_those_who_write_meanwhile_before_it_makes_them_wait(open_db, faulty, followed):
    mdb, other = followed
    depths = []

    def write(_):
        depths.append(mdb._log.lock.depth)
        if not depths[-1]:
            other.upsert({"id": len(depths)})

    faulty.on["sync"] = only(".tmp", write)
    mdb.save()
    rounds = 2 + save_module._ROUNDS_MAX
    assert depths == [0] * rounds + [1], "then those who write on have to wait"
    assert list(mdb) == list(other) == [("a",), *[(n,) for n in range(1, rounds + 1)]]
    mdb.close()
    other.close()
    assert len(open_db()) == rounds + 1


@pytest.mark.parametrize(("more", "is_followed"), [(0, True), (1, False)])
def test_a_save_lets_its_new_log_be_less_than_so_many_bytes_behind(open_db, faulty, monkeypatch, more, is_followed):
    mdb, other = open_db(files=faulty), open_db()
    mdb.upsert({"id": "long", "what": "x" * 5_000})
    begin = mdb.log_bytes()
    mdb.upsert(A)
    monkeypatch.setattr(save_module, "_BEHIND_BYTES", mdb.log_bytes() - begin + more)
    faulty.on["sync"] = second(lambda _: other.upsert(B))  # The first is that of the snapshot.
    mdb.save()
    assert faulty.calls.count(("sync_data", "0000000001.log")) == 2 + is_followed
    assert list(mdb) == list(other) == [("long",), ("a",), ("b",)]


def test_a_save_that_is_overtaken_before_it_follows_gives_up(faulty, followed):
    mdb, other = followed

    def overtake(_):
        in_thread(lambda: locked_save(other))
        in_thread(lambda: other.upsert({"id": "long", "what": "x" * 5_000}))

    faulty.on["sync"] = second(overtake)
    mdb.save()
    assert (mdb.stats().generation, mdb.stats().saves) == (2, 1)
    assert list(mdb) == list(other) == [("a",), ("b",), ("long",)]


def test_who_follows_a_save_is_not_misled_by_a_record_that_holds_a_copy_of_a_log(open_db, path, faulty, monkeypatch):
    mdb, other = open_db(files=faulty), open_db()
    mdb.upsert(A)
    with save_that_waits(mdb, faulty):
        other.upsert(B)
        assert ("a",) in other
    copy = (path.parent / "mdb.json.wal" / "0000000001.history").read_bytes()
    mdb.upsert({"id": "copy", "log": copy})
    monkeypatch.setattr(log_file, "_SEARCH_BYTES", (len(copy),))
    found = []
    monkeypatch.setattr(
        log_file, "find_frame", lambda *args, **how: found.append(find_frame(*args, **how)) or found[-1]
    )
    assert other["copy",]["log"] == copy
    assert found[0] is not None
    assert list(other) == list(mdb) == [("a",), ("b",), ("copy",)]


def test_a_save_whose_handle_is_closed_as_it_begins_is_refused(open_db, path):
    mdb = open_db()
    mdb.upsert(A)
    mdb.freshen = lambda: (mdb.close(), 0)[1]
    with pytest.raises(microdb.ClosedError):
        mdb.save()
    assert not path.exists()


def test_a_save_that_finds_its_table_half_done_builds_it_anew(open_db, path):
    mdb = open_db()
    mdb.upsert(A)
    mdb.freshen = lambda: (setattr(mdb, "_position", None), 0)[1]
    mdb.save()
    assert json.loads(path.read_text()) == [A]


def test_a_save_has_caught_up_before_it_makes_others_wait(open_db):
    mdb, other = open_db(), open_db()
    other.upsert(A)
    depths = []
    catch_up = mdb._apply
    mdb._apply = lambda *args: (depths.append(mdb._log.lock.depth), catch_up(*args))[1]
    mdb.save()
    assert depths == [0]


@pytest.mark.parametrize(("behind", "rounds"), [(100_000, 1), (1, save_module._ROUNDS_MAX)])
def test_a_save_catches_up_again_with_what_came_meanwhile_before_it_makes_others_wait(
    open_db, monkeypatch, behind, rounds
):
    monkeypatch.setattr(save_module, "_BEHIND_BYTES", behind)
    mdb, other = open_db(), open_db()
    other.upsert(A)
    depths = []
    catch_up = mdb._apply

    def write_meanwhile(*args):
        depths.append(mdb._log.lock.depth)
        if not depths[-1]:
            other.upsert({"id": len(depths)})
        return catch_up(*args)

    mdb._apply = write_meanwhile
    mdb.save()
    mdb._apply = catch_up
    assert depths == [0] * rounds + [1]
    assert list(mdb) == list(other) == [("a",), *[(n,) for n in range(1, rounds + 1)]]


def test_a_save_that_is_overtaken_as_it_follows_gives_up(faulty, followed):
    mdb, other = followed
    syncs = []

    def write(_):
        syncs.append(1)
        in_thread(lambda: other.upsert(B))
        if len(syncs) == 3:
            in_thread(lambda: locked_save(other))

    faulty.on["sync"] = only(".tmp", write)
    mdb.save()
    assert (len(syncs), mdb.stats().generation, mdb.stats().saves) == (3, 2, 1)
    assert list(mdb) == list(other) == [("a",), ("b",)]


def test_a_save_that_is_overtaken_when_its_files_are_written_gives_them_up(open_db, path, faulty):
    mdb, other = open_db(files=faulty), open_db()
    mdb.upsert(A)
    faulty.on["create"] = second(lambda _: in_thread(lambda: locked_save(other)))
    mdb.save()
    assert (mdb.stats().generation, mdb.stats().saves) == (2, 1)
    assert json.loads(path.read_text()) == [A, B]
    assert not [left for left in listing(path) if left.endswith(".tmp")]


def test_a_save_during_which_an_fsync_fails_changes_nothing_and_the_next_one_does(open_db, path, faulty):
    other_faulty = Faulty()
    mdb, other = open_db(files=faulty), open_db(files=other_faulty)
    mdb.upsert(A)
    other_faulty.on["sync_data"] = fail

    def sync(_):
        with pytest.raises(OSError, match="made to fail"):
            other.sync()

    faulty.on["create"] = second(sync)
    with pytest.raises(microdb.FailedError, match="an earlier fsync of it failed"):
        mdb.save()
    assert not path.exists()
    assert (mdb.stats().generation, mdb.stats().saves) == (1, 0)
    assert not [left for left in listing(path) if left.endswith(".tmp")]
    mdb.save()
    assert (mdb.stats().generation, mdb.stats().saves) == (2, 1)
    assert json.loads(path.read_text()) == [A]


@pytest.mark.parametrize("call", ["create", "write_at", "sync"])
def test_a_save_whose_log_cannot_be_written_leaves_no_file(open_db, path, faulty, call):
    mdb = open_db(files=faulty)
    mdb.upsert(A)
    faulty.on[call] = second(fail)
    with pytest.raises(OSError, match="made to fail"):
        mdb.save()
    faulty.on.clear()
    assert listing(path) == ["0000000001.log", "header", "lock", "save.lock"]
    assert not path.exists()
    mdb.save()
    assert json.loads(path.read_text()) == [A]


def saved(mdb):
    """What the save itself says: whether it was the one that did it."""
    return save(mdb, mdb._log, snapshot.encode_list, timeout_s=None, save_timeout_s=None)


@pytest.mark.parametrize("overtaken_at", ["its snapshot", "its log"])
def test_a_save_tells_whether_it_was_the_one_that_did_it(open_db, path, faulty, overtaken_at):
    mdb, other = open_db(files=faulty), open_db()
    mdb.upsert(A)
    assert saved(mdb)
    seen = []

    def overtake(_):
        seen.append(1)
        if len(seen) == (1 if overtaken_at == "its snapshot" else 2):
            in_thread(lambda: locked_save(other))

    faulty.on["create"] = overtake
    assert not saved(mdb)
    faulty.on.clear()
    assert saved(mdb)
    assert json.loads(path.read_text()) == [A, B]


def test_what_a_writer_left_that_died_during_a_save_is_repaired_by_it(open_db, path, faulty):
    mdb = open_db(files=faulty)
    mdb.upsert(A)

    def die_writing(_):
        def child():
            dying = Faulty()
            writer = microdb.MicroDB(path, ["id"], durability="power", files=dying)
            dying.on["sync_data"] = die
            writer.upsert(B)

        assert forked(child) == 9

    faulty.on["create"] = second(die_writing)
    mdb.save()
    assert (mdb.stats().repairs, mdb.stats().dirty_pid, mdb.stats().generation) == (1, None, 2)
    assert list(mdb.all()) == list(open_db().all()) == [A]


def test_what_others_write_during_a_save_is_on_the_disk_before_its_log_is_in_place(open_db, faulty):
    mdb, other = open_db(files=faulty), open_db()
    mdb.upsert(A)
    faulty.on["create"] = second(lambda _: in_thread(lambda: other.upsert(B)))
    faulty.calls.clear()
    mdb.save()
    names = [base for name, base in faulty.calls if name == "create"]
    steps = [name for name, base in faulty.calls if base == names[1] and name in ("write_at", "sync")]
    assert steps == ["write_at", "sync", "write_at", "sync"], "of the new log"
    places = [number for number, call in enumerate(faulty.calls) if call == ("sync", names[1])]
    assert places[-1] < faulty.calls.index(("rename", "0000000002.log"))
    assert list(other.all()) == [A, B]


def test_an_export_is_on_the_disk_with_its_name_when_it_returns(open_db, tmp_path, faulty):
    mdb = open_db(files=faulty)
    mdb.upsert(A)
    (tmp_path / "out").mkdir()
    faulty.calls.clear()
    mdb.save(tmp_path / "out" / "copy.json")
    steps = [(name, base if not base.endswith(".tmp") else "aside") for name, base in faulty.calls]
    steps = [step for step in steps if step[0] in ("sync", "sync_folder", "rename")]
    assert steps == [("sync", "aside"), ("rename", "copy.json"), ("sync_folder", "out")]


@pytest.mark.parametrize("call", ["write_at", "sync", "rename"])
def test_an_export_that_fails_leaves_no_file_and_the_old_one_as_it_was(open_db, tmp_path, faulty, call):
    mdb = open_db(files=faulty)
    mdb.upsert(A)
    target = tmp_path / "out" / "copy.json"
    target.parent.mkdir()
    target.write_text("old")
    faulty.on[call] = fail
    with pytest.raises(OSError, match="made to fail"):
        mdb.save(target)
    assert list(target.parent.iterdir()) == [target]
    assert target.read_text() == "old"


def test_a_save_removes_what_a_dead_one_left_and_nothing_of_one_that_goes_on(open_db, path, faulty):
    mdb, other = open_db(files=faulty), open_db()
    mdb.upsert(A)
    folder = path.parent / "mdb.json.wal"
    (folder / "1-dead.save.tmp").touch()
    with save_that_waits(mdb, faulty), other.lock():
        (folder / "1-dead.lock.tmp").touch()
        other.save()
        assert not (folder / "1-dead.lock.tmp").exists()
    assert not [left for left in listing(path) if left.endswith(".tmp")]


def test_a_file_that_a_save_has_written_is_gone_when_the_lock_behind_it_is_not_free_in_time(open_db, path, faulty):
    mdb, other = open_db(files=faulty), open_db()
    mdb.upsert(A)
    held, let_go = threading.Event(), threading.Event()

    def hold():
        with other.lock():
            held.set()
            assert let_go.wait(60)

    holder = threading.Thread(target=hold)

    def start(_):
        holder.start()
        assert held.wait(60)

    faulty.on["create"] = second(start)
    with pytest.raises(microdb.LockTimeoutError):
        mdb.save(timeout=0.01)
    assert listing(path) == ["0000000001.log", "header", "lock", "save.lock"]
    let_go.set()
    holder.join()
    faulty.on.clear()
    mdb.save(timeout=0.01)
    assert json.loads(path.read_text()) == [A]


def test_a_sync_after_a_failed_one_saves_and_then_all_is_on_the_disk(open_db, path, faulty):
    mdb, other = open_db(files=faulty), open_db()
    mdb.upsert(A)
    faulty.on["sync_data"] = fail
    with pytest.raises(OSError, match="made to fail"):
        mdb.sync()
    faulty.on.clear()
    other.sync()
    assert (mdb.stats().generation, json.loads(path.read_text())) == (2, [A])
    saves = mdb.stats().saves
    mdb.sync()
    assert mdb.stats().saves == saves
