"""Look at a database: hold it against its files, show it, tell how it is."""

import contextlib
import os
from typing import Any

from microdb import snapshot
from microdb.async_watching import AsyncWatching
from microdb.checking import Report, differences, misled
from microdb.errors import MicroDBError, shown
from microdb.open_table import records_of
from microdb.recovery import recover
from microdb.stats import Stats
from microdb.table import Records
from microdb.wal.file_log import FileLog
from microdb.wal.format import split_head
from microdb.wal.header import (
    CONFLICTS,
    DIRTY,
    HEAD,
    LOCK_WAITS,
    OWNER,
    REPAIRS,
    SAVE_US,
    SAVES,
    TORN,
    positions,
)

__all__ = ["Inspecting"]


class Inspecting(AsyncWatching):
    """What tells about a database, to people and to what watches over it."""

    def check(self) -> Report:
        """Read the files anew, and hold table and indexes against them. Others cannot write meanwhile; readers can.

        Costs as much as opening it, and memory for a second table. A table in memory has only its indexes checked.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["id"])
        >>> mdb.upsert({"id": 1})
        >>> mdb.check()
        Report(records=1, problems=[])
        """
        self._refuse_in_transaction("check()")
        with contextlib.nullcontext() if self._read_only else self.lock():
            problems: list[str] = []
            stored: dict[int, Records] = {}
            if isinstance(self._log, FileLog):
                try:
                    log, is_sure = self._log, self._log.is_followed()
                    # As it was opened, where the page tells nothing.
                    start = log.load(self._timeout_s) if is_sure else recover(log, log.header_file)
                    stored[start.head] = records_of(start, self._log.name, self._keys)
                except MicroDBError as error:
                    problems.append(str(error))
            with self._fresh() as records:
                if self._applied in stored:  # Else others have written meanwhile, as they may behind a reader.
                    problems += differences(records, stored[self._applied])
                problems += misled(records)
                return Report(len(self._unexpired(records, None)), problems)

    def __str__(self) -> str:
        """The records as a list."""
        return shown(list(self.all()))

    def pprint_all(self) -> None:
        """Print the records as a list, neatly.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["id"])
        >>> mdb.upsert({"id": 1, "n": 5})
        >>> mdb.pprint_all()
        [{'id': 1, 'n': 5}]
        """
        _pprint(list(self.all()))

    def pprint_all_as_grid(self) -> None:
        """Print the field names, then one row a record.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["id"])
        >>> mdb.upsert({"id": 1, "n": 5})
        >>> mdb.pprint_all_as_grid()
        [['id', 'n'], [1, 5]]

        Raises:
            GridError: A record lacks a field that another has.
        """
        _pprint(snapshot.grid(list(self.all())))

    def stats(self) -> Stats:
        """How the database is now, and who has it open. Costs some system calls.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["id"])
        >>> mdb.upsert({"id": 1})
        >>> stats = mdb.stats()
        >>> stats.records, stats.sequence, list(stats.positions.values()), stats.last_save_s
        (1, 1, [1], None)
        """
        with self._whole() as records:
            log, words = self._log, self._log.words
            head = words[HEAD]
            generation, end = split_head(head)
            sequence = self._position.sequence if self._position is not None else 0
            pids = log.pids() if isinstance(log, FileLog) else (os.getpid(),)
            identity = log.files.identity(log.paths.snapshot) if isinstance(log, FileLog) else None
            return Stats(
                records=len(records),
                generation=generation,
                sequence=sequence,
                log_bytes=end,
                snapshot_bytes=identity.size if identity is not None else 0,
                pids=pids,
                owner_pid=words[OWNER] or None,
                dirty_pid=words[DIRTY] or None,
                saves=words[SAVES],
                repairs=words[REPAIRS],
                torn_tails=words[TORN],
                head=head,
                positions=positions(words, pids) if isinstance(log, FileLog) else {os.getpid(): sequence},
                lock_waits=words[LOCK_WAITS],
                conflicts=words[CONFLICTS],
                last_save_s=words[SAVE_US] / 1e6 if words[SAVE_US] else None,
            )


def _pprint(rows: list[Any]) -> None:
    from microdb.printing import Printer  # noqa: PLC0415  # It imports a good deal.

    Printer().pprint(rows)
