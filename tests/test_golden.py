"""Old files open for ever: databases as an older version left them, byte for byte, under `tests/data/golden`.

What is in them, and how they were made, says `golden`.
"""

import os
import shutil
import struct
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

import golden
import microdb
from golden import BOOT_ID, DATABASES, SALT
from microdb.files import OS
from microdb.wal import writer
from microdb.wal.codec import encode_clear, encode_delete, encode_upsert, join
from microdb.wal.format import AFTER_FAILURE, DURABLE_BEFORE, Position
from strategies import same
from walfiles import Wal

KEPT = Path(__file__).parent / "data" / "golden"
NEWEST = "1.0"
"""The format that this version writes."""

every_golden = pytest.mark.parametrize("kept", sorted(str(path.relative_to(KEPT)) for path in KEPT.glob("*/*")))
every_run = pytest.mark.parametrize("is_same_run", [False, True], ids=["after a reboot", "in the same run"])


@pytest.fixture
def copied(tmp_path):
    """A writable copy of a golden database; in the same run of the machine, its page is taken at its word."""

    def _copied(kept, *, is_same_run):
        path = shutil.copytree(KEPT / kept, tmp_path / "copied") / "mdb.json"
        page = Path(f"{path}.wal", "header")
        if is_same_run and page.exists():
            with open(page, "r+b") as file:
                file.seek(8 * 22)
                file.write(struct.pack("=Q", page.stat().st_ino))
        return path, golden.Run() if is_same_run else OS

    return _copied


def records_of(path, keys, files, **options):
    with microdb.MicroDB(path, keys, files=files, **options) as mdb:
        return list(mdb.all())


def contents(path):
    return {file.relative_to(path.parent): file.read_bytes() for file in path.parent.rglob("*") if file.is_file()}


def test_every_golden_database_is_kept():
    assert sorted(path.name for path in (KEPT / NEWEST).iterdir()) == sorted(DATABASES)


def test_the_golden_databases_hold_what_they_are_there_for():
    found = [file for file in (KEPT / NEWEST).rglob("*") if file.is_file()]
    files = {str(file.relative_to(KEPT / NEWEST)): file.read_bytes() for file in found}
    assert files["fsync-failed/mdb.json.wal/0000000002.log"][12] == AFTER_FAILURE
    assert files["log/mdb.json.wal/0000000001.log"].count(b"\x91\x91\x02") == 1, "a clear"
    assert files["expiring/mdb.json.wal/0000000002.log"].count(b"\x93\x04\x82") == 3, "carried over"
    assert files["expiring/mdb.json.wal/0000000002.log"].count(b"\x93\x03\x82") == 2
    assert [name for name in files if name.startswith("history/") and name.endswith(".history")]
    assert [name for name in files if name.startswith("saver-died-before") and name.endswith(".tmp")]
    before, after = (files[f"saver-died-{when}-commit/mdb.json"].count(b"\n{") for when in ("before", "after"))
    assert (before, after) == (1, 6)


@every_golden
@every_run
def test_an_old_database_opens_for_reading_as_it_was_left(kept, is_same_run, copied):
    expected = DATABASES[Path(kept).name]
    path, files = copied(kept, is_same_run=is_same_run)
    before = contents(path)
    assert same(records_of(path, expected.keys, files, read_only=True), expected.records)
    assert contents(path) == before


@every_golden
@every_run
def test_an_old_database_opens_for_writing_and_goes_on(kept, is_same_run, copied):
    expected = DATABASES[Path(kept).name]
    path, files = copied(kept, is_same_run=is_same_run)
    new = dict.fromkeys(expected.keys, "new")
    with microdb.MicroDB(path, expected.keys, files=files) as mdb:
        assert same(list(mdb.all()), expected.records)
        for record in expected.records:
            assert same(mdb.get(record), record)
        mdb.upsert(new)
    grown = [*expected.records, new]
    assert same(records_of(path, expected.keys, files, read_only=True), grown)
    with microdb.MicroDB(path, expected.keys, files=files) as mdb:
        mdb.save()
        assert mdb.delete(new)
    assert same(records_of(path, expected.keys, files), expected.records)


@every_run
def test_an_old_database_still_knows_when_its_records_expire(is_same_run, copied):
    path, files = copied(f"{NEWEST}/expiring", is_same_run=is_same_run)
    for options in ({"read_only": True}, {}):
        with microdb.MicroDB(path, ("id",), files=files, **options) as mdb:
            assert [mdb.expiry((n,)) for n in (1, 2, 3, 4, 5)] == [golden.FAR, None, golden.FAR, golden.FAR, golden.FAR]
        with microdb.MicroDB(path, ("id",), files=files, clock=lambda: golden.FAR, **options) as mdb:
            assert list(mdb) == [(2,)]


def test_an_old_page_of_this_run_still_tells_how_far_its_log_goes(copied):
    path, files = copied(f"{NEWEST}/log", is_same_run=True)
    log = Wal(path).log()
    at, length = Wal(path).frames()[-1]
    os.truncate(log, at)
    with pytest.raises(microdb.CorruptError, match=f"published up to {at + length}"):
        microdb.MicroDB(path, ("id",), files=files)


def test_this_version_makes_the_same_snapshots_and_logs_byte_for_byte(tmp_path):
    golden.make(tmp_path / "made")
    made, kept = (written(folder) for folder in (tmp_path / "made", KEPT / NEWEST))
    assert made.keys() == kept.keys()
    assert [name for name in made if made[name] != kept[name]] == []


def written(folder):
    """All but the pages, whose words tell of processes and inodes, and what has a random name."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != "header" and file.suffix != ".tmp"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


LOG_HEADER = bytes.fromhex(
    "6d6963726f64624c"  # magic
    "01000000"  # version
    "01000000"  # flags: after a failure
    "0700000000000000"  # generation
    "676f6c6473616c74"  # salt
    "6d6963726f646220676f6c64656e2031"  # boot id
    "2a00000000000000"  # base sequence
    "abababababababababababababababab"  # hash of the snapshot
    "06000000"  # length of the partition keys
    "92a16ba26964"  # "k", "id"
    "0fe9ae62"
)

FRAMES = bytes.fromhex(
    "0b000000 01 2b00000000000000"  # length, flags: durable before, sequence
    "9182a16b01a2696492c0c3"
    "eaf17d5e"
    "06000000 00 2c00000000000000"
    "919201920105"
    "b49aeb68"
    "03000000 00 2d00000000000000"
    "919102"
    "a091a6f2"
)


def test_the_header_of_a_log_is_these_bytes():
    with mock.patch.object(writer, "secrets", SimpleNamespace(token_bytes=lambda size: SALT[:size])):
        data, header = writer.log_header(
            generation=7,
            boot_id=BOOT_ID,
            base_sequence=42,
            snapshot_hash=b"\xab" * 16,
            partition_keys=("k", "id"),
            after_failure=True,
        )
    assert data == LOG_HEADER
    assert header.start == Position(7, len(LOG_HEADER), 42, int.from_bytes(LOG_HEADER[-4:], "little"))


def test_the_frames_of_a_log_are_these_bytes():
    start = Position(7, 86, 42, int.from_bytes(LOG_HEADER[-4:], "little"))
    items = [encode_upsert({"k": 1, "id": [None, True]}), encode_delete((1, 5)), encode_clear()]
    data, end = writer.write_frames([join([item]) for item in items], start, flags=DURABLE_BEFORE)
    assert data == FRAMES
    assert end == Position(7, 86 + len(FRAMES), 45, int.from_bytes(FRAMES[-4:], "little"))
