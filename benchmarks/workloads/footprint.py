"""What it costs to have microdb at all: its import, its memory."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Final

from benchmarks.contest import Measure
from benchmarks.data import synthetic
from benchmarks.results import Result
from benchmarks.workloads.files import ROOT, child, snapshot
from benchmarks.workloads.plan import Plan, contest

__all__ = ["importing", "memory"]

_REQUIRED: Final = "filelock, msgpack, portalocker"
"""Without msgspec, which is required for saving, and is not to be imported before that."""

_NOT_AT_ONCE: Final = ("msgspec", "rich", "psycopg", "redis")

_PREPARED: Final = "import sys; sys.modules['redis'] = None; from time import perf_counter as now"
"""As without redis, which portalocker imports where it is installed: it would hide the rest."""


def importing(plan: Plan) -> Iterator[Result]:
    """Import it in a fresh interpreter, against importing what it needs; and count what it does not need yet."""
    compiled = plan.new_folder()
    _importing(f"microdb, {_REQUIRED}", compiled)()
    measures: dict[tuple[str, int | None], Measure] = {
        ("microdb", None): _importing("microdb", compiled),
        ("its dependencies", None): _importing(_REQUIRED, compiled),
    }
    yield from contest(plan, "import", measures, settings={"dependencies": _REQUIRED})
    code = f"{_PREPARED}; import microdb; print(sum(sys.modules.get(name) is not None for name in {_NOT_AT_ONCE}))"
    counting: dict[tuple[str, int | None], Measure] = {("microdb", None): lambda: _run(code, compiled)}
    settings = {"modules": ", ".join(_NOT_AT_ONCE)}
    yield from contest(plan, "modules imported early", counting, unit="n", rounds=1, settings=settings)


def memory(plan: Plan) -> Iterator[Result]:
    """Resident memory of an open table, against a dict of the same dicts; a record's share."""
    measures: dict[tuple[str, int | None], Measure] = {}
    for size in plan.sizes:
        path = os.path.join(plan.new_folder(), "mdb.json")
        snapshot(path, synthetic(size))
        measures["microdb", size] = _remembering("memory_microdb", path, size)
        measures["dict", size] = _remembering("memory_dict", path, size)
    yield from contest(plan, "memory", measures, unit="B", x_label="records", rounds=plan.file_rounds)


def _importing(names: str, compiled: str) -> Measure:
    code = f"{_PREPARED}; begin = now(); import {names}; print(now() - begin)"
    return lambda: _run(code, compiled)


def _run(code: str, compiled: str) -> float:
    # Compiled once, into a folder, and whatever the environment says of bytecode: pip compiles what it installs, and
    # microdb, which is imported from the tree here, would otherwise be compiled each time, at twice the price.
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": compiled, "PYTHONDONTWRITEBYTECODE": ""}
    command = [sys.executable, "-c", code]
    return float(subprocess.check_output(command, cwd=ROOT, env=environment, text=True))


def _remembering(name: str, path: str, size: int) -> Measure:
    return lambda: child(name, path, size) / size
