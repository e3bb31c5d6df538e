"""A database under errors of the disk: who looks at it must agree with what was acknowledged, whatever failed.

`Run` makes the steps of a scenario while the calls of one fault fail. After each step, and at the end, it compares four
contents: that of the handle, that of a handle in another process, that of a fresh handle in a third process, and the
oracle: what was acknowledged, which the run keeps by itself. Then the error is gone, and the database must be written,
saved and opened as ever, whoever comes first. A `Lab` runs many, and counts what was wrong.
"""

import contextlib
import errno
import gc
import json
import os
import random
import shutil
from pathlib import Path

import microdb
from bad_input_children import Peer
from crash.io_errors import FOREVER, WRITING, Door, Fault, Faults, Shim, errors_of
from crash.io_scenarios import EXPORTED, IN_SYSTEM_CALLS, OLD, REPAIRED, folder_of, record, shared, upsert
from microdb.files import OS

WHO = ("own", "live", "nobody")
"""Who acts first when the error is gone."""


class Other:
    """A `Peer`, and whether it has the database open."""

    def __init__(self, peer):
        self._peer = peer
        self._is_open = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.shut()

    def __getattr__(self, name):
        return getattr(self._peer, name)

    def is_open(self):
        return self._is_open

    def open(self, *args, **options):
        self._peer.open(*args, **options)
        self._is_open = True

    def shut(self):
        if self._is_open:
            self._is_open = False
            self._peer.close()


class WrongError(Exception):
    """What must never be."""


class Run:
    """One scenario under one fault.

    Attributes:
        model: What was acknowledged: the oracle.
        errors: What was raised, as step and error.
    """

    def __init__(self, scenario, path, fault, *, faults, files, live, fresh):
        self.scenario, self.path, self.fault = scenario, path, fault
        self.faults, self.files, self.live, self.fresh = faults, files, live, fresh
        self.mdb = None
        self.errors = []

    def open(self, **options):
        self.mdb = microdb.MicroDB(self.path, ["id"], **{"files": self.files, **self.scenario.options, **options})

    def prepare(self):
        self.path.parent.mkdir()
        self.model = self.scenario.prepare(self.path, self.live)
        if self.scenario.is_open:
            self.open()

    def rehearse(self):
        """The calls that are made when nothing fails."""
        try:
            self.prepare()
            self.faults.arm(Fault())
            for step in self.scenario.steps:
                self.take(step)
            self.faults.disarm()
        finally:
            self.close()
        return self.faults.calls

    def go(self, first):
        """Whether the fault was met. `first`: who acts first when the error is gone."""
        try:
            self.prepare()
            self.faults.arm(self.fault)
            try:
                for step in self.scenario.steps:
                    self.try_to(step)
            finally:
                self.faults.disarm()
            self.check_errors()
            self.check_leftovers()
            self.agree(fresh=True)
            getattr(self, f"mended_{first}")()
            self.check_end()
        finally:
            self.close()
        return bool(self.faults.hits)

    def take(self, step):
        if self.mdb is None:
            self.open()
        step.call(self.mdb)
        if step.is_close:
            self.mdb = None

    def try_to(self, step):
        try:
            self.take(step)
        except (OSError, microdb.MicroDBError) as error:
            self.errors.append((step.name, f"{type(error).__name__}: {error}"))
        except Exception as error:
            raise WrongError(f"{step.name} raised {type(error).__name__}: {error}") from error
        else:
            step.change(self.model)
        self.faults.pause()
        self.agree()
        self.faults.go_on()

    def check_errors(self):
        if self.errors and (not self.faults.hits or self.faults.must_not_raise()):
            raise WrongError(f"nothing failed that matters, and there are errors: {self.errors}")

    def check_leftovers(self):
        """What was begun is removed at once, unless that failed, or the dead left it, or a save goes on by itself."""
        is_one = len(self.fault.at) == 1 and not any(kind == "unlink" for kind, _ in self.faults.hits)
        if is_one and self.scenario.prepare is shared and "auto_save_bytes" not in self.scenario.options:
            self.check_temporaries(self.path.parent, folder_of(self.path))

    def check_temporaries(self, *folders):
        left = [name for folder in folders for name in os.listdir(folder)]
        if any(name.endswith(".tmp") for name in left):
            raise WrongError(f"left behind: {left}")

    def agree(self, *, fresh=False):
        expected = list(self.model.values())
        contents = {}
        if self.mdb is not None:
            contents["own"] = list(self.mdb.all())
        if self.live.is_open():
            contents["live"] = self.live.all()
        if fresh:
            contents["fresh"] = self.look()
        for who, found in contents.items():
            if found != expected:
                raise WrongError(f"{who} sees {_ids(found)}, acknowledged was {_ids(expected)}; {self.errors}")

    def look(self):
        """What somebody sees who comes anew, in another process."""
        if not self.path.exists() and not folder_of(self.path).exists():
            return []
        try:
            self.fresh.open(self.path, ["id"], files=Door())
            return self.fresh.all()
        finally:
            self.fresh.shut()

    def write(self, number, who):
        who.upsert(record(number))
        upsert(number).change(self.model)
        self.agree()

    def mended_own(self):
        self.be_writable()
        self.write("own", self.mdb)
        self.write_live()
        self.mdb.save()
        self.write("own again", self.mdb)

    def mended_live(self):
        self.write_live()
        self.live.save()
        self.be_writable()
        self.write("own", self.mdb)
        self.mdb.save()

    def mended_nobody(self):
        self.close()
        self.agree(fresh=True)
        self.be_writable()
        self.write("own", self.mdb)
        self.write_live()
        self.mdb.save()

    def be_writable(self):
        if self.mdb is not None and self.scenario.options.get("read_only"):
            self.mdb.close()
            self.mdb = None
        if self.mdb is None:
            self.open(read_only=False)

    def write_live(self):
        if not self.live.is_open():
            self.live.open(self.path, ["id"], files=Door())
        self.write("live", self.live)

    def check_end(self):
        self.agree(fresh=True)
        self.close()
        self.agree(fresh=True)
        self.check_temporaries(folder_of(self.path))
        if _open_files(self.path):
            gc.collect()
            if _open_files(self.path):
                raise WrongError(f"still open: {_open_files(self.path)}")
        for suffix in (EXPORTED, REPAIRED):
            copy = self.path.with_name(self.path.name + suffix)
            if copy.exists() and json.loads(copy.read_text()) != list(OLD.values()):
                raise WrongError(f"half of a copy: {copy.read_text()}")

    def close(self):
        if self.mdb is not None:
            self.mdb.close()
            self.mdb = None
        self.live.shut()


def _ids(records):
    return [one["id"] for one in records]


def _open_files(path):
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # That of the listing itself.
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [name for name in found if name.startswith(str(path))]


class Lab:
    """Runs scenarios, and counts.

    Attributes:
        injected: How many runs met their fault.
        wrong: What went wrong, a text each.
    """

    def __init__(self, folder, faults, files, peers):
        self.folder = Path(folder)
        self.faults = faults
        self.parts = {"faults": faults, "files": files, "live": Other(peers[0]), "fresh": Other(peers[1])}
        self.injected = self._count = 0
        self.wrong = []

    def new(self, scenario, fault):
        self._count += 1
        return Run(scenario, self.folder / str(self._count) / "mdb.json", fault, **self.parts)

    def run(self, scenario, fault, first):
        run = self.new(scenario, fault)
        try:
            self.injected += run.go(first)
        except Exception as error:  # Whatever it is, it is to be told with what led to it.
            hits = ", ".join(f"{kind} of {name}" for kind, name in self.faults.hits[:3])
            self.injected += 1
            self.wrong.append(f"{scenario.name}; {fault} ({hits}); {first} first: {type(error).__name__}: {error}")
        shutil.rmtree(run.path.parent)
        return run

    def faults_of(self, scenario):
        """Every call of a scenario with every error; every two in a row, or all from it on, among those that write."""
        run = self.new(scenario, Fault())
        calls = run.rehearse()
        shutil.rmtree(run.path.parent)
        for number, (kind, _) in enumerate(calls, 1):
            for error in errors_of(kind, in_system_calls=isinstance(self.faults, Shim)):
                yield Fault((number,), error)
        for number in range(1, 1 + sum(kind in WRITING for kind, _ in calls)):
            for error in (errno.EIO, errno.ENOSPC):
                yield Fault(range(number, FOREVER), error, WRITING)
                yield Fault((number, number + 1), error, WRITING)

    def sweep(self, scenario, *, all_first):
        """A scenario under all of its faults; with everybody who may come first when the error is gone, or by turns."""
        for number, fault in enumerate(self.faults_of(scenario)):
            for first in WHO if all_first else WHO[number % 3 :][:1]:
                self.run(scenario, fault, first)

    def sample(self, scenarios, count, random):
        """So many of the scenarios, each under one of its faults."""
        for scenario in random.sample(scenarios, count):
            self.run(scenario, random.choice(list(self.faults_of(scenario))), random.choice(WHO))


def lab(folder, peers, faults=None, files=None):
    """A lab with two peers; if nothing else is said, one whose errors come at the door."""
    faults = faults or Faults()
    return Lab(folder, faults, files or Door(faults), peers)


def fail_system_calls(pipe, folder, names, count=None, seed=None):
    """In a process whose system calls can be made to fail: sweep the scenarios; or sample so many of them.

    Tells how many errors there were, and what was wrong.
    """
    scenarios = [scenario for scenario in IN_SYSTEM_CALLS if scenario.name in names]
    with Peer() as live, Peer() as fresh:
        found = lab(folder, (live, fresh), Shim(folder), OS)
        if count is not None:
            found.sample(scenarios, count, random.Random(seed))
        else:
            for scenario in scenarios:
                found.sweep(scenario, all_first=False)
    pipe.send((found.injected, found.wrong))
