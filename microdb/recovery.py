"""What the first to open a database does: scan, decide, apply. Only the third step writes.

The page is trusted in one thing: if it was rebuilt in this file and in this run of the machine, then all up to its head
was acknowledged, and what of it is missing now was lost. It never makes recovery drop what the log still holds.
"""

import logging
from typing import Final, NamedTuple

from microdb.errors import ConflictError, CorruptError
from microdb.files import File
from microdb.wal import header
from microdb.wal.file_log import FileLog
from microdb.wal.format import Position, split_head
from microdb.wal.header import HEAD, POISONED, TORN
from microdb.wal.log import Start
from microdb.wal.log_file import LogFile, create_log, open_log, snapshot_hash
from microdb.wal.reader import HeaderError, Run, later_frames, read_frames

__all__ = ["recover"]

_LOG: Final = logging.getLogger("microdb")

_REPAIR: Final = "`microdb repair` saves what can be saved into a new database"


class Scanned(NamedTuple):
    """One log as it was found.

    Attributes:
        log: Its file and header.
        data: Its bytes behind the header.
        run: The valid frames at their beginning.
    """

    log: LogFile
    data: bytes
    run: Run

    @property
    def generation(self) -> int:
        """Its number."""
        return self.log.header.generation

    @property
    def tail(self) -> bytes:
        """What stands behind the valid frames."""
        return self.data[self.run.end.offset - self.log.header.end :]


class Found(NamedTuple):
    """What stands on the disk.

    Attributes:
        snapshot: The bytes of the snapshot; None where there is none.
        hash: What binds a log to it.
        logs: The logs, oldest first; not those that are history.
        newest: The highest generation ever used, history included.
        head: Generation and end up to which the page of this run of the machine says that all was acknowledged; None
            where there is no such page.
        is_new: Whether no log was ever published here.
        boot_id: Of this run of the machine.
    """

    snapshot: bytes | None
    hash: bytes
    logs: list[Scanned]
    newest: int
    head: tuple[int, int] | None
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
    if log.read_only:
        return _start_read_only(found, decision, log)
    return apply(found, decision, log, header_file)


def scan(log: FileLog, header_file: File | None) -> Found:
    """Look at everything."""
    file = log.files.open_if_exists(log.paths.snapshot)
    snapshot = None if file is None else file.read_all()
    exists = log.files.identity(log.paths.folder) is not None
    generations = log.generations("log") if exists else []
    history = log.generations("history") if exists else []
    boot_id = log.files.boot_id()
    current = header_file is not None and header.is_current(log.words, header_file, boot_id)
    return Found(
        snapshot=snapshot,
        hash=snapshot_hash(snapshot),
        logs=[_scan_log(log, generation) for generation in generations],
        newest=max(generations + history, default=0),
        head=split_head(log.words[HEAD]) if current else None,
        is_new=not (generations or history or log.words[HEAD]),
        boot_id=boot_id,
    )


def _scan_log(log: FileLog, generation: int) -> Scanned:
    opened = open_log(log.files.open(log.paths.log(generation), write=not log.read_only))
    log.check_keys(opened)
    if opened.header.generation != generation:
        raise CorruptError(opened.file.path, f"this is the log of generation {opened.header.generation}. {_REPAIR}")
    start = opened.header.start
    data = opened.file.read_at(start.offset, opened.file.size())
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
    chosen = max(bound, key=lambda one: (one.run.end.sequence, one.generation), default=None)
    if chosen is None or (found.head is not None and found.head[0] > chosen.generation):
        return _decide_edited(found, log)
    newer = tuple(one for one in found.logs if one.generation > chosen.generation)
    if any(one.run.end.sequence > chosen.run.end.sequence for one in newer):
        return _decide_edited(found, log)
    _check_damage(found, chosen)
    return Decision(chosen, dead=newer)


def _decide_edited(found: Found, log: FileLog) -> Decision:
    """The snapshot is not the one that the newest log follows: adopt it if that loses nothing."""
    newest = found.logs[-1]
    if found.snapshot is None:
        raise CorruptError(
            log.paths.snapshot,
            f"the snapshot is gone, and {newest.log.file.path} follows one. Put it back; or {_REPAIR}",
        )
    holds_changes = any(one.data for one in found.logs)
    if holds_changes or (found.head is not None and found.head > (newest.generation, newest.log.header.end)):
        raise ConflictError(
            f"{log.paths.snapshot}: edited or replaced, while {newest.log.file.path} holds changes to the old one. "
            "Put the old one back and save() before you edit; or `microdb repair` takes either side into a new database"
        )
    # The edit is a change, too: a reader that stands before it finds a gap, and loads anew.
    return Decision(None, base_sequence=newest.run.end.sequence + 1)


def _check_damage(found: Found, chosen: Scanned) -> None:
    """Raise if anything acknowledged, or fsynced, is not there. What remains is a tail that may be cut."""
    end = chosen.run.end
    if found.head is not None and found.head > (chosen.generation, end.offset):
        raise _rot(chosen, f"{chosen.run.reason or 'the log ends here'}, and was published up to {found.head[1]}")
    if chosen.run.reason is None:
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


def apply(found: Found, decision: Decision, log: FileLog, header_file: File | None) -> Start:
    """Carry the decision out. Interrupted anywhere, it is decided the same way again."""
    if header_file is None:
        raise AssertionError("only a read-only handle comes without a header")
    chosen = decision.chosen
    torn = chosen is not None and chosen.run.reason is not None
    poisoned = log.words[POISONED] if found.head is not None else 0
    if chosen is None:
        payloads, end = [], _begin(found, decision, log)
    else:
        if torn:
            _cut(chosen, log)
        payloads, end = chosen.run.payloads, chosen.run.end
    for dead in decision.dead:
        log.files.unlink(dead.log.file.path)
    for name in filter(log.paths.is_temporary, log.files.names(log.paths.folder)):
        log.files.unlink(f"{log.paths.folder}/{name}")
    header.rebuild(log.words, header_file, found.boot_id, head=end.head, poisoned=poisoned)
    if torn:
        log.words[TORN] += 1
    log.retire(end.generation - 1)
    return Start(found.snapshot, payloads, end, end.head)


def _begin(found: Found, decision: Decision, log: FileLog) -> Position:
    """A new log that follows the snapshot as it is."""
    generation = found.newest + 1
    opened, end = create_log(
        log.paths,
        log.files,
        generation=generation,
        base_sequence=decision.base_sequence,
        bound_to=found.hash,
        partition_keys=log.keys.names,
    )
    log.files.rename(opened.file.path, log.paths.log(generation))
    log.files.sync_folder(log.paths.folder)
    if found.logs:
        _LOG.warning("%s: edited by hand; the new content is taken over", log.paths.snapshot)
    return end


def _cut(chosen: Scanned, log: FileLog) -> None:
    """Keep a torn tail aside, and cut it off."""
    end = chosen.run.end
    kept = log.paths.torn(chosen.generation, end.offset)
    log.files.unlink(kept)
    file = log.files.create(kept)
    file.write_at(chosen.tail, 0)
    file.sync()
    log.files.sync_folder(log.paths.folder)
    chosen.log.file.truncate(end.offset)
    chosen.log.file.sync_data()
    _LOG.warning(
        "%s, byte %d: %s; %d bytes of unfinished writes were cut and kept in %s",
        *(chosen.log.file.path, end.offset, chosen.run.reason, len(chosen.tail), kept),
    )


def _start_read_only(found: Found, decision: Decision, log: FileLog) -> Start:
    """What a writer would find. The head is the page's own, whatever it says: only when it moves is there news."""
    if found.is_new and found.snapshot is None:
        raise FileNotFoundError(2, "no such database, and read_only=True creates none", log.paths.snapshot)
    chosen = decision.chosen
    if chosen is None:
        return Start(found.snapshot, [], None, log.words[HEAD])
    return Start(found.snapshot, chosen.run.payloads, chosen.run.end, log.words[HEAD])
