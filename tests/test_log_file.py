"""One log file: what may be created, what is opened again, and how a published end is read."""

import os

import pytest

from faulty import Faulty, fail
from microdb.errors import CorruptError, StorageError
from microdb.files import OS
from microdb.keys import PartitionKeys
from microdb.wal import log_file
from microdb.wal.format import CRC_BYTES, GENERATION_MAX, KEYS_BYTES_MAX, NO_SNAPSHOT
from microdb.wal.log import GoneError
from microdb.wal.log_file import changes_in, create_log, frames_to, open_log, place_of
from microdb.wal.reader import read_frames


@pytest.fixture
def create(tmp_path):
    """A new log and the position at its end."""

    def _create(*payloads, generation=1, keys=("id",), files=OS):
        return create_log(
            str(tmp_path / "a.log"),
            files,
            generation=generation,
            base_sequence=0,
            bound_to=NO_SNAPSHOT,
            partition_keys=keys,
            payloads=payloads,
        )

    return _create


def test_a_log_of_the_last_generation_is_created_and_none_follows_it(create, tmp_path):
    log, _ = create(generation=GENERATION_MAX)
    assert open_log(log.file).header.generation == GENERATION_MAX
    os.unlink(log.file.path)
    with pytest.raises(StorageError, match=r"no log follows generation 268435455; save\(another_filename\)"):
        create(generation=GENERATION_MAX + 1)
    assert os.listdir(tmp_path) == []


def test_a_log_whose_partition_keys_take_all_the_room_there_is_comes_back(create):
    keys = ("x" * (KEYS_BYTES_MAX - 4),)  # Behind one byte for the list and three for the length of the name.
    log, _ = create(keys=keys)
    assert log.header.end == 76 + KEYS_BYTES_MAX + CRC_BYTES
    assert open_log(log.file).header == log.header


def test_a_log_does_not_say_that_the_one_before_it_failed_if_nobody_says_so(create):
    log, _ = create()
    assert not open_log(log.file).header.after_failure


def test_a_log_that_cannot_be_written_to_the_disk_is_not_left_behind(create, tmp_path):
    faulty = Faulty()
    faulty.on["sync"] = fail
    with pytest.raises(OSError, match="made to fail"):
        create(b"one", files=faulty)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("before", [0, 1, 9])
def test_a_payload_that_holds_no_changes_is_damage_of_its_file(before):
    payloads = [b"\x91\x91\x02"] * before + [b"\xc0"]
    with pytest.raises(CorruptError, match="a frame whose crc is right holds no changes: not a batch") as caught:
        list(changes_in(payloads, PartitionKeys(["id"]), "a.log"))
    assert caught.value.path == "a.log"
    assert list(changes_in(payloads[:-1], PartitionKeys(["id"]), "a.log")) == [[(None, None)]] * before


@pytest.mark.parametrize("begin", [0, 1])
def test_a_published_end_behind_the_end_of_the_log_is_damage_and_the_error_says_where(create, begin):
    log, end = create(b"one", b"two")
    after = (log.header.start, end)[begin]
    with pytest.raises(
        CorruptError, match="the log ends here, and its head is at byte 999; all up to sequence 2"
    ) as caught:
        frames_to(log, after, 999)
    assert (caught.value.offset, caught.value.sequence) == (end.offset, 2)


def test_a_published_end_before_the_place_that_one_has_read_to_is_damage(create):
    log, end = create(b"one", b"two")
    middle = end._replace(offset=end.offset - 20, sequence=1)
    with pytest.raises(
        CorruptError, match=f"the log ends here, and its head is at byte {middle.offset - 1}; all up to"
    ):
        frames_to(log, middle, middle.offset - 1)


def test_a_published_end_within_a_frame_is_damage_and_the_error_says_of_what_kind(create):
    log, end = create(b"one", b"two")
    with pytest.raises(CorruptError, match="15 bytes are too few for a frame; all up to sequence 1"):
        frames_to(log, log.header.start, end.offset - 5)


@pytest.mark.parametrize("search", [(), (10,), (45, 60), (1 << 20,)])
@pytest.mark.parametrize("sequence", range(4))
def test_the_place_behind_a_known_sequence_is_found_however_far_from_the_end(create, monkeypatch, search, sequence):
    monkeypatch.setattr(log_file, "_SEARCH_BYTES", search)
    payloads = [b"one", b"two", b"three"]
    log, _ = create(*payloads)
    data = log.file.read_all()[log.header.end :]
    assert place_of(log, sequence) == read_frames(data, log.header.start, last=sequence).end


@pytest.mark.parametrize(("search", "sequence"), [((10, 60), 3), ((1 << 20,), 1), ((), 0)])
def test_the_place_behind_a_known_sequence_is_found_without_reading_all_frames(create, monkeypatch, search, sequence):
    monkeypatch.setattr(log_file, "_SEARCH_BYTES", search)
    log, _ = create(b"one", b"two", b"three")
    expected = read_frames(log.file.read_all()[log.header.end :], log.header.start, last=sequence).end
    monkeypatch.setattr(log_file, "frames_until", None)
    assert place_of(log, sequence) == expected


def test_the_place_behind_a_sequence_that_a_log_does_not_have_is_gone(create):
    log, _ = create(b"one")
    with pytest.raises(GoneError):
        place_of(log, 2)
