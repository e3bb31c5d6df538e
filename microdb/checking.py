"""Hold a table against what the files say, and indexes against the table. Pure."""

from collections.abc import Iterator
from typing import NamedTuple

from microdb.errors import shown
from microdb.indexes import IndexedRecords
from microdb.table import Records
from microdb.wal.codec import encode_upsert

__all__ = ["Report", "differences", "misled"]


class Report(NamedTuple):
    """What `MicroDB.check` found.

    >>> import microdb
    >>> microdb.MicroDB(":memory:", ["id"]).check()
    Report(records=0, problems=[])

    Attributes:
        records: How many records were compared.
        problems: What is wrong, a line each; empty if all is well.
    """

    records: int
    problems: list[str]

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong.

        >>> Report(1, ["record (1,) is in the table, and not in the files"]).is_sound
        False
        """
        return not self.problems


def differences(table: Records, stored: Records) -> Iterator[str]:
    """Where a table is not what the files say, a line each. A nan is equal to itself here."""
    for key in table.keys() - stored.keys():
        yield f"record {shown(key):.200} is in the table, and not in the files"
    for key in stored.keys() - table.keys():
        yield f"record {shown(key):.200} is in the files, and not in the table"
    for key in table.keys() & stored.keys():
        if encode_upsert(table[key]) != encode_upsert(stored[key]):
            yield f"record {shown(key):.200} is another one in the files"
    if list(table) != list(stored) and table.keys() == stored.keys():
        yield "the records stand in another order in the files"


def misled(table: Records) -> Iterator[str]:
    """Where an index of a table names a key too few, or one that is not there, a line each."""
    if not isinstance(table, IndexedRecords):
        return
    for name, index in table.indexes.items():
        missing, named = sum(not index.holds(key, record) for key, record in table.items()), len(index.named())
        if missing or named != len(table):
            yield f"{name}: {missing} records are not where they should be, {named} of {len(table)} named"
