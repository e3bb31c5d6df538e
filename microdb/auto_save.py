"""Save in the background when the log has outgrown its bounds."""

import contextlib
import threading
import traceback
from collections.abc import Iterator, Sequence
from typing import Protocol

from microdb import notes, snapshot
from microdb.errors import ClosedError, GridError, LockTimeoutError, MicroDBError, shown
from microdb.save import Encode, Source, save
from microdb.values import Record
from microdb.wal.file_log import FileLog
from microdb.wal.memory_log import MemoryLog

__all__ = ["AutoSave", "Growing"]


class Growing(Source, Protocol):
    """What an automatic save asks of the handle whose table it writes."""

    def log_bytes(self) -> int:
        """How long the log is now."""
        ...


class AutoSave:
    """The automatic saves of one handle: one thread at a time, when the log is longer than twice the snapshot, too.

    And longer than twice what its last save left in the log: what that carries over may be longer than a snapshot is.

    Attributes:
        above: The offset in the log beyond which `consider` is worth a call.
    """

    def __init__(self, log: FileLog | MemoryLog, min_bytes: int | None, timeout_s: float | None) -> None:
        """Save above `min_bytes`; None: never.

        Raises:
            TypeError: That is no number of bytes.
            ValueError: It is below 0.
        """
        if min_bytes is not None and (isinstance(min_bytes, bool) or not isinstance(min_bytes, int)):
            raise TypeError(
                f"auto_save_bytes is a number of bytes, found {shown(min_bytes):.60}; never: auto_save=False"
            )
        if min_bytes is not None and min_bytes < 0:
            raise ValueError(f"auto_save_bytes is a number of bytes, found {shown(min_bytes):.60}")
        self._log = log
        self._min_bytes = min_bytes
        self._timeout_s = timeout_s
        self._starting = threading.RLock()
        self._thread: threading.Thread | None = None
        self._left_bytes = 0
        self.above = min_bytes if min_bytes is not None else float("inf")

    def consider(self, offset: int, growing: Growing) -> None:
        """Begin a save if a log that ends at `offset` is worth one. The write before it was made: errors are logged."""
        try:
            if self._min_bytes is not None and isinstance(self._log, FileLog):
                self._consider(self._log, self._min_bytes, offset, growing)
        except (OSError, RuntimeError, MemoryError) as error:
            notes.add(notes.WARNING, "%s: no automatic save (%s); the log goes on growing", self._log.name, str(error))

    def _consider(self, log: FileLog, min_bytes: int, offset: int, growing: Growing) -> None:
        identity = log.files.identity(log.paths.snapshot)
        bound = max(min_bytes, 2 * self._left_bytes, 2 * identity.size if identity is not None else 0)
        with self._starting:
            if offset <= bound:
                self.above = bound
            elif not self.is_running():
                self.above = offset + min_bytes
                thread = threading.Thread(target=self._run, args=(log, min_bytes, growing), name="microdb-save")
                self._thread = thread  # First, or an interrupt would leave a save for which nobody waits.
                thread.start()

    def is_running(self) -> bool:
        """Whether a save is going on in the background."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Return once no save is going on in the background."""
        thread = self._thread
        if thread is not None and thread.ident is not None and thread is not threading.current_thread():
            thread.join()

    def forget_thread(self) -> None:
        """In the child of a fork, where no thread of its parent goes on."""
        self._starting = threading.RLock()
        self._thread = None

    def _run(self, log: FileLog, min_bytes: int, growing: Growing) -> None:
        try:
            if growing.log_bytes() <= min_bytes:
                return  # Another process has saved meanwhile.
            save(growing, log, _same_form(log), timeout_s=self._timeout_s, save_timeout_s=0)
            self._left_bytes = growing.log_bytes()
            self.above = min_bytes
        except (LockTimeoutError, ClosedError) as error:
            notes.add(notes.DEBUG, "%s: no automatic save: %s", log.name, str(error))
        except (OSError, MicroDBError):
            # As text: the traceback itself would keep its frames, and with them files, in whoever keeps the record.
            reason = traceback.format_exc()
            notes.add(notes.WARNING, "%s: the automatic save failed; the log goes on growing\n%s", log.name, reason)
        finally:
            notes.tell()


def _same_form(log: FileLog) -> Encode:
    """An encoder to the form that the snapshot has, if the records still fit it."""

    def encode(records: Sequence[Record]) -> Iterator[bytes]:
        """See `snapshot.encode_grid` and `snapshot.encode_list`."""
        found = log.files.open_if_exists(log.paths.snapshot)
        if found is not None and snapshot.is_grid(found.read_at(0, 64)):
            with contextlib.suppress(GridError):
                return snapshot.encode_grid(records)
        return snapshot.encode_list(records)

    return encode
