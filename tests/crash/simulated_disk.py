"""A disk in memory that remembers what a power cut may take from it, and every step that was made on it.

`Disk` keeps, of each file, what is read now and what is certain to survive a power cut; of each folder likewise; and in
between the writes, cuts and names that nobody has fsynced yet. Each step keeps the whole state behind it, which costs
little as all of it is immutable. So a crash at any step is a look at the list, and nothing has to be run again.

`Process` is the door to such a disk for one simulated process, in the place of `microdb.files.OS`. Stores into the
mapped page are steps, too. Locks are real ones. `power_cuts` gives what a power cut may leave; `killed` what a dead
process does.

What is assumed of the disk is no more than ARCHITECTURE.md says. Of data that was not fsynced there may be none, some
of the writes in order and the last of them torn, zeros, all, or all with a hole in it; a file may have got its new
length alone, or keep an old one. Of names that were not fsynced any may be there: a rename both ways or not at all.
"""

import contextlib
import errno
import itertools
import math
import os
import struct
import sys
import threading
import weakref
from pathlib import Path
from typing import NamedTuple

import microdb
from microdb.files import File, Files, Identity

PACKAGE = os.path.join(os.path.dirname(microdb.__file__), "")
ROOT = 1
BOOT = b"boot 0 of a disk"
HELPERS = {"sync_file", "_sync_old", "create_log", "_write_aside"}
"""Functions that fsync for whoever calls them: who that is belongs to the name of the fsync."""

_devices = itertools.count(1)
_boots = itertools.count(1)


class Killed(BaseException):
    """The process that calls is dead: nothing it does happens any more."""


class Write(NamedTuple):
    """Bytes that came to a place."""

    offset: int
    data: bytes

    def on(self, content):
        return content[: self.offset].ljust(self.offset, b"\0") + self.data + content[self.offset + len(self.data) :]


class Cut(NamedTuple):
    """A file that was made this long."""

    size: int

    def on(self, content):
        return content[: self.size].ljust(self.size, b"\0")


class Content(NamedTuple):
    """A file.

    Attributes:
        live: What is read now.
        durable: What was fsynced; several where an fsync failed, and nobody knows.
        pending: The writes and cuts since, in order.
        past: If it is mapped, all that it was: on the disk each of its words may be as it was at any of these times.
        stored: At which bytes of it words were stored.
        version: Of the last change, for its time stamp.
    """

    live: bytes = b""
    durable: tuple = (b"",)
    pending: tuple = ()
    past: tuple = ()
    stored: frozenset = frozenset()
    version: int = 0

    @property
    def is_page(self):
        return bool(self.past)


class Naming(NamedTuple):
    """A change of names that is made whole or not at all: each a folder, a name, and the file; None: the name goes."""

    serial: int
    names: tuple


class Folder(NamedTuple):
    """A folder: names now; names that were fsynced, each with the serial of what gave or took it; what came since."""

    live: dict
    durable: dict
    pending: tuple = ()


class State(NamedTuple):
    """All of a disk at a moment, and the run of the machine."""

    files: dict
    folders: dict
    boot_id: bytes

    def tree(self):
        """What is read now, by path."""
        return dict(self._below(ROOT, ""))

    def _below(self, folder, before):
        for name, number in self.folders[folder].live.items():
            if number in self.folders:
                yield before + name + "/", None
                yield from self._below(number, before + name + "/")
            else:
                yield before + name, self.files[number].live


EMPTY = State({}, {ROOT: Folder({}, {})}, BOOT)


class Step(NamedTuple):
    """One thing that was done to the disk.

    Attributes:
        kind: Which call.
        path: Of what.
        fsync: Which fsync of microdb's code it is, if it is one; see `name_of_fsync`.
        number: Which file.
        write: What was written.
        state: The disk after it.
    """

    kind: str
    path: str
    fsync: str | None
    number: int | None
    write: Write | None
    state: State


class Disk:
    """A disk, and the steps made on it.

    Attributes:
        steps: Every one, in order.
        ignored: The name of an fsync that does nothing.
        reached: Where in microdb's code fsyncs were called: file and line.
    """

    def __init__(self, folder, state=EMPTY, *, ignored=None):
        self.folder = str(folder)
        self.begin = state
        self.files = state.files
        self.folders = state.folders
        self.boot_id = state.boot_id
        self.steps = []
        self.ignored = ignored
        self.reached = set()
        self.serials = itertools.count(1 + _highest_serial(state))
        self.numbers = itertools.count(1 + max([ROOT, *state.files, *state.folders]))
        self.guard = threading.RLock()
        self._locks = {}

    def __del__(self):
        for fd in self._locks.values():
            os.close(fd)

    @property
    def state(self):
        return State(self.files, self.folders, self.boot_id)

    def after(self, count):
        """The state after so many steps."""
        return self.steps[count - 1].state if count else self.begin

    def note(self, kind, path, *, fsync=None, number=None, write=None):
        self.steps.append(Step(kind, path, fsync, number, write, self.state))

    def find(self, path):
        """The number of what stands at a path; None for nothing."""
        if path == self.folder:
            return ROOT
        parent = self.find(os.path.dirname(path))
        return self.folders[parent].live.get(os.path.basename(path)) if parent in self.folders else None

    def place(self, path):
        parent = self.find(os.path.dirname(path))
        if parent not in self.folders:
            raise FileNotFoundError(errno.ENOENT, "no such folder", path)
        return parent, os.path.basename(path)

    def put(self, number, content):
        self.files = {**self.files, number: content}

    def name(self, *names):
        """Give and take names; it is fsynced with the folder of the first."""
        naming = Naming(next(self.serials), names)
        folders = dict(self.folders)
        for folder, name, number in names:
            live = {key: value for key, value in folders[folder].live.items() if key != name}
            folders[folder] = folders[folder]._replace(live=live if number is None else {**live, name: number})
        first = names[0][0]
        folders[first] = folders[first]._replace(pending=(*folders[first].pending, naming))
        self.folders = folders

    def lock_fd(self, number):
        """A new open file for locks on a file."""
        if number not in self._locks:
            self._locks[number] = os.memfd_create("lock", os.MFD_CLOEXEC)
        return os.open(f"/proc/self/fd/{self._locks[number]}", os.O_RDWR | os.O_CLOEXEC)

    def ignores(self, fsync):
        return fsync is not None and fsync == self.ignored

    def sync(self, number):
        file = self.files[number]
        durable = (file.live,)
        if len(file.durable) > 1:
            durable = tuple(dict.fromkeys(_made(base, file.pending) for base in file.durable))
        self.put(number, file._replace(durable=durable, pending=()))

    def sync_failed(self, number):
        """The system drops what it could not write, and calls the rest good from now on."""
        file = self.files[number]
        found = (content for base in file.durable for _, content in _contents_from(base, file, (0.5,)))
        self.put(number, file._replace(durable=tuple(dict.fromkeys(found)), pending=()))

    def sync_folder(self, folder):
        pending = self.folders[folder].pending
        folders = dict(self.folders)
        folders[folder] = folders[folder]._replace(pending=())
        for number, durable in _named({key: one.durable for key, one in folders.items()}, pending).items():
            folders[number] = folders[number]._replace(durable=durable)
        self.folders = folders


class Process(Files):
    """The file system as one process sees it.

    Attributes:
        disk: What it sees.
        meet: Called before each step with its kind and path; may raise. An OSError fails it.
    """

    def __init__(self, disk, meet=None):
        self.disk = disk
        self.meet = meet
        # Locks are shared within a process by device and inode; each simulated process has its own.
        self.device = next(_devices)
        self.is_dead = False
        self._open_files = weakref.WeakSet()

    def die(self):
        """From now on nothing it does happens, and its locks are free."""
        self.is_dead = True
        for file in list(self._open_files):
            file.close()

    def come_to(self, kind, path):
        if self.is_dead:
            raise Killed
        if self.meet is not None:
            self.meet(kind, path)
        if self.is_dead:
            raise Killed

    def open(self, path, *, write=False, create=False):
        if self.is_dead:
            raise Killed
        number = self.disk.find(path)
        if number is None:
            if not create:
                raise FileNotFoundError(errno.ENOENT, "no such file", path)
            return self.create(path)
        return self._opened(number, path, write=write)

    def _opened(self, number, path, *, write):
        file = SimulatedFile(self, number, path, write=write)
        self._open_files.add(file)
        return file

    def create(self, path):
        self.come_to("create", path)
        disk = self.disk
        with disk.guard:
            if disk.find(path) is not None:
                raise FileExistsError(errno.EEXIST, "exists", path)
            number = next(disk.numbers)
            folder, name = disk.place(path)
            disk.put(number, Content())
            disk.name((folder, name, number))
            disk.note("create", path, number=number)
        return self._opened(number, path, write=True)

    def identity(self, path):
        if self.is_dead:
            raise Killed
        number = self.disk.find(path)
        return None if number is None else self.identity_of(number)

    def identity_of(self, number):
        file = self.disk.files.get(number, Content())
        return Identity(self.device, number, len(file.live), file.version)

    def names(self, folder):
        number = self.disk.find(folder)
        if number is None:
            raise FileNotFoundError(errno.ENOENT, "no such folder", folder)
        return sorted(self.disk.folders[number].live)

    def make_folder(self, path):
        disk = self.disk
        number = disk.find(path)
        if number is not None:
            if number in disk.folders:
                return False
            raise NotADirectoryError(errno.ENOTDIR, "a file is in the way of the folder", path)
        self.come_to("make_folder", path)
        with disk.guard:
            number = next(disk.numbers)
            folder, name = disk.place(path)
            disk.folders = {**disk.folders, number: Folder({}, {})}
            disk.name((folder, name, number))
            disk.note("make_folder", path)
        return True

    def rename(self, source, target):
        self.come_to("rename", target)
        disk = self.disk
        with disk.guard:
            number = disk.find(source)
            if number is None:
                raise FileNotFoundError(errno.ENOENT, "no such file", source)
            disk.name((*disk.place(target), number), (*disk.place(source), None))
            disk.note("rename", target, number=number)

    def unlink(self, path):
        self.come_to("unlink", path)
        disk = self.disk
        with disk.guard:
            if disk.find(path) is not None:
                disk.name((*disk.place(path), None))
                disk.note("unlink", path)

    def sync_folder(self, path):
        fsync = name_of_fsync("sync_folder", path, self.disk)
        self.come_to("sync_folder", path)
        disk = self.disk
        with disk.guard:
            if not disk.ignores(fsync):
                disk.sync_folder(disk.find(path))
            disk.note("sync_folder", path, fsync=fsync)

    def boot_id(self):
        return self.disk.boot_id


class SimulatedFile(File):
    """An open file of a simulated disk."""

    def __init__(self, process, number, path, *, write):
        self.process = process
        self.number = number
        self.path = path
        self.is_writable = write
        self._fd = -1

    @property
    def fd(self):
        if self.process.is_dead:
            raise Killed
        if self._fd < 0:
            self._fd = self.process.disk.lock_fd(self.number)
        return self._fd

    def close(self):
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    @property
    def content(self):
        if self.process.is_dead:
            raise Killed
        return self.process.disk.files[self.number]

    def read_at(self, offset, length):
        return self.content.live[offset : offset + length]

    def size(self):
        return len(self.content.live)

    def identity(self):
        if self.process.is_dead:
            raise Killed
        return self.process.identity_of(self.number)

    def copy_mode(self, path):
        """Permissions are not simulated."""

    def write_at(self, data, offset):
        self._change("write", Write(offset, bytes(data)))

    def truncate(self, size):
        self._change("truncate", Cut(size))

    def store(self, word, value):
        self._change("store", Write(8 * word, struct.pack("=Q", value)))

    def _change(self, kind, change):
        if not self.is_writable:
            raise OSError(errno.EBADF, "not open for writing", self.path)
        self.process.come_to(kind, self.path)
        disk = self.process.disk
        with disk.guard:
            file = disk.files[self.number]
            content = file._replace(live=change.on(file.live), version=len(disk.steps) + 1)
            if kind == "store":
                content = content._replace(past=(*file.past, file.live), stored=file.stored | {change.offset})
            else:
                content = content._replace(pending=(*file.pending, change))
            disk.put(self.number, content)
            disk.note(kind, self.path, number=self.number, write=change if kind == "write" else None)

    def sync(self):
        self._sync("sync")

    def sync_data(self):
        self._sync("sync_data")

    def _sync(self, kind):
        disk = self.process.disk
        fsync = name_of_fsync(kind, self.path, disk)
        try:
            self.process.come_to(kind, self.path)
        except OSError:
            with disk.guard:
                disk.sync_failed(self.number)
                disk.note(kind + " failed", self.path, number=self.number)
            raise
        with disk.guard:
            if not disk.ignores(fsync):
                disk.sync(self.number)
            disk.note(kind, self.path, fsync=fsync, number=self.number)

    def map_words(self, length, *, writable):
        return Words(self, 0, length // 8, writable=writable)


class Words:
    """The words of a mapped page; each store is a step."""

    def __init__(self, file, first, length, *, writable):
        self.file = file
        self.first = first
        self.length = length
        self.readonly = not writable

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if isinstance(index, slice):
            start, stop, _ = index.indices(self.length)
            return Words(self.file, self.first + start, stop - start, writable=not self.readonly)
        if self.file.process.is_dead and sys._getframe(2).f_code.co_name == "__del__":
            return 0  # Who is dead runs no destructors.
        return struct.unpack_from("=Q", self.file.content.live, 8 * (self.first + index))[0]

    def __setitem__(self, index, value):
        if self.readonly:
            raise TypeError("cannot modify read-only memory")
        self.file.store(self.first + index, value)


# Which fsync it is.


def name_of_fsync(kind, path, disk):
    """Who calls it and on what, as ``_switch: sync_folder folder``, whatever the module and the line.

    None for a call that does not come from microdb.
    """
    frame = sys._getframe(1)
    functions = []
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(PACKAGE):
            if not functions:
                disk.reached.add((code.co_filename, frame.f_lineno))
            functions.append(code.co_name)
            if code.co_name not in HELPERS:
                break
        frame = frame.f_back
    return None if not functions else f"{' > '.join(reversed(functions))}: {kind} {role(path)}"


def role(path):
    """What a file is to a database, whatever its number and whose it is."""
    name = os.path.basename(path)
    if name.endswith(".wal"):
        return "folder"
    kinds = {".log": "log", ".history": "history", ".tmp": "aside", ".torn": "torn", ".json": "snapshot"}
    return kinds.get(os.path.splitext(name)[1], name if name in ("header", "lock") else "parent")


def fsyncs_in_code():
    """Each place in microdb's code, outside of the door itself, that calls an fsync of it: file and line."""
    for path in sorted(Path(PACKAGE).rglob("*.py")):
        if path.name != "files.py" and "demo" not in path.parts:
            for number, line in enumerate(path.read_text().splitlines(), 1):
                is_example = line.lstrip().startswith((">>> ", "... "))
                if not is_example and (".sync()" in line or ".sync_data()" in line or ".sync_folder(" in line):
                    yield str(path), number


# What a crash may leave.


def _highest_serial(state):
    serials = (serial for folder in state.folders.values() for serial, _ in folder.durable.values())
    pending = (naming.serial for folder in state.folders.values() for naming in folder.pending)
    return max(itertools.chain(serials, pending), default=0)


def _made(content, changes):
    for change in changes:
        content = change.on(content)
    return content


def _named(durable, namings):
    """Names that are certain, with some more made; a later change of a name wins, in whatever order they came there."""
    found = {folder: dict(names) for folder, names in durable.items()}
    for serial, names in namings:
        for folder, name, number in names:
            if found[folder].get(name, (0, None))[0] < serial:
                found[folder][name] = (serial, number)
    return found


class Effort(NamedTuple):
    """How many states are built.

    Attributes:
        cuts: Where the last write that is there is torn, as a part of it.
        names_max: Of how many changes of names in a folder all subsets are tried; of more, prefixes and each one alone.
        product_max: Up to how many all combinations of the files' contents are tried; above, a choice.
        mixtures: How many mixtures of the words of a page.
    """

    cuts: tuple
    names_max: int
    product_max: int
    mixtures: int


QUICK = Effort((0.5,), 2, 6, 1)
LONG = Effort((0.02, 0.1, 0.5, 0.75, 0.98), 6, 120, 3)


def power_cuts(state, effort, random):
    """What a power cut may leave of a disk: each a word on it, and the state, all durable, in the next run."""
    boot_id = next(_boots).to_bytes(16, "little")
    folders = [number for number, folder in state.folders.items() if folder.pending]
    for chosen in itertools.product(*(_subsets(state.folders[number].pending, effort) for number in folders)):
        namings = [naming for _, some in chosen for naming in some]
        names = _named({number: folder.durable for number, folder in state.folders.items()}, namings)
        live = {
            folder: {name: number for name, (_, number) in entries.items() if number is not None}
            for folder, entries in names.items()
        }
        reachable = _reachable(live, ROOT)
        told = ", ".join(label for label, _ in chosen)
        for label, contents in _combinations(state, reachable, effort, random):
            yield f"names: {told or 'all'}; data: {label}", _settled(live, reachable, contents, boot_id)


def at_rest(state):
    """The same when all of it has come to the disk, in the next run of the machine."""
    live = {number: folder.live for number, folder in state.folders.items()}
    contents = {number: file.live for number, file in state.files.items()}
    return _settled(live, live.keys() | contents.keys(), contents, next(_boots).to_bytes(16, "little"))


def _reachable(names, folder):
    found = {folder}
    for number in names[folder].values():
        found |= _reachable(names, number) if number in names else {number}
    return found


def _settled(live, reachable, contents, boot_id):
    """All that is there is durable now."""
    files = {number: Content(data, (data,)) for number, data in contents.items() if number in reachable}
    folders = {
        number: Folder(names, {name: (0, file) for name, file in names.items()})
        for number, names in live.items()
        if number in reachable
    }
    return State(files, folders, boot_id)


def _subsets(pending, effort):
    """Which of a folder's changes may be there, each with a word: the first so many; then any."""
    count = len(pending)
    indices = [tuple(range(length)) for length in (0, *range(count, 0, -1))]
    if count <= effort.names_max:
        indices += [some for length in range(1, count) for some in itertools.combinations(range(count), length)]
    else:
        indices += [(one,) for one in range(count)]
        indices += [tuple(other for other in range(count) if other != one) for one in range(count)]
    for some in dict.fromkeys(indices):
        yield f"{list(some)} of {count}", [pending[index] for index in some]


def _combinations(state, reachable, effort, random):
    """Contents for all files, by number, each with a word: the same fate for all; each file alone; all combinations."""
    fixed = {}
    options = {}
    for number in sorted(reachable & state.files.keys()):
        found = contents_of(state.files[number], effort, random)
        if len(found) == 1:
            fixed[number] = found[0][1]
        else:
            options[number] = found
    for chosen in _choices(list(options.values()), effort, random):
        label = " / ".join(label for label, _ in chosen)
        yield label or "none pending", fixed | {number: data for number, (_, data) in zip(options, chosen, strict=True)}


def _choices(options, effort, random):
    if math.prod(map(len, options)) <= effort.product_max:
        return list(itertools.product(*options))
    alike = dict.fromkeys(label for found in options for label, _ in found)
    chosen = [tuple(_labelled(found, label) for found in options) for label in alike]
    for base in (0, 1):
        others = [found[base] for found in options]
        chosen += [(*others[:at], one, *others[at + 1 :]) for at, found in enumerate(options) for one in found]
    chosen += [tuple(map(random.choice, options)) for _ in range(effort.product_max - len(chosen))]
    return list(dict.fromkeys(chosen))


def _labelled(found, label):
    """The content of a file that goes by this word; all of it where none does."""
    return next((one for one in found if one[0] == label), found[1])


def contents_of(file, effort, random):
    """What a file may hold after a power cut, each with a word: of what is pending first nothing, then all."""
    if file.is_page:
        return _pages(file, effort, random)
    found = {}
    for base in file.durable:
        for label, content in _contents_from(base, file, effort.cuts):
            found.setdefault(content, label)
    return [(label, content) for content, label in found.items()]


def _contents_from(base, file, cuts):
    pending = file.pending
    yield "none", base
    if not pending:
        return
    final = _made(base, pending)
    yield "all", final
    yield "zeros", _made(base, [_blank(change) for change in pending])
    yield "length alone", base[: len(final)].ljust(len(final), b"\0")
    if any(isinstance(change, Cut) for change in pending):
        yield "not cut", _made(base, [change for change in pending if isinstance(change, Write)])
    for count in range(1, len(pending)):
        yield f"first {count}", _made(base, pending[:count])
    *before, last = pending
    if isinstance(last, Write):
        content = _made(base, before)
        for part in cuts:
            data = last.data[: min(max(int(part * len(last.data)), 1), len(last.data) - 1)]
            yield f"torn at {part}", Write(last.offset, data).on(content)
            yield f"hole to {part}", Write(last.offset, bytes(len(data))).on(final)
    if len(pending) > 1:
        for index in range(len(pending)):
            yield f"hole {index}", _made(base, [_blank(one) if at == index else one for at, one in enumerate(pending)])


def _blank(change):
    return Write(change.offset, bytes(len(change.data))) if isinstance(change, Write) else change


def _pages(file, effort, random):
    """Old, new, zeros, as it was once, and mixtures of words of different times."""
    size = len(file.live)
    base = file.durable[0]
    found = {base: "none", file.live: "all", bytes(size): "zeros"}
    for _ in range(effort.mixtures):
        found.setdefault(random.choice(file.past), "as it was once")
        times = (file.live, *file.past)
        found.setdefault(_with_words(file.live, {at: random.choice(times) for at in sorted(file.stored)}), "mixed")
    return [(label, content) for content, label in found.items()]


def mixtures(file):
    """A page of which one word alone came to the disk, and of which one word alone did not."""
    old = file.durable[0].ljust(len(file.live), b"\0")
    for at in sorted(file.stored):
        yield _with_words(old, {at: file.live})
        yield _with_words(file.live, {at: old})


def _with_words(page, words):
    """A page with some words, each as it is in another page."""
    page = bytearray(page)
    for at, other in words.items():
        page[at : at + 8] = other[at : at + 8]
    return bytes(page)


def killed(disk, count, cuts=()):
    """What processes leave that die after `count` steps, or within a write that follows: each a word, and the state."""
    state = disk.after(count)
    yield "killed", state
    step = disk.steps[count] if count < len(disk.steps) else None
    if step is not None and step.write is not None:
        for part in cuts:
            write = Write(step.write.offset, step.write.data[: int(part * len(step.write.data))])
            file = state.files[step.number]
            torn = file._replace(live=write.on(file.live), pending=(*file.pending, write))
            yield f"killed in a write, at {part}", state._replace(files={**state.files, step.number: torn})


@contextlib.contextmanager
def mounted(process, door):
    """`door`, which is an object that all share, leads to a simulated disk for a while."""
    names = [name for name in dir(Files) if not name.startswith("_")]
    for name in names:
        setattr(door, name, getattr(process, name))
    try:
        yield
    finally:
        for name in names:
            delattr(door, name)
