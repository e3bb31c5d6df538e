"""The log in files, shared by every process that opens the same path.

Invariants, under the write lock and with the dirty word clear:

* the current log is named ``.log`` and ends at the head; what stands behind it was never acknowledged;
* a log under its final name is whole and was fsynced; its snapshot hash binds it to the one snapshot that it follows;
* logs overlap or join by sequence, and never leave a gap.
"""

import contextlib
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from microdb import notes
from microdb.errors import (
    ConflictError,
    CorruptError,
    FailedError,
    LockTimeoutError,
    MicroDBError,
    ReentrantError,
    StorageError,
)
from microdb.files import File
from microdb.locks import REENTRANT, held, refuse_in_child
from microdb.wal import header
from microdb.wal.bell import ring
from microdb.wal.codec import is_carried
from microdb.wal.format import (
    DURABLE_BEFORE,
    FRAME_BYTES_MIN,
    HASH_BYTES,
    NO_SNAPSHOT,
    OFFSET_BITS,
    OFFSET_MAX,
    Payload,
    Position,
    head_of,
    split_head,
)
from microdb.wal.header import DIRTY, DURABLE, EXPIRING, HEAD, LAST, POISONED, REPAIRS, SAVES, WAITING
from microdb.wal.log import GoneError, Start
from microdb.wal.log_file import LogFile, end_from, frames_to, open_log, overlay_of, snapshot_hash
from microdb.wal.open_files import OpenFiles, check_place, replaced
from microdb.wal.reader import read_frames
from microdb.wal.writer import write_frame, write_frames

__all__ = ["FileLog"]

_RETRY_S: Final = 0.001


class _Pair(NamedTuple):
    """A log, and the snapshot found beside it, opened at one moment."""

    log: LogFile
    snapshot: File | None
    head: int


class FileLog(OpenFiles):
    """A `Log` in the folder beside the snapshot."""

    keeps_all: Final = True

    # Reading.

    def load(self, timeout_s: float | None) -> Start:
        """The content as of now. Waits for no writer, unless a save is just replacing the snapshot.

        Raises:
            ConflictError: The snapshot is not the one that the log follows.
            LockTimeoutError: It is being replaced, for longer than `timeout_s` seconds; None: however long.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self.generations.before = None  # It was open for who would have gone on from there.
        while True:
            head = self.words[HEAD]
            try:
                return self._read_pair(self._open_pair())
            except (ConflictError, GoneError) as error:
                # A save sets dirty before it replaces the snapshot, and clears it after it published.
                if not self.words[DIRTY] and self.words[HEAD] == head:
                    raise self._as_user_error(error) from None
            # A save is between its two renames, or died there. Never block here: the caller may hold what the owner of
            # the lock is waiting for.
            try:
                with held(self.lock, 0):
                    if self._lock_file is not None:
                        return self._load_locked()
            except LockTimeoutError:
                if deadline is not None and time.monotonic() > deadline:
                    raise self.lock.timeout(timeout_s) from None
            time.sleep(_RETRY_S)

    def load_as_of(self, position: Position) -> Start:
        """The content at a position. Raises GoneError if a save has come since.

        What was written while the save went on bears positions in the new log, before what the save carried over. There
        the times of that are not known.
        """
        pair = self._open_pair()
        if position.generation != pair.log.generation:
            raise GoneError(position.generation)
        self.generations.check(position)
        if self.words[EXPIRING] > position.generation or not self._is_followed:
            later = read_frames(pair.log.file.read_at(position.offset, pair.log.file.size()), position)
            if any(map(is_carried, later.payloads)):
                raise GoneError(position.generation)
        try:
            return self._read_pair(pair._replace(head=position.head))
        except ConflictError:
            raise GoneError(position.generation) from None

    def _load_locked(self) -> Start:
        if self.read_only and self.words[DIRTY]:
            return self._load_unfinished()
        if not self.read_only:
            self.prepare()
        try:
            return self._read_pair(self._open_pair())
        except GoneError as error:
            raise self._as_user_error(error) from None

    def _load_unfinished(self) -> Start:
        """What a reader, who must repair nothing, sees after a saver died between its two renames."""
        head = self.words[HEAD]
        generation = split_head(head)[0]
        for candidate in (generation + 1, generation):
            with contextlib.suppress(ConflictError, GoneError):
                log = self.generations.open(candidate)
                size = log.file.size() if candidate > generation else split_head(head)[1]
                pair = _Pair(log, self.files.open_if_exists(self.paths.snapshot), head_of(candidate, size))
                return self._read_pair(pair)._replace(head=head)
        raise self._as_user_error(GoneError(generation))

    def _as_user_error(self, error: ConflictError | GoneError) -> MicroDBError:
        return error if isinstance(error, ConflictError) else replaced(self.paths.log(error.generation))

    def _open_pair(self) -> _Pair:
        head = self.words[HEAD]
        generation, _ = split_head(head)
        self.generations.last = log = self.generations.open(generation)
        if header.salt_of(self.words, generation) != log.header.salt and self._is_followed:
            if self.words[HEAD] != head:
                raise GoneError(generation)
            raise CorruptError(log.file.path, "not the log that was written here, but that of another database")
        return _Pair(log, self.files.open_if_exists(self.paths.snapshot), head)

    def _read_pair(self, pair: _Pair) -> Start:
        data = None if pair.snapshot is None else pair.snapshot.read_all()
        if snapshot_hash(data) != pair.log.header.snapshot_hash:
            raise ConflictError(
                f"{self.paths.snapshot}: not the snapshot that {pair.log.file.path} follows. It was edited, replaced "
                "or removed while processes use it; put the old one back, or close them all and open it again"
            )
        payloads, end = frames_to(pair.log, pair.log.header.start, split_head(pair.head)[1])
        return Start(data, overlay_of(payloads, self.keys, pair.log.file.path), end, pair.head)

    def read(
        self, after: Position, head: int, ends: list[Position] | None = None
    ) -> tuple[Sequence[Payload], Position]:
        """The batches from a position to a published head, across the saves that came in between."""
        return self.generations.read(after, head, ends)

    def end_at(self, head: int) -> Position | None:
        """The position at the published head, from the last frames alone; None if they do not tell.

        The page says where to begin. That is believed only if there are whole frames from there to the head.
        """
        generation, offset = split_head(head)
        try:
            return end_from(self.generations.get(generation), self.words[LAST], offset)
        except GoneError:
            return None

    def keep_history(self) -> None:
        """It always does: see `Generations`."""

    def check_kept(self, position: Position) -> None:
        """Raises GoneError unless it is a position of this log, from which `read` goes on."""
        self.generations.check(position)

    # Writing, under the lock.

    def is_poisoned(self) -> bool:
        """Whether an fsync of this generation failed, so that nothing may be appended to it any more."""
        poisoned = self.words[POISONED]  # Zero but for a while.
        return poisoned != 0 and poisoned == split_head(self.words[HEAD])[0]

    def prepare(self) -> None:
        """See that the files are still those of the path, and undo what a dead owner left.

        Raises:
            FailedError: The files were removed or replaced.
            ReentrantError: A signal handler got here from within an append.
        """
        if self.lock.writing is not None:
            raise ReentrantError(REENTRANT)
        if time.monotonic() > self._look_at_s:
            self._look_again()
        if self.words[DIRTY]:
            self.repair()

    def repair(self) -> None:
        """Roll back the write that its owner did not finish, or finish its save if the snapshot is in place."""
        generation, offset = split_head(self.words[HEAD])
        done = "save unfinished; it was completed"
        if not self._finish_save(generation):
            done = "write unfinished; it was rolled back"
            log = self._current(generation)
            if log.file.size() > offset:
                self._cut(log.file, offset)
        header.count(self.words, REPAIRS)
        notes.add(notes.WARNING, "%s: process %d left a %s", self.name, self.words[DIRTY], done)
        self.words[DIRTY] = 0

    def _finish_save(self, generation: int) -> bool:
        path = self.paths.log(generation + 1)
        file = self.files.open_if_exists(path)
        if file is None:
            return False
        snapshot = self.files.open_if_exists(self.paths.snapshot)
        found = NO_SNAPSHOT if snapshot is None else snapshot.digest(HASH_BYTES)
        fields = open_log(file).header
        if fields.snapshot_hash != found:
            self.files.unlink(path)
            self.files.sync_folder(self.paths.folder)
            return False
        self.files.sync_folder(self.paths.parent)
        self.publish_generation(generation + 1, file.size(), fields.salt)
        return True

    def append_one(self, payload: Payload, after: Position) -> Position | None:
        """As `prepare` and `append` of one payload without `sync`, where they do no more than that; else None.

        Then nothing was done. So it is for the ordinary write, which cannot wait for so many calls.
        """
        words, log = self.words, self.generations.last
        generation, offset, _, _ = after
        head = generation << OFFSET_BITS | offset
        if (
            words[HEAD] != head
            or words[DIRTY]
            or words[POISONED]
            or log is None
            or log.generation != generation
            or time.monotonic() > self._look_at_s
        ):
            return None
        data, end = write_frame(payload, after, DURABLE_BEFORE if words[DURABLE] == offset else 0)
        if end.offset > OFFSET_MAX or log.file.size() != offset:
            return None
        self._write(log, data, offset, offset, head)
        return end

    def append(self, payloads: Sequence[Payload], after: Position, *, sync: bool) -> Position:
        """Write the frames behind `after`, the end of the log, and publish them all with one store.

        Raises:
            CorruptError: The log was cut by something else; nothing was written.
            OSError: Nothing was published, and the log ends where it did. After a failed fsync the generation is
                poisoned, because the system may have dropped what it could not write and call it written next time.
        """
        if not self.lock.is_mine():
            refuse_in_child()  # Before it opens files of its own.
        words = self.words
        generation, offset, _, _ = after
        log = self.generations.last
        if log is None or log.generation != generation:
            log = self._current(generation)
        data, end = write_frames(payloads, after, flags=DURABLE_BEFORE if words[DURABLE] == offset else 0)
        head = words[HEAD]
        if head & OFFSET_MAX != offset:
            raise AssertionError("whoever appends stands at the end of the log")
        if end.offset > OFFSET_MAX:
            raise StorageError(log.file.path, f"the log is full at {offset} bytes; save()", offset=offset)
        if log.file.size() != offset:
            self._mend_end(log, after)
        self._write(log, data, offset, end.offset - FRAME_BYTES_MIN - len(payloads[-1]), head, sync=sync)
        return end

    def _write(self, log: LogFile, data: bytes, offset: int, last: int, head: int, *, sync: bool = False) -> None:
        """Write frames at the end of a log, `offset`, which `head` says, and publish them; or undo it all.

        `last` is where the last of them begins.
        """
        words, lock, file = self.words, self.lock, log.file
        length = len(data)
        # A child that a signal handler forked before this has a lock of its own, and has not taken it; one that is
        # forked now has another one. No call, at which a handler could come, is between that look and the first store.
        is_mine = lock.is_mine
        if not is_mine():
            refuse_in_child()
        try:
            if self.lock is not lock:
                refuse_in_child()
            words[DIRTY] = self._pid
            file.write_at(data, offset)
            words[LAST] = last
            if sync:
                self.sync_file(log)
            if self.lock is not lock:
                refuse_in_child()
            words[HEAD] = head + length
            if sync:
                words[DURABLE] = offset + length
                header.seal(words, log.generation, offset + length)
            words[DIRTY] = 0
        except BaseException:
            if self.lock is lock:  # Else it is the parent's page.
                self._take_back(file, offset, head)
            raise

    def _take_back(self, file: File, offset: int, head: int) -> None:
        """After an error: undo what was not published behind a head."""
        if self.words[HEAD] == head:
            # If this raises too, the dirty word stays, and the next writer begins here.
            self._cut(file, offset)
        self.words[DIRTY] = 0

    def _cut(self, file: File, offset: int) -> None:
        """Cut what was not published off the current log. If that fails the log is poisoned, and recovery does it."""
        try:
            file.truncate(offset)
        except OSError as error:
            self.words[POISONED] = split_head(self.words[HEAD])[0]
            failed = "%s: a write that failed could not be cut off (%s); the next write saves first"
            notes.add(notes.ERROR, failed, file.path, str(error))
            raise
        self.words[DURABLE] = min(self.words[DURABLE], offset)

    def _mend_end(self, log: LogFile, end: Position) -> None:
        """Something else than microdb has cut the current log, or appended to it; or the head has gone back."""
        file = log.file
        size = file.size()
        if size < end.offset:
            raise CorruptError(
                file.path,
                f"the log ends here, and was written up to byte {end.offset}: something cut it. save() writes it anew",
                offset=size,
                sequence=end.sequence,
            )
        self._check_behind(log, end.offset)
        self._cut(file, end.offset)

    def sync(self, head: int) -> None:
        """Return once everything up to a published head is on the disk."""
        self.look()
        generation, offset = split_head(head)
        try:
            # Not opened anew: the system tells of a failed write only those who had the file open by then.
            log = self.generations.get(generation)
        except GoneError:
            if split_head(self.words[HEAD])[0] == generation:
                raise replaced(self.paths.log(generation)) from None
            return  # A save has written its content, fsynced, to a later generation.
        self.sync_file(log)
        # Only a hint for recovery: not worth waiting for.
        with contextlib.suppress(LockTimeoutError), held(self.lock, 0):
            if split_head(self.words[HEAD])[0] == generation and not self.words[DIRTY]:
                check_place(self.files, log.file, self.paths.log(generation))
                self.words[DURABLE] = max(self.words[DURABLE], offset)
                header.seal(self.words, generation, self.words[DURABLE])

    def sync_file(self, log: LogFile) -> None:
        """Return once a log is on the disk; if that fails, poison it.

        Raises:
            OSError: It is not.
            FailedError: It failed once, and may say by now that all is good: the system drops what it cannot write.
        """
        try:
            log.file.sync_data()
        except OSError as error:
            self.words[POISONED] = max(self.words[POISONED], log.generation)
            failed = "%s: fsync failed (%s); writes in it may be lost with the power; the next write saves first"
            notes.add(notes.ERROR, failed, log.file.path, str(error))
            raise
        if self.words[POISONED] == log.generation:
            raise FailedError(log.file.path, "an earlier fsync of it failed; write again, which saves first")

    def publish_generation(self, generation: int, size: int, salt: bytes, *, poisoned: bool = False) -> None:
        """Make a log that is in place the current one, and the one before it history.

        A poisoned one does not yet put the other away: after a power cut the old snapshot may be back, and want it.
        """
        words = self.words
        is_awaited = words[WAITING] >= words[HEAD]
        words[POISONED] = generation if poisoned else 0
        words[DURABLE] = size
        header.publish(words, generation, size, salt)
        if is_awaited:
            ring(words)  # No news; but who moves the new head does not ring for whoever sleeps at the old one.
        header.count(words, SAVES)
        if not poisoned:
            header.seal(words, generation, size)
            self.generations.retire(generation - 1)
