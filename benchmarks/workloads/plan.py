"""How much is measured, on whom, and where; and how stores are set up and filled."""

import contextlib
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from benchmarks.contest import Measure, run_rounds
from benchmarks.data import DataSet, Record
from benchmarks.peers import Peer
from benchmarks.peers.base import Store
from benchmarks.results import Result, Unit

__all__ = ["Field", "Plan", "changed", "check", "contest"]

_CHUNK: Final = 10_000
_SAMPLE: Final = 50


@dataclass(frozen=True)
class Plan:
    """What the command was told.

    Attributes:
        peers: Who takes part.
        sizes: Of tables.
        table: The size where it is not what varies.
        processes: How many write or mix at once.
        threads: As above.
        backlogs: How many changes there are to catch up with.
        data_sets: Of real records.
        rounds: Of each contest.
        file_rounds: Of those that take long: opening, saving.
        seconds: Of one measurement.
        folder: Where databases are made.
        tell: Says what is going on.
    """

    peers: tuple[Peer, ...]
    sizes: tuple[int, ...]
    table: int
    processes: tuple[int, ...]
    threads: tuple[int, ...]
    backlogs: tuple[int, ...]
    data_sets: tuple[str, ...]
    rounds: int
    file_rounds: int
    seconds: float
    folder: str
    tell: Callable[[str], None]

    def new_folder(self) -> str:
        """An empty folder."""
        return tempfile.mkdtemp(prefix="s", dir=self.folder)


@dataclass
class Field:
    """Who takes part in a contest.

    Attributes:
        stores: The open stores of those that do.
        folders: Theirs.
        left_out: Why others do not.
    """

    stores: dict[str, Store] = field(default_factory=dict)
    folders: dict[str, tuple[Peer, str]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @classmethod
    @contextlib.contextmanager
    def of(cls, plan: Plan, data: DataSet, wanted: Callable[[Peer], bool]) -> Iterator["Field"]:
        """A store for each wanted peer that can hold these records, filled with them, and checked."""
        made = cls()
        with contextlib.ExitStack() as stack:
            for peer in filter(wanted, plan.peers):
                reason = peer.missing()
                if reason is None and len(data.records) > peer.records_max:
                    reason = f"takes too long, or too much, with more than {peer.records_max:,} records"
                if reason is None:
                    reason = made._enter(stack, plan, peer, data)
                if reason is not None:
                    plan.tell(f"  without {peer.name}: {reason}")
                    made.left_out[peer.name] = reason
            yield made

    def _enter(self, stack: contextlib.ExitStack, plan: Plan, peer: Peer, data: DataSet) -> str | None:
        folder = plan.new_folder()
        plan.tell(f"  {len(data.records):,} records into {peer.name}")
        try:
            stack.enter_context(peer.served(folder, data))
            store = peer.open(folder, data.fields)
            stack.callback(store.close)
            for first in range(0, len(data.records), _CHUNK):
                store.put_many(data.records[first : first + _CHUNK])
            check(store, data)
        except Exception as error:
            return f"failed: {type(error).__name__}: {error}"
        self.stores[peer.name] = store
        self.folders[peer.name] = peer, folder
        return None


def check(store: Store, data: DataSet, *, added: int = 0) -> None:
    """See that a store holds these records: their number, and a sample of them.

    Args:
        store: It.
        data: What it was filled with, and what is unchanged.
        added: How many more there are.
    """
    if store.count() != len(data.records) + added:
        raise AssertionError(f"{store.count():,} records instead of {len(data.records) + added:,}")
    for record in random.Random(2).choices(data.records, k=_SAMPLE):
        if store.get(data.key_of(record)) != record:
            raise AssertionError(f"{data.key_of(record)} is not what was stored")


def changed(record: Record, number: int) -> Record:
    """The record with something new in it: engines save themselves the work when nothing changes."""
    return {**record, "change": number}


def contest(
    plan: Plan,
    group: str,
    measures: dict[tuple[str, int | None], Measure],
    *,
    left_out: dict[str, str] | None = None,
    x_label: str = "",
    unit: Unit = "s",
    rounds: int | None = None,
    settings: Mapping[str, object] | None = None,
) -> list[Result]:
    """Run contestants, each of a name and an x, in the same rounds; one result for each x.

    Args:
        plan: Says how many rounds.
        group: See `Result`, for the others as well.
        measures: For each contestant and x.
        left_out: Who does not take part, and why.
        x_label: See `Result`.
        unit: See `Result`.
        rounds: Other than the plan's.
        settings: See `Result`.
    """
    plan.tell(f"{group}: {', '.join(dict.fromkeys(name for name, _ in measures))}")
    costs, failed = run_rounds(measures, plan.rounds if rounds is None else rounds)
    for (name, x), why in failed.items():
        plan.tell(f"  {name} @ {x}: {why}")
    results = []
    for x in dict.fromkeys(x for _, x in measures):
        result = Result(group, x, x_label, unit, settings={"seconds": plan.seconds, **(settings or {})})
        result.costs = {name: cost for (name, its), cost in costs.items() if its == x}
        result.left_out = (left_out or {}) | {name: why for (name, its), why in failed.items() if its == x}
        results.append(result)
    return results
