"""Every file name of a database, in one place.

snapshot          the user's file: mdb.json
header            the page that every process maps; this and the rest in the folder mdb.json.wal
lock              locked by whoever writes
save.lock         one save at a time
GENERATION.log    the log that follows the snapshot
GENERATION.history  a log before it, kept for slow readers
GENERATION-OFFSET-NUMBER.torn  bytes that recovery cut from a log, at that offset in hex
*.tmp             what a save has not finished; of a dead saver, if nobody saves
"""

import itertools
import os
import re
import secrets
from collections.abc import Iterator
from typing import Final

from microdb.errors import StrPath, shown

__all__ = ["MEMORY", "Paths", "refuse_folder", "resolved"]

MEMORY: Final = ":memory:"
"""Stands for a table without files."""

_GENERATION: Final = re.compile(r"([0-9]{10})\.(log|history)")


def resolved(filename: StrPath) -> str:
    """The absolute path of a file, links followed: all who open it by whatever name meet at the same one.

    Raises:
        TypeError: It is no str, and no path that gives one.
    """
    name: object = os.fspath(filename) if isinstance(filename, os.PathLike) else filename
    if not isinstance(name, str):
        raise TypeError(f"a filename is a str or a path, found {shown(filename):.60}")
    return os.path.realpath(name)


def refuse_folder(path: str) -> None:
    """Raises IsADirectoryError if there is a folder where a snapshot is to stand."""
    if os.path.isdir(path):
        raise IsADirectoryError(21, "a folder is in the way of the snapshot; name a file in it", path)


class Paths:
    """The names of the files of one database.

    Attributes:
        snapshot: The user's file.
        parent: The folder of the snapshot.
        folder: The folder of everything else.
    """

    def __init__(self, filename: StrPath) -> None:
        self.snapshot: Final = resolved(filename)
        self.parent: Final = os.path.dirname(self.snapshot)
        self.folder: Final = self.snapshot + ".wal"
        self.header: Final = os.path.join(self.folder, "header")
        self.lock: Final = os.path.join(self.folder, "lock")
        self.save_lock: Final = os.path.join(self.folder, "save.lock")

    def log(self, generation: int) -> str:
        """The log of a generation while it is, or may become, the current one."""
        return os.path.join(self.folder, f"{generation:010}.log")

    def history(self, generation: int) -> str:
        """The same log once a later generation has taken over."""
        return os.path.join(self.folder, f"{generation:010}.history")

    def torn(self, generation: int, offset: int) -> Iterator[str]:
        """Where recovery may keep what it cuts from a log at `offset`: one name for each time."""
        name = f"{generation:010}-{offset:08x}"
        return (os.path.join(self.folder, f"{name}-{number}.torn") for number in itertools.count(1))

    def temporary(self, *, inside_lock: bool) -> str:
        """A name that nobody else uses, for whoever holds the write lock all the time, or the save lock."""
        kind = "lock" if inside_lock else "save"
        return os.path.join(self.folder, f"{os.getpid()}-{secrets.token_hex(8)}.{kind}.tmp")

    def export(self, target: str) -> str:
        """A name that nobody else uses, beside `target`."""
        return f"{target}.{os.getpid()}-{secrets.token_hex(8)}.tmp"

    @staticmethod
    def generation_of(name: str, kind: str) -> int | None:
        """The generation that a name in the folder stands for, if it is a ``log`` or a ``history``."""
        match = _GENERATION.fullmatch(name)
        return int(match[1]) if match and match[2] == kind else None

    @staticmethod
    def is_temporary(name: str, *, inside_lock: bool) -> bool:
        """Whether a name in the folder is that of an unfinished file, made as `temporary` says."""
        return name.endswith(".lock.tmp" if inside_lock else ".save.tmp")
