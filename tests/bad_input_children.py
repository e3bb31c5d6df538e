"""What the tests of bad input run in other processes, and the few things that all of them ask."""

import fcntl
import os
import pickle
import resource
import signal
from multiprocessing import get_context
from pathlib import Path

import filelock  # noqa: F401  # Imported here, a child has it before it drops its rights.
import msgspec  # noqa: F401  # As above.

from microdb import MicroDB

SPAWN = get_context("spawn")
NOBODY = 65534
KEYS = ["job"]


class Peer:
    """Another process, and one handle in it. `peer.upsert(…)` is done there; the answer, or the error, comes back."""

    def __init__(self, path=None, **options):
        self._pipe, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(target=_serve, args=(theirs,))
        self.process.start()
        theirs.close()
        self.pid = self.process.pid
        if path is not None:
            self.open(path, **options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.join()
        self._pipe.close()

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self.begin(name, *args, **kwargs).end()

    def begin(self, name, *args, **kwargs):
        self._pipe.send((name, args, kwargs))
        return self

    def end(self, within_s=60):
        if not self._pipe.poll(within_s):
            raise TimeoutError(f"process {self.pid} gave no answer within {within_s} s")
        try:
            value, error = self._pipe.recv()
        except EOFError:
            self.process.join()
            raise AssertionError(f"process {self.pid} died with exit code {self.process.exitcode}") from None
        if error is not None:
            raise error
        return value

    def stop(self):
        os.kill(self.pid, signal.SIGSTOP)
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)

    def go_on(self):
        os.kill(self.pid, signal.SIGCONT)


class Served:
    """The other end of a `Peer`."""

    mdb = None

    def __getattr__(self, name):
        return getattr(self.mdb, name)

    def open(self, path, keys=KEYS, **options):
        self.mdb = MicroDB(path, keys, **options)

    def all(self):
        return list(self.mdb.all())

    def hold(self, how="lock", **options):
        self.held = getattr(self.mdb, how)(**options)
        self.held.__enter__()

    def let_go(self):
        self.held.__exit__(None, None, None)

    def stats(self):
        return self.mdb.stats()

    def become_nobody(self):
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)

    def limit_file_size(self, size):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def fill(self, record, size):
        """Upsert until the disk takes no more: how often it did, and the number of the error."""
        return fill(self.mdb, record, size)

    def upsert_in_a_fork(self, record):
        """Upsert in a child that inherits the handle: None, or the name of the error."""
        reports, report = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                self.mdb.upsert(record)
            except BaseException as error:
                os.write(report, type(error).__name__.encode())
            os._exit(0)
        os.close(report)
        with open(reports, "rb") as pipe:
            text = pipe.read().decode()
        os.waitpid(pid, 0)
        return text or None

    def lock_header(self, path):
        """Hold what somebody holds who recovers."""
        self.header = open(f"{path}.wal/header", "rb")  # noqa: SIM115  # It is held on to.
        fcntl.flock(self.header, fcntl.LOCK_EX)

    def unlock_header(self):
        self.header.close()

    def open_at_once(self, path, count):
        """Fork as many processes as `count`; at the word go each opens and upserts one record. Their reports."""
        reports, report = os.pipe()
        waiting, gun = os.pipe()
        pids = [pid for number in range(count) if (pid := _fork_opener(path, number, report, waiting, gun))]
        os.close(report)
        os.close(waiting)
        os.close(gun)
        with open(reports, "rb") as pipe:
            text = pipe.read().decode()
        return [os.waitpid(pid, 0)[1] for pid in pids], text


def fill(mdb, record, size):
    """Upsert ever more records until the disk takes no more: how many it took, and the number of the error."""
    for number in range(1_000_000):
        try:
            mdb.upsert(record | {"job": f"{size}/{number}", "filling": "x" * size})
        except OSError as error:
            return number, error.errno
    return None


def _fork_opener(path, number, report, waiting, gun):
    pid = os.fork()
    if pid:
        return pid
    try:
        os.close(gun)
        os.read(waiting, 1)  # Nothing is ever written: it ends when the last one who could has closed it.
        MicroDB(path, KEYS).upsert({"job": f"opener {number}"})
    except BaseException as error:
        os.write(report, f"{number}: {type(error).__name__}: {error}\n".encode())
        os._exit(1)
    os._exit(0)


def _serve(pipe):
    served = Served()
    while True:
        try:
            name, args, kwargs = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((getattr(served, name)(*args, **kwargs), None))
        except Exception as error:
            pipe.send((None, error))


def contents(path):
    """The bytes of every file of the database at `path`."""
    path = Path(path)
    files = [path, *Path(f"{path}.wal").glob("*")]
    return {file.name: file.read_bytes() for file in files if file.is_file()}


def put_back(path, found):
    """Make the files what `contents` found, in place: a file that is there stays the same one."""
    for name in contents(path).keys() - found.keys():
        place(path, name).unlink()
    for name, data in found.items():
        if not place(path, name).exists() or place(path, name).read_bytes() != data:
            place(path, name).write_bytes(data)


def place(path, name):
    path = Path(path)
    return path if name == path.name else Path(f"{path}.wal") / name


def refusal(path, keys=KEYS, **options):
    """The error with which it does not open, free of the frames that it passed."""
    try:
        MicroDB(path, keys, **options).close()
    except Exception as error:
        return pickle.loads(pickle.dumps(error))
    raise AssertionError(f"{path} opens, but should not")


def records(path, keys=KEYS):
    """What a new handle finds."""
    with MicroDB(path, keys) as mdb:
        return list(mdb.all())
