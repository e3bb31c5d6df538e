"""Real signals at random moments: nothing is lost, nothing half done, nothing stays locked."""

import os
import signal

import pytest

import microdb
from children import spawned
from crash.signals import (
    WAIT_S,
    Sender,
    be_called,
    be_interrupted,
    be_kept_waiting,
    be_rival,
    part_of,
    wait_until_blocked,
)
from microdb.locks import WriteLock
from microdb.save_lock import save_lock

PLAIN = {"auto_save_bytes": 20_000}
POWER = {"durability": "power", "auto_save_bytes": 20_000}


def interrupt(path, seed, count, options, *, rivals=0):
    """Interrupt a worker so often; see after each time that what it was told is there, and that it holds nothing."""
    jobs = [(be_interrupted, str(path), seed, options), *[(be_rival, str(path))] * rivals]
    with spawned(*jobs) as ((pipe, *others), (process, *_)), microdb.MicroDB(path, ["id"], timeout=WAIT_S / 2) as mdb:
        sender = Sender(pipe, process, seed)
        for one in (pipe, *others):
            assert one.recv() == ("ready", None)
        for number in range(count):
            pipe.send("go")
            kind = "lost"
            while kind == "lost":
                kind, what = sender.send(signal.SIGINT, {"interrupted", "lost"})
            sender.settle(what)
            assert part_of(mdb, "w") == what, "memory of the worker, and ours"
            mdb.upsert({"id": "sender", "n": number})
        pipe.send("stop")
        open_at_end = sender.wait_for({"closed"})[1]
        for one in others:
            one.send("stop")
            assert one.recv()[0] == "closed"
        mdb.save()
        assert not list(path.parent.glob("**/*.tmp"))
    with microdb.MicroDB(path, ["id"]) as mdb:
        assert part_of(mdb, "w") == sender.table
    assert sender.told > count / 4
    return sender, open_at_end


# Long until it has run for long: see "Known to be weak" in docs/reliability.md.
@pytest.mark.long
@pytest.mark.parametrize("options", [PLAIN, POWER], ids=["process", "power"])
def test_ctrl_c_at_random_moments_leaves_nothing_half_done_and_nothing_locked(path, seed, options):
    interrupt(path, seed, 25, options)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("options", "rivals"), [(PLAIN, 0), (PLAIN, 1), (POWER, 1)])
def test_thousands_of_ctrl_c_lose_nothing(path, seed, options, rivals):
    """About two minutes each."""
    sender, open_at_end = interrupt(path, seed, 4_000, options, rivals=rivals)
    print(
        f"figures: 4,000 interrupts, {sender.told:,} acknowledged, 0 missing, {len(sender.lost)} came in finalizers, "
        f"{open_at_end} files open at the end"
    )
    # Python drops a Ctrl-C that comes in a finalizer, and with it what the finalizer would have closed.
    assert open_at_end < 400, "files leak"
    assert len(sender.lost) < 400


def call(path, seed, count, options):
    """Have a worker call into its own database from a signal handler so often."""
    with spawned((be_called, str(path), seed, options)) as ((pipe,), (process,)), microdb.MicroDB(path, ["id"]) as mdb:
        sender = Sender(pipe, process, seed)
        assert pipe.recv() == ("ready", None)
        pipe.send("go")
        for _ in range(count):
            sender.send(signal.SIGUSR1, {"handled", "refused"})
            assert part_of(mdb, "h") == sender.handled
        pipe.send("stop")
        sender.wait_for({"closed"})
        assert part_of(mdb, "h") == sender.handled
        assert part_of(mdb, "w") == sender.table
    return sender


def test_a_signal_handler_that_uses_the_database_is_served_or_refused(path, seed):
    assert call(path, seed, 40, PLAIN).told > 10


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("options", [PLAIN, POWER], ids=["process", "power"])
def test_thousands_of_signal_handlers_that_use_the_database_lose_nothing(path, seed, options):
    """About a minute each."""
    sender = call(path, seed, 4_000, options)
    print(f"figures: 4,000 handlers, {len(sender.refused)} refused, {sender.told:,} acts interrupted or not, 0 lost")


def test_ctrl_c_ends_every_wait_and_the_waiter_works_on(path, open_db):
    mdb = open_db(timeout=WAIT_S)
    with spawned((be_kept_waiting, str(path))) as ((pipe,), (process,)):
        ways = pipe.recv()
        for how in ways:
            # A save waits for the lock on saves, which is another one.
            with save_lock(WriteLock(), f"{path}.wal/save.lock", WAIT_S) if how.startswith("save") else mdb.lock():
                pipe.send(how)
                wait_until_blocked(process.pid)
                os.kill(process.pid, signal.SIGINT)
                assert pipe.poll(WAIT_S), how
                assert pipe.recv() == "interrupted", how
                mdb.upsert({"id": "holder"})
            pipe.send("write")
            assert pipe.recv() == "wrote"
            mdb.upsert({"id": "later"})
        assert sorted(key for (key,) in mdb) == sorted([*ways, "holder", "later"])
        pipe.send("stop")
