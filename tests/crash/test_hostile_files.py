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
    names = random.Random(seed).sample(list(SMALL), 25)
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


@pytest.mark.long
@pytest.mark.timeout(900)
def test_every_hostile_file_is_opened_or_refused(visit, tmp_path):
    found, visits = [], 0
    for number, (name, case) in enumerate(CASES.items()):
        for mode in MODES if name in SMALL else (OPEN, READ_ONLY):
            visits += 1
            found += [(name, mode, one) for one in complaints(visit, tmp_path / f"{number}-{mode}", case, mode)]
    print(f"figures: {len(CASES)} files, {visits} visits, {len(found)} complaints")
    assert not found, "\n".join(map(str, found))
