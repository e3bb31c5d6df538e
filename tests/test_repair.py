"""`microdb repair`: all that is sound goes into a new database, and what is lost is listed."""

import pytest

from microdb.cli import main
from microdb.files import OS
from microdb.wal.log_file import create_log
from walfiles import ids, overwrite


@pytest.fixture
def repair(capsys, path, tmp_path):
    """Run the command on the database at `path`; gives its exit code and its output."""

    def _repair(*options):
        code = main(["repair", str(path), *options])
        return code, capsys.readouterr().out

    return _repair


@pytest.fixture
def new(tmp_path):
    return tmp_path / "new.json"


def everything(wal):
    files = [*wal.folder.iterdir(), *([wal.snapshot] if wal.snapshot.exists() else [])]
    return {str(file): file.read_bytes() for file in files}


def test_without_a_target_it_only_tells(ten, repair, tmp_path):
    before = everything(ten)
    code, output = repair()
    assert code == 0
    assert "10 records are sound; 10 batches of the log are among them" in output
    assert "Nothing was written" in output
    assert everything(ten) == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mdb.json.wal"]


def test_frames_behind_a_damaged_one_are_saved_too(ten, repair, new, open_db):
    at, length = ten.frames()[4]
    overwrite(ten.log(), at + length - 6, b"\xff")
    before = everything(ten)
    code, output = repair("--into", str(new))
    assert code == 1
    assert f"{ten.log()}, bytes {at} to {at + length}" in output
    assert everything(ten) == before
    assert ids(open_db(new)) == [0, 1, 2, 3, 5, 6, 7, 8, 9]


def test_only_the_frame_whose_crc_is_damaged_is_lost(ten, repair, new, open_db):
    at, length = ten.frames()[4]
    overwrite(ten.log(), at + length - 3, b"\xff\xff\xff")
    code, output = repair("--into", str(new))
    assert code == 1
    assert f"bytes {at} to {at + length}: the crc is wrong" in output
    assert ids(open_db(new)) == [0, 1, 2, 3, 5, 6, 7, 8, 9]


def test_logs_that_a_dead_save_left_are_joined(ten, repair, new, open_db):
    """Neither follows the snapshot, which was edited; the newer holds the last of the changes of the older again."""
    mdb = open_db()
    mdb.save()
    mdb.upsert({"id": "a"})
    mdb.upsert({"id": "b"})
    mdb.close()
    log, _ = create_log(
        str(ten.log(3)), OS, generation=3, base_sequence=11, bound_to=b"h" * 16, partition_keys=("id",), payloads=[b"x"]
    )
    del log
    ten.snapshot.write_text('[{"id": "edited"}]')
    code, output = repair("--into", str(new))
    assert code == 0, output
    assert ids(open_db(new)) == ["edited", "a", "b"]


def test_a_torn_tail_is_listed(ten, repair):
    with ten.log().open("ab") as log:
        log.write(b"torn")
    code, output = repair()
    assert code == 1
    assert "4 bytes are too few for a frame" in output


def test_a_damaged_snapshot_is_saved_line_by_line(ten, repair, new, open_db):
    mdb = open_db()
    mdb.save()
    mdb.upsert({"id": "later"})
    mdb.close()
    text = ten.snapshot.read_text().replace('{"id":3}', '{"id":3').replace('{"id":7}', '{"id":6}')
    ten.snapshot.write_text(text)
    code, output = repair("--into", str(new))
    assert code == 1
    assert "line 5" in output
    assert "a record with key (6,), which a later one has too" in output
    assert "not the one that the log follows" in output
    assert ids(open_db(new)) == [0, 1, 2, 4, 5, 6, 8, 9, "later"]


def test_an_edited_snapshot_goes_with_the_log_or_without_it(ten, repair, tmp_path, open_db):
    mdb = open_db()
    mdb.save()
    mdb.upsert({"id": "in the log"})
    mdb.close()
    ten.snapshot.write_text('[{"id": "edited"}]')
    assert repair("--into", str(tmp_path / "both.json"))[0] == 0
    assert repair("--log", "ignore", "--into", str(tmp_path / "edit.json"))[0] == 0
    assert ids(open_db(tmp_path / "both.json")) == ["edited", "in the log"]
    assert ids(open_db(tmp_path / "edit.json")) == ["edited"]


def test_a_log_whose_header_is_damaged_is_lost_and_the_keys_must_be_told(ten, repair, new, open_db):
    mdb = open_db()
    mdb.save()
    mdb.close()
    overwrite(ten.log(2), 20, b"\xff")
    code, output = repair()
    assert code == 2
    assert "--keys" in output
    code, output = repair("--keys", "id", "--into", str(new))
    assert code == 1
    assert "the whole log" in output
    assert ids(open_db(new)) == list(range(10))


def test_a_record_that_cannot_be_keyed_is_listed(path, repair):
    path.write_text('[{"id": 1}, {"id": [2]}]')
    code, output = repair("--keys", "id")
    assert code == 1
    assert "record 2" in output


def test_the_target_must_be_new(ten, repair, path):
    code, output = repair("--into", str(path))
    assert code == 2
    assert "a new database" in output


def test_nothing_is_repaired_where_nothing_is(repair):
    code, output = repair()
    assert code == 2
    assert "no such database" in output


def test_a_newer_version_is_left_alone(ten, repair):
    overwrite(ten.log(), 8, b"\2")
    code, output = repair()
    assert code == 2
    assert "upgrade microdb" in output
