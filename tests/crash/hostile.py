"""Hostile files, and what opening them must come to. The files are crafted: an attacker computes every crc anew.

Each file is visited in a process of its own, under limits of memory and of time that follow from the file's size. The
oracle is what that process tells its parent before it ends, how the system says that it ended, and the files as they
stood before: a visit opens the database or raises an error of microdb's own, and a refusal leaves the files alone.
"""

import contextlib
import json
import os
import resource
import signal
import stat
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import filelock  # noqa: F401  # Loaded here once, not in each visit.
import msgpack
import msgspec  # noqa: F401  # As above.

import microdb
from children import spawned
from microdb import cli
from microdb.files import OS
from microdb.wal.format import CRC, FRAME, LOG_HEADER, MAGIC, NO_SNAPSHOT, VERSION
from microdb.wal.header import HEAD, HEADER_BYTES, OWNER
from microdb.wal.log_file import snapshot_hash
from strategies import same

KIB = 1 << 10
MIB = 1 << 20

ALLOWANCE_BYTES = 16 * MIB
"""What a visit may take whatever the file is: imports, stacks, the allocator's arenas."""

RATIO = 10
"""How many bytes of memory a byte of a file may take."""

CPU_S = 5
WALL_S = 60
"""A visit that waits takes no CPU time: whoever is not back by then hangs."""

OPEN, READ_ONLY, REPAIR, KEEP = MODES = ("open", "read_only", "repair", "keep")


class Visit(NamedTuple):
    """What came of one visit.

    Attributes:
        outcome: "fine", or the name of the class that was raised.
        ours: Whether that class is microdb's own.
        is_os_error: Whether it is an OSError.
        message: What it says.
        exitcode: 0; less than 0 if a signal ended the process.
        cpu_s: CPU time.
        peak_bytes: How far its address space grew.
        file_bytes: How long all files were together.
    """

    outcome: str
    ours: bool
    is_os_error: bool
    message: str
    exitcode: int
    cpu_s: float
    peak_bytes: int
    file_bytes: int

    @property
    def ratio(self) -> float:
        """Memory beyond the allowance, in units of the file."""
        return max(self.peak_bytes - ALLOWANCE_BYTES, 0) / max(self.file_bytes, 1)


@contextlib.contextmanager
def visitor():
    """A function that visits: ``visit(path, keys, mode, ratio=…, cpu_s=…)``."""
    with spawned((_serve,)) as ([pipe], _):
        assert pipe.recv() == "ready"

        def visit(path, keys=("id",), mode=OPEN, *, ratio=RATIO, cpu_s=CPU_S) -> Visit:
            size = file_bytes(path)
            pipe.send((str(path), list(keys), mode, ALLOWANCE_BYTES + int(ratio * size), cpu_s))
            told, exitcode = pipe.recv()
            told = told or {"outcome": _death(exitcode), "ours": False, "is_os_error": False, "message": ""}
            cpu_s, peak = told.pop("cpu_s", float(cpu_s)), told.pop("peak_bytes", 0)
            return Visit(**told, exitcode=exitcode, cpu_s=cpu_s, peak_bytes=peak, file_bytes=size)

        yield visit


def _death(exitcode):
    return signal.Signals(-exitcode).name if exitcode < 0 else f"exit {exitcode}"


def _serve(pipe):
    """Make each visit in a fork, which has all that is imported and nothing that is open."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # Until the process ends.
    pipe.send("ready")
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        ours, theirs = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(ours)
            _visit(theirs, job)
            os._exit(0)
        os.close(theirs)
        with os.fdopen(ours, "rb") as answers:
            told = answers.read()
        exitcode = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        pipe.send((json.loads(told) if told else None, exitcode))


def _visit(answer, job):
    path, keys, mode, limit_bytes, cpu_s = job
    # A signal's default action ends the process, whatever it is in the middle of.
    for number in (signal.SIGALRM, signal.SIGXCPU):
        signal.signal(number, signal.SIG_DFL)
    signal.alarm(WALL_S)
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    base = _vm_bytes("VmSize")
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (base + limit_bytes, hard))
    told: dict[str, Any] = {"outcome": "fine", "ours": True, "is_os_error": False, "message": ""}
    try:
        VISITS[mode](path, keys)
    except BaseException as error:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        told["outcome"] = type(error).__name__
        told["ours"] = isinstance(error, microdb.MicroDBError)
        told["is_os_error"] = isinstance(error, OSError)
        told["message"] = str(error)[:300]
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    used = resource.getrusage(resource.RUSAGE_SELF)
    told["cpu_s"] = used.ru_utime + used.ru_stime
    told["peak_bytes"] = _vm_bytes("VmPeak") - base
    os.write(answer, json.dumps(told).encode())


def _vm_bytes(name):
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) * KIB for line in lines if line.startswith(name + ":"))


def _open(path, keys, **options):
    with microdb.MicroDB(path, keys, **options) as mdb:
        for record in mdb.all():
            mdb.get(record)


def _repair(path, keys):
    code = cli.main(["repair", path, "--keys", ",".join(keys)])
    assert code in (0, 1, 2)


def _keep(path, keys):
    """What was opened can be saved, and comes back the same; what was refused was refused before."""
    with microdb.MicroDB(path, keys) as mdb:
        found = dict(mdb.items())
        mdb.save()
    with microdb.MicroDB(path, keys) as mdb:
        assert same(found, dict(mdb.items())), "it came back as something else"


VISITS: dict[str, Callable[[str, list[str]], None]] = {
    OPEN: _open,
    READ_ONLY: lambda path, keys: _open(path, keys, read_only=True),
    REPAIR: _repair,
    KEEP: _keep,
}


# ---------------------------------------------------------------------------------------------- What stands on the disk


def tree(path):
    """The snapshot and all in its folder: the bytes of files, of everything else what it is."""
    folder = Path(f"{path}.wal")
    places = [Path(path), folder, *(sorted(folder.iterdir()) if _kind(folder) == stat.S_IFDIR else [])]
    return {place.name: _content(place) for place in places if _kind(place) is not None}


def file_bytes(path):
    return sum(len(content) for content in tree(path).values() if isinstance(content, bytes))


def _kind(place):
    try:
        return stat.S_IFMT(os.lstat(place).st_mode)
    except FileNotFoundError:
        return None


def _content(place):
    kind = _kind(place)
    if kind == stat.S_IFREG:
        return place.read_bytes()
    return os.readlink(place) if kind == stat.S_IFLNK else kind


def without_page(files, path):
    """What a refusal must leave alone: all but the lock, the page where there was none, and who held the lock last."""
    files = dict(files)
    folder = Path(path).name + ".wal"
    page = files.get("header", b"")
    if isinstance(page, bytes):
        page = bytearray(page.ljust(HEADER_BYTES, b"\0"))
        page[8 * OWNER : 8 * OWNER + 8] = bytes(8)
        files["header"] = bytes(page)
    files.setdefault("lock", b"")
    files.setdefault(folder, stat.S_IFDIR)
    return files


# ------------------------------------------------------------------------------------------------------------- Crafting

BOOT = b"\x11" * 16
SALT = b"\x22" * 8


def chained(parts, crc):
    """Frames of payloads, or of (payload, flags, sequence): each with the crc that it should have."""
    data = b""
    for number, part in enumerate(parts):
        payload, flags, sequence = part if isinstance(part, tuple) else (part, 0, number + 1)
        body = FRAME.pack(len(payload), flags, sequence) + payload
        crc = crc32(body, crc)
        data += body + CRC.pack(crc)
    return data


def log_header(*, generation=1, base=0, names=("id",), snapshot=None, boot_id=BOOT, version=VERSION, flags=0):
    """A log header with a right crc. `names` may be bytes."""
    raw = names if isinstance(names, bytes) else msgpack.packb(list(names))
    bound = NO_SNAPSHOT if snapshot is None else snapshot_hash(snapshot)
    fixed = LOG_HEADER.pack(MAGIC, version, flags, generation, SALT, boot_id, base, bound, len(raw)) + raw
    return fixed + CRC.pack(crc32(fixed))


def write_log(path, payloads=(), *, tail=b"", snapshot=None, name=None, **fields):
    """A database of a snapshot and a log that follows it, whose frames hold these payloads."""
    head = log_header(snapshot=snapshot, **fields)
    base = fields.get("base", 0)
    (crc,) = CRC.unpack(head[-4:])
    parts = [part if isinstance(part, tuple) else (part, 0, base + n) for n, part in enumerate(payloads, 1)]
    folder = Path(f"{path}.wal")
    folder.mkdir(exist_ok=True)
    (folder / (name or f"{fields.get('generation', 1):010}.log")).write_bytes(head + chained(parts, crc) + tail)
    if snapshot is not None:
        Path(path).write_bytes(snapshot)


def write_page(path, words, *, size=HEADER_BYTES):
    """A header page of this run of the machine, with these words besides."""
    folder = Path(f"{path}.wal")
    folder.mkdir(exist_ok=True)
    file = folder / "header"
    file.write_bytes(bytes(size))
    page = [0] * (HEADER_BYTES // 8)
    page[0:2] = [int.from_bytes(b"microdbH", sys.byteorder), 1]
    page[20:22] = struct.unpack("=QQ", OS.boot_id())
    page[22] = file.stat().st_ino
    page[28] = page[29] = struct.unpack("=Q", SALT)[0]
    for word, value in words.items():
        page[word] = value
    file.write_bytes(struct.pack(f"={len(page)}Q", *page)[:size])


def head_word(generation, offset):
    return {HEAD: generation << 36 | offset}
