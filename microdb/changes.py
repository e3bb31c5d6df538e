"""What can happen to a table: upsert, delete, clear.

A change is a pair, because millions of them are read when a log is replayed and a pair is what Python makes fastest:

    (key, record)   upsert: the record stands under the key
    (key, None)     delete: nothing stands under the key
    (None, None)    clear: nothing stands at all
"""

from typing import Final

from microdb.keys import Key
from microdb.values import Record

__all__ = ["CLEAR", "Change"]

Change = tuple[Key | None, Record | None]

CLEAR: Final[Change] = (None, None)
