"""What microdb is to reach, as data, and whether results reach it. Pure.

A target compares two costs, `over` in so many times `under`, or bounds one cost alone.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Final, Literal, NamedTuple

from benchmarks.results import Result, Value, ratio, value

__all__ = ["TARGETS", "At", "Target", "Verdict", "judge"]

ANYONE_ELSE: Final = "*"
"""Every contestant but the one that it is compared with."""

_LIMITS: Final = frozenset({"dict", "pwrite + fdatasync", "pwrite + fdatasync, in place", "pipe"})
"""Not peers: they keep nothing, or cannot be read."""


class At(NamedTuple):
    """Where a cost stands: in a contest, a contestant."""

    group: str
    x: int | None
    who: str


@dataclasses.dataclass(frozen=True)
class Target:
    """One line of the table.

    Attributes:
        what: Said in words.
        over: The cost that is divided; of `ANYONE_ELSE`, each.
        under: The cost that it is divided by; None: it stands alone.
        at_least: Bound from below; for a ratio how many times better microdb is to be.
        at_most: Bound from above.
    """

    what: str
    over: At
    under: At | None = None
    at_least: float | None = None
    at_most: float | None = None

    def accepts(self, measured: float) -> bool:
        """Whether a value reaches it."""
        return (self.at_least is None or measured >= self.at_least) and (
            self.at_most is None or measured <= self.at_most
        )


class Verdict(NamedTuple):
    """What became of a target.

    Attributes:
        target: It.
        measured: The value that counts, if it was measured; of several peers, that of the strongest.
        against: That one's name.
        outcome: As it says.
    """

    target: Target
    measured: Value | None
    against: str
    outcome: Literal["pass", "short", "not measured"]


def judge(target: Target, results: Mapping[str, Result]) -> Verdict:
    """Whether a target is reached.

    Args:
        target: The target.
        results: By name.
    """
    found = dict(_measured(target, results))
    if not found:
        return Verdict(target, None, "", "not measured")
    # The one that is the hardest to reach: the greatest of those that have an upper bound, else the least.
    pick = max if target.at_most is not None else min
    against = pick(found, key=lambda who: found[who].median)
    outcome: Literal["pass", "short"] = "pass" if target.accepts(found[against].median) else "short"
    return Verdict(target, found[against], against, outcome)


def _measured(target: Target, results: Mapping[str, Result]) -> Iterable[tuple[str, Value]]:
    over = _costs(target.over, results)
    if target.under is None:
        yield from ((who, value(costs)) for who, costs in over.items())
        return
    for mine, under in _costs(target.under, results).items():
        is_among_peers = target.over.who == ANYONE_ELSE
        for who, costs in over.items():
            if not (is_among_peers and (who == mine or who in _LIMITS)):
                yield who, ratio(costs, under)


def _costs(at: At, results: Mapping[str, Result]) -> Mapping[str, list[float]]:
    result = results.get(Result(at.group, at.x).name)
    if result is None:
        return {}
    return {who: costs for who, costs in result.costs.items() if at.who in (who, ANYONE_ELSE)}


def _better_than(who: str, group: str, x: int | None, times: float, *, mine: str = "microdb") -> Target:
    name = "every peer" if who == ANYONE_ELSE else who
    compared = f"ahead of {name}" if times == 1 else f"at least {times:g} times {name}"
    what = f"{Result(group, x).name}: {compared}"
    return Target(what, At(group, x, who), At(group, x, mine), at_least=times)


def _within(who: str, group: str, x: int | None, times: float, *, mine: str = "microdb") -> Target:
    what = f"{Result(group, x).name}: at most {times:g} times {who}"
    return Target(what, At(group, x, mine), At(group, x, who), at_most=times)


_K: Final = 1_000
_M: Final = 1_000_000
_DISK: Final = "upsert, on disk"
_POWER: Final = "microdb, power"

TARGETS: Final = (
    _within("dict", "read, uniform", 1 * _K, 3),
    _better_than("lmdb, sync off", "read, uniform", 1 * _K, 6),
    _better_than("lmdb, sync off", "read, uniform", 20 * _K, 2),
    _better_than("lmdb, sync off", "read, uniform", 1 * _M, 1.2),
    _better_than("sqlite, NORMAL", "read, uniform", 20 * _K, 6),
    _better_than("sqlite, NORMAL", "read, uniform", 1 * _M, 3),
    _better_than("diskcache", "read, uniform", 20 * _K, 30),
    _better_than("diskcache", "read, uniform", 1 * _M, 30),
    _better_than("redis", "read, uniform", 20 * _K, 100),
    _better_than("redis", "read, uniform", 1 * _M, 100),
    _better_than("lmdb, sync off", "upsert", 1, 1),
    _better_than("sqlite, NORMAL", "upsert", 1, 4),
    _better_than("diskcache", "upsert", 1, 15),
    _better_than("redis", "upsert", 1, 15),
    _better_than("lmdb, sync off", "upsert_many", None, 1.5),
    _better_than("sqlite, NORMAL", "upsert_many", None, 3),
    _within("pwrite + fdatasync", _DISK, 1, 1.15, mine=_POWER),
    Target(
        f"{_DISK}: 16 threads, at least 6 times as much as one",
        At(_DISK, 1, _POWER),
        At(_DISK, 16, _POWER),
        at_least=6,
    ),
    _better_than("sqlite, FULL", _DISK, 16, 1, mine=_POWER),
    _better_than("lmdb, sync", _DISK, 16, 1, mine=_POWER),
    Target(
        "upsert, processes: 8, at least 0.7 times as much as one",
        At("upsert, processes", 1, "microdb"),
        At("upsert, processes", 8, "microdb"),
        at_least=0.7,
    ),
    _better_than(ANYONE_ELSE, "upsert, processes", 8, 1),
    *(_better_than(ANYONE_ELSE, f"YCSB {mix}", 4, 1) for mix in "ABC"),
    *(_within("unpackb + dict", "catch up", backlog, 1.5) for backlog in (1_000, 100_000)),
    _within("msgspec + dict", "open a snapshot", 1 * _M, 1.3),
    _within("orjson + dict", "open a snapshot", 1 * _M, 1.3),
    _better_than("json + dict", "open a snapshot", 1 * _M, 2),
    Target("replay a log @ 1000000: at most 1 µs a record", At("replay a log", 1 * _M, "microdb"), at_most=1e-6),
    _within("json.dump", "save", 1 * _M, 0.5),
    Target(
        "longest upsert during a save of the largest table: at most 50 ms",
        At("longest upsert during a save", None, "microdb"),
        at_most=0.05,
    ),
    Target("wake of a watch: at most 100 µs", At("wake of a watch", None, "microdb"), at_most=100e-6),
    Target(
        "processor time of an idle watch: at most 1 %",
        At("processor time of an idle watch, a second", None, "microdb"),
        at_most=0.01,
    ),
    _within("its dependencies", "import", None, 1.2),
    Target("imported before it is needed: nothing", At("modules imported early", None, "microdb"), at_most=0),
    _within("dict", "memory", 1 * _M, 1.25),
)
