"""Files changed at random, some with their checksums mended: opened, or refused with an error of microdb's own.

`hostile` visits, in processes under limits of memory and time; a refusal leaves the files as they were.
"""

import contextlib
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import microdb
from conftest import DATA
from crash.hostile import KEEP, OPEN, READ_ONLY, tree, visitor, without_page
from strategies import records
from walfiles import set_boot_id

LEGACY = sorted(file.name for file in (DATA / "legacy").iterdir())


@pytest.fixture(scope="module")
def visit():
    with visitor() as visit:
        yield visit


def in_log(path, found):
    with microdb.MicroDB(path, ["id"], auto_save=False) as mdb:
        for number, record in enumerate(found):
            mdb.upsert(record | {"id": number})
        mdb.delete((0,))


def in_list(path, found):
    in_log(path, found)
    with microdb.MicroDB(path, ["id"]) as mdb:
        mdb.save()
        mdb.upsert({"id": "later"})


def in_grid(path, found):
    in_log(path, [{"a": found, "b": index} for index in range(3)])
    with microdb.MicroDB(path, ["id"]) as mdb:
        mdb.save_as_grid()


def in_literals(path, found):
    shutil.copy(DATA / "legacy" / LEGACY[len(found) % len(LEGACY)], path)


places = st.floats(0, 1)
"""Where in a file, or in what is left of it."""

some_bytes = st.binary(min_size=1, max_size=9) | st.sampled_from([b"[" * 99, b'{"$int":', b"\xdd\xff\xff\xff\xff"])
edits = st.lists(
    st.tuples(st.sampled_from(["put", "insert"]), places, some_bytes)
    | st.tuples(st.sampled_from(["cut", "double", "zero"]), places, places),
    max_size=3,
)


def edited(data, edits):
    data = bytearray(data)
    for kind, place, what in edits:
        at = int(place * len(data))
        end = at + int(what * (len(data) - at)) if isinstance(what, float) else at
        match kind:
            case "put":
                data[at : at + len(what)] = what
            case "insert":
                data[at:at] = what
            case "cut":
                del data[at:end]
            case "double":
                data[end:end] = data[at:end]
            case _:
                data[at:end] = bytes(end - at)
    return bytes(data)


class Case(NamedTuple):
    """A database, and what is done to one of its files.

    Attributes:
        make: Makes it, of `found`.
        found: Records.
        which: Of its files that are not empty.
        edits: What is done to that.
        is_mended: Whether a log gets the checksums that it should have, as far as its lengths lead.
        is_forgotten: Whether the page goes.
        mode: How it is visited.
    """

    make: Callable[[Path, list[dict[str, Any]]], None]
    found: list[dict[str, Any]]
    which: float
    edits: list[tuple[str, float, bytes | float]]
    is_mended: bool
    is_forgotten: bool
    mode: str


CASES = st.builds(
    Case,
    st.sampled_from([in_log, in_list, in_grid, in_literals]),
    st.lists(records(), max_size=3),
    places,
    edits,
    st.booleans(),
    st.booleans(),
    st.sampled_from([OPEN, READ_ONLY, KEEP]),
)


def change(path, case):
    """Do to one of the files of a database what a case says."""
    folder = Path(f"{path}.wal")
    files = [file for file in (path, *sorted(folder.glob("*"))) if file.exists() and file.stat().st_size]
    victim = files[int(case.which * (len(files) - 1))]
    victim.write_bytes(edited(victim.read_bytes(), case.edits))
    if case.is_mended and victim.suffix == ".log":
        with contextlib.suppress(struct.error, IndexError):  # The lengths lead out of the file.
            set_boot_id(victim, victim.read_bytes()[32:48])
    if case.is_forgotten:
        (folder / "header").unlink(missing_ok=True)


def check(visit, case):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mdb.json")
        case.make(path, case.found)
        change(path, case)
        before = tree(path)
        answer = visit(path, ["a" if case.make is in_literals else "id"], case.mode)
        after = tree(path)
    assert not answer.exitcode, answer
    assert answer.ours or "no such database" in answer.message, answer
    if case.mode == READ_ONLY:
        assert after == before, answer
    elif case.mode == OPEN and answer.outcome != "fine":
        assert without_page(after, path) == without_page(before, path), answer


@settings(max_examples=30)
@given(CASES)
def test_a_file_that_was_changed_anyhow_is_opened_or_refused(visit, case):
    check(visit, case)


@pytest.mark.long
@pytest.mark.timeout(900)
@settings(max_examples=3_000)
@given(CASES)
def test_a_file_that_was_changed_in_any_of_3000_ways_is_opened_or_refused(visit, case):
    """About three minutes."""
    check(visit, case)
