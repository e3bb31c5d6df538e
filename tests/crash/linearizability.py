"""Whether a history of concurrent operations on keys can have happened one after the other.

A history is linearizable if each operation can be given one moment between its invocation and its return, such that,
done one by one at these moments, all of them give the results that they gave. An operation whose process died may have
its moment at any time after its invocation, or none. The oracle is the history alone, recorded outside the database.

The search is that of Wing and Gong ("Testing and verifying concurrent objects", 1993): take any operation that began
before every remaining one ended, carry it out if its result fits, and go back if that leads nowhere. With it

* what Lowe added ("Testing for linearizability", 2017): a set of operations done, with the state that they lead to, is
  searched once;
* locality (Herlihy and Wing, 1990), which Horn and Kroening ("Faster linearizability checking via P-compositionality",
  2015) generalize: keys that no operation touches together are checked apart;
* what follows from operations being reads and writes of values. One that only reads, and fits, is taken at once. A
  value is not overwritten while a read of it is left that no write to come explains. What must be done soonest, for
  itself or for what comes after it, is tried first. And the clusters of Gibbons and Korach ("Testing shared memories",
  1997): where a value was written once, its write and its reads follow each other with no other write of that key in
  between; so does each read that found none. So if one of them ended before one of another cluster began, all of its
  own come before all of the other.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

__all__ = ["ABSENT", "Operation", "UndecidedError", "apart", "linearization", "partitions", "violations"]

ABSENT = None
"""The value of a key that is not there. So are all at the beginning."""


class Operation(NamedTuple):
    """What one operation read, and then wrote, in one.

    Attributes:
        invoked: When; of one clock for all.
        returned: When; None if it never did.
        reads: Value by key, as its result tells. One that never returned tells nothing.
        writes: Value by key; ABSENT for a deletion.
        name: For people.
    """

    invoked: int
    returned: int | None
    reads: Mapping[Hashable, Hashable] = {}
    writes: Mapping[Hashable, Hashable] = {}
    name: str = ""


class UndecidedError(Exception):
    """The search was given up."""


def violations(history: Sequence[Operation], *, effort: int = 300_000) -> list[str]:
    """For each group of keys whose operations are not linearizable, why not.

    Raises:
        UndecidedError: After `effort` steps for one of them.
    """
    found = []
    for part in partitions(history):
        order, stuck = linearization(part, effort=effort)
        if order is None:
            found.append(stuck)
    return found


def partitions(history: Iterable[Operation]) -> list[list[Operation]]:
    """The operations, apart for keys that no operation touches together."""
    history = [one for one in history if one.reads or one.writes]
    group = _groups((*one.reads, *one.writes) for one in history)
    parts = defaultdict(list)
    for one in history:
        parts[group(next(iter((*one.reads, *one.writes))))].append(one)
    return list(parts.values())


def _groups(together: Iterable[Iterable[Hashable]]) -> Callable[[Hashable], Hashable]:
    """Which group a key belongs to, where keys that are named together are in one group."""
    parent: dict[Hashable, Hashable] = {}

    def root(key: Hashable) -> Hashable:
        while (above := parent.setdefault(key, key)) != key:
            key = above
        return key

    for keys in together:
        roots = [root(key) for key in keys]
        parent.update(dict.fromkeys(roots, roots[0]) if roots else {})
    return root


def apart(history: Iterable[Operation]) -> list[Operation]:
    """The same, with what reads keys that are never written together split into one read for each such group.

    Not all that is wrong can be seen in it; but what is wrong in it was wrong before, and to judge it costs less.
    """
    history = list(history)
    groups = _groups(one.writes for one in history)
    split = []
    for one in history:
        reads: dict[Hashable, dict[Hashable, Hashable]] = {groups(key): {} for key in one.writes}
        for key, value in one.reads.items():
            reads.setdefault(groups(key), {})[key] = value
        split += [
            one._replace(reads=read, writes={k: v for k, v in one.writes.items() if groups(k) == group})
            for group, read in reads.items()
        ]
    return split


def linearization(operations: Iterable[Operation], *, effort: int = 300_000) -> tuple[list[Operation] | None, str]:
    """An order that explains all results; or None, and how far one comes.

    Raises:
        UndecidedError: After `effort` steps.
    """
    return _Search(list(operations)).run(effort)


class _Search:
    """One search. Operations are known by their index, in the order of their invocations."""

    def __init__(self, operations: list[Operation]) -> None:
        self.operations = sorted(_without_idle(operations), key=lambda one: one.invoked)
        self.ends = [_end(one) for one in self.operations]
        self.earlier, self.contradiction = _clustered(self.operations)
        self.deadlines = _deadlines(self.operations, self.earlier)
        self.musts = [sum(1 << j for j in earlier) for earlier in self.earlier]
        self.reads = [[*one.reads.items()] for one in self.operations]
        self.writes = [[*one.writes.items()] for one in self.operations]
        self.state = dict.fromkeys((key for pairs in (*self.reads, *self.writes) for key, _ in pairs), ABSENT)
        # What is left to be read and to be written: how often each value of each key.
        self.wanted = Counter(pair for pairs in self.reads for pair in pairs)
        self.offered = Counter(pair for pairs in self.writes for pair in pairs)
        # The operations that are left, as a ring of neighbours, the last index being the anchor.
        count = len(self.operations)
        self.after = [*range(1, count + 1), 0]
        self.before = [count, *range(count)]
        self.left = sum(one.returned is not None for one in self.operations)

    def run(self, effort: int) -> tuple[list[Operation] | None, str]:
        if self.contradiction:
            return None, self.contradiction
        done, order, furthest = 0, [], []
        undo: list[tuple[int, dict[Hashable, Hashable]]] = []
        seen = set()
        paths = [iter(self.candidates(done))]
        while self.left:
            for i in paths[-1]:
                replaced = self.take(i)
                step = done | 1 << i, tuple(self.state.values())
                if step not in seen:
                    break
                self.give_back(i, replaced)
            else:
                if not order:
                    return None, self.describe(furthest)
                paths.pop()
                self.give_back(*undo.pop())
                done ^= 1 << order.pop()
                continue
            seen.add(step)
            if len(seen) > effort:
                raise UndecidedError(f"undecided after {effort} steps; {self.describe(furthest)}")
            done = step[0]
            order.append(i)
            undo.append((i, replaced))
            paths.append(iter(self.candidates(done)))
            if len(order) > len(furthest):
                furthest = order.copy()
        return [self.operations[i] for i in order], ""

    def candidates(self, done: int) -> list[int]:
        """What may come next, and leads on as far as one can tell: soonest first."""
        found = []
        first_end = float("inf")
        i = self.after[-1]
        # What began later ends later still, so it cannot forbid one that is already found.
        while i < len(self.operations) and self.operations[i].invoked <= first_end:
            first_end = min(first_end, self.ends[i])
            if self.fits(i):
                if not self.writes[i]:
                    return [i]
                if not self.musts[i] & ~done and self.may_overwrite(i):
                    found.append(i)
            i = self.after[i]
        return sorted(found, key=self.deadlines.__getitem__)

    def fits(self, i: int) -> bool:
        return all(self.state[key] == value for key, value in self.reads[i])

    def may_overwrite(self, i: int) -> bool:
        """Whether what it overwrites is needed by nobody else, or will be written again."""
        for key, value in self.writes[i]:
            replaced = key, self.state[key]
            own = replaced in self.reads[i]
            if replaced[1] != value and not self.offered[replaced] and self.wanted[replaced] > own:
                return False
        return True

    def take(self, i: int) -> dict[Hashable, Hashable]:
        """Carry one out; what its writes replaced."""
        self.after[self.before[i]] = self.after[i]
        self.before[self.after[i]] = self.before[i]
        self.wanted.subtract(self.reads[i])
        self.offered.subtract(self.writes[i])
        self.left -= self.operations[i].returned is not None
        replaced = {key: self.state[key] for key, _ in self.writes[i]}
        self.state.update(self.writes[i])
        return replaced

    def give_back(self, i: int, replaced: dict[Hashable, Hashable]) -> None:
        """Undo `take`, the last one first."""
        self.state.update(replaced)
        self.left += self.operations[i].returned is not None
        self.wanted.update(self.reads[i])
        self.offered.update(self.writes[i])
        self.after[self.before[i]] = i
        self.before[self.after[i]] = i

    def describe(self, order: list[int]) -> str:
        """How far one comes, and who is in the way: the one that ends first of those that are left."""
        done = [self.operations[i] for i in order]
        state = {key: value for one in done for key, value in one.writes.items()}
        left = set(range(len(self.operations))) - set(order)
        first = self.operations[min(left, key=self.ends.__getitem__)]
        return f"after {len(done)} of {len(self.ends)} operations, the last {done[-3:]}, with {state}, comes no {first}"


def _end(operation: Operation) -> float:
    return float("inf") if operation.returned is None else operation.returned


def _without_idle(operations: list[Operation]) -> list[Operation]:
    """Without those that never returned and explain nothing that anybody read."""
    wanted = {pair for one in operations for pair in one.reads.items()}
    return [one for one in operations if one.returned is not None or wanted & one.writes.items()]


def _clustered(operations: list[Operation]) -> tuple[list[set[int]], str]:
    """For each operation, which ones its clusters put before it; and a contradiction, if there is one."""
    earlier: list[set[int]] = [set() for _ in operations]
    for key, clusters in _clusters(operations).items():
        # What reads the value and replaces it comes last.
        for members, writer in clusters:
            for i in members - {writer}:
                if key in operations[i].writes:
                    earlier[i] |= members - {i}
        first_end = [min(_end(operations[i]) for i in members) for members, _ in clusters]
        last_begin = [max(operations[i].invoked for i in members) for members, _ in clusters]
        for one, other in itertools.permutations(range(len(clusters)), 2):
            if first_end[one] < last_begin[other]:
                if first_end[other] < last_begin[one]:
                    both = [[operations[i] for i in clusters[n][0]] for n in (one, other)]
                    return earlier, f"{key}: these and those can neither come before the others: {both}"
                members, first = clusters[other]
                earlier[first] |= clusters[one][0] - members
    return earlier, ""


def _clusters(operations: list[Operation]) -> dict[Hashable, list[tuple[set[int], int]]]:
    """By key, what has no other write of the key in between: the operations, and which of them comes first.

    A value that was written once, with all its reads; and one by one each operation that found the key absent.
    """
    writers, readers = defaultdict(list), defaultdict(set)
    for i, one in enumerate(operations):
        for pair in one.writes.items():
            writers[pair].append(i)
        for pair in one.reads.items():
            readers[pair].add(i)
    clusters = defaultdict(list)
    for (key, value), found in writers.items():
        if len(found) == 1 and value is not ABSENT:
            clusters[key].append(({*found, *readers[key, value]}, found[0]))
    for (key, value), found in readers.items():
        if value is ABSENT:
            clusters[key] += [({i}, i) for i in found]
    return clusters


def _deadlines(operations: list[Operation], earlier: list[set[int]]) -> list[float]:
    """When each must be done: when it returned, or when the first returned that must come after it."""
    deadlines = [_end(one) for one in operations]
    writer = {pair: i for i, one in enumerate(operations) for pair in one.writes.items()}
    for first in sorted(range(len(operations)), key=deadlines.__getitem__):
        waiting = [first]
        while waiting:
            i = waiting.pop()
            for j in {writer[pair] for pair in operations[i].reads.items() if pair in writer} | earlier[i]:
                if deadlines[j] > deadlines[first]:
                    deadlines[j] = deadlines[first]
                    waiting.append(j)
    return deadlines
