"""Cut the power of a real file system while processes write to a database on it.

The file system lies in an image on a loop device. FS_IOC_SHUTDOWN stops it as a power cut does: what has not reached
the device by then never will, and the journal is not flushed. The processes are killed, the file system is mounted
again, which replays its journal, and the database is opened as in another run of the machine: with another boot id.

The oracle is what the writers told, with times, through pipes. Each writer's writes are numbered; every second one is a
transaction that also takes the next number of all, the others are batches of three. What is found must be

* everything told before the cut with ``durability="power"``, and everything told before a sync() or save() that ended
  before the cut;
* of all writers together, the first so many numbers of all, and of each writer the first so many writes, as they were
  told and whole: so an earlier state, and one that there was;
* nothing that was never written.

What it cannot show: the device itself loses nothing here, nor changes the order of writes that it was given.
"""

import contextlib
import ctypes
import faulthandler
import fcntl
import multiprocessing as mp
import os
import shutil
import struct
import subprocess
import time
import traceback
from collections import Counter
from multiprocessing.connection import wait
from typing import NamedTuple

import microdb
from microdb.files import BOOT_ID_BYTES, Files

MEGABYTES = {"ext4": 64, "xfs": 320}  # xfs is not made smaller.

FORK = mp.get_context("fork")
WRITERS = 3
PARTS = 3
PAGE = 4096

_SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN: _IOR('X', 125, __u32)
_FLUSH_ALL, _FLUSH_LOG, _FLUSH_NOTHING = 0, 1, 2
_START_WRITING = 2  # SYNC_FILE_RANGE_WRITE


class NoDiskError(Exception):
    """No file system can be made and mounted here; why."""


class Disk:
    """A file system on a loop device.

    Attributes:
        kind: Of the file system.
        point: Where it is mounted, if it is.
    """

    def __init__(self, kind, device, point):
        self.kind = kind
        self.point = point
        self._device = device

    @contextlib.contextmanager
    def mounted(self):
        _run("mount", "-t", self.kind, self._device, str(self.point))
        try:
            yield
        except BaseException:
            # A traceback holds files open.
            _run("umount", "--lazy", str(self.point))
            raise
        _run("umount", str(self.point))

    def cut(self, flag=_FLUSH_NOTHING):
        """Stop it: nothing is written any more."""
        folder = os.open(self.point, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(folder, _SHUTDOWN, struct.pack("=I", flag))
        finally:
            os.close(folder)


@contextlib.contextmanager
def disk(folder, kind):
    """A new file system. Raises NoDiskError where that is not possible."""
    missing = [tool for tool in (f"mkfs.{kind}", "losetup", "mount") if shutil.which(tool) is None]
    if missing:
        raise NoDiskError(f"{', '.join(missing)} not installed")
    if os.geteuid() != 0:
        raise NoDiskError("only root may mount")
    image, point = folder / f"{kind}.img", folder / kind
    point.mkdir()
    with open(image, "wb") as file:
        file.truncate(MEGABYTES[kind] << 20)
    try:
        _run(f"mkfs.{kind}", "-q", str(image))
        device = _run("losetup", "--find", "--show", str(image)).strip()
    except subprocess.CalledProcessError as error:
        raise NoDiskError(f"no loop device: {error.stderr.strip()}") from None
    try:
        made = Disk(kind, device, point)
        try:
            with made.mounted():
                pass
        except subprocess.CalledProcessError as error:
            raise NoDiskError(f"{kind} cannot be mounted: {error.stderr.strip()}") from None
        yield made
    finally:
        _run("losetup", "--detach", device)
        image.unlink()


def _run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Boot(Files):
    """The real file system, in another run of the machine."""

    def __init__(self, boot_id):
        self._boot_id = boot_id

    def boot_id(self):
        return self._boot_id


# What the processes do that the cut meets.


def expected(writer, i, n):
    """The records of a writer's i-th write; `n`: its number among all, if it has one."""
    text = f"{writer}-{i} " * (i * 7 % 60)
    if n is not None:
        return [{"id": f"{writer}-{i}", "writer": writer, "i": i, "n": n, "text": text}]
    return [
        {"id": f"{writer}-{i}-{part}", "writer": writer, "i": i, "part": part, "text": text} for part in range(PARTS)
    ]


def write(mdb, writer, i):
    """The writer's i-th write, and its number among all."""
    if i % 2:
        mdb.upsert_many(expected(writer, i, None))
        return None
    with mdb.transaction():
        n = mdb.get(("last",), {"n": 0})["n"] + 1
        mdb.upsert({"id": "last", "n": n})
        mdb.upsert(expected(writer, i, n)[0])
    return n


def write_on(tell, path, options, writer, i):
    mdb = microdb.MicroDB(path, ["id"], **options)
    while True:
        n = write(mdb, writer, i)
        tell("wrote", writer, i, n)
        i += 1
        if i % 50 == 0:
            begun = time.monotonic()
            mdb.sync()
            tell("synced", begun)


def save_on(tell, path, options):
    mdb = microdb.MicroDB(path, ["id"], **options)
    while True:
        begun = time.monotonic()
        mdb.save()
        tell("synced", begun)


def write_pages_back(tell, path, rng):
    """Have the system write single pages, of any file and in any order, when nobody asked for it: as it may."""
    libc = ctypes.CDLL(None)
    while True:
        # Gone again, or not yet there: a save renames its files.
        with contextlib.suppress(FileNotFoundError):
            names = [path, *(os.path.join(f"{path}.wal", name) for name in os.listdir(f"{path}.wal"))]
            fd = os.open(rng.choice(names), os.O_RDWR)
            page = max(0, os.fstat(fd).st_size // PAGE - rng.randrange(8))
            libc.sync_file_range(fd, ctypes.c_int64(page * PAGE), ctypes.c_int64(PAGE), _START_WRITING)
            os.close(fd)
        time.sleep(0.0005)  # Leave the processor to the writers.


def _reporting(pipe, target, *args):
    """Run it, and tell when it failed: after the cut it must, before it must not."""

    faulthandler.disable()  # After the cut, to touch a mapped page may be a SIGBUS.

    def tell(what, *more):
        pipe.send((what, time.monotonic(), *more))

    try:
        target(tell, *args)
    except BaseException:
        tell("failed", traceback.format_exc())
    pipe.recv()  # Until it is killed.


class Crew:
    """Processes, and what they told."""

    def __init__(self):
        self._members = []
        self.told = []

    def start(self, target, *args):
        ours, theirs = FORK.Pipe()
        process = FORK.Process(target=_reporting, args=(theirs, target, *args))
        process.start()
        theirs.close()
        self._members.append((ours, process))

    def listen(self, until):
        """Take in what they tell until a time."""
        pipes = [pipe for pipe, _ in self._members]
        while (left := until - time.monotonic()) > 0:
            for pipe in wait(pipes, timeout=left):
                self.told.append(pipe.recv())

    def kill(self):
        for _, process in self._members:
            process.kill()
        for pipe, process in self._members:
            process.join()
            with contextlib.suppress(EOFError):
                while True:
                    self.told.append(pipe.recv())
            pipe.close()
            process.close()
        self._members = []


# The oracle.


class History:
    """What was told of a database through all its cuts, and what must therefore be there.

    Attributes:
        told: How many writes were told before a cut.
        required: How many of them had to be there.
        undone: How many of the others were not.
    """

    def __init__(self, *, power):
        self._power = power
        self._known = {}  # (writer, i): n or None
        self._floor = Counter()
        self.told = self.required = self.undone = 0

    def begins(self, writer):
        """Where a writer goes on."""
        return self._floor[writer]

    def take(self, told, cut):
        """All that was told in one run of the machine, and when it ended."""
        failed = [what for what in told if what[0] == "failed" and what[1] < cut]
        assert not failed, failed[0][2]
        wrote = [what[1:] for what in told if what[0] == "wrote"]
        synced = [what[2] for what in told if what[0] == "synced" and what[1] < cut]
        safe = cut if self._power else max(synced, default=0)
        for at, writer, i, n in wrote:
            self._known[writer, i] = n
            self.told += at < cut
            if at < safe:
                self.required += 1
                self._floor[writer] = max(self._floor[writer], i + 1)

    def check(self, mdb):
        """Whether what is there may be there; then that is what there is from now on."""
        records = {record["id"]: record for record in mdb.all()}
        last = records.pop("last", {"n": 0})["n"]
        by_write = {}
        for record in records.values():
            by_write.setdefault((record["writer"], record["i"]), []).append(record)
        self._check_numbers(by_write, last)
        for writer in range(WRITERS):
            count = sum(who == writer for who, _ in by_write)
            known = sum(who == writer for who, _ in self._known)
            self._check_writer(by_write, writer, count)
            assert count >= self._floor[writer], f"writer {writer}: {count} are there, {self._floor[writer]} must be"
            assert count <= known + 1, f"writer {writer}: {count} are there, {known} were told"
            self.undone += max(known - count, 0)
            self._floor[writer] = count
        self._known = {(writer, i): found[0].get("n") for (writer, i), found in by_write.items()}

    def _check_numbers(self, by_write, last):
        numbers = {found[0]["n"]: write for write, found in by_write.items() if "n" in found[0]}
        assert sorted(numbers) == list(range(1, last + 1)), "not the first numbers of all"
        for told, n in self._known.items():
            assert n is None or n > last or numbers[n] == told, f"{told} was told to be number {n}, found {numbers[n]}"

    def _check_writer(self, by_write, writer, count):
        for i in range(count):
            found = by_write.get((writer, i))
            assert found is not None, f"writer {writer}: {count} are there, and {i} is not"
            found.sort(key=lambda record: record["id"])
            assert found == expected(writer, i, found[0].get("n")), f"writer {writer}, write {i}: not as written"
            assert ("n" in found[0]) == (i % 2 == 0)


class Figures(NamedTuple):
    """What came of some trials."""

    cuts: int = 0
    told: int = 0
    required: int = 0
    undone: int = 0

    def __add__(self, other):
        return Figures(*map(sum, zip(self, other, strict=True)))

    def __str__(self):
        return (
            f"figures: {self.cuts} power cuts, {self.told} writes told before, {self.required} of them durable, "
            f"0 lost; {self.undone} others undone, the last ones"
        )


def trial(disk_, number, rng, *, power, saves, cuts=2):
    """One database through some cuts, each while it is written to; and what is there after each."""
    path = str(disk_.point / f"{number}.json")
    history = History(power=power)
    for _ in range(cuts):
        options = {"files": Boot(rng.randbytes(BOOT_ID_BYTES)), "durability": "power" if power else "process"}
        crew = Crew()
        with disk_.mounted():
            try:
                for writer in range(WRITERS):
                    crew.start(write_on, path, options, writer, history.begins(writer))
                if saves:
                    crew.start(save_on, path, options)
                crew.start(write_pages_back, path, rng)
                crew.listen(time.monotonic() + rng.uniform(0, 0.2))
                cut = time.monotonic()
                disk_.cut(rng.choices([_FLUSH_NOTHING, _FLUSH_LOG, _FLUSH_ALL], [8, 1, 1])[0])
            finally:
                crew.kill()
        history.take(crew.told, cut)
        with disk_.mounted():
            _reopen(path, Boot(rng.randbytes(BOOT_ID_BYTES)), history)
    with disk_.mounted():
        shutil.rmtree(f"{path}.wal")
        with contextlib.suppress(FileNotFoundError):  # Nobody saved.
            os.unlink(path)
    return Figures(cuts, history.told, history.required, history.undone)


def _reopen(path, files, history):
    """What is found, by the first to open after the cut and by the next."""
    with microdb.MicroDB(path, ["id"], files=files) as mdb:
        history.check(mdb)
        mdb.upsert({"id": "last", **mdb.get(("last",), {"n": 0})})
    with microdb.MicroDB(path, ["id"], files=files) as mdb:
        history.check(mdb)
