"""The map from key to record that each process holds. Pure: it knows of no log and no lock."""

from collections.abc import Iterable

from microdb.changes import Change, Upserts
from microdb.keys import Key
from microdb.values import Record

__all__ = ["Overlay", "Records", "apply"]

Records = dict[Key, Record]


def apply(changes: Iterable[Change], records: Records) -> None:
    """Carry out changes in order. An overwritten record keeps its place; a deleted one that comes back goes to the end.

    Whoever is interrupted in the middle must not simply begin anew: the places could come out in another order.
    """
    if type(changes) is Upserts:
        records.update(iter(changes))
        return
    for key, record in changes:
        if record is not None:
            records[key] = record  # type: ignore[index]  # An upsert has a key.
        elif key is not None:
            records.pop(key, None)
        else:
            records.clear()


class Overlay:
    """What changes make of any table, before there is one: it takes no more memory than what they leave.

    Attributes:
        records: Those that they upsert.
    """

    def __init__(self, changes: Iterable[Change] = ()) -> None:
        self._is_cleared = False
        self._deleted: set[Key] = set()
        self.records: Records = {}
        self.add(changes)

    def add(self, changes: Iterable[Change]) -> None:
        """Carry out more changes, behind those before."""
        records = self.records
        if type(changes) is Upserts:
            records.update(iter(changes))
            return
        for key, record in changes:
            if record is not None:
                records[key] = record  # type: ignore[index]  # An upsert has a key.
            elif key is not None:
                records.pop(key, None)
                self._deleted.add(key)
            else:
                self._is_cleared = True
                self._deleted.clear()
                records.clear()

    def get(self, key: Key, below: Records) -> Record | None:
        """The record that a table under this would show."""
        record = self.records.get(key)
        if record is not None or self._is_cleared or key in self._deleted:
            return record
        return below.get(key)

    def lay_on(self, records: Records) -> None:
        """Do to a table what the changes do."""
        if self._is_cleared:
            records.clear()
        for key in self._deleted:
            records.pop(key, None)
        records.update(self.records)
