"""Folders in the way, missing rights, full disks, files taken away, stopped processes, and very many at once."""

import errno
import os
import pathlib
import resource
import shutil
import subprocess
import tempfile
import types

import pytest

from bad_input_children import KEYS, Peer, contents, fill, place, put_back, records, refusal
from microdb import FailedError, LockTimeoutError, MicroDB, ReadOnlyError
from microdb.wal import file_log

ONE = {"job": 1, "who": "Bob"}
TWO = {"job": 2, "who": "Eve"}

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mdb.json"


@pytest.fixture
def written(path):
    with MicroDB(path, KEYS) as mdb:
        mdb.upsert(ONE)
        mdb.save()
        mdb.upsert(TWO)
    return path


@pytest.fixture
def public():
    """A folder that everybody may enter and write to."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="microdb-public-"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def disk(tmp_path):
    """A disk of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def later(monkeypatch):
    """Step the clock so that the next write looks whether the files are still there."""
    now = [file_log.time.monotonic()]
    monkeypatch.setattr(file_log, "time", types.SimpleNamespace(monotonic=lambda: now[0], sleep=file_log.time.sleep))

    def step():
        now[0] += 10

    return step


# --------------------------------------------------------------------------------------------------------- In the way


@pytest.mark.parametrize("read_only", [False, True])
def test_a_folder_in_the_way_of_the_snapshot_is_told(path, read_only):
    path.mkdir()

    error = refusal(path, read_only=read_only)

    assert type(error) is IsADirectoryError
    assert error.filename == str(path)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("read_only", [False, True])
def test_a_file_in_the_way_of_the_folder_is_told(path, read_only):
    path.write_bytes(b"[]")
    folder = pathlib.Path(f"{path}.wal")
    folder.write_bytes(b"precious")

    error = refusal(path, read_only=read_only)

    assert type(error) is NotADirectoryError
    assert error.filename.startswith(str(folder))
    assert (path.read_bytes(), folder.read_bytes()) == (b"[]", b"precious")
    folder.unlink()
    assert records(path) == []


@pytest.mark.parametrize("read_only", [False, True])
def test_a_missing_parent_is_told_and_not_made(path, read_only):
    error = refusal(path / "below", read_only=read_only)

    assert type(error) is FileNotFoundError
    assert error.filename.startswith(str(path))
    assert not path.exists()


def test_read_only_of_nothing_at_all_is_told_and_creates_nothing(path):
    error = refusal(path, read_only=True)

    assert type(error) is FileNotFoundError
    assert error.filename == str(path)
    assert list(path.parent.iterdir()) == []


def test_a_read_only_handle_on_a_snapshot_alone_sees_the_writer_that_comes(path):
    path.write_bytes(b'[{"job": 1, "who": "Bob"}]')
    with MicroDB(path, KEYS, read_only=True) as mdb:
        assert list(mdb.all()) == [ONE]
        assert list(path.parent.iterdir()) == [path]
        with Peer(path) as peer:
            peer.upsert(TWO)
            assert mdb.get((2,)) == TWO
            peer.save()
            peer.delete((1,))
            assert list(mdb.all()) == [TWO]
        records(path)
        with Peer(path) as peer:
            peer.upsert(ONE)
            assert list(mdb.all()) == [TWO, ONE]
        with pytest.raises(ReadOnlyError):
            mdb.delete((1,))


def test_a_read_only_handle_sees_what_is_written_in_the_place_of_a_torn_tail(written):
    with MicroDB(written, KEYS) as mdb:
        mdb.upsert(TWO | {"who": "Ann"})
    with place(written, "header").open("r+b") as header:
        header.seek(20 * 8)
        header.write(bytes(8))  # The machine has booted since.
    log = place(written, "0000000002.log")
    log.write_bytes(log.read_bytes()[:-1])
    with MicroDB(written, KEYS, read_only=True) as reader:
        assert reader.get((2,)) == TWO

        with Peer(written) as peer:
            peer.upsert(TWO | {"who": "Joe"})

            assert reader.get((2,)) == TWO | {"who": "Joe"}


# ------------------------------------------------------------------------------------------------------------- Rights


@root_only
@pytest.mark.parametrize("name", ["mdb.json", "lock", "header", "0000000002.log"])
def test_a_file_that_must_not_be_read_is_told_and_nothing_is_changed(public, name):
    path = public / "mdb.json"
    with MicroDB(path, KEYS) as mdb:
        mdb.upsert(ONE)
        mdb.save()
        mdb.upsert(TWO)
    place(path, name).chmod(0o600)
    before = contents(path)
    with Peer() as peer:
        peer.become_nobody()
        for options in ({}, {"read_only": True}):
            with pytest.raises(PermissionError) as refused:
                peer.open(path, **options)
            assert refused.value.filename in (str(path), str(place(path, name)), str(place(path, "lock")))
            assert contents(path) == before
    assert records(path) == [ONE, TWO]


@root_only
def test_an_unreadable_snapshot_alone_is_told_and_opens_later(public):
    path = public / "mdb.json"
    path.write_bytes(b'[{"job": 1, "who": "Bob"}]')
    path.chmod(0o600)
    with Peer() as peer:
        peer.become_nobody()
        with pytest.raises(PermissionError) as refused:
            peer.open(path)
    assert refused.value.filename == str(path)
    assert records(path) == [ONE]


@root_only
def test_in_a_read_only_folder_a_read_only_handle_works_and_writes_nothing(public):
    alone, path = public / "alone.json", public / "mdb.json"
    alone.write_bytes(b'[{"job": 1, "who": "Bob"}]')
    with MicroDB(path, KEYS) as mdb:
        mdb.upsert(ONE)
        public.chmod(0o555)
        with Peer() as peer:
            peer.become_nobody()
            for one in (alone, path):
                before = contents(one)
                with pytest.raises(PermissionError):
                    peer.open(one)
                peer.open(one, read_only=True)
                assert peer.all() == [ONE]
                assert contents(one) == before
            mdb.upsert(TWO)
            assert peer.get((2,)) == TWO
            mdb.close()
            peer.open(path, read_only=True)
            assert peer.all() == [ONE, TWO]


@root_only
def test_a_save_that_must_not_replace_the_snapshot_is_undone(public):
    path = public / "mdb.json"
    with MicroDB(path, KEYS) as mdb:
        mdb.upsert(ONE)
        mdb.save()
        public.chmod(0o755)
        folder = place(path, "lock").parent
        folder.chmod(0o777)
        for file in folder.iterdir():
            file.chmod(0o666)
        with Peer() as peer:
            peer.become_nobody()
            peer.open(path)
            peer.upsert(TWO)
            before = contents(path)

            with pytest.raises(PermissionError):
                peer.save()

            assert {**contents(path), "header": b""} == {**before, "header": b""}
            peer.upsert(ONE | {"who": "Ann"})
            assert list(mdb.all()) == [ONE | {"who": "Ann"}, TWO]
            mdb.upsert(ONE)
            assert peer.all() == [ONE, TWO]
    assert records(path) == [ONE, TWO]


# ---------------------------------------------------------------------------------------------------------- Full disk


def free(disk):
    status = os.statvfs(disk)
    return status.f_bavail * status.f_frsize


def leave(disk, size):
    """Take all of the disk but `size`, which pages make up."""
    filler = disk / f"filler {free(disk)}"
    filler.write_bytes(bytes(free(disk) - size))
    assert free(disk) == size
    return filler


def names(path):
    return sorted(contents(path))


@pytest.mark.parametrize("durability", ["process", "power"])
def test_on_a_full_disk_the_write_fails_and_all_that_was_acknowledged_stays(disk, durability):
    path = disk / "mdb.json"
    with Peer(path) as peer, MicroDB(path, KEYS, durability=durability) as mdb:
        filler = leave(disk, 200 << 10)
        for size in (20_000, 1_000, 0):
            count, error = fill(mdb, ONE, size)
            assert error == errno.ENOSPC
            assert (f"{size}/{count}",) not in mdb
            assert peer.all() == list(mdb.all())
        acknowledged = list(mdb.all())
        for batch in (lambda: mdb.upsert_many([TWO | {"job": n, "more": "x" * 99} for n in range(9)]), mdb.save):
            with pytest.raises(OSError, match="No space left"):
                batch()
            assert list(mdb.all()) == peer.all() == records(path) == acknowledged
            assert not any(name.endswith(".tmp") for name in names(path))

        filler.unlink()
        mdb.upsert(TWO | {"job": "after"})
        peer.upsert(TWO | {"job": "after, too"})
        mdb.save()
        assert mdb.delete(("after",))
        assert peer.all() == list(mdb.all()) == [*acknowledged, TWO | {"job": "after, too"}]
    assert records(path) == [*acknowledged, TWO | {"job": "after, too"}]


def test_a_database_opens_for_reading_and_writing_on_a_full_disk_and_after_a_kill(disk):
    path = disk / "mdb.json"
    with MicroDB(path, KEYS) as mdb:
        mdb.upsert(ONE)
    leave(disk, 0)
    for options in ({}, {"read_only": True}, {}):
        with Peer(path, **options) as peer:
            assert peer.all() == [ONE]
    assert records(path) == [ONE]


@pytest.mark.parametrize("pages", [0, 1])
def test_a_new_database_on_a_full_disk_is_an_error_and_no_killed_process(disk, pages):
    path = disk / "mdb.json"
    filler = leave(disk, pages * 4096)
    with Peer() as peer:
        with pytest.raises(OSError, match="No space left"):
            peer.open(path)
        filler.unlink()
        peer.open(path)
        peer.upsert(ONE)
        assert not any(name.endswith(".tmp") for name in names(path))
    assert records(path) == [ONE]


def test_a_header_page_with_a_hole_on_a_full_disk_is_an_error_and_no_killed_process(disk):
    path = disk / "mdb.json"
    with MicroDB(path, KEYS) as mdb:
        mdb.upsert(ONE)
    place(path, "header").unlink()
    filler = leave(disk, 0)
    place(path, "header").touch()
    os.truncate(place(path, "header"), 4096)
    with Peer() as peer:
        with pytest.raises(OSError, match="No space left"):
            peer.open(path)
        filler.unlink()
        peer.open(path)
        assert peer.all() == [ONE]


def test_a_torn_tail_on_a_full_disk_is_cut_only_when_it_can_be_kept(disk):
    path = disk / "mdb.json"
    with MicroDB(path, KEYS) as mdb:
        mdb.upsert(ONE)
    log = place(path, "0000000001.log")
    with log.open("ab") as stream:
        stream.write(b"torn")
    filler = leave(disk, 0)
    before = log.read_bytes()

    assert refusal(path).errno == errno.ENOSPC

    assert log.read_bytes() == before
    filler.unlink()
    assert records(path) == [ONE]
    assert [data for name, data in contents(path).items() if name.endswith(".torn")] == [b"torn"]


@pytest.mark.parametrize("pages", [0, 1, 2])
def test_a_save_that_finds_no_room_leaves_nothing_behind(disk, pages):
    path = disk / "mdb.json"
    with MicroDB(path, KEYS) as mdb:
        mdb.upsert(ONE | {"filling": "x" * 5000})
        mdb.save()
        mdb.upsert(TWO)
        filler = leave(disk, pages * 4096)
        before = names(path)

        with pytest.raises(OSError, match="No space left"):
            mdb.save()

        assert names(path) == before
        filler.unlink()
        mdb.save()
    assert len(records(path)) == 2


def test_beyond_the_limit_of_a_files_size_the_write_fails_and_all_that_was_acknowledged_stays(path):
    with Peer(path) as peer, MicroDB(path, KEYS) as mdb:
        peer.limit_file_size(50_000)
        for size in (9_000, 500, 0):
            assert peer.fill(ONE, size)[1] == errno.EFBIG
            assert peer.all() == list(mdb.all())
        mdb.upsert(TWO | {"filling": "x" * 50_000})
        with pytest.raises(OSError, match="too large"):
            peer.save()
        assert not any(name.endswith(".tmp") for name in names(path))
        acknowledged = list(mdb.all())
        mdb.upsert(TWO | {"job": "not limited"})
        assert peer.all() == records(path) == [*acknowledged, TWO | {"job": "not limited"}]

        peer.limit_file_size(resource.RLIM_INFINITY)
        peer.save()
        peer.upsert(ONE | {"job": "again"})
        assert mdb.get(("again",)) == ONE | {"job": "again"}
    assert records(path)[-1] == ONE | {"job": "again"}


# --------------------------------------------------------------------------------------------------------- Taken away


def remove(folder):
    shutil.rmtree(folder)


def move(folder):
    folder.rename(folder.with_name("moved"))


def replace(folder):
    move(folder)
    folder.with_name("mdb.json").rename(folder.with_name("moved.json"))
    with Peer(folder.with_name("mdb.json")) as peer:
        peer.upsert({"job": "new"})


taken = pytest.mark.parametrize("take", [remove, move, replace])


@taken
def test_a_process_whose_files_were_taken_away_writes_no_more_and_reads_on(written, later, take):
    with MicroDB(written, KEYS) as mdb:
        take(place(written, "lock").parent)
        later()
        after = contents(written)

        for write in (lambda: mdb.upsert({"job": 3}), mdb.clear, lambda: mdb.pop((1,)), lambda: mdb.upsert({"job": 3})):
            with pytest.raises(FailedError, match=r"[Cc]lose .* open") as refused:
                write()
            assert str(written) in str(refused.value)
            assert list(mdb.all()) == [ONE, TWO]
            assert contents(written) == after
        mdb.save(written.with_name("elsewhere.json"))
    assert records(written.with_name("elsewhere.json")) == [ONE, TWO]


@taken
def test_a_process_whose_files_were_taken_away_makes_no_promise_that_they_are_on_the_disk(written, later, take):
    with MicroDB(written, KEYS) as mdb:
        mdb.upsert(TWO)
        take(place(written, "lock").parent)
        later()

        with pytest.raises(FailedError):
            mdb.sync()


@taken
def test_a_process_whose_files_were_taken_away_saves_nothing_in_their_place(written, later, take):
    folder = place(written, "lock").parent
    with MicroDB(written, KEYS) as mdb:
        take(folder)
        later()
        after = contents(written)

        with pytest.raises(FailedError):
            mdb.save()

        assert {**contents(written), "save.lock": b""} == {**after, "save.lock": b""}
        assert folder.exists() == (take is replace)


def test_a_process_writes_on_when_its_folder_has_come_back(written, later):
    folder = place(written, "lock").parent
    with MicroDB(written, KEYS) as mdb:
        move(folder)
        later()
        with pytest.raises(FailedError):
            mdb.upsert({"job": 3})

        folder.with_name("moved").rename(folder)

        mdb.upsert({"job": 3})
    assert records(written) == [ONE, TWO, {"job": 3}]


def test_a_fork_of_a_process_whose_files_were_replaced_does_the_new_database_no_harm(path):
    with Peer(path) as peer, Peer() as other:
        peer.upsert(ONE)
        shutil.rmtree(place(path, "lock").parent)
        other.open(path)
        other.upsert(ONE | {"who": "Eve"})

        failed = peer.upsert_in_a_fork(TWO)

        expected = [ONE | {"who": "Eve"}] if failed else [ONE | {"who": "Eve"}, TWO]
        assert other.all() == records(path) == expected


# ------------------------------------------------------------------------------------------------- Stopped, and crowds


@pytest.fixture
def holder(written):
    """A process that was stopped while it held the write lock."""
    with Peer(written) as peer:
        peer.hold()
        peer.stop()
        yield peer


def names_the_holder(error, holder, path):
    assert type(error) is LockTimeoutError
    assert isinstance(error, TimeoutError)
    assert error.owner_pid == holder.pid
    assert f"process {holder.pid}" in str(error)
    assert str(place(path, "lock")) in str(error)


@pytest.mark.parametrize("options", [{}, {"read_only": True}])
def test_opening_gives_up_in_time_and_names_who_holds_the_lock(written, holder, options):
    names_the_holder(refusal(written, timeout=0.2, **options), holder, written)


CALLS = {
    "upsert": lambda mdb: mdb.begin("upsert", {"job": 3}),
    "delete": lambda mdb: mdb.begin("delete", (1,)),
    "save": lambda mdb: mdb.begin("save"),
    "hold": lambda mdb: mdb.begin("hold"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_on_a_handle_with_a_timeout_each_write_gives_up_in_time_and_reads_go_on(written, call):
    with Peer(written) as holder, Peer(written, timeout=0.2) as peer:
        holder.hold()
        holder.upsert({"job": 9})
        holder.stop()
        before = contents(written)

        with pytest.raises(LockTimeoutError) as refused:
            call(peer).end(within_s=20)

        names_the_holder(refused.value, holder, written)
        assert peer.all() == [ONE, TWO, {"job": 9}]
        after = contents(written)
        after["header"] = after["header"][:512] + before["header"][512:]  # There it tells how far it has read.
        assert {**after, "save.lock": b""} == {**before, "save.lock": b""}
        holder.go_on()
        holder.let_go()
        call(peer).end()


@pytest.mark.parametrize("call", ["lock", "transaction", "save"])
def test_a_timeout_of_one_call_holds_for_that_call(written, call):
    with Peer(written) as holder, Peer(written) as waiting:
        holder.hold()
        holder.stop()

        with pytest.raises(LockTimeoutError) as refused:
            if call == "save":
                waiting.begin("save", timeout=0.2).end(within_s=20)
            else:
                waiting.begin("hold", call, timeout=0.2).end(within_s=20)

        names_the_holder(refused.value, holder, written)
        assert waiting.all() == [ONE, TWO]
        holder.go_on()
        holder.let_go()
        waiting.upsert({"job": 3})
        assert holder.all() == [ONE, TWO, {"job": 3}]


def test_whoever_opens_waits_for_one_who_is_dying_in_a_recovery(written):
    put_back(written, contents(written) | {"header": bytes(4096)})
    with Peer() as dying, Peer() as peer:
        dying.lock_header(written)  # The end of a process releases its locks one by one: the write lock went first.
        peer.begin("open", written)

        if peer._pipe.poll(0.5):
            peer.end()
        dying.unlock_header()

        peer.end()
        assert peer.all() == [ONE, TWO]


def nothing(path):
    return []


def existing(path):
    with MicroDB(path, KEYS) as mdb:
        mdb.upsert(ONE)
        mdb.save()
        mdb.upsert(TWO)
    return [ONE, TWO]


def torn(path):
    found = existing(path)
    place(path, "header").unlink()
    with place(path, "0000000002.log").open("ab") as stream:
        stream.write(b"torn")
    return found


@pytest.mark.parametrize("begin", [nothing, existing, torn])
def test_two_hundred_processes_open_at_once_and_all_write(path, begin):
    found = begin(path)
    with Peer() as peer:
        codes, text = peer.begin("open_at_once", path, 200).end(within_s=60)

    assert text == ""
    assert codes == [0] * 200
    after = records(path)
    assert after[: len(found)] == found
    assert {record["job"] for record in after[len(found) :]} == {f"opener {number}" for number in range(200)}
    assert len(after) == len(found) + 200
