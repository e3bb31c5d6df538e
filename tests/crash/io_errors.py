"""Errors of the disk: which call fails, and how; at the door to the file system, and in the system calls themselves.

`Door` is a double of `microdb.files`, here; `Shim` makes the system calls of this process fail, by io_errors.c. Both
count calls and let those of a `Fault` fail. What is done meanwhile stands in io_scenarios.py, what must be true in
io_lab.py.
"""

import ctypes
import errno
import os
import subprocess
import threading
from pathlib import Path
from typing import NamedTuple

from microdb.files import OS, File, Files

KINDS = (
    *("open", "create", "mkdir", "rename", "unlink", "write", "fsync", "fdatasync", "truncate"),
    *("read", "stat", "listdir", "mmap", "flock"),
)
WRITING = frozenset(KINDS[1:9])
EVERY = frozenset(KINDS)
FOREVER = 1 << 40

SHORT = -1
"""Half of the bytes are written, and the call says so. In system calls alone: it is the door that goes on."""
SHORT_FULL = -2
"""Half of the bytes are written, and then the disk is full."""

RETRIED = frozenset({"open", "create", "write", "fsync", "fdatasync", "truncate", "read", "flock"})
"""Calls that Python takes up again when a signal has interrupted them (PEP 475)."""


class Fault(NamedTuple):
    """Which calls fail, numbered from 1 among those of these kinds; and how: with an errno, or SHORT, or SHORT_FULL."""

    at: tuple[int, ...] | range = ()
    error: int = errno.EIO
    kinds: frozenset[str] = EVERY

    def __str__(self):
        name = errno.errorcode.get(self.error) or {SHORT: "SHORT", SHORT_FULL: "SHORT_FULL"}[self.error]
        numbers = f"{self.at[0]} and all after" if isinstance(self.at, range) else " and ".join(map(str, self.at))
        return f"{name} at call {numbers or '-'}{' that writes' if self.kinds == WRITING else ''}"


def errors_of(kind, *, in_system_calls=False):
    """The errors that a call of a kind may meet."""
    if kind == "write":
        short = (SHORT,) if in_system_calls else ()
        return errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EINTR, SHORT_FULL, *short
    if kind in WRITING:
        return errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EINTR, errno.EROFS
    if kind == "flock":
        return errno.ENOLCK, errno.EINTR
    return (errno.EIO, errno.EMFILE) if kind == "open" else (errno.EIO, errno.ENOMEM)


# ----------------------------------------------------------------------------------------------------------- The double


class Faults:
    """Counts calls, and makes those of a fault fail.

    Attributes:
        calls: The calls met since it was armed, as kind and name of the file.
        hits: Those of them that failed.
    """

    def __init__(self):
        self._guard = threading.Lock()
        self.arm(Fault())
        self.pause()

    def arm(self, fault):
        self.fault = fault
        self.calls, self.hits = [], []
        self._is_armed = True

    def pause(self):
        self._is_armed = False

    def go_on(self):
        self._is_armed = True

    def disarm(self):
        self.pause()

    def must_not_raise(self):
        """Whether what was met is none of the caller's business."""
        return False

    def meet(self, kind, path):
        """Whether a write is to be cut short. Raises what the fault says."""
        with self._guard:
            if not self._is_armed or kind not in self.fault.kinds:
                return False
            call = kind, os.path.basename(path)
            self.calls.append(call)
            if len(self.calls) not in self.fault.at:
                return False
            self.hits.append(call)
            if self.fault.error in (SHORT, SHORT_FULL):
                return True
            raise OSError(self.fault.error, os.strerror(self.fault.error), path)


class Door(Files):
    """The real file system, whose calls meet `faults` first. An fsync is only counted.

    Locks are not the door's.
    """

    def __init__(self, faults=None):
        self.faults = faults or Faults()

    def __reduce__(self):
        return Door, ()  # In another process nothing fails.

    def meet(self, kind, path):
        return self.faults.meet(kind, path)

    def _opened(self, file):
        fd, file.fd = file.fd, -1
        opened = DoorFile(fd, file.path)
        opened.door = self
        return opened

    def open(self, path, *, write=False, create=False):
        self.meet("create" if create else "open", path)
        return self._opened(super().open(path, write=write, create=create))

    def create(self, path):
        self.meet("create", path)
        return self._opened(super().create(path))

    def identity(self, path):
        self.meet("stat", path)
        return super().identity(path)

    def names(self, folder):
        self.meet("listdir", folder)
        return super().names(folder)

    def make_folder(self, path):
        self.meet("mkdir", path)
        return super().make_folder(path)

    def rename(self, source, target):
        self.meet("rename", target)
        super().rename(source, target)

    def unlink(self, path):
        self.meet("unlink", path)
        super().unlink(path)

    def sync_folder(self, path):
        self.meet("open", path)
        self.meet("fsync", path)

    def boot_id(self):
        return OS.boot_id()


class DoorFile(File):
    """A file behind a `Door`."""

    door: Door

    def read_at(self, offset, length):
        self.door.meet("read", self.path)
        return super().read_at(offset, length)

    def write_at(self, data, offset):
        is_short = self.door.meet("write", self.path)
        written = bytes(data)[: len(data) // 2] if is_short else data
        super().write_at(written, offset)
        if is_short:
            raise OSError(errno.ENOSPC, "the other half finds no space", self.path)

    def sync(self):
        self.door.meet("fsync", self.path)

    def sync_data(self):
        self.door.meet("fdatasync", self.path)

    def truncate(self, size):
        self.door.meet("truncate", self.path)
        super().truncate(size)

    def size(self):
        self.door.meet("stat", self.path)
        return super().size()

    def identity(self):
        self.door.meet("stat", self.path)
        return super().identity()

    def map_words(self, length, *, writable):
        self.door.meet("mmap", self.path)
        return super().map_words(length, writable=writable)


# ----------------------------------------------------------------------------------------------------- The system calls


class Shim:
    """As `Faults`, for the system calls of this process on paths that begin with `prefix`.

    Only in a process that was started with `LD_PRELOAD` set to what `compile_shim` gives.
    """

    def __init__(self, prefix):
        self._c = ctypes.CDLL(None)
        self._prefix = os.fsencode(prefix)

    @property
    def calls(self):
        return [call for call, _ in self._seen()]

    @property
    def hits(self):
        return [call for call, is_hit in self._seen() if is_hit]

    def _seen(self):
        name = ctypes.create_string_buffer(32)
        for number in range(self._c.io_errors_calls()):
            code = self._c.io_errors_call(ctypes.c_long(number), name)
            yield (KINDS[code & 0xFF], os.fsdecode(name.value)), bool(code >> 8)

    def arm(self, fault):
        self.fault = fault
        numbers = [*fault.at[:2], -1, -1] if isinstance(fault.at, tuple) else [fault.at[0], -1]
        until = fault.at[-1] if isinstance(fault.at, range) else -1
        self._c.io_errors_arm(
            self._prefix,
            self._mask(),
            ctypes.c_long(numbers[0]),
            ctypes.c_long(numbers[1]),
            ctypes.c_long(until),
            fault.error,
        )

    def _mask(self):
        return sum(1 << number for number, kind in enumerate(KINDS) if kind in self.fault.kinds)

    def pause(self):
        self._c.io_errors_count(0)

    def go_on(self):
        self._c.io_errors_count(self._mask())

    def disarm(self):
        self.pause()

    def must_not_raise(self):
        """Whether what was met is none of the caller's business: an interrupt, or a short write."""
        return self.fault.error == SHORT or (
            self.fault.error == errno.EINTR and RETRIED.issuperset(kind for kind, _ in self.hits)
        )


def compile_shim(folder):
    """The library for `LD_PRELOAD`; raises FileNotFoundError where there is no C compiler."""
    library = Path(folder) / "io_errors.so"
    source = Path(__file__).with_name("io_errors.c")
    command = [
        "gcc",
        "-shared",
        "-fPIC",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-o",
        library,
        source,
        "-ldl",
        "-pthread",
    ]
    subprocess.run(command, check=True)
    return library
