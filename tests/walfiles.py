"""The files of a database, looked at and damaged by hand."""

import struct
from zlib import crc32

from microdb.files import OS
from microdb.wal.format import FRAME, FRAME_BYTES_MIN, OFFSET_MAX
from microdb.wal.header import HEAD
from microdb.wal.log_file import open_log
from microdb.wal.reader import read_frames
from microdb.wal.writer import write_frames


class Wal:
    """The files of the database of a test."""

    def __init__(self, path):
        self.snapshot = path
        self.folder = path.parent / (path.name + ".wal")
        self.header = self.folder / "header"

    def log(self, generation=1):
        return self.folder / f"{generation:010}.log"

    def head(self):
        return struct.unpack_from("=Q", self.header.read_bytes(), 8 * HEAD)[0] & OFFSET_MAX

    def torn(self):
        return list(self.folder.glob("*.torn"))

    def forget_boot(self):
        """As if the machine had been started anew: the page is not of this run, and neither is any log."""
        self.header.unlink()

    def frames(self, generation=1):
        """Offset and length of every frame, from the lengths that they state."""
        data = self.log(generation).read_bytes()
        at = 76 + struct.unpack_from("<I", data, 72)[0] + 4
        found = []
        while at < len(data):
            length = FRAME.unpack_from(data, at)[0] + FRAME_BYTES_MIN
            found.append((at, length))
            at += length
        return found


def append_payload(wal, payload):
    """Add a frame with this payload to the log of a closed database, as who knows the format but no changes."""
    log = open_log(OS.open(str(wal.log()), write=True))
    data = log.file.read_all()
    end = read_frames(data[log.header.end :], log.header.start).end
    log.file.write_at(write_frames([payload], end)[0], end.offset)


def set_boot_id(log, boot_id):
    """Give a log another boot id, and all its frames the crcs that follow from it."""
    data = bytearray(log.read_bytes())
    data[32:48] = boot_id
    end = 76 + struct.unpack_from("<I", data, 72)[0]
    crc = crc32(data[:end])
    struct.pack_into("<I", data, end, crc)
    at = end + 4
    while at < len(data):
        length = FRAME.unpack_from(data, at)[0] + FRAME_BYTES_MIN
        crc = crc32(data[at : at + length - 4], crc)
        struct.pack_into("<I", data, at + length - 4, crc)
        at += length
    log.write_bytes(data)


def ids(mdb):
    return [record["id"] for record in mdb.all()]


def overwrite(file, offset, data):
    with open(file, "r+b") as opened:
        opened.seek(offset)
        opened.write(data)
