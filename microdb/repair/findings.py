"""What is to be said of a damaged database, one thing a finding. Values only."""

from collections.abc import Iterable, Iterator
from typing import Final, Literal, NamedTuple

from microdb.errors import shown
from microdb.keys import Key

__all__ = ["Finding", "Kind", "changes", "listed", "spans"]

_KEYS_SHOWN: Final = 8

Kind = Literal["lost", "in doubt", "note"]


class Finding(NamedTuple):
    """One thing to be said.

    Attributes:
        kind: "lost": it was there, and is not saved. "in doubt": what is saved may not be what was written. "note".
        where: The file, and the bytes or lines of it.
        what: What was found there, and what it means.
    """

    kind: Kind
    where: str
    what: str


def spans(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """The first and last of each run of numbers that follow one another.

    >>> list(spans([1, 2, 3, 7]))
    [(1, 3), (7, 7)]
    """
    first = last = None
    for number in numbers:
        if first is None or last is None:
            first = number
        elif number != last + 1:
            yield first, last
            first = number
        last = number
    if first is not None and last is not None:
        yield first, last


def changes(first: int, last: int) -> str:
    """Some changes by their sequences, in words.

    >>> changes(5, 5), changes(5, 7)
    ('change 5', 'changes 5 to 7')
    """
    return f"change {first}" if first == last else f"changes {first} to {last}"


def listed(keys: Iterable[Key]) -> str:
    """Keys for people: not more than fit into a line or two."""
    every = list(keys)
    more = f" and {len(every) - _KEYS_SHOWN:,} more" if len(every) > _KEYS_SHOWN else ""
    return ", ".join(f"{shown(key):.60}" for key in every[:_KEYS_SHOWN]) + more
