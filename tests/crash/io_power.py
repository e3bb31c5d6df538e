"""Power cuts after errors of the disk, and disks that lie: on a simulated disk, with the oracle of `crash_states`.

* Two calls fail, then power is cut at any step. What was acknowledged as durable is there; what raised may come back
  only until something later is certain.
* An fsync says that all is well, and nothing is on the disk. Nothing can be promised but that this is noticed, or that
  the table goes back to what it was at some moment: never a wrong table, never half a batch.
"""

import errno
import itertools
from typing import NamedTuple

import microdb
from crash.crash_states import A, B, C, Crash, D, Run, opened, records, same, saved
from crash.simulated_disk import Disk, power_cuts

STORE = "store"  # Into mapped memory: it cannot fail.
MANY = [{"id": number, "text": "y" * 30} for number in range(4)]


def after_errors(at, folder):
    """A handle lives through errors of the calls with these numbers, and so does another one beside it.

    Returns:
        The run, and how many of the errors were met.
    """
    run = Run(folder, f"calls {at} fail", *saved(folder))
    calls = itertools.count(1)
    met = []

    def meet(kind, path):
        if kind != STORE and next(calls) in at:
            met.append(kind)
            raise OSError(errno.EIO, "made to fail", path)

    with run.open() as other:
        run.upsert(other, B | {"n": 10})
        run.first = run.count
        with run.open(durability="power", meet=meet) as mdb:
            for step in (
                lambda: run.upsert(mdb, D | {"n": 11}),
                lambda: run.upsert_many(mdb, *MANY),
                lambda: run.upsert(other, C | {"n": 12}),
                lambda: run.barrier(mdb.sync),
                lambda: run.barrier(mdb.sync),
                lambda: run.upsert(other, C | {"n": 13}),
                lambda: run.barrier(mdb.save),
                lambda: run.upsert(other, C | {"n": 14}),
                lambda: run.upsert(mdb, A | {"n": 15}),
            ):
                try:
                    step()
                except (OSError, microdb.MicroDBError):
                    continue
    return run, len(met)


class Liar(Disk):
    """A disk some of whose fsyncs do nothing: those for whose number, from 1, `lies` is true.

    Attributes:
        told: How many there were.
    """

    lies = None

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.told = 0

    def is_lie(self):
        self.told += 1
        return self.lies is not None and self.lies(self.told)

    def sync(self, number):
        if not self.is_lie():
            super().sync(number)

    def sync_folder(self, folder):
        if not self.is_lie():
            super().sync_folder(folder)


class OnLiar(Run):
    """As `Run`, on a disk that lies: any table that there ever was may come back."""

    def __init__(self, folder):
        super().__init__(folder, "on a disk that lies")
        self.disk = Liar(folder)

    def allowed(self, count, *, cut):
        done = sum(change.end is not None and change.end <= count for change in self.changes)
        under_way = [change.table for change in self.changes if change.is_under_way(count)]
        return [*under_way, *self.tables[: done + 1]]


def on_liar(folder, lies):
    """Both kinds of writes, batches, a barrier and two saves, on a disk that lies from some moment on."""
    run = OnLiar(folder)
    with run.open() as mdb, run.open(durability="power") as other:
        run.upsert(mdb, A, B, C)
        run.barrier(mdb.save)
        run.upsert(other, D)
        run.disk.told, run.disk.lies, run.first = 0, lies, run.count
        run.upsert(mdb, B | {"n": 10})
        run.upsert_many(other, *MANY)
        run.barrier(mdb.sync)
        run.transact(mdb, [A | {"n": 11}, {"id": 5}], [0, "b"])
        run.barrier(mdb.save)
        run.upsert(other, C | {"n": 12})
        run.upsert_many(mdb, *MANY)
        run.barrier(other.save)
        run.upsert(other, D | {"n": 13})
    return run


class Lies(NamedTuple):
    """What came of power cuts after lies: how many lost nothing, went back, or were refused; and what was wrong."""

    kept: int = 0
    back: int = 0
    refused: int = 0
    wrong: tuple = ()

    def __add__(self, other):
        return Lies(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def __str__(self):
        return f"{self.kept:,} kept all, {self.back:,} went back, {self.refused:,} refused, {len(self.wrong)} wrong"


def look_at_lies(run, effort, random, *, points, per_point, out_of):
    """Open some of what a power cut may leave, at so many steps: so many at each, out of the first of them."""
    found = Lies()
    counts = range(run.first, run.count + 1)
    for count in random.sample(counts, min(points, len(counts))):
        tables = run.allowed(count, cut=True)
        left = list(itertools.islice(power_cuts(run.disk.after(count), effort, random), out_of))
        for label, state in random.sample(left, min(per_point, len(left))):
            found += _judged(Crash(run, count, label, state, tables))
    return found


def _judged(crash):
    disk = Disk(crash.run.folder, crash.state)
    new = A | {"id": "after"}
    try:
        with opened(disk, crash.run.path) as mdb:
            table = records(mdb)
            mdb.upsert(new)
        with opened(disk, crash.run.path) as mdb:
            again = records(mdb)
    except microdb.MicroDBError:
        return Lies(refused=1)
    except Exception as error:  # Whatever it is, it is told with what led to it.
        return Lies(wrong=(f"{crash}\n{type(error).__name__}: {error}",))
    if not any(same(table, one) for one in crash.tables) or not same(again, table | {"after": new}):
        return Lies(wrong=(f"{crash}\nfound {table}, then {again}",))
    return Lies(kept=1) if same(table, crash.tables[-1]) else Lies(back=1)
