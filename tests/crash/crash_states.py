"""Every crash state: what is found after a crash at any step of anything that writes.

A `Run` does something to a simulated disk and notes what was acknowledged, and at which step. For each step the disk
says what a power cut may leave, and what the death of the process leaves. Each such state is opened in a new run of the
machine, or by a new process, and must show a table that the acknowledgements allow; a refusal is a bad state. It must
show the same to a second one who opens it, and must take a write that a third one finds.

The oracle is the list of acknowledgements, with a table of plain dicts for each:

* a dead process loses nothing that was acknowledged;
* a power cut loses nothing that was acknowledged with ``durability="power"``, or before a `sync` or `save` that
  returned; of the rest the first so many are there, and none behind a missing one;
* what was under way is there whole, as the last, or not at all.
"""

import contextlib
import errno
import functools
import io
import itertools
import logging
import os
import traceback
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

import microdb
from crash.simulated_disk import (
    EMPTY,
    LONG,
    QUICK,
    Disk,
    Killed,
    Process,
    at_rest,
    killed,
    mounted,
    power_cuts,
    role,
)
from microdb import mounts
from microdb.cli import main
from microdb.files import OS

KEYS = ["id"]
NAME = "mdb.json"
PROBE = {"id": "written after the crash"}
NOW = 1_000_000.0
"""The time of day in every process, but where a test says that it is later."""


@dataclass
class Change:
    """A write, as the oracle knows it.

    Attributes:
        begin: How many steps had been made when it was called.
        after: How many writes had been acknowledged.
        table: The table with it.
        end: How many steps had been made when it returned; None: it did not.
        failed: How many when it raised.
    """

    begin: int
    after: int
    table: dict
    end: int | None = None
    failed: int | None = None

    def is_under_way(self, count):
        return self.begin <= count and (self.end is None or self.end > count)


class Barrier(NamedTuple):
    """From which step on how many of the acknowledged writes are certain to survive a power cut."""

    step: int
    covers: int


class Crash(NamedTuple):
    """What one crash left.

    Attributes:
        run: What was going on.
        count: How many steps had been made.
        label: Which of the states that this crash may leave.
        state: The disk.
        tables: What may be found on it.
    """

    run: "Run"
    count: int
    label: str
    state: object
    tables: list

    def __str__(self):
        steps = self.run.disk.steps
        around = range(max(self.count - 3, 0), min(self.count + 2, len(steps)))
        told = [f"{'>' if at == self.count else ' '} {steps[at].kind} {role(steps[at].path)}" for at in around]
        files = [f"  {path} {'' if data is None else len(data)}" for path, data in sorted(self.state.tree().items())]
        of = [f"{self.run.of}\nthen"] if self.run.of is not None else []
        return "\n".join([*of, f"{self.run.name}, after {self.count} steps, {self.label}", *told, *files])


class Run:
    """Something that is done to a disk, and what was acknowledged.

    Attributes:
        name: For messages.
        of: The crash that it recovers from; None for a run that begins in peace.
        disk: The disk, with every step.
        first: From which step on crashes are looked at.
        tables: The table after each acknowledged write, and before the first.
        others: Tables that a power cut may bring back while nothing newer is certain: what was before the run.
        sees: More that must hold of a crash state: `sees(crash)` gives what is wrong with it.
    """

    def __init__(self, folder, name, state=EMPTY, table=(), *, of=None, others=(), ignored=None):
        self.folder = str(folder)
        self.path = os.path.join(self.folder, NAME)
        self.name = name
        self.of = of
        self.disk = Disk(folder, state, ignored=ignored)
        self.first = 0
        self.tables = [dict(table)]
        self.others = list(others)
        self.changes = []
        self.barriers = []
        self.sees = None

    @property
    def count(self):
        return len(self.disk.steps)

    def open(self, *, meet=None, **options):
        """A handle of a new process."""
        options = {"auto_save": False, "clock": lambda: NOW, **options}
        return microdb.MicroDB(self.path, KEYS, files=Process(self.disk, meet), **options)

    def do(self, call, *made, power=False):
        """Call what makes these changes, acknowledged at once."""
        table = dict(self.tables[-1])
        for change in made:
            change(table)
        change = Change(self.count, len(self.tables) - 1, table)
        self.changes.append(change)
        try:
            call()
        except (OSError, microdb.MicroDBError):
            change.failed = self.count
            raise
        change.end = self.count
        self.tables.append(table)
        if power:
            self.barriers.append(Barrier(self.count, len(self.tables) - 1))

    def upsert(self, mdb, *records):
        for record in records:
            self.do(lambda record=record: mdb.upsert(record), put(record), power=mdb.durability == "power")

    def upsert_until(self, mdb, record, expires_at):
        """One that has expired before the run is in no table."""
        made = [put(record)] if expires_at > NOW else []
        self.do(lambda: mdb.upsert(record, expires_at=expires_at), *made, power=mdb.durability == "power")

    def upsert_many(self, mdb, *records):
        self.do(lambda: mdb.upsert_many(records), *map(put, records), power=mdb.durability == "power")

    def transact(self, mdb, records, deleted):
        def call():
            with mdb.transaction():
                for record in records:
                    mdb.upsert(record)
                for key in deleted:
                    mdb.delete((key,))

        self.do(call, *map(put, records), *map(drop, deleted), power=mdb.durability == "power")

    def delete(self, mdb, key):
        self.do(lambda: mdb.delete((key,)), drop(key), power=mdb.durability == "power")

    def clear(self, mdb):
        self.do(mdb.clear, dict.clear, power=mdb.durability == "power")

    def barrier(self, call, *args):
        """Call what makes all that was acknowledged before certain."""
        covers = len(self.tables) - 1
        call(*args)
        self.barriers.append(Barrier(self.count, covers))

    def allowed(self, count, *, cut):
        """The tables that may be found after a crash at a step: after a power cut, or the death of all processes."""
        acknowledged = sum(change.end is not None and change.end <= count for change in self.changes)
        least = acknowledged
        if cut:
            least = max((barrier.covers for barrier in self.barriers if barrier.step <= count), default=0)
        found = self.tables[least : acknowledged + 1]
        for change in self.changes:
            is_there = least <= change.after <= acknowledged if cut else change.after == acknowledged
            # What raised was not made; but what a disk that failed holds of it, a power cut may bring back.
            has_failed = change.failed is not None and change.failed <= count and not cut
            if change.is_under_way(count) and is_there and not has_failed:
                found.append(change.table)
        return found + (self.others if cut and least == 0 else [])

    def crashes(self, effort, random, *, kinds=("cut", "kill")):
        """All that may be found after a crash at each step."""
        before = None
        for count in range(self.first, self.count + 1):
            if "kill" in kinds:
                tables = self.allowed(count, cut=False)
                for label, state in killed(self.disk, count, effort.cuts):
                    yield Crash(self, count, label, state, tables)
            if "cut" in kinds:
                tables = self.allowed(count, cut=True)
                now = _without_page(self.disk.after(count)), tables
                # Stores into the page make no new state: of the page all mixtures are tried at any step.
                if now != before or effort is LONG:
                    for label, state in power_cuts(self.disk.after(count), effort, random):
                        yield Crash(self, count, "power cut, " + label, state, tables)
                before = now


def put(record):
    return lambda table: table.__setitem__(record["id"], record)


def drop(key):
    return lambda table: table.pop(key)


def _without_page(state):
    return {number: file for number, file in state.files.items() if not file.is_page}, state.folders


# Looking at what a crash left.


def records(mdb):
    return {record["id"]: record for record in mdb.all()}


def same(table, other):
    return list(table.items()) == list(other.items())


def opened(disk, path, *, now=NOW, **options):
    return microdb.MicroDB(path, KEYS, files=Process(disk), auto_save=False, clock=lambda: now, **options)


def flaw(crash):
    """What is wrong with a crash state; None if nothing is. And the table that was found."""
    disk = Disk(crash.run.folder, crash.state)
    path = crash.run.path
    try:
        reason = crash.run.sees(crash) if crash.run.sees is not None else None
        with opened(disk, path) as mdb:
            found = records(mdb)
        if reason is None and not any(same(found, table) for table in crash.tables):
            reason = f"found {found}, allowed {crash.tables}"
        if reason is None:
            reason = _goes_on(disk, path, found)
    except Exception:
        # Whatever it is, it is a bad state, and told as one.
        return traceback.format_exc(limit=-3), None
    return reason, found


def _goes_on(disk, path, found):
    with opened(disk, path, durability="power") as mdb:
        if not same(records(mdb), found):
            return f"at first {found}, then {records(mdb)}"
        mdb.upsert(PROBE)
    with opened(disk, path, read_only=True) as mdb:
        if not same(records(mdb), found | {PROBE["id"]: PROBE}):
            return f"after a write {records(mdb)}"
    return None


@dataclass
class Figures:
    """What was looked at: crash points, states that differ, and the bad ones with what is wrong with them."""

    points: int = 0
    states: int = 0
    bad: list = field(default_factory=list)

    def __iadd__(self, other):
        self.points += other.points
        self.states += other.states
        self.bad += other.bad
        return self

    def __str__(self):
        return f"{self.points:,} crash points, {self.states:,} states, {len(self.bad)} bad"

    def told(self):
        """The first bad ones."""
        return "\n\n".join(f"{crash}\n{reason}" for crash, reason in self.bad[:3])


def look(run, effort, random, *, per_point=None, first_bad=False, kinds=("cut", "kill")):
    """Open what crashes of a run leave: all that differ, or at most so many a step; until the first bad one, or all."""
    figures = Figures(points=run.count + 1 - run.first)
    seen = set()
    for _, group in itertools.groupby(run.crashes(effort, random, kinds=kinds), lambda crash: crash.count):
        new = []
        for crash in group:
            known = crash_known(crash)
            if known not in seen:
                seen.add(known)
                new.append(crash)
        for crash in new if per_point is None else random.sample(new, min(per_point, len(new))):
            reason, _ = flaw(crash)
            figures.states += 1
            if reason is not None:
                figures.bad.append((crash, reason))
                if first_bad:
                    return figures
    return figures


def crash_known(crash):
    """What a crash leaves is the same if the files, the run of the machine, and what may be found are."""
    is_cut = crash.state.boot_id != crash.run.disk.boot_id
    return frozenset(crash.state.tree().items()), is_cut, tuple(map(str, crash.tables))


@contextlib.contextmanager
def quietly():
    """Microdb tells no log what it repairs, and asks no kernel about a disk that is mounted nowhere."""
    check, mounts.check = mounts.check, lambda path: None
    logger = logging.getLogger("microdb")
    logger.disabled = True
    try:
        yield
    finally:
        mounts.check = check
        logger.disabled = False


# What is done to a disk.

A, B, C, D = ({"id": name, "n": number, "text": "x" * 40} for number, name in enumerate("abcd"))
BRIEF = {"brief": True}
"""What marks those that expire."""


def seeded(folder):
    """A disk with three records in its first log, all fsynced, and the table."""
    run = Run(folder, "seed")
    with run.open() as mdb:
        run.upsert(mdb, A, B, C)
    return at_rest(run.disk.state), run.tables[-1]


def saved(folder):
    """A disk with three records in its snapshot and two more in its second log, all fsynced, and the table."""
    run = Run(folder, "save")
    with run.open() as mdb:
        run.upsert(mdb, A, B, C)
        mdb.save()
        run.upsert(mdb, D, A | {"n": 10})
    return at_rest(run.disk.state), run.tables[-1]


def just_saved(folder):
    """A disk with all in its snapshot and nothing in its log, and the table."""
    run = Run(folder, "save")
    with run.open() as mdb:
        run.upsert(mdb, A, B)
        mdb.save()
    return at_rest(run.disk.state), run.tables[-1]


def before(kind, name, act, number=1):
    """Act before the first such step on such a file, or the so many-th, of a process that meets it."""
    left = [number]

    def meet(met, path):
        if met == kind and role(path) == name:
            left[0] -= 1
            if left[0] == 0:
                act()

    return meet


def both(one, other):
    def meet(kind, path):
        one(kind, path)
        other(kind, path)

    return meet


def first_open(folder, **options):
    run = Run(folder, "first open", **options)
    with run.open(durability="power") as mdb:
        run.upsert(mdb, A)
    return run


def first_open_process(folder, **options):
    run = Run(folder, "first open, a process write", **options)
    with run.open() as mdb:
        run.upsert(mdb, A)
        run.barrier(mdb.sync)
        run.upsert(mdb, B)
    return run


def reopen(folder, **options):
    run = Run(folder, "reopen", *saved(folder), **options)
    with run.open() as mdb:
        run.upsert(mdb, B | {"n": 11})
    run.first = run.count
    run.open().close()
    with run.open() as mdb:
        run.upsert(mdb, C | {"n": 12})
    return run


def append(folder, **options):
    run = Run(folder, "append, process", *saved(folder), **options)
    with run.open() as mdb:
        run.first = run.count
        run.upsert(mdb, A | {"n": 20}, B | {"n": 21}, C | {"n": 22})
        run.barrier(mdb.sync)
        run.upsert(mdb, D | {"n": 23}, A | {"n": 24})
    return run


def append_power(folder, **options):
    run = Run(folder, "append, power", *seeded(folder), **options)
    with run.open(durability="power") as mdb:
        run.first = run.count
        run.upsert(mdb, A | {"n": 10}, D)
    return run


def append_by_turns(folder, **options):
    run = Run(folder, "append, process and power by turns", *seeded(folder), **options)
    with run.open() as one, run.open(durability="power") as other:
        run.first = run.count
        run.upsert(one, D, B | {"n": 10})
        run.upsert(other, B | {"n": 11})
        run.upsert(one, A | {"n": 12}, C | {"n": 13})
    return run


def batches(folder, durability="process", **options):
    run = Run(folder, f"batches, {durability}", *saved(folder), **options)
    with run.open(durability=durability) as mdb:
        run.first = run.count
        run.upsert_many(mdb, *({"id": number, "text": "y" * 30} for number in range(4)))
        run.transact(mdb, [A | {"n": 10}, {"id": 5}], [0, "b"])
        run.upsert_many(mdb, {"id": 6}, {"id": 7})
    return run


def removals(folder, durability="process", **options):
    run = Run(folder, f"delete and clear, {durability}", *saved(folder), **options)
    with run.open(durability=durability) as mdb:
        run.first = run.count
        run.delete(mdb, "a")
        run.clear(mdb)
        run.upsert(mdb, B)
    return run


def erase_all(folder, **options):
    run = Run(folder, "erase all", *saved(folder), **options)
    with run.open() as mdb:
        run.first = run.count
        run.do(mdb.erase_all, dict.clear, power=True)
        run.upsert(mdb, B)
    return run


def first_save(folder, **options):
    run = Run(folder, "first save", *seeded(folder), **options)
    with run.open() as mdb:
        run.first = run.count
        run.upsert(mdb, D)
        run.barrier(mdb.save)
        run.upsert(mdb, A | {"n": 10})
    return run


def save_alone(folder, **options):
    run = Run(folder, "save", *saved(folder), **options)
    with run.open() as mdb, run.open(durability="power") as other:
        run.upsert(mdb, B | {"n": 10})
        run.first = run.count
        run.barrier(mdb.save)
        run.upsert(other, C | {"n": 11})
        run.barrier(mdb.save)
        run.barrier(mdb.save)  # Of an unchanged table: the hash stays the same.
    return run


def save_while_others_write(folder, durability="process", **options):
    """A write comes between the capture and the draft, and others between the draft and the switch."""
    run = Run(folder, f"save while others write, {durability}", *saved(folder), **options)
    with run.open(durability=durability) as other:
        early = before("sync", "aside", lambda: run.upsert(other, B | {"n": 10}), 1)
        late = before("sync", "aside", lambda: run.upsert(other, C | {"n": 12}, A | {"n": 13}), 2)
        with run.open(meet=both(early, late)) as mdb:
            run.first = run.count
            run.barrier(mdb.save)
        run.upsert(other, B)
    return run


def save_what_expires(folder, durability="process", **options):
    """What is there for a while is there no longer after any crash, and what has expired is deleted by the save."""
    run = Run(folder, f"save what expires, {durability}", *saved(folder), **options)
    with run.open(durability=durability) as other:
        run.upsert_until(other, A | BRIEF, NOW + 10)
        run.upsert_until(other, {"id": "expired"}, NOW)
        run.barrier(other.sync)
        late = before("sync", "aside", lambda: run.upsert_until(other, B | BRIEF, NOW + 10), 2)
        with run.open(meet=late) as mdb:
            run.first = run.count
            run.barrier(mdb.save)
            run.barrier(mdb.save)
        run.upsert_until(other, C | BRIEF, NOW + 10)
    run.sees = _times(run)
    return run


def _times(run):
    """What is marked as brief is gone at its time, whatever else is there."""

    def sees(crash):
        with opened(Disk(run.folder, crash.state), run.path) as mdb:
            found = records(mdb)
        with opened(Disk(run.folder, crash.state), run.path, now=NOW + 10) as mdb:
            left = records(mdb)
        lasting = {key: record for key, record in found.items() if "brief" not in record}
        return None if same(left, lasting) else f"of {found} there is still {left}"

    return sees


def save_as_grid(folder, **options):
    run = Run(folder, "save as grid", *seeded(folder), **options)
    with run.open() as mdb:
        run.first = run.count
        run.barrier(mdb.save_as_grid)
        run.upsert(mdb, A | {"n": 10})
    return run


def save_inside_lock(folder, **options):
    run = Run(folder, "save inside lock", *saved(folder), **options)
    with run.open() as mdb:
        run.first = run.count
        with mdb.lock():
            run.upsert(mdb, D | {"n": 10})
            run.barrier(mdb.save)
            run.upsert(mdb, A | {"n": 11})
    return run


def automatic_save(folder, **options):
    run = Run(folder, "automatic save", *saved(folder), **options)
    with run.open(auto_save=True, auto_save_bytes=300) as mdb:
        run.first = run.count
        for number in range(12):
            run.upsert(mdb, D | {"n": number, "more": "z" * 40})
    return run


def edited_by_rename(folder, **options):
    """A program that fsyncs what it writes, but not the folder, has put another snapshot in place."""
    state, table = just_saved(folder)
    run = Run(folder, "edited snapshot, renamed", state, table, **options)
    editor = Process(run.disk)
    file = editor.create(os.path.join(run.folder, "edit"))
    file.write_at(b'[{"id": "edited"}]', 0)
    file.sync()
    editor.rename(file.path, run.path)
    return _adopt(run)


def edited_in_place(folder, **options):
    """A program that fsyncs nothing has written the snapshot. Until it is adopted what is there is the user's."""
    state, table = just_saved(folder)
    run = Run(folder, "edited snapshot, in place", state, table, **options)
    file = Process(run.disk).open(run.path, write=True)
    file.truncate(0)
    file.write_at(b'[{"id": "edited"}]', 0)
    return _adopt(run, from_the_end=True)


def _adopt(run, *, from_the_end=False):
    run.first = run.count
    run.do(lambda: run.open().close(), dict.clear, put({"id": "edited"}), power=True)
    run.first = run.count if from_the_end else run.first
    with run.open(durability="power") as mdb:
        run.upsert(mdb, A)
    return run


def export(folder, **options):
    """To a file elsewhere, over an older one, which must be there whole until the new one is."""
    run = Run(folder, "save elsewhere", *saved(folder), **options)
    target = os.path.join(run.folder, "elsewhere.json")
    with run.open() as mdb:
        mdb.save(target)
        old = run.disk.state.tree()["elsewhere.json"]
        run.upsert(mdb, B | {"n": 10})
        run.first = run.count
        mdb.save(target)
        end = run.count
    new = run.disk.state.tree()["elsewhere.json"]

    def sees(crash):
        found = crash.state.tree().get("elsewhere.json")
        allowed = [new] if crash.count >= end else [old, new]
        return None if found in allowed else f"elsewhere stands {found}"

    run.sees = sees
    return run


def repair_into(folder, **options):
    """What it writes is not there, or whole; what it reads stays as it is."""
    run = Run(folder, "repair into", *saved(folder), **options)
    source = run.disk.state.tree()
    target = os.path.join(run.folder, "new.json")
    with mounted(Process(run.disk), OS), contextlib.redirect_stdout(io.StringIO()):
        assert main(["repair", run.path, "--into", target]) == 0
    end = run.count

    def sees(crash):
        tree = crash.state.tree()
        if any(tree.get(path) != data for path, data in source.items()):
            return "the damaged one was changed"
        with opened(Disk(folder, crash.state), target) as mdb:
            found = records(mdb)
        is_there = same(found, run.tables[0])
        return None if is_there or (not found and crash.count < end) else f"the new one holds {found}"

    run.sees = sees
    return run


def made_again(folder, **options):
    """Of two writes a power cut took the first. Recovery cuts them both; then the first is made again, as it was."""
    earlier = append(folder)
    count = next(
        count for count, step in enumerate(earlier.disk.steps, 1) if step.kind == "write" and count > earlier.first
    )
    count = next(later for later in range(count + 1, earlier.count) if earlier.disk.steps[later - 1].kind == "write")
    state = next(
        state
        for label, state in power_cuts(earlier.disk.after(count), QUICK, Random(0))
        if label.endswith(("hole 0 / all", "all / hole 0"))
    )
    run = Run(folder, "a lost write made again", state, saved(folder)[1], **options)
    with run.open() as mdb:
        run.first = run.count
        run.upsert(mdb, A | {"n": 20})
    return run


def _writes(run):
    """After how many steps each of its writes was made."""
    return [count for count, step in enumerate(run.disk.steps, 1) if step.kind == "write" and count > run.first]


def saver_died(folder, **options):
    """A saver died when its snapshot was in place, and nobody else was alive."""
    earlier = save_alone(folder)
    steps = enumerate(earlier.disk.steps, 1)
    count = next(count for count, step in steps if step.kind == "rename" and role(step.path) == "snapshot")
    state = earlier.disk.after(count)
    return recovery(Crash(earlier, count, "killed", state, earlier.allowed(count, cut=False)), **options)


def torn_tail(folder, **options):
    """A power cut left half a frame."""
    earlier = append(folder)
    count = next(
        count for count, step in enumerate(earlier.disk.steps, 1) if step.kind == "write" and count > earlier.first
    )
    crashes = earlier.crashes(QUICK, Random(0), kinds=["cut"])
    return recovery(next(crash for crash in crashes if crash.count == count and "torn" in crash.label), **options)


def poisoned_append(folder, **options):
    """An fsync of a write fails; the next write saves first."""
    run = Run(folder, "an fsync of a write that failed", *saved(folder), **options)
    with run.open() as other, run.open(durability="power", meet=before("sync_data", "log", fail)) as mdb:
        run.upsert(other, B | {"n": 10}, C | {"n": 11})
        run.first = run.count
        failing(run.upsert, mdb, D | {"n": 12})
        run.upsert(mdb, A | {"n": 13})
        run.upsert(other, B | {"n": 14})
    return run


def poisoned_sync(folder, **options):
    """`sync` fails; the next write saves first."""
    run = Run(folder, "a sync that failed", *saved(folder), **options)
    with run.open(meet=before("sync_data", "log", fail)) as mdb:
        run.upsert(mdb, B | {"n": 10}, C | {"n": 11})
        run.first = run.count
        failing(mdb.sync)
        run.upsert(mdb, A | {"n": 13})
        run.barrier(mdb.sync)
    return run


def poisoned_expiry(folder, **options):
    """An fsync fails; the save before the next write carries all times, also those of what has expired."""
    run = Run(folder, "a sync that failed, of what expires", *saved(folder), **options)
    with run.open(meet=before("sync_data", "log", fail)) as mdb:
        run.upsert_until(mdb, A | BRIEF, NOW + 10)
        run.upsert_until(mdb, {"id": "expired"}, NOW)
        run.first = run.count
        failing(mdb.sync)
        run.upsert(mdb, B | {"n": 1})
        run.barrier(mdb.sync)
    run.sees = _times(run)
    return run


def failed_fsync(number, folder, **options):
    """Of all that a handle does from its opening to its end, the so many-th fsync fails. None if there are fewer."""
    run = Run(folder, f"fsync {number} fails", *saved(folder), **options)
    left = [number]

    def meet(kind, path):
        if kind in ("sync", "sync_data", "sync_folder"):
            left[0] -= 1
            if left[0] == 0:
                fail()

    with run.open() as other:
        run.upsert(other, B | {"n": 10})
        with run.open(durability="power", meet=meet) as mdb:
            steps = [
                lambda: run.upsert(mdb, D | {"n": 11}),
                lambda: run.upsert(other, C | {"n": 12}),
                lambda: run.barrier(mdb.sync),
                lambda: run.upsert(other, C | {"n": 13}),
                lambda: run.barrier(mdb.save),
                lambda: run.upsert(other, C | {"n": 14}),
                lambda: run.upsert(mdb, A | {"n": 15}),
            ]
            for step in steps:
                with contextlib.suppress(OSError):
                    step()
    return run if left[0] <= 0 else None


def fail():
    raise OSError(errno.EIO, "made to fail")


def failing(call, *args):
    try:
        call(*args)
    except OSError:
        return
    raise AssertionError("made to fail, and did not")


RUNS = {
    "first open": first_open,
    "first open, process": first_open_process,
    "reopen": reopen,
    "append, process": append,
    "append, power": append_power,
    "append by turns": append_by_turns,
    "batches, process": batches,
    "batches, power": functools.partial(batches, durability="power"),
    "removals, process": removals,
    "removals, power": functools.partial(removals, durability="power"),
    "erase all": erase_all,
    "first save": first_save,
    "save": save_alone,
    "save while others write, process": save_while_others_write,
    "save while others write, power": functools.partial(save_while_others_write, durability="power"),
    "save what expires, process": save_what_expires,
    "save what expires, power": functools.partial(save_what_expires, durability="power"),
    "save as grid": save_as_grid,
    "save inside lock": save_inside_lock,
    "automatic save": automatic_save,
    "edited by rename": edited_by_rename,
    "edited in place": edited_in_place,
    "export": export,
    "repair": repair_into,
    "torn tail": torn_tail,
    "saver died": saver_died,
    "made again": made_again,
}
"""All that writes, by name: each makes the run in a folder."""

POISONED = {"append": poisoned_append, "sync": poisoned_sync, "expiry": poisoned_expiry}
"""An fsync fails, and life goes on."""


# Crashes of a recovery.


def recovery(crash, **options):
    """The run of the recovery from a crash, and of a write after it; the table it found is what must stay.

    What came after a power cut is on the disk already, and no second one takes it. After the death of a process alone
    it may still be lost to a power cut, as far as it might have been before.
    """
    reason, found = flaw(crash)
    if reason is not None:
        raise AssertionError(f"{crash}\n{reason}")
    was_cut = crash.state.boot_id != crash.run.disk.boot_id
    others = [] if was_cut else crash.run.allowed(crash.count, cut=True)
    run = Run(crash.run.folder, "recovery", crash.state, found, of=crash, others=others, **options)
    with run.open(durability="power") as mdb:
        run.upsert(mdb, {"id": "after"})
    run.sees = _keeps_tail(run, was_cut=was_cut)
    return run


def _keeps_tail(run, *, was_cut):
    """What recovery cuts from a log is in it still, or aside; if it was on the disk, after a second power cut too."""
    cut = next((step for step in run.disk.steps if step.kind == "truncate" and role(step.path) == "log"), None)
    if cut is None:
        return None
    name = os.path.relpath(cut.path, run.folder)
    tail = run.disk.begin.tree()[name][len(cut.state.tree()[name]) :]

    def sees(crash):
        if not was_cut and crash.state.boot_id != run.disk.boot_id:
            return None
        tree = crash.state.tree()
        kept = tree.get(name, b"").endswith(tail) or any(
            data == tail for path, data in tree.items() if path.endswith(".torn")
        )
        return None if kept else f"the tail that was cut from {name} is nowhere"

    return sees


def way(run):
    """What a recovery did, for telling apart those that go different ways."""
    return tuple((step.kind, role(step.path), step.fsync) for step in run.disk.steps if step.kind != "store")


def recoveries(run, effort, random, *, per_way, most, kinds=("cut", "kill")):
    """Recoveries from at most so many crashes of a run, chosen at random: so many of each way that a recovery goes."""
    crashes = list({crash_known(crash): crash for crash in run.crashes(effort, random, kinds=kinds)}.values())
    left = {}
    for crash in random.sample(crashes, min(most, len(crashes))):
        found = recovery(crash)
        if left.setdefault(way(found), per_way) > 0:
            left[way(found)] -= 1
            yield found


# An fsync is left out.


def bitten(runs, fsync, random):
    """Whether any run without an fsync may end in a bad state, after a power cut behind the place where it stood."""
    runs = [run for run in runs if any(step.fsync == fsync for step in run.disk.steps)]
    for run in runs:
        left_out = next(count for count, step in enumerate(run.disk.steps, 1) if step.fsync == fsync)
        run.first = max(run.first, left_out)
    return any(look(run, effort, random, first_bad=True, kinds=["cut"]).bad for effort in (QUICK, LONG) for run in runs)


# A process dies, and another one that was alive all the time goes on.


def survivors(folder, name, **options):
    """A run for each step of a write or a save at which its process dies while another lives."""
    for number in itertools.count(1):
        run = _survivor(folder, name, number, **options)
        if run is None:
            return
        yield run


def _survivor(folder, name, number, **options):
    """The so many-th run of these; None if the process has fewer steps to make. The other one writes, for the disk."""
    run = Run(folder, f"{name}, dead before step {number}", *saved(folder), **options)
    left = [number]

    def meet(*_):
        left[0] -= 1
        if left[0] == 0:
            victim._log.files.die()

    with run.open(durability="power") as survivor:
        victim = run.open(durability=DEATHS[name].durability)
        victim._log.files.meet = meet
        try:
            DEATHS[name].act(run, victim)
        except Killed:
            _take_stock(run, survivor)
            run.first = run.count
            run.upsert(survivor, {"id": "survivor"})
            return run
        left[0] = 0
        victim.close()
    return None


def _take_stock(run, survivor):
    """What the other one sees of what was under way has come to be. What it does not see may still be in the log."""
    found = records(survivor)
    if not any(same(found, table) for table in run.allowed(run.count, cut=False)):
        raise AssertionError(f"{run.name}: the survivor found {found}")
    for change in run.changes:
        if change.is_under_way(run.count) and same(found, change.table):
            change.end = run.count
            run.tables.append(change.table)


class Death(NamedTuple):
    """What a process does as it dies."""

    durability: str
    act: object


def _save_after_writes(run, mdb):
    run.upsert(mdb, B | {"n": 10})
    run.barrier(mdb.save)
    run.upsert(mdb, C | {"n": 11})


def _save_what_expires(run, mdb):
    run.sees = _times(run)
    run.upsert_until(mdb, B | BRIEF, NOW + 10)
    run.upsert_until(mdb, {"id": "expired"}, NOW)
    run.barrier(mdb.save)
    run.upsert_until(mdb, C | BRIEF, NOW + 10)


DEATHS = {
    "a write for the disk": Death("power", lambda run, mdb: run.upsert(mdb, A | {"n": 20}, D | {"n": 21})),
    "a batch": Death("process", lambda run, mdb: run.upsert_many(mdb, A | {"n": 20}, {"id": "new"}, {"id": "newer"})),
    "a save": Death("process", _save_after_writes),
    "a save of what expires": Death("process", _save_what_expires),
}
