"""Processes whose clocks are wrong, on one database.

Each is a new interpreter under a library that answers for the clock. The oracle is what the writers told that was
acknowledged.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import microdb

HERE = Path(__file__).parent
TEN_YEARS_S = 315_360_000
CLOCKS = [f"+{TEN_YEARS_S}", f"-{TEN_YEARS_S}", "mad", "frozen"]
WAIT_S = 60


def build(folder):
    """The library; the test is skipped where it cannot be built."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("no gcc to build another clock with")
    library = folder / "clock.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-Wall", "-o", library, HERE / "clock.c"], check=True)
    return library


class Process:
    """An interpreter with a clock of its own that does what it is asked, and tells what came of it."""

    def __init__(self, library, clock, path):
        environment = {
            **os.environ,
            "LD_PRELOAD": str(library),
            "MICRODB_CLOCK": clock,
            "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(Path(microdb.__file__).parents[1])]),
        }
        command = [sys.executable, "-c", "from crash.clocks import main; main()", str(path)]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def begin(self, verb, *args):
        """Ask for something, and do not wait for it."""
        self._process.stdin.write(json.dumps([verb, *args]) + "\n")
        self._process.stdin.flush()

    def end(self):
        """What came of it."""
        line = self._process.stdout.readline()
        assert line, "the process ended"
        return json.loads(line)

    def do(self, verb, *args):
        self.begin(verb, *args)
        return self.end()

    def kill(self):
        self._process.kill()
        self._process.communicate()


# In the process.


def main():
    path = sys.argv[1]
    mdb = None
    context = None
    for line in sys.stdin:
        verb, *args = json.loads(line)
        try:
            match verb:
                case "clock":
                    told = [time.time(), time.time(), time.monotonic(), time.monotonic()]
                case "open":
                    mdb = microdb.MicroDB(path, ["id"], **args[0])
                    told = True
                case "records":
                    told = list(mdb.all())
                case "enter":
                    context = mdb.lock(*args)
                    context.__enter__()
                    told = True
                case "leave":
                    context.__exit__(None, None, None)
                    told = True
                case "stats":
                    told = [mdb.stats().saves, mdb.stats().torn_tails, mdb.stats().repairs]
                case _:
                    told = getattr(mdb, verb)(*[tuple(arg) if isinstance(arg, list) else arg for arg in args])
        except microdb.MicroDBError as error:
            told = {"error": type(error).__name__}
        print(json.dumps(told), flush=True)
