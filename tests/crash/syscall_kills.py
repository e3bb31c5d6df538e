"""Kill a process before each of its system calls, before each of its stores to the shared page, and inside each write.

What of a process others can see changes by system calls and by stores to the page alone. So a process that died before
each of them, and inside each write, has died in every state that it can leave behind.

A *scenario* is a list of steps. A fork of a warm process, the nursery, runs them and tells each one that returned
through a pipe; it is killed by a *weapon*:

* ``Call``: strace kills it as it enters the k-th call of a name. The call is not made.
* ``Store``: it kills itself before its k-th store to the page.
* ``Write``: half_write.c lets a part of its k-th write through, and kills it.
* ``Before``: it kills itself before its k-th call of a method of `Files`. Prepares what others then die of repairing.

The oracle is what was told, and a dict on which the same steps are done: what is found must be the dict after the steps
told, or after one more, whole. A handle that was open all the time reads and writes on at once, and so does the next to
open; a save leaves nothing of the dead behind.
"""

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import traceback
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import microdb
from children import spawned
from microdb.files import File, Files

SOURCE = Path(__file__).parent / "half_write.c"
PARTS = {"none": 0, "one byte": 1, "half": 2, "all but one": 3, "all": 4}
WRITES = ("write", "pwrite64")
NEVER = 1 << 40

_PR_SET_PDEATHSIG = 1
_PR_SET_PTRACER = 0x59616D61
_CALL = re.compile(r"(\d+) +(\w+)\(")
_FILE_WRITE = re.compile(r"\d+ +(?:write|pwrite64|writev|pwritev2?|copy_file_range|sendfile)\(\d+<([^>]*)>")


class Call(NamedTuple):
    """The k-th call of a name, counted for each thread by itself."""

    name: str
    k: int


class Store(NamedTuple):
    """The k-th store to the page."""

    k: int


class Write(NamedTuple):
    """A part of the k-th write."""

    k: int
    part: str


class Before(NamedTuple):
    """The k-th call of a method of `Files`; or the k-th ``half``: a write that is only half made."""

    name: str
    k: int


class Scenario(NamedTuple):
    """What the process does that is to be killed.

    Attributes:
        name: For people.
        steps: A method of `MicroDB` and its arguments each; "open", else it is open before; "transaction" of steps;
            "save_amid": a save, and steps that come between as if they were another's.
        is_new: Whether there is no database yet.
        dead: What another process did before, and what it died of: nothing of it counts.
        options: How the handle is opened.
    """

    name: str
    steps: tuple
    is_new: bool = False
    dead: tuple | None = None
    options: tuple = ()


def record(key, **fields):
    """A record with enough in it that a part of it can be missing."""
    return {"id": key, "text": key * 50, **fields}


POWER = (("durability", "power"),)
MANY = [record(f"m{n}", more="x" * 3000) for n in range(3)]
OPEN = (("open",), ("upsert", record("n")))

SCENARIOS = (
    Scenario("open a new one", (*OPEN, ("save",), ("delete", ("n",))), is_new=True),
    Scenario("open", OPEN),
    Scenario("open after half a write", OPEN, dead=((("upsert", record("h")),), Before("half", 1))),
    Scenario("open after a save that died before its snapshot", OPEN, dead=((("save",),), Before("rename", 2))),
    Scenario("open after a save that died behind its snapshot", OPEN, dead=((("save",),), Before("sync_folder", 2))),
    Scenario("upsert", (("upsert", record("n")), ("upsert", record("a", n=2)))),
    Scenario("upsert with power", (("upsert", record("n")), ("upsert", record("a", n=2))), options=POWER),
    Scenario("upsert after half a write", OPEN[1:], dead=((("upsert", record("h")),), Before("half", 1))),
    Scenario("upsert_many", (("upsert_many", MANY),)),
    Scenario(
        "transaction",
        (("transaction", ("upsert_many", MANY), ("delete", ("a",)), ("upsert", record("b", n=2))),),
        options=POWER,
    ),
    Scenario("delete and clear", (("delete", ("a",)), ("clear",), ("upsert", record("n")), ("sync",))),
    Scenario("save", (("upsert", record("n")), ("save",), ("delete", ("a",)), ("save",))),
    Scenario(
        "save while others write",
        (("save_amid", ("upsert_many", MANY), ("delete", ("a",))), ("upsert", record("n")), ("save",)),
    ),
    Scenario(
        "automatic save",
        (("upsert", record("n", more="x" * 3000)), ("upsert", record("o"))),
        options=(("auto_save_bytes", 1000),),
    ),
)


def flat(steps):
    """The steps that are told, in order."""
    for verb, *arguments in steps:
        if verb == "save_amid":
            yield from arguments
            yield ("save",)
        else:
            yield (verb, *arguments)


def changed(records, step):
    """What a step makes of a dict."""
    verb, *arguments = step
    if verb == "transaction":
        for inner in arguments:
            records = changed(records, inner)
        return records
    if verb in ("upsert", "upsert_many"):
        news = arguments if verb == "upsert" else arguments[0]
        return records | {(new["id"],): new for new in news}
    if verb == "delete":
        return {key: value for key, value in records.items() if key != arguments[0]}
    return {} if verb == "clear" else records


# What runs in the nursery, and in its forks.


def suicide():
    os.kill(os.getpid(), signal.SIGKILL)


class Hooked(Files):
    """The real file system, in which the process dies on the way, and others write in the middle of a save."""

    def __init__(self):
        self.left = {}
        self.amid = []

    def arm(self, name, k):
        self.left[name] = k

    def meet(self, name):
        """Whether the end has come."""
        self.left[name] = self.left.get(name, 0) - 1
        return self.left[name] == 0

    def rename(self, source, target):
        if self.meet("rename"):
            suicide()
        super().rename(source, target)

    def sync_folder(self, path):
        if self.meet("sync_folder"):
            suicide()
        super().sync_folder(path)

    def open(self, path, **options):
        return self.hooked(super().open(path, **options))

    def create(self, path):
        if self.amid:
            self.amid.pop(0)()
        return self.hooked(super().create(path))

    def hooked(self, file):
        hooked = HookedFile(os.dup(file.fd), file.path)
        hooked.files = self
        return hooked


class HookedFile(File):
    files: Hooked

    def write_at(self, data, offset):
        if self.files.meet("half"):
            super().write_at(data[: len(data) // 2], offset)
            suicide()
        super().write_at(data, offset)

    def map_words(self, length, *, writable):
        return HookedWords(super().map_words(length, writable=writable), self.files)


class HookedWords:
    """The words of the page."""

    def __init__(self, words, files):
        self.words = words
        self.files = files
        self.readonly = words.readonly

    def __getitem__(self, at):
        found = self.words[at]
        return HookedWords(found, self.files) if isinstance(at, slice) else found

    def __setitem__(self, at, word):
        if self.files.meet("store"):
            suicide()
        self.words[at] = word


class _Life:
    """One run of a scenario, in a process of its own."""

    def __init__(self, pipe, path, scenario, weapon):
        self.pipe = pipe
        self.path = path
        self.scenario = scenario
        self.weapon = weapon
        self.files = Hooked()
        self.mdb = None

    def run(self):
        if self.scenario.steps[0] != ("open",):
            self.open()
        # Who is killed in the middle of a message would leave the rest of it to the nursery: so a signal says go.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        self.pipe.send(("ready", os.getpid()))
        signal.sigwait([signal.SIGUSR1])
        self.arm()
        for step in self.scenario.steps:
            self.take(step)
        self.mdb.close()

    def open(self):
        # The real file system where nobody asks for more: then there are no calls but those of the database.
        is_hooked = isinstance(self.weapon, Store | Before) or any(
            step[0] == "save_amid" for step in self.scenario.steps
        )
        files = {"files": self.files} if is_hooked else {}
        self.mdb = microdb.MicroDB(self.path, ["id"], **dict(self.scenario.options), **files)

    def arm(self):
        weapon = self.weapon
        if isinstance(weapon, Write):
            ctypes.CDLL(None).half_write_arm(self.path.encode(), ctypes.c_long(weapon.k), PARTS[weapon.part])
        elif isinstance(weapon, Store):
            self.files.arm("store", weapon.k)
        elif isinstance(weapon, Before):
            self.files.arm(weapon.name, weapon.k)

    def take(self, step):
        verb, *arguments = step
        if verb == "open":
            self.open()
        elif verb == "save_amid":
            self.files.amid = [lambda inner=inner: self.take(inner) for inner in arguments]
            self.mdb.save()
        elif verb == "transaction":
            with self.mdb.transaction():
                for name, *rest in arguments:
                    getattr(self.mdb, name)(*rest)
        else:
            getattr(self.mdb, verb)(*arguments)
        self.pipe.send(("told",))


def nursery(pipe, path):
    """For each ``(path, scenario, weapon)`` received, a fork that runs it; then its exit code.

    First it does at `path` what makes Python import what it imports late: then a fork makes the scenario's calls alone.
    """
    _begun(path)
    with opened(path):
        pipe.send("ready")
    while (job := pipe.recv()) is not None:
        pid = os.fork()
        if pid == 0:
            _live(pipe, job)
        pipe.send(("ended", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))


def _live(pipe, job):
    code = 1
    try:
        prctl = ctypes.CDLL(None).prctl
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # Where only ancestors may trace a process, it may allow it to anybody.
        prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)
        _Life(pipe, *job).run()
        code = 0
    except BaseException:
        pipe.send(("error", traceback.format_exc()))
    finally:
        os._exit(code)


# What runs in the test.


def compiled(folder):
    """half_write.c as a library."""
    library = folder / "half_write.so"
    command = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(library), str(SOURCE)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return library


@contextlib.contextmanager
def preloaded(library):
    """Processes that start in this block load a library before all others."""
    if library is None:
        yield
        return
    before = os.environ.get("LD_PRELOAD")
    os.environ["LD_PRELOAD"] = f"{library} {before}" if before else str(library)
    try:
        yield
    finally:
        if before is None:
            del os.environ["LD_PRELOAD"]
        else:
            os.environ["LD_PRELOAD"] = before


@contextlib.contextmanager
def nursed(folder, library):
    """Our end of the pipe to a nursery; `library`: half_write.c, for the weapon ``Write``; or None."""
    with contextlib.ExitStack() as stack:
        with preloaded(library):
            pipes, _ = stack.enter_context(spawned((nursery, folder / "warm.json")))
        assert pipes[0].recv() == "ready"
        yield pipes[0]


class Told(NamedTuple):
    """How a run ended: how many steps were told, and whether it was killed."""

    steps: int
    is_killed: bool


class Laboratory:
    """Runs scenarios, kills them, and examines what they leave.

    Attributes:
        kills: How many processes were killed.
        told: How many steps were acknowledged before.
        ended: How many ended by themselves, because what was to kill them never came.
        left_behind: The names that the last one left, in the folder of its database.
    """

    def __init__(self, folder, pipe):
        self.folder = folder
        self.pipe = pipe
        self.trials = self.kills = self.told = self.ended = 0
        self.left_behind = []

    def figures(self):
        return f"figures: {self.kills} kills, {self.told} acknowledged, 0 missing, {self.ended} ended by themselves"

    def trial(self, scenario, weapon, *, is_watched):
        """One run, killed; whether it came to that.

        Args:
            scenario: What is done.
            weapon: What kills it.
            is_watched: Whether a handle is open all the time; otherwise nobody is alive when it is dead.
        """
        with self._place(scenario) as (path, base), contextlib.ExitStack() as stack:
            live = stack.enter_context(opened(path, timeout=1)) if is_watched else None
            self._bury(path, scenario)
            told = self._run(path, scenario, weapon)
            self.left_behind = sorted(os.listdir(path.parent))
            possible = [base]
            for step in flat(scenario.steps):
                possible.append(changed(possible[-1], step))
            examine(path, possible[told.steps : told.steps + 2], live)
        self.kills += told.is_killed
        self.ended += not told.is_killed
        self.told += told.steps
        return told.is_killed

    def calls(self, scenario, *, is_watched=False):
        """What system calls a scenario makes, how often one thread makes each; and how many write its files."""
        with self._place(scenario) as (path, _), contextlib.ExitStack() as stack:
            if is_watched:
                stack.enter_context(opened(path))
            self._bury(path, scenario)
            trace = self.folder / "trace"
            assert not self._run(path, scenario, None, ["-y", "-o", str(trace)]).is_killed
            lines = trace.read_text().splitlines()
        by_thread = Counter(match.groups() for line in lines if (match := _CALL.match(line)))
        names = {}
        for (_, name), count in by_thread.items():
            names[name] = max(count, names.get(name, 0))
        writes = [match[1] for line in lines if (match := _FILE_WRITE.match(line))]
        return names, sum(name.startswith(str(path)) for name in writes)

    @contextlib.contextmanager
    def _place(self, scenario):
        """A database to begin with, in a folder of its own, and what is in it."""
        self.trials += 1
        place = self.folder / str(self.trials)
        place.mkdir()
        path = Path(os.path.realpath(place)) / "mdb.json"
        yield path, {} if scenario.is_new else _begun(path)
        shutil.rmtree(place)

    def _bury(self, path, scenario):
        if scenario.dead is not None:
            steps, weapon = scenario.dead
            assert self._run(path, Scenario("dead", steps), weapon) == Told(0, is_killed=True)

    def _run(self, path, scenario, weapon, strace=None):
        """Run it to its end."""
        if isinstance(weapon, Call):
            inject = f"--inject={weapon.name}:signal=KILL:when={weapon.k}"
            strace = [f"--trace={weapon.name}", inject, "-o", "/dev/null"]
        self.pipe.send((str(path), scenario, weapon))
        steps, errors = 0, []
        with contextlib.ExitStack() as stack:
            while (heard := self._hear())[0] != "ended":
                if heard[0] == "ready":
                    _release(heard[1], strace, stack, errors)
                elif heard[0] == "told":
                    steps += 1
                else:
                    errors.append(heard[1])
        assert not errors, errors[0]
        assert heard[1] in (0, -signal.SIGKILL), heard[1]
        return Told(steps, is_killed=heard[1] != 0)

    def _hear(self):
        assert self.pipe.poll(60), "the child neither goes on nor dies"
        return self.pipe.recv()


def _release(pid, strace, stack, errors):
    """Let a process go, under strace if there are options for it."""
    try:
        if strace is not None:
            stack.enter_context(traced(pid, strace))
        os.kill(pid, signal.SIGUSR1)
    except AssertionError as error:
        errors.append(error)
        os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def traced(pid, options):
    """strace attached to a process, until that has ended."""
    with subprocess.Popen(["strace", "-f", *options, "-p", str(pid)], stderr=subprocess.PIPE, text=True) as strace:
        first = strace.stderr.readline()
        assert "attached" in first, first
        try:
            yield
        except BaseException:
            strace.kill()
            raise
        strace.stderr.read()


@contextlib.contextmanager
def opened(path, **options):
    with microdb.MicroDB(path, ["id"], **options) as mdb:
        yield mdb


def _begun(path):
    """A database with a snapshot, a history, and a log with something in it."""
    with opened(path) as mdb:
        mdb.upsert_many([record("a"), record("b")])
        mdb.save()
        mdb.upsert(record("c"))
        return dict(mdb.items())


def examine(path, possible, live):
    """Whether what is there is one of what is possible, for all who come, and goes on."""
    if live is not None:
        found = _one_of(live, possible)
        live.upsert(record("live"))  # It waits for the lock for a second at most.
        possible = [found | {("live",): record("live")}]
    with opened(path, timeout=1) as mdb:
        found = _one_of(mdb, possible)
        mdb.upsert(record("next"))
        mdb.save()
        found[("next",)] = record("next")
        assert dict(mdb.items()) == found
        if live is not None:
            assert dict(live.items()) == found
    left = [name for name in os.listdir(f"{path}.wal") if name.endswith(".tmp")]
    assert not left, f"nobody removed {left}"
    if live is not None:
        live.close()
    with opened(path) as mdb:
        assert dict(mdb.items()) == found


def _one_of(mdb, possible):
    found = dict(mdb.items())
    assert found in possible, f"found {sorted(found)}, and possible are {[sorted(records) for records in possible]}"
    return found
