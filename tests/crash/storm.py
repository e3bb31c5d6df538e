"""The storm: writers, readers and a saver killed at random moments and started anew, for as long as is asked.

The oracle is what the parent was told over pipes, never the database itself. Each writer takes numbered steps, each of
which is one atomic change, and tells the number after the change has returned; what a step does follows from its
number. So of every state that anybody sees, one can tell which step of which writer it is the state after, or that
there never was such a state. A writer that was killed may have come one step further than it could tell: whether it did
is looked up once, after its death, and is then held against all that is seen later.
"""

import contextlib
import json
import multiprocessing as mp
import time
from collections import defaultdict
from multiprocessing.connection import wait
from random import Random

import microdb
from children import reporting

# Forks of a process that has the modules loaded: as good as new interpreters, and twenty times as fast to start.
WARM = mp.get_context("forkserver")
WARM.set_forkserver_preload(["microdb", "filelock", "crash.storm", "crash.histories"])

KEYS = ["writer", "n"]
WINDOW = 96
"""How many of its numbers a writer keeps; a multiple of 8."""
_BATCH = (-1, -2, -3, -4)
_AUTO_SAVE_BYTES = 32 << 10


def step(writer, n, attempt):
    """What a step does in one: the records that it upserts, and the keys that it deletes.

    Of eight steps four upsert a record that stays, one upserts a record that another one deletes, and two write the
    batch: the first by `upsert_many`, the second by a transaction that deletes what is out of the window as well.
    """
    base = {"writer": writer, "number": n, "attempt": attempt}
    if n % 8 == 3:
        return [], [(writer, n - 3)]
    if n % 8 < 6:
        return [{**base, "n": n, "text": "x" * (n % 300)}], []
    old = range(max(n - WINDOW - 7, 0), n - WINDOW + 1) if n % 8 == 7 else ()
    return [{**base, "n": i} for i in _BATCH], [(writer, m) for m in old]


def _take_step(mdb, n, upserts, deletes):
    if n % 8 == 7:
        with mdb.transaction():
            for record in upserts:
                mdb.upsert(record)
            for key in deletes:
                mdb.delete(key)
    elif n % 8 == 6:
        mdb.upsert_many(upserts)
    elif upserts:
        mdb.upsert(upserts[0])
    else:
        assert mdb.delete(deletes[0]), f"{deletes[0]} was not there to be deleted"


def _numbers_after(n):
    """What a writer's records and its batch bear after step n."""
    begin = max((n + 1) // 8 * 8 - WINDOW, 0)
    kept = [m for m in range(begin, n + 1) if m % 8 in (1, 2, 4, 5) or (m % 8 == 0 and n < m + 3)]
    octet = n // 8 * 8
    batch = n if n % 8 >= 6 else octet - 1
    return kept, set() if batch < 0 else {batch}


def steps_seen(records):
    """The step after which each writer is seen, by writer. Raises AssertionError for what no step leaves behind."""
    kept, batches = defaultdict(list), defaultdict(list)
    for record in records:
        (kept if record["n"] >= 0 else batches)[record["writer"]].append(record)
    seen = {}
    for writer in {*kept, *batches}:
        plain = sorted(record["n"] for record in kept[writer])
        batch = [record["number"] for record in batches[writer]]
        last = max([*plain, *batch])
        found = plain, set(batch)
        assert found in (_numbers_after(last), _numbers_after(last + 1)), f"writer {writer}, near step {last}: {found}"
        assert len(batch) in (0, len(_BATCH)), f"writer {writer}: {len(batch)} records of a batch"
        seen[writer] = last if found == _numbers_after(last) else last + 1
    return seen


def write_until_killed(pipe, path, writer, begin, durability):
    """Take step after step, and tell the number of each after its acknowledgement."""
    n, attempt = begin
    options = {} if writer % 3 else {"auto_save_bytes": _AUTO_SAVE_BYTES}
    mdb = microdb.MicroDB(path, KEYS, durability=durability, **options)
    while True:
        _take_step(mdb, n, *step(writer, n, attempt))
        pipe.send(n)
        n += 1


def read_until_killed(pipe, path):
    """Told what step each writer was seen after, or has acknowledged: look at once, and tell what is seen."""
    mdb = microdb.MicroDB(path, KEYS)
    while True:
        floors = pipe.recv()
        seen = steps_seen(mdb.all())
        for writer, floor in floors.items():
            assert seen.get(writer, -1) >= floor, (
                f"stale: writer {writer} is seen after {seen.get(writer)}, not {floor}"
            )
        pipe.send(seen)


def save_until_killed(pipe, path):
    """Save without end."""
    mdb = microdb.MicroDB(path, KEYS)
    while True:
        mdb.save()
        pipe.send("saved")


class Storm:
    """Kill `kills` processes, and go on until `least` steps and reads are told; then see what is there.

    Attributes:
        acknowledged: How many steps were acknowledged.
        reads: How many times a state was seen, and held against what was told before.
        parses: How many times the snapshot was parsed.
        ends: How many times all were killed, so that whoever came next had to recover.
        report: What happened, for people.
    """

    def __init__(self, path, *, seed, kills, least=0, writers=6, readers=2, power=False):
        self.path = path
        self.random = Random(seed)
        self.kills = kills
        self.least = least
        self.durability = "power" if power else "process"
        self.writers = range(writers)
        self.names = [*self.writers, *(f"reader {i}" for i in range(readers)), "saver"]
        self.next = dict.fromkeys(self.writers, 0)
        self.attempts = dict.fromkeys(self.writers, 0)
        self.tables = {writer: {} for writer in self.writers}
        self.floors = dict.fromkeys(self.writers, -1)
        self.running = {}
        self.acknowledged = self.reads = self.parses = self.saves = self.untold = self.killed = self.ends = 0

    def run(self):
        try:
            while self.killed < self.kills or self.acknowledged < self.least or self.reads < self.least:
                with microdb.MicroDB(self.path, KEYS) as mdb:
                    self.settle(self.writers, mdb)
                    self.compare(mdb)
                    left = self.kills - self.killed - len(self.names)
                    self.rage(mdb, min(max(left, 3), self.random.randrange(10, 50)))
        finally:
            for process, pipe in self.running.values():
                process.kill()
                process.join()
                pipe.close()
        self.check()

    def rage(self, mdb, kills):
        """Kill one after the other, and at the end all, so that whoever comes next is alone and recovers."""
        for name in self.names:
            self.start(name)
        for _ in range(kills):
            self.watch(mdb)
            name = self.random.choice(self.names)
            self.kill([name])
            if name in self.writers:
                # A write that died unpublished may yet be recovered: what is settled is what the next writer finds.
                with mdb.transaction():
                    self.settle([name], mdb)
            self.start(name)
            if self.random.random() < 0.2:
                self.parse()
        self.watch(mdb)
        self.kill(self.random.sample(self.names, len(self.names)))
        self.ends += 1

    def start(self, name):
        ours, theirs = WARM.Pipe()
        if name == "saver":
            target, args = save_until_killed, ()
        elif name in self.writers:
            target, args = write_until_killed, (name, (self.next[name], self.attempts[name]), self.durability)
        else:
            target, args = read_until_killed, ()
        process = WARM.Process(target=reporting, args=(target, theirs, str(self.path), *args), daemon=True)
        process.start()
        theirs.close()
        self.running[name] = process, ours
        if target is read_until_killed:
            ours.send(self.floors)

    def take(self, name):
        """Take in what a process has told so far; whether it told anything."""
        pipe, count = self.running[name][1], 0
        with contextlib.suppress(EOFError, ConnectionResetError):  # Dead; what it told can be read nevertheless.
            while pipe.poll():
                self.hear(name, pipe.recv())
                count += 1
        return count

    def hear(self, name, told):
        assert not (isinstance(told, tuple) and told[0] == "error"), f"{name} raised: {told[1]}"
        if name in self.writers:
            assert told == self.next[name], f"writer {name} told {told}"
            self.advance(name)
            self.floors[name] = told
            self.acknowledged += 1
        elif name == "saver":
            self.saves += 1
        else:
            self.see(told)

    def advance(self, writer):
        upserts, deletes = step(writer, self.next[writer], self.attempts[writer])
        self.tables[writer].update({(writer, record["n"]): record for record in upserts})
        for key in deletes:
            self.tables[writer].pop(key, None)
        self.next[writer] += 1

    def see(self, seen):
        """What somebody saw once, everybody must see from now on."""
        for writer, n in seen.items():
            self.floors[writer] = max(self.floors[writer], n)
        self.reads += 1

    def watch(self, mdb):
        """Take in what all tell a random number of times, and see each acknowledged step at once."""
        for _ in range(self.random.randrange(1, 10)):
            ready = wait([pipe for _, pipe in self.running.values()], timeout=60)
            assert ready, "nobody makes progress"
            for name in self.running:
                if self.take(name) and str(name).startswith("reader"):
                    self.running[name][1].send(self.floors)
            self.look(mdb.all())
        # Not to wait for anything: else all would be killed just after they told something.
        time.sleep(self.random.uniform(0, 0.003))

    def look(self, records):
        floors = dict(self.floors)
        seen = steps_seen(records)
        for writer, floor in floors.items():
            assert seen.get(writer, -1) >= floor, (
                f"stale: writer {writer} is seen after {seen.get(writer)}, not {floor}"
            )
        self.see(seen)

    def kill(self, names):
        for name in names:
            self.running[name][0].kill()
        for name in names:
            process, pipe = self.running[name]
            process.join()
            self.take(name)
            assert process.exitcode == -9, f"{name} ended by itself, with {process.exitcode}"
            pipe.close()
            del self.running[name]
        self.killed += len(names)

    def settle(self, writers, mdb):
        """All that a dead writer told is there, and at most one step more, whole."""
        for writer in writers:
            found = {key: record for key, record in mdb.items() if key[0] == writer}
            if found != self.tables[writer]:
                self.advance(writer)
                self.untold += 1
            assert found == self.tables[writer], (
                f"writer {writer}, step {self.next[writer]}: {_difference(found, self.tables[writer])}"
            )
            self.attempts[writer] += 1

    def parse(self):
        """Whenever one looks, the snapshot is a whole one, with one record for each key."""
        if not self.path.exists():
            return
        with open(self.path, encoding="utf-8") as file:
            records = json.load(file)
        keys = [(record["writer"], record["n"]) for record in records]
        assert len(keys) == len(set(keys)), "a key twice in the snapshot"
        steps_seen(records)
        self.parses += 1

    def compare(self, mdb):
        """Exactly what is known to be there is there."""
        expected = {key: record for table in self.tables.values() for key, record in table.items()}
        found = dict(mdb.items())
        assert found == expected, _difference(found, expected)
        self.look(mdb.all())

    def check(self):
        for is_first in (True, False):
            with microdb.MicroDB(self.path, KEYS) as mdb:
                if is_first:
                    self.settle(self.writers, mdb)
                self.compare(mdb)
                mdb.save()
            self.parse()
        self.report = (
            f"{self.killed:,} kills ({self.ends} times all at once), {self.acknowledged:,} acknowledged, 0 missing, "
            f"0 twice, {self.untold} made and not told, {self.reads:,} reads, 0 stale, {self.saves:,} saves, "
            f"{self.parses:,} parses, 0 bad"
        )


def _difference(found, expected):
    wrong = [key for key in expected if key in found and found[key] != expected[key]]
    missing, surplus = expected.keys() - found.keys(), found.keys() - expected.keys()
    return f"missing {sorted(missing)}, never written {sorted(surplus)}, other than written {wrong}"
