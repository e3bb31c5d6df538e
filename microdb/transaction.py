"""Changes collected to be appended as one, and the view that their thread has meanwhile. Pure."""

import os
import threading
from collections.abc import Sequence

from microdb.changes import Change
from microdb.keys import Key
from microdb.table import Overlay, Records, apply
from microdb.values import Record

__all__ = ["Transaction"]


class Transaction:
    """The table as its thread sees it: the records of all, under the changes of its own.

    While it lasts its thread holds the write lock, so nobody else changes the table below. Reading a key costs two
    look-ups at most. The first read of the whole table costs a copy of the map, later ones nothing more.

    Attributes:
        pairs: What it will do, in order: each change, and the same as the log will hold it.
        expires: Whether a record that it upserts may be one that expires.
        fences: The highest fence that it has given for a claim of each key.
    """

    def __init__(self, records: Records) -> None:
        self.pairs: list[tuple[Change, bytes]] = []
        self.expires = False
        self.fences: dict[Key, int] = {}
        self._thread = threading.get_ident()
        self._pid = os.getpid()
        self._records = records
        self._overlay = Overlay()
        self._whole: Records | None = None

    def is_mine(self) -> bool:
        """Whether the calling thread began it, or the thread of the parent that this one was forked from."""
        return self._thread == threading.get_ident()

    def is_inherited(self) -> bool:
        """Whether a fork brought it here, so that it belongs to the parent."""
        return self._pid != os.getpid()

    def add(self, changes: Sequence[Change], encoded: Sequence[bytes]) -> None:
        """Take changes in, all or none."""
        mark = len(self.pairs)
        try:
            self.pairs += zip(changes, encoded, strict=True)
            self._overlay.add(changes)
            if self._whole is not None:
                apply(changes, self._whole)
        except BaseException:
            self.rewind(mark)
            raise

    def rewind(self, length: int) -> None:
        """Forget all changes behind the first `length`: an inner block failed."""
        del self.pairs[length:]
        self._whole = None
        self._overlay = Overlay(change for change, _ in self.pairs)

    def rebase(self, records: Records) -> None:
        """The table below changed: the same thread wrote through another handle."""
        self._records = records
        self._whole = None

    def get(self, key: Key) -> Record | None:
        """The stored record, or None."""
        return self._overlay.get(key, self._records)

    def upserted(self) -> Records:
        """Its own records, by key."""
        return self._overlay.records

    def whole(self) -> Records:
        """The table as it will be."""
        if self._whole is None:
            whole = self._records.copy()
            self._overlay.lay_on(whole)
            self._whole = whole
        return self._whole
