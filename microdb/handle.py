"""One open table: how its reads stay fresh, how its threads append, what a fork does to it. No bytes, no file names.

Order of locks: save lock, write lock, table lock. The table lock is held for moments, and nobody waits for another lock
while holding it. A thread that holds the write lock for long blocks no reads.

The gate: `_head` is the head that the table reflects, if a read may go straight to the table; otherwise it is NEVER,
which no word of the page equals. So a read compares one word, and all that is rare hides behind the inequality: news
from others, a transaction of one's own thread, a closed handle.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Final

from microdb import collecting, forks, snapshot
from microdb.auto_save import AutoSave
from microdb.changes import Change
from microdb.commits import Commit, CommitQueue
from microdb.errors import (
    ClosedError,
    CorruptError,
    FailedError,
    MicroDBError,
    ReadOnlyError,
    TransactionError,
)
from microdb.keys import Key, PartitionKeys
from microdb.locks import held, refuse_in_child, refuse_reentry
from microdb.recovery import recover
from microdb.save import Encode, save
from microdb.table import Records, apply
from microdb.transaction import Transaction
from microdb.values import Record
from microdb.wal.codec import join
from microdb.wal.file_log import FileLog
from microdb.wal.format import Payload, Position
from microdb.wal.header import HEAD, HEADER_BYTES
from microdb.wal.log import GoneError, Start
from microdb.wal.log_file import changes_in
from microdb.wal.memory_log import MemoryLog

__all__ = ["Handle"]

_LOG: Final = logging.getLogger("microdb")

NEVER: Final = -1
_CLOSED: Final = -1
_DETACHED: Final = 0
_LOOK_EVERY_S: Final = 0.05
_MANY: Final = 1_000
"""Payloads; of fewer the garbage collector has not much to do."""
_IS_CLOSED: Final = "this handle is closed; open another one"
_CLOSED_WORDS: Final = memoryview(bytes(HEADER_BYTES)).cast("Q")


class Handle:
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
    ) -> None:
        self._log = log
        self._keys = keys
        self._sync = sync
        self._read_only = read_only
        self._timeout_s = timeout_s
        self._auto_save = AutoSave(log, auto_save_bytes, timeout_s)
        self._commits = CommitQueue()
        self._transaction: Transaction | None = None
        self._table_lock = threading.RLock()
        self._records: Records = {}
        self._position: Position | None = None
        self._applied = self._head = NEVER
        self._words = _CLOSED_WORDS
        self._pid = _DETACHED
        self._attaching = threading.RLock()
        self._appending = threading.Lock()
        self._attach(timeout_s)
        forks.register(self)

    # Fresh reads.

    def _find(self, key: Key) -> Record | None:
        """The stored record as of now, by the long way."""
        self._settle()
        with self._table_lock:
            records = self._catch_up()
            view = self._own_view()
            return records.get(key) if view is None else view.get(key)

    @contextlib.contextmanager
    def _whole(self) -> Iterator[Records]:
        """The table as of now, which nobody changes meanwhile."""
        self._settle()
        with self._table_lock:
            records = self._catch_up()
            view = self._own_view()
            yield records if view is None else view.whole()

    def _own_view(self) -> Transaction | None:
        transaction = self._transaction
        return (
            transaction
            if transaction is not None and transaction.is_mine() and not transaction.is_inherited()
            else None
        )

    def _catch_up(self) -> Records:
        """Apply what others have published, and give the table. Under the table lock.

        A signal handler that comes in between may go further, or close the handle: it finds the table whole, or makes
        a new one, and nothing more is applied to what it leaves.
        """
        if self._pid != _CLOSED and not self._log.is_followed() and self._log.must_attach_again():
            self._position = None
            self._attach(self._timeout_s)
        while True:
            head, position, records = self._words[HEAD], self._position, self._records
            if self._pid == _CLOSED:
                raise ClosedError(_IS_CLOSED)
            if head == self._applied:
                return records
            if position is None:
                self._load_anew()
                continue
            try:
                payloads, end = self._log.read(position, head)
            except GoneError:
                self._load_anew()
                continue
            except CorruptError:
                if self._position is position:
                    raise
                continue
            if self._apply(payloads, position, end, head):
                return records

    def _apply(self, payloads: Sequence[Payload], after: Position, end: Position, head: int) -> bool:
        """Go on from a position to the end of some payloads; False if a signal handler has left it meanwhile."""
        records = self._records
        if self._position is not after:
            return False
        # Without a position the next one to catch up loads the table anew: so whoever is interrupted in the middle of
        # a batch leaves nothing half done. A table in memory has nothing to be loaded from, and nobody to differ from.
        self._position = None if self._log.keeps_all else after
        with collecting.paused() if len(payloads) > _MANY else contextlib.nullcontext():
            for changes in changes_in(payloads, self._keys, self._log.name):
                apply(changes, records)
        if self._records is not records:
            return False
        self._position, self._applied = end, head
        self._reflect()
        return True

    def _reflect(self) -> None:
        """Let reads go to the table as it is now."""
        if self._transaction is not None:
            self._transaction.rebase(self._records)
        self._open_gate()

    def _open_gate(self) -> None:
        is_open = self._transaction is None and self._pid != _CLOSED and self._log.is_followed()
        self._head = self._applied if is_open else NEVER

    def _load(self, start: Start) -> None:
        """Build the table anew. Under the table lock."""
        records: Records = {}
        with collecting.paused():
            if start.snapshot is not None:
                records = snapshot.load(start.snapshot, self._log.name, self._keys)
            start.overlay.lay_on(records)
        self._records, self._position, self._applied = records, start.end, start.head
        self._reflect()

    # Appending.

    def _commit(self, changes: Sequence[Change], encoded: Sequence[bytes]) -> None:
        """Make changes, all or none; inside a transaction of this thread, at its end."""
        if self._pid != os.getpid() or self._read_only or self._transaction is not None:
            self._settle_for_write(self._timeout_s)
            transaction = self._transaction
            if transaction is not None and transaction.is_mine():
                transaction.add(changes, encoded)
                return
        self._append(join(encoded), changes)

    def _append(self, payload: bytes, changes: Sequence[Change]) -> None:
        """One batch into the log. Of several threads that wait, the first takes the batches of all along."""
        commit = Commit(payload, changes)
        group = [commit]
        commits, lock, timeout_s = self._commits, self._log.lock, self._timeout_s
        level = lock.level()
        try:
            try:
                left_s = timeout_s if lock.enter_queue_now() else commits.enter(commit, lock, timeout_s)
                if commit.leader is None or not commit.is_done():
                    lock.acquire_queued(left_s, timeout_s)
                    self._prepare_locked()
                    lock.writing = commit
                    if commits.waiting and level.depth == 0:  # Inside lock() nobody else's changes may come between.
                        group = commits.take_all(commit)
                    with self._appending:
                        self._append_locked(group)
            finally:
                commits.leave(commit, lock, level)
        except BaseException:
            # If an interrupt came while leaving, this leaves for good; otherwise it does nothing.
            commits.leave(commit, lock, level)
            raise
        finally:
            for follower in group[1:]:
                follower.wake()
        position = self._position
        if position is not None and position.offset > self._auto_save.above:
            self._auto_save.consider(position.offset, self)

    def _append_locked(self, group: list[Commit]) -> None:
        before, words = self._position, self._words
        if before is None or self._pid == _CLOSED:  # By another thread, in between.
            raise ClosedError(_IS_CLOSED)
        head = words[HEAD]
        try:
            payloads = (group[0].payload,) if len(group) == 1 else [commit.payload for commit in group]
            end = self._log.append(payloads, before, sync=self._sync)
        finally:
            # Whatever interrupts the append, it is the page that tells whether it took place.
            group[0].done = words[HEAD] != head
        with self._table_lock:
            if self._position is not before:
                return  # Another thread read in between, and has caught up with the log.
            self._position = None if self._log.keeps_all else before
            for commit in group:
                apply(commit.changes, self._records)
            self._position, self._applied = end, words[HEAD]
            self._open_gate()

    def _prepare_locked(self) -> None:
        """The table is up to date and the log may be appended to, or an error says why not."""
        if self._pid == _CLOSED:
            raise ClosedError(_IS_CLOSED)
        if self._pid == _DETACHED:
            refuse_in_child()
        self._log.prepare()
        if self._log.is_poisoned():
            self._leave_poisoned_locked()
        # More than once only if a signal handler writes in between.
        while self._words[HEAD] != self._applied or self._position is None:
            with self._table_lock:
                self._applied = NEVER if self._position is None else self._applied
                self._catch_up()

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

    # Lock and transaction.

    @contextlib.contextmanager
    def _lock_held(self, timeout_s: float | None) -> Iterator[None]:
        self._settle_for_write(timeout_s)  # After a fork the lock is another one.
        with held(self._log.lock, timeout_s):
            yield

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
                    # A reader that saw none must not open the gate after this.
                    with self._table_lock:
                        self._transaction = transaction
                        self._head = NEVER
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
                self._append(join(encoded), changes)

    def _end_transaction(self, transaction: Transaction) -> None:
        # First of all, and without waiting for the table: whatever interrupts that must not leave it open.
        if self._transaction is transaction:
            self._transaction = None
        with self._table_lock:
            self._open_gate()

    def _refuse_in_transaction(self, what: str) -> None:
        transaction = self._transaction
        if transaction is not None and transaction.is_mine():
            raise TransactionError(f"{what} inside a transaction; do it when the transaction has ended")

    # Saving.

    def freshen(self) -> None:
        """See `save.Source`."""
        with self._whole():
            pass

    def capture(self) -> tuple[Sequence[Record], Position]:
        """Under the write lock: all records as of now, and the position that they reflect."""
        if self._pid == _CLOSED:
            raise ClosedError(_IS_CLOSED)
        self._log.prepare()
        with self._table_lock:
            if self._position is None:
                self._applied = NEVER
            self._catch_up()
            if self._position is None:
                raise AssertionError("whoever has caught up has a position")
            # The position first: what a signal handler writes in between is then replayed, and not left out.
            position = self._position
            return list(self._records.values()), position

    def log_bytes(self) -> int:
        """How long the log is now."""
        with self._whole():
            return 0 if self._position is None else self._position.offset

    def _save(self, encode: Encode, *, timeout_s: float | None, save_timeout_s: float | None = None) -> None:
        if not isinstance(self._log, FileLog):
            raise TypeError("a table in memory has no file of its own; save(filename)")
        save(self, self._log, encode, timeout_s=timeout_s, save_timeout_s=save_timeout_s)

    # Opening, closing, forking.

    def _settle(self) -> None:
        """See that this handle is open, and knows in which process it is. Reads need no more than that."""
        if self._pid == os.getpid():
            return
        if self._pid == _CLOSED:
            raise ClosedError(_IS_CLOSED)
        if self._pid != _DETACHED:
            forks.notice(self, lambda: self._pid not in (os.getpid(), _DETACHED))

    def _settle_for_write(self, timeout_s: float | None) -> None:
        """See that this handle may write, and has files and locks of its own in this process."""
        self._settle()
        if self._read_only:
            raise ReadOnlyError("this handle was opened with read_only=True; open another one to write")
        transaction = self._transaction
        if transaction is not None and transaction.is_inherited() and transaction.is_mine():
            # Not to be found out by waiting for the lock, which its parent holds.
            raise TransactionError("inside a transaction that began before a fork, and is the parent's")
        if self._pid == _DETACHED:
            refuse_reentry(self._attaching)
            with self._attaching:
                if self._pid == _DETACHED:
                    self._attach(timeout_s)

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

    def _load_anew(self) -> None:
        """The table's position is lost, or what follows it is gone. Under the table lock."""
        self._position = None
        self._load(self._log.load(None))

    def close(self) -> None:
        """Let go of the files. A save in the background, and a write of another thread, is waited for.

        Closing twice does nothing. What was written is in the log already: closing saves nothing.

        Raises:
            TransactionError: The calling thread is inside ``lock()`` or ``transaction()``.
            ReentrantError: A signal handler has interrupted a read for which such a save or write may be waiting.
        """
        if self._pid == _CLOSED:
            return
        self._settle()
        if self._log.lock.is_mine():
            raise TransactionError("close() inside lock() or transaction(); close it when that has ended")
        if self._auto_save.is_running():
            self._log.lock.check_may_wait()
        self._auto_save.wait()
        while not self._appending.acquire(timeout=_LOOK_EVERY_S):
            self._log.lock.check_may_wait()
        try:
            with self._table_lock:
                self._close()
        finally:
            self._appending.release()

    def _close(self) -> None:
        let_go = self._log.close if self._pid == os.getpid() else self._log.detach
        try:
            self._head = NEVER
            self._words = _CLOSED_WORDS
            self._position = None
            self._pid = _CLOSED
            let_go()
        except BaseException:
            # Whatever interrupts this: a handle that nobody can close any more must not look alive.
            self._head = NEVER
            self._pid = _CLOSED
            let_go()
            raise
        self._records = {}

    def stop_for_fork(self) -> None:
        """See `forks`."""
        self._table_lock.acquire()

    def go_on_in_parent(self) -> None:
        """See `forks`."""
        self._table_lock.release()

    def begin_in_child(self, *, is_sound: bool) -> None:
        """Keep the table and its position, if no other thread was just changing it.

        Files, locks and threads are the parent's. A transaction stays, to refuse what its block does here.
        """
        self._table_lock = threading.RLock()
        self._attaching = threading.RLock()
        self._appending = threading.Lock()
        self._commits = CommitQueue()
        self._auto_save.forget_thread()
        if self._pid == _CLOSED:
            return
        self._pid = _DETACHED
        self._log.detach()
        if not is_sound:
            self._position = None
            self._applied = NEVER
        self._open_gate()
