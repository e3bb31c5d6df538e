"""Which of n things are asked for: all alike, or a few far more often than the rest, as YCSB draws them. Pure."""

import functools
import itertools
import random
from collections.abc import Callable
from typing import Final

__all__ = ["DISTRIBUTIONS", "latest", "uniform", "zipfian"]

ZIPF_EXPONENT: Final = 0.99
"""YCSB's: the i-th most popular of n is drawn with a probability in proportion to 1 / i ** 0.99."""


def uniform(n: int, count: int, rng: random.Random) -> list[int]:
    """`count` indices below `n`, each as likely as the other."""
    return rng.choices(range(n), k=count)


def zipfian(n: int, count: int, rng: random.Random) -> list[int]:
    """`count` indices below `n`, by Zipf's law; the popular ones lie scattered, the same for each `rng`."""
    return [_scattered(n)[rank] for rank in _ranks(n, count, rng)]


def latest(n: int, count: int, rng: random.Random) -> list[int]:
    """As `zipfian`, the more popular the nearer to the end: what was inserted last is read most."""
    return [n - 1 - rank for rank in _ranks(n, count, rng)]


DISTRIBUTIONS: Final[dict[str, Callable[[int, int, random.Random], list[int]]]] = {
    "uniform": uniform,
    "zipfian": zipfian,
}


def _ranks(n: int, count: int, rng: random.Random) -> list[int]:
    return rng.choices(range(n), cum_weights=_cumulated(n), k=count)


@functools.lru_cache(maxsize=8)
def _cumulated(n: int) -> list[float]:
    return list(itertools.accumulate((rank + 1) ** -ZIPF_EXPONENT for rank in range(n)))


@functools.lru_cache(maxsize=8)
def _scattered(n: int) -> list[int]:
    places = list(range(n))
    random.Random(n).shuffle(places)
    return places
