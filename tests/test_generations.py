"""The logs by their generations: which there are, how a reader goes from one to the next, which are thrown away."""

import errno
import logging
import os

import pytest

from faulty import Faulty, only
from microdb import notes
from microdb.errors import CorruptError, StorageError
from microdb.files import OS
from microdb.keys import PartitionKeys
from microdb.paths import Paths
from microdb.wal.format import GENERATION_MAX, NO_SNAPSHOT, Position
from microdb.wal.generations import HISTORY_BYTES, HISTORY_LOGS, Generations
from microdb.wal.log import GoneError
from microdb.wal.log_file import create_log

KEYS = PartitionKeys(["id"])


@pytest.fixture
def paths(tmp_path):
    paths = Paths(tmp_path / "mdb.json")
    OS.make_folder(paths.folder)
    return paths


@pytest.fixture
def faulty():
    return Faulty()


@pytest.fixture
def make(paths, faulty):
    def _make(**options):
        return Generations(paths, KEYS, faulty, **{"read_only": False, "history_bytes": HISTORY_BYTES, **options})

    return _make


@pytest.fixture
def generations(make):
    return make()


@pytest.fixture
def add(paths):
    """A log with these payloads, the first of which has the sequence behind `base`; its end."""

    def _add(generation, base, *payloads, history=False, keys=("id",)):
        path = paths.history(generation) if history else paths.log(generation)
        log, end = create_log(
            path,
            OS,
            generation=generation,
            base_sequence=base,
            bound_to=NO_SNAPSHOT,
            partition_keys=keys,
            payloads=payloads,
        )
        return log.header.start, end

    return _add


def names(paths):
    return sorted(os.listdir(paths.folder))


def test_the_numbers_are_those_of_one_kind_in_their_order(generations, add, paths):
    for generation, history in ((3, False), (GENERATION_MAX, False), (1, True), (2, True)):
        add(generation, 0, history=history)
    for name in ("header", "x.log", "1.log", "0000000004.log.tmp", f"{GENERATION_MAX + 1:010}.log"):
        OS.create(os.path.join(paths.folder, name))
    assert generations.numbers("log") == [3, GENERATION_MAX]
    assert generations.numbers("history") == [1, 2]


@pytest.mark.parametrize("history", [False, True])
def test_a_log_is_opened_under_either_name(generations, add, history):
    add(7, 5, history=history)
    assert generations.open(7).header.base_sequence == 5


def test_a_log_that_becomes_history_as_it_is_opened_is_found_all_the_same(generations, add, faulty, paths):
    add(7, 5)
    faulty.on["open"] = only("0000000007.log", lambda _: os.rename(paths.log(7), paths.history(7)))
    assert generations.open(7).file.path == paths.history(7)


def test_a_log_that_is_not_kept_is_gone_and_the_error_says_which(generations):
    with pytest.raises(GoneError) as caught:
        generations.open(7)
    assert caught.value.generation == 7


@pytest.mark.parametrize("read_only", [False, True])
def test_a_log_is_opened_for_writing_unless_nothing_may_be_written(make, add, read_only):
    start, _ = add(1, 0)
    log = make(read_only=read_only).open(1)
    if read_only:
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            log.file.write_at(b"x", start.offset)
    else:
        log.file.write_at(b"x", start.offset)


def test_a_log_of_other_keys_is_refused_wherever_it_is_met(generations, add):
    add(1, 0, keys=("id", "name"))
    for call in (generations.open, generations.get):
        with pytest.raises(StorageError, match=r"keyed by \['id', 'name'\], opened with partition_keys=\['id'\]"):
            call(1)


def test_the_last_log_is_kept_open_and_another_takes_its_place(generations, add, faulty):
    add(1, 0)
    add(2, 0)
    assert generations.last is None
    first = generations.get(1)
    faulty.calls.clear()
    assert generations.get(1) is generations.last is first
    assert faulty.calls == []
    second = generations.get(2)
    assert generations.last is second
    assert second.header.generation == 2


# Reading across saves.


def read(generations, after, end):
    payloads, found = generations.read(after, end.head)
    assert found == end
    return [bytes(payload) for payload in payloads]


def test_a_reader_goes_on_within_a_log(generations, add):
    start, end = add(1, 0, b"one", b"two")
    assert read(generations, start, end) == [b"one", b"two"]
    assert read(generations, end, end) == []


def test_a_reader_goes_through_logs_that_join_and_overlap_and_sees_each_batch_once(generations, add):
    start, end = add(1, 0, b"1", b"2", b"3", b"4", history=True)
    middle, _ = add(2, 2, b"3", b"4", b"5", history=True)  # The save captured at 2, and took 3 and 4 along.
    _, last = add(3, 5, b"6", b"7")
    assert read(generations, start, last) == [b"1", b"2", b"3", b"4", b"5", b"6", b"7"]
    assert read(generations, end, last) == [b"5", b"6", b"7"]
    assert read(generations, middle, last) == [b"3", b"4", b"5", b"6", b"7"]
    assert generations.last.header.generation == 3


def test_a_reader_opens_each_log_once(make, add, faulty):
    generations = make()
    start, _ = add(1, 0, b"1", history=True)
    add(2, 1, b"2", history=True)
    _, last = add(3, 2, b"3")
    read(generations, start, last)
    opened = [name for call, name in faulty.calls if call == "open" and name.endswith("history")]
    assert opened == ["0000000002.history", "0000000001.history"]


def test_a_reader_that_has_read_its_log_to_the_end_does_not_need_it_any_more(generations, add, paths):
    _, end = add(1, 0, b"1", history=True)
    _, last = add(2, 1, b"2")
    os.unlink(paths.history(1))
    assert read(generations, end, last) == [b"2"]


def test_a_reader_whose_next_log_is_not_kept_has_to_begin_anew(generations, add):
    start, _ = add(1, 0, b"1", history=True)
    _, end = add(3, 1, b"2")
    with pytest.raises(GoneError) as caught:
        generations.read(start, end.head)
    assert caught.value.generation == 2


def test_a_reader_whose_own_log_does_not_lead_to_the_next_one_has_to_begin_anew(generations, add):
    start, _ = add(1, 0, b"1", history=True)
    _, end = add(2, 5, b"6")  # An edit of the snapshot was taken over, as a change that no log holds.
    with pytest.raises(GoneError):
        generations.read(start, end.head)


def test_a_reader_that_is_further_than_the_next_log_has_to_begin_anew(generations, add):
    add(1, 0, b"1", history=True)
    _, end = add(2, 1, b"2")
    ahead = Position(1, end.offset, 9, 0)
    with pytest.raises(GoneError):
        generations.read(ahead, end.head)


def test_damage_behind_a_place_is_told_by_its_own_place_whatever_is_before_it(generations, add, paths):
    _, end = add(1, 0, b"one", b"two")
    size = len(b"two") + 17
    middle = Position(1, end.offset - size, 1, _crc_at(paths.log(1), end.offset - size))
    with open(paths.log(1), "r+b") as file:
        for at in (middle.offset - 5, end.offset - 5):
            file.seek(at)
            file.write(b"?")
    with pytest.raises(CorruptError) as caught:
        generations.read(middle, end.head)
    assert caught.value.offset == middle.offset


def _crc_at(path, offset):
    with open(path, "rb") as file:
        file.seek(offset - 4)
        return int.from_bytes(file.read(4), "little")


# Putting old logs away.


def test_logs_up_to_a_generation_become_history_and_later_ones_stay(generations, add, paths):
    for generation in (1, 2, 3):
        add(generation, 0)
    generations.retire(2)
    assert names(paths) == ["0000000001.history", "0000000002.history", "0000000003.log"]


def test_history_is_kept_up_to_its_bound_and_the_newest_first(make, add, paths):
    for generation in (1, 2, 3):
        add(generation, 0, history=True)
    size = os.path.getsize(paths.history(1))
    make(history_bytes=2 * size).retire(3)
    assert names(paths) == ["0000000002.history", "0000000003.history"]
    make(history_bytes=2 * size - 1).retire(3)
    assert names(paths) == ["0000000003.history"]
    make(history_bytes=0).retire(3)
    assert names(paths) == []


def test_no_more_logs_are_kept_than_so_many_however_short(generations, add, paths):
    for generation in range(HISTORY_LOGS + 2):
        add(generation, 0, history=True)
    generations.retire(0)
    assert names(paths)[0] == "0000000002.history"
    assert len(names(paths)) == HISTORY_LOGS == 64


def test_history_that_another_throws_away_meanwhile_is_no_trouble(generations, add, paths, faulty):
    for generation in (1, 2):
        add(generation, 0, history=True)
    faulty.on["identity"] = only("0000000001.history", lambda _: os.unlink(paths.history(1)))
    generations.retire(2)
    assert names(paths) == ["0000000002.history"]
    assert not notes.waiting


@pytest.mark.parametrize("call", ["names", "rename", "identity"])
def test_logs_that_cannot_be_put_away_are_logged_and_stay_until_the_next_time(make, add, faulty, call, caplog):
    generations = make()
    paths = generations._paths
    add(1, 0)

    def refuse(_):
        raise PermissionError(errno.EACCES, "not allowed")

    faulty.on[call] = refuse
    with caplog.at_level(logging.WARNING, "microdb"):
        generations.retire(1)
        notes.tell()
    assert f"{paths.folder}: old logs could not be put away: [Errno 13] not allowed" in caplog.text
    faulty.on.clear()
    generations.retire(1)
    assert names(paths) == ["0000000001.history"]


@pytest.mark.parametrize(("inside_lock", "left"), [(True, "1-a.save.tmp"), (False, "1-b.lock.tmp")])
def test_only_the_leftovers_of_the_lock_that_one_holds_are_removed(generations, paths, inside_lock, left):
    for name in ("1-a.save.tmp", "1-b.lock.tmp", "0000000001.log", "x.tmp"):
        OS.create(os.path.join(paths.folder, name))
    generations.remove_temporaries(inside_lock=inside_lock)
    assert names(paths) == ["0000000001.log", left, "x.tmp"]


def test_what_another_has_thrown_away_does_not_count_as_kept(make, add, paths, faulty):
    for generation in (1, 2, 3):
        add(generation, 0, history=True)
    size = os.path.getsize(paths.history(1))
    faulty.on["identity"] = only("0000000003.history", lambda _: os.unlink(paths.history(3)))
    make(history_bytes=size).retire(3)
    assert names(paths) == ["0000000002.history"]
    add(3, 0, history=True)
    make(history_bytes=size - 1).retire(3)
    assert names(paths) == []
