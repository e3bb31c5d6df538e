"""Clocks ten years ahead, behind, going back and forth, or standing still, and wrong file times: no difference."""

import json
import os
import signal
import time

import pytest

import microdb
from crash.clocks import CLOCKS, TEN_YEARS_S, WAIT_S, Process, build
from walfiles import Wal


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return build(tmp_path_factory.mktemp("clock"))


@pytest.fixture
def run(library, path):
    """Start a process with a clock of its own."""
    started = []

    def _run(clock):
        started.append(Process(library, clock, path))
        return started[-1]

    yield _run
    for process in started:
        process.kill()


def is_wrong(clock, told):
    """Whether a process really sees the clock that it was given."""
    first, second, monotonic, later = told
    off = [abs(one - time.time()) > TEN_YEARS_S / 2 for one in (first, second)]
    if clock == "frozen":
        return first == second and monotonic == later
    return all(off) and monotonic <= later and (clock != "mad" or abs(first - second) > TEN_YEARS_S)


def ten_years_off(path, sign):
    """Give the snapshot and every file of its log times that are wrong."""
    at = time.time() + sign * TEN_YEARS_S
    for file in [path, *Wal(path).folder.iterdir()]:
        if file.exists():
            os.utime(file, (at, at))


@pytest.mark.parametrize("clock", CLOCKS)
def test_a_process_with_a_wrong_clock_works_beside_one_with_a_right_one(run, open_db, path, clock):
    odd, mdb = run(clock), open_db()
    assert is_wrong(clock, odd.do("clock"))
    assert odd.do("open", {"auto_save_bytes": 2_000})
    expected = {}
    for n in range(40):
        for write in (mdb.upsert, lambda record: odd.do("upsert", record)):
            record = {"id": n % 7, "n": n, "text": "x" * 50}
            write(record)
            expected[n % 7,] = record
        if n % 10 == 5:
            odd.do("save") if n % 20 == 5 else mdb.save()
        assert odd.do("records") == list(mdb.all()) == list(expected.values())
    assert odd.do("stats")[0] >= 4, "saves"
    assert list(open_db(filename=path).all()) == list(expected.values())


@pytest.mark.parametrize("clock", CLOCKS)
def test_what_a_wrong_clock_left_is_recovered_edited_and_cleaned_up_by_whatever_clock(run, path, clock):
    odd = run(clock)
    assert odd.do("open", {})
    for n in range(5):
        odd.do("upsert", {"id": n})
    odd.do("save")
    odd.do("upsert", {"id": 5})
    odd.kill()
    wal = Wal(path)
    with wal.log(2).open("ab") as log:
        log.write(b"torn" * 9)
    (wal.folder / "1-0000000000000000.save.tmp").write_bytes(b"left by a dead saver")
    ten_years_off(path, 1 if clock.startswith("-") else -1)
    again = run(clock)
    assert again.do("open", {})
    assert [record["id"] for record in again.do("records")] == list(range(6))
    assert again.do("stats")[1] == 1, "the torn tail was cut"
    assert not list(wal.folder.glob("*.tmp"))
    again.do("save")
    again.kill()
    edited = [*json.loads(path.read_text()), {"id": "by hand"}]
    path.write_text(json.dumps(edited))
    ten_years_off(path, 1)
    with microdb.MicroDB(path, ["id"]) as mdb:
        assert list(mdb.all()) == edited


@pytest.mark.parametrize("sign", [1, -1])
def test_files_whose_times_are_ten_years_off_are_read_written_and_saved(open_db, path, sign):
    mdb, other = open_db(), open_db()
    for n in range(4):
        mdb.upsert({"id": n})
        ten_years_off(path, sign)
        other.upsert({"id": -n - 1})
        ten_years_off(path, -sign)
        other.save()
    ten_years_off(path, sign)
    assert list(mdb.all()) == list(other.all()) == list(open_db().all())
    assert len(mdb) == 8


def test_an_edit_that_leaves_size_and_time_as_they_were_is_noticed_by_a_save(open_db, path):
    mdb = open_db()
    mdb.upsert({"id": "a", "n": 1})
    mdb.save()
    before = path.stat()
    path.write_text(path.read_text().replace('"n":1', '"n":2'))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    mdb.upsert({"id": "b"})
    with pytest.raises(microdb.ConflictError):
        mdb.save()


@pytest.mark.parametrize("clock", CLOCKS)
def test_a_wait_for_a_lock_does_not_depend_on_the_time_of_day(run, open_db, clock):
    """A time-out is one of the monotonic clock. Where that stands still none ever comes, but the lock does; and a
    time-out of 0 needs no clock."""
    odd, mdb = run(clock), open_db(timeout=WAIT_S)
    assert odd.do("open", {})
    with mdb.lock():
        assert odd.do("enter", 0) == {"error": "LockTimeoutError"}
        if clock != "frozen":
            began = time.monotonic()
            assert odd.do("enter", 0.1) == {"error": "LockTimeoutError"}
            assert time.monotonic() - began < WAIT_S / 2
        odd.begin("enter", WAIT_S)
    assert odd.end() is True
    with pytest.raises(microdb.LockTimeoutError), mdb.lock(timeout=0):
        pass
    odd.do("upsert", {"id": "odd"})
    odd.do("leave")
    mdb.upsert({"id": "mine"})
    assert odd.do("records") == list(mdb.all()) == [{"id": "odd"}, {"id": "mine"}]


def test_a_record_expires_by_the_clock_of_who_looks_and_is_gone_for_all_once_one_of_them_saves(run, open_db):
    ahead, behind, mdb = run(f"+{TEN_YEARS_S}"), run(f"-{TEN_YEARS_S}"), open_db()
    assert ahead.do("open", {}) is behind.do("open", {}) is True
    mdb.upsert({"id": "brief"}, ttl=1_000)
    mdb.upsert({"id": "long"}, ttl=2 * TEN_YEARS_S)
    every = [{"id": "brief"}, {"id": "long"}]
    assert [ahead.do("records"), list(mdb.all()), behind.do("records")] == [every[1:], every, every]
    assert behind.do("save") is None
    assert [ahead.do("records"), list(mdb.all()), behind.do("records")] == [every[1:], every, every]
    assert ahead.do("save") is None
    assert [ahead.do("records"), list(mdb.all()), behind.do("records")] == [every[1:]] * 3


@pytest.mark.long
@pytest.mark.timeout(600)
def test_processes_whose_clocks_all_differ_lose_nothing_while_some_are_killed(library, path, seed):
    """About a minute: four clocks write and save by turns, each is killed and started anew again and again."""
    expected, kills = {}, 0
    processes = {}
    for n in range(4_000):
        clock = CLOCKS[(n * 7 + seed) % len(CLOCKS)]
        if clock not in processes:
            processes[clock] = Process(library, clock, path)
            assert processes[clock].do("open", {"auto_save_bytes": 20_000}) is True
        record = {"id": n % 50, "n": n}
        assert processes[clock].do("upsert", record) is None
        expected[n % 50] = record
        if n % 40 == 0:
            assert processes[clock].do("save") is None
        if n % 97 == 0:
            os.kill(processes[clock]._process.pid, signal.SIGKILL)
            processes.pop(clock).kill()
            ten_years_off(path, 1 if n % 2 else -1)
            kills += 1
    for process in processes.values():
        assert {record["id"]: record for record in process.do("records")} == expected
        process.kill()
    with microdb.MicroDB(path, ["id"]) as mdb:
        assert {record["id"]: record for record in mdb.all()} == expected
    print(f"figures: 4,000 writes by four wrong clocks, {kills} kills, 0 missing")
