"""Rot: what disks, copies and strangers do to the files of a database, and a judge of what opening it gives then.

The oracle is a `Ledger`. It keeps the table after every acknowledged change, and which changes were written when all
before them had been fsynced; it asks the database nothing. A damage is a dict from file name to bytes, made from the
sound one. The judge lays it in place, opens it and names what came of it:

    whole     exactly the last state; bytes that were too many were kept aside
    cut       exactly the state before the first damaged frame; the rest kept aside in `.torn`, counted and logged
    shorter   exactly an earlier state, where the log ends between two frames: nothing tells that there was more
    adopted   exactly what stands in a snapshot that was changed while its log was empty, and logged
    refused   an error of microdb that names a file; no byte was changed

Anything else is a wrong answer, and an AssertionError. Which of these is right follows from `right`: from what the
bytes still testify, not from what the code does.
"""

import ast
import contextlib
import itertools
import json
import logging
import os
import pickle
from collections import Counter
from typing import NamedTuple

import microdb
from bad_input_children import contents, place
from microdb.files import File, Files
from microdb.wal.format import BASE_BYTES, CRC_BYTES, FRAME, FRAME_BYTES_MIN

PAGE, NO_PAGE, REBOOT, REBOOT_ALONE = "page", "no page", "reboot", "reboot, no page"
"""Who tells how far the log went: the page; nobody; after a reboot the page, of what was fsynced; or nobody."""

_WITHOUT_PAGE = (NO_PAGE, REBOOT_ALONE)

OTHER_BOOT = b"another boot id!"


class Ledger:
    """What was acknowledged. Make changes through it.

    Attributes:
        states: The table after each change, by sequence, as lists of records.
        changes: The changes by sequence, each a dict from id to record, or to None where it was deleted.
        marks: The changes that were written when every byte before them had been fsynced.
        fsynced: The sequence up to which everything is fsynced.
        saved: The sequence that each save covers, by generation.
    """

    def __init__(self, mdb):
        self.mdb = mdb
        self.states = [[]]
        self.changes = [None]
        self.marks = set()
        self.saved = {1: 0}
        self.table = {}
        self.fsynced = 0

    def upsert(self, *records):
        if len(records) == 1:
            self.mdb.upsert(records[0])
        else:
            self.mdb.upsert_many(records)
        self._acknowledged({record["id"]: dict(record) for record in records})

    def delete(self, name):
        assert self.mdb.delete((name,))
        self._acknowledged({name: None})

    def sync(self):
        self.mdb.sync()
        self.fsynced = len(self.states) - 1

    def save(self, how="save"):
        getattr(self.mdb, how)()
        self.saved[max(self.saved) + 1] = self.fsynced = len(self.states) - 1

    def _acknowledged(self, change):
        _apply(change, self.table)
        self.changes.append(change)
        if self.fsynced == len(self.states) - 1 and (self.fsynced or self.mdb.durability == "power"):
            self.marks.add(len(self.states))
        self.states.append(list(self.table.values()))
        if self.mdb.durability == "power":
            self.fsynced = len(self.states) - 1

    def state_without(self, lost):
        """The last state, if some changes had never been made."""
        table = {}
        for sequence, change in enumerate(self.changes):
            if change is not None and sequence not in lost:
                _apply(change, table)
        return list(table.values())

    def ever(self):
        """Every record that was acknowledged at some time, as text, by the id in it."""
        found = {}
        for state in self.states:
            for record in state:
                found.setdefault(record["id"], set()).add(repr(record))
        return found


def _apply(change, table):
    for name, record in change.items():
        if record is None:
            table.pop(name, None)
        else:
            table[name] = record


def _places(log):
    """Where the frames of a log begin, and where the last one ends, by the lengths that they state."""
    at = BASE_BYTES + int.from_bytes(log[BASE_BYTES - 4 : BASE_BYTES], "little") + CRC_BYTES
    yield at
    while at < len(log):
        at += FRAME_BYTES_MIN + FRAME.unpack_from(log, at)[0]
        yield at


def frames_of(log):
    """The frames of a sound log, in order."""
    return [log[at:end] for at, end in itertools.pairwise(_places(log))]


class Sound:
    """A closed database as it should be.

    Attributes:
        path: Its snapshot.
        ledger: What was acknowledged.
        files: Every file, by name.
        log: The name of the current log.
        places: Where each frame of it begins, by sequence, and after the last one where it ends.
    """

    def __init__(self, path, ledger):
        ledger.mdb.close()
        self.path = path
        self.ledger = ledger
        self.files = contents(path)
        # The page knows itself by its inode, so it is never deleted for good.
        self._page = path.parent / f"{path.name}.page"
        os.link(place(path, "header"), self._page)
        self.generation = max(ledger.saved)
        self.log = f"{self.generation:010}.log"
        self.base = ledger.saved[self.generation]
        places = list(_places(self.files[self.log]))
        self.places = dict(enumerate(places, self.base + 1))
        self.log_header_bytes = places[0]
        assert max(self.places) == self.last + 1, "every change is one frame"

    @property
    def last(self):
        """The sequence of the last change."""
        return len(self.ledger.states) - 1

    @property
    def state(self):
        """What is right to find."""
        return self.ledger.states[-1]

    def frame(self, sequence):
        return self.files[self.log][self.places[sequence] : self.places[sequence + 1]]

    def frames(self):
        """All frames of the log, in order."""
        return frames_of(self.files[self.log])

    def log_of(self, frames):
        """The log, with other frames behind its header."""
        return self.files[self.log][: self.log_header_bytes] + b"".join(frames)

    def with_log(self, data):
        return self.files | {self.log: data}

    def lay(self, files):
        """Put files in place, and nothing else. Whoever has one open keeps the same one open."""
        folder = place(self.path, "header").parent
        folder.mkdir(exist_ok=True)
        found = {self.path.name, *(file.name for file in folder.iterdir())}
        for name in found - files.keys():
            place(self.path, name).unlink(missing_ok=True)
        if "header" in files and not ("header" in found and place(self.path, "header").samefile(self._page)):
            place(self.path, "header").unlink(missing_ok=True)
            os.link(self._page, place(self.path, "header"))
        for name, data in files.items():
            place(self.path, name).write_bytes(data)


# ------------------------------------------------------------------------------------------------------ Sound databases


def record(number, by):
    return {"id": number, "name": f"name {number}", "value": number * 1.5, "by": by}


def logged(path, *, durability="process", sync_at=None, changes=100, by="us"):
    """A database that was never saved: `changes` of all kinds, of records of which some are overwritten and deleted."""
    ledger = Ledger(microdb.MicroDB(path, ["id"], durability=durability))
    for number in range(changes):
        if number == sync_at:
            ledger.sync()
        change(ledger, number, by)
    return Sound(path, ledger)


def saved(path, *, how="save", before=100, after=30, by="us"):
    """A database with a snapshot, a log of `after` changes, and the log before it as history."""
    ledger = Ledger(microdb.MicroDB(path, ["id"]))
    for number in range(before):
        change(ledger, number, by)
    ledger.save(how)
    for number in range(after):
        change(ledger, number, by)
    return Sound(path, ledger)


def change(ledger, number, by="us"):
    """One change: of ten, eight are upserts, one a batch that overwrites, one a deletion."""
    if number % 10 == 7:
        ledger.upsert(record(number, by=by), record(number - 3, by="batch"))
    elif number % 10 == 9:
        ledger.delete(number - 4)
    else:
        ledger.upsert(record(number, by=f"{by}, {len(ledger.states)}"))


# --------------------------------------------------------------------------------------------------------------- Damage


def flipped(data, bit):
    """With one bit the other way."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def zeroed(data, sector_bytes):
    """Each aligned sector made zeros, where it was not."""
    for at in range(0, len(data), sector_bytes):
        end = min(at + sector_bytes, len(data))
        changed = data[:at] + bytes(end - at) + data[end:]
        if changed != data:
            yield f"{end - at} zeros at {at}", changed


def rearranged(frames, strange, step):
    """Names and lists of frames: duplicated, swapped, dropped, replaced by strange ones; every `step`-th of each."""
    count = len(frames)
    strange = list(itertools.islice(itertools.cycle(strange), count))
    for i in sorted({*range(0, count, step), count - 1}):
        before, one, after = frames[:i], frames[i], frames[i + 1 :]
        yield f"frame {i} twice", [*before, one, one, *after]
        yield f"frame {i} again at the end", [*frames, one]
        yield f"frame {i} dropped", [*before, *after]
        yield f"from frame {i} a stranger's to the end", [*before, *strange[i:]]
        yield f"frame {i} a stranger's", [*before, strange[i], *after]
        yield f"before frame {i} a stranger's", [*before, strange[i], one, *after]
        yield f"three frames from {i} a stranger's", [*before, *strange[i : i + 3], *frames[i + 3 :]]
        for j in sorted({i + 1, (i + count // 2) % count, count - 1}):
            if i < j < count:
                yield f"frames {i} and {j} swapped", [*before, frames[j], *frames[i + 1 : j], one, *frames[j + 1 :]]


# ----------------------------------------------------------------------------------------------------------- The judge


class Rot(Files):
    """The real file system of a machine that was perhaps started anew. It waits for no disk: no power is cut here."""

    def __init__(self, *, rebooted):
        self._boot_id = OTHER_BOOT if rebooted else super().boot_id()

    def boot_id(self):
        return self._boot_id

    def open(self, path, **options):
        return _hasty(super().open(path, **options))

    def create(self, path):
        return _hasty(super().create(path))

    def sync_folder(self, path):
        pass


class _HastyFile(File):
    def sync(self):
        pass

    def sync_data(self):
        pass


def _hasty(file):
    fd, file.fd = file.fd, -1
    return _HastyFile(fd, file.path)


FILES = {when: Rot(rebooted=when in (REBOOT, REBOOT_ALONE)) for when in (PAGE, NO_PAGE, REBOOT, REBOOT_ALONE)}


class Answer(NamedTuple):
    """What came of opening a database whose files were damaged as a whole.

    Attributes:
        error: Why it was refused; None if it was opened.
        states: The sequences after which the table was as it was found.
        told: The warnings.
    """

    error: microdb.MicroDBError | None
    states: list[int]
    told: list[str]


class Judge:
    """Opens one damage after the other, and counts what comes of them.

    Attributes:
        sound: The database.
        counts: How often each answer came.
    """

    def __init__(self, sound):
        self.sound = sound
        self.counts = Counter()

    def answer(self, what, files, when=PAGE, *, read_only=False):
        """Lay files, open them, and name what came of it. Raises AssertionError at a wrong answer."""
        sound = self.sound
        files = {name: data for name, data in files.items() if name != "header" or when not in _WITHOUT_PAGE}
        sound.lay(files)
        with listening() as told:
            try:
                mdb = microdb.MicroDB(sound.path, ["id"], files=FILES[when], read_only=read_only)
            except microdb.MicroDBError as error:
                self._check_refusal(what, files, error)
                self.counts["refused"] += 1
                return "refused", pickle.loads(pickle.dumps(error))  # Without the frames, which hold files open.
            found = list(mdb.all())
            torn_tails = mdb.stats().torn_tails
            mdb.close()
        if read_only:
            assert contents(sound.path) == files, f"{what}, {when}: read_only, and it wrote"
            return "read", found
        answer = self._name(what, files, found, torn_tails, told)
        self.counts[answer] += 1
        return answer, found

    def expect(self, what, files, right, when=PAGE):
        """That the answer is one of those that are right."""
        answer, found = self.answer(what, files, when)
        assert answer in right, f"{what}, {when}: {answer} ({found!r:.300}), but right is {' or '.join(sorted(right))}"
        return answer, found

    def expect_log(self, what, log, when=PAGE, *, strange=()):
        """As `expect`, where only the log is damaged, perhaps with strange frames that are sound in themselves."""
        answers = right(self.sound, log, when)
        if "cut" in answers and any(frame in log for frame in strange):
            answers = {*answers, "refused"}
        return self.expect(what, self.sound.with_log(log), answers, when)

    def states(self, what, files, when=PAGE):
        """Of files that were replaced as a whole: after which changes the table was as it is found."""
        files = {name: data for name, data in files.items() if name != "header" or when not in _WITHOUT_PAGE}
        self.sound.lay(files)
        with listening() as told:
            try:
                with microdb.MicroDB(self.sound.path, ["id"], files=FILES[when]) as mdb:
                    found = repr(list(mdb.all()))
            except microdb.MicroDBError as error:
                self._check_refusal(what, files, error)
                return Answer(pickle.loads(pickle.dumps(error)), [], told)
        states = [sequence for sequence, state in enumerate(self.sound.ledger.states) if repr(state) == found]
        assert states, f"{what}, {when}: a table that never was: {found:.500}"
        return Answer(None, states, told)

    def _check_refusal(self, what, files, error):
        sound = self.sound
        assert str(sound.path) in str(error), f"{what}: {error!r} names no file"
        after = contents(sound.path)
        kept = {name: data for name, data in files.items() if name != "header"}
        assert {name: after.get(name) for name in kept} == kept, f"{what}: refused, and changed"

    def _name(self, what, files, found, torn_tails, told):
        sound = self.sound
        states, base = sound.ledger.states, sound.base
        text = repr(found)
        log = files.get(sound.log, b"")
        sound_bytes = common_bytes(log, sound.files[sound.log])
        kept = [data for name, data in contents(sound.path).items() if name.endswith(".torn") and name not in files]
        reported = bool(kept) and torn_tails >= 1 and any(sound.log in line for line in told)
        if sound.path.name in files and files[sound.path.name] != sound.files.get(sound.path.name):
            assert text == repr(parsed(files[sound.path.name])), f"{what}: neither refused nor taken as it stands"
            assert any("edited by hand" in line for line in told), f"{what}: taken over, and not told"
            return "adopted"
        whole_frames = max((one for one, at in sound.places.items() if at <= sound_bytes), default=base + 1) - 1
        end = sound.places[whole_frames + 1]
        if text == repr(states[-1]) and whole_frames == sound.last:
            assert kept == [log[end:]] * (len(log) > end), f"{what}: the bytes behind the log were not kept"
            return "whole"
        assert text == repr(states[whole_frames]), f"{what}: a wrong answer: {text:.500}"
        if len(log) == end:
            return "shorter"
        assert reported, f"{what}: cut, and not told"
        assert kept == [log[end:]], f"{what}: what was cut was not kept"
        return "cut"


def right(sound, log, when):
    """The answers that are right for a damaged log, whatever the code does."""
    whole = sound.files[sound.log]
    if log.startswith(whole):
        return {"whole"}
    same = common_bytes(log, whole)
    if when == PAGE or same < sound.log_header_bytes:
        return {"refused"}
    first = max(sequence for sequence, at in sound.places.items() if at <= same)
    at = sound.places[first]
    if len(log) == at and (when in _WITHOUT_PAGE or first > sound.ledger.fsynced):
        return {"shorter"}
    marks = range(sound.last + 1) if when == NO_PAGE else sound.ledger.marks
    # A frame testifies with the four bytes before it, from which its crc is reckoned; without them it may.
    later = [(one, sound.places[one]) for one in range(first, sound.last + 1) if one in marks]
    is_seen = any(whole[place - CRC_BYTES : place] + sound.frame(one) in log[at:] for one, place in later)
    if is_seen or (when == REBOOT and first <= sound.ledger.fsynced):
        return {"refused"}
    if any(sound.frame(one) in log[at:] for one, _ in later):
        return {"refused", "cut"}
    return {"cut"}


def common_bytes(one, other):
    """How many bytes two files begin with alike."""
    if one == other:
        return len(one)
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def parsed(snapshot):
    """What stands in a snapshot of plain values, read without microdb."""
    try:
        found = json.loads(snapshot, strict=False)
    except ValueError:
        # Or as a file of microdb 0.1.3, in which any white space stands between the values.
        found = ast.literal_eval(snapshot.decode().translate(str.maketrans("\v\f", "  ")))
    if found and isinstance(found[0], list):
        return [dict(zip(found[0], row, strict=True)) for row in found[1:]]
    return found


@contextlib.contextmanager
def listening():
    """The warnings of microdb, as lines; they go nowhere else."""
    told = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda entry: told.append(entry.getMessage())
    logger = logging.getLogger("microdb")
    logger.addHandler(handler)
    propagate, logger.propagate = logger.propagate, False
    try:
        yield told
    finally:
        logger.propagate = propagate
        logger.removeHandler(handler)
