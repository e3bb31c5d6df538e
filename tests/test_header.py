import os
import struct
from zlib import crc32

import pytest

from faulty import Faulty
from microdb.errors import CorruptError, VersionError
from microdb.files import OS
from microdb.wal import header
from microdb.wal.format import Position

END = Position(3, 77, 5, 0)
SALT = b"saltsalt"
BOOT = bytes(range(1, 17))


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "header")


@pytest.fixture
def file(path):
    file = OS.create(path)
    header.create(file)
    return file


@pytest.fixture
def words(file):
    return header.open_words(file, writable=True)


def in_a_child(function):
    """The exit code of a fork that calls `function`; 0 if it returned."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            function()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_the_page_is_created_in_full(file):
    assert file.read_all() == bytes(header.HEADER_BYTES)
    assert os.fstat(file.fd).st_blocks * 512 >= header.HEADER_BYTES


@pytest.mark.parametrize(("size", "is_synced"), [(0, True), (4095, True), (4096, False), (5000, False)])
def test_the_disk_is_waited_for_only_if_the_page_got_new_blocks(path, size, is_synced):
    faulty = Faulty()
    file = faulty.create(path)
    file.write_at(b"x" * size, 0)
    header.create(file)
    assert (("sync", "header") in faulty.calls) is is_synced


@pytest.mark.parametrize("size", [0, 1, 4095])
def test_an_unfinished_page_is_finished(path, size):
    file = OS.create(path)
    file.write_at(b"x" * size, 0)
    header.create(file)
    assert file.size() == header.HEADER_BYTES
    assert len(header.open_words(file, writable=True)) == header.HEADER_BYTES // 8


def test_a_whole_page_is_left_alone(file, words):
    header.rebuild(words, file, BOOT, end=END, salt=SALT, poisoned=0, expires=False)
    before = file.read_all()
    header.create(file)
    assert file.read_all() == before


def test_a_file_that_is_too_short_is_not_mapped(path):
    with pytest.raises(CorruptError, match="the page has 0 of its 4096 bytes"):
        header.open_words(OS.create(path), writable=True)


def test_a_rebuilt_page_says_what_it_was_told_and_keeps_its_counters(file, words):
    for word in range(2, header.HEADER_BYTES // 8):
        words[word] = 5
    header.rebuild(words, file, BOOT, end=END, salt=SALT, poisoned=3, expires=False)
    assert (words[header.HEAD], words[header.POISONED]) == (END.head, 3)
    assert (words[header.DIRTY], words[header.DURABLE]) == (0, 0)
    assert (words[header.REPAIRS], words[header.TORN], words[header.SAVES]) == (5, 5, 5)
    assert (words[header.LOCK_WAITS], words[header.CONFLICTS], words[header.SAVE_US]) == (5, 5, 5)
    assert not any(words[64::2]), "whoever had a slot is not here any more"
    assert file.read_at(0, 8) == b"microdbH"[:: 1 if words[0].to_bytes(8, "little") == b"microdbH" else -1]


def test_a_page_that_was_just_created_is_not_current(file, words):
    assert not header.is_current(words, file, BOOT)
    assert not header.is_current(words, file, bytes(16))


def test_a_rebuilt_page_is_current_in_this_file_and_this_run_of_the_machine(file, words, path):
    header.rebuild(words, file, BOOT, end=END, salt=SALT, poisoned=0, expires=False)
    assert header.is_current(words, file, BOOT)
    again = OS.open(path)
    assert header.is_current(header.open_words(again, writable=False), again, BOOT)


@pytest.mark.parametrize("other", [BOOT[:8] + bytes(8), bytes(8) + BOOT[8:], BOOT[::-1]], ids=bytes.hex)
def test_in_another_run_of_the_machine_it_is_not(file, words, other):
    header.rebuild(words, file, BOOT, end=END, salt=SALT, poisoned=0, expires=False)
    assert not header.is_current(words, file, other)


def test_where_the_system_does_not_tell_its_run_nothing_is_current(file, words):
    header.rebuild(words, file, bytes(16), end=END, salt=SALT, poisoned=0, expires=False)
    assert not header.is_current(words, file, bytes(16))


def test_a_copy_of_the_file_is_not_current(file, words, tmp_path):
    header.rebuild(words, file, BOOT, end=END, salt=SALT, poisoned=0, expires=False)
    copy = OS.create(str(tmp_path / "copy"))
    copy.write_at(file.read_all(), 0)
    assert not header.is_current(header.open_words(copy, writable=True), copy, BOOT)


def test_a_file_that_was_renamed_is_still_current(file, words, path):
    header.rebuild(words, file, BOOT, end=END, salt=SALT, poisoned=0, expires=False)
    OS.rename(path, path + "2")
    assert header.is_current(words, OS.open(path + "2"), BOOT)


@pytest.mark.parametrize("word", [0, header._BOOT, header._BOOT + 1, header._INODE])
def test_a_page_with_one_wrong_word_is_not_current(file, words, word):
    header.rebuild(words, file, BOOT, end=END, salt=SALT, poisoned=0, expires=False)
    words[word] ^= 1
    assert not header.is_current(words, file, BOOT)


def test_a_page_that_got_its_magic_and_no_version_yet_is_no_page(file, words):
    header.rebuild(words, file, BOOT, end=END, salt=SALT, poisoned=0, expires=False)
    words[1] = 0
    assert not header.is_current(header.open_words(file, writable=True), file, BOOT)


def test_a_seal_tells_what_was_fsynced_in_this_file_and_of_which_log(file, words, path, tmp_path):
    assert header.sealed(words, file) is None
    header.rebuild(words, file, BOOT, end=END, salt=SALT, poisoned=0, expires=False)
    header.seal(words, END.generation, END.offset)
    assert header.sealed(words, file) == (END.generation, END.offset)
    copy = OS.create(str(tmp_path / "copy"))
    copy.write_at(file.read_all(), 0)
    assert header.sealed(header.open_words(copy, writable=True), copy) is None


def test_the_seal_is_made_as_the_table_says(file, words):
    header.rebuild(words, file, BOOT, end=END, salt=SALT, poisoned=0, expires=False)
    header.seal(words, END.generation, END.offset)
    assert words[31] == 2**32 + crc32(struct.pack("=QQ", END.head, os.fstat(file.fd).st_ino) + SALT)


@pytest.mark.parametrize(("before", "after"), [(2**63 - 1, 2**63), (2**64 - 1, 0)])
def test_a_counter_goes_as_far_as_its_word_and_then_begins_anew(words, before, after):
    words[header.TORN] = before
    header.count(words, header.TORN)
    assert words[header.TORN] == after


@pytest.mark.parametrize("word", [header._INODE, header._SALT + END.generation % 2, header._SEALED, header._SEAL])
def test_a_seal_over_words_that_do_not_belong_together_is_none(file, words, word):
    header.rebuild(words, file, BOOT, end=END, salt=SALT, poisoned=0, expires=False)
    header.seal(words, END.generation, END.offset)
    words[word] ^= 1 << 40
    assert header.sealed(words, file) is None


@pytest.mark.parametrize("version", [2, 2**64 - 1])
def test_a_page_of_a_newer_version_is_refused_as_such(file, words, path, version):
    header.rebuild(words, file, BOOT, end=END, salt=SALT, poisoned=0, expires=False)
    words[1] = version
    for writable in (True, False):
        with pytest.raises(
            VersionError, match=f"header version {version}, this microdb knows 1; upgrade microdb"
        ) as caught:
            header.open_words(file, writable=writable)
        assert (caught.value.path, caught.value.offset) == (path, 8)


def test_a_page_without_the_magic_has_no_version(file, words):
    words[1] = 9
    assert header.open_words(file, writable=True)[1] == 9


def test_a_word_written_by_one_process_is_seen_by_another_at_once(words, path):
    to_child, from_parent = os.pipe()
    to_parent, from_child = os.pipe()

    def answer():
        mine = header.open_words(OS.open(path, write=True), writable=True)
        os.read(to_child, 1)
        mine[header.HEAD] += 1
        os.write(from_child, b"x")
        os.read(to_child, 1)
        assert mine[header.HEAD] == 2**40

    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            answer()
            code = 0
        finally:
            os._exit(code)
    words[header.HEAD] = 41
    os.write(from_parent, b"x")
    os.read(to_parent, 1)
    assert words[header.HEAD] == 42
    words[header.HEAD] = 2**40
    os.write(from_parent, b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    for descriptor in (to_child, from_parent, to_parent, from_child):
        os.close(descriptor)


def test_a_page_mapped_before_a_fork_is_shared_with_the_child(words):
    def store():
        words[header.OWNER] = os.getpid()

    assert in_a_child(store) == 0
    assert words[header.OWNER] not in {0, os.getpid()}


def test_a_page_mapped_for_reading_cannot_be_written(words, path):
    mine = header.open_words(OS.open(path), writable=False)
    words[header.HEAD] = 9
    assert mine[header.HEAD] == 9
    with pytest.raises(TypeError, match="read-only"):
        mine[header.HEAD] = 1


def test_the_map_outlives_the_file_object(path):
    file = OS.create(path)
    header.create(file)
    words = header.open_words(file, writable=True)
    del file
    words[header.HEAD] = 3
    assert header.open_words(OS.open(path), writable=False)[header.HEAD] == 3


def claimed(words, present=()):
    slot = header.Slot()
    slot.claim(words, present)
    return slot


def slots(words):
    return list(zip(words[64::2], words[65::2], strict=True))


def test_a_slot_tells_in_the_page_how_far_its_handle_has_come(words):
    first, second = claimed(words), claimed(words)
    first.sequence[0], second.sequence[0] = 7, 9
    assert slots(words)[:3] == [(os.getpid(), 7), (os.getpid(), 9), (0, 0)]
    assert header.positions(words, [os.getpid()]) == {os.getpid(): 7}, "who is furthest behind counts"
    assert header.positions(words, [1]) == {}
    first.free()
    assert header.positions(words, [os.getpid()]) == {os.getpid(): 9}
    third = claimed(words)
    assert slots(words)[0] == (os.getpid(), 0), "a free slot is taken, and forgets what was told there"
    third.free()


def test_a_slot_before_its_claim_and_after_its_end_tells_nobody(words):
    slot = header.Slot()
    slot.sequence[0] = 5
    slot.claim(words, [])
    slot.free()
    slot.free()
    slot.sequence[0] = 5
    assert slots(words)[0] == (0, 0)


def test_a_slot_that_is_dropped_is_free(words):
    slot = claimed(words)
    assert slots(words)[0][0] == os.getpid()
    del slot
    assert slots(words)[0][0] == 0


def test_a_slot_that_another_has_taken_over_is_not_given_back(words):
    slot = claimed(words)
    words[64] = 4711
    slot.free()
    assert slots(words)[0][0] == 4711


def test_a_child_leaves_the_slot_of_its_parent_alone(words):
    slot = claimed(words)
    assert in_a_child(slot.free) == 0
    assert slots(words)[0][0] == os.getpid()


def test_who_finds_all_slots_taken_goes_without(words):
    for at in range(64, 512, 2):
        words[at] = at
    before = words.tolist()
    for present in ((), range(64, 512)):  # None: where the system does not tell.
        slot = claimed(words, present)
        slot.sequence[0] = 5
        slot.free()
        assert words.tolist() == before


def test_the_slots_of_the_dead_are_taken_when_there_are_no_others(words):
    for at in range(64, 512, 2):
        words[at] = at
    slot = claimed(words, range(100, 512))
    assert slots(words)[:2] == [(os.getpid(), 0), (0, 0)]
    assert slots(words)[18] == (100, 0)
    assert slot.sequence is not None


def test_a_process_with_the_number_of_a_dead_one_inherits_no_slot_of_it(words):
    words[66] = words[70] = os.getpid()
    words[68], words[72] = 1, 2
    slot = claimed(words, [1])
    slot.sequence[0] = 8
    assert slots(words)[:5] == [(os.getpid(), 8), (0, 0), (1, 0), (0, 0), (2, 0)]


def test_where_the_system_tells_nothing_no_slot_counts_as_that_of_a_dead_one(words):
    first, second = claimed(words), claimed(words)
    assert [pid for pid, _ in slots(words)][:3] == [os.getpid(), os.getpid(), 0]
    assert first.sequence.obj is second.sequence.obj


class Recorder:
    """Words that note which of them is stored, in order."""

    def __init__(self, words):
        self.words = words
        self.stored = []

    def __getitem__(self, word):
        return self.words[word]

    def __setitem__(self, word, value):
        self.stored.append(word)
        self.words[word] = value


def test_what_a_reader_must_know_of_a_head_is_stored_before_it(words, file):
    recorder = Recorder(words)
    header.rebuild(recorder, file, BOOT, end=END, salt=SALT, poisoned=0, expires=True)
    assert words[header.EXPIRING] == END.generation + 1
    assert recorder.stored.index(header.EXPIRING) < recorder.stored.index(header.HEAD)
