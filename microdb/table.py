"""The map from key to record that each process holds. Pure: it knows of no log and no lock."""

from collections.abc import Iterable

from microdb.changes import Change
from microdb.keys import Key
from microdb.values import Record

__all__ = ["Records", "apply"]

Records = dict[Key, Record]


def apply(changes: Iterable[Change], records: Records) -> None:
    """Carry out changes in order. An overwritten record keeps its place; a deleted one that comes back goes to the end.

    Whoever is interrupted in the middle must not simply begin anew: the places could come out in another order.
    """
    for key, record in changes:
        if record is not None:
            records[key] = record  # type: ignore[index]  # An upsert has a key.
        elif key is not None:
            records.pop(key, None)
        else:
            records.clear()
