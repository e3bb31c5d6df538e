"""What the first to open a database does: scan, decide, apply. Only the third step writes.

The page is trusted in what must be there: if it was rebuilt in this file and in this run of the machine, then all up to
its head was acknowledged; after a reboot, all that it sealed was on the disk. What of that is missing now was
lost. It makes recovery drop nothing that the log still holds, but for writes that failed and could not be undone.
"""

import os
from itertools import takewhile
from typing import Final, NamedTuple

from microdb import notes, snapshot
from microdb.errors import ConflictError, CorruptError
from microdb.files import File
from microdb.table import Overlay
from microdb.values import Expiring
from microdb.wal import header
from microdb.wal.codec import is_carried
from microdb.wal.file_log import FileLog
from microdb.wal.format import Position, split_head
from microdb.wal.header import HEAD, POISONED, TORN
from microdb.wal.log import Start
from microdb.wal.log_file import LogFile, create_log, open_log, overlay_of, snapshot_hash
from microdb.wal.reader import HeaderError, Run, later_frames, read_frames

__all__ = ["recover"]

_REPAIR: Final = "`microdb repair` saves what can be saved into a new database"


class Scanned(NamedTuple):
    """One log as it was found.

    Attributes:
        log: Its file and header.
        data: Its bytes behind the header.
        run: The valid frames at their beginning.
        has_failed: Whether writes behind the run failed, and could not be undone: they raised, and are not there.
    """

    log: LogFile
    data: bytes
    run: Run
    has_failed: bool = False

    @property
    def generation(self) -> int:
        """Its number."""
        return self.log.generation

    @property
    def last_change(self) -> int:
        """The sequence up to which it tells changes. What a save carried over, as the last that it did, is none."""
        return self.run.end.sequence - sum(1 for _ in takewhile(is_carried, reversed(self.run.payloads)))

    @property
    def tail(self) -> bytes:
        """What stands behind the valid frames."""
        return self.data[self.run.end.offset - self.log.header.end :]


class Head(NamedTuple):
    """Up to where a log must go, as the page says.

    Attributes:
        generation: Which log.
        offset: Everything before was acknowledged; or was fsynced, if the page is of an earlier run of the machine.
        salt: Of that log.
        poisoned: The generation in which something could not be written, or 0.
        is_exact: Whether the page is of this run of the machine.
    """

    generation: int
    offset: int
    salt: bytes
    poisoned: int
    is_exact: bool


class Found(NamedTuple):
    """What stands on the disk.

    Attributes:
        snapshot: The bytes of the snapshot; None where there is none.
        hash: What binds a log to it.
        logs: The logs, oldest first; not those that are history.
        newest: The highest generation ever used, history included.
        head: What the page says; None where it says nothing that is sure.
        is_new: Whether no log was ever published here.
        boot_id: Of this run of the machine.
    """

    snapshot: bytes | None
    hash: bytes
    logs: list[Scanned]
    newest: int
    head: Head | None
    is_new: bool
    boot_id: bytes


class Decision(NamedTuple):
    """What to do.

    Attributes:
        chosen: The log that goes on; None: a new one that follows the snapshot as it is.
        base_sequence: Where a new one begins.
        dead: Newer logs of a save that died before its snapshot was in place.
    """

    chosen: Scanned | None
    base_sequence: int = 0
    dead: tuple[Scanned, ...] = ()


def recover(log: FileLog, header_file: File | None) -> Start:
    """Make files and page agree, and give what the table is built from. Only while nobody else is alive.

    A read-only log reads what a writer would find, and leaves it as it is.

    Raises:
        CorruptError: Something acknowledged is damaged or missing.
        ConflictError: The snapshot was edited, and the log holds changes to the old one.
        VersionError: A newer microdb wrote it.
        StorageError: The log is keyed by other fields.
    """
    found = scan(log, header_file)
    decision = decide(found, log)
    chosen = decision.chosen
    # Whatever cannot be read is refused before anything is written.
    if chosen is None and found.snapshot is not None:
        snapshot.load(found.snapshot, log.name, log.keys)
    overlay = Overlay() if chosen is None else overlay_of(chosen.run.payloads, log.keys, chosen.log.file.path)
    if log.read_only:
        return _start_read_only(found, decision, overlay, log)
    expires = Expiring in set(map(type, overlay.records.values()))
    end = apply(found, decision, log, header_file, expires=expires)
    notes.add(notes.INFO, "%s: recovered, up to sequence %d in generation %d", log.name, end.sequence, end.generation)
    return Start(found.snapshot, overlay, end, end.head)


def scan(log: FileLog, header_file: File | None) -> Found:
    """Look at everything."""
    file = log.files.open_if_exists(log.paths.snapshot)
    data = None if file is None else file.read_all()
    exists = log.files.identity(log.paths.folder) is not None
    generations = log.generations.numbers("log") if exists else []
    history = log.generations.numbers("history") if exists else []
    boot_id = log.files.boot_id()
    head = None if header_file is None else _head(log, header_file, boot_id)
    return Found(
        snapshot=data,
        hash=snapshot_hash(data),
        logs=[_scan_log(log, generation, head) for generation in generations],
        newest=max(generations + history, default=0),
        head=head,
        is_new=not (generations or history or log.words[HEAD]),
        boot_id=boot_id,
    )


def _head(log: FileLog, header_file: File, boot_id: bytes) -> Head | None:
    words = log.words
    generation, offset = split_head(words[HEAD])
    if header.is_current(words, header_file, boot_id):
        return Head(generation, offset, header.salt_of(words, generation), words[POISONED], is_exact=True)
    sealed = header.sealed(words, header_file)
    return None if sealed is None else Head(*sealed, header.salt_of(words, sealed[0]), 0, is_exact=False)


def _scan_log(log: FileLog, generation: int, head: Head | None) -> Scanned:
    opened = open_log(log.files.open(log.paths.log(generation), write=not log.read_only))
    log.generations.check_keys(opened)
    if opened.header.generation != generation:
        raise CorruptError(opened.file.path, f"this is the log of generation {opened.header.generation}. {_REPAIR}")
    start = opened.header.start
    data = opened.file.read_at(start.offset, opened.file.size())
    if head is not None and head.poisoned == head.generation == generation:
        published = read_frames(data[: max(head.offset - start.offset, 0)], start)
        if published.reason is None and published.end.offset < start.offset + len(data):
            run = published._replace(reason="a write that failed could not be undone")
            return Scanned(opened, data, run, has_failed=True)
    return Scanned(opened, data, read_frames(data, start))


def decide(found: Found, log: FileLog) -> Decision:
    """Which log goes on, or why none can. Changes nothing."""
    if not found.logs:
        if not found.is_new:
            raise CorruptError(
                log.paths.folder, f"its logs are gone, and with them all changes since the last save. {_REPAIR}"
            )
        return Decision(None)
    bound = [one for one in found.logs if one.log.header.snapshot_hash == found.hash]
    chosen = max(bound, key=lambda one: (one.last_change, one.generation), default=None)
    if chosen is None or (found.head is not None and found.head.generation > chosen.generation):
        return _decide_edited(found, log)
    newer = tuple(one for one in found.logs if one.generation > chosen.generation)
    if any(one.last_change > chosen.run.end.sequence and not _is_draft(one) for one in newer):
        return _decide_edited(found, log)
    _check_damage(found, chosen)
    return Decision(chosen, dead=newer)


def _is_draft(newer: Scanned) -> bool:
    """Whether a log that follows another snapshot than the one in place can hold nothing that was acknowledged in it.

    The one before it is shorter for a failed fsync, and only what was never fsynced is missing there.
    """
    log = newer.log.header
    return log.after_failure and newer.last_change == log.base_sequence and not newer.tail


def _decide_edited(found: Found, log: FileLog) -> Decision:
    """The snapshot is not the one that the newest log follows: adopt it if that loses nothing."""
    newest = found.logs[-1]
    if found.snapshot is None:
        raise CorruptError(
            log.paths.snapshot,
            f"the snapshot is gone, and {newest.log.file.path} follows one. Put it back; or {_REPAIR}",
        )
    holds_changes = any(one.data for one in found.logs)
    if holds_changes or (found.head is not None and found.head[:2] > (newest.generation, newest.log.header.end)):
        what, before = "changes to the old one", "save() before you edit"
        if holds_changes and all(
            one.last_change == one.log.header.base_sequence and not one.tail for one in found.logs
        ):
            what, before = "the times at which its records expire", "change it by upsert()"
        raise ConflictError(
            f"{log.paths.snapshot}: edited or replaced, while {newest.log.file.path} holds {what}. "
            f"Put the old one back and {before}; or `microdb repair` takes either side into a new database"
        )
    # The edit is a change, too: a reader that stands before it finds a gap, and loads anew.
    return Decision(None, base_sequence=newest.run.end.sequence + 1)


def _check_damage(found: Found, chosen: Scanned) -> None:
    """Raise if anything acknowledged, or fsynced, is not there. What remains is a tail that may be cut."""
    end, head = chosen.run.end, found.head
    if head is not None and head.generation == chosen.generation and head.salt != chosen.log.header.salt:
        raise CorruptError(
            chosen.log.file.path, f"not the log that was written here, but that of another database. {_REPAIR}"
        )
    if head is not None and head[:2] > (chosen.generation, end.offset):
        how = "published" if head.is_exact else "fsynced"
        raise _rot(chosen, f"{chosen.run.reason or 'the log ends here'}, and was {how} up to {head.offset}")
    if chosen.run.reason is None or chosen.has_failed:
        return
    try:
        later = later_frames(chosen.tail, end)
    except HeaderError as error:
        raise _rot(chosen, error.reason) from None
    rebooted = any(found.boot_id) and chosen.log.header.boot_id != found.boot_id
    if later and (not rebooted or any(frame.durable_before for frame in later)):
        raise _rot(chosen, f"{chosen.run.reason}, and sound frames follow at byte {later[0].offset}")


def _rot(chosen: Scanned, reason: str) -> CorruptError:
    end = chosen.run.end
    return CorruptError(
        chosen.log.file.path,
        f"{reason}; all up to sequence {end.sequence} is sound. {_REPAIR}",
        offset=end.offset,
        sequence=end.sequence,
    )


def apply(found: Found, decision: Decision, log: FileLog, header_file: File | None, *, expires: bool) -> Position:
    """Carry the decision out. Interrupted anywhere, it is decided the same way again. Gives the end of the log."""
    if header_file is None:
        raise AssertionError("only a read-only handle comes without a header")
    # Whoever made or renamed these may have died before it could.
    log.files.sync_folder(log.paths.parent)
    chosen = decision.chosen
    torn = chosen is not None and chosen.run.reason is not None
    poisoned = found.head.poisoned if found.head is not None else 0
    if chosen is None:
        end, salt = _begin(found, decision, log)
    else:
        if torn:
            _cut(chosen, log)
        end, salt = chosen.run.end, chosen.log.header.salt
    for dead in decision.dead:
        log.files.unlink(dead.log.file.path)
    for inside_lock in (False, True):
        log.generations.remove_temporaries(inside_lock=inside_lock)
    header.rebuild(log.words, header_file, found.boot_id, end=end, salt=salt, poisoned=poisoned, expires=expires)
    if torn:
        header.count(log.words, TORN)
    if poisoned != end.generation:
        log.generations.retire(end.generation - 1)
    return end


def _begin(found: Found, decision: Decision, log: FileLog) -> tuple[Position, bytes]:
    """A new log that follows the snapshot as it is: its end and its salt."""
    generation = found.newest + 1
    if found.snapshot is not None:
        log.files.open(log.paths.snapshot).sync()  # Written by hand, or by whatever program.
    opened, end = create_log(
        log.paths.temporary(inside_lock=True),
        log.files,
        generation=generation,
        base_sequence=decision.base_sequence,
        bound_to=found.hash,
        partition_keys=log.keys.names,
    )
    log.files.rename(opened.file.path, log.paths.log(generation))
    log.files.sync_folder(log.paths.folder)
    if found.logs:
        notes.add(notes.WARNING, "%s: edited by hand; the new content is taken over", log.paths.snapshot)
    return end, opened.header.salt


def _cut(chosen: Scanned, log: FileLog) -> None:
    """Keep a torn tail aside, and cut it off."""
    end = chosen.run.end
    taken = log.files.names(log.paths.folder)
    kept = next(path for path in log.paths.torn(chosen.generation, end.offset) if os.path.basename(path) not in taken)
    aside = log.files.create(log.paths.temporary(inside_lock=True))
    aside.write_at(chosen.tail, 0)
    aside.sync()
    log.files.rename(aside.path, kept)
    log.files.sync_folder(log.paths.folder)
    chosen.log.file.truncate(end.offset)
    chosen.log.file.sync_data()
    notes.add(
        notes.WARNING,
        "%s, byte %d: %s; %d bytes of unfinished writes were cut and kept in %s",
        *(chosen.log.file.path, end.offset, chosen.run.reason, len(chosen.tail), kept),
    )


def _start_read_only(found: Found, decision: Decision, overlay: Overlay, log: FileLog) -> Start:
    """What a writer would find. The head is the page's own, whatever it says: only when it moves is there news."""
    if found.is_new and found.snapshot is None:
        raise FileNotFoundError(2, "no such database, and read_only=True creates none", log.paths.snapshot)
    end = None if decision.chosen is None else decision.chosen.run.end
    return Start(found.snapshot, overlay, end, log.words[HEAD])
