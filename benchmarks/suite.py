"""Which workloads there are, in which order they run, and how much of each."""

import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from benchmarks.results import Result
from benchmarks.workloads import files, footprint, processes, single, watches
from benchmarks.workloads.plan import Plan

__all__ = ["FULL", "QUICK", "WORKLOADS", "run"]

WORKLOADS: Final[dict[str, Callable[[Plan], Iterator[Result]]]] = {
    "read": single.reads,
    "real": single.real_data,
    "upsert": single.upserts,
    "upsert-disk": single.upserts_on_disk,
    "upsert-many": single.batches,
    "upsert-processes": processes.upserts_by_processes,
    "ycsb": processes.ycsb,
    "catch-up": processes.catch_up,
    "open": files.opening,
    "replay": files.replaying,
    "save": files.saving,
    "stall": files.stalling,
    "watch": watches.watching,
    "import": footprint.importing,
    "memory": footprint.memory,
}

FULL: Final[dict[str, Any]] = {
    "sizes": (1_000, 20_000, 200_000, 1_000_000),
    "table": 20_000,
    "processes": (1, 2, 4, 8),
    "threads": (1, 16),
    "backlogs": (1, 10, 100, 1_000, 10_000, 100_000),
    "data_sets": ("cities", "standard library"),
    "rounds": 11,
    "file_rounds": 5,
    "seconds": 0.2,
}

QUICK: Final[dict[str, Any]] = {
    "sizes": (1_000, 5_000),
    "table": 2_000,
    "processes": (1, 2),
    "threads": (1, 16),
    "backlogs": (10, 1_000),
    "data_sets": ("cities",),
    "rounds": 3,
    "file_rounds": 1,
    "seconds": 0.01,
}


def run(plan: Plan, names: Iterable[str]) -> Iterator[list[Result] | None]:
    """The results of each workload, as soon as it is done; None for one that failed, which the others outlive."""
    for name in names:
        plan.tell(f"-- {name}")
        try:
            yield list(WORKLOADS[name](plan))
        except Exception:
            plan.tell(traceback.format_exc())
            yield None
