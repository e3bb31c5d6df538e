"""Whatever files somebody crafted, opening them gives a database or an error of microdb's own, within bounds.

`hostile` visits, and `hostile_cases` are the files. The quick form takes a sample by the seed; the long one all of
them, the large ones at 1 MiB, in some 3 minutes.
"""

import random

import pytest

from crash.hostile import KEEP, MIB, MODES, OPEN, READ_ONLY, tree, visitor, without_page
from crash.hostile_cases import LARGE, SMALL

CASES = SMALL | LARGE

# What a visit may take is 16 MiB, plus the files' size times the case's `ratio`: 10 unless it says more, for the bytes,
# what they decode to, and the copies on the way. Some need more: an empty list is one to three bytes in a file and 80
# in memory, twice over, as decoded and as kept; each of 64 levels of extension holds a copy of what is inside it. So
# the bound says that memory grows with the file, and not with what the file declares; not that it is small.

# Each line is a defect that is known; the long form fails for a case of the list that has none any more.
KNOWN_OPEN = {
    "a deep wrong content costs the square of its depth to find and to name": (
        "snapshot, ints of ints 400 deep",
        "snapshot, a wrong content 60 deep behind long lists",
    ),
    "arrays 1000 deep cost some 64 MiB, however small the file is": (
        "log, arrays in one another that declare all that may be",
    ),
    "the page is rebuilt before the payload is refused": (
        "log, lists as deep as it is long",
        "log, maps in one another that declare all that may be",
        "log, one complex",
        "log, one complex of a list",
        "log, one datetime",
        "log, one decimal of an int in hex",
        "log, one int in decimal",
        "log, one uuid",
        "log, tuples around long bytes, too deep",
        "payload behind a snapshot, a key that is a list",
        "payload behind a snapshot, a msgpack timestamp",
        "payload behind a snapshot, lists 900 deep",
        "payload, a byte that msgpack never uses",
        "payload, a change that is a str",
        "payload, a change that is an int",
        "payload, a change that is empty",
        "payload, a change that is nil",
        "payload, a clear of too much",
        "payload, a complex of a huge int",
        "payload, a complex of strs",
        "payload, a date of an int",
        "payload, a datetime in a zone above",
        "payload, a datetime in a zone of 10^5 letters",
        "payload, a datetime in a zone that is a folder",
        "payload, a datetime in a zone that is no zone",
        "payload, a datetime in a zone with a NUL",
        "payload, a datetime in an unknown zone",
        "payload, a datetime in the empty zone",
        "payload, a datetime in the year 0",
        "payload, a datetime of three",
        "payload, a datetime with a name that is an int",
        "payload, a datetime with an offset of 2^62",
        "payload, a datetime with an offset of nan",
        "payload, a datetime with fold 'a'",
        "payload, a datetime with fold 2",
        "payload, a decimal beyond every exponent",
        "payload, a decimal of a float",
        "payload, a decimal of a list",
        "payload, a decimal of a tuple",
        "payload, a decimal of nothing",
        "payload, a delete of a list in a key",
        "payload, a delete of a map in a key",
        "payload, a delete of a set in a key",
        "payload, a delete of an int",
        "payload, a delete of too much",
        "payload, a key that is a list",
        "payload, a key that is a map",
        "payload, a key that is a nan",
        "payload, a key that is a set",
        "payload, a key that is a signalling nan",
        "payload, a key that is a tuple of a list",
        "payload, a key that is a tuple of a nan",
        "payload, a map",
        "payload, a map of 2^32 - 1",
        "payload, a msgpack timestamp",
        "payload, a msgpack timestamp as key",
        "payload, a msgpack timestamp of 96 bits",
        "payload, a msgpack timestamp of no length",
        "payload, a name that is a list",
        "payload, a name that is a map",
        "payload, a name that is a nan",
        "payload, a name that is a tuple",
        "payload, a name that is an int",
        "payload, a name that is bytes",
        "payload, a name that is nil",
        "payload, a name that is not UTF-8",
        "payload, a reserved extension",
        "payload, a set of a str",
        "payload, a set of lists",
        "payload, a str",
        "payload, a str of 2^32 - 1",
        "payload, a str that is a surrogate",
        "payload, a str that is not UTF-8",
        "payload, a timedelta of 2^62",
        "payload, a timedelta of nan",
        "payload, a timedelta of ten",
        "payload, a tuple of a map",
        "payload, a tuple of a str",
        "payload, a tuple of an int",
        "payload, a tuple of lists 900 deep",
        "payload, a uuid of an int",
        "payload, a uuid of nothing",
        "payload, an array cut short",
        "payload, an array of 2^32 - 1",
        "payload, an ellipsis of something",
        "payload, an extension of 2^32 - 1",
        "payload, an extension of nothing",
        "payload, an extension of two values",
        "payload, an extension that holds an array of 2^32 - 1",
        "payload, an int",
        "payload, an int of 10^5 decimal digits",
        "payload, an int of bytes",
        "payload, an int that is a list",
        "payload, an int with a NUL",
        "payload, an unknown change",
        "payload, an unknown extension",
        "payload, bytes of 2^32 - 1",
        "payload, lists 100000 deep",
        "payload, lists 1015 deep",
        "payload, lists 66 deep",
        "payload, lists 900 deep",
        "payload, maps 1000 deep",
        "payload, nil",
        "payload, tuples 1000 deep",
        "payload, tuples 60 deep of lists 900 deep",
        "payload, tuples 66 deep",
        "payload, two values",
    ),
}
KNOWN = {name for names in KNOWN_OPEN.values() for name in names}


@pytest.fixture(scope="module")
def visit():
    with visitor() as visit:
        yield visit


def complaints(visit, folder, case, mode):
    """What is wrong with how it was answered, if anything."""
    folder.mkdir(parents=True)
    path = folder / "mdb.json"
    case.build(path, MIB)
    before = tree(path)
    answer = visit(path, case.keys, mode, ratio=case.ratio)
    after = tree(path)
    is_absent = mode == READ_ONLY and "no such database" in answer.message
    found = []
    if answer.exitcode or not (answer.ours or is_absent or (case.is_place and answer.is_os_error)):
        found.append(f"ended by {answer.outcome}: {answer.message}")
    # KEEP saves on purpose; what it is refused later than at its first opening, it may have changed.
    if mode == READ_ONLY and after != before:
        found.append("changed by a reader")
    elif mode != KEEP and answer.outcome != "fine" and without_page(after, path) != without_page(before, path):
        found.append(f"changed, and refused: {answer.message}")
    return found


def test_a_sample_of_hostile_files_is_opened_or_refused(visit, tmp_path, seed):
    names = random.Random(seed).sample([name for name in SMALL if name not in KNOWN], 25)
    found = [
        (name, mode, complaint)
        for number, name in enumerate(names)
        for mode in (OPEN, READ_ONLY)
        for complaint in complaints(visit, tmp_path / f"{number}-{mode}", SMALL[name], mode)
    ]
    assert found == []


def test_a_visit_that_takes_more_than_it_may_is_found_out(visit, tmp_path):
    case = LARGE["log, one frame of empty records"]
    assert complaints(visit, tmp_path / "more", case._replace(ratio=1), OPEN)
    case.build(tmp_path / "mdb.json", MIB)
    assert visit(tmp_path / "mdb.json", case.keys, ratio=case.ratio, cpu_s=1).outcome == "SIGXCPU"


def test_known_defects_are_those_of_cases():
    assert sorted(KNOWN - set(CASES)) == []
    assert sum(map(len, KNOWN_OPEN.values())) == len(KNOWN)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_every_hostile_file_is_opened_or_refused(visit, tmp_path):
    found, failed, visits = [], set(), 0
    for number, (name, case) in enumerate(CASES.items()):
        for mode in MODES if name in SMALL else (OPEN, READ_ONLY):
            visits += 1
            for complaint in complaints(visit, tmp_path / f"{number}-{mode}", case, mode):
                failed.add(name)
                if name not in KNOWN:
                    found.append((name, mode, complaint))
    print(f"figures: {len(CASES)} files, {visits} visits, {len(found)} complaints, {len(failed & KNOWN)} known defects")
    assert not found, "\n".join(map(str, found))
    assert sorted(KNOWN - failed) == [], "mended: take them off the list"
