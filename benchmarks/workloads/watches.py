"""What it costs to wait for others: how soon one who sleeps is woken, and what he takes meanwhile."""

import contextlib
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Iterator
from typing import Any, Final

import microdb
from benchmarks.contest import Measure
from benchmarks.results import Result
from benchmarks.workloads.plan import Plan, contest

__all__ = ["watching"]

_SPAWN: Final = multiprocessing.get_context("spawn")
_PAUSE_S: Final = 0.001
"""Between two writes, so that the one who waits is asleep by then."""


def watching(plan: Plan) -> Iterator[Result]:
    """From before an upsert until another process has been told of it; and the processor time of one who sleeps."""
    wakes = max(20, round(plan.seconds * 1_000))
    path = os.path.join(plan.new_folder(), "mdb.json")
    with _child(_watch, path) as pipe, _child(_echo, path) as echo, microdb.MicroDB(path, ["id"]) as mdb:
        wake: dict[tuple[str, int | None], Measure] = {
            ("microdb", None): lambda: _woken(wakes, pipe, lambda number: mdb.upsert({"id": number})),
            ("pipe", None): lambda: _woken(wakes, echo, echo.send),
        }
        yield from contest(plan, "wake of a watch", wake, settings={"wakes": wakes})
        idle: dict[tuple[str, int | None], Measure] = {("microdb", None): lambda: _idle(pipe, mdb, 5 * plan.seconds)}
        yield from contest(plan, "processor time of an idle watch, a second", idle)


def _woken(wakes: int, pipe: Any, write: Any) -> float:
    """The median of so many."""
    took = []
    for number in range(wakes):
        time.sleep(_PAUSE_S)
        begin = time.perf_counter()
        write(number)
        told, when = pipe.recv()
        if told != number:
            raise AssertionError(f"told of {told}, and {number} was written")
        took.append(when - begin)
    return statistics.median(took)


def _idle(pipe: Any, mdb: microdb.MicroDB, seconds: float) -> float:
    used = []
    for pause_s in (seconds, 0):
        mdb.upsert({"id": "used"})
        used.append(pipe.recv()[1])
        time.sleep(pause_s)
    return (used[1] - used[0]) / seconds


def _watch(pipe: Any, path: str) -> None:
    with microdb.MicroDB(path, ["id"]) as mdb, mdb.watch() as watch:
        pipe.send("ready")
        for event in watch:
            when = time.perf_counter()
            number = event.key and event.key[0]
            pipe.send((number, _used_s() if number == "used" else when))


def _echo(pipe: Any, path: str) -> None:  # As above.
    pipe.send("ready")
    while True:
        number = pipe.recv()
        pipe.send((number, time.perf_counter()))


def _used_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@contextlib.contextmanager
def _child(target: Any, path: str) -> Iterator[Any]:
    ours, theirs = _SPAWN.Pipe()
    process = _SPAWN.Process(target=target, args=(theirs, path), daemon=True)
    process.start()
    try:
        ours.recv()
        yield ours
    finally:
        process.kill()
        process.join()
