"""What still stands on the disk of a damaged database: looked at, not judged, and never changed."""

import os
import re
from typing import Final, NamedTuple

from microdb.errors import VersionError
from microdb.files import Files
from microdb.paths import Paths
from microdb.repair.search import Frame, Gap, find_frames, find_header
from microdb.wal import header
from microdb.wal.format import LogHeader, split_head
from microdb.wal.header import HEAD, HEADER_BYTES, POISONED
from microdb.wal.log_file import snapshot_hash
from microdb.wal.reader import NewerVersionError

__all__ = ["Evidence", "Log", "Page", "Torn", "look"]

_TORN: Final = re.compile(r"(\d{10})-[0-9a-f]{8,}-\d+\.torn")


class Log(NamedTuple):
    """A log, current or history.

    Attributes:
        path: Its file.
        generation: That in its name.
        is_history: Whether a later log has taken over.
        header: What it says of itself; None if it cannot be read.
        flaw: What is wrong with its header, or was before a flipped bit was mended.
        frames: Its sound frames, by sequence.
        gaps: What is between and behind them.
        data: All its bytes.
    """

    path: str
    generation: int
    is_history: bool
    header: LogHeader | None
    flaw: str | None
    frames: list[Frame]
    gaps: list[Gap]
    data: bytes


class Torn(NamedTuple):
    """What a recovery cut from a log: its file, and the sound frames in it."""

    path: str
    frames: list[Frame]


class Page(NamedTuple):
    """What the page says.

    Attributes:
        generation: Which log was the current one.
        offset: Up to which byte it was acknowledged.
        salt: Its salt.
        is_exact: Whether nothing behind that byte was acknowledged: it is the page of this run of the machine.
        has_failed: Whether what stands behind it are writes that failed.
    """

    generation: int
    offset: int
    salt: bytes
    is_exact: bool
    has_failed: bool


class Evidence(NamedTuple):
    """All that there is.

    Attributes:
        snapshot: Its bytes; None where there is none.
        hash: What binds a log to it.
        logs: The logs, by generation.
        torn: The tails that recoveries cut.
        page: What the page says; None where it is missing, damaged, or not the one that was written here.
        has_folder: Whether there is a folder beside the snapshot.
    """

    snapshot: bytes | None
    hash: bytes
    logs: list[Log]
    torn: list[Torn]
    page: Page | None
    has_folder: bool


def look(paths: Paths, files: Files) -> Evidence:
    """Read everything.

    Raises:
        VersionError: A newer microdb wrote it.
    """
    file = files.open_if_exists(paths.snapshot)
    data = None if file is None else file.read_all()
    has_folder = files.identity(paths.folder) is not None
    names = files.names(paths.folder) if has_folder else []
    page = _page(paths, files)
    logs = []
    for kind in ("history", "log"):
        found = ((paths.generation_of(name, kind), name) for name in names)
        logs += [
            _log(os.path.join(paths.folder, name), number, files, page) for number, name in found if number is not None
        ]
    torn = [os.path.join(paths.folder, name) for name in names if _TORN.fullmatch(name)]
    return Evidence(
        snapshot=data,
        hash=snapshot_hash(data),
        logs=sorted(logs, key=lambda log: log.generation),
        torn=[Torn(path, find_frames(files.open(path).read_all(), None)[0]) for path in torn],
        page=page,
        has_folder=has_folder,
    )


def _log(path: str, generation: int, files: Files, page: Page | None) -> Log:
    data = files.open(path).read_all()
    if page is not None and page.has_failed and page.generation == generation:
        data = data[: page.offset]
    try:
        fields, flaw = find_header(data)
    except NewerVersionError as error:
        raise VersionError(path, error.reason, offset=error.offset) from None
    frames, gaps = find_frames(data, None if fields is None else fields.start)
    return Log(path, generation, path.endswith(".history"), fields, flaw, frames, gaps, data)


def _page(paths: Paths, files: Files) -> Page | None:
    file = files.open_if_exists(paths.header)
    data = b"" if file is None else file.read_at(0, HEADER_BYTES)
    if file is None or len(data) < HEADER_BYTES:
        return None
    words = memoryview(data).cast("Q")
    is_exact = header.is_current(words, file, files.boot_id())
    known = split_head(words[HEAD]) if is_exact else header.sealed(words, file)
    if known is None:
        return None
    generation, offset = known
    has_failed = is_exact and words[POISONED] == generation
    return Page(generation, offset, header.salt_of(words, generation), is_exact, has_failed)
