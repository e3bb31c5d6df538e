"""Full disks and disks that cannot keep what they took: small ones, mounted for the test, which needs root."""

import contextlib
import errno
import os
import random
import resource

import pytest

import microdb
from bad_input_children import Peer
from crash.full_disk import Filler, ThinDisk, UnavailableError, tmpfs
from crash.io_errors import Fault
from crash.io_lab import WHO, Other, lab
from crash.io_scenarios import SCENARIOS
from microdb.files import OS

KEYS = ["job"]
NEW = {"job": "new"}


@pytest.fixture
def mounting():
    """Enter a mount until the test ends; skip it where that cannot be."""
    with contextlib.ExitStack() as stack:

        def _enter(disk):
            try:
                return stack.enter_context(disk)
            except UnavailableError as error:
                pytest.skip(str(error))

        yield _enter


@pytest.fixture
def disk(mounting, tmp_path):
    """A disk of four megabytes."""
    return mounting(tmpfs(tmp_path / "disk", "4m"))


@pytest.fixture
def thin(mounting, tmp_path):
    """A disk that takes more than it can keep."""
    return mounting(ThinDisk(tmp_path))


@pytest.fixture(scope="module")
def processes():
    with Peer() as one, Peer() as other, Peer() as third:
        yield one, other, third


@pytest.fixture
def peers(processes):
    """Two processes that have nothing open yet."""
    with Other(processes[0]) as one, Other(processes[1]) as other:
        yield one, other


@pytest.fixture
def fresh(processes):
    """What a third process finds that opens a database and closes it."""

    def _fresh(path):
        with Other(processes[2]) as third:
            third.open(path, KEYS)
            return third.all()

    return _fresh


def jobs(records):
    return {record["job"] for record in records}


def filled(size, count):
    """The keys that `fill` wrote."""
    return {f"{size}/{number}" for number in range(count)}


def test_two_processes_that_fill_a_disk_lose_nothing_and_go_on_when_there_is_room(disk, peers, fresh):
    path = disk / "mdb.json"
    filler = Filler(disk)
    filler.leave(100)
    for peer, durability in zip(peers, ("process", "power"), strict=True):
        peer.open(path, KEYS, durability=durability, auto_save_bytes=50_000)
    acknowledged = set()
    for peer, size in zip(peers, (4001, 701), strict=True):
        peer.begin("fill", {}, size)
    for peer, size in zip(peers, (4001, 701), strict=True):
        count, error = peer.end()
        assert error == errno.ENOSPC
        acknowledged |= filled(size, count)
    assert len(acknowledged) > 50
    for peer in peers:
        assert jobs(peer.all()) == acknowledged
        peer.shut()  # An automatic save may have been going on.
        filler.leave(0)
        peer.open(path, KEYS)
    for peer in peers:
        with pytest.raises(OSError, match="No space left"):
            peer.upsert({"job": "x", "filling": "x" * 50_000})
        with pytest.raises(OSError, match="No space left"):
            peer.save()
    assert peers[0].all() == peers[1].all() == fresh(path)
    assert jobs(peers[0].all()) == acknowledged

    filler.disarm()
    for number, peer in enumerate(peers):
        peer.upsert({"job": number})
        peer.save()
    assert jobs(fresh(path)) == acknowledged | {0, 1}


def check_rooms(disk, processes, plans):
    """Run scenarios on a disk that is full but for some pages."""
    found = lab(disk, processes[:2], Filler(disk), OS)
    for scenario, first, pages in plans:
        found.run(scenario, Fault((pages,), errno.ENOSPC), first)
    print(f"figures: {found.injected:,} full disks, {len(found.wrong)} wrong outcomes")
    assert not found.wrong, "\n".join(["", *found.wrong])


def test_whatever_finds_the_disk_full_all_agree_and_it_works_again(disk, processes, seed):
    chance = random.Random(seed)
    plans = [(scenario, chance.choice(WHO), chance.randrange(4)) for scenario in chance.sample(SCENARIOS, 6)]
    check_rooms(disk, processes, plans)


@pytest.mark.long
def test_whatever_finds_any_number_of_pages_left_all_agree_and_it_works_again(disk, processes):
    """Takes about two minutes."""
    check_rooms(
        disk, processes, [(scenario, first, pages) for scenario in SCENARIOS for first in WHO for pages in range(8)]
    )


def test_a_write_that_the_system_cuts_short_at_any_byte_is_rolled_back(path, peers, fresh):
    peer, other = peers
    for one in peers:
        one.open(path, KEYS)
    peer.upsert({"job": "old"})
    begin = peer.stats().log_bytes
    peer.upsert(NEW)
    length = peer.stats().log_bytes - begin
    peer.delete(("new",))
    begin = peer.stats().log_bytes
    for size in range(begin, begin + length):
        peer.limit_file_size(size)
        with pytest.raises(OSError, match="too large"):
            peer.upsert(NEW)
        assert peer.all() == other.all() == [{"job": "old"}]
        assert peer.stats().log_bytes == os.stat(f"{path}.wal/0000000001.log").st_size == begin
    peer.limit_file_size(begin + length)
    peer.upsert(NEW)
    peer.limit_file_size(resource.RLIM_INFINITY)
    other.upsert({"job": "more"})
    assert peer.all() == other.all() == fresh(path) == [{"job": "old"}, NEW, {"job": "more"}]


def test_what_a_thin_disk_has_acknowledged_as_durable_is_on_it_when_the_power_is_cut(thin, peers, tmp_path, fresh):
    path = thin.folder / "mdb.json"
    for peer in peers:
        peer.open(path, KEYS, durability="power")
    count, error = peers[0].fill({}, 4000)
    assert error in (errno.ENOSPC, errno.EIO)
    assert count > 20
    for peer in peers:
        with pytest.raises((OSError, microdb.MicroDBError)):
            peer.upsert(NEW)
        assert jobs(peer.all()) == filled(4000, count)
    with thin.after_power_cut(tmp_path / "cut") as folder:
        found = jobs(fresh(folder / "mdb.json"))
    assert filled(4000, count) <= found <= filled(4000, count + 1)

    thin.grow()
    peers[1].upsert(NEW)
    assert peers[0].stats().generation == 2, "never a second fsync that says it is good"
    with thin.after_power_cut(tmp_path / "cut again") as folder:
        assert jobs(fresh(folder / "mdb.json")) == filled(4000, count) | {"new"}
    peers[0].save()
    assert jobs(peers[0].all()) == jobs(peers[1].all()) == jobs(fresh(path)) == filled(4000, count) | {"new"}


def test_sync_raises_for_what_a_thin_disk_lost_even_if_a_stranger_was_told_first(thin, peers):
    path = thin.folder / "mdb.json"
    peer = peers[0]
    peer.open(path, KEYS, auto_save=False)
    for number in range(100):
        peer.upsert({"job": number, "filling": "x" * 40_000})
    with open(f"{path}.wal/0000000001.log", "rb") as stranger, pytest.raises(OSError, match=r"No space|Input/output"):
        os.fsync(stranger.fileno())
    for _ in range(2):
        with pytest.raises((OSError, microdb.MicroDBError)):
            peer.sync()
    thin.grow()
    peer.upsert(NEW)
    peer.sync()
    assert len(peer.all()) == 101
    assert peer.stats().generation == 2
