"""Opening after a crash: the recovery table, row by row. A crash is a handle that is dropped without closing."""

import logging
import os
import shutil
import struct

import pytest

import microdb
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
