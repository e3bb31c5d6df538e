"""The only door to the file system: open, read, write, fsync, rename, truncate, unlink.

What is assumed of it: a rename is atomic; what was fsynced survives a power cut; a name survives once its folder was
fsynced; bytes that were not fsynced may be lost or become zeros, page by page, in any order.

A test double with the same methods turns crashes into unit tests.
"""

import errno
import hashlib
import mmap
import os
import stat
from typing import Final, NamedTuple

__all__ = ["BOOT_ID_BYTES", "OS", "File", "Files", "Identity"]

BOOT_ID_BYTES: Final = 16
_BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"
_FILE_MODE: Final = 0o666  # The umask decides.
_CHUNK_BYTES: Final = 1 << 20


class Identity(NamedTuple):
    """What tells that a file is still the same one, unchanged, without reading it."""

    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "Identity":
        """From what the system says of a file."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    @property
    def file(self) -> tuple[int, int]:
        """What tells it from every other file, whatever is in it."""
        return self.device, self.inode


class File:
    """An open file. It is closed with its last reference, so no thread can lose it in the middle of a call.

    Attributes:
        fd: The descriptor, for whoever locks it.
        path: Its name when it was opened.
    """

    fd = -1

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close it now. Only where no other thread can be using it; others just drop their reference."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)

    def read_at(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer only at the end of the file."""
        data = os.pread(self.fd, length, offset)
        if len(data) == length or not data:
            return data
        parts = [data]
        while data and (missing := length - sum(map(len, parts))):
            data = os.pread(self.fd, missing, offset + length - missing)
            parts.append(data)
        return b"".join(parts)

    def read_all(self) -> bytes:
        """The whole file."""
        return self.read_at(0, self.size())

    def write_at(self, data: bytes, offset: int) -> None:
        """Write all of `data` at `offset`, finishing short writes."""
        written = os.pwrite(self.fd, data, offset)
        while written != len(data):
            written += os.pwrite(self.fd, memoryview(data)[written:], offset + written)

    def sync(self) -> None:
        """Return once content and metadata are on the disk."""
        os.fsync(self.fd)

    def sync_data(self) -> None:
        """Return once the content, and the size that it needs, are on the disk."""
        os.fdatasync(self.fd)

    def truncate(self, size: int) -> None:
        """Cut the file to `size` bytes."""
        os.ftruncate(self.fd, size)

    def size(self) -> int:
        """Its length in bytes."""
        return os.lseek(self.fd, 0, os.SEEK_END)  # A fifth of what fstat costs; nobody uses the file offset.

    def identity(self) -> Identity:
        """Which file it is, and in what state."""
        return Identity.of(os.fstat(self.fd))

    def copy_mode(self, path: str) -> None:
        """Give it the permissions of the file at `path`, if there is one that it may copy them from."""
        try:
            mode = os.stat(path).st_mode & 0o7777
        except FileNotFoundError:
            return
        os.fchmod(self.fd, mode)

    def map_words(self, length: int, *, writable: bool) -> memoryview:
        """The first `length` bytes as native 8-byte words, shared with every process that maps them."""
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        return memoryview(mmap.mmap(self.fd, length, access=access)).cast("Q")

    def digest(self, size: int) -> bytes:
        """BLAKE2b of the content, `size` bytes long, read in pieces."""
        state = hashlib.blake2b(digest_size=size)
        offset = 0
        while data := self.read_at(offset, _CHUNK_BYTES):
            state.update(data)
            offset += len(data)
        return state.digest()


class Files:
    """The file system of the operating system."""

    def open(self, path: str, *, write: bool = False, create: bool = False) -> File:
        """Open an existing file, or one that may have to be created.

        Raises:
            OSError: As the system says; or something that is no file stands there.
        """
        flags = os.O_RDWR if write else os.O_RDONLY
        if create:
            flags |= os.O_CREAT
        # To open a pipe would wait for somebody at its other end.
        file = File(os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, _FILE_MODE), path)
        mode = os.fstat(file.fd).st_mode
        if not stat.S_ISREG(mode):
            code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
            raise OSError(code, f"not a file but {stat.filemode(mode)}; something else stands in its place", path)
        return file

    def create(self, path: str) -> File:
        """A new file, open for writing. Raises FileExistsError."""
        return File(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE), path)

    def open_if_exists(self, path: str) -> File | None:
        """Open a file for reading; None if there is none."""
        try:
            return self.open(path)
        except FileNotFoundError:
            return None

    def identity(self, path: str) -> Identity | None:
        """Which file stands at `path`; None if there is none."""
        try:
            return Identity.of(os.stat(path))
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> list[str]:
        """The names in a folder, sorted."""
        return sorted(os.listdir(folder))

    def make_folder(self, path: str) -> bool:
        """Whether the folder is new. Raises NotADirectoryError if a file is in the way."""
        try:
            os.mkdir(path)
        except FileExistsError:
            if os.path.isdir(path):
                return False
            raise NotADirectoryError(20, "a file is in the way of the folder", path) from None
        return True

    def rename(self, source: str, target: str) -> None:
        """Put `source` in the place of `target`, atomically."""
        os.replace(source, target)

    def unlink(self, path: str) -> None:
        """Remove a file, if it is there."""
        try:
            os.unlink(path)
        except FileNotFoundError:
            return

    def sync_folder(self, path: str) -> None:
        """Return once the names in a folder are on the disk."""
        folder = File(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), path)
        folder.sync()

    def boot_id(self) -> bytes:
        """What the system calls its present run, 16 bytes; zeros where it does not say."""
        try:
            text = self.open(_BOOT_ID).read_at(0, 64)
        except FileNotFoundError:
            return bytes(BOOT_ID_BYTES)
        return bytes.fromhex(text.decode().strip().replace("-", ""))


OS: Final = Files()
