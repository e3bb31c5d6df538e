"""`microdb repair`: all that is sound goes into a new database, and what is lost is listed."""

import json
import os
import pty
import shutil
import subprocess
import sys

import pytest

import microdb.repair
from faulty import Faulty, fail, save_that_waits
from microdb.cli import main
from microdb.files import OS
from microdb.wal.codec import encode_upsert, join
from microdb.wal.format import FRAME
from microdb.wal.log_file import create_log, snapshot_hash
from walfiles import append_payload, ids, overwrite


@pytest.fixture
def repair(capsys, path, tmp_path):
    """Run the command on the database at `path`; gives its exit code and its output."""

    def _repair(*options):
        code = main(["repair", str(path), *options])
        output, errors = capsys.readouterr()
        assert bool(errors) == (code == 2), errors
        return code, output + errors

    return _repair


@pytest.fixture
def new(tmp_path):
    return tmp_path / "new.json"


@pytest.fixture
def saved(ten, open_db):
    """A database with ten records in its snapshot, one more in its log, and the log before it as history."""
    mdb = open_db()
    mdb.save()
    mdb.upsert({"id": "in the log"})
    mdb.close()
    return ten


def everything(wal):
    files = [*wal.folder.iterdir(), *([wal.snapshot] if wal.snapshot.exists() else [])]
    return {str(file): file.read_bytes() for file in files}


def ruin(wal, number, generation=1):
    """Damage the frame `number` of a log, counted from 0, so that more than a bit of it is wrong."""
    at, length = wal.frames(generation)[number]
    overwrite(wal.log(generation), at + length - 7, b"\xff\xfe\xfd")
    return at, at + length


def drop_history(wal):
    wal.log(1).with_suffix(".history").unlink()


def save_with_two_changes_meanwhile(open_db):
    faulty = Faulty()
    mdb = open_db(files=faulty)
    with save_that_waits(mdb, faulty):
        mdb.upsert({"id": "one"})
        mdb.upsert({"id": "two"})
    mdb.close()


# --------------------------------------------------------------------------------------------------- The command itself


def test_without_a_target_it_only_tells(ten, repair, tmp_path):
    before = everything(ten)
    code, output = repair()
    assert code == 0
    assert "10 records can be saved; batches of the log in them: 10" in output
    assert "Nothing was written" in output
    assert everything(ten) == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mdb.json.wal"]


def test_a_sound_database_comes_through_whole(saved, repair, new, open_db):
    before = everything(saved)
    assert repair("--into", str(new)) == (
        0,
        f"{saved.snapshot}: keyed by id\n11 records can be saved; batches of the log in them: 1\nwritten: {new}\n",
    )
    assert everything(saved) == before
    assert ids(open_db(new)) == [*range(10), "in the log"]


def test_what_expires_does_so_in_the_new_database_too(saved, repair, new, open_db):
    far = 1e11
    mdb = open_db()
    mdb.upsert_many([{"id": 3, "tags": ["x"]}, {"id": "new"}], expires_at=far)
    mdb.save()
    mdb.set_expiry((4,), expires_at=far)
    mdb.upsert({"id": 5}, expires_at=1)
    mdb.close()
    assert repair("--into", str(new))[0] == 0
    assert ids(open_db(new)) == [0, 1, 2, 3, 4, 6, 7, 8, 9, "in the log", "new"]
    assert [open_db(new).expiry((key,)) for key in (2, 3, 4, "new")] == [None, far, far, far]
    assert open_db(new)[3,] == {"id": 3, "tags": ["x"]}


def test_a_time_that_was_carried_over_and_is_lost_is_not_passed_over(saved, repair, open_db):
    mdb = open_db()
    mdb.upsert({"id": 3}, expires_at=1e11)
    mdb.save()
    mdb.close()
    at, end = ruin(saved, 0, generation=3)
    code, output = repair()
    assert code == 1
    assert f"lost: {saved.log(3)}, bytes {at} to {end}" in output


@pytest.mark.parametrize("taken", ["snapshot", "folder"])
def test_the_target_must_be_new(ten, repair, new, taken):
    if taken == "snapshot":
        new.write_text("[]")
    else:
        new.with_name("new.json.wal").mkdir()
    before = everything(ten)
    code, output = repair("--into", str(new))
    assert code == 2
    assert "--into names a new database; this one exists" in output
    assert str(new) in output
    assert everything(ten) == before


def test_the_target_cannot_be_the_database_itself(ten, repair, path):
    code, output = repair("--into", str(path))
    assert code == 2
    assert "a new database" in output


def test_the_folder_of_the_target_must_be_there(ten, repair, tmp_path):
    code, output = repair("--into", str(tmp_path / "no such folder" / "new.json"))
    assert code == 2
    assert "no such folder" in output


def test_nothing_is_repaired_where_nothing_is(repair):
    code, output = repair()
    assert code == 2
    assert "no such database" in output


def test_a_newer_version_is_left_alone(ten, repair):
    overwrite(ten.log(), 8, b"\2")
    code, output = repair()
    assert code == 2
    assert "upgrade microdb" in output


def test_without_any_log_the_keys_must_be_told(path, repair, new, open_db):
    path.write_text('[{"id": 1}, {"id": [2]}]')
    code, output = repair()
    assert code == 2
    assert "--keys" in output
    code, output = repair("--keys", "id", "--into", str(new))
    assert code == 1
    assert "lost: " in output
    assert "record 2: record['id']: a key field cannot hold a list" in output
    assert ids(open_db(new)) == [1]


@pytest.mark.parametrize("keys", ["name", "id,name", "", "id,id"])
def test_other_keys_than_those_of_the_log_are_refused(saved, repair, keys):
    code, output = repair("--keys", keys)
    assert code == 2
    assert "key" in output


def test_on_a_terminal_the_findings_are_a_table(saved):
    pytest.importorskip("rich", reason="the table on a terminal needs rich, which comes with microdb[cli]")
    ruin(saved, 0, 2)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "microdb", "repair", str(saved.snapshot)]
    environment = os.environ | {"COLUMNS": "100", "TERM": "xterm"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(command, stdout=theirs, env=environment)
    os.close(theirs)
    shown = bytearray()
    with open(ours, "rb", buffering=0) as terminal:
        try:
            while data := terminal.read(4096):
                shown += data
        except OSError:  # How a terminal ends whose other side is closed.
            pass
    assert process.wait(60) == 1
    assert b"\x1b[1;31mlost" in shown
    assert b"any change after 10" in shown


def test_without_rich_it_is_as_plain_as_in_a_pipe(saved, repair, monkeypatch):
    ruin(saved, 0, 2)
    in_a_pipe = repair()
    monkeypatch.delitem(sys.modules, "microdb.repair.pretty", raising=False)
    monkeypatch.delattr(microdb.repair, "pretty", raising=False)
    for name in ("rich", "rich.console", "rich.table", "rich.text"):
        monkeypatch.setitem(sys.modules, name, None)
    assert repair() == in_a_pipe


# -------------------------------------------------------------------------------------------------------------- The log


def test_frames_behind_a_damaged_one_are_saved_too(ten, repair, new, open_db):
    start, end = ruin(ten, 4)
    before = everything(ten)
    code, output = repair("--into", str(new))
    assert code == 1
    assert f"lost: {ten.log()}, bytes {start} to {end}: change 5: the crc is wrong" in output
    assert f"in doubt: {ten.log()}: changes 6 to 10: sound, and applied; but they stand behind a gap" in output
    assert everything(ten) == before
    assert ids(open_db(new)) == [0, 1, 2, 3, 5, 6, 7, 8, 9]


def test_what_stands_behind_a_gap_can_be_left_out(ten, repair, new, open_db):
    ruin(ten, 4)
    code, output = repair("--gaps", "stop", "--into", str(new))
    assert code == 1
    assert "lost: " in output
    assert "changes 6 to 10: left out, as they stand behind a gap" in output
    assert ids(open_db(new)) == [0, 1, 2, 3]


def test_a_damaged_crc_costs_nothing_where_the_next_frame_tells_the_right_one(ten, repair, new, open_db):
    at, length = ten.frames()[4]
    overwrite(ten.log(), at + length - 3, b"\xff\xff\xff")
    code, output = repair("--into", str(new))
    assert code == 0
    assert "the frame after it tells the right one; no change is missing" in output
    assert ids(open_db(new)) == list(range(10))


def test_one_flipped_bit_is_flipped_back(ten, repair):
    at, _ = ten.frames()[9]
    byte = ten.log().read_bytes()[at + 15]
    overwrite(ten.log(), at + 15, bytes([byte ^ 4]))
    code, output = repair()
    assert code == 0
    assert f"one bit of byte {at + 15} was flipped, and is flipped back" in output
    assert "10 records can be saved" in output


def test_frames_in_a_wrong_order_or_twice_cost_nothing(ten, repair, new, open_db):
    data = ten.log().read_bytes()
    frames = [data[at : at + length] for at, length in ten.frames()]
    start = ten.frames()[0][0]
    ten.log().write_bytes(
        data[:start] + b"".join([*frames[:2], frames[4], frames[3], frames[2], frames[2], *frames[5:]])
    )
    code, output = repair("--into", str(new))
    assert code == 0, output
    assert ids(open_db(new)) == list(range(10))


def test_frames_that_follow_another_one_than_ours_are_not_of_this_log(ten, repair, new, open_db, tmp_path):
    """The next frame of this log is joined to the last one; what is joined to another is a piece of another log."""
    mdb = open_db(tmp_path / "other.json")
    for n in range(10):
        mdb.upsert({"id": f"other {n}"})
    mdb.close()
    other = (tmp_path / "other.json.wal" / ten.log().name).read_bytes()
    data = ten.log().read_bytes()
    at, _ = ten.frames()[5]
    ten.log().write_bytes(data[:at] + other[84:])
    code, output = repair("--into", str(new))
    assert code == 1
    assert "any change after 5" in output
    assert ids(open_db(new)) == list(range(5))


def test_a_torn_tail_costs_nothing_where_the_page_says_that_it_was_never_acknowledged(ten, repair):
    with ten.log().open("ab") as log:
        log.write(b"torn")
    code, output = repair()
    assert code == 0
    assert "4 bytes are too few for a frame; nothing in them was ever acknowledged" in output
    ten.header.unlink()
    code, output = repair()
    assert code == 1
    assert "lost: " in output
    assert "any change after 10: 4 bytes are too few for a frame" in output


def test_a_log_that_ends_before_the_page_says_so_has_lost_something(ten, repair):
    at, length = ten.frames()[9]
    ten.log().write_bytes(ten.log().read_bytes()[:at])
    code, output = repair()
    assert code == 1
    assert f"lost: {ten.log()}: it was acknowledged up to byte {at + length}, and ends at byte {at}" in output


def test_a_log_whose_header_is_damaged_still_gives_its_frames(saved, repair, new, open_db):
    overwrite(saved.log(2), 20, b"\xff\xfe\xfd")
    code, output = repair("--into", str(new))
    assert code == 1
    assert f"in doubt: {saved.log(2)}, its header: the crc of the log header is wrong" in output
    assert ids(open_db(new)) == [*range(10), "in the log"]


def test_a_flipped_bit_in_the_version_is_no_newer_version(saved, repair):
    overwrite(saved.log(2), 8, b"\3")
    code, output = repair()
    assert code == 0
    assert "byte 8 had a flipped bit" in output


def test_a_write_that_failed_and_could_not_be_undone_is_not_saved(open_db, wal, repair):
    """Its frame is sound and stands in the log; but the caller was told that it was not made."""
    faulty = Faulty()
    mdb = open_db(files=faulty, durability="power")
    mdb.upsert({"id": "made"})
    faulty.on.update(sync_data=fail, truncate=fail)
    with pytest.raises(OSError, match="made to fail"):
        mdb.upsert({"id": "not made"})
    mdb.close()
    assert len(wal.frames()) == 2
    code, output = repair()
    assert code == 0, output
    assert "1 records can be saved; batches of the log in them: 1" in output


def test_a_page_that_was_not_made_here_is_not_believed(ten, repair, open_db, tmp_path):
    """That of a copy, or of another database: it would say that our log is not the one that was written here."""
    open_db(tmp_path / "other.json").close()
    shutil.copy(tmp_path / "other.json.wal" / "header", ten.header)
    code, output = repair()
    assert code == 0, output
    assert "10 records can be saved" in output


def test_a_log_under_the_name_of_another_generation_is_not_applied(saved, repair):
    saved.log(2).rename(saved.log(5))
    code, output = repair()
    assert code == 1
    assert f"lost: {saved.log(5)}: the log that was written here: another one stands in its place" in output
    assert "10 records can be saved; batches of the log in them: 0" in output


def test_a_sound_frame_that_holds_no_changes_is_lost_and_the_others_are_saved(ten, repair, new, open_db):
    append_payload(ten, b"no changes")
    append_payload(ten, join([encode_upsert({"id": "behind it"})]))
    code, output = repair("--into", str(new))
    assert code == 1
    at, length = ten.frames()[10]
    assert f"lost: {ten.log()}, bytes {at} to {at + length}: not a batch of changes" in output
    assert ids(open_db(new)) == [*range(10), "behind it"]


@pytest.mark.parametrize("behind", ["nothing", "junk and one more frame"])
def test_a_search_that_would_take_too_long_is_given_up_and_says_so(ten, repair, new, open_db, behind):
    """Hundreds of places look like the next frame, and each would have to be summed to its far end."""
    at, length = ten.frames()[8]
    data = ten.log().read_bytes()
    sound, sequence = (data[:at], 9) if behind == "nothing" else (data[:at] + b"junk" + data[at : at + length], 10)
    ten.log().write_bytes(sound + FRAME.pack(4_000, 0, sequence) * 300 + bytes(4_000))
    code, output = repair("--into", str(new))
    assert code == 1
    assert "lost: " in output
    assert f"any change after {sequence - 1}: so much in it looks like frames that the search was given up" in output
    assert ids(open_db(new)) == list(range(sequence - 1))


def test_a_damaged_frame_costs_nothing_where_the_log_before_holds_it_too(open_db, ten, repair, new):
    """What is written while a save runs stands at the end of the old log, and at the beginning of the new one."""
    save_with_two_changes_meanwhile(open_db)
    at, end = ruin(ten, 0, 2)
    code, output = repair("--into", str(new))
    assert code == 0, output
    assert f"note: {ten.log(2)}, bytes {at} to {end}: the crc is wrong; another log holds the same changes" in output
    assert ids(open_db(new)) == [*range(10), "one", "two"]


def test_a_damaged_end_of_an_old_log_costs_nothing_where_the_log_after_it_holds_it_too(open_db, ten, repair, new):
    mdb = open_db()
    mdb.save()
    mdb.close()
    older = ten.snapshot.read_bytes()
    mdb = open_db()
    mdb.upsert({"id": "zero"})
    mdb.close()
    save_with_two_changes_meanwhile(open_db)
    history = ten.log(2).with_suffix(".history")
    history.write_bytes(history.read_bytes()[:-1])
    ten.snapshot.write_bytes(older)
    code, output = repair("--into", str(new))
    assert code == 0, output
    assert f"note: {history}, bytes " in output
    assert "another log holds the same changes" in output
    assert ids(open_db(new)) == [*range(10), "zero", "one", "two"]


def test_what_an_old_log_lacks_before_an_empty_one_is_lost(ten, repair, open_db):
    """No frame behind the gap shows it, but the log that follows says with which sequence it begins."""
    _, length = ten.frames()[9]
    mdb = open_db()
    mdb.save()
    mdb.close()
    ten.snapshot.unlink()
    history = ten.log(1).with_suffix(".history")
    history.write_bytes(history.read_bytes()[:-length])
    code, output = repair()
    assert code == 1
    assert f"lost: {ten.folder}: change 10: no log holds them" in output
    assert "stand behind a gap" not in output
    assert "9 records can be saved" in output


def test_logs_that_are_gone_are_lost(saved, repair):
    saved.log(2).unlink()
    code, output = repair()
    assert code == 1
    assert "lost: " in output
    assert "the log of generation 2, and with it the changes since the last save" in output
    assert "10 records can be saved" in output


def test_the_log_of_another_database_is_not_applied(ten, repair, open_db, tmp_path):
    mdb = open_db(tmp_path / "other.json")
    mdb.upsert({"id": "other"})
    mdb.close()
    ten.log().write_bytes((tmp_path / "other.json.wal" / ten.log().name).read_bytes())
    code, output = repair("--keys", "id")
    assert code == 1
    assert f"lost: {ten.log()}: the log that was written here: another one stands in its place" in output
    assert "0 records" in output


def test_a_log_with_other_keys_is_not_applied(saved, repair, open_db, tmp_path):
    mdb = open_db(tmp_path / "other.json", ["name"])
    mdb.upsert({"name": "other"})
    mdb.save()
    mdb.close()
    saved.header.unlink()
    saved.log(2).write_bytes((tmp_path / "other.json.wal" / saved.log(2).name).read_bytes())
    code, output = repair("--keys", "id")
    assert code == 1
    assert "keyed by name: not of this database" in output
    assert "10 records can be saved" in output


def test_logs_that_a_dead_save_left_are_joined(saved, repair, new, open_db):
    """Neither follows the snapshot, which was edited; the newer holds the last of the changes of the older again."""
    payloads = [join([encode_upsert({"id": name})]) for name in ("in the log", "in the newer log")]
    create_log(
        str(saved.log(3)),
        OS,
        generation=3,
        base_sequence=10,
        bound_to=b"h" * 16,
        partition_keys=("id",),
        payloads=payloads,
    )
    saved.snapshot.write_text('[{"id": "edited"}]')
    assert repair("--into", str(new))[0] == 1
    assert ids(open_db(new)) == ["edited", "in the log", "in the newer log"]


def test_a_log_of_which_one_between_is_missing_tells_what_is_missing(saved, repair, open_db):
    for n in range(3):
        mdb = open_db()
        mdb.upsert({"id": f"later {n}"})
        mdb.save()
        mdb.close()
    saved.snapshot.unlink()
    saved.log(3).with_suffix(".history").unlink()
    code, output = repair()
    assert code == 1
    assert f"lost: {saved.snapshot}: it is gone; made anew from the old logs, as far as they lead" in output
    assert f"lost: {saved.folder}: change 13: no log holds them" in output
    assert "change 14: sound, and applied" in output


# --------------------------------------------------------------------------------------------------------- The snapshot


def test_a_damaged_snapshot_is_made_anew_from_the_old_logs(saved, repair, new, open_db):
    saved.snapshot.write_bytes(saved.snapshot.read_bytes().replace(b"3", b"rubbish"))
    code, output = repair("--into", str(new))
    assert code == 0
    assert "made anew from the old logs; its hash proves that it is the same" in output
    assert ids(open_db(new)) == [*range(10), "in the log"]


def test_a_snapshot_that_is_gone_is_made_anew_from_the_old_logs(saved, repair, new, open_db):
    saved.snapshot.unlink()
    assert repair("--into", str(new))[0] == 0
    assert ids(open_db(new)) == [*range(10), "in the log"]


def test_a_flipped_bit_in_a_snapshot_is_flipped_back(saved, repair, new, open_db):
    drop_history(saved)
    data = saved.snapshot.read_bytes()
    saved.snapshot.write_bytes(data.replace(b'{"id":3}', b'{"id":3?'))
    code, output = repair("--into", str(new))
    assert code == 1, "two bits or more"
    saved.snapshot.write_bytes(data.replace(b'{"id":3}', b'{"id":3='))
    code, output = repair()
    assert code == 0
    assert "one bit was flipped, and is flipped back: the hash is right then" in output


@pytest.fixture
def large(ten, open_db):
    """A snapshot of two thousand records, too long to try each bit of it, and no log that leads to it."""
    mdb = open_db()
    mdb.upsert_many({"id": n} for n in range(2_000))
    mdb.save()
    mdb.close()
    drop_history(ten)
    assert len(ten.snapshot.read_bytes()) > 23_170
    return ten


def test_of_a_large_snapshot_a_flipped_bit_is_looked_for_where_it_cannot_be_read(large, repair, new, open_db):
    data = large.snapshot.read_bytes()
    large.snapshot.write_bytes(data.replace(b'{"id":1234}', b'{"id":1234='))
    code, output = repair("--into", str(new))
    assert code == 0, output
    at = data.index(b'{"id":1234}') + 10
    assert f"{large.snapshot}, byte {at:,}: one bit was flipped, and is flipped back" in output
    assert ids(open_db(new)) == list(range(2_000))


def test_a_flipped_bit_is_not_looked_for_where_that_would_take_too_long(ten, repair, new, open_db):
    mdb = open_db()
    mdb.upsert({"id": "long", "text": "x" * 40_000})
    mdb.save()
    mdb.close()
    drop_history(ten)
    ten.snapshot.write_bytes(ten.snapshot.read_bytes().replace(b'x"}', b'x"='))
    code, output = repair("--into", str(new))
    assert code == 1
    assert f"lost: {ten.snapshot}, line 12: no record can be read there" in output
    assert ids(open_db(new)) == list(range(10))


def test_a_snapshot_whose_hash_the_old_logs_do_not_give_is_made_anew_and_in_doubt(saved, repair, new, open_db):
    """As when another version wrote it, in other bytes: nothing proves that it held the same."""
    saved.log(2).unlink()
    create_log(
        str(saved.log(2)),
        OS,
        generation=2,
        base_sequence=10,
        bound_to=snapshot_hash(b"the same records in other bytes"),
        partition_keys=("id",),
    )
    saved.forget_boot()
    saved.snapshot.write_text("rubbish")
    code, output = repair("--into", str(new))
    assert code == 1
    assert f"in doubt: {saved.snapshot}: made anew from the old logs; but it has not the hash of the one" in output
    assert ids(open_db(new)) == list(range(10))


def test_without_the_old_logs_a_damaged_snapshot_is_saved_line_by_line(saved, repair, new, open_db):
    drop_history(saved)
    text = saved.snapshot.read_text().replace('{"id":3}', '{"id":3').replace('{"id":7}', '{"id":6}')
    saved.snapshot.write_text(text)
    code, output = repair("--into", str(new))
    assert code == 1
    assert f"lost: {saved.snapshot}, line 5: no record can be read there" in output
    assert "a record with key (6,), which a later one has too" in output
    assert "not the one that the log follows" in output
    assert ids(open_db(new)) == [0, 1, 2, 4, 5, 6, 8, 9, "in the log"]


def test_a_damaged_grid_is_saved_row_by_row(saved, repair, open_db, new):
    mdb = open_db()
    mdb.save_as_grid()
    mdb.close()
    for file in saved.folder.glob("*.history"):
        file.unlink()
    saved.snapshot.write_text(saved.snapshot.read_text().replace("[3],\n[4],\n", "3?,\n[4,5],\n"))
    code, output = repair("--into", str(new))
    assert code == 1
    assert f"{saved.snapshot}, lines 6 to 7: no record can be read there" in output
    assert ids(open_db(new)) == [0, 1, 2, 5, 6, 7, 8, 9, "in the log"]


def test_of_a_damaged_file_in_another_form_what_stands_before_is_saved(path, repair, new, open_db):
    path.write_text("[{'id': 1, 'is': None}, {'id': 2, 'is': True}, {'id': 3, 'is': Tr")
    code, output = repair("--keys", "id", "--into", str(new))
    assert code == 1
    assert "lost: " in output
    assert "all that stands behind the first 2 records" in output
    assert ids(open_db(new)) == [1, 2]


@pytest.mark.parametrize("cut", [1, 4])
def test_a_snapshot_that_was_cut_between_two_lines_is_not_called_whole(ten, open_db, repair, cut):
    """Each line of it can be read; but nothing tells how many stood behind."""
    mdb = open_db()
    mdb.save()
    mdb.close()
    shutil.rmtree(ten.folder)
    lines = ten.snapshot.read_text().splitlines(keepends=True)
    ten.snapshot.write_text("".join(lines[:-cut]))
    code, output = repair("--keys", "id")
    assert code == 1
    assert f"in doubt: {ten.snapshot}: each line can be read, and yet not the whole" in output
    assert f"{11 - cut} records can be saved" in output


def test_of_a_damaged_grid_of_0_1_3_the_rows_before_the_damage_are_saved(legacy, path, repair, new, open_db):
    path.write_bytes(
        legacy("grid.json").read_bytes().replace(b"['clean', 'undone', 'Bob']", b"['clean', 'undone' 'Bob']")
    )
    code, output = repair("--keys", "job,name", "--into", str(new))
    assert code == 1
    assert "all that stands behind the first 2 records" in output
    assert list(open_db(new, ["job", "name"])) == [("clean", "Alice"), ("study", "Alice")]


@pytest.mark.parametrize(
    "damaged",
    [
        "[['id', 'n'], [1, 2], [3, 4, 5], [6, 7]]",
        "[['id', 'n'], [1, 2], {'id': 3, 'n': 4}, [6, 7]]",
        "[['id', 'n'], [1, 2], 3, [6, 7]]",
        "[{'id': 1, 'n': 2}, [3, 4], {'id': 6, 'n': 7}]",
        "[{'id': 1, 'n': 2}, {3: 4}, {'id': 6, 'n': 7}]",
    ],
    ids=["a row too long", "a record in a grid", "a number in a grid", "a row in a list", "a field without a name"],
)
def test_what_does_not_fit_ends_what_can_be_read_of_literals(path, repair, new, open_db, damaged):
    path.write_text(damaged)
    assert repair("--keys", "id", "--into", str(new))[0] == 1
    assert list(open_db(new).all()) == [{"id": 1, "n": 2}]


@pytest.mark.parametrize("rows", ["['id', 'id'], [1, 2]", "['id', 3], [1, 2]", "['id', [3]], [1, 2]", "['id', 'id']"])
def test_a_grid_of_literals_whose_names_cannot_be_told_apart_gives_nothing(path, repair, rows):
    path.write_text(f"[{rows}]")
    code, output = repair("--keys", "id")
    assert code == 1
    assert "0 records can be saved" in output


JSON_ON_ONE_LINE = '[{"id": 1, "a": null}, {"id": {"$tuple": [2, true]}, "a": {"$set": ["it\'s"]}}, {"id": 3}]'


@pytest.mark.parametrize(
    "text", [JSON_ON_ONE_LINE, JSON_ON_ONE_LINE.replace(" ", "\n   "), "\ufeff" + JSON_ON_ONE_LINE.replace(" ", "")]
)
@pytest.mark.parametrize(
    "damaged",
    ["3", "3}", "3? }]", '{"$tuple":3}}]', '"\udcff"}]', "[" * 99_999],
    ids=["cut", "no end", "a wrong byte", "a wrong form", "not UTF-8", "too deep"],
)
def test_of_damaged_json_that_save_did_not_write_what_stands_before_is_saved(path, repair, new, text, damaged):
    """An editor has put it all on one line, or each record on several. Every value is of the type that it was."""
    path.write_bytes(text.replace("3}]", damaged).encode(errors="surrogateescape"))
    code, output = repair("--keys", "id", "--into", str(new))
    assert code == 1
    with microdb.MicroDB(new, ["id"]) as mdb:
        found = list(mdb.all())
    assert found[:2] == [{"id": 1, "a": None}, {"id": (2, True), "a": {"it's"}}]
    assert found[2:] == ([{"id": 3}] if damaged == "3}" else [])
    assert f"all that stands behind the first {len(found)} records" in output


def test_of_a_damaged_json_grid_on_one_line_the_rows_before_the_damage_are_saved(path, repair, new, open_db):
    path.write_text('[["id", "n"], [1, null], [{"$tuple": [2]}, 3], [4]')
    code, output = repair("--keys", "id", "--into", str(new))
    assert code == 1
    assert "all that stands behind the first 2 records" in output
    assert list(open_db(new).all()) == [{"id": 1, "n": None}, {"id": (2,), "n": 3}]


def test_old_logs_and_cut_tails_fill_what_a_damaged_snapshot_lacks(saved, repair, new, open_db):
    """The log of the beginning is gone, so the old logs do not lead to the whole snapshot."""
    mdb = open_db()
    mdb.save()
    mdb.upsert({"id": "after two saves"})
    mdb.close()
    drop_history(saved)
    torn = saved.folder / "0000000001-00000054-1.torn"
    frame = next(at for at, _ in saved.frames(3))
    torn.write_bytes(b"\0" * 20 + saved.log(3).read_bytes()[frame - 4 :])
    lines = saved.snapshot.read_text().replace('{"id":"in the log"}', "?").replace('{"id":3}', "?")
    saved.snapshot.write_text(lines)
    code, output = repair("--into", str(new))
    assert code == 1
    assert "not to be read there, taken from older logs or cut tails: ('in the log',)" in output
    assert ids(open_db(new)) == [0, 1, 2, 4, 5, 6, 7, 8, 9, "in the log", "after two saves"]


def test_an_older_copy_of_the_snapshot_is_led_on_by_the_old_logs(saved, repair, new, open_db):
    older = saved.snapshot.read_bytes()
    mdb = open_db()
    mdb.save()
    mdb.upsert({"id": "last"})
    mdb.close()
    saved.snapshot.write_bytes(older)
    code, output = repair("--into", str(new))
    assert code == 0
    assert "an older one" in output
    assert ids(open_db(new)) == [*range(10), "in the log", "last"]


def test_an_edited_snapshot_goes_with_the_log_or_without_it_or_as_it_was(saved, repair, tmp_path, open_db):
    saved.snapshot.write_text('[{"id": "edited"}]')
    code, output = repair("--into", str(tmp_path / "both.json"))
    assert code == 1
    assert "in doubt: " in output
    assert "edited, or damaged where it can be read" in output
    assert "(0,), (1,), (2,), (3,), (4,), (5,), (6,), (7,) and 3 more; to take that one: --snapshot original" in output
    code, output = repair("--log", "ignore", "--into", str(tmp_path / "edit.json"))
    assert code == 1
    assert "its batches, 1 that are sound: left out" in output
    assert repair("--snapshot", "original", "--into", str(tmp_path / "was.json"))[0] == 0
    assert ids(open_db(tmp_path / "both.json")) == ["edited", "in the log"]
    assert ids(open_db(tmp_path / "edit.json")) == ["edited"]
    assert ids(open_db(tmp_path / "was.json")) == [*range(10), "in the log"]


def test_nothing_is_left_out_with_an_empty_log(saved, repair, open_db):
    with open_db() as mdb:
        mdb.save()
    code, output = repair("--log", "ignore")
    assert code == 0
    assert "left out" not in output


def test_there_is_no_original_where_nothing_leads_to_it(saved, repair):
    drop_history(saved)
    saved.snapshot.write_text('[{"id": "edited"}]')
    code, output = repair("--snapshot", "original")
    assert code == 2
    assert "cannot be made anew" in output


def test_what_repair_writes_is_the_same_to_the_type(open_db, path, repair, new):
    record = {"id": (1, b"\0"), "value": {1, 2}, "nested": {"a": [1.5, None, ...]}}
    mdb = open_db()
    mdb.upsert(record)
    mdb.close()
    assert repair("--into", str(new))[0] == 0
    with microdb.MicroDB(new, ["id"]) as found:
        assert list(found.all()) == [record]
    assert isinstance(json.loads(new.read_text()), list)
