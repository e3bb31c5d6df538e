"""Who has a database open: each who can write keeps a shared lock on its page, and the system knows whose.

Who can take that lock exclusively is alone.
"""

import contextlib
import os
from typing import Final

from microdb.files import File, Files
from microdb.locks import EXCLUSIVE_NOW, SHARED, UNLOCK, flock

__all__ = ["be_absent", "become_present", "holders", "is_alone"]

_LOCKS: Final = "/proc/locks"
_LOCKS_BYTES_MAX: Final = 1 << 20


def is_alone(file: File) -> bool:
    """Whether nobody else is present on `file`; if somebody is, become it too.

    Under the write lock, which keeps others from becoming present meanwhile.
    """
    for _ in range(2):
        with contextlib.suppress(BlockingIOError):
            flock(file.fd, EXCLUSIVE_NOW)
            return True
        # A recoverer that is just dying may have let go of the write lock and not yet of this one, which nobody else
        # takes exclusively: wait until it is gone, and look once more.
        flock(file.fd, SHARED)
    return False


def become_present(file: File) -> None:
    """Be seen as alive by `is_alone` of every other open file of the same name, until this one is closed."""
    flock(file.fd, SHARED)


def holders(file: tuple[int, int]) -> tuple[int, ...]:
    """The processes that hold a `flock` on a file, of device and inode, as Linux tells; a shared one is its opener's.

    Source of the format: https://man7.org/linux/man-pages/man5/proc_locks.5.html
    """
    device, inode = file
    place = f"{os.major(device):02x}:{os.minor(device):02x}:{inode}"
    try:
        # As microdb's own files: one that an interrupt leaves open is closed with the last who refers to it.
        text = Files().open(_LOCKS).read_at(0, _LOCKS_BYTES_MAX).decode()
    except FileNotFoundError:  # Another system.
        return ()
    lines = [line.split() for line in text.splitlines() if place in line]
    found = {int(words[4]) for words in lines if words[1] == "FLOCK" and words[5] == place}
    return tuple(sorted(pid for pid in found if pid > 0))


def be_absent(file: File) -> None:
    """Undo `is_alone` or `become_present`."""
    flock(file.fd, UNLOCK)
