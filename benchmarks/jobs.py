"""What a worker of a crew does: YCSB's mixes, upserts, saves. See `crew` for what a job is."""

import functools
import itertools
import os
import random
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from benchmarks import draws
from benchmarks.data import DataSet, Key, Record, made_up, synthetic
from benchmarks.peers.base import Store

__all__ = ["JOBS", "MIXES", "Done", "Mix"]

_PLAN_OPERATIONS: Final = 8_192
_CLOCK_EVERY: Final = 8
"""So many operations between two looks at the clock."""


class Mix(NamedTuple):
    """One of YCSB's workloads: shares of operations, and which records are asked for."""

    read: float
    update: float
    insert: float
    modify: float
    draw: Callable[[int, int, random.Random], list[int]]


MIXES: Final = {
    "A": Mix(0.5, 0.5, 0, 0, draws.zipfian),
    "B": Mix(0.95, 0.05, 0, 0, draws.zipfian),
    "C": Mix(1, 0, 0, 0, draws.zipfian),
    "D": Mix(0.95, 0, 0.05, 0, draws.latest),
    "F": Mix(0.5, 0, 0, 0.5, draws.zipfian),
}


class Done(NamedTuple):
    """What a worker has done.

    Attributes:
        operations: How many.
        inserted: How many of them added a record.
        end: When it stopped, by the monotonic clock.
        last: The record that it wrote last, if that is for the caller to check.
    """

    operations: int
    inserted: int
    end: float
    last: Record | None = None


@functools.cache
def _data(size: int) -> DataSet:
    return synthetic(size)


class _Ycsb:
    """The operations of one worker on a table of made-up records that others change too."""

    def __init__(self, store: Store, size: int, first: int) -> None:
        self._get = store.get
        self._put = store.put
        self._data = _data(size)
        self._first = first
        self._own: list[Record] = []
        self._changes = itertools.count(first)

    @property
    def inserted(self) -> int:
        """How many records are new."""
        return len(self._own)

    def step(self, kind: str, index: int, *, grows: bool) -> tuple[Callable[[Any], Any], Any]:
        """An operation and its argument; where records are added, what is read is found out when it is."""
        if kind == "read" and grows:
            return self.read_newest, index
        if kind == "read":
            return self._get, self._data.keys[index]
        if kind == "insert":
            return self.insert, None
        return (self.update, self._data.records[index]) if kind == "update" else (self.modify, self._data.keys[index])

    def read_newest(self, index: int) -> None:
        """Read what a draw stands for, one's own new records being the last of all."""
        own, back = self._own, len(self._data.keys) - 1 - index
        self._get((own[-1 - back]["id"],) if back < len(own) else self._data.keys[index + len(own)])

    def update(self, record: Record) -> None:
        """Store it anew."""
        self._put({**record, "age": next(self._changes)})

    def modify(self, key: Key) -> None:
        """Read, change, store."""
        record = self._get(key)
        record["age"] = next(self._changes)
        self._put(record)

    def insert(self, _: None) -> None:
        """Add a record."""
        record = made_up(self._first + len(self._own))
        self._put(record)
        self._own.append(record)


def ycsb(store: Store, name: str, size: int, first: int) -> Callable[[float], Done]:
    """One of YCSB's mixes until the time is over.

    Args:
        store: Holds the first `size` made-up records.
        name: Of the mix.
        size: See above.
        first: The number of the first record that is added, and what makes this worker's draws its own.
    """
    mix = MIXES[name]
    rng = random.Random(first)
    worker = _Ycsb(store, size, first)
    kinds = rng.choices(["read", "update", "insert", "modify"], mix[:4], k=_PLAN_OPERATIONS)
    indices = mix.draw(size, _PLAN_OPERATIONS, rng)
    plan = [worker.step(kind, index, grows=mix.insert > 0) for kind, index in zip(kinds, indices, strict=True)]
    store.get(_data(size).keys[0])  # Catches up with what was written while this worker slept.

    def run(until: float) -> Done:
        steps = itertools.cycle(plan)
        done = 0
        while time.monotonic() < until or not done:
            for operation, argument in itertools.islice(steps, _CLOCK_EVERY):
                found = operation(argument)
            if found is not None and found["id"] != argument[0]:
                raise AssertionError(f"asked for {argument[0]}, got {found['id']}")
            done += _CLOCK_EVERY
        end = time.monotonic()
        return Done(done, worker.inserted, end)

    return run


def upserts(store: Store, worker: int, size: int) -> Callable[[float], Done]:
    """Upsert records that no other worker touches, over and over, until the time is over."""
    records = [made_up(worker * size + number) for number in range(size)]
    store.put(records[0])

    def run(until: float) -> Done:
        put, done, change = store.put, 0, 0
        while time.monotonic() < until or not done:
            for _ in range(_CLOCK_EVERY):
                change += 1
                put({**records[change % size], "age": change})
            done += _CLOCK_EVERY
        return Done(done, 0, time.monotonic(), {**records[change % size], "age": change})

    return run


def append(store: Store, size: int, count: int, mark: int) -> Callable[[float], None]:
    """Upsert so many times, over a table of that size; the last one is record 0 with the mark as its age."""
    records = [{**made_up(number % size), "age": mark} for number in range(count - 1, -1, -1)]

    def run(until: float) -> None:
        store.write(records)

    return run


def save(store: Any, done_path: str, seconds: float) -> Callable[[float], float]:
    """Save, or for comparison only wait for some seconds; then make a file. Returns how long it took."""

    def run(until: float) -> float:
        begin = time.monotonic()
        if seconds:
            time.sleep(seconds)
        else:
            store.mdb.save()
        end = time.monotonic()
        with open(done_path, "xb"):
            return end - begin

    return run


def longest_upsert(store: Store, done_path: str, size: int) -> Callable[[float], float]:
    """Upsert until a file is there; how long the longest upsert took."""
    records = [made_up(number) for number in range(min(size, 10_000))]

    def run(until: float) -> float:
        longest, change = 0.0, 0
        while not os.path.exists(done_path):
            for _ in range(_CLOCK_EVERY):
                change += 1
                begin = time.perf_counter()
                store.put({**records[change % len(records)], "age": change})
                longest = max(longest, time.perf_counter() - begin)
        return longest

    return run


JOBS: Final[dict[str, Callable[..., Callable[[float], Any]]]] = {
    "ycsb": ycsb,
    "upserts": upserts,
    "append": append,
    "save": save,
    "longest_upsert": longest_upsert,
}
