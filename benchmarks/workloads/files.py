"""What is done with whole files: open, replay, save; and what a save costs those who write meanwhile."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import microdb
from benchmarks.contest import Measure
from benchmarks.crew import Crew
from benchmarks.data import DataSet, synthetic
from benchmarks.results import Result
from benchmarks.workloads.plan import Field, Plan, contest

__all__ = ["ROOT", "child", "opening", "replaying", "saving", "snapshot", "stalling"]

ROOT: Final = Path(__file__).parent.parent.parent
_OLD: Final = "microdb 0.1.3"
_OLD_RECORDS_MAX: Final = 20_000
"""It evaluates its file as a Python literal, which takes gigabytes for more."""


def opening(plan: Plan) -> Iterator[Result]:
    """Open a snapshot at each size, in a fresh interpreter, against loading the same JSON into a dict."""
    who = {"microdb": "open_microdb", "msgspec + dict": "load_msgspec", "orjson + dict": "load_orjson"}
    yield from _by_size(plan, "open a snapshot", who | {"json + dict": "load_json"}, snapshot, old="open")


def saving(plan: Plan) -> Iterator[Result]:
    """Save at each size, in a fresh interpreter, against `json.dump`."""
    who = {"microdb": "save_microdb", "json.dump": "save_json", "json.dump, safely": "save_json_safely"}
    yield from _by_size(plan, "save", who, snapshot, old="save")


def replaying(plan: Plan) -> Iterator[Result]:
    """Open a database of which all is in the log, one upsert a frame; a record's share."""
    yield from _by_size(
        plan, "replay a log", {"microdb": "open_microdb", "unpackb + dict": "replay_dict"}, _log, old=None
    )


def stalling(plan: Plan) -> Iterator[Result]:
    """The longest upsert of one process while another saves the largest table."""
    data = synthetic(plan.sizes[-1])
    with Field.of(plan, data, lambda peer: peer.name == "microdb") as field:
        for peer, folder in field.folders.values():
            with Crew(peer, folder, 2) as crew:
                saves: list[float] = []
                measures: dict[tuple[str, int | None], Measure] = {
                    ("microdb", None): _longest(plan, crew, len(data.records), saves),
                    ("microdb, without a save", None): _longest(plan, crew, len(data.records), saves, is_saving=False),
                }
                group = "longest upsert during a save"
                settings = {"records": len(data.records)}
                yield from contest(plan, group, measures, rounds=plan.file_rounds, settings=settings)


def child(name: str, path: str, size: int) -> float:
    """What a child measured."""
    command = [sys.executable, "-m", "benchmarks.children", name, path, str(size)]
    return float(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout)


def _by_size(
    plan: Plan, group: str, who: dict[str, str], make: Callable[[str, DataSet], None], *, old: str | None
) -> Iterator[Result]:
    left_out: dict[str, str] = {}
    measures: dict[tuple[str, int | None], Measure] = {}
    for size in plan.sizes:
        plan.tell(f"  a file of {size:,} records")
        path = os.path.join(plan.new_folder(), "mdb.json")
        make(path, synthetic(size))
        measures |= {(name, size): _share(child_name, path, size) for name, child_name in who.items()}
    if old is not None:
        measures |= _old(plan, old, left_out)
    yield from contest(plan, group, measures, left_out=left_out, x_label="records", rounds=plan.file_rounds)


def _share(child_name: str, path: str, size: int) -> Measure:
    return lambda: child(child_name, path, size) / size


def snapshot(path: str, data: DataSet) -> None:
    """Make a saved database."""
    with microdb.MicroDB(path, data.fields) as mdb:
        for first in range(0, len(data.records), 10_000):
            mdb.upsert_many(data.records[first : first + 10_000])
        mdb.save()


def _log(path: str, data: DataSet) -> None:
    with microdb.MicroDB(path, data.fields, auto_save=False) as mdb:
        for record in data.records:
            mdb.upsert(record)


def _old(plan: Plan, what: str, left_out: dict[str, str]) -> dict[tuple[str, int | None], Measure]:
    """The version before this one, at the sizes that it can do; installed beside, because it has the same name."""
    folder = plan.new_folder()
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, "microdb==0.1.3"]
    if subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
        left_out[_OLD] = "could not be installed: pip install microdb==0.1.3"
        return {}
    left_out[_OLD] = f"takes too long, or too much, with more than {_OLD_RECORDS_MAX:,} records"
    return {(_OLD, size): _old_share(folder, what, size) for size in plan.sizes if size <= _OLD_RECORDS_MAX}


def _old_share(folder: str, what: str, size: int) -> Measure:
    path = os.path.join(folder, f"{size}.txt")
    with open(path, "w", encoding="utf-8") as file:
        file.write(str(synthetic(size).records))
    script = ROOT / "benchmarks" / "old_microdb.py"

    def measure() -> float:
        command = [sys.executable, str(script), folder, what, path]
        return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout) / size

    return measure


def _longest(plan: Plan, crew: Crew, size: int, saves: list[float], *, is_saving: bool = True) -> Measure:
    def measure() -> float:
        seconds = 0.0 if is_saving else max(saves, default=plan.seconds)
        done_path = os.path.join(plan.new_folder(), "done")
        _, answers = crew.call([(0, "save", (done_path, seconds)), (1, "longest_upsert", (done_path, size))])
        if is_saving:
            saves.append(answers[0])
        return answers[1]

    return measure
