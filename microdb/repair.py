"""Save what can be saved of a damaged database, into a new one. The damaged one is only read.

What is salvaged: the snapshot, record by record if it does not parse as a whole; and every frame of the log whose crc
is right, in order, also behind a damaged place. What is between, and what no longer parses, is listed as lost.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final
from zlib import crc32

from microdb import snapshot
from microdb.changes import Change
from microdb.database import MicroDB
from microdb.errors import CorruptError, MicroDBError, RecordError, StrPath, VersionError
from microdb.files import OS, Files
from microdb.keys import PartitionKeys
from microdb.paths import Paths
from microdb.save import export
from microdb.table import Records, apply
from microdb.wal.codec import CodecError, decode
from microdb.wal.format import CRC, CRC_BYTES, Position
from microdb.wal.log_file import LogFile, open_log, snapshot_hash
from microdb.wal.reader import HeaderError, LaterFrame, later_frames, read_frames

__all__ = ["Salvage", "add_arguments", "run", "salvage"]

_LINE_END: Final = b",\r\n"


@dataclass(slots=True)
class Salvage:
    """What a damaged database still holds.

    Attributes:
        records: The records, by key.
        partition_keys: The fields that make a key.
        frames: How many batches of the log were applied.
        lost: What could not be saved, a sentence each.
        notes: What is to be known besides.
    """

    partition_keys: tuple[str, ...]
    records: Records = field(default_factory=dict)
    frames: int = 0
    lost: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``microdb repair``."""
    parser.add_argument("path", help="the snapshot of the damaged database; it is only read")
    parser.add_argument("--into", metavar="NEW", help="write what is sound into this new database; else only tell")
    parser.add_argument("--keys", metavar="A,B", help="the partition keys, if the log no longer tells them")
    parser.add_argument(
        "--log",
        choices=("apply", "ignore"),
        default="apply",
        help="after an edit of the snapshot: apply the changes in the log over it (default), or take it as it is",
    )


def run(args: argparse.Namespace) -> int:
    """Carry out ``microdb repair``. The exit code: 0 nothing is lost, 1 something is, 2 nothing can be done."""
    try:
        keys = args.keys.split(",") if args.keys else None
        found = salvage(args.path, keys, with_log=args.log == "apply")
        if args.into is not None:
            _write(found, args.into)
    except (MicroDBError, OSError, ValueError) as error:
        print(f"microdb repair: {error}")
        return 2
    for line in _report(found, args.path, args.into):
        print(line)
    return 1 if found.lost else 0


def salvage(
    path: StrPath, partition_keys: Sequence[str] | None = None, *, with_log: bool = True, files: Files = OS
) -> Salvage:
    """Read all that is sound. Changes nothing.

    Raises:
        FileNotFoundError: There is no such database.
        ValueError: Neither the log nor the caller tells the partition keys.
        VersionError: A newer microdb wrote it.
    """
    paths = Paths(path)
    file = files.open_if_exists(paths.snapshot)
    data = None if file is None else file.read_all()
    lost: list[str] = []
    logs = list(_logs(paths, files, lost)) if files.identity(paths.folder) is not None else []
    if data is None and not logs and not lost:
        raise FileNotFoundError(2, "no such database", paths.snapshot)
    if partition_keys is None:
        if not logs:
            raise ValueError("no log tells the partition keys; give them with --keys")
        partition_keys = logs[-1].header.partition_keys
    found = Salvage(tuple(partition_keys), lost=lost)
    keys = PartitionKeys(partition_keys)
    if data is not None:
        _salvage_snapshot(found, keys, data, paths.snapshot)
    if logs and with_log:
        _salvage_logs(found, keys, logs, snapshot_hash(data))
    return found


def _logs(paths: Paths, files: Files, lost: list[str]) -> Iterator[LogFile]:
    """The logs that can be opened, oldest first. Those of history are in the snapshot already."""
    for name in files.names(paths.folder):
        generation = paths.generation_of(name, "log")
        if generation is not None:
            try:
                yield open_log(files.open(paths.log(generation)))
            except VersionError:
                raise
            except CorruptError as error:
                lost.append(f"the whole log: {error}")


def _salvage_snapshot(found: Salvage, keys: PartitionKeys, data: bytes, path: str) -> None:
    try:
        records = snapshot.decode(data, path)
    except CorruptError as error:
        found.notes.append(str(error))
        records = list(_lines(found, data, path))
    for number, record in enumerate(records, 1):
        try:
            key = keys.checked(record)
        except RecordError as error:
            found.lost.append(f"{path}, record {number}: {error}")
            continue
        if key in found.records:
            found.lost.append(f"{path}: a record with key {key!r}, which a later one has too")
        found.records[key] = record


def _lines(found: Salvage, data: bytes, path: str) -> Iterator[dict[str, object]]:
    """The records of a list that is written one a line, as `save` does."""
    for number, line in enumerate(data.splitlines(), 1):
        body = line.strip(_LINE_END + b" \t")
        if body in (b"", b"[", b"]"):
            continue
        try:
            yield from snapshot.decode(b"[" + body + b"]", path)
        except CorruptError as error:
            found.lost.append(f"{path}, line {number}: {error.reason}")


def _salvage_logs(found: Salvage, keys: PartitionKeys, logs: list[LogFile], snapshot_is: bytes) -> None:
    """Apply the log that follows the snapshot; if none does, all of them, joined by their sequences."""
    bound = [log for log in logs if log.header.snapshot_hash == snapshot_is]
    if not bound:
        found.notes.append("the snapshot is not the one that the log follows; the log was applied over it")
    applied = -1
    for log in bound[-1:] or logs:
        start = log.header.start
        if 0 <= applied < start.sequence:
            found.lost.append(f"changes {applied + 1} to {start.sequence}: no log holds them")
        data = log.file.read_at(start.offset, log.file.size())
        for sequence, payload in _frames(found, log, data, start):
            if sequence > applied:
                _apply(found, keys, log, payload)
                applied = sequence


def _apply(found: Salvage, keys: PartitionKeys, log: LogFile, payload: memoryview) -> None:
    try:
        changes: list[Change] = decode(payload, keys)
    except CodecError as error:
        found.lost.append(f"{log.file.path}: a batch: {error}")
        return
    apply(changes, found.records)
    found.frames += 1


def _frames(found: Salvage, log: LogFile, data: bytes, start: Position) -> Iterator[tuple[int, memoryview]]:
    """The sequences and payloads of every sound frame, in order."""
    run = read_frames(data, start)
    yield from enumerate(run.payloads, start.sequence + 1)
    end = run.end
    while run.reason is not None:
        try:
            later = later_frames(data[end.offset - start.offset :], end)
        except HeaderError as error:
            found.lost.append(f"{log.file.path}, byte {end.offset} to the end: {error.reason}")
            return
        resumed = later[0].offset if later else len(data) + start.offset
        found.lost.append(f"{log.file.path}, bytes {end.offset} to {resumed}: {run.reason}")
        if not later:
            return
        at = resumed - start.offset
        run = read_frames(data[at:], _before(data, at, resumed, later[0], end))
        yield from enumerate(run.payloads, later[0].sequence)
        end = run.end


def _before(data: bytes, at: int, resumed: int, later: LaterFrame, end: Position) -> Position:
    """The position before a frame that was found behind damage. Its seed is the crc before it, or should have been."""
    (seed,) = CRC.unpack_from(data, at - CRC_BYTES)
    position = Position(end.generation, resumed, later.sequence - 1, seed)
    if read_frames(data[at:], position, last=later.sequence).payloads:
        return position
    return position._replace(crc=crc32(data[end.offset - (resumed - at) : at - CRC_BYTES], end.crc))


def _write(found: Salvage, target: str) -> None:
    paths = Paths(target)
    if OS.identity(paths.snapshot) is not None or OS.identity(paths.folder) is not None:
        raise FileExistsError(17, "--into names a new database; this one exists", paths.snapshot)
    export(OS, target, snapshot.encode_list(list(found.records.values())))
    MicroDB(target, found.partition_keys).close()


def _report(found: Salvage, path: str, into: str | None) -> Iterator[str]:
    yield f"{path}: keyed by {', '.join(found.partition_keys)}"
    yield from (f"note: {note}" for note in found.notes)
    yield from (f"lost: {loss}" for loss in found.lost)
    yield f"{len(found.records)} records are sound; {found.frames} batches of the log are among them"
    if into is None:
        yield "Nothing was written. To write them into a new database: --into NEW"
    else:
        yield f"written: {into}"
