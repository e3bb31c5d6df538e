"""Logs, headers and snapshots that were cut, flipped, swapped or taken away: nothing acknowledged goes silently."""

import logging
import os
import shutil
import struct
import types

import pytest

from bad_input_children import KEYS, Peer, contents, place, put_back, records, refusal
from microdb import ConflictError, CorruptError, FailedError, MicroDB, VersionError
from microdb.wal import file_log
from microdb.wal.format import BASE_BYTES, CRC, FRAME, FRAME_BYTES_MIN

pytestmark = pytest.mark.usefixtures("way")

LOG = "0000000002.log"
KEPT = [{"job": 0}]
STEPS = [{"job": 1, "who": "Bob"}, {"job": 2, "who": "Eve"}, {"job": 3, "who": "Ann"}, {"job": 4, "who": "Joe"}]
ALL = KEPT + STEPS
BOOT_ID_AT = 20 * 8


@pytest.fixture
def path(tmp_path):
    """A closed database: a snapshot of one record, and a log of four frames."""
    path = tmp_path / "db" / "mdb.json"
    path.parent.mkdir()
    with MicroDB(path, KEYS) as mdb:
        mdb.upsert(KEPT[0])
        mdb.save()
        for record in STEPS:
            mdb.upsert(record)
    return path


@pytest.fixture
def log(path):
    return place(path, LOG)


@pytest.fixture
def later(monkeypatch):
    """Step the clock so that the next write looks whether the files are still there."""
    now = [file_log.time.monotonic()]
    clock = types.SimpleNamespace(monotonic=lambda: now[0], sleep=file_log.time.sleep)
    monkeypatch.setattr(file_log, "time", clock)

    def step():
        now[0] += 10

    return step


def boundaries(data):
    """Where the frames of a log begin, and where the last one ends."""
    at = BASE_BYTES + struct.unpack_from("<I", data, BASE_BYTES - 4)[0] + CRC.size
    found = [at]
    while at < len(data):
        at += FRAME_BYTES_MIN + FRAME.unpack_from(data, at)[0]
        found.append(at)
    return found


def forget_header(path):
    place(path, "header").unlink()


def reboot(path):
    """Make the header page that of another run of the machine."""
    flip(place(path, "header"), BOOT_ID_AT)


def flip(file, offset, mask=1):
    with file.open("r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)[0]
        stream.seek(offset)
        stream.write(bytes([byte ^ mask]))


def patch(file, offset, data):
    with file.open("r+b") as stream:
        stream.seek(offset)
        stream.write(data)


def torn_files(path):
    return {file.name: file.read_bytes() for file in place(path, "header").parent.glob("*.torn")}


def clear_error(error, *named):
    """It names the file, says where it is sound, and what to do."""
    assert type(error) is CorruptError, repr(error)
    assert any(str(error).startswith(str(one)) for one in named)
    assert "microdb repair" in str(error)


unknown_head = pytest.mark.parametrize("forget", [forget_header, reboot])


# ---------------------------------------------------------------------------------------------------------------- Cut


def test_a_log_that_lost_acknowledged_bytes_is_refused_wherever_it_was_cut(path, log):
    whole = contents(path)
    for size in range(len(whole[LOG])):
        log.write_bytes(whole[LOG][:size])

        clear_error(refusal(path), log)

        assert contents(path) == whole | {LOG: whole[LOG][:size]}, size
    log.write_bytes(whole[LOG])
    assert records(path) == ALL


def test_the_error_of_a_cut_log_tells_the_last_good_byte_and_sequence(path, log):
    data = log.read_bytes()
    places = boundaries(data)
    log.write_bytes(data[: places[2] + 5])

    error = refusal(path)

    assert (error.offset, error.sequence) == (places[2], 3)


@unknown_head
def test_a_torn_tail_is_cut_kept_aside_counted_and_logged_wherever_it_was_torn(path, log, forget, caplog):
    forget(path)
    whole = contents(path)
    places = boundaries(whole[LOG])
    for size in range(places[0], len(whole[LOG])):
        put_back(path, whole | {LOG: whole[LOG][:size]})
        complete = sum(end <= size for end in places[1:])
        tail = whole[LOG][places[complete] : size]
        caplog.clear()

        with MicroDB(path, KEYS) as mdb:
            assert list(mdb.all()) == ALL[: 1 + complete], size
            assert mdb.stats().torn_tails == bool(tail), size

        assert list(torn_files(path).values()) == ([tail] if tail else []), size
        warned = [entry.getMessage() for entry in caplog.records if entry.levelno == logging.WARNING]
        assert len(warned) == bool(tail), size
        assert all(str(log) in line for line in warned)
    put_back(path, whole)
    assert records(path) == ALL


@unknown_head
def test_a_log_header_is_never_taken_for_a_torn_tail(path, log, forget):
    forget(path)
    whole = contents(path)
    for size in range(boundaries(whole[LOG])[0]):
        log.write_bytes(whole[LOG][:size])
        damaged = contents(path)

        clear_error(refusal(path), log)

        files = contents(path)
        assert {name: files[name] for name in damaged} == damaged, size


def test_a_second_torn_tail_at_the_same_place_leaves_the_first_where_it_is(path, log):
    data = log.read_bytes()
    at = boundaries(data)[3]
    for tail in (b"first", b"second"):
        forget_header(path)
        log.write_bytes(data[:at] + tail)
        records(path)

    assert sorted(torn_files(path).values()) == [b"first", b"second"]


# --------------------------------------------------------------------------------------------------------------- Flips


def test_a_flipped_bit_anywhere_in_the_log_is_found(path, log):
    whole = contents(path)
    for offset in range(len(whole[LOG])):
        flip(log, offset, 1 << offset % 8)
        damaged = contents(path)

        error = refusal(path)

        assert type(error) is (VersionError if 8 <= offset < 16 else CorruptError), offset
        assert error.path == str(log), offset
        assert contents(path) == damaged, offset
        flip(log, offset, 1 << offset % 8)
    assert records(path) == ALL


def test_a_flipped_bit_before_the_last_frame_is_found_without_the_header_page(path, log):
    forget_header(path)
    whole = contents(path)
    passed = []
    for offset in range(boundaries(whole[LOG])[-2]):
        put_back(path, whole)
        flip(log, offset, 1 << offset % 8)
        try:
            records(path)
            passed.append(offset)
        except (CorruptError, VersionError):
            assert torn_files(path) == {}, offset
    assert passed == []


@unknown_head
def test_a_flipped_bit_in_the_last_frame_costs_that_frame_and_says_so(path, log, forget, caplog):
    forget(path)
    whole = contents(path)
    last = boundaries(whole[LOG])[-2]
    for offset in range(last, len(whole[LOG])):
        put_back(path, whole)
        flip(log, offset)
        damaged = log.read_bytes()
        caplog.clear()

        assert records(path) == ALL[:-1], offset
        assert list(torn_files(path).values()) == [damaged[last:]], offset
        assert len(caplog.records) == 1, offset


def test_a_process_that_has_it_open_reads_on_over_flipped_bits_and_a_new_one_is_refused(path, log):
    with Peer(path) as peer:
        size = log.stat().st_size
        for offset in range(size):
            flip(log, offset, 1 << offset % 8)
            damaged = contents(path)

            assert type(refusal(path)) is (VersionError if 8 <= offset < 16 else CorruptError), offset

            assert contents(path) == damaged, offset
            assert peer.get((4,)) == STEPS[3]
            flip(log, offset, 1 << offset % 8)
        peer.upsert({"job": 5})
        assert records(path) == [*ALL, {"job": 5}]


def test_a_reader_refuses_a_flipped_frame_that_is_new_to_it_and_goes_on_once_it_is_mended(path, log):
    with Peer(path) as peer, MicroDB(path, KEYS) as mdb:
        first = log.stat().st_size
        mdb.upsert({"job": 5})
        for offset in range(first, log.stat().st_size):
            flip(log, offset)
            damaged = contents(path)
            for call in ("get", "delete"):
                with pytest.raises(CorruptError, match=LOG) as refused:
                    getattr(peer, call)((5,))
                assert (refused.value.offset, refused.value.sequence) == (first, 5), offset
            assert {**contents(path), "header": b""} == {**damaged, "header": b""}, offset
            flip(log, offset)
        assert peer.get((5,)) == {"job": 5}
        peer.upsert({"job": 6})
        assert len(mdb) == 7


# -------------------------------------------------------------------------------------------------------------- Tails


@pytest.mark.parametrize("tail", [b"\0", b"\0" * 5000, b"rubbish", b"\xff" * 5000, b"\x01\0\0\0\0\x06" + b"\0" * 90])
@pytest.mark.parametrize("forget", [forget_header, reboot, lambda path: None], ids=["no header", "reboot", "header"])
def test_what_stands_behind_the_log_is_kept_aside_and_costs_nothing(path, log, tail, forget):
    forget(path)
    with log.open("ab") as stream:
        stream.write(tail)

    with MicroDB(path, KEYS) as mdb:
        assert list(mdb.all()) == ALL
        assert mdb.stats().torn_tails == 1
        mdb.upsert({"job": 5})

    assert list(torn_files(path).values()) == [tail]
    assert records(path) == [*ALL, {"job": 5}]


def test_what_stands_behind_a_log_in_use_is_no_business_of_its_readers_and_writers(path, log):
    with Peer(path) as peer:
        with log.open("ab") as stream:
            stream.write(b"rubbish" * 100)

        assert records(path) == ALL
        peer.upsert({"job": 5})
        assert records(path) == [*ALL, {"job": 5}]
    assert records(path) == [*ALL, {"job": 5}]


def test_frames_of_an_older_time_behind_the_log_are_not_taken_for_changes(path, log):
    data = log.read_bytes()
    places = boundaries(data)
    with log.open("ab") as stream:
        stream.write(data[places[0] : places[2]])

    assert records(path) == ALL


# ------------------------------------------------------------------------------------------------------ Foreign files


def test_a_log_that_is_none_is_refused(path, log):
    whole = contents(path)
    log.write_bytes(b"SQLite format 3\0" + bytes(4000))

    clear_error(refusal(path), log)

    log.write_bytes(whole[LOG])
    assert records(path) == ALL


def other_log(path, count):
    other = path.parent.parent / "other.json"
    with MicroDB(other, KEYS) as mdb:
        for number in range(count):
            mdb.upsert({"job": number, "of": "another"})
    return place(other, "0000000001.log")


def test_the_log_of_another_database_under_this_ones_snapshot_is_refused(path, log):
    whole = contents(path)
    for count in (0, 1, 20):
        patched = bytearray(other_log(path, count).read_bytes())
        struct.pack_into("<Q", patched, 16, 2)  # So that only the crc tells.
        log.write_bytes(patched)

        assert isinstance(refusal(path), CorruptError), count
    put_back(path, whole)
    assert records(path) == ALL


@pytest.mark.parametrize("count", [1, 20], ids=["shorter", "longer"])
def test_the_log_of_another_database_without_a_snapshot_is_refused_where_neither_has_one(tmp_path, count):
    path = tmp_path / "mine" / "mdb.json"
    path.parent.mkdir()
    with MicroDB(path, KEYS) as mdb:
        mdb.upsert_many(ALL)
    whole = contents(path)
    shutil.copyfile(other_log(path, count), place(path, "0000000001.log"))

    clear_error(refusal(path), place(path, "0000000001.log"))

    put_back(path, whole)
    assert records(path) == ALL


def test_an_older_log_of_this_database_under_the_name_of_the_newest_is_refused(path, log):
    whole = contents(path)
    log.write_bytes(whole["0000000001.history"])

    clear_error(refusal(path), log)

    put_back(path, whole)
    assert records(path) == ALL


@pytest.mark.parametrize(
    ("name", "offset", "data"),
    [(LOG, 8, struct.pack("<I", 2)), (LOG, 12, struct.pack("<I", 2)), ("header", 8, struct.pack("=Q", 2))],
    ids=["log version", "log flags", "header version"],
)
@pytest.mark.parametrize("read_only", [False, True])
def test_files_of_a_newer_version_are_not_called_damaged_nor_touched(path, name, offset, data, read_only):
    whole = contents(path)
    patch(place(path, name), offset, data)
    newer = contents(path)

    error = refusal(path, read_only=read_only)

    assert type(error) is VersionError
    assert error.path == str(place(path, name))
    assert "upgrade microdb" in str(error)
    assert contents(path) == newer
    put_back(path, whole)
    assert records(path) == ALL


def test_a_header_page_that_is_none_is_made_anew(path):
    place(path, "header").write_bytes(b"rubbish!" * 512)
    assert records(path) == ALL

    place(path, "header").write_bytes(b"rubbish!")
    assert records(path) == ALL


# --------------------------------------------------------------------------------------------------------- Taken away


@pytest.mark.parametrize("name", ["header", "lock", "save.lock", "0000000001.history"])
def test_what_can_be_made_anew_may_be_deleted(path, name):
    place(path, name).unlink()

    with MicroDB(path, KEYS) as mdb:
        assert list(mdb.all()) == ALL
        mdb.upsert({"job": 5})
        mdb.save()
    assert records(path) == [*ALL, {"job": 5}]


@pytest.mark.parametrize("name", [LOG, "mdb.json"])
@pytest.mark.parametrize("forget", [forget_header, reboot, lambda path: None], ids=["no header", "reboot", "header"])
@pytest.mark.parametrize("read_only", [False, True])
def test_what_holds_the_records_is_missed(path, name, forget, read_only):
    forget(path)
    whole = contents(path)
    place(path, name).unlink()

    clear_error(refusal(path, read_only=read_only), path)

    files = contents(path)
    assert {one: files.get(one) for one in whole if one not in (name, "header")} == {
        one: data for one, data in whole.items() if one not in (name, "header")
    }
    put_back(path, whole)
    assert records(path) == ALL


def test_an_older_copy_of_the_snapshot_is_refused(path):
    older = path.read_bytes()
    with MicroDB(path, KEYS) as mdb:
        mdb.save()
        mdb.upsert({"job": 5})
    whole = contents(path)
    path.write_bytes(older)
    swapped = contents(path)

    error = refusal(path)

    assert type(error) is ConflictError
    assert str(path) in str(error)
    assert contents(path) == swapped
    put_back(path, whole)
    assert records(path) == [*ALL, {"job": 5}]


@pytest.mark.parametrize("in_use", [False, True])
def test_a_copy_of_snapshot_and_folder_elsewhere_is_a_database_of_its_own(path, tmp_path, in_use):
    with MicroDB(path, KEYS) as mdb:
        if not in_use:
            mdb.close()
        shutil.copytree(path.parent, tmp_path / "copy")

        with MicroDB(tmp_path / "copy" / "mdb.json", KEYS) as copy:
            assert list(copy.all()) == ALL
            copy.upsert({"job": 5})
    assert records(path) == ALL


def test_a_log_deleted_under_a_process_that_has_written_nothing_yet_stops_its_writes(path, log, later):
    with MicroDB(path, KEYS) as mdb:
        log.rename(path.parent / "away")
        later()

        with pytest.raises(FailedError, match="removed"):
            mdb.upsert({"job": 5})

        assert list(mdb.all()) == ALL
        (path.parent / "away").rename(log)
        mdb.upsert({"job": 5})
    assert records(path) == [*ALL, {"job": 5}]


def test_a_log_that_was_cut_under_a_live_writer_takes_no_more_until_a_save(path, log):
    end = log.stat().st_size
    with MicroDB(path, KEYS) as mdb, MicroDB(path, KEYS) as other:
        os.truncate(log, end - 3)
        for handle in (mdb, other):
            with pytest.raises(CorruptError, match=f"the log ends here, and was written up to byte {end}"):
                handle.upsert({"job": "lost"})
        assert list(mdb.all()) == list(other.all()) == ALL
        mdb.save()
        other.upsert({"job": "new"})
    assert records(path) == [*ALL, {"job": "new"}]


def test_what_something_else_appended_to_the_log_is_cut_by_the_next_writer(path, log):
    with MicroDB(path, KEYS) as mdb:
        with log.open("ab") as stranger:
            stranger.write(b"garbage" * 100)
        mdb.upsert({"job": "new"})
        assert log.stat().st_size == mdb.stats().log_bytes
    assert records(path) == [*ALL, {"job": "new"}]
