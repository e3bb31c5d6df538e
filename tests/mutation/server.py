"""Runs tests, each time in a fork of a process that has imported pytest and all dependencies, but not microdb.

So a fork meets whatever stands in the tree by then, and a run takes no longer than its tests. The tree is the working
folder. Requests and answers are lines of JSON on the standard streams; `workers.Request` and `workers.Answer` say what
they hold.
"""

import contextlib
import importlib
import json
import os
import select
import signal
import sys
import time
from pathlib import Path

TREE = Path.cwd()
PLUGINS = ("pytest_timeout", "_hypothesis_pytestplugin")  # pytest wants to import these itself.


def main():
    warm_up()
    for line in sys.stdin:
        print(json.dumps(in_fork(json.loads(line))), flush=True)


def warm_up():
    """Import what a run imports, but microdb and the tests."""
    request = {"files": ["tests/test_format.py", "tests/property/test_frames.py"], "tests": [], "others": True}
    for name in in_fork({**request, "limit_s": 120, "timeouts_s": {}, "trace": True})["modules"]:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if "microdb" in sys.modules:
        raise AssertionError("the server has imported microdb: its forks would not see a mutant")


def in_fork(request):
    """The answer of a fork that runs the tests of a request. When it is given, all that they started is gone."""
    deadline = time.monotonic() + request["limit_s"]
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _run_and_leave(request, writer)
    os.close(writer)
    parts = []
    died = os.pidfd_open(pid)
    try:
        # Not to the end of the pipe: what the tests left running may hold it.
        while not (parts and parts[-1].endswith(b"\n")):
            ready, _, _ = select.select([reader, died], [], [], max(0, deadline - time.monotonic()))
            if reader in ready and (part := os.read(reader, 1 << 20)):
                parts.append(part)
            else:
                return {"outcome": "failed" if ready else "timed out", "by": "the process died" if ready else "no end"}
        return json.loads(b"".join(parts))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)
        os.close(died)


def _run_and_leave(request, writer):
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(nothing, fd)
        answer = json.dumps(_run(request)).encode() + b"\n"
        while answer:
            answer = answer[os.write(writer, answer) :]
    finally:
        os._exit(0)


def _run(request):
    import pytest  # noqa: PLC0415  # In the fork, as all that comes with it: see `warm_up`.

    sys.dont_write_bytecode = False  # Tests may be kept as rewritten; microdb is checked by hash, see `workers.copied`.
    watch = _Watch(request)
    options = ["-x", "-q", "-p", "no:cacheprovider", "--timeout", "120"]
    plugins = [option for name in PLUGINS for option in ("-p", name)]
    arguments = [*options, *plugins, f"--basetemp={TREE}.tmp", *request["files"]]
    try:
        code = pytest.main(arguments, plugins=[watch])
    except Exception as error:
        # At its end it raises what a thread raised that a failed test has left behind.
        watch.by = watch.by or repr(error)
        code = 1
    return watch.answer(code)


class _Watch:
    """The plugin of one run: chooses its tests, and notes what became of them."""

    def __init__(self, request):
        self.rank = {name: at for at, name in enumerate(request["tests"])}
        self.others = request["others"]
        self.timeouts_s = request["timeouts_s"]
        self.by = None
        self.timed_out = False
        self.durations = {}
        self.coverage = None
        if request["trace"]:
            import coverage  # noqa: PLC0415

            self.coverage = coverage.Coverage(data_file=None, config_file=False, include=[f"{TREE}/microdb/*"])
            self.coverage.start()

    def pytest_configure(self):
        """Once the profile of conftest is loaded. The same examples each time; and none is worth shrinking."""
        from hypothesis import Phase, settings  # noqa: PLC0415

        options = {"derandomize": True, "database": None, "phases": [Phase.explicit, Phase.generate]}
        settings.register_profile("mutation", settings.get_profile("microdb"), **options)
        settings.load_profile("mutation")

    def pytest_collection_modifyitems(self, items):
        import pytest  # noqa: PLC0415

        for item in items:
            if item.nodeid in self.timeouts_s:
                item.add_marker(pytest.mark.timeout(self.timeouts_s[item.nodeid]))
        if self.others:
            items[:] = [one for one in items if one.nodeid not in self.rank]
        else:
            items[:] = sorted((one for one in items if one.nodeid in self.rank), key=lambda one: self.rank[one.nodeid])

    def pytest_runtest_logstart(self, nodeid):
        if self.coverage is not None:
            self.coverage.switch_context(nodeid)

    def pytest_runtest_logreport(self, report):
        self.durations[report.nodeid] = self.durations.get(report.nodeid, 0) + report.duration
        if report.failed:
            self.by = report.nodeid
            self.timed_out = "Timeout (>" in str(report.longrepr)

    def pytest_collectreport(self, report):
        if report.failed:
            self.by = report.nodeid

    def answer(self, code):
        microdb = sys.modules.get("microdb")  # None if a mutant keeps it from being imported.
        if microdb is not None and Path(microdb.__file__).parent != TREE / "microdb":
            raise AssertionError("these tests have imported another microdb")
        nothing_ran = code == 5 and self.rank
        outcome = "passed" if code == 0 or nothing_ran else "timed out" if self.timed_out else "failed"
        if self.coverage is None:
            return {"outcome": outcome, "by": self.by or f"exit code {int(code)}"}
        self.coverage.stop()
        names = [name for name, module in sys.modules.items() if not _is_ours(module) and name not in PLUGINS]
        return {
            "outcome": outcome,
            "by": self.by,
            "durations": self.durations,
            "lines": _lines(self.coverage.get_data()),
            "modules": names,
        }


def _is_ours(module):
    return str(getattr(module, "__file__", None) or TREE).startswith(str(TREE))


def _lines(data):
    """Of each module, by its lines, the tests that ran them; "" stands for an import."""
    return {
        str(Path(file).relative_to(TREE / "microdb").with_suffix("")): data.contexts_by_lineno(file)
        for file in data.measured_files()
    }


if __name__ == "__main__":
    main()
