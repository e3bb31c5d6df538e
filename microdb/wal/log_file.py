"""One log file: how it is created, opened and named."""

import hashlib
from collections.abc import Iterable
from typing import Final, NamedTuple

from microdb.errors import CorruptError, VersionError
from microdb.files import File, Files
from microdb.wal.format import BASE_BYTES, CRC_BYTES, HASH_BYTES, KEYS_BYTES_MAX, NO_SNAPSHOT, LogHeader, Position
from microdb.wal.log import Payload
from microdb.wal.reader import HeaderError, NewerVersionError, read_header
from microdb.wal.writer import log_header, write_frames

__all__ = ["LogFile", "create_log", "open_log", "snapshot_hash"]

_HEADER_BYTES_MAX: Final = BASE_BYTES + KEYS_BYTES_MAX + CRC_BYTES


class LogFile(NamedTuple):
    """An open log and what its header says."""

    file: File
    header: LogHeader


def snapshot_hash(data: bytes | None) -> bytes:
    """What binds a log to a snapshot; NO_SNAPSHOT for None."""
    return NO_SNAPSHOT if data is None else hashlib.blake2b(data, digest_size=HASH_BYTES).digest()


def open_log(file: File) -> LogFile:
    """An open file as a log.

    Raises:
        VersionError: A newer microdb wrote it.
        CorruptError: It is no log, or its header is damaged.
    """
    try:
        return LogFile(file, read_header(file.read_at(0, _HEADER_BYTES_MAX)))
    except NewerVersionError as error:
        raise VersionError(file.path, error.reason, offset=error.offset) from None
    except HeaderError as error:
        reason = f"{error.reason}. `microdb repair` saves what can be saved"
        raise CorruptError(file.path, reason, offset=error.offset) from None


def create_log(
    path: str,
    files: Files,
    *,
    generation: int,
    base_sequence: int,
    bound_to: bytes,
    partition_keys: tuple[str, ...],
    payloads: Iterable[Payload] = (),
) -> tuple[LogFile, Position]:
    """A new log at `path`, fsynced, and the position at its end."""
    data, fields = log_header(
        generation=generation,
        boot_id=files.boot_id(),
        base_sequence=base_sequence,
        snapshot_hash=bound_to,
        partition_keys=partition_keys,
    )
    frames, end = write_frames(payloads, fields.start)
    file = files.create(path)
    try:
        file.write_at(data + frames, 0)
        file.sync()
    except BaseException:
        files.unlink(file.path)
        raise
    return LogFile(file, fields), end
