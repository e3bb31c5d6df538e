"""Copies of the tree, one a worker, in which mutants meet the tests; and which tests reach which lines."""

import compileall
import concurrent.futures
import json
import os
import py_compile
import queue
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("microdb", "tests", "pyproject.toml")


class Request(NamedTuple):
    """A run of tests.

    Attributes:
        files: The files that hold them.
        tests: Ids of some of them.
        others: Whether to run all others, in the order of the files, instead of these, in this order.
        limit_s: How long it may take.
        timeouts_s: How long each test may take, where that is known.
        trace: Whether to find out what lines each of them runs.
    """

    files: list[str]
    tests: list[str]
    others: bool
    limit_s: float
    timeouts_s: dict[str, float]
    trace: bool = False


class Answer(NamedTuple):
    """What came of a request.

    Attributes:
        outcome: "passed", "failed" or "timed out".
        by: The test that was the first to fail.
        durations: Of each test, in seconds.
        lines: Of each module, by the number of the line, the tests that ran it; "" stands for an import.
        modules: All that is imported by the tests and is neither microdb nor they.
    """

    outcome: str
    by: str | None = None
    durations: dict[str, float] = {}  # noqa: RUF012  # Nobody writes to it.
    lines: dict[str, dict[str, list[str]]] = {}  # noqa: RUF012
    modules: list[str] = []  # noqa: RUF012


class Worker:
    """A copy of the tree, and a server that runs tests in it."""

    def __init__(self, tree):
        self._tree = copied(tree)
        environment = os.environ | {
            "PYTHONPATH": str(tree),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONSAFEPATH": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        }
        command = [sys.executable, tree / "tests" / "mutation" / "server.py"]
        pipe = subprocess.PIPE
        self._server = subprocess.Popen(command, cwd=tree, env=environment, stdin=pipe, stdout=pipe, text=True)

    def run(self, request):
        """The answer to a request."""
        self._server.stdin.write(json.dumps(request._asdict()) + "\n")
        self._server.stdin.flush()
        return Answer(**json.loads(self._server.stdout.readline()))

    def run_with(self, module, code, requests):
        """The answer to each request while a module has this code, up to the first that is not passed."""
        path = self._tree / "microdb" / f"{module}.py"
        sound = path.read_bytes()
        try:
            path.write_text(code)
            for request in requests:
                answer = self.run(request)
                if answer.outcome != "passed":
                    break
            return answer
        finally:
            path.write_bytes(sound)

    def end(self):
        """Let the server end."""
        self._server.communicate()


def copied(tree):
    """A copy of the tree. Its bytecode is checked by hash, so that none hides a mutant, however soon it is made."""
    tree.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree / name)
    checked = py_compile.PycInvalidationMode.CHECKED_HASH
    compileall.compile_dir(tree / "microdb", quiet=1, invalidation_mode=checked)
    return tree


class Workers:
    """Some workers, each of which does one thing at a time."""

    def __init__(self, count):
        self._folder = tempfile.TemporaryDirectory(prefix="microdb-mutation-")
        self._pool = concurrent.futures.ThreadPoolExecutor(count)
        trees = [Path(self._folder.name, str(number)) for number in range(count)]
        self._all = list(self._pool.map(Worker, trees))
        self._idle = queue.SimpleQueue()
        for worker in self._all:
            self._idle.put(worker)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._pool.shutdown(cancel_futures=True)
        for worker in self._all:
            worker.end()
        self._folder.cleanup()

    def map(self, function, things):
        """``function(worker, thing)`` for each, in order."""

        def call(thing):
            worker = self._idle.get()
            try:
                return function(worker, thing)
            finally:
                self._idle.put(worker)

        return self._pool.map(call, things)

    def reach(self, files):
        """Which tests of these files reach what. All must pass."""
        answers = self.map(lambda worker, file: worker.run(Request([file], [], True, 600, {}, trace=True)), files)
        reach = Reach({}, {})
        for file, answer in zip(files, answers, strict=True):
            if answer.outcome != "passed":
                raise SystemExit(f"{file} fails without a mutant, by {answer.by}")
            reach.durations.update(answer.durations)
            for module, lines in answer.lines.items():
                for line, tests in lines.items():
                    reach.tests.setdefault((module, int(line)), set()).update(tests)
        return reach


class Reach(NamedTuple):
    """What tests reach in their own process.

    Attributes:
        durations: How long each test takes, in seconds.
        tests: Those that run a line, by module and number of the line; "" stands for an import.
    """

    durations: dict[str, float]
    tests: dict[tuple[str, int], set[str]]

    def of(self, files):
        """The tests in these files."""
        return [test for test in self.durations if test.split("::")[0] in files]

    def requests(self, module, lines, files):
        """What a mutant in these lines has to pass: first the tests that reach them, quickest first; then the others.

        Those meet the mutant in children alone, which is rare, and take long.
        """
        every = self.of(files)
        reaching = set().union(*(self.tests.get((module, line), ()) for line in lines))
        some = sorted((one for one in every if "" in reaching or one in reaching), key=self.durations.__getitem__)
        needed = [file for file in files if any(test.startswith(f"{file}::") for test in some)]
        timeouts_s = {test: 10 + 10 * self.durations[test] for test in every}
        limit_s = 30 + 5 * sum(self.durations[test] for test in every)
        first = [Request(needed, some, others=False, limit_s=limit_s, timeouts_s=timeouts_s)] if some else []
        return [*first, Request(files, some, others=True, limit_s=limit_s, timeouts_s=timeouts_s)]
