"""How the threads of one handle write together: commit, lock, transaction, save, and closing after all that."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from microdb import forks, notes, snapshot
from microdb.appending import Appending
from microdb.changes import Change
from microdb.errors import FailedError, MicroDBError, ReadOnlyError, StorageError, TransactionError
from microdb.keys import Key, PartitionKeys
from microdb.locks import held, is_owned, refuse_reentry
from microdb.open_table import CLOSED, DETACHED, NEVER
from microdb.save import Encode, save
from microdb.transaction import Transaction
from microdb.values import Expiring, Record
from microdb.wal.codec import NOTHING, encode_delete, join, parts
from microdb.wal.file_log import FileLog
from microdb.wal.format import Position, split_head
from microdb.wal.header import EXPIRING, HEAD
from microdb.wal.memory_log import MemoryLog

__all__ = ["Handle"]

_LOOK_EVERY_S: Final = 0.05
_FAR_BYTES: Final = 64 << 10
"""Who is so far behind catches up before it makes others wait for it."""
_DROP_ABOVE_MIN: Final = 2_000
"""Records, of which it does not matter if all have expired."""


class Handle(Appending):
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
        super().__init__(
            log,
            keys,
            sync=sync,
            read_only=read_only,
            auto_save_bytes=auto_save_bytes,
            timeout_s=timeout_s,
            clock=clock,
        )
        self._drop_above = _DROP_ABOVE_MIN
        self._attaching = threading.RLock()
        with self._telling():
            self._attach(timeout_s)
        forks.register(self)

    # Committing.

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

    def _leave_poisoned_locked(self) -> None:
        """As there."""
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

    def _save_soon(self, offset: int) -> None:
        """As there. The write before it was made: what fails is logged."""
        self._auto_save.consider(offset, self)
        self._tell()

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
        if is_sound and self._transaction is not None and not self._transaction.is_mine():
            self._transaction = None  # Its thread is not here, and a new one may get the same number.
        super().begin_in_child(is_sound=is_sound)
