"""How the threads of one handle write: appending, lock, transaction, save, and closing after all that.

Order of locks: save lock, write lock, table lock. The table lock is held for moments, and nobody waits for another lock
while holding it. A thread that holds the write lock for long blocks no reads.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from microdb import forks, notes, snapshot
from microdb.auto_save import AutoSave
from microdb.changes import Change
from microdb.commits import Commit, CommitQueue
from microdb.errors import FailedError, MicroDBError, ReadOnlyError, StorageError, TransactionError
from microdb.keys import Key, PartitionKeys
from microdb.locks import OUTSIDE, Level, held, is_owned, refuse_in_child, refuse_reentry
from microdb.open_table import CLOSED, DETACHED, NEVER, OpenTable
from microdb.save import Encode, save
from microdb.table import apply
from microdb.transaction import Transaction
from microdb.values import Expiring, Record
from microdb.wal.bell import ring
from microdb.wal.codec import NOTHING, encode_delete, join, parts
from microdb.wal.file_log import FileLog
from microdb.wal.format import OFFSET_MAX, Position, split_head
from microdb.wal.header import EXPIRING, HEAD, POISONED, WAITING
from microdb.wal.memory_log import MemoryLog

__all__ = ["Handle"]

_LOOK_EVERY_S: Final = 0.05
_FAR_BYTES: Final = 64 << 10
"""Who is so far behind catches up before it makes others wait for it."""
_DROP_ABOVE_MIN: Final = 2_000
"""Records, of which it does not matter if all have expired."""


class Handle(OpenTable):
    """The machinery under `MicroDB`."""

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
        self._drop_above = _DROP_ABOVE_MIN
        self._attaching = threading.RLock()
        self._appending = threading.RLock()
        with self._telling():
            self._attach(timeout_s)
        forks.register(self)

    # Appending.

    def _commit(self, changes: Sequence[Change], encoded: Sequence[bytes], *, expires: bool = False) -> None:
        """Make changes, all or none; inside a transaction of this thread, at its end.

        `expires` must be true if a record in them is one that expires. Then what has expired is dropped first, if the
        table has doubled since that was last done: so it does not grow for ever, for a few steps a write.
        """
        if expires and self._transaction is None:
            self._approach(self._timeout_s)  # Who only writes would not see how the table grows.
            if len(self._records) > self._drop_above:
                with self._lock_held(self._timeout_s):
                    self._drop_expired_locked()
        if self._pid != os.getpid() or self._read_only or self._transaction is not None:
            self._settle_for_write(self._timeout_s)
            transaction = self._transaction
            if transaction is not None and transaction.is_mine():
                transaction.expires |= expires
                transaction.add(changes, encoded)
                return
        self._append(join(encoded), changes, expires=expires)

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
                    if table is not None and log.lock is lock:
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
            self._auto_save.consider(end.offset, self)
            self._tell()
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
            self._auto_save.consider(offset, self)
            self._tell()

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

    def _leave_poisoned_locked(self) -> None:
        """An fsync failed: what the log holds may not be on the disk. Begin a generation that is."""
        try:
            self._save(snapshot.encode_list, timeout_s=None)
        except (OSError, MicroDBError) as error:
            raise FailedError(
                self._log.name,
                "an earlier write to the disk failed, and the save that must come before the next one failed too "
                f"({error}); reads go on. Mend the disk and write again, or save(another_filename)",
            ) from error

    def _drop_expired_locked(self) -> None:
        """Delete what has expired: from the tables of all, and with the next save from the disk. In no transaction."""
        with self._fresh():
            keys = self._expired(self._clock())
        items = list(map(encode_delete, keys))
        for part in parts(items):
            self._append(join(items[part]), [(key, None) for key in keys[part]])
        self._drop_above = max(_DROP_ABOVE_MIN, 2 * len(self._records))

    # Lock and transaction.

    def _approach(self, timeout_s: float | None) -> None:
        """Catch up if that may take long: better before the lock is held than where others wait for it."""
        if self._words[HEAD] - self._applied > _FAR_BYTES:
            self._settle()
            with self._telling(), self._table_lock:
                self._catch_up(timeout_s)

    @contextlib.contextmanager
    def _lock_held(self, timeout_s: float | None) -> Iterator[None]:
        self._settle_for_write(timeout_s)  # After a fork the lock is another one.
        self._approach(timeout_s)
        try:
            with held(self._log.lock, timeout_s):
                yield
        finally:
            if notes.waiting:
                self._tell()

    @contextlib.contextmanager
    def _transact(self, timeout_s: float | None) -> Iterator[None]:
        outer = self._own_view()
        if outer is not None:
            mark = len(outer.pairs)
            try:
                yield
            except BaseException:
                outer.rewind(mark)
                raise
            return
        with self._lock_held(timeout_s):
            self._prepare_locked()
            transaction = Transaction(self._records)
            try:
                try:
                    # A reader that saw none must not open the gate after this; before, it may have loaded it anew.
                    with self._table_lock:
                        self._transaction = transaction
                        self._head = NEVER
                        self._reflect()
                    yield
                finally:
                    self._end_transaction(transaction)
            except BaseException:
                self._end_transaction(transaction)  # As in `held`: twice does no harm.
                raise
            if transaction.is_inherited():
                raise TransactionError("this transaction began before a fork and is the parent's; nothing was written")
            if transaction.pairs:
                changes, encoded = zip(*transaction.pairs, strict=True)
                self._reach(max(transaction.fences.values(), default=0))
                self._append(join(encoded), changes, expires=transaction.expires)

    def _end_transaction(self, transaction: Transaction) -> None:
        # First of all, and without waiting for the table: whatever interrupts that must not leave it open.
        if self._transaction is transaction:
            self._transaction = None
        with self._table_lock:
            self._open_gate()

    def _next_fence(self, key: Key, last: int) -> int:
        """A number above the last fence of a record, and above all that it had before it was deleted. Under the lock.

        For there is none above the sequence by then. A transaction adds one to that, however many fences it gives.
        """
        with self._fresh():
            fence = max(last, self._position.sequence if self._position is not None else 0) + 1
            view = self._own_view()
            if view is not None:
                fence = view.fences[key] = max(fence, view.fences.get(key, 0) + 1)
            return fence

    def _reach(self, fence: int) -> None:
        """See that the next change has a sequence that is at least as high: what stands before it changes nothing."""
        with self._fresh():
            sequence = self._position.sequence if self._position is not None else 0
        for _ in range(fence - sequence - 1):
            self._append(NOTHING, ())

    def _refuse_in_transaction(self, what: str) -> None:
        transaction = self._transaction
        if transaction is not None and transaction.is_mine():
            raise TransactionError(f"{what} inside a transaction; do it when the transaction has ended")

    # Saving.

    @contextlib.contextmanager
    def kept_open(self) -> Iterator[None]:
        """See `save.Source`."""
        with self._appending:
            self._refuse_closed()
            yield

    def capture(self) -> tuple[Sequence[Record], Position]:
        """See `save.Source`."""
        self._refuse_closed()
        self._log.prepare()
        if not self._log.is_poisoned():
            with contextlib.suppress(StorageError):  # To save is the remedy for a log that is full, or was cut.
                self._drop_expired_locked()
        with self._table_lock:
            # The position first: what a signal handler writes in between is then replayed, and not left out.
            position = self._place()
            return list(self._records.values()), position

    def expiring(self) -> list[Expiring]:
        """See `save.Source`."""
        words = self._log.words
        if words[EXPIRING] <= split_head(words[HEAD])[0]:
            return []  # Without catching up, while others wait.
        with self._table_lock:
            self._place()
            return [record for record in self._records.values() if type(record) is Expiring]

    def log_bytes(self) -> int:
        """How long the log is now."""
        with self._fresh():
            return 0 if self._position is None else self._position.offset

    def _save(self, encode: Encode, *, timeout_s: float | None, save_timeout_s: float | None = None) -> None:
        if not isinstance(self._log, FileLog):
            raise TypeError("a table in memory has no file of its own; save(filename)")
        with self._telling(), self._noticing_a_close():
            save(self, self._log, encode, timeout_s=timeout_s, save_timeout_s=save_timeout_s)

    # Opening, closing, forking.

    def _settle_for_write(self, timeout_s: float | None) -> None:
        """See that this handle may write, and has files and locks of its own in this process."""
        self._settle()
        if self._read_only:
            raise ReadOnlyError("this handle was opened with read_only=True; open another one to write")
        transaction = self._transaction
        if transaction is not None and transaction.is_inherited() and transaction.is_mine():
            # Not to be found out by waiting for the lock, which its parent holds.
            raise TransactionError("inside a transaction that began before a fork, and is the parent's")
        if self._pid == DETACHED:
            refuse_reentry(self._attaching)
            with self._attaching:
                if self._pid == DETACHED:
                    self._attach(timeout_s)

    def close(self) -> None:
        """Let go of the files. A save in the background, and a write of another thread, is waited for.

        Closing twice does nothing. What was written is in the log already: closing saves nothing.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["id"])
        >>> mdb.close()
        >>> len(mdb)
        Traceback (most recent call last):
        microdb.errors.ClosedError: this handle is closed; open another one

        Raises:
            TransactionError: The calling thread is inside ``lock()`` or ``transaction()``.
            ReentrantError: A signal handler has interrupted a read for which such a save or write may be waiting.
        """
        if self._pid == CLOSED:
            return
        self._settle()
        if self._log.lock.is_mine():
            raise TransactionError("close() inside lock() or transaction(); close it when that has ended")
        notes.add(notes.DEBUG, "%s: closing", self._log.name)
        self._tell()  # While whoever hears of it may still use this handle.
        if self._auto_save.is_running():
            self._log.lock.check_may_wait()
        self._auto_save.wait()
        has_table = is_owned(self._table_lock)
        try:
            while True:
                while not self._appending.acquire(timeout=_LOOK_EVERY_S):
                    self._log.lock.check_may_wait()
                if has_table or self._table_lock.acquire(blocking=False):
                    break
                # A signal handler may write amid the read that has the table: so not both at once.
                self._appending.release()
                with self._table_lock:
                    pass
            self._close()
        finally:
            # Also if an interrupt came just as one was taken.
            if not has_table and is_owned(self._table_lock):
                self._table_lock.release()
            if is_owned(self._appending):
                self._appending.release()

    def begin_in_child(self, *, is_sound: bool) -> None:
        """As there. A transaction stays, to refuse what its block does here."""
        self._attaching = threading.RLock()
        self._appending = threading.RLock()
        self._commits = CommitQueue()
        self._auto_save.forget_thread()
        if is_sound and self._transaction is not None and not self._transaction.is_mine():
            self._transaction = None  # Its thread is not here, and a new one may get the same number.
        super().begin_in_child(is_sound=is_sound)
