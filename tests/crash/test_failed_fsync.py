"""A power cut after a failed fsync: the log may have lost what it held, and the save that replaces it is cut short.

What was acknowledged with power durability before the failure must be there, and the database must open.
"""

import errno
import gc
import logging
import os

import pytest

import microdb
from children import forked
from microdb.files import Files
from walfiles import ids


class Failing(Files):
    """The real file system, where chosen calls fail and one rename is the last thing that the process does."""

    def __init__(self, *, sync_data=False):
        self.sync_data = sync_data
        self.bad_folder = None
        self.die_at = None

    def open(self, path, **options):
        file = super().open(path, **options)
        if self.sync_data:
            file.sync_data = fail
        return file

    def sync_folder(self, path):
        if path == self.bad_folder:
            fail()
        super().sync_folder(path)

    def rename(self, source, target):
        if target == self.die_at:
            os._exit(9)
        super().rename(source, target)


def fail():
    raise OSError(errno.EIO, "made to fail")


@pytest.fixture
def durable(open_db, path, wal):
    """A database whose first two changes are fsynced: one in the snapshot, one in the log; and the log's bytes."""
    with microdb.MicroDB(path, ["id"], durability="power") as mdb:
        mdb.upsert({"id": 1})
        mdb.save()
        mdb.upsert({"id": 2})
    return wal.log(2).read_bytes()


@pytest.mark.parametrize("expires", [False, True])
def test_a_power_cut_in_the_save_that_follows_a_failed_fsync_leaves_what_was_durable(
    durable, open_db, path, wal, expires
):
    """Also if that save had carried over when records expire."""
    with microdb.MicroDB(path, ["id"]) as mdb:
        mdb.upsert({"id": 3})
        if expires:
            mdb.set_expiry((1,), expires_at=1e11)

    def child():
        failing = Failing(sync_data=True)
        mdb = microdb.MicroDB(path, ["id"], files=failing)
        with pytest.raises(OSError, match="made to fail"):
            mdb.sync()
        failing.die_at = str(path)
        mdb.upsert({"id": 4})

    assert forked(child) == 9
    assert wal.log(3).exists(), "died between the two renames"
    wal.log(2).write_bytes(durable)
    wal.forget_boot()
    mdb = open_db()
    assert ids(mdb) == [1, 2]
    assert not wal.log(3).exists()
    mdb.upsert({"id": 5})
    mdb.save()
    assert ids(open_db()) == [1, 2, 5]


@pytest.mark.parametrize("recovered", [False, True])
def test_a_snapshot_whose_name_was_not_fsynced_may_go_back_to_the_old_one(durable, open_db, path, wal, recovered):
    old = path.read_bytes()
    failing = Failing()
    mdb = open_db(files=failing)
    mdb.upsert({"id": 3})
    failing.bad_folder = str(path.parent)
    with pytest.raises(OSError, match="made to fail"):
        mdb.save()
    assert ids(mdb) == [1, 2, 3]
    mdb.close()
    if recovered:
        with open_db() as again:
            assert ids(again) == [1, 2, 3]
    path.write_bytes(old)
    wal.forget_boot()
    mdb = open_db()
    assert ids(mdb) == [1, 2, 3], "a save fsyncs the log before it puts another in its place"
    mdb.upsert({"id": 4})
    mdb.save()
    assert ids(open_db()) == [1, 2, 3, 4]


def test_an_fsync_that_fails_in_the_middle_of_a_save_stops_it(open_db, path):
    """A save that was captured before the failure has frames that its own log may not rely on."""
    failing = Failing()
    mdb, other = open_db(files=failing), open_db(files=Failing(sync_data=True))
    mdb.upsert({"id": 1})
    real_create = failing.create

    def create(path):
        failing.create = real_create
        with pytest.raises(OSError, match="made to fail"):
            other.sync()
        return real_create(path)

    failing.create = create
    with pytest.raises(microdb.FailedError, match="an earlier fsync of it failed"):
        mdb.save()
    assert not path.exists()
    mdb.save()
    assert ids(open_db()) == [1]


def test_the_newer_log_is_not_forgotten_if_it_was_written_to(open_db, path, wal):
    """Then its snapshot was in place, and somebody has put the old one back."""
    with microdb.MicroDB(path, ["id"], files=Failing(sync_data=True)) as mdb:
        mdb.upsert({"id": 1})
        with pytest.raises(OSError, match="made to fail"):
            mdb.sync()
        mdb.upsert({"id": 2})
        assert mdb.stats().generation == 2
    os.rename(wal.folder / "0000000001.history", wal.log(1))
    wal.log(1).write_bytes(wal.log(1).read_bytes()[: wal.frames(1)[0][0]])
    path.unlink()
    wal.forget_boot()
    with pytest.raises(microdb.StorageError):
        open_db()


@pytest.mark.parametrize("durability", ["process", "power"])
def test_a_write_that_raised_does_not_come_back_if_it_could_not_be_undone(open_db, path, durability):
    """The log holds it whole, but it was not acknowledged, and whoever called was told so."""
    with open_db() as mdb:
        mdb.upsert({"id": 1})
    failing = Failing(sync_data=durability == "power")
    with microdb.MicroDB(path, ["id"], files=failing, durability=durability) as mdb:
        log = mdb._log.generations.get(1).file
        log.truncate = lambda _: fail()
        if durability == "process":
            write_at = log.write_at

            def write_and_fail(data, offset):
                write_at(data, offset)
                fail()

            log.write_at = write_and_fail
        with pytest.raises(OSError, match="made to fail"):
            mdb.upsert({"id": 2})
        assert ids(mdb) == [1]
    mdb = open_db()
    assert ids(mdb) == [1]
    mdb.upsert({"id": 3})
    assert mdb.stats().generation == 2, "a log of which something could not be undone takes no more"
    mdb.close()
    assert ids(open_db()) == [1, 3]


def test_a_write_that_was_made_does_not_raise_because_nobody_can_save(open_db, path, caplog):
    gc.collect()  # The dead of other tests of the lab die in this thread, and hold what they held until they are gone.
    failing = Failing()
    mdb = open_db(files=failing, auto_save_bytes=1)
    failing.identity = lambda file: fail() if file == str(path) else Files.identity(failing, file)
    with caplog.at_level(logging.WARNING, "microdb"):
        mdb.upsert({"id": 1})
    assert "no automatic save" in caplog.text
    del failing.identity
    assert ids(mdb) == [1]
