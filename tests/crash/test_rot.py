"""Rot: whatever happens to the bytes of a database, opening it gives what is right, or an error that says where.

`rot` says what is right. The quick forms take a sample, by the seed; the long ones every bit, frame and length.
"""

import collections
import contextlib
import os
import random

import pytest

import microdb
from bad_input_children import Peer, contents, place
from children import forked
from crash import rot
from crash.rot import FILES, NO_PAGE, PAGE, REBOOT, REBOOT_ALONE, Judge, Ledger, Sound
from microdb.repair import salvage
from microdb.repair.salvage import Choice
from microdb.wal.format import CRC_BYTES

WHENS = (PAGE, NO_PAGE, REBOOT)
DURABILITIES = {"process": {}, "synced": {"sync_at": 30}, "power": {"durability": "power"}}

every_when = pytest.mark.parametrize("when", WHENS)
every_durability = pytest.mark.parametrize("durability", DURABILITIES)
# What was fsynced makes a difference after a reboot alone.
every_case = pytest.mark.parametrize(
    ("durability", "when"),
    [
        *[("synced", PAGE), ("synced", NO_PAGE), ("process", REBOOT), ("synced", REBOOT), ("power", REBOOT)],
        ("synced", REBOOT_ALONE),
    ],
)


def sample(random_, numbers, count):
    """`count` of them, or all if there are no more."""
    return numbers if count is None or count >= len(numbers) else random_.sample(numbers, count)


# ---------------------------------------------------------------------------------------------------------------- Bits


def check_bits_of_the_log(sound, when, random_, count):
    judge = Judge(sound)
    log = sound.files[sound.log]
    for bit in sample(random_, range(8 * len(log)), count):
        answer, error = judge.expect_log(f"bit {bit}", rot.flipped(log, bit), when)
        if answer == "refused" and not isinstance(error, microdb.ConflictError):
            assert error.path == str(place(sound.path, sound.log))
            frame = max((at for at in sound.places.values() if at <= bit // 8), default=0)
            # A header whose length was hit has its crc elsewhere.
            is_near = error.offset == frame if frame else "header" in str(error) or error.offset < 80
            assert is_near, f"bit {bit}, in the frame at {frame}: the error names byte {error.offset}"
    return judge.counts


def check_bits_of_the_snapshot(sound, random_, count):
    judge = Judge(sound)
    snapshot = sound.files[sound.path.name]
    right = {"refused"} if sound.last > sound.base else {"refused", "adopted"}
    for bit in sample(random_, range(8 * len(snapshot)), count):
        judge.expect(f"bit {bit}", sound.files | {sound.path.name: rot.flipped(snapshot, bit)}, right)
    return judge.counts


def check_bits_of_the_page(sound, when, random_, count):
    """The page is a hint: the answer is right whatever it says, or the page is refused."""
    judge = Judge(sound)
    page = sound.files["header"]
    for bit in sample(random_, range(8 * len(page)), count):
        judge.expect(f"bit {bit}", sound.files | {"header": rot.flipped(page, bit)}, {"whole", "refused"}, when)
    return judge.counts


@every_case
def test_a_flipped_bit_in_the_log_is_found_or_cuts_what_was_never_fsynced(tmp_path, durability, when, seed):
    sound = rot.logged(tmp_path / "mdb.json", **DURABILITIES[durability])
    check_bits_of_the_log(sound, when, random.Random(seed), 15)


@pytest.mark.parametrize("how", ["save", "save_as_grid"])
@pytest.mark.parametrize("after", [0, 9])
def test_a_flipped_bit_in_the_snapshot_is_found_or_taken_for_an_edit_by_hand(tmp_path, how, after, seed):
    """For an edit only where the log is empty, so that nothing is lost by it but what the edit changed."""
    sound = rot.saved(tmp_path / "mdb.json", how=how, before=20, after=after)
    check_bits_of_the_snapshot(sound, random.Random(seed), 30)


@pytest.mark.parametrize("when", [PAGE, REBOOT])
def test_a_flipped_bit_in_the_page_never_makes_an_answer_wrong(tmp_path, when, seed):
    sound = rot.saved(tmp_path / "mdb.json", before=10, after=9)
    check_bits_of_the_page(sound, when, random.Random(seed), 8)
    words = [bit for word in (0, 1, 8, 16, 17, 19, 22, 28, 29) for bit in range(64 * word, 64 * word + 64, 29)]
    judge = Judge(sound)
    for bit in words:
        page = rot.flipped(sound.files["header"], bit)
        judge.expect(f"bit {bit}", sound.files | {"header": page}, {"whole", "refused"}, when)


def test_a_flipped_bit_in_the_crc_of_the_last_but_one_frame_is_no_torn_tail(tmp_path):
    """The crc is the seed of the last frame, so only the crc that should be there proves that one."""
    sound = rot.logged(tmp_path / "mdb.json", changes=9)
    judge = Judge(sound)
    log = sound.files[sound.log]
    for bit in range(8 * (sound.places[sound.last] - CRC_BYTES), 8 * sound.places[sound.last], 5):
        judge.expect(f"bit {bit}", sound.with_log(rot.flipped(log, bit)), {"refused"}, NO_PAGE)


@pytest.mark.long
@every_case
def test_every_bit_of_a_log_of_100_changes(tmp_path, durability, when, seed):
    """About two minutes each."""
    sound = rot.logged(tmp_path / "mdb.json", **DURABILITIES[durability])
    counts = check_bits_of_the_log(sound, when, random.Random(seed), None)
    print(f"figures: log, {durability}, {when}: {counts.total():,} flipped bits, {dict(counts)}, 0 wrong answers")


@pytest.mark.long
@pytest.mark.parametrize("how", ["save", "save_as_grid"])
@pytest.mark.parametrize("after", [0, 30])
def test_every_bit_of_a_snapshot_of_100_changes(tmp_path, how, after, seed):
    """About three minutes each."""
    sound = rot.saved(tmp_path / "mdb.json", how=how, after=after)
    counts = check_bits_of_the_snapshot(sound, random.Random(seed), None)
    print(f"figures: {how}, log of {after}: {counts.total():,} flipped bits, {dict(counts)}, 0 wrong answers")


@pytest.mark.long
@pytest.mark.parametrize("when", [PAGE, REBOOT])
def test_every_bit_of_the_page(tmp_path, when, seed):
    """About three minutes each."""
    sound = rot.saved(tmp_path / "mdb.json", before=20, after=10)
    counts = check_bits_of_the_page(sound, when, random.Random(seed), None)
    print(f"figures: page, {when}: {counts.total():,} flipped bits, {dict(counts)}, 0 wrong answers")


# -------------------------------------------------------------------------------------------- Frames, sectors, lengths


def check_frames(tmp_path, durability, when, step):
    sound = rot.logged(tmp_path / "mdb.json", changes=60, **DURABILITIES[durability])
    stranger = rot.logged(tmp_path / "stranger.json", changes=60, **DURABILITIES[durability], by="stranger")
    judge = Judge(sound)
    for what, frames in rot.rearranged(sound.frames(), stranger.frames(), step):
        judge.expect_log(what, sound.log_of(frames), when, strange=stranger.frames())
    return judge.counts


def check_frames_of_another_generation(tmp_path, when, step):
    """Those of the log before it, which hold changes to the same records."""
    sound = rot.saved(tmp_path / "saved.json", before=30, after=30)
    older = rot.frames_of(sound.files["0000000001.history"])
    judge = Judge(sound)
    for what, frames in rot.rearranged(sound.frames(), older, step):
        judge.expect_log(what, sound.log_of(frames), when, strange=older)
    return judge.counts


def check_sectors_and_lengths(sound, when, step):
    judge = Judge(sound)
    log = sound.files[sound.log]
    for sector_bytes in (512, 4096):
        for what, damaged in rot.zeroed(log, sector_bytes):
            judge.expect_log(what, damaged, when)
    for size in range(0, len(log), step):
        judge.expect_log(f"cut to {size} bytes", log[:size], when)
    name = sound.path.name
    if name in sound.files:
        whole = sound.files[name]
        changed = [whole[:size] for size in range(0, len(whole), step)]
        changed += [damaged for size in (512, 4096) for _, damaged in rot.zeroed(whole, size)]
        for data in changed:
            judge.expect(f"a snapshot of {len(data)} bytes", sound.files | {name: data}, {"refused"}, when)
    page = sound.files["header"]
    for damaged in [page[:size] for size in range(0, 4096, 8 * step)] + [data for _, data in rot.zeroed(page, 512)]:
        judge.expect("a page cut or zeroed", sound.files | {"header": damaged}, {"whole", "refused"}, when)
    return judge.counts


@every_case
def test_frames_that_were_doubled_swapped_dropped_or_replaced_are_never_taken_for_the_log(tmp_path, durability, when):
    check_frames(tmp_path, durability, when, 59)


@every_when
def test_frames_of_an_older_generation_are_never_taken_for_the_log(tmp_path, when):
    check_frames_of_another_generation(tmp_path, when, 29)


@every_when
def test_zeroed_sectors_and_files_cut_anywhere_are_found(tmp_path, when):
    check_sectors_and_lengths(rot.saved(tmp_path / "mdb.json", before=12, after=30), when, 211)


@pytest.mark.long
@every_case
def test_every_frame_doubled_swapped_dropped_and_replaced(tmp_path, durability, when):
    """About ten seconds each."""
    counts = check_frames(tmp_path, durability, when, 1) + check_frames_of_another_generation(tmp_path, when, 1)
    print(f"figures: frames, {durability}, {when}: {counts.total():,} damages, {dict(counts)}, 0 wrong answers")


@pytest.mark.long
@every_case
def test_every_length_and_every_sector(tmp_path, durability, when):
    """About half a minute each."""
    counts = check_sectors_and_lengths(rot.logged(tmp_path / "mdb.json", **DURABILITIES[durability]), when, 1)
    counts += check_sectors_and_lengths(rot.saved(tmp_path / "saved.json"), when, 1)
    print(f"figures: lengths, {durability}, {when}: {counts.total():,} damages, {dict(counts)}, 0 wrong answers")


# ------------------------------------------------------------------------------------------------------- Whole files


class Copies:
    """A database of three generations, with copies of its files as they were on the way, by the name of the moment."""

    def __init__(self, path):
        ledger = Ledger(microdb.MicroDB(path, ["id"]))
        self.copies, self.moments = {}, {}

        def note(moment, changes):
            for number in range(changes):
                rot.change(ledger, number)
            self.copies[moment] = contents(path)
            self.moments[moment] = len(ledger.states) - 1

        note("first", 12)
        ledger.save()
        note("just saved", 0)
        note("second", 7)
        ledger.save()
        note("saved again", 0)
        note("third", 4)
        note("last", 8)
        self.sound = Sound(path, ledger)
        self.judge = Judge(self.sound)

    def mixed(self, **kinds):
        """The present files, but some kinds of them from a copy: snapshot, logs, header."""
        files = {}
        for moment in ("now", *kinds.values()):
            source = self.sound.files if moment == "now" else self.copies[moment]
            kept = {name: data for name, data in source.items() if kinds.get(self.kind(name), "now") == moment}
            files |= kept
        return files

    def without(self, *kinds):
        return {name: data for name, data in self.sound.files.items() if self.kind(name) not in kinds}

    def kind(self, name):
        if name == self.sound.path.name:
            return "snapshot"
        ending = name.rpartition(".")[2]
        return {"log": "logs", "history": "history"}.get(ending, name)


@pytest.fixture
def copies(tmp_path):
    return Copies(tmp_path / "mdb.json")


OLDER = ("first", "just saved", "second", "saved again", "third")

# What nothing that is left could tell, and what is found then. All else is refused, or right.
# Everything taken back together is an older database, as sound as it was then; and whoever takes away the logs with all
# that knew of them leaves a file that nobody ever opened.
SAME_GENERATION = {"saved again", "third"}


def undetectable(kinds, moment, when):
    """Whether an older copy of some kinds of files is by itself a sound database, in which nothing tells of a newer."""
    if "logs" not in kinds:
        return False
    if "header" not in kinds and (when == PAGE or (when == REBOOT and moment not in SAME_GENERATION)):
        return False
    # The newer snapshot beside older logs is an edit by hand. It is taken over, and told, if they are empty.
    return "snapshot" in kinds or moment in {*SAME_GENERATION, "just saved"}


@every_when
def test_files_taken_back_to_an_older_copy_are_noticed_if_anything_newer_is_left_to_tell(copies, when):
    last = copies.moments["last"]
    for kinds in (
        *(["snapshot"], ["logs"], ["header"]),
        *(["snapshot", "logs"], ["logs", "history", "header"], ["snapshot", "header"]),
        ["snapshot", "logs", "history", "header"],
    ):
        for moment in OLDER:
            what = f"{' and '.join(kinds)} as of {moment}"
            answer = copies.judge.states(what, copies.mixed(**dict.fromkeys(kinds, moment)), when)
            right = {last}
            if undetectable(kinds, moment, when):
                right = {copies.moments[moment], copies.moments["saved again"]}
            assert answer.error is not None or right.intersection(answer.states), f"{what}, {when}: {answer}"


@every_when
def test_files_that_are_deleted_are_missed_or_made_anew(copies, when):
    last, at_save = copies.moments["last"], copies.moments["saved again"]
    for kinds, states in (
        (["snapshot"], None),
        (["logs"], None),
        (["snapshot", "logs"], None),
        (["logs", "history"], at_save if when == NO_PAGE else None),
        (["header"], last),
        (["history"], last),
        (["lock", "save.lock"], last),
        (["lock", "header", "history"], last),
    ):
        what = f"without {' and '.join(kinds)}"
        answer = copies.judge.states(what, copies.without(*kinds), when)
        assert (answer.error is None) == (states is not None), f"{what}, {when}: {answer}"
        assert states is None or states in answer.states, f"{what}, {when}: {answer}"


def test_what_takes_all_traces_with_it_cannot_be_noticed(copies):
    """Not promised: a snapshot alone is a database that was never opened; and nothing at all is an empty one."""
    snapshot = copies.sound.path.name
    answer = copies.judge.states("the folder is gone", {snapshot: copies.sound.files[snapshot]})
    assert copies.moments["saved again"] in answer.states
    assert copies.judge.states("all is gone", {}).states[0] == 0


@every_when
def test_files_of_another_database_are_refused_or_left_alone(copies, tmp_path, when):
    other = rot.saved(tmp_path / "other.json", before=12, after=9, by="stranger").files
    log = copies.sound.log
    strange = {copies.sound.path.name: other["other.json"], log: other["0000000002.log"], "header": other["header"]}
    strange["0000000002.history"] = other["0000000001.history"]
    for names in ([name] for name in strange):
        files = copies.sound.files | {name: strange[name] for name in names}
        answer = copies.judge.states(f"{names} of another database", files, when)
        assert answer.error is not None or copies.moments["last"] in answer.states
        assert (answer.error is None) == (names[0] in ("header", "0000000002.history"))


@every_when
def test_the_log_of_another_database_that_follows_the_same_snapshot_is_refused_if_the_page_is_there(tmp_path, when):
    """Two that were never saved follow the same one: none. Without the page nothing tells which log is right.

    After a reboot the page tells it of a log that was fsynced once.
    """
    sound = rot.logged(tmp_path / "mdb.json", changes=9, sync_at=5)
    other = rot.logged(tmp_path / "other.json", changes=9, by="stranger")
    sound.lay(sound.with_log(other.files[other.log]))
    if when == NO_PAGE:
        place(sound.path, "header").unlink()
    with contextlib.ExitStack() as stack:
        if when != NO_PAGE:
            stack.enter_context(pytest.raises(microdb.CorruptError, match="another database"))
        mdb = stack.enter_context(microdb.MicroDB(sound.path, ["id"], files=FILES[when]))
        assert list(mdb.all()) == other.state


# ------------------------------------------------------------------------------------ Under processes that have it open


def write_at(file, offset, data):
    with file.open("r+b") as opened:
        opened.seek(offset)
        opened.write(data)


def put_in_place(file, data):
    """As editors and copying programs do: another file under the same name."""
    other = file.with_name("put in place")
    other.write_bytes(data)
    other.replace(file)


def head_of(generation, offset):
    return (generation << 36 | offset).to_bytes(8, "little")


def live_damages(sound, other):
    """What a stranger may do, by name. Each gets the paths of the snapshot, the log and the page."""
    data, middle, end = sound.files[sound.log], sound.places[sound.base + 5], len(sound.files[sound.log])
    zeros = bytes(4096)
    head = 8 * 8
    return {
        "log cut between two frames": lambda snapshot, log, page: os.truncate(log, middle),
        "log cut within a frame": lambda snapshot, log, page: os.truncate(log, middle + 3),
        "log emptied": lambda snapshot, log, page: os.truncate(log, 0),
        "log deleted": lambda snapshot, log, page: log.unlink(),
        "log replaced by itself": lambda snapshot, log, page: put_in_place(log, data),
        "log replaced by an older copy": lambda snapshot, log, page: put_in_place(log, data[:middle]),
        "log overwritten with another database's": lambda snapshot, log, page: log.write_bytes(other),
        "frames of the log zeroed": lambda snapshot, log, page: write_at(log, middle, zeros[: end - middle - 9]),
        "last frame of the log zeroed": lambda snapshot, log, page: write_at(log, end - 9, zeros[:9]),
        "header of the log zeroed": lambda snapshot, log, page: write_at(log, 0, zeros[:76]),
        "rubbish behind the log": lambda snapshot, log, page: write_at(log, end, b"rubbish"),
        "snapshot deleted": lambda snapshot, log, page: snapshot.unlink(),
        "snapshot emptied": lambda snapshot, log, page: os.truncate(snapshot, 0),
        "snapshot edited": lambda snapshot, log, page: snapshot.write_text("[]"),
        "lock deleted": lambda snapshot, log, page: (page.parent / "lock").unlink(),
        "page deleted": lambda snapshot, log, page: page.unlink(),
        "page replaced by itself": lambda snapshot, log, page: put_in_place(page, page.read_bytes()),
        "page zeroed": lambda snapshot, log, page: write_at(page, 0, zeros),
        "page cut to its first words": lambda snapshot, log, page: os.truncate(page, 100),
        "head of the page taken back": lambda snapshot, log, page: write_at(page, head, head_of(2, middle)),
        "head of the page taken on": lambda snapshot, log, page: write_at(page, head, head_of(2, end + 20)),
        "head of the page in another log": lambda snapshot, log, page: write_at(page, head, head_of(3, end)),
    }


def tried(call):
    """What it gives; or the error of microdb, whose text names a file. Any other error is a failure of the test."""
    try:
        return call()
    except microdb.MicroDBError as error:
        assert ".json" in str(error)
        return error


def fresh(path):
    with microdb.MicroDB(path, ["id"], timeout=30) as mdb:
        return list(mdb.all())


def is_right(found, state):
    return isinstance(found, microdb.MicroDBError) or repr(found) == repr(state)


LIVE = (
    *("log cut between two frames", "log cut within a frame", "log emptied", "log deleted", "log replaced by itself"),
    *("log replaced by an older copy", "log overwritten with another database's", "frames of the log zeroed"),
    *("last frame of the log zeroed", "header of the log zeroed", "rubbish behind the log", "snapshot deleted"),
    *("snapshot emptied", "snapshot edited", "lock deleted", "page deleted", "page replaced by itself", "page zeroed"),
    *("page cut to its first words", "head of the page taken back", "head of the page taken on"),
    "head of the page in another log",
)


@pytest.fixture(scope="module")
def peers():
    with Peer() as reader, Peer() as writer:
        yield reader, writer


@pytest.mark.parametrize("what", LIVE)
def test_damage_under_processes_that_have_it_open_gives_them_no_wrong_answer(tmp_path, peers, what):
    reader, writer = peers
    sound = rot.saved(tmp_path / "mdb.json", before=12, after=9)
    other = rot.saved(tmp_path / "other.json", before=12, after=9, by="strangers").files["0000000002.log"]
    reader.open(sound.path, ["id"])
    writer.open(sound.path, ["id"])
    try:
        assert reader.all() == writer.all() == sound.state
        files = sound.path, place(sound.path, sound.log), place(sound.path, "header")
        live_damages(sound, other)[what](*files)

        assert is_right(tried(reader.all), sound.state)
        assert is_right(tried(lambda: fresh(sound.path)), sound.state)
        state = list(sound.state)
        for peer, number in ((writer, 1001), (reader, 1002)):
            new = rot.record(number, by="after the damage")
            if not isinstance(tried(lambda peer=peer, new=new: peer.upsert(new)), microdb.MicroDBError):
                state.append(new)
            assert is_right(tried(reader.all), state)
            assert is_right(tried(writer.all), state)
    finally:
        reader.close()
        writer.close()
    assert is_right(tried(lambda: fresh(sound.path)), state)


def test_a_page_that_a_stranger_empties_kills_who_reads_it_and_loses_nothing(tmp_path):
    """No program survives the loss of a page that it has mapped: the system kills it. Here nothing was only there."""
    sound = rot.saved(tmp_path / "mdb.json", before=12, after=9)
    with Peer(sound.path, keys=["id"]) as peer:
        peer.upsert(rot.record(1001, by="the one that dies"))
        os.truncate(place(sound.path, "header"), 0)
        with pytest.raises(AssertionError, match="died with exit code -7"):
            peer.get((1001,))
    assert fresh(sound.path) == [*sound.state, rot.record(1001, by="the one that dies")]


def test_a_page_that_was_emptied_while_nobody_had_it_open_kills_nobody(tmp_path):
    """Not even a process that has met it before, and keeps the error that it got."""
    sound = rot.logged(tmp_path / "mdb.json", changes=9)

    def body():
        sound.lay(sound.with_log(sound.files[sound.log][:-1]))
        with pytest.raises(microdb.CorruptError) as caught:
            fresh(sound.path)
        sound.lay(sound.files)
        os.truncate(place(sound.path, "header"), 0)
        assert fresh(sound.path) == sound.state
        assert caught.value.__traceback__ is not None, "kept on purpose: it holds what the failed attempt held"

    assert forked(body) == 0


def test_nobody_writes_behind_the_end_of_a_log_that_was_cut_under_him(tmp_path, peers):
    """Else the log would have a hole, and what is acknowledged behind it could not be read by anybody."""
    sound = rot.saved(tmp_path / "mdb.json", before=12, after=9)
    for peer in peers:
        peer.open(sound.path, ["id"])
    try:
        os.truncate(place(sound.path, sound.log), sound.places[sound.last])
        for peer in peers:
            with pytest.raises(microdb.CorruptError, match=sound.log):
                peer.upsert(rot.record(1001, by="after the cut"))
            assert peer.all() == sound.state
    finally:
        for peer in peers:
            peer.close()


def test_the_log_of_another_database_under_processes_that_have_it_open_is_refused_to_a_new_one(tmp_path, peers):
    """Both were never saved, and their frames are of the same lengths: the salt alone tells."""
    _, writer = peers
    sound = rot.logged(tmp_path / "mdb.json", changes=9, by="us")
    other = rot.logged(tmp_path / "other.json", changes=9, by="it")
    assert len(sound.files[sound.log]) == len(other.files[other.log])
    writer.open(sound.path, ["id"])
    try:
        place(sound.path, sound.log).write_bytes(other.files[other.log])
        assert is_right(tried(lambda: fresh(sound.path)), sound.state)
    finally:
        writer.close()


# -------------------------------------------------------------------------------------------------------------- Repair


class Repairer:
    """Salvages one damage after the other, and holds what comes of it against the ledger.

    Whatever the damage: the source stays as it is; a record that was never acknowledged is said to be in doubt; and if
    nothing is said to be lost or in doubt, everything is there.
    """

    def __init__(self, sound):
        self.sound = sound
        self.ever = sound.ledger.ever()
        self.counts = collections.Counter()

    def salvage(self, what, files, **choice):
        sound = self.sound
        sound.lay(files)
        found = salvage(sound.path, ["id"], choice=Choice(**choice))
        assert contents(sound.path) == files, f"{what}: the source was changed"
        records = list(found.records.values())
        strange = [record for record in records if repr(record) not in self.ever.get(record.get("id"), ())]
        doubts = [finding for finding in found.findings if finding.kind == "in doubt"]
        assert doubts or not strange, f"{what}: never acknowledged, and not in doubt: {strange}"
        if found.is_whole:
            assert repr(records) == repr(sound.state), f"{what}: said to be whole: {found.findings}"
        assert all(str(sound.path) in finding.where for finding in found.findings)
        self.counts["whole" if found.is_whole else "not whole"] += 1
        self.counts["strange records, in doubt"] += len(strange)
        return found, records


def check_repair_of_bits(sound, name, random_, count):
    """A single flipped bit costs nothing: it is flipped back, where a crc or a hash is right then."""
    repairer = Repairer(sound)
    data = sound.files[name]
    alone = {one: whole for one, whole in sound.files.items() if not one.endswith(".history")}
    for bit in sample(random_, range(8 * len(data)), count):
        flipped = {name: rot.flipped(data, bit)}
        for files in (sound.files | flipped, alone | flipped):
            found, records = repairer.salvage(f"bit {bit}", files, original=name == sound.path.name)
            assert repr(records) == repr(sound.state), f"bit {bit}: {found.findings}"
    return repairer.counts


def check_repair_of_frames(sound, random_, count):
    """More than a bit costs the change whose frame was hit, and that is named; what stands before is there without."""
    repairer = Repairer(sound)
    log = sound.files[sound.log]
    ledger = sound.ledger
    for _ in range(count):
        hit = random_.randrange(sound.base + 1, sound.last + 1)
        at = random_.randrange(sound.places[hit], sound.places[hit + 1] - CRC_BYTES - 3)
        what = f"4 bytes at {at}"
        files = sound.with_log(
            log[:at] + bytes(one ^ random_.randrange(1, 256) for one in log[at : at + 4]) + log[at + 4 :]
        )
        found, records = repairer.salvage(what, files)
        assert repr(records) == repr(ledger.state_without({hit})), f"{what}: {found.findings}"
        lost = [finding for finding in found.findings if finding.kind == "lost"]
        assert any(finding.where.startswith(str(place(sound.path, sound.log))) for finding in lost)
        assert any(f"{sound.places[hit]:,} to" in finding.where for finding in lost), f"{what}: {lost}"
        _, before = repairer.salvage(what, files, behind_gaps=False)
        assert repr(before) == repr(ledger.states[hit - 1]), f"{what}: {found.findings}"
    return repairer.counts


def check_repair_of_snapshot_lines(sound, random_, count):
    """With the old log, nothing is lost; without it, at most the two lines that were hit, and that is said."""
    repairer = Repairer(sound)
    name = sound.path.name
    data = sound.files[name]
    # Behind the first line: without the names in that of a grid, no row of it can be read.
    rows = data.index(b"\n", data.index(b"\n") + 1) + 1
    for _ in range(count):
        at = random_.randrange(rows, len(data) - 8)
        what = f"3 bytes at {at}"
        files = sound.files | {name: data[:at] + b"\xff\xfe\xff" + data[at + 3 :]}
        _, records = repairer.salvage(what, files)
        assert repr(records) == repr(sound.state), what
        alone = {one: whole for one, whole in files.items() if not one.endswith(".history")}
        found, records = repairer.salvage(what, alone)
        missing = {repr(record) for record in sound.state} - {repr(record) for record in records}
        assert len(missing) <= 2, f"{what}: {len(missing)} missing, {found.findings}"
        is_named = any(finding.kind == "lost" and f"{name}, line" in finding.where for finding in found.findings)
        assert is_named, f"{what}: {found.findings}"
    return repairer.counts


def check_repair_of_page_bits(sound, random_, count):
    """Of the page nothing is needed: whatever it says, every record is there."""
    repairer = Repairer(sound)
    page = sound.files["header"]
    for bit in sample(random_, range(8 * 8 * 32), count):
        found, records = repairer.salvage(f"bit {bit}", sound.files | {"header": rot.flipped(page, bit)})
        assert repr(records) == repr(sound.state), f"bit {bit}: {found.findings}"
    return repairer.counts


def check_repair_of_whatever(copies, tmp_path, step):
    sound = copies.sound
    repairer = Repairer(sound)
    other = rot.saved(tmp_path / "other.json", before=12, after=9, by="stranger")
    older = rot.frames_of(sound.files["0000000002.history"])
    damages = {}
    for strange in (other.frames(), older):
        for what, frames in rot.rearranged(sound.frames(), strange, step):
            damages[what, len(damages)] = sound.with_log(sound.log_of(frames))
    for name in (sound.path.name, sound.log, "header", "0000000002.history", "0000000001.history"):
        data = sound.files[name]
        for size in (512, 4096):
            damages |= {(what, name): sound.files | {name: cut} for what, cut in rot.zeroed(data, size)}
        damages |= {(size, name): sound.files | {name: data[:size]} for size in range(0, len(data), 40 * step)}
        damages["deleted", name] = {one: whole for one, whole in sound.files.items() if one != name}
    damages["another's log", ""] = sound.with_log(other.files["0000000002.log"])
    damages["another's snapshot", ""] = sound.files | {sound.path.name: other.files["other.json"]}
    damages["no logs", ""] = copies.without("logs")
    for moment in OLDER:
        for kinds in (["snapshot"], ["logs"], ["header"], ["logs", "history"]):
            damages[moment, *kinds] = copies.mixed(**dict.fromkeys(kinds, moment))
    for what, files in damages.items():
        repairer.salvage(what, files)
    return repairer.counts


@pytest.mark.parametrize("how", ["save", "save_as_grid"])
def test_repair_flips_a_flipped_bit_back(tmp_path, how, seed):
    sound = rot.saved(tmp_path / "mdb.json", how=how, before=12, after=9)
    for name in (sound.path.name, sound.log):
        check_repair_of_bits(sound, name, random.Random(seed), 12)


@every_durability
def test_repair_loses_only_the_change_whose_frame_was_hit(tmp_path, durability, seed):
    sound = rot.logged(tmp_path / "mdb.json", changes=60, **DURABILITIES[durability])
    check_repair_of_frames(sound, random.Random(seed), 8)


@pytest.mark.parametrize("how", ["save", "save_as_grid"])
def test_repair_makes_a_damaged_snapshot_anew_or_reads_its_other_lines(tmp_path, how, seed):
    sound = rot.saved(tmp_path / "mdb.json", how=how, before=12, after=9)
    check_repair_of_snapshot_lines(sound, random.Random(seed), 12)


@pytest.mark.parametrize("database", [rot.logged, rot.saved])
def test_repair_needs_nothing_of_the_page(tmp_path, database, seed):
    sound = database(tmp_path / "mdb.json")
    salts = range(64 * 28, 64 * 30, 13)
    check_repair_of_page_bits(sound, random.Random(seed), 10)
    for bit in salts:
        _, records = Repairer(sound).salvage(
            f"bit {bit}", sound.files | {"header": rot.flipped(sound.files["header"], bit)}
        )
        assert records == sound.state


def test_repair_never_claims_that_all_is_there_when_it_is_not(copies, tmp_path):
    check_repair_of_whatever(copies, tmp_path, 31)


@pytest.mark.long
@pytest.mark.parametrize("how", ["save", "save_as_grid"])
def test_repair_after_every_flipped_bit(tmp_path, how, seed):
    """About five minutes each."""
    sound = rot.saved(tmp_path / "mdb.json", how=how, before=30, after=30)
    for name in (sound.path.name, sound.log):
        counts = check_repair_of_bits(sound, name, random.Random(seed), None)
        print(f"figures: repair, {how}, every bit of {name}: {dict(counts)}, nothing lost")


@pytest.mark.long
def test_repair_of_everything_else(copies, tmp_path, seed):
    """About a minute."""
    random_ = random.Random(seed)
    counts = check_repair_of_whatever(copies, tmp_path, 1)
    counts += check_repair_of_page_bits(copies.sound, random_, None)
    counts += check_repair_of_frames(rot.logged(tmp_path / "logged.json"), random_, 3_000)
    counts += check_repair_of_snapshot_lines(rot.saved(tmp_path / "saved.json"), random_, 500)
    print(f"figures: repair of frames, sectors, lengths, files: {dict(counts)}, 0 false claims")
