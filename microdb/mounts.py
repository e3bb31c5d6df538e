"""Whether a file system can carry a shared store.

The processes that share a store meet in one mapped page and in one lock file. Both hold only where a single kernel
keeps a single copy of each page. A file system whose other half is another kernel, or a program, may hand two
processes two copies of the page, or grant both of them the lock, and says nothing. So the kind of file system is
looked up before anything is opened, and refused by name. A kind that is not named here is accepted: the names of
local file systems are without end.

Knows the kernel's list of mounts and nothing of databases.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

from microdb.errors import StorageError, StrPath

__all__ = ["Mount", "check", "find", "parse"]

# What the message says of each family: why not.
_HOST = "shares files of another operating system, whose kernel keeps pages and locks of its own"
_NETWORK = "is shared by several machines, each with pages and locks of its own"
_PROGRAM = "is served by a program, which need not keep mapped pages and locks the same for all processes"

# The types as the kernel prints them. The host's files as seen by a virtual machine or a container in one, then
# network and cluster file systems. A FUSE type "fuse.NAME" is looked up as NAME too.
_REFUSED = {
    "9p": _HOST,  # QEMU, WSL 2 (/mnt/c), Lima, gVisor
    "drvfs": _HOST,  # WSL 1
    "fakeowner": _HOST,  # Docker Desktop, in front of virtiofs
    "grpcfuse": _HOST,  # Docker Desktop
    "osxfs": _HOST,  # Docker Desktop, older
    "prl_fs": _HOST,  # Parallels
    "vboxsf": _HOST,  # VirtualBox
    "virtiofs": _HOST,  # Docker Desktop, OrbStack, Podman, QEMU
    "vmhgfs": _HOST,  # VMware
    "vmhgfs-fuse": _HOST,  # VMware
    "afs": _NETWORK,
    "beegfs": _NETWORK,
    "ceph": _NETWORK,
    "cifs": _NETWORK,
    "coda": _NETWORK,
    "davfs": _NETWORK,
    "glusterfs": _NETWORK,
    "gpfs": _NETWORK,
    "lustre": _NETWORK,
    "ncpfs": _NETWORK,
    "nfs": _NETWORK,
    "nfs4": _NETWORK,
    "orangefs": _NETWORK,
    "pvfs2": _NETWORK,
    "smb3": _NETWORK,
    "smbfs": _NETWORK,
    "sshfs": _NETWORK,
    "wekafs": _NETWORK,
    # Every other FUSE type is refused as well, with no exception: even fuse-overlayfs, which lies on a local disk, has
    # been reported to corrupt SQLite. "fuseblk" (NTFS, exFAT) is not among them: it mounts a block device of this
    # machine, and this kernel alone caches it.
    "fuse": _PROGRAM,
}

# The kernel writes a space, tab, newline, backslash or hash sign inside a field as three octal digits: proc(5).
_ESCAPED = re.compile(rb"\\([0-3][0-7]{2})")


class Mount(NamedTuple):
    """One line of the kernel's list, as far as it matters here."""

    point: str
    """Where it is mounted: an absolute path."""
    kind: str
    """The type of its file system: ``ext4``, ``nfs4``, ``fuse.sshfs``."""


def check(path: StrPath, *, mountinfo: StrPath = "/proc/self/mountinfo") -> None:
    """Return if the file system that holds `path` can carry a shared store.

    `path` need not exist yet; symbolic links on the way to it are followed. Costs one read of the kernel's list, a
    fraction of a millisecond, and changes nothing. Where there is no such list (macOS, Windows, a sandbox that hides
    it) nothing is checked.

    Args:
        path: The file or folder that is about to be opened.
        mountinfo: The list, in the format of ``/proc/PID/mountinfo``; see proc(5).

    Raises:
        StorageError: It cannot. The reason names the file system and the way out.
    """
    try:
        listing = Path(mountinfo).read_bytes()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    mount = find(parse(listing), os.path.realpath(path))
    why = _why_refused(mount.kind) if mount else None
    if mount and why:
        reason = f"{mount.point} is mounted as {mount.kind}, which {why}; keep the database on a local disk"
        raise StorageError(path, reason)


def parse(listing: bytes) -> list[Mount]:
    r"""Return the mounts of a `mountinfo` listing, in its order. A line of another form is left out.

    >>> parse(b"36 35 98:0 /sub /my\\040disk rw,noatime master:1 - ext3 /dev/root rw\n")
    [Mount(point='/my disk', kind='ext3')]
    """
    mounts = (_parse_line(line) for line in listing.split(b"\n"))
    return [mount for mount in mounts if mount]


def find(mounts: list[Mount], path: str) -> Mount | None:
    """Return the mount that holds the absolute `path`: the deepest one; of two at one place, the later."""
    holding = [mount for mount in mounts if _is_at_or_below(path, mount.point)]
    return max(reversed(holding), key=lambda mount: len(mount.point), default=None)


def _parse_line(line: bytes) -> Mount | None:
    # ID, parent ID, device, root, MOUNT POINT, options, any number of optional fields, "-", TYPE, source, super options
    before, separator, after = line.partition(b" - ")
    fields, kinds = before.split(b" "), after.split(b" ", 1)
    if not separator or len(fields) < 6:  # noqa: PLR2004 - the six fields named above
        return None
    return Mount(_unescape(fields[4]), _unescape(kinds[0]))


def _unescape(field: bytes) -> str:
    return os.fsdecode(_ESCAPED.sub(lambda match: bytes([int(match[1], 8)]), field))


def _is_at_or_below(path: str, point: str) -> bool:
    return path == point or path.startswith(point.rstrip("/") + "/")


def _why_refused(kind: str) -> str | None:
    family, _, name = kind.partition(".")
    if family == "fuse":
        return _REFUSED.get(name, _REFUSED["fuse"])
    return _REFUSED.get(kind)
