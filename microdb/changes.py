"""What can happen to a table: upsert, delete, clear.

A change is a pair, because millions of them are read when a log is replayed and a pair is what Python makes fastest:

    (key, record)   upsert: the record stands under the key
    (key, None)     delete: nothing stands under the key
    (None, None)    clear: nothing stands at all
"""

from collections.abc import Iterator, Sequence
from typing import Final

from microdb.keys import Key
from microdb.values import Record

__all__ = ["CLEAR", "Change", "Upserts"]

Change = tuple[Key | None, Record | None]


class Upserts:
    """Upserts and nothing else, of which a dict takes all in one call.

    >>> list(Upserts([(1,), (2,)], [{"id": 1}, {"id": 2}]))
    [((1,), {'id': 1}), ((2,), {'id': 2})]

    Attributes:
        keys: Theirs, in order.
        records: As many.
    """

    __slots__ = ("keys", "records")

    def __init__(self, keys: Sequence[Key], records: Sequence[Record]) -> None:
        self.keys = keys
        self.records = records

    def __iter__(self) -> Iterator[tuple[Key, Record]]:
        """As changes."""
        return zip(self.keys, self.records, strict=True)


CLEAR: Final[Change] = (None, None)
