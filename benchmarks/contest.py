"""Rounds in which every contestant runs once, in shuffled order: a slow moment of the machine hits no one alone.

Knows nothing of what is measured.
"""

import gc
import random
import time
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

__all__ = ["Measure", "cost_of", "run_rounds", "timed"]

T = TypeVar("T")
Measure = Callable[[], float]
"""Does its work once and returns what it cost; raises if the work was not done."""

_FIRST_OPERATIONS: Final = 8
_OPERATIONS_MAX: Final = 1_000_000


def run_rounds(
    measures: Mapping[T, Measure], rounds: int, *, seed: int = 1
) -> tuple[dict[T, list[float]], dict[T, str]]:
    """For each contestant, its cost in each round; and for each that failed, why. Who fails once is out.

    What lives by now is taken out of the garbage collector's sight: else each collection would walk through the tables
    of all contestants, at the expense of whoever runs. Garbage that a contestant makes is collected as ever.
    """
    order = list(measures)
    shuffle = random.Random(seed).shuffle
    costs: dict[T, list[float]] = {name: [] for name in measures}
    failed: dict[T, str] = {}
    gc.collect()
    gc.freeze()
    try:
        for _ in range(rounds):
            shuffle(order)
            for name in [name for name in order if name not in failed]:
                try:
                    costs[name].append(measures[name]())
                except Exception as error:
                    failed[name] = f"failed: {type(error).__name__}: {error}"
    finally:
        gc.unfreeze()
    return {name: cost for name, cost in costs.items() if name not in failed}, failed


def cost_of(run: Callable[[int], float], seconds: float) -> Measure:
    """A measure that makes as many operations as take about `seconds`.

    The number is found the first time, by doubling it, which also warms up; from then on it stays.

    Args:
        run: Makes that many operations and returns how long they took.
        seconds: How long a measurement is to be.
    """
    found: list[int] = []

    def measure() -> float:
        if not found:
            found.append(_calibrate(run, seconds))
        return run(found[0]) / found[0]

    return measure


def _calibrate(run: Callable[[int], float], seconds: float) -> int:
    operations = _FIRST_OPERATIONS
    while True:
        took = run(operations)
        if took >= seconds / 4 or operations >= _OPERATIONS_MAX:
            return max(1, min(_OPERATIONS_MAX, round(operations * seconds / max(took, 1e-9))))
        operations *= 4


def timed(body: Callable[[], object]) -> float:
    """How many seconds it took."""
    begin = time.perf_counter()
    body()
    return time.perf_counter() - begin
