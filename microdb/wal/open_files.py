"""The files of a database as one handle has them open: the lock, the page, and with them who else is there.

What the log holds is the business of `file_log`.
"""

import contextlib
import os
import time
from collections.abc import Callable
from typing import Final, Self

from microdb.errors import CorruptError, FailedError
from microdb.files import File, Files
from microdb.keys import PartitionKeys
from microdb.locks import WriteLock, held, shared_write_lock
from microdb.paths import Paths
from microdb.presence import be_absent, become_present, holders, is_alone
from microdb.wal import header
from microdb.wal.format import split_head
from microdb.wal.generations import HISTORY_BYTES, Generations
from microdb.wal.header import DIRTY, HEAD, HEADER_BYTES, LOCK_WAITS, OWNER, Slot
from microdb.wal.log import GoneError, Start
from microdb.wal.log_file import LogFile
from microdb.wal.reader import read_frames

__all__ = ["OpenFiles", "check_place", "replaced"]

_LOOK_EVERY_S: Final = 1.0


class OpenFiles:
    """What a handle has open, from `attach` to `close`, or to the `detach` of a forked child.

    Attributes:
        name: The path of the snapshot.
        words: The page.
        lock: The write lock, shared by all handles of this process on this database.
        paths: Its file names.
        files: The file system.
        generations: Its logs.
        slot: Where this handle tells how far it has come.
        keys: The partition keys.
        read_only: Whether this handle must write nothing.
    """

    def __init__(
        self,
        paths: Paths,
        keys: PartitionKeys,
        *,
        files: Files,
        read_only: bool,
        history_bytes: int = HISTORY_BYTES,
    ) -> None:
        self.name = paths.snapshot
        self.paths = paths
        self.files = files
        self.keys = keys
        self.read_only = read_only
        self.words = memoryview(bytearray(HEADER_BYTES)).cast("Q")
        self.lock = WriteLock()
        self.header_file: File | None = None
        self._lock_file: File | None = None
        self.slot = Slot()
        self.generations = Generations(paths, keys, files, read_only=read_only, history_bytes=history_bytes)
        self._look_at_s = 0.0
        self._is_followed = True
        self._home: tuple[int, int] | None = None

    def attach(self, recover: Callable[[Self, File | None], Start], timeout_s: float | None) -> Start | None:
        """Open the files and be present. Whoever finds nobody else alive recovers first, and gets the content with it.

        `recover` makes files and page agree; without a header file there is only a snapshot to read. Waits for the
        write lock, at most `timeout_s` seconds; None: for ever.
        """
        self._pid = os.getpid()
        if self.read_only:
            return self._attach_read_only(recover, timeout_s)
        first = self._home is None
        if first and self.files.make_folder(self.paths.folder):
            self.files.sync_folder(self.paths.parent)
        self._lock_file = self.files.open(self.paths.lock, write=True, create=first)
        self.lock = shared_write_lock(self._lock_file)
        self.lock.tell_owner_in(self._owner_words())
        with held(self.lock, timeout_s):
            self.header_file = header_file = self.files.open(self.paths.header, write=True, create=first)
            if not first and header_file.identity().file != self._home:
                raise replaced(self.paths.header)
            self._home = header_file.identity().file
            try:
                return self._join(recover, header_file)
            except BaseException:
                # An error keeps its traceback, and with it this file: it must not look alive.
                self.slot.free()
                be_absent(header_file)
                raise

    def _join(self, recover: Callable[[Self, File | None], Start], header_file: File) -> Start | None:
        present = self.pids()
        alone = is_alone(header_file)
        if alone:
            header.create(header_file)
        self.words = header.open_words(header_file, writable=True)
        self.look()
        start = recover(self, header_file) if alone else None
        if not alone and not self.words[DIRTY]:
            self._check_end()
        become_present(header_file)
        self.lock.tell_owner_in(self.words[OWNER:], self.words[LOCK_WAITS:])
        self.slot.claim(self.words, present)
        return start

    def pids(self) -> tuple[int, ...]:
        """The processes that are present."""
        identity = self.files.identity(self.paths.header)
        return () if identity is None else holders(identity.file)

    def _check_end(self) -> None:
        """Under the write lock, while others are alive: raise if the page does not lead to the end of the log."""
        generation, offset = split_head(self.words[HEAD])
        log = self._current(generation)
        if log.file.size() > offset:
            self._check_behind(log, offset)

    def _check_behind(self, log: LogFile, offset: int) -> None:
        """Raise if sound frames follow the head: they were acknowledged, and it is the head that went back."""
        start = log.header.start
        end = read_frames(log.file.read_at(start.offset, log.file.size()), start).end
        if end.offset > offset:
            raise CorruptError(
                self.paths.header,
                f"it says that {log.file.path} ends at {offset}, and it goes on to {end.offset}. Close all handles, "
                "and the next to open it mends it",
                offset=8 * HEAD,
                sequence=end.sequence,
            )

    def _attach_read_only(self, recover: Callable[[Self, File | None], Start], timeout_s: float | None) -> Start | None:
        """As `attach`, writing nothing. With nobody else alive it stays unseen: a writer that comes must recover."""
        self._is_followed = False
        try:
            self._lock_file = self.files.open(self.paths.lock)
            header_file = self.files.open(self.paths.header)
        except FileNotFoundError:
            return recover(self, None)
        self.lock = shared_write_lock(self._lock_file)
        self.lock.tell_owner_in(self._owner_words())
        with held(self.lock, timeout_s):
            alone = is_alone(header_file)
            try:
                if header_file.size() < HEADER_BYTES:
                    return recover(self, None)
                self.words = header.open_words(header_file, writable=False)
                self.header_file = header_file
                # The head of an earlier run of the machine may be reached again, with other frames before it.
                self._is_followed = not alone or header.is_current(self.words, header_file, self.files.boot_id())
                if alone:
                    return recover(self, header_file)
            finally:
                if alone:
                    be_absent(header_file)
        return None

    def _owner_words(self) -> memoryview | None:
        """Where the page says who owns the lock, for the message of a time-out; None where there is no page yet."""
        with contextlib.suppress(FileNotFoundError):
            file = self.files.open(self.paths.header)
            if file.size() >= HEADER_BYTES:
                return file.map_words(HEADER_BYTES, writable=False)[OWNER:]
        return None

    def is_followed(self) -> bool:
        """Whether the page can be relied on. A read-only handle may have found none, or one that nobody keeps up."""
        return self._is_followed

    def follow(self) -> bool:
        """Follow the page from now on, if somebody has come to keep it up; whether that is so. A few system calls.

        Waits for nobody: who holds the write lock may be waiting for the table that is to be read.
        """
        boot_id = self.files.boot_id()
        if self.header_file is not None:
            self._is_followed = header.is_current(self.words, self.header_file, boot_id)
            return self._is_followed
        try:
            lock_file, header_file = self.files.open(self.paths.lock), self.files.open(self.paths.header)
            words = header.open_words(header_file, writable=False)
        except (FileNotFoundError, CorruptError):  # Nobody has come, or somebody is just making it.
            return False
        if header.is_current(words, header_file, boot_id):
            self.lock = shared_write_lock(lock_file)
            self.lock.tell_owner_in(words[OWNER:])
            self._lock_file, self.header_file, self.words = lock_file, header_file, words
            self._is_followed = True
        return self._is_followed

    def detach(self) -> None:
        """Let go of all files without unlocking: an flock belongs to the open file, which a fork shares.

        A thread that the fork left behind may still refer to them, so they are closed, not dropped.
        """
        logs = (self.generations.last, self.generations.before)
        for file in (self._lock_file, self.header_file, *(log.file for log in logs if log is not None)):
            if file is not None:
                file.close()
        self.slot.free()
        self._drop()

    def _drop(self) -> None:
        self.header_file = None
        self._lock_file = None
        self.generations.drop()
        self.lock = WriteLock()

    def close(self) -> None:
        """Be absent, and drop all files: they are closed when no thread is using them any more."""
        self.slot.free()
        if self.header_file is not None:
            # The mapping holds a duplicate of the descriptor, and with it the lock, until the last reference is gone.
            be_absent(self.header_file)
        self._drop()
        self.words = memoryview(bytes(HEADER_BYTES)).cast("Q")

    # Seeing whether they are still those of the path.

    def look(self) -> None:
        """Raises FailedError if lock and page are no longer those of the path."""
        for file, path in ((self._lock_file, self.paths.lock), (self.header_file, self.paths.header)):
            check_place(self.files, file, path)

    def _look_again(self) -> None:
        """As `look`, at the log too; not to be done again within a second. Under the lock."""
        self.look()
        generation = split_head(self.words[HEAD])[0]
        last = self.generations.last
        if last is not None and last.generation == generation:
            check_place(self.files, last.file, self.paths.log(generation))
        self._look_at_s = time.monotonic() + _LOOK_EVERY_S

    def _current(self, generation: int) -> LogFile:
        try:
            return self.generations.get(generation)
        except GoneError:
            raise replaced(self.paths.log(generation)) from None


def check_place(files: Files, file: File | None, path: str) -> None:
    """Raises FailedError if it is no longer an open file that stands at a path."""
    found = files.identity(path)
    if file is None or found is None or found.file != file.identity().file:
        raise replaced(path)


def replaced(path: str) -> FailedError:
    """What to raise when something else stands at a path, or nothing."""
    reason = (
        "removed or replaced while this process uses it; nothing was written. Close this handle and open another one"
    )
    return FailedError(path, reason)
