"""Real disks that are full, or that cannot keep what they took: small tmpfs, and ext4 on an image that finds no room.

A thin disk says yes to writes, and fails when the system writes its pages back: fsync tells, or a later call. Its image
as it is at a moment is what a power cut would leave. Root alone can mount; `UnavailableError` tells what is missing.
"""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

PAGE = 4096


class UnavailableError(Exception):
    """This cannot be done here: why."""


def _run(*command):
    """What a command prints."""
    if os.geteuid() != 0:
        raise UnavailableError("only root can mount")
    if shutil.which(command[0]) is None:
        raise UnavailableError(f"there is no {command[0]}")
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise UnavailableError(f"{' '.join(map(str, command))}: {done.stderr.decode().strip()}")
    return done.stdout.decode().strip()


@contextlib.contextmanager
def mounted(folder, *arguments):
    """A mount for a while, on a new folder."""
    folder.mkdir()
    _run("mount", *arguments, folder)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def tmpfs(folder, size):
    return mounted(folder, "-t", "tmpfs", "-o", f"size={size}", "tmpfs")


class ThinDisk:
    """An ext4 disk of 32 megabytes whose image has the first six, and finds room for less than one more.

    In the first ones the file system keeps its own blocks and its journal, so that it is the data that finds no room.

    Attributes:
        folder: Where it is mounted.
    """

    def __init__(self, folder):
        self.folder = folder / "disk"
        self._below = folder / "below"
        self._image = self._below / "image"
        self._stack = contextlib.ExitStack()

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            stack.enter_context(tmpfs(self._below, "64m"))
            self._image.touch()
            os.truncate(self._image, 32 << 20)
            _run("mkfs.ext4", "-q", "-F", "-b", str(PAGE), "-N", "64", "-J", "size=4", self._image)
            with self._image.open("r+b") as image:
                os.posix_fallocate(image.fileno(), 0, 6 << 20)
            self._limit(self._image.stat().st_blocks * 512 + (800 << 10))
            device = Path(_run("losetup", "--find", "--show", self._image))
            stack.callback(subprocess.run, ["losetup", "--detach", device], check=True)
            # Of a longer write of which a part found no room, a loop device says that all is well.
            Path("/sys/block", device.name, "queue", "max_sectors_kb").write_text(str(PAGE >> 10))
            stack.enter_context(mounted(self.folder, device))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_):
        self._stack.close()

    def _limit(self, size):
        _run("mount", "-o", f"remount,size={size}", self._below)

    def grow(self):
        """From now on there is room for all."""
        self._limit(64 << 20)

    @contextlib.contextmanager
    def after_power_cut(self, folder):
        """The disk that a power cut at this moment would leave, mounted elsewhere."""
        copy = folder.with_suffix(".image")
        subprocess.run(["cp", "--sparse=always", self._image, copy], check=True)
        with mounted(folder, "-o", "loop", copy):
            yield folder


def free(disk):
    status = os.statvfs(disk)
    return status.f_bavail * status.f_frsize


class Filler:
    """In the place of `io_errors.Faults`: the disk is full but for some pages, the one number of the fault."""

    def __init__(self, disk):
        self._file = Path(disk) / "filler"
        self.calls = self.hits = ()

    def leave(self, pages):
        """Take what is free but for these pages."""
        size = free(self._file.parent) - pages * PAGE
        with self._file.open("ab") as file:
            if size > 0:
                os.posix_fallocate(file.fileno(), file.tell(), size)

    def arm(self, fault):
        self.fault = fault
        if fault.at:
            self.leave(fault.at[0])
            self.hits = (("a full disk", str(fault.at[0])),)

    def pause(self):
        """What looks on looks at a full disk."""

    def go_on(self):
        """It is full still."""

    def disarm(self):
        self._file.unlink(missing_ok=True)

    def must_not_raise(self):
        return False
