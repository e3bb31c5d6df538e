"""Histories: what processes and threads did to a few keys, and what they got, while some were killed or stopped.

The processes are forks of a runner, which kills and stops them at random; what they do is in `hands`. Their notes are
the oracle, and `linearizability` judges them.
"""

import itertools
import json
import os
import signal
import time
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from children import reporting
from crash.hands import GROUP, Halting, Hand, Notes, open_in, work
from crash.linearizability import ABSENT, Operation, UndecidedError, apart, violations
from crash.storm import WARM

_PAUSE_S = 0.003


@dataclass(frozen=True)
class Plan:
    """How a history comes about.

    Attributes:
        processes: How many there are at a time.
        threads: How many threads each of them has, with one handle for all.
        operations: How many each thread carries out.
        inherited: Whether they go on with a handle that was opened before the fork, or each opens its own.
        kills: How many are killed, at any moment; another one takes the place of each.
        stops: How many times one is stopped, and goes on a little later.
        deadly: How many are to die in the middle of a write to a file.
        durability: That of all handles.
    """

    processes: int
    threads: int
    operations: int
    inherited: bool = False
    kills: int = 3
    stops: int = 3
    deadly: int = 1
    durability: str = "process"


def plans(operations):
    """Every kind of history that there is, of so many operations or a few more."""
    for processes, threads in itertools.product((2, 8, 16), (1, 4)):
        for inherited, durability in itertools.product((False, True), ("process", "power")):
            each = max(operations // (processes * threads), 8)
            yield Plan(processes, threads, each, inherited=inherited, durability=durability)


class History(NamedTuple):
    """What came about.

    Attributes:
        operations: All of them; at the end, what was there when all were gone.
        counted: How many transactions the group says that there were.
        acknowledged: How many of them returned.
        unknown: How many more had begun.
        killed: How many processes were killed.
        stopped: How many times one was stopped.
        saves: How many saves there were.
    """

    operations: list[Operation]
    counted: int
    acknowledged: int
    unknown: int
    killed: int
    stopped: int
    saves: int


def record(folder, plan, seed):
    """Let a history come about in a new folder. Raises AssertionError if anybody met with an error."""
    os.makedirs(folder)
    ours, theirs = WARM.Pipe()
    runner = WARM.Process(target=reporting, args=(_run, theirs, str(folder), plan, seed), daemon=True)
    runner.start()
    theirs.close()
    group = None
    try:
        group = ours.recv()
        told = ours.recv()
    except BaseException:
        if group is not None:
            os.killpg(group, signal.SIGKILL)
        raise
    finally:
        runner.join()
        ours.close()
    notes = _notes(folder)
    errors = [note["error"] for note in notes if "error" in note]
    assert not errors, f"{len(errors)} threads raised, the first: {errors[0]}"
    assert isinstance(told, dict), f"the runner raised: {told}"
    operations = [_operation(note) for note in notes]
    counts = [note["returned"] for note in notes if note["name"].endswith("count")]
    unknown = counts.count(None)
    return History(operations, acknowledged=len(counts) - unknown, unknown=unknown, **told)


def _notes(folder):
    """Each operation, as it was noted before, and after."""
    notes = []
    for name in sorted(os.listdir(folder)):
        if name.endswith(".notes"):
            with open(os.path.join(folder, name), encoding="utf-8") as file:
                # Of one that was killed while it noted, a line may be cut off: it had not begun, or had not returned.
                for line in [line for line in file if line.endswith("\n")]:
                    note = json.loads(line)
                    if "invoked" in note and "name" not in note:
                        notes[-1] |= note
                    else:
                        notes.append({"returned": None, "reads": {}, **note})
    return notes


def _operation(note):
    reads, writes = note["reads"], note["writes"]
    # To delete what is not there changes nothing.
    writes = {key: value for key, value in writes.items() if (value, reads.get(key, ...)) != (ABSENT, ABSENT)}
    return Operation(note["invoked"], note["returned"], reads, writes, note["name"])


def judge(history, *, effort=10_000):
    """Raise AssertionError unless the history is linearizable and its count exact. Tells if it was judged as a whole.

    Where dozens of threads did things at once, that takes too long now and then: each group of keys that are written
    together is judged apart instead.
    """
    at_most = history.acknowledged + history.unknown
    assert history.acknowledged <= history.counted <= at_most, (
        f"{history.counted}, not {history.acknowledged} to {at_most}"
    )
    try:
        found, is_whole = violations(history.operations, effort=effort), True
    except UndecidedError:
        found, is_whole = violations(apart(history.operations)), False
    assert not found, found
    return is_whole


# The runner: the parent of the processes whose history it is.


def _run(pipe, folder, plan, seed):
    os.setpgid(0, 0)
    pipe.send(os.getpid())
    crew = _Crew(folder, plan, Random(seed))
    try:
        crew.run()
    finally:
        crew.end()
    with open_in(folder, plan.durability) as mdb:
        Hand(mdb, Notes(folder, "final"), None).all()
        saves = mdb.stats().saves
        counted = mdb.get((GROUP[0],), {"n": 0})["n"]
    pipe.send({"counted": counted, "killed": crew.killed, "stopped": crew.stopped, "saves": saves})


class _Crew:
    """The processes at work, by pid; the runner kills and stops them at random."""

    def __init__(self, folder, plan, random):
        self.folder = folder
        self.plan = plan
        self.random = random
        self.names = itertools.count()
        self.alive = {}
        self.killed = self.stopped = 0
        self.resting = set()
        self.files = Halting(random)
        self.mdb = open_in(folder, plan.durability, files=self.files) if plan.inherited else None
        self.gate = os.pipe()

    def run(self):
        deadly = set(self.random.sample(range(self.plan.processes), min(self.plan.deadly, self.plan.processes)))
        for i in range(self.plan.processes):
            self.start(is_deadly=i in deadly)
        for end in self.gate:
            os.close(end)
        self.gate = ()
        while self.alive:
            # Not to wait for anything: these are the moments at which they are killed and stopped.
            time.sleep(self.random.expovariate(1 / _PAUSE_S))
            self.reap()
            for pid in [pid for pid in self.resting if self.random.random() < 0.3]:
                self.go_on(pid)
            self.strike()

    def start(self, *, is_deadly=False):
        name = f"p{next(self.names)}"
        seed = self.random.randrange(2**32)
        pid = os.fork()
        if pid:
            self.alive[pid] = name
            return
        code = 1
        try:
            self.work(name, Random(seed), is_deadly=is_deadly)
            code = 0
        except BaseException:
            Notes(self.folder, f"{name} error").error()
        finally:
            os._exit(code)

    def work(self, name, random, *, is_deadly):
        """In the child: wait until all are there, then work."""
        self.files.random = random
        self.files.left = random.randrange(1, 40) if is_deadly else None
        mdb = self.mdb if self.mdb is not None else open_in(self.folder, self.plan.durability, files=self.files)
        if self.gate:
            ready, go = self.gate
            os.close(go)
            assert not os.read(ready, 1), "the runner closes it when all are started"
        notes = [Notes(self.folder, f"{name}.{i}") for i in range(self.plan.threads)]
        work(mdb, notes, random, self.plan.operations)

    def reap(self):
        for pid in list(self.alive):
            gone, status = os.waitpid(pid, os.WNOHANG)
            if gone:
                self.bury(pid, status)

    def bury(self, pid, status):
        self.alive.pop(pid)
        self.resting.discard(pid)
        if os.waitstatus_to_exitcode(status) == -signal.SIGKILL:
            self.killed += 1
            self.start()

    def strike(self):
        if not self.alive:
            return
        pid = self.random.choice(list(self.alive))
        if self.random.random() < 0.5 and self.killed < self.plan.kills:
            os.kill(pid, signal.SIGKILL)
            self.bury(pid, os.waitpid(pid, 0)[1])
        elif pid not in self.resting and self.stopped < self.plan.stops:
            os.kill(pid, signal.SIGSTOP)
            self.resting.add(pid)
            self.stopped += 1

    def go_on(self, pid):
        os.kill(pid, signal.SIGCONT)
        self.resting.discard(pid)

    def end(self):
        for pid in self.alive:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        if self.mdb is not None:
            self.mdb.close()
