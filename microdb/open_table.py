"""One open table: how it is loaded, how its reads stay fresh, what a fork does to it. No bytes, no file names.

The gate: `_head` is the head that the table reflects, if a read may go straight to the table; otherwise it is NEVER,
which no word of the page equals. So a read compares one word, and all that is rare hides behind the inequality: news
from others, a transaction of one's own thread, a table in which records expire, a closed handle.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from microdb import collecting, forks, notes, snapshot
from microdb.errors import ClosedError, CorruptError, MicroDBError
from microdb.expiry import has_expired
from microdb.finder import EXPIRY, Plan, plan
from microdb.indexes import ExpiryIndex, HashIndex, Index, IndexedRecords, SortedIndex
from microdb.keys import Key, PartitionKeys
from microdb.locks import has_any, is_owned
from microdb.query import Candidates
from microdb.recovery import recover
from microdb.table import Records, apply
from microdb.transaction import Transaction
from microdb.values import Expiring, Record
from microdb.wal.bell import ring
from microdb.wal.codec import is_carried
from microdb.wal.file_log import FileLog
from microdb.wal.format import Payload, Position
from microdb.wal.header import EXPIRING, HEAD, HEADER_BYTES, WAITING
from microdb.wal.log import GoneError, Start
from microdb.wal.log_file import changes_in
from microdb.wal.memory_log import MemoryLog

__all__ = ["CLOSED", "DETACHED", "NEVER", "OpenTable", "records_of"]

NEVER: Final = -1
CLOSED: Final = -1
DETACHED: Final = 0
"""In the place of a pid, below all that are."""

_MANY: Final = 1_000
"""Payloads; of fewer the garbage collector has not much to do."""
_CLOSED_WORDS: Final = memoryview(bytes(HEADER_BYTES)).cast("Q")


class OpenTable:
    """The table of one handle, and the log that it follows.

    Its state, under `_table_lock`: `_records` reflect the log up to `_position`, whose head is `_applied`. Without a
    position the table is to be loaded anew. A writer does not wait for a fresh table: then `_ahead` is the end of
    the log, behind which it wrote last, and what is between the two is left to the next read. Where that finds damage,
    the handle `_is_stuck`: from then on a write meets it, too.
    """

    def __init__(
        self,
        log: FileLog | MemoryLog,
        keys: PartitionKeys,
        timeout_s: float | None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._log = log
        self._keeps_all = log.keeps_all
        self._keys = keys
        self._timeout_s = timeout_s
        self._clock = clock
        self._indexes: list[tuple[str, ...]] = []
        self._sorted_indexes: list[str] = []
        self._transaction: Transaction | None = None
        self._table_lock = threading.RLock()
        self._records: Records = {}
        self._position: Position | None = None
        self._ahead: Position | None = None
        self._is_stuck = False
        self._applied = self._head = NEVER
        self._words = _CLOSED_WORDS
        self._pid = DETACHED

    # Fresh reads.

    def _find(self, key: Key) -> Record | None:
        """The stored record as of now, by the long way."""
        record = self._find_any(key)
        return None if type(record) is Expiring and record.expires_at <= self._clock() else record

    def _find_any(self, key: Key) -> Record | None:
        """As `_find`, even if it has expired."""
        self._settle()
        try:
            with self._table_lock:
                records = self._catch_up()
                view = self._own_view()
                return records.get(key) if view is None else view.get(key)
        finally:
            if notes.waiting:
                self._tell()

    def candidates(self, wanted: Mapping[str, Any]) -> Candidates:
        """See `query.Source`. An index is built when it is first of use: one pass over the table."""
        how = plan(wanted, self._keys.names, self._indexes, self._sorted_indexes)
        self._settle()
        with self._telling(), self._table_lock:
            records = self._catch_up()
            view = self._own_view()
            if how.way == "scan":
                found = list((records if view is None else view.whole()).values())
            else:
                keys = [self._keys.of(wanted)] if how.way == "key" else self._index(how).find(wanted)
                found = _stored(keys, self._records, view)
            if self._may_expire():
                now = self._clock()
                found = [record for record in found if not has_expired(record, now)]
        return Candidates(found, str(how))

    def _index(self, how: Plan) -> Index:
        """An index of the table, up to date. Under the table lock."""
        records = self._records
        if not isinstance(records, IndexedRecords):
            self._records = records = IndexedRecords(records)
            if self._transaction is not None:
                self._transaction.rebase(records)
        index = records.indexes.get(how)
        if index is None:
            index = _new_index(how)
            records.keep(how, index)
        return index

    @contextlib.contextmanager
    def _whole(self) -> Iterator[Records]:
        """The table as of now, which nobody changes meanwhile."""
        with self._fresh() as records:
            view = self._own_view()
            yield self._unexpired(records if view is None else view.whole(), view)

    @contextlib.contextmanager
    def _fresh(self) -> Iterator[Records]:
        """The table that all share, as of now, with what has expired and is not yet deleted."""
        self._settle()
        try:
            with self._table_lock:
                yield self._catch_up()
        finally:
            if notes.waiting:
                self._tell()

    # Records that expire.

    def _may_expire(self) -> bool:
        """Whether records may expire, in the table or in a transaction. Under the table lock, having caught up.

        A writer sets the word before it publishes the first one of a generation, and nobody takes it back. A page that
        is not followed tells nothing.
        """
        position, transaction = self._position, self._transaction
        return (transaction is not None and transaction.expires) or (
            position is not None and (self._log.words[EXPIRING] > position.generation or not self._log.is_followed())
        )

    def _expired(self, now: float) -> list[Key]:
        """The keys of what has expired, and is not yet deleted, in the table that all share. As `_may_expire`."""
        return list(self._index(EXPIRY).find({"now": now})) if self._may_expire() else []

    def _unexpired(self, records: Records, view: Transaction | None) -> Records:
        """The table, or what a transaction makes of it, without what has expired: itself if there is nothing."""
        if not self._may_expire():
            return records
        now = self._clock()
        named = [*self._expired(now), *(() if view is None else view.upserted())]
        expired = [key for key in named if has_expired(records.get(key), now)]
        if not expired:
            return records
        left = records.copy()
        for key in expired:
            left.pop(key, None)  # It may be named twice.
        return left

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Log at the end what was noted meanwhile."""
        try:
            yield
        finally:
            self._tell()

    def _tell(self) -> None:
        """Log what was noted, unless the calling thread holds a lock: then it does when it has left that.

        The lock of another database, too: a handler may wait for that, in a thread that has the handler's own lock.
        """
        if notes.waiting and not self._log.lock.is_mine() and not is_owned(self._table_lock) and not has_any():
            notes.tell()

    def _own_view(self) -> Transaction | None:
        transaction = self._transaction
        return (
            transaction
            if transaction is not None and transaction.is_mine() and not transaction.is_inherited()
            else None
        )

    # Following the log.

    def _catch_up(self, timeout_s: float | None = None) -> Records:
        """Apply what others have published, and give the table. Under the table lock.

        A signal handler that comes in between may go further, or close the handle: it finds the table whole, or makes
        a new one, and nothing more is applied to what it leaves. A save may be in the way, for at most `timeout_s`.
        """
        if self._pid != CLOSED and not self._log.is_followed() and self._log.follow():
            self._words, self._position, self._applied = self._log.words, None, NEVER
            self._log.lock.comes_before(self._table_lock)
        while True:
            head, position, records = self._words[HEAD], self._position, self._records
            if self._pid == CLOSED:
                self._refuse_closed()
            if head == self._applied:
                return records
            if position is None:
                self._load_anew(timeout_s)
                continue
            try:
                payloads, end = self._log.read(position, head)
            except GoneError:
                self._load_anew(timeout_s)
                continue
            except CorruptError:
                if self._position is position:
                    self._ahead, self._is_stuck = None, True
                    raise
                continue
            if self._apply(payloads, position, end, head):
                return records

    def _place(self) -> Position:
        """Catch up, and tell where the table then stands. Under the table lock."""
        if self._position is None:
            self._applied = NEVER
        self._catch_up()
        if self._position is None:
            raise AssertionError("whoever has caught up has a position")
        return self._position

    def _look_ahead(self) -> bool:
        """Find the end of the log without reading what leads there; False if it takes that. Under both locks.

        If a signal handler has left the table or what is ahead of it meanwhile, nothing is noted: look again.
        """
        head, position, ahead = self._words[HEAD], self._position, self._ahead
        end = self._log.end_at(head) if position is not None and not self._is_stuck else None
        if end is None:
            return False
        if self._position is position and self._ahead is ahead:
            self._ahead = end
        return True

    def _apply(self, payloads: Sequence[Payload], after: Position, end: Position, head: int) -> bool:
        """Go on from a position to the end of some payloads; False if a signal handler has left it meanwhile."""
        records, before = self._records, self._applied
        if self._position is not after:
            return False
        # Without a position the next one to catch up loads the table anew: so whoever is interrupted in the middle of
        # a batch leaves nothing half done. A table in memory has nothing to be loaded from, and nobody to differ from.
        self._ahead = None
        self._is_stuck = False
        self._position = None if self._keeps_all else after
        if end.generation != after.generation:
            payloads = [payload for payload in payloads if not is_carried(payload)]
        if len(payloads) > _MANY:
            with collecting.paused():
                self._carry_out(payloads, records)
        else:
            self._carry_out(payloads, records)
        if self._records is not records:
            return False
        self._position, self._applied = end, head
        self._log.slot.sequence[0] = end.sequence
        if self._head == before and self._words[EXPIRING] <= end.generation:
            self._head = self._applied  # As open as it was, for a part of the price.
        else:
            self._reflect()
        return True

    def _carry_out(self, payloads: Sequence[Payload], records: Records) -> None:
        for changes in changes_in(payloads, self._keys, self._log.name):
            apply(changes, records)

    def _reflect(self) -> None:
        """Let reads go to the table as it is now."""
        if self._transaction is not None:
            self._transaction.rebase(self._records)
        self._open_gate()

    def _open_gate(self) -> None:
        log, position = self._log, self._position
        is_open = self._transaction is None and self._pid != CLOSED and log.is_followed()
        if position is not None and log.words[EXPIRING] > position.generation:
            is_open = False
        self._head = self._applied if is_open else NEVER

    def _load(self, start: Start) -> None:
        """Build the table anew. Under the table lock."""
        records = records_of(start, self._log.name, self._keys)
        self._ahead = None
        self._is_stuck = False
        self._records, self._position, self._applied = records, start.end, start.head
        if start.end is not None:
            self._log.slot.sequence[0] = start.end.sequence
        self._reflect()

    def freshen(self) -> int:
        """See `save.Source`."""
        before = self._applied
        with self._fresh():
            return self._applied - before

    # Opening, closing, forking.

    def _settle(self) -> None:
        """See that this handle is open, and knows in which process it is. Reads need no more than that."""
        if self._pid == os.getpid():
            return
        self._refuse_closed()
        if self._pid != DETACHED:
            forks.notice(self, lambda: self._pid not in (os.getpid(), DETACHED))

    def _refuse_closed(self) -> None:
        if self._pid == CLOSED:
            raise ClosedError("this handle is closed; open another one")

    def _attach(self, timeout_s: float | None) -> None:
        """Open the files. Waits for the write lock, so not under the table lock, which its owner may wait for."""
        start = self._log.attach(recover, timeout_s)
        self._log.lock.comes_before(self._table_lock)
        try:
            with self._table_lock:
                if start is not None:
                    self._load(start)
                elif self._position is None:
                    self._load(self._log.load(timeout_s))
                self._words = self._log.words
        except BaseException:
            # An error keeps its traceback, and with it the files: they must not look alive.
            self._log.close()
            raise
        self._pid = os.getpid()
        notes.add(notes.DEBUG, "%s: opened, %d records at %s", self._log.name, len(self._records), self._position)

    def _load_anew(self, timeout_s: float | None = None) -> None:
        """The table's position is lost, or what follows it is gone. Under the table lock."""
        self._position = None
        with self._noticing_a_close():
            start = self._log.load(timeout_s)
        self._load(start)
        notes.add(notes.DEBUG, "%s: loaded anew, %d records at %s", self._log.name, len(self._records), self._position)

    @contextlib.contextmanager
    def _noticing_a_close(self) -> Iterator[None]:
        """Whoever is closed within, by a handler or another thread, is told that, not what is wrong with the files."""
        try:
            yield
        except MicroDBError:
            self._refuse_closed()
            raise

    def _close(self) -> None:
        let_go = self._log.close if self._pid == os.getpid() else self._log.detach
        words = self._words
        try:
            self._head = NEVER
            self._words = _CLOSED_WORDS
            self._position = None
            self._pid = CLOSED
            let_go()
        except BaseException:
            # Whatever interrupts this: a handle that nobody can close any more must not look alive.
            self._head = NEVER
            self._position = None
            self._pid = CLOSED
            let_go()
            raise
        self._records = {}
        if words[WAITING] >= words[HEAD]:
            ring(words)  # Threads of this handle may be among those who sleep.

    def stop_for_fork(self) -> None:
        """See `forks`."""
        self._table_lock.acquire()

    def go_on_in_parent(self) -> None:
        """See `forks`."""
        self._table_lock.release()

    def begin_in_child(self, *, is_sound: bool) -> None:
        """Keep table and position, if no other thread was just changing it. Files and locks are the parent's."""
        self._table_lock = threading.RLock()
        if self._pid == CLOSED:
            return
        self._pid = DETACHED
        self._log.detach()
        if not is_sound:
            self._position = None
            self._applied = NEVER
        self._open_gate()


def records_of(start: Start, name: str, keys: PartitionKeys) -> Records:
    """The table that a snapshot and a log make."""
    records: Records = {}
    with collecting.paused():
        if start.snapshot is not None:
            records = snapshot.load(start.snapshot, name, keys)
        start.overlay.lay_on(records)
    return records


def _new_index(how: Plan) -> Index:
    if how.way == "expiry":
        return ExpiryIndex()
    return HashIndex(how.fields) if how.way == "index" else SortedIndex(*how.fields)


def _stored(keys: Iterable[Key], records: Records, view: Transaction | None) -> list[Record]:
    """The stored records with these keys; and in a transaction all that it has itself upserted."""
    own = {} if view is None else view.upserted()
    get = records.get if view is None else view.get
    found = [get(key) for key in keys if key not in own]
    return [*(record for record in found if record is not None), *own.values()]
