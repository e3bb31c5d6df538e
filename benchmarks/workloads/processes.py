"""What several processes do on one table: upsert, YCSB's mixes, catch up with one another."""

import contextlib
import itertools
import operator
import random
import time
from collections.abc import Iterator
from typing import Final
from zlib import crc32

import msgpack

from benchmarks.contest import Measure, timed
from benchmarks.crew import Crew, throughput_cost
from benchmarks.data import Key, Record, made_up, synthetic
from benchmarks.jobs import MIXES
from benchmarks.peers import Peer, floors
from benchmarks.peers.base import Store
from benchmarks.results import Result
from benchmarks.workloads.plan import Field, Plan, contest

__all__ = ["catch_up", "upserts_by_processes", "ycsb"]

_OWN: Final = 1_000
"""How many records each process upserts."""

_NEW: Final = 10_000_000
"""Numbers of new records are above this, and those of different runs as far apart."""


def upserts_by_processes(plan: Plan) -> Iterator[Result]:
    """Processes that upsert records of their own, all at once."""
    data = synthetic(max(plan.processes) * _OWN)
    with Field.of(plan, data, _is_shared) as field, _crews(plan, field) as crews:
        measures = {
            (name, count): _upserting(crew, count, plan.seconds, field.stores[name])
            for name, crew in crews.items()
            for count in plan.processes
        }
        yield from contest(plan, "upsert, processes", measures, left_out=field.left_out, x_label="processes")


def ycsb(plan: Plan) -> Iterator[Result]:
    """YCSB's workloads A, B, C, D and F; its E needs ranges, which a hash map has not."""
    data = synthetic(plan.table)
    with Field.of(plan, data, _is_shared) as field, _crews(plan, field) as crews:
        ledger = {name: _Ledger(store, plan.table) for name, store in field.stores.items()}
        for mix in MIXES:
            measures = {
                (name, count): _mixing(crew, mix, count, plan.seconds, ledger[name])
                for name, crew in crews.items()
                for count in plan.processes
            }
            yield from contest(
                plan,
                f"YCSB {mix}",
                measures,
                left_out=field.left_out,
                x_label="processes",
                settings={"records": plan.table},
            )
        for its in ledger.values():
            its.check()


def catch_up(plan: Plan) -> Iterator[Result]:
    """The first read after another process has written so and so much; a change's share of it."""
    for_microdb = [peer for peer in plan.peers if peer.name == "microdb"]
    data = synthetic(plan.table)
    with Field.of(plan, data, lambda peer: peer in for_microdb) as field, _crews(plan, field, 1) as crews:
        measures: dict[tuple[str, int | None], Measure] = {}
        for backlog in plan.backlogs:
            for name, crew in crews.items():
                measures[name, backlog] = _catching_up(crew, field.stores[name], plan.table, backlog)
            measures["unpackb + dict", backlog] = _unpacking(plan.table, backlog)
            measures["floor: one function", backlog] = _checking(plan.table, backlog)
        settings = {"records": plan.table}
        yield from contest(plan, "catch up", measures, left_out=field.left_out, x_label="changes", settings=settings)


def _is_shared(peer: Peer) -> bool:
    return peer.is_shared and not peer.is_durable


@contextlib.contextmanager
def _crews(plan: Plan, field: Field, count: int | None = None) -> Iterator[dict[str, Crew]]:
    """A crew for each store of the field, idle until it is called."""
    crews = {}
    with contextlib.ExitStack() as stack:
        for name, (peer, folder) in field.folders.items():
            plan.tell(f"  processes for {name}")
            crew = Crew(peer, folder, max(plan.processes) if count is None else count)
            try:
                crews[name] = stack.enter_context(crew)
            except RuntimeError as error:
                field.left_out[name] = f"failed: {str(error).strip().splitlines()[-1]}"
        yield crews


def _upserting(crew: Crew, count: int, seconds: float, store: Store) -> Measure:
    def measure() -> float:
        begin, done = crew.call([(worker, "upserts", (worker, _OWN)) for worker in range(count)], seconds)
        # Here, where nobody writes any more: a worker that reads would take time from the others.
        if any(store.get((each.last["id"],)) != each.last for each in done):
            raise AssertionError("the last upsert of a worker is not there")
        return throughput_cost(begin, done)

    return measure


class _Ledger:
    """What the processes that mix have added to a store, to be compared with it."""

    def __init__(self, store: Store, size: int) -> None:
        self._store = store
        self.size = size
        self._added = 0
        self._next = _NEW

    def next_first(self) -> int:
        """A number for the new records of one worker in one run."""
        self._next += _NEW
        return self._next

    def add(self, first: int, count: int) -> None:
        """A worker says that it has added so many records."""
        self._added += count
        if count and self._store.get((made_up(first + count - 1)["id"],)) != made_up(first + count - 1):
            raise AssertionError("an insert is not there")

    def check(self) -> None:
        """See that the store has what all have added, and every record under its own key."""
        if self._store.count() != self.size + self._added:
            raise AssertionError(f"{self._store.count():,} records instead of {self.size + self._added:,}")
        for number in random.Random(5).choices(range(self.size), k=50):
            expected = made_up(number)
            found = self._store.get((expected["id"],))
            if {**found, "age": 0} != {**expected, "age": 0}:
                raise AssertionError(f"{expected['id']} is not what was stored")


def _mixing(crew: Crew, mix: str, count: int, seconds: float, ledger: _Ledger) -> Measure:
    def measure() -> float:
        firsts = [ledger.next_first() for _ in range(count)]
        tasks = [(worker, "ycsb", (mix, ledger.size, first)) for worker, first in enumerate(firsts)]
        begin, done = crew.call(tasks, seconds)
        for first, its in zip(firsts, done, strict=True):
            ledger.add(first, its.inserted)
        return throughput_cost(begin, done)

    return measure


def _catching_up(crew: Crew, store: Store, size: int, backlog: int) -> Measure:
    marks = iter(range(1_000, 1_000_000))

    def measure() -> float:
        mark = backlog * 1_000_000 + next(marks)
        crew.call([(0, "append", (size, backlog, mark))])
        key = (made_up(0)["id"],)
        begin = time.perf_counter()
        record = store.get(key)
        took = time.perf_counter() - begin
        if record["age"] != mark:
            raise AssertionError("a read did not see what another process wrote before")
        return took / backlog

    return measure


def _unpacking(size: int, backlog: int) -> Measure:
    """The same without a log: the bytes of each change are there already, and are unpacked into a dict."""
    table: dict[Key, Record] = {(record["id"],): record for record in synthetic(size).records}
    payloads = [msgpack.packb([{**made_up(number % size), "age": 1}]) for number in range(backlog)]

    def body() -> None:
        unpackb = msgpack.unpackb
        for payload in payloads:
            for record in unpackb(payload):
                table[record["id"],] = record

    return lambda: timed(body) / backlog


def _checking(size: int, backlog: int) -> Measure:
    """The same with what makes it safe in microdb, and no more: the crcs, the types of names and values, the keys."""
    table: dict[Key, Record] = {(record["id"],): record for record in synthetic(size).records}
    log, crc = bytearray(), 0
    for number in range(backlog):
        payload = msgpack.packb([{**made_up(number % size), "age": 1}])
        frame = floors.HEADER.pack(len(payload), 0, number + 1) + payload
        crc = crc32(frame, crc)
        log += frame + floors.CRC.pack(crc)
    data = bytes(log)

    def body() -> None:
        header, checksum = floors.HEADER.unpack_from, floors.CRC.unpack_from
        at, sequence, crc, payloads = 0, 0, 0, []
        while at < len(data):
            length, _, found = header(data, at)
            end = at + floors.HEADER.size + length
            frame = data[at:end]
            crc, sequence = crc32(frame, crc), sequence + 1
            if checksum(data, end)[0] != crc or found != sequence:
                raise AssertionError("damaged")
            payloads.append(frame[floors.HEADER.size :])
            at = end + floors.CRC.size
        batches = msgpack.unpackb(b"\xdd" + len(payloads).to_bytes(4, "big") + b"".join(payloads))
        records = list(itertools.chain.from_iterable(batches))
        values = itertools.chain.from_iterable(map(dict.values, records))
        names = set().union(*records)
        keys = list(map(operator.itemgetter("id"), records))
        if not all(floors.FLAT.issuperset(map(type, some)) for some in (names, values, keys)):
            raise AssertionError("to be looked at closer")
        table.update(zip(zip(keys, strict=True), records, strict=True))

    return lambda: timed(body) / backlog
