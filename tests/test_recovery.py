"""Opening after a crash: the recovery table, row by row. A crash is a handle that is dropped without closing."""

import errno
import logging
import os
import shutil
import struct

import pytest

import microdb
from children import forked
from faulty import Faulty, only, save_that_waits
from microdb.files import OS
from microdb.wal.codec import encode_upsert, join
from microdb.wal.format import FRAME
from microdb.wal.log_file import open_log
from microdb.wal.writer import write_frames
from walfiles import ids, overwrite, set_boot_id


@pytest.mark.parametrize("tail", [b"\0" * 5000, b"garbage", os.urandom(3000), b"\1" * 40])
def test_a_tail_that_is_no_frame_is_kept_aside_cut_and_reported(ten, open_db, tail, caplog):
    with ten.log().open("ab") as log:
        log.write(tail)
    before = ten.head()
    with caplog.at_level(logging.WARNING, "microdb"):
        mdb = open_db()
    assert ids(mdb) == list(range(10))
    assert mdb.stats().torn_tails == 1
    assert ten.log().stat().st_size == before
    assert [file.read_bytes() for file in ten.torn()] == [tail]
    assert str(before) in caplog.text
    mdb.upsert({"id": 10})
    mdb.close()
    assert ids(open_db()) == list(range(11))


def test_after_a_reboot_a_log_cut_anywhere_gives_the_whole_frames_before_the_cut(ten, open_db):
    data = ten.log().read_bytes()
    frames = ten.frames()
    for size in range(frames[0][0], len(data)):
        ten.forget_boot()
        ten.log().write_bytes(data[:size])
        mdb = open_db()
        assert ids(mdb) == [n for n, (at, length) in enumerate(frames) if at + length <= size]
        mdb.close()


def test_in_the_same_run_of_the_machine_a_shorter_log_has_lost_something(ten, open_db):
    data = ten.log().read_bytes()
    at, _ = ten.frames()[7]
    last, _ = ten.frames()[9]
    for size, offset in ((at, at), (at + 5, at), (len(data) - 1, last)):
        ten.log().write_bytes(data[:size])
        with pytest.raises(microdb.CorruptError, match="microdb repair") as caught:
            open_db()
        assert caught.value.path == str(ten.log())
        assert caught.value.offset == offset
        assert ten.log().read_bytes() == data[:size], "nothing was changed"
    ten.log().write_bytes(data)
    assert ids(open_db()) == list(range(10))


def test_a_bad_frame_with_sound_ones_behind_it_is_rot(ten, open_db):
    ten.forget_boot()
    data = bytearray(ten.log().read_bytes())
    at, length = ten.frames()[4]
    data[at + length - 1] ^= 1
    ten.log().write_bytes(data)
    with pytest.raises(microdb.CorruptError) as caught:
        open_db()
    assert (caught.value.offset, caught.value.sequence) == (at, 4)
    assert ten.log().read_bytes() == data


def test_after_a_reboot_a_hole_that_was_never_fsynced_ends_the_log(ten, open_db):
    set_boot_id(ten.log(), b"another boot id!")
    ten.forget_boot()
    at, length = ten.frames()[4]
    overwrite(ten.log(), at, b"\0" * length)
    mdb = open_db()
    assert ids(mdb) == [0, 1, 2, 3]
    assert mdb.stats().torn_tails == 1


def test_after_a_reboot_a_hole_that_had_been_fsynced_is_rot(open_db, wal):
    mdb = open_db(durability="power")
    for n in range(10):
        mdb.upsert({"id": n})
    mdb.close()
    set_boot_id(wal.log(), b"another boot id!")
    wal.forget_boot()
    at, length = wal.frames()[4]
    overwrite(wal.log(), at, b"\0" * length)
    with pytest.raises(microdb.CorruptError) as caught:
        open_db()
    assert caught.value.offset == at


def test_sync_makes_the_next_frame_say_that_all_before_it_is_durable(open_db, wal):
    mdb = open_db()
    mdb.upsert({"id": 0})
    mdb.sync()
    mdb.upsert({"id": 1})
    mdb.upsert({"id": 2})
    data = wal.log().read_bytes()
    assert [data[at + 4] for at, _ in wal.frames()] == [0, 1, 0]


def test_a_save_makes_the_next_frame_say_that_all_before_it_is_durable(ten, open_db):
    mdb = open_db()
    mdb.save()
    mdb.upsert({"id": 10})
    mdb.upsert({"id": 11})
    data = ten.log(2).read_bytes()
    assert [data[at + 4] for at, _ in ten.frames(2)] == [1, 0]


def test_a_snapshot_that_is_gone_is_refused_where_the_log_follows_one(ten, open_db):
    mdb = open_db()
    mdb.save()
    mdb.close()
    ten.snapshot.unlink()
    with pytest.raises(microdb.CorruptError, match="the snapshot is gone"):
        open_db()


def test_an_edited_snapshot_is_taken_over_if_the_log_is_empty(ten, open_db, caplog):
    mdb = open_db()
    mdb.save()
    mdb.close()
    ten.snapshot.write_text('[{"id": "edited"}]')
    with caplog.at_level(logging.WARNING, "microdb"):
        mdb = open_db()
    assert ids(mdb) == ["edited"]
    assert "taken over" in caplog.text
    mdb.upsert({"id": "more"})
    mdb.close()
    assert ids(open_db()) == ["edited", "more"]


def test_an_edited_snapshot_is_refused_if_the_log_holds_changes(ten, open_db):
    mdb = open_db()
    mdb.save()
    mdb.upsert({"id": "acknowledged"})
    mdb.close()
    sound = ten.snapshot.read_bytes()
    ten.snapshot.write_text('[{"id": "edited"}]')
    with pytest.raises(microdb.ConflictError, match="microdb repair"):
        open_db()
    ten.snapshot.write_bytes(sound)
    assert ids(open_db()) == [*range(10), "acknowledged"]


def test_an_older_copy_of_the_snapshot_is_no_way_to_lose_what_came_later(ten, open_db):
    mdb = open_db()
    mdb.save()
    old = ten.snapshot.read_bytes()
    mdb.upsert({"id": 10})
    mdb.save()
    mdb.upsert({"id": 11})
    mdb.close()
    new = ten.snapshot.read_bytes()
    ten.snapshot.write_bytes(old)
    with pytest.raises(microdb.ConflictError):
        open_db()
    ten.snapshot.write_bytes(new)
    assert ids(open_db()) == list(range(12))


def test_a_copied_database_opens_where_it_is(ten, open_db, tmp_path):
    copy = tmp_path / "copy.json"
    shutil.copytree(ten.folder, str(copy) + ".wal")
    assert ids(open_db(copy)) == list(range(10))


def test_a_missing_header_page_is_made_again_from_the_log(ten, open_db):
    ten.header.unlink()
    mdb = open_db()
    assert ids(mdb) == list(range(10))
    mdb.upsert({"id": 10})
    assert ten.head() == ten.log().stat().st_size


def test_missing_logs_are_noticed(ten, open_db):
    ten.log().unlink()
    with pytest.raises(microdb.CorruptError, match="its logs are gone"):
        open_db()


def test_a_newer_version_is_not_called_corrupt(ten, open_db):
    overwrite(ten.log(), 8, struct.pack("<I", 2))
    with pytest.raises(microdb.VersionError, match="upgrade microdb"):
        open_db()
    overwrite(ten.log(), 8, struct.pack("<I", 1))
    overwrite(ten.header, 8, struct.pack("=Q", 2))
    with pytest.raises(microdb.VersionError, match="upgrade microdb"):
        open_db()


def test_what_a_dead_saver_left_is_removed(ten, open_db):
    (ten.folder / "123-abc.save.tmp").write_bytes(b"half a snapshot")
    dead = ten.log(2)
    shutil.copy(ten.log(), dead)
    data = bytearray(dead.read_bytes()[: ten.frames()[0][0]])
    data[16:24] = struct.pack("<Q", 2)
    data[56:72] = b"hash of no file!"
    dead.write_bytes(data)
    set_boot_id(dead, b"this boot or not")
    mdb = open_db()
    assert ids(mdb) == list(range(10))
    assert sorted(file.name for file in ten.folder.iterdir()) == ["0000000001.log", "header", "lock"]


def test_a_failed_open_does_not_look_alive(ten, open_db):
    at, length = ten.frames()[4]
    sound = ten.log().read_bytes()
    overwrite(ten.log(), at + length - 1, b"\xff" if sound[at + length - 1] != 0xFF else b"\0")
    with pytest.raises(microdb.CorruptError) as caught:
        open_db()
    ten.log().write_bytes(sound)
    mdb = open_db()
    assert ids(mdb) == list(range(10))
    assert caught.value.__traceback__ is not None, "kept on purpose: it holds the files of the failed attempt"


def test_a_read_only_handle_reads_what_a_writer_would_and_writes_nothing(ten, open_db):
    with ten.log().open("ab") as log:
        log.write(b"torn")
    before = {file.name: file.read_bytes() for file in ten.folder.iterdir()}
    mdb = open_db(read_only=True)
    assert ids(mdb) == list(range(10))
    assert {file.name: file.read_bytes() for file in ten.folder.iterdir()} == before
    writer = open_db()
    writer.upsert({"id": 10})
    assert ids(mdb) == list(range(11))


def test_a_read_only_handle_that_came_before_the_log_sees_it_come(open_db, path):
    path.write_text('[{"id": 0}]')
    reader = open_db(read_only=True)
    assert ids(reader) == [0]
    assert not os.path.exists(str(path) + ".wal")
    writer = open_db()
    writer.upsert({"id": 1})
    assert reader[1,] == {"id": 1}
    writer.save()
    writer.upsert({"id": 2})
    assert ids(reader) == [0, 1, 2]


def test_an_adopted_edit_reaches_a_reader_that_was_not_seen(ten, open_db):
    mdb = open_db()
    mdb.save()
    mdb.close()
    reader = open_db(read_only=True)
    assert ids(reader) == list(range(10))
    ten.snapshot.write_text('[{"id": "edited"}]')
    open_db()
    assert ids(reader) == ["edited"]


def fail_to_write(open_db, record):
    """A write whose fsync fails, and whose undoing fails too: its frame stays behind the head."""
    faulty = Faulty()
    mdb = open_db(durability="power", files=faulty)
    faulty.on["sync_data"] = faulty.on["truncate"] = only(".log")
    with pytest.raises(OSError, match="made to fail"):
        mdb.upsert(record)
    mdb.close()


def test_a_write_that_failed_and_could_not_be_undone_does_not_come_back(ten, open_db):
    head = ten.head()
    fail_to_write(open_db, {"id": "never"})
    frame = ten.log().read_bytes()[head:]
    assert frame
    reader = open_db(read_only=True)
    assert ids(reader) == list(range(10))
    mdb = open_db()
    assert ids(mdb) == list(range(10))
    assert (mdb.stats().torn_tails, [file.read_bytes() for file in ten.torn()]) == (1, [frame])
    mdb.upsert({"id": 10})
    assert mdb.stats().generation == 2, "the log is poisoned, and is saved before the next write"
    assert ids(mdb) == ids(reader) == list(range(11))


def test_damage_before_a_write_that_failed_is_damage_all_the_same(ten, open_db):
    fail_to_write(open_db, {"id": "never"})
    at, length = ten.frames()[4]
    overwrite(ten.log(), at + length - 1, bytes([ten.log().read_bytes()[at + length - 1] ^ 1]))
    before = ten.log().read_bytes()
    with pytest.raises(microdb.CorruptError) as caught:
        open_db()
    assert (caught.value.offset, caught.value.sequence) == (at, 4)
    assert ten.log().read_bytes() == before


def test_a_poisoned_log_that_ends_at_its_head_is_read_to_its_end(ten, open_db):
    faulty = Faulty()
    mdb = open_db(files=faulty)
    faulty.on["sync_data"] = only(".log")
    with pytest.raises(OSError, match="made to fail"):
        mdb.sync()
    mdb.close()
    mdb = open_db()
    assert ids(mdb) == list(range(10))
    assert (mdb.stats().torn_tails, mdb.stats().generation) == (0, 1)
    mdb.upsert({"id": 10})
    assert mdb.stats().generation == 2


def test_after_the_last_fsync_of_a_save_failed_the_log_before_it_is_kept_by_whoever_opens_next(open_db, wal):
    faulty = Faulty()
    mdb = open_db(files=faulty)
    mdb.upsert({"id": 0})
    faulty.on["sync_folder"] = only(str(wal.snapshot.parent))
    with pytest.raises(OSError, match="made to fail"):
        mdb.save()
    mdb.close()
    mdb = open_db()
    assert (ids(mdb), mdb.stats().generation) == ([0], 2)
    assert wal.log(1).exists(), "a power cut may bring the old snapshot back, which wants it"
    mdb.upsert({"id": 1})
    assert (ids(mdb), mdb.stats().generation) == ([0, 1], 3)
    assert not wal.log(1).exists()


def test_an_older_copy_of_the_snapshot_beside_a_log_that_could_not_be_put_away_is_refused(open_db, wal):
    faulty = Faulty()
    mdb = open_db(files=faulty)
    mdb.upsert({"id": 0})
    mdb.save()
    old = wal.snapshot.read_bytes()
    mdb.upsert({"id": 1})
    faulty.on["rename"] = only(".history")
    mdb.save()
    mdb.upsert({"id": 2})
    mdb.close()
    new = wal.snapshot.read_bytes()
    wal.forget_boot()
    wal.snapshot.write_bytes(old)
    with pytest.raises(microdb.ConflictError, match="edited or replaced") as caught:
        open_db()
    assert str(wal.log(3)) in str(caught.value)
    wal.snapshot.write_bytes(new)
    assert ids(open_db()) == [0, 1, 2]


@pytest.mark.parametrize("frames", [0, 1])
def test_after_a_failed_fsync_and_a_power_cut_in_the_save_behind_it_the_shorter_log_is_right(
    open_db, path, wal, frames
):
    """What it lacks was never fsynced. But a log with frames was published: then the snapshot is not the right one."""
    mdb = open_db()
    mdb.upsert({"id": 0})
    mdb.sync()
    size = wal.head()
    mdb.upsert({"id": "not fsynced"})

    def child():
        faulty = Faulty()
        saver = microdb.MicroDB(path, ["id"], durability="power", files=faulty)
        faulty.on["sync_data"] = only(".log")
        with pytest.raises(OSError, match="made to fail"):
            saver.upsert({"id": "never"})
        faulty.on.clear()
        faulty.on["rename"] = only("mdb.json", lambda _: os._exit(9))
        saver.upsert({"id": "never"})

    assert forked(child) == 9
    mdb.close()
    os.truncate(wal.log(1), size)
    wal.forget_boot()
    if frames:
        log = open_log(OS.open(str(wal.log(2)), write=True))
        log.file.write_at(write_frames([b"\x91\x91\x02"], log.header.start)[0], log.header.end)
        with pytest.raises(microdb.CorruptError, match="the snapshot is gone"):
            open_db()
    else:
        assert ids(open_db()) == [0]
        assert not wal.log(2).exists()


def test_a_tail_of_which_nobody_can_tell_what_it_was_is_refused_and_left_as_it_is(ten, open_db):
    ten.forget_boot()
    end = ten.log().stat().st_size
    with ten.log().open("ab") as log:
        log.write((FRAME.pack(1 << 15, 0, 12) + bytes(4)) * (1 << 14))
    before = ten.log().read_bytes()
    with pytest.raises(microdb.CorruptError, match="too much in it looks like a frame") as caught:
        open_db()
    assert (caught.value.offset, caught.value.sequence) == (end, 10)
    assert ten.log().read_bytes() == before


def test_a_reader_beside_a_page_of_an_earlier_run_of_the_machine_follows_whoever_comes(ten, open_db):
    at = 8 * 20  # The boot id.
    overwrite(ten.header, at, bytes(byte ^ 1 for byte in ten.header.read_bytes()[at : at + 16]))
    reader = open_db(read_only=True)
    follow, followed = reader._log.follow, []
    reader._log.follow = lambda: followed.append(follow()) or followed[-1]
    assert ids(reader) == list(range(10))
    assert followed == [False], "nobody has come"
    open_db().upsert({"id": 10})
    assert ids(reader) == list(range(11))
    assert reader[10,] == {"id": 10}
    assert followed == [False, True]


@pytest.mark.parametrize("size", [0, 10, 4096])
def test_a_reader_follows_no_page_that_is_just_being_made(path, wal, open_db, size):
    path.write_text('[{"id": 0}]')
    reader = open_db(read_only=True)
    wal.folder.mkdir()
    (wal.folder / "lock").touch()
    wal.header.write_bytes(bytes(size))
    assert ids(reader) == [0]
    assert not reader._log.is_followed()
    open_db().upsert({"id": 1})
    assert ids(reader) == [0, 1]
    assert reader._log.is_followed()


def test_a_reader_notices_that_the_head_of_an_earlier_run_of_the_machine_is_reached_again(open_db, wal):
    write_and_cut(open_db, wal)
    reboot(wal)
    head = wal.head()
    reader = open_db(read_only=True)
    assert ids(reader) == [0, 1]
    open_db().upsert({"id": 3})
    assert wal.head() == head, "with another frame before it"
    assert ids(reader) == [0, 1, 3]


def test_a_reader_finds_no_database_where_there_is_none_and_makes_none(open_db, path):
    with pytest.raises(FileNotFoundError, match="read_only=True creates none") as caught:
        open_db(read_only=True)
    assert (caught.value.filename, caught.value.errno) == (str(path), errno.ENOENT)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("text", ['[{"id": 1}, {"id": 1}]', "[{", '[{"id": []}]'], ids=["twice", "cut", "no key"])
def test_a_snapshot_that_is_refused_gets_no_log_and_can_be_mended(open_db, wal, text, caplog):
    wal.snapshot.write_text(text)
    with pytest.raises(microdb.CorruptError):
        open_db()
    assert not wal.log().exists()
    wal.snapshot.write_text('[{"id": 1}]')
    mdb = open_db()
    assert (ids(mdb), mdb.stats().generation) == ([1], 1)
    assert caplog.text == ""


def test_an_edited_snapshot_is_taken_over_without_the_page_too(ten, open_db):
    mdb = open_db()
    mdb.save()
    mdb.close()
    ten.forget_boot()
    ten.snapshot.write_text('[{"id": "edited"}]')
    mdb = open_db()
    assert (ids(mdb), mdb.stats().generation, mdb.stats().sequence) == (["edited"], 3, 11)


def test_an_edit_beside_a_log_that_lost_its_changes_is_refused(ten, open_db):
    mdb = open_db()
    mdb.save()
    start = mdb.stats().log_bytes
    mdb.upsert({"id": "acknowledged"})
    mdb.close()
    os.truncate(ten.log(2), start)
    ten.snapshot.write_text('[{"id": "edited"}]')
    with pytest.raises(microdb.ConflictError, match="holds changes to the old one"):
        open_db()


def test_the_first_write_of_all_that_failed_and_could_not_be_undone_does_not_come_back(open_db, wal):
    open_db().close()
    fail_to_write(open_db, {"id": "never"})
    assert ids(open_db()) == []
    assert len(wal.torn()) == 1


def test_a_write_that_was_interrupted_and_could_not_be_undone_does_not_come_back(ten, open_db):
    faulty = Faulty()
    mdb = open_db(files=faulty)
    mdb.upsert({"id": 10})
    file = mdb._log.generations.last.file
    write = file.write_at

    def write_and_interrupt(data, offset):
        write(data, offset)
        raise KeyboardInterrupt

    file.write_at = write_and_interrupt
    faulty.on["truncate"] = only(".log")
    with pytest.raises(OSError, match="made to fail"):
        mdb.upsert({"id": "never"})
    mdb.close()
    assert ids(open_db()) == list(range(11))


@pytest.mark.parametrize("read_only", [False, True])
def test_a_log_of_other_keys_is_refused_by_the_first_to_open_it_and_left_as_it_is(ten, open_db, read_only):
    before = ten.log().read_bytes()
    with pytest.raises(microdb.StorageError, match=r"keyed by \['id'\], opened with partition_keys=\['n'\]") as caught:
        open_db(partition_keys=["n"], read_only=read_only)
    assert caught.value.path == str(ten.log())
    assert ten.log().read_bytes() == before
    assert ids(open_db()) == list(range(10))


def test_a_log_under_the_name_of_another_generation_is_refused(ten, open_db):
    ten.log().rename(ten.log(7))
    with pytest.raises(microdb.CorruptError, match="this is the log of generation 1") as caught:
        open_db()
    assert caught.value.path == str(ten.log(7))


def test_the_message_of_damage_names_the_first_sound_frame_behind_it(ten, open_db):
    ten.forget_boot()
    frames = ten.frames()
    at, length = frames[4]
    overwrite(ten.log(), at + 13, b"\xff")
    with pytest.raises(microdb.CorruptError, match=f"the crc is wrong, and sound frames follow at byte {at + length}"):
        open_db()


def test_batches_that_failed_together_and_could_not_be_undone_are_no_damage(ten, open_db):
    """The second of them is a sound frame behind the head, but was never acknowledged."""
    faulty = Faulty()
    mdb = open_db(durability="power", files=faulty)
    with mdb.lock():
        mdb._prepare_locked()
        faulty.on["sync_data"] = faulty.on["truncate"] = only(".log")
        with pytest.raises(OSError, match="made to fail"):
            mdb._log.append([join([encode_upsert({"id": n})]) for n in ("x", "y")], mdb._position, sync=True)
    mdb.close()
    mdb = open_db()
    assert ids(mdb) == list(range(10))
    assert mdb.stats().torn_tails == 1


def reboot(wal):
    """As if the page were of another run of the machine."""
    at = 8 * 20
    overwrite(wal.header, at, bytes(byte ^ 1 for byte in wal.header.read_bytes()[at : at + 16]))


def write_and_cut(open_db, wal, *, durability="process", sync=False):
    """A log of three frames that lost the last of them."""
    mdb = open_db(durability=durability)
    for n in range(3):
        mdb.upsert({"id": n})
    if sync:
        mdb.sync()
    mdb.close()
    at, _ = wal.frames()[2]
    os.truncate(wal.log(), at)
    return at


def test_after_a_reboot_a_log_may_lack_what_was_not_fsynced(open_db, wal):
    write_and_cut(open_db, wal)
    reboot(wal)
    assert ids(open_db()) == [0, 1]


@pytest.mark.parametrize(("durability", "sync"), [("power", False), ("process", True)])
def test_after_a_reboot_a_log_must_not_lack_what_was_fsynced(open_db, wal, durability, sync):
    at = write_and_cut(open_db, wal, durability=durability, sync=sync)
    published = wal.head()
    reboot(wal)
    before = wal.log().read_bytes()
    with pytest.raises(microdb.CorruptError, match=f"the log ends here, and was fsynced up to {published}") as caught:
        open_db()
    assert (caught.value.path, caught.value.offset, caught.value.sequence) == (str(wal.log()), at, 2)
    assert wal.log().read_bytes() == before


def test_after_a_reboot_no_failure_is_known_of_a_log_that_was_fsynced(open_db, wal):
    with open_db(durability="power") as mdb:
        mdb.upsert({"id": 0})
    reboot(wal)
    mdb = open_db()
    mdb.upsert({"id": 1})
    assert (mdb.stats().generation, ids(mdb)) == (1, [0, 1])


def test_after_a_reboot_a_log_must_not_lack_what_a_save_took_along(open_db, wal):
    faulty = Faulty()
    mdb, other = open_db(files=faulty), open_db()
    mdb.upsert({"id": 0})
    with save_that_waits(mdb, faulty):
        other.upsert({"id": 1})
    other.close()
    mdb.close()
    [(at, length)] = wal.frames(2)
    os.truncate(wal.log(2), at)
    reboot(wal)
    with pytest.raises(microdb.CorruptError, match=f"the log ends here, and was fsynced up to {at + length}"):
        open_db()


def test_in_one_run_of_the_machine_the_message_says_what_was_published(open_db, wal):
    write_and_cut(open_db, wal)
    with pytest.raises(microdb.CorruptError, match=f"the log ends here, and was published up to {wal.head()}"):
        open_db()


def test_whoever_recovers_makes_durable_what_it_did_before_it_says_so(ten, open_db):
    """A tail is kept aside on the disk before it is cut from the log, and the cut is on the disk, too."""
    with ten.log().open("ab") as log:
        log.write(b"torn")
    faulty = Faulty()
    open_db(files=faulty)
    steps = [
        (name, base if not base.endswith(".tmp") else "aside")
        for name, base in faulty.calls
        if name in ("sync", "sync_data", "sync_folder", "rename", "truncate") and base != "header"
    ]
    [torn] = ten.torn()
    assert steps == [
        ("sync_folder", ten.snapshot.parent.name),
        ("sync", "aside"),
        ("rename", torn.name),
        ("sync_folder", ten.folder.name),
        ("truncate", "0000000001.log"),
        ("sync_data", "0000000001.log"),
    ]


def test_what_dead_savers_left_of_either_kind_is_removed_by_the_first_to_open(ten, open_db):
    for name in ("1-dead.save.tmp", "1-dead.lock.tmp"):
        (ten.folder / name).touch()
    assert ids(open_db()) == list(range(10))
    assert sorted(file.name for file in ten.folder.iterdir()) == ["0000000001.log", "header", "lock"]


def test_a_log_that_could_not_be_put_away_becomes_history_when_it_is_opened_next(open_db, wal):
    faulty = Faulty()
    mdb = open_db(files=faulty)
    mdb.upsert({"id": 0})
    faulty.on["rename"] = only(".history")
    mdb.save()
    mdb.close()
    assert wal.log(1).exists()
    assert ids(open_db()) == [0]
    assert not wal.log(1).exists()
    assert (wal.folder / "0000000001.history").exists()


def test_of_two_logs_that_follow_one_snapshot_the_later_goes_on(open_db, wal):
    """Saving an unchanged table makes two."""
    mdb = open_db()
    mdb.upsert({"id": 0})
    mdb.save()
    faulty = Faulty()
    faulty.on["rename"] = only(".history")
    with open_db(files=faulty) as saver:
        saver.save()
    mdb.close()
    wal.forget_boot()
    assert (wal.log(2).exists(), wal.log(3).exists()) == (True, True)
    mdb = open_db()
    assert mdb.stats().generation == 3
    mdb.upsert({"id": 1})
    assert ids(mdb) == [0, 1]


@pytest.mark.parametrize("read_only", [False, True])
def test_a_snapshot_by_hand_begins_with_the_sequence_0_and_is_on_the_disk_before_its_log(open_db, wal, read_only):
    wal.snapshot.write_text('[{"id": 0}]')
    faulty = Faulty()
    mdb = open_db(files=faulty, read_only=read_only)
    assert ids(mdb) == [0]
    assert mdb.stats().sequence == 0
    assert ("sync", "mdb.json") in faulty.calls or read_only
    assert wal.folder.exists() is not read_only


def test_whoever_recovers_reads_snapshot_and_log_once(open_db):
    with open_db() as mdb:
        mdb.upsert({"id": 0})
        mdb.save()
        mdb.upsert({"id": 1})
    faulty = Faulty()
    assert ids(open_db(files=faulty)) == [0, 1]
    opened = [name for call, name in faulty.calls if call == "open" and name.endswith((".json", ".log"))]
    assert sorted(opened) == ["0000000002.log", "mdb.json"]
