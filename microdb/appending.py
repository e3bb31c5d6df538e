"""How a batch gets into the log and into the table: by itself, along with those of other threads, or straight.

Order of locks: save lock, write lock, table lock. The table lock is held for moments, and nobody waits for another lock
while holding it. A thread that holds the write lock for long blocks no reads.
"""

import os
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence

from microdb import notes
from microdb.auto_save import AutoSave
from microdb.changes import Change
from microdb.commits import Commit, CommitQueue
from microdb.errors import FailedError
from microdb.keys import PartitionKeys
from microdb.locks import OUTSIDE, Level, refuse_in_child
from microdb.open_table import DETACHED, NEVER, OpenTable
from microdb.table import apply
from microdb.wal.bell import ring
from microdb.wal.codec import join
from microdb.wal.file_log import FileLog
from microdb.wal.format import OFFSET_MAX, Position
from microdb.wal.header import EXPIRING, HEAD, POISONED, WAITING
from microdb.wal.memory_log import MemoryLog

__all__ = ["Appending"]


class Appending(OpenTable):
    """An open table that is written to."""

    def __init__(
        self,
        log: FileLog | MemoryLog,
        keys: PartitionKeys,
        *,
        sync: bool,
        read_only: bool,
        auto_save_bytes: int | None,
        timeout_s: float | None,
        clock: Callable[[], float],
    ) -> None:
        super().__init__(log, keys, timeout_s, clock)
        self._sync = sync
        self._read_only = read_only
        self._auto_save = AutoSave(log, auto_save_bytes, timeout_s)
        self._commits = CommitQueue()
        self._appending = threading.RLock()

    @abstractmethod
    def _save_soon(self, offset: int) -> None:
        """Begin an automatic save, if a log that ends at `offset` is worth one."""

    @abstractmethod
    def _leave_poisoned_locked(self) -> None:
        """An fsync failed: what the log holds may not be on the disk. Begin a generation that is. Under the lock."""

    def _upsert_straight(self, changes: Iterable[Change], encoded: Sequence[bytes]) -> bool:  # noqa: C901, PLR0912  # Written out, see below.
        """Commit the upsert of a record that does not expire, if nothing is in the way; else False, with nothing done.

        It does what `_commit` and those that it calls would do, and leaves to them what they look after besides: other
        writers and their news, a batch to be taken along, a lock or a transaction around it. To enter all their
        functions costs more than the system does: this takes three quarters of the time.
        """
        if self._sync or self._read_only or self._transaction is not None or self._pid != os.getpid():
            return False
        log, words, head, ahead = self._log, self._words, self._words[HEAD], None
        lock = log.lock  # That of this process, by now.
        is_mine = lock.is_mine  # A call of what is no method is quicker in two steps.
        if is_mine() or self._commits.waiting:
            return False
        if head != self._applied:
            ahead = self._ahead
            if ahead is None or ahead.head != head:
                return False
        payload, end, is_awaited = join(encoded), None, False
        try:
            try:
                if not lock.take_now():
                    return False
                lock.writing = payload
                with self._appending:
                    table = self._position
                    if table is not None:
                        end = log.append_one(payload, table if ahead is None else ahead)
                        if end is not None:
                            is_awaited = words[WAITING] >= head
                            self._carry_over(changes, table, ahead, end, head)
                lock.let_go()
            except BaseException:
                lock.return_to(OUTSIDE)
                raise
            if is_awaited:
                ring(words)
        except BaseException:
            lock.return_to(OUTSIDE)  # As in `_append`.
            raise
        finally:
            if notes.waiting:
                self._tell()
        if end is None:
            if log.lock is not lock:
                self._refuse_closed()
                refuse_in_child()
            return False
        if end.offset > self._auto_save.above:
            self._save_soon(end.offset)
        return True

    def _append(self, payload: bytes, changes: Iterable[Change], *, expires: bool = False) -> None:
        """One batch into the log. Of several threads that wait, the first takes the batches of all along."""
        commit = Commit(payload, changes, expires=expires)
        group = [commit]
        commits, lock = self._commits, self._log.lock
        level = lock.level()
        words, is_awaited = self._words, False
        try:
            try:
                if (not self._sync and not level.is_queued and lock.take_now()) or self._take_turn(commit, level):
                    self._prepare_locked()
                    lock.writing = commit
                    if commits.waiting and level.depth == 0:  # Inside lock() nobody else's changes may come between.
                        group = commits.take_all(commit)
                    with self._appending:
                        is_awaited = self._append_locked(group)
            finally:
                commits.leave(commit, lock, level)
            if is_awaited:
                ring(words)
        except BaseException:
            # If an interrupt came while leaving, this leaves for good; otherwise it does nothing.
            commits.leave(commit, lock, level)
            raise
        finally:
            if len(group) > 1:
                commits.tell(group, in_turn=self._sync)
            if notes.waiting:
                self._tell()
        offset = words[HEAD] & OFFSET_MAX
        if offset > self._auto_save.above:
            self._save_soon(offset)

    def _take_turn(self, commit: Commit, level: Level) -> bool:
        """Wait for the write lock; False if meanwhile another thread has written the batch along with its own."""
        commits, lock, timeout_s = self._commits, self._log.lock, self._timeout_s
        left_s = timeout_s if lock.enter_queue_now() else commits.enter(commit, lock, timeout_s)
        if commit.is_done():
            return False
        if self._sync and level.depth == 0:
            commits.gather()  # Before the lock on the file: no other process has to wait for them.
        lock.acquire_queued(left_s, timeout_s)
        return True

    def _append_locked(self, group: list[Commit]) -> bool:
        """Append what they hold, publish it, and do it to the table; whether somebody waits for the news."""
        words, first = self._words, group[0]
        with self._table_lock:
            table, ahead, head = self._position, self._ahead, words[HEAD]
            if table is None or head != (self._applied if ahead is None else ahead.head):
                table, ahead = self._place(), None  # Another thread, or a signal handler, was here in between.
                head = words[HEAD]
        before = table if ahead is None else ahead
        try:
            if len(group) == 1:
                payloads, changes, expires = [first.payload], first.changes, first.expires
            else:
                payloads, changes = [one.payload for one in group], [done for one in group for done in one.changes]
                expires = any(one.expires for one in group)
            if expires:  # Whoever sees the new head must see this, too.
                words[EXPIRING] = before.generation + 1
                self._head = NEVER
            end = self._log.append(payloads, before, sync=self._sync)
        finally:
            # Whatever interrupts the append, it is the page that tells whether it took place.
            first.done = words[HEAD] != head
        is_awaited = words[WAITING] >= head
        self._carry_over(changes, table, ahead, end, head)
        return is_awaited

    def _carry_over(
        self, changes: Iterable[Change], table: Position, ahead: Position | None, end: Position, head: int
    ) -> None:
        """Do to the table what was just appended, unless another thread has read that meanwhile.

        Args:
            changes: What was appended.
            table: Where the table stood.
            ahead: Where it was appended; None: there.
            end: Where the log ends now.
            head: What was published before.
        """
        with self._table_lock:
            if self._position is not table:
                return
            if ahead is not None:
                self._ahead = None if self._is_stuck else end
                return
            self._position = None if self._keeps_all else table
            apply(changes, self._records)
            self._position, self._applied = end, self._words[HEAD]
            self._log.slot.sequence[0] = end.sequence
            if self._head == head:
                self._head = self._applied  # As open as it was, for a part of the price.
            else:
                self._open_gate()

    def _prepare_locked(self) -> None:
        """The log may be appended to, and where it ends is known; or an error says why not."""
        if self._pid <= DETACHED:
            self._refuse_closed()
            refuse_in_child()
        try:
            self._log.prepare()
        except FailedError:
            self._refuse_closed()  # By another thread, just now: so there are no files.
            raise
        if self._words[POISONED] and self._log.is_poisoned():
            self._leave_poisoned_locked()
        # More than once only if a signal handler writes in between.
        while (head := self._words[HEAD]) != self._applied or self._position is None:
            ahead = self._ahead
            if ahead is not None and ahead.head == head:
                break
            with self._table_lock:
                if not self._look_ahead():
                    self._place()

    def begin_in_child(self, *, is_sound: bool) -> None:
        """As there. Who else was writing is not here."""
        self._appending = threading.RLock()
        self._commits = CommitQueue()
        self._auto_save.forget_thread()
        super().begin_in_child(is_sound=is_sound)
