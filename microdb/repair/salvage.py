"""What of the evidence goes into the new table, and what is to be said of the rest.

1. A log of another database, which the page, its name or its keys tell, is left out.
2. The base is the snapshot, if some log follows it: its hash proves it. It may be an older one; the old logs lead on.
3. If no log follows it, it was edited, or is damaged where it can still be read: that cannot be told, so it is taken as
   it stands. If it is gone, or cannot be read as a whole, it is made anew: by flipping one bit back, if that gives it
   the right hash; or from the old logs, if they are there from the beginning.
4. Else it is every record of the snapshot that can be read; and, of keys that none of them has, what old logs and cut
   tails hold.
5. Over the base go the changes of the logs, in the order of their sequences.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from microdb import snapshot
from microdb.errors import GridError, RecordError, StrPath
from microdb.files import OS, Files
from microdb.keys import PartitionKeys
from microdb.paths import Paths
from microdb.repair.evidence import Evidence, Log, look
from microdb.repair.findings import Finding, Kind, listed
from microdb.repair.lines import Read, mend, read
from microdb.repair.timeline import Timeline
from microdb.table import Records, apply
from microdb.wal.codec import CodecError, decode
from microdb.wal.format import NO_SNAPSHOT
from microdb.wal.log_file import snapshot_hash

__all__ = ["Choice", "Salvage", "salvage"]


@dataclass(frozen=True, slots=True)
class Choice:
    """What the user decides where the files cannot.

    Attributes:
        original: Of a snapshot that can be read, but is not the one that the log follows: make that one anew, instead
            of taking the file as it stands.
        with_log: Apply the log.
        behind_gaps: Apply what stands behind a damaged place. Without it the result is a state that once was.
    """

    original: bool = False
    with_log: bool = True
    behind_gaps: bool = True


@dataclass(slots=True)
class Salvage:
    """What a damaged database still holds.

    Attributes:
        records: The records, by key.
        partition_keys: The fields that make a key.
        frames: How many batches of the logs are in them, besides those of the snapshot.
        findings: What is to be said.
    """

    partition_keys: tuple[str, ...]
    records: Records = field(default_factory=dict)
    frames: int = 0
    findings: list[Finding] = field(default_factory=list)

    def say(self, kind: Kind, where: str, what: str) -> None:
        """Add a finding."""
        self.findings.append(Finding(kind, where, what))

    @property
    def is_whole(self) -> bool:
        """Whether nothing is lost, and nothing in doubt."""
        return all(finding.kind == "note" for finding in self.findings)


def salvage(
    path: StrPath, partition_keys: Sequence[str] | None = None, *, choice: Choice | None = None, files: Files = OS
) -> Salvage:
    """Read all that is sound. Changes nothing.

    Raises:
        FileNotFoundError: There is no such database.
        ValueError: The partition keys are not known, or are others; or there is no choice as it was asked for.
        VersionError: A newer microdb wrote it.
    """
    paths = Paths(path)
    found = look(paths, files)
    if found.snapshot is None and not found.has_folder:
        raise FileNotFoundError(2, "no such database", paths.snapshot)
    here = [log for log in found.logs if not _is_misplaced(log, found)]
    keys = PartitionKeys(partition_keys or _keys_of(here, found))
    result = Salvage(keys.names)
    logs = list(_own(result, here, found))
    _Work(result, keys, paths, found, logs, choice or Choice()).do()
    return result


def _is_misplaced(log: Log, found: Evidence) -> bool:
    """Whether this is surely not the log that was written here."""
    if log.header is None:
        return False
    if log.header.generation != log.generation:
        return True
    page = found.page
    if page is None or page.generation != log.generation:
        return False
    if found.snapshot is not None and log.header.snapshot_hash == found.hash:
        return False  # Then it is the page that is damaged.
    flipped = int.from_bytes(page.salt) ^ int.from_bytes(log.header.salt)
    return flipped.bit_count() > 1


def _keys_of(logs: list[Log], found: Evidence) -> tuple[str, ...]:
    """As the log tells that follows the snapshot; or the newest."""
    headers = [log.header for log in logs if log.header is not None]
    if not headers:
        raise ValueError("no log tells the partition keys; give them with --keys")
    bound = [header for header in headers if header.snapshot_hash == found.hash]
    return (bound or headers)[-1].partition_keys


def _own(result: Salvage, here: list[Log], found: Evidence) -> Iterator[Log]:
    """The logs that may be of this database."""
    told = {log.header.partition_keys for log in here if log.header is not None}
    if told and result.partition_keys not in told:
        raise ValueError(f"the log is keyed by {', '.join(_keys_of(here, found))}; give no other --keys")
    for log in found.logs:
        if log not in here:
            what = (
                "the log that was written here: another one stands in its place. Or the page is damaged: then see what"
            )
            result.say("lost", log.path, f"{what} comes of a copy of the database without its file `header`")
        elif log.header is not None and log.header.partition_keys != result.partition_keys:
            result.say("lost", log.path, f"keyed by {', '.join(log.header.partition_keys)}: not of this database")
        else:
            yield log


@dataclass(slots=True)
class _Work:
    """The steps of one salvage, which add to one result."""

    _result: Salvage
    _keys: PartitionKeys
    _paths: Paths
    _found: Evidence
    _logs: list[Log]
    _choice: Choice

    @property
    def _current(self) -> list[Log]:
        return [log for log in self._logs if not log.is_history]

    def do(self) -> None:
        """All of it."""
        result, found, path = self._result, self._found, self._paths.snapshot
        if found.snapshot is None:
            there = Read({}, is_readable=False, findings=[])
        else:
            there = read(found.snapshot, path, self._keys)
        if not self._choice.with_log:
            result.records = there.records
            result.findings = [*there.findings, *result.findings]
            self._say_what_is_left_out()
            return
        self._say_what_is_gone()
        bound = self._bound_to(found.hash)
        is_old = bound is not None and bound.is_history and bool(self._current)
        if bound is None or (is_old and found.snapshot is None and self._rebuilt() is not None):
            self._apply_over_unbound(there)
            return
        result.records = there.records
        if is_old and found.snapshot is not None:
            result.say("note", path, f"an older one, which {bound.path} follows; the logs lead on from it")
        elif is_old:
            result.say("lost", path, "it is gone; made anew from the old logs, as far as they lead")
        self._apply_from(bound)

    def _bound_to(self, hash_: bytes) -> Log | None:
        """The newest log that follows a snapshot."""
        bound = [log for log in self._logs if log.header is not None and log.header.snapshot_hash == hash_]
        return bound[-1] if bound else None

    def _apply_from(self, first: Log) -> None:
        result, choice = self._result, self._choice
        timeline = Timeline(self._logs, first, self._keys)
        result.frames += timeline.apply(result.records, result.findings, until=None, behind_gaps=choice.behind_gaps)
        result.findings += timeline.findings(self._found.page, behind_gaps=choice.behind_gaps)
        self._say_what_torn_tails_hold()

    def _apply_over_unbound(self, there: Read) -> None:
        """The snapshot is not one that a log follows: choose the base."""
        result = self._result
        original = self._mended() or self._rebuilt()
        if self._choice.original and original is None:
            raise ValueError("the snapshot that the log follows cannot be made anew; leave out --snapshot original")
        if original is not None and (self._choice.original or not there.is_readable):
            result.records = original.records
            result.findings += original.findings
        else:
            result.records = there.records
            result.findings += there.findings
            self._say_how_far_it_is_right(there, original)
            if not there.is_readable:
                self._fill()
        if self._current:
            self._apply_from(self._current[0])

    def _mended(self) -> Read | None:
        """The snapshot that the log follows, if the one that is there differs from it in one bit."""
        data, path = self._found.snapshot, self._paths.snapshot
        first = self._current[0] if self._current else None
        if data is None or first is None or first.header is None:
            return None
        mended = mend(data, path, first.header.snapshot_hash)
        if mended is None:
            return None
        what = "one bit was flipped, and is flipped back: the hash is right then"
        return read(mended[0], path, self._keys)._replace(
            findings=[Finding("note", f"{path}, byte {mended[1]:,}", what)]
        )

    def _rebuilt(self) -> Read | None:
        """What the snapshot should be, made from the old logs; None if they do not reach from the beginning to it."""
        begun = self._bound_to(NO_SNAPSHOT)
        if begun is None:
            return None
        timeline = Timeline(self._logs, begun, self._keys)
        end = self._base()
        records: Records = {}
        ignored: list[Finding] = []
        timeline.apply(records, ignored, until=end, behind_gaps=False)
        if ignored or (end is not None and not timeline.leads_to(end)) or (end is None and timeline.missing):
            return None
        return Read(records, is_readable=True, findings=[self._how_proved(records)])

    def _base(self) -> int | None:
        """The sequence that the snapshot holds; None where no log tells."""
        first = self._current[0] if self._current else None
        return first.header.base_sequence if first is not None and first.header is not None else None

    # What is to be said.

    def _say_what_is_gone(self) -> None:
        page, newest = self._found.page, max((log.generation for log in self._current), default=0)
        generation = page.generation if page is not None else 0
        if generation > newest or (not self._current and self._found.has_folder):
            which = f"the log of generation {generation}" if generation else "the log"
            self._result.say("lost", self._paths.folder, f"{which}, and with it the changes since the last save")
        elif not self._found.has_folder:
            self._result.say("note", self._paths.folder, "there is none, so there is no log to read")

    def _say_what_is_left_out(self) -> None:
        for log in self._current:
            if log.frames:
                what = f"its batches, {len(log.frames)} that are sound: left out, to take the snapshot as it is"
                self._result.say("lost", log.path, what)

    def _how_proved(self, rebuilt: Records) -> Finding:
        path = self._paths.snapshot
        first = self._current[0] if self._current else None
        if first is None or first.header is None:
            return Finding("in doubt", path, "made anew from the old logs; no log tells whether it is the same")
        hashes = []
        for encode in (snapshot.encode_list, snapshot.encode_grid):
            with contextlib.suppress(GridError, RecordError):
                hashes.append(snapshot_hash(b"".join(encode(list(rebuilt.values())))))
        if first.header.snapshot_hash in hashes:
            return Finding("note", path, "made anew from the old logs; its hash proves that it is the same")
        return Finding(
            "in doubt", path, "made anew from the old logs; but it has not the hash of the one that was there"
        )

    def _say_how_far_it_is_right(self, there: Read, original: Read | None) -> None:
        path = self._paths.snapshot
        if self._found.snapshot is None:
            self._result.say("lost", path, "it is gone; the log holds only the changes since it was saved")
            return
        if any(log.header is not None for log in self._current):
            what = "not the one that the log follows: edited, or damaged where it can be read"
            self._result.say("in doubt", path, what)
        if original is not None and self._base() is not None:
            pairs = [
                (there.records.get(key), original.records.get(key), key) for key in original.records | there.records
            ]
            others = [key for one, other, key in pairs if one != other]
            what = f"the one that the log follows differs in {listed(others)}; to take that one: --snapshot original"
            self._result.say("in doubt", path, what)

    def _say_what_torn_tails_hold(self) -> None:
        for torn in self._found.torn:
            what = f"cut off by a recovery; {len(torn.frames)} sound batches in it, not used"
            self._result.say("note", torn.path, what)

    def _fill(self) -> None:
        """Add the records of keys that the snapshot does not show, as they were last seen before it was saved."""
        seen: Records = {}
        end = self._base()
        sources = [torn.frames for torn in self._found.torn]
        sources += [log.frames for log in self._logs if log.is_history]
        for frame in [frame for frames in sources for frame in frames if end is None or frame.sequence <= end]:
            with contextlib.suppress(CodecError):
                apply(decode(frame.payload, self._keys), seen)
        added = [key for key in seen if key not in self._result.records]
        self._result.records.update({key: seen[key] for key in added})
        if added:
            what = f"not to be read there, taken from older logs or cut tails: {listed(added)}"
            self._result.say("in doubt", self._paths.snapshot, what)
