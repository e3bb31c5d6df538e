"""What one process does: reads, upserts, batches; with one thread and with several."""

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from benchmarks import draws
from benchmarks.contest import Measure, cost_of, timed
from benchmarks.data import DATA_SETS, DataSet, Key, Record, synthetic
from benchmarks.peers import Peer
from benchmarks.peers.base import Store
from benchmarks.results import Result
from benchmarks.workloads.plan import Field, Plan, changed, contest

__all__ = ["batches", "reads", "real_data", "upserts", "upserts_on_disk"]

BATCH: Final = 1_000
_DRAWN: Final = 1_000_000
_LARGE_TIMES: Final = 4


def reads(plan: Plan) -> Iterator[Result]:
    """Single fresh reads at each size, of keys drawn uniformly and by Zipf's law."""
    for size in plan.sizes:
        data = synthetic(size)
        # A table that no cache holds finds there what others left, and needs a while to replace it.
        seconds = plan.seconds * (_LARGE_TIMES if size > plan.table else 1)
        with Field.of(plan, data, _is_quick) as field:
            for name, draw in draws.DISTRIBUTIONS.items():
                keys = _Keys(data, draw, min(_DRAWN, 20 * size))
                measures = {(peer, size): _reading(store, keys, seconds) for peer, store in field.stores.items()}
                settings, left_out = {"seconds": seconds}, field.left_out
                yield from contest(
                    plan, f"read, {name}", measures, left_out=left_out, x_label="records", settings=settings
                )


def real_data(plan: Plan) -> Iterator[Result]:
    """Reads and batches of real records."""
    for name in plan.data_sets:
        plan.tell(f"  {name}")
        data = DATA_SETS[name]()
        with Field.of(plan, data, _is_quick) as field:
            keys = _Keys(data, draws.uniform, _DRAWN // 10)
            measures = {(peer, None): _reading(store, keys, plan.seconds) for peer, store in field.stores.items()}
            settings = {"records": len(data.records)}
            yield from contest(plan, f"read, {name}", measures, left_out=field.left_out, settings=settings)
            measures = {(peer, None): _batching(plan, store, data) for peer, store in field.stores.items()}
            settings |= {"batch": BATCH}
            yield from contest(plan, f"upsert_many, {name}", measures, left_out=field.left_out, settings=settings)


def upserts(plan: Plan) -> Iterator[Result]:
    """Single upserts that survive the death of the process, by one thread and by several."""
    yield from _upserts(plan, "upsert", lambda peer: not peer.is_durable)


def upserts_on_disk(plan: Plan) -> Iterator[Result]:
    """Single upserts that survive a power cut, by one thread and by several."""
    yield from _upserts(plan, "upsert, on disk", lambda peer: peer.is_durable)


def batches(plan: Plan) -> Iterator[Result]:
    """Upserts by the thousand, each thousand one transaction where the peer has any."""
    data = synthetic(plan.table)
    with Field.of(plan, data, _is_quick) as field:
        measures = {(peer, None): _batching(plan, store, data) for peer, store in field.stores.items()}
        settings = {"records": plan.table, "batch": BATCH}
        yield from contest(plan, "upsert_many", measures, left_out=field.left_out, settings=settings)


def _is_quick(peer: Peer) -> bool:
    return not (peer.is_durable or peer.is_floor)


class _Keys:
    """Keys to ask for, one after the other and round again; equal to those that were stored, but not the same objects.

    As a program has them, that got them from a request and not from the table.
    """

    def __init__(self, data: DataSet, draw: Callable[[int, int, random.Random], list[int]], count: int) -> None:
        copies = [tuple([part.encode().decode() for part in key]) for key in data.keys]
        self._keys: list[Key] = [copies[index] for index in draw(len(copies), count, random.Random(3))]
        self._next = 0

    def take(self, count: int) -> list[Key]:
        """The next ones."""
        found = self._keys[self._next : self._next + count]
        while len(found) < count:
            found += self._keys[: count - len(found)]
        self._next = (self._next + count) % len(self._keys)
        return found


def _reading(store: Store, keys: _Keys, seconds: float) -> Measure:
    def run(count: int) -> float:
        wanted = keys.take(count)
        return timed(lambda: store.read(wanted))

    return cost_of(run, seconds)


def _upserts(plan: Plan, group: str, wanted: Callable[[Peer], bool]) -> Iterator[Result]:
    data = synthetic(plan.table)
    small = synthetic(1_000)
    alone = {peer.name for peer in plan.peers if not peer.is_threaded}
    with Field.of(plan, data, wanted) as field, Field.of(plan, small, _only(field.left_out, wanted)) as slow:
        measures = {
            (peer, count): _writing(plan, store, its, count)
            for stores, its in ((field.stores, data), (slow.stores, small))
            for peer, store in stores.items()
            for count in plan.threads
            if count == 1 or peer not in alone
        }
        smaller = {"with 1,000 records": ", ".join(slow.stores)} if slow.stores else {}
        settings = {"records": plan.table} | smaller
        yield from contest(plan, group, measures, left_out=slow.left_out, x_label="threads", settings=settings)


def _only(left_out: dict[str, str], wanted: Callable[[Peer], bool]) -> Callable[[Peer], bool]:
    """Those that a large table left out, for a small one."""
    return lambda peer: wanted(peer) and peer.name in left_out


class _Changes:
    """Records of a data set in random order, each time changed."""

    def __init__(self, data: DataSet) -> None:
        self._records = data.records
        self._rng = random.Random(4)
        self._numbers = itertools.count(1)

    def take(self, count: int, part: int = 0, parts: int = 1) -> list[Record]:
        """The next ones: of one part of the records, if there are several."""
        drawn = self._rng.choices(self._records[part::parts], k=count)
        return [changed(record, next(self._numbers)) for record in drawn]


def _writing(plan: Plan, store: Store, data: DataSet, threads: int) -> Measure:
    changes = _Changes(data)

    def run(count: int) -> float:
        shares = [changes.take(max(1, count // threads), part, threads) for part in range(threads)]
        took = timed(lambda: store.write(shares[0])) if threads == 1 else _by_threads(store, shares)
        for share in shares:
            _check_last(store, data, share)
        return took * count / sum(map(len, shares))

    return cost_of(run, plan.seconds)


def _by_threads(store: Store, shares: Sequence[Sequence[Record]]) -> float:
    """How long it takes from when all are ready to when the last one is done."""
    errors: list[Exception] = []
    ready = threading.Barrier(len(shares) + 1)

    def body(share: Sequence[Record]) -> None:
        ready.wait()
        try:
            store.write(share)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=body, args=(share,)) for share in shares]
    for thread in threads:
        thread.start()
    ready.wait()
    begin = time.perf_counter()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - begin
    if errors:
        raise errors[0]
    return took


def _check_last(store: Store, data: DataSet, written: Sequence[Record]) -> None:
    last = {data.key_of(record): record for record in written}
    for key in list(last)[-20:]:
        if store.get(key) != last[key]:
            raise AssertionError("an upsert is not there")


def _batching(plan: Plan, store: Store, data: DataSet) -> Measure:
    changes = _Changes(data)

    def run(count: int) -> float:
        for_keys = [{data.key_of(r): r for r in changes.take(BATCH)} for _ in range(count)]
        parts = [list(records.values()) for records in for_keys]

        def body() -> None:
            for part in parts:
                store.put_many(part)

        took = timed(body)
        if store.get(data.key_of(parts[-1][-1])) != parts[-1][-1]:
            raise AssertionError("the last of a batch is not there")
        return took * count * BATCH / sum(map(len, parts))

    measure = cost_of(run, plan.seconds)
    return lambda: measure() / BATCH
