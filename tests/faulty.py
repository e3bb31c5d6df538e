"""The real file system with calls that fail, or let others act first; and how a test lets others act at one place."""

import contextlib
import errno
import os
import threading
import time

from microdb.files import File, Files
from steps import WAIT_S


class Faulty(Files):
    """The real file system, with one call made to fail, or to stop on the way, before it does anything."""

    def __init__(self):
        self.calls = []
        self.on = {}

    def _meet(self, name, path):
        self.calls.append((name, os.path.basename(path)))
        act = self.on.get(name)
        if act is not None:
            act(path)

    def rename(self, source, target):
        self._meet("rename", target)
        super().rename(source, target)

    def sync_folder(self, path):
        self._meet("sync_folder", path)
        super().sync_folder(path)

    def names(self, folder):
        self._meet("names", folder)
        return super().names(folder)

    def identity(self, path):
        self._meet("identity", path)
        return super().identity(path)

    def unlink(self, path):
        self._meet("unlink", path)
        super().unlink(path)

    def create(self, path):
        self._meet("create", path)
        return _watched(super().create(path), self)

    def open(self, path, **options):
        self._meet("open", path)
        return _watched(super().open(path, **options), self)


def _watched(file, files):
    watched = WatchedFile(os.dup(file.fd), file.path)
    watched.files = files
    return watched


class WatchedFile(File):
    files: Faulty

    def sync(self):
        self.files._meet("sync", self.path)
        super().sync()

    def sync_data(self):
        self.files._meet("sync_data", self.path)
        super().sync_data()

    def read_at(self, offset, length):
        self.files._meet("read_at", self.path)
        return super().read_at(offset, length)

    def write_at(self, data, offset):
        self.files._meet("write_at", self.path)
        super().write_at(data, offset)

    def truncate(self, size):
        self.files._meet("truncate", self.path)
        super().truncate(size)


def fail(*_):
    raise OSError(errno.EIO, "made to fail")


def only(name, act=fail):
    """Act only on paths that end so."""
    return lambda path: act(path) if path.endswith(name) else None


def interrupt(*_):
    raise KeyboardInterrupt


def once(act):
    """Act only the first time."""
    acts = [act]
    return lambda *_: acts.pop()() if acts else None


@contextlib.contextmanager
def save_that_waits(mdb, faulty):
    """A save in another thread, which has begun to write its files and goes on when the block ends."""
    entered, go_on = threading.Event(), threading.Event()

    def pause(path):
        if path.endswith(".tmp"):
            entered.set()
            assert go_on.wait(60)

    faulty.on["create"] = pause
    saver = threading.Thread(target=mdb.save)
    saver.start()
    try:
        assert entered.wait(60)
        yield
    finally:
        go_on.set()
        saver.join()


class Meanwhile:
    """A lock that another thread is faster to take: whoever first comes to it finds that `act` was done before.

    Put it in the place of the lock that it is given. `act` may take the same lock. With a `time`, that often.
    """

    def __init__(self, lock, act, *, time=1):
        self._lock = lock
        self._acts = [act, *[None] * (time - 1)]

    def __enter__(self):
        act = self._acts.pop() if self._acts else None
        if act is not None:
            act()
        return self._lock.__enter__()

    def __exit__(self, *exc):
        return self._lock.__exit__(*exc)

    def acquire(self, **_):
        return self.__enter__()

    def release(self):
        self._lock.release()

    def _is_owned(self):
        return self._lock._is_owned()


@contextlib.contextmanager
def held_elsewhere(context):
    """Another thread is inside a context while the block runs."""
    is_inside, may_end = threading.Event(), threading.Event()

    def hold():
        with context:
            is_inside.set()
            may_end.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert is_inside.wait(60)
        yield
    finally:
        may_end.set()
        thread.join()


def in_thread(function):
    """What a function returns, or raises, in another thread."""
    found = []

    def run():
        try:
            found.append((function(), None))
        except BaseException as error:
            found.append((None, error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    [(value, error)] = found
    if error is not None:
        raise error
    return value


def wait_until(condition):
    """Wait for something that another thread will do soon, and that tells nobody."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)
