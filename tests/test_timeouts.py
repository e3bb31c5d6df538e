"""How long to wait, and when to save, as callers give it: what means nothing is refused, and changes nothing."""

import asyncio
import math
import os

import pytest

import microdb

NO_NUMBERS = ["5", True, [5], 1j]
MANY = 10**400

CALLS = {
    "lock": lambda mdb, timeout: mdb.lock(timeout=timeout),
    "transaction": lambda mdb, timeout: mdb.transaction(timeout=timeout),
    "save": lambda mdb, timeout: mdb.save(timeout=timeout),
    "save_as_grid": lambda mdb, timeout: mdb.save_as_grid(timeout=timeout),
    "save elsewhere": lambda mdb, timeout: mdb.save(f"{mdb.filename}.copy", timeout=timeout),
    "asave": lambda mdb, timeout: asyncio.run(mdb.asave(timeout=timeout)),
    "wait": lambda mdb, timeout: mdb.wait(("nobody",), timeout=timeout),
    "await_change": lambda mdb, timeout: asyncio.run(mdb.await_change(("nobody",), timeout=timeout)),
    "next": lambda mdb, timeout: mdb.watch().next(timeout),
    "sleep": lambda mdb, timeout: mdb.watch().sleep(timeout),
    "alock": lambda mdb, timeout: asyncio.run(_locked(mdb, timeout)),
    "open": lambda mdb, timeout: microdb.MicroDB(f"{mdb.filename}.other", ["id"], timeout=timeout),
}

each = pytest.mark.parametrize("name", CALLS)


async def _locked(mdb, timeout):  # noqa: ASYNC109  # That of `alock`.
    async with mdb.alock(timeout):
        pass


@each
@pytest.mark.parametrize("timeout", NO_NUMBERS, ids=repr)
def test_a_time_out_that_is_no_number_is_refused(open_db, tmp_path, name, timeout):
    _refused(open_db(), tmp_path, name, timeout, TypeError)


@each
def test_a_time_out_of_nan_is_refused_and_not_waited_for(open_db, tmp_path, name):
    _refused(open_db(), tmp_path, name, math.nan, ValueError)


def _refused(mdb, folder, name, timeout, error):
    mdb.upsert({"id": 1})
    before = sorted(os.listdir(folder)), mdb.stats()
    with pytest.raises(error, match="timeout is a number of seconds, or None; found"):
        CALLS[name](mdb, timeout)
    assert (sorted(os.listdir(folder)), mdb.stats()) == before


@pytest.mark.parametrize("timeout", [MANY, math.inf], ids=["many", "inf"])
def test_a_time_out_may_be_longer_than_all_times(open_db, timeout):
    mdb = open_db(timeout=timeout)
    with mdb.lock(timeout):
        mdb.upsert({"id": 1})
    asyncio.run(_locked(mdb, timeout))
    assert mdb.wait((1,), timeout=timeout) == {"id": 1}
    mdb.save(timeout=timeout)


def test_a_time_out_below_zero_is_over_at_once(open_db):
    with pytest.raises(microdb.WaitTimeoutError):
        open_db().wait(("nobody",), timeout=-1)
    assert open_db().watch().next(-1) is None
    assert open_db().watch().next(-MANY) is None


@pytest.mark.parametrize(
    ("size", "error"), [("1000", TypeError), (1e6, TypeError), (True, TypeError), (-1, ValueError)]
)
@pytest.mark.parametrize("name", ["mdb.json", ":memory:"])
def test_when_to_save_must_be_a_number_of_bytes(tmp_path, name, size, error):
    filename = name if name == ":memory:" else tmp_path / name
    with pytest.raises(error, match="auto_save_bytes is a number of bytes, found"):
        microdb.MicroDB(filename, ["id"], auto_save_bytes=size)
    assert not os.listdir(tmp_path)


def test_a_table_without_files_is_not_saved_into_one_of_that_name(open_db, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for mdb in (open_db(), open_db(":memory:")):
        with pytest.raises(ValueError, match="a table without files; name a file"):
            mdb.save(":memory:")
    assert ":memory:" not in os.listdir(tmp_path)


def test_a_folder_is_not_saved_over(open_db, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="name a file in it"):
        open_db().save(tmp_path / "folder")
    assert sorted(os.listdir(tmp_path)) == ["folder", "mdb.json.wal"]
