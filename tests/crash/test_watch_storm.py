"""Writers and savers are killed at any moment; who watches is told every change, each once and in order."""

import os
import random
import signal

import pytest

import microdb
from children import SPAWN, reporting, write_for_ever

WRITERS = 3


class Told:
    """A table that is kept by what a watch tells; it goes on with a new watch now and then, by position."""

    def __init__(self, mdb):
        self.mdb = mdb
        self.watch = mdb.watch()
        self.table = dict(mdb)
        self.sequence = self.watch.position.sequence
        self.events = self.resyncs = 0

    def take(self, count):
        """Wait for so many more."""
        for _ in range(count):
            self.do(self.watch.next(timeout=30))

    def catch_up(self):
        for event in iter(self.watch.take, None):
            self.do(event)

    def resume(self):
        """As a process that notes how far it has come, and is started again."""
        self.watch = self.mdb.watch(since=self.watch.position)

    def do(self, event):
        assert event is not None
        assert event.position.sequence >= self.sequence
        self.sequence, self.events = event.position.sequence, self.events + 1
        self.resyncs += event.kind == "resync"
        for part in event.parts if event.kind == "resync" else (event,):
            self.apply(part)

    def apply(self, event):
        if event.kind == "clear":
            self.table.clear()
        elif event.new is not None:
            assert event.old is microdb.UNKNOWN or event.old == self.table.get(event.key)
            self.table[event.key] = event.new
        elif event.kind == "expire":
            self.table.pop(event.key, None)
        else:
            assert event.old is microdb.UNKNOWN or event.old == self.table[event.key]
            self.table.pop(event.key, None)


@pytest.mark.parametrize("kills", [5, pytest.param(500, marks=pytest.mark.long)])
def test_whatever_is_killed_the_watch_tells_the_table(path, kills, seed):
    rng = random.Random(seed)
    mdb = microdb.MicroDB(path, ["id"], auto_save=False)
    told = Told(mdb)
    writers = [_writer(path, rng) for _ in range(WRITERS)]
    try:
        for _ in range(kills):
            told.take(rng.randrange(1, 60))
            if rng.random() < 0.3:
                told.catch_up()
                told.resume()
            victim = writers.pop(rng.randrange(WRITERS))
            _kill(victim)
            writers.append(_writer(path, rng))
    finally:
        for writer in writers:
            _kill(writer)
    mdb.save()  # Deletes what has expired, so that the clock matters no more.
    told.catch_up()
    assert told.table == {key: record for key, record in mdb.items() if mdb.expiry(key) is None}
    print(f"figures: {kills} kills, {told.events} events told, {told.resyncs} resyncs, {mdb.stats().saves} saves")


def _writer(path, rng):
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=reporting, args=(write_for_ever, theirs, path, rng.randrange(1 << 30)))
    process.start()
    theirs.close()
    assert ours.recv() == "ready"
    return process


def _kill(process):
    os.kill(process.pid, signal.SIGKILL)
    process.join()
