"""Write a snapshot and start a new generation, while others go on writing. The order of steps is what makes it safe.

1. Save lock. Under the write lock: delete what has expired, capture the records and their position. Then others write
   on.
2. Write the snapshot aside, hashing it; write a new log bound to it, with the frames since the capture; fsync both.
3. Write lock again. If the generation moved, another save was faster: its snapshot is as new, so give up one's own.
   If the snapshot on the disk is not the one that the log follows, refuse.
4. Add the last frames to the new log, and all records that expire with their times, which no snapshot holds; fsync it.
5. Set dirty; give the new log its name; fsync the folder; rename the snapshot into place, the commit point; fsync its
   folder; publish the head; clear dirty. The log before becomes history.

A crash anywhere leaves the old snapshot with the old log or the new one with the new, both durable.

Order of locks: save lock, then write lock. Whoever already holds the write lock must not wait for the save lock.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Final, NamedTuple, Protocol

from microdb import notes
from microdb.errors import ConflictError, StrPath
from microdb.files import File, Files, Identity
from microdb.locks import held
from microdb.paths import MEMORY, Paths, refuse_folder, resolved
from microdb.save_lock import save_lock
from microdb.values import Expiring, Record
from microdb.wal.codec import encode_carried, join, parts
from microdb.wal.file_log import FileLog
from microdb.wal.format import HASH_BYTES, NO_SNAPSHOT, Position, head_of, split_head
from microdb.wal.header import DIRTY, EXPIRING, HEAD, SAVE_US
from microdb.wal.log import GoneError
from microdb.wal.log_file import LogFile, create_log
from microdb.wal.writer import write_frames

__all__ = ["Encode", "Source", "export", "save"]

_ROUNDS_MAX: Final = 4
_BEHIND_BYTES: Final = 64 << 10
"""How far a new log may be behind as the others are made to wait for it."""

Encode = Callable[[Sequence[Record]], Iterable[bytes]]
"""Records to the bytes of a snapshot, in pieces. Raises before the first piece if the records do not fit."""


class Source(Protocol):
    """What a save asks of the handle whose table it writes."""

    def freshen(self) -> int:
        """Catch up, so that there is little left to be done under the write lock; with about how many bytes."""
        ...

    def kept_open(self) -> AbstractContextManager[None]:
        """Under the write lock: nobody closes it within the block. Raises ClosedError if somebody has."""
        ...

    def capture(self) -> tuple[Sequence[Record], Position]:
        """Under the write lock: all records as of now, and the position that they reflect.

        What has expired is deleted before, unless nothing can be appended to the log any more.
        """
        ...

    def expiring(self) -> Sequence[Expiring]:
        """Under the write lock: all records that expire, as they are now."""
        ...


class _Draft(NamedTuple):
    """A snapshot and its log under temporary names.

    Attributes:
        poisoned: Whether the old log cannot be fsynced any more.
        snapshot: The new snapshot, fsynced.
        log: The new log, fsynced.
        end: The position at its end.
        covers: The same place in the old log.
        old: The old snapshot; None if there is none. Kept open: its blocks are freed when nobody waits for that.
        replaces: Which file it is.
        replaces_hash: The hash of what is in it.
    """

    poisoned: bool
    snapshot: File
    log: LogFile
    end: Position
    covers: Position
    old: File | None
    replaces: Identity | None
    replaces_hash: bytes


def save(
    source: Source, log: FileLog, encode: Encode, *, timeout_s: float | None, save_timeout_s: float | None
) -> bool:
    """Replace the snapshot by the records as of now, and start a new generation.

    When it returns, everything acknowledged before the call is fsynced. The result tells whether this save did it, or
    another one that was faster.

    Raises:
        LockTimeoutError: Another save, or a writer, did not end in time.
        ConflictError: The snapshot was edited or removed meanwhile. Nothing was changed.
        FailedError: An fsync of the log failed meanwhile. Nothing was changed.
        ReentrantError: A signal handler calls, which has interrupted another save of this thread.
        GridError: From `encode`. Nothing was changed.
        OSError: Nothing was changed; unless the very last fsync failed: then the new snapshot is in place, perhaps not
            for ever, and the next write begins with another save.
    """
    log.look()
    is_inside = log.lock.is_mine()
    with contextlib.nullcontext() if is_inside else save_lock(log.lock, log.paths.save_lock, save_timeout_s):
        began_s = time.monotonic()
        # Under the save lock nobody else makes such files, and under the write lock nobody else makes the others.
        log.generations.remove_temporaries(inside_lock=is_inside)
        _freshen(source)
        with held(log.lock, timeout_s):
            records, start = source.capture()
            poisoned = log.is_poisoned()
        pieces = encode(records)
        # Here, where nobody waits for it. By identity: one that is changed meanwhile is another.
        encoded = {id(record): encode_carried(record) for record in records if type(record) is Expiring}
        temporaries: list[str] = []
        try:
            draft = _draft(log, pieces, start, temporaries, poisoned=poisoned, is_inside=is_inside)
            if draft is None:
                return False
            if encoded:
                _freshen(source)  # For what is carried over, the table must be up to date.
            with held(log.lock, timeout_s), source.kept_open():
                try:
                    if not _switch(log, draft, source, encoded):
                        return False
                    took_s = time.monotonic() - began_s
                    log.words[SAVE_US] = max(round(took_s * 1e6), 1)
                finally:
                    log.lock.writing = None
        finally:
            for path in temporaries:
                log.files.unlink(path)
    size = draft.snapshot.size()
    notes.add(notes.INFO, "%s: saved %d records, %d bytes, in %.3f seconds", log.name, len(records), size, took_s)
    return True


def _freshen(source: Source) -> None:
    for _ in range(_ROUNDS_MAX):
        if source.freshen() < _BEHIND_BYTES:
            break


def _draft(
    log: FileLog, pieces: Iterable[bytes], start: Position, temporaries: list[str], *, poisoned: bool, is_inside: bool
) -> _Draft | None:
    """Steps 1 and 2; None if the generation moved meanwhile."""
    snapshot_path, log_path = (log.paths.temporary(inside_lock=is_inside) for _ in range(2))
    temporaries += [snapshot_path, log_path]  # Before they are made: an interrupt may come with the file.
    old = log.files.open_if_exists(log.paths.snapshot)
    replaces = None if old is None else old.identity()
    found = NO_SNAPSHOT if old is None else old.digest(HASH_BYTES)
    snapshot, new_hash = _write_aside(log.files, snapshot_path, pieces, log.paths.snapshot)
    try:
        if not poisoned:
            log.sync_file(log.generations.get(start.generation))
        payloads, covers = log.read(start, log.words[HEAD])
    except GoneError:
        return None
    if covers.generation != start.generation:
        return None
    new, end = create_log(
        log_path,
        log.files,
        generation=start.generation + 1,
        base_sequence=start.sequence,
        bound_to=new_hash,
        partition_keys=log.keys.names,
        after_failure=poisoned,
        payloads=payloads,
    )
    draft = _Draft(poisoned, snapshot, new, end, covers, old, replaces, found)
    with contextlib.suppress(GoneError):  # The switch will see that the generation has moved.
        for _ in range(_ROUNDS_MAX):
            # What is written while others go on writing, they need not wait for.
            generation, offset = split_head(log.words[HEAD])
            if poisoned or generation != covers.generation or offset - draft.covers.offset < _BEHIND_BYTES:
                break
            draft = _follow(log, draft, head_of(generation, offset))
            log.sync_file(log.generations.get(generation))
    return draft


def _follow(log: FileLog, draft: _Draft, head: int, carried: Sequence[bytes] = ()) -> _Draft:
    """Append to the new log, fsynced, what was published in the old one since; and payloads of its own."""
    payloads, covers = log.read(draft.covers, head)
    frames, end = write_frames([*payloads, *carried], draft.end)
    if frames:
        draft.log.file.write_at(frames, draft.end.offset)
        draft.log.file.sync()
    return draft._replace(end=end, covers=covers)


def _switch(log: FileLog, draft: _Draft, source: Source, encoded: Mapping[int, bytes]) -> bool:
    """Steps 3 to 5; False if the generation moved meanwhile."""
    log.prepare()
    log.lock.writing = draft
    head = log.words[HEAD]
    if split_head(head)[0] != draft.covers.generation:
        return False
    old = log.generations.get(draft.covers.generation)
    is_known = draft.replaces_hash == old.header.snapshot_hash
    if not is_known or log.files.identity(log.paths.snapshot) != draft.replaces:
        raise _edited(log)
    carried = _carried(source.expiring(), encoded)
    end = _follow(log, draft, head, carried).end
    if carried:
        log.words[EXPIRING] = end.generation + 1
    # Else a power cut could leave the new log with more in it than the old one, and the old snapshot beside them.
    if not draft.poisoned:
        log.sync_file(old)
    salt = draft.log.header.salt
    in_place = False
    try:
        log.words[DIRTY] = os.getpid()
        log.files.rename(draft.log.file.path, log.paths.log(end.generation))
        log.files.sync_folder(log.paths.folder)
        log.files.rename(draft.snapshot.path, log.paths.snapshot)
        in_place = True
        log.files.sync_folder(log.paths.parent)
        log.publish_generation(end.generation, end.offset, salt)
        log.words[DIRTY] = 0
    except BaseException as error:
        if in_place and isinstance(error, OSError) and log.words[HEAD] == head:
            log.publish_generation(end.generation, end.offset, salt, poisoned=True)
            log.words[DIRTY] = 0
            failed = (
                "%s: the last fsync of a save failed (%s); it may be lost with the power; the next write saves again"
            )
            notes.add(notes.ERROR, failed, log.name, str(error))
        else:
            log.repair()
        raise
    return True


def _carried(expiring: Sequence[Expiring], encoded: Mapping[int, bytes]) -> list[bytes]:
    """The payloads that carry records over; some of them are encoded already, by identity."""
    items = [encoded.get(id(record)) or encode_carried(record) for record in expiring]
    return [join(items[part]) for part in parts(items)]


def export(files: Files, filename: StrPath, pieces: Iterable[bytes]) -> None:
    """Write a snapshot elsewhere, whole or not at all.

    Raises:
        ConflictError: Another database lives there.
        OSError: As the system says.
        ValueError: That is no file name.
    """
    if filename == MEMORY:
        raise ValueError(f"{MEMORY} stands for a table without files; name a file")
    target = resolved(filename)
    refuse_folder(target)
    if files.identity(Paths(target).folder) is not None:
        raise ConflictError(f"{target}: another database; open it and upsert into it, or choose another name")
    temporary = Paths(target).export(target)
    try:
        _write_aside(files, temporary, pieces, target)
        files.rename(temporary, target)
        files.sync_folder(os.path.dirname(target))
    finally:
        files.unlink(temporary)


def _write_aside(files: Files, path: str, pieces: Iterable[bytes], like: str) -> tuple[File, bytes]:
    """A new file, fsynced, with the permissions of `like`; and the hash that binds a log to it."""
    file = files.create(path)
    file.copy_mode(like)
    state = hashlib.blake2b(digest_size=HASH_BYTES)
    offset = 0
    for piece in pieces:
        file.write_at(piece, offset)
        state.update(piece)
        offset += len(piece)
    file.sync()
    return file, state.digest()


def _edited(log: FileLog) -> ConflictError:
    return ConflictError(
        f"{log.paths.snapshot}: edited, replaced or removed since it was read; saving would undo that. Put the old one "
        "back; or save(another_filename), which loses nothing"
    )
