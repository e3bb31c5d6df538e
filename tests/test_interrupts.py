"""Ctrl-C at every line, and signal handlers that come in between: memory equals disk, and nothing stays locked."""

import functools
import linecache
import os
import signal
import sys
import threading

import pytest

import microdb
from microdb.files import File, Files

A = {"id": "a", "n": 1}
B = {"id": "b", "n": 2}


def interrupted(body, number):
    """Run ``body()`` and raise KeyboardInterrupt as it comes to the `number`th line of microdb; tell whether it did.

    Left out are three kinds of places to which no signal comes, but a trace function does: the line of a ``with`` as
    its block is left, the first line of an ``__exit__``, which belongs to it, and the word ``try``.
    """
    seen, kept, left = set(), [], [number]

    def trace(frame, event, _):
        code = frame.f_code
        if f"{os.sep}microdb{os.sep}" not in code.co_filename or is_finalizing(frame):
            return None
        if event == "line":
            kept.append(frame)
            text = linecache.getline(code.co_filename, frame.f_lineno).strip()
            place = id(frame), frame.f_lineno
            first_of_exit = code.co_name == "__exit__" and id(frame) not in seen
            if text != "try:" and not first_of_exit and not (text.startswith("with ") and place in seen):
                left[0] -= 1
                if left[0] == 0:
                    raise KeyboardInterrupt
            seen.update((place, id(frame)))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        body()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return left[0] <= 0


def is_finalizing(frame):
    return "__del__" in (frame.f_code.co_name, frame.f_back.f_code.co_name if frame.f_back else None)


def upsert(mdb):
    mdb.upsert(B)


def read(mdb):
    mdb.get(("c",))


def transaction(mdb):
    with mdb.transaction():
        mdb.upsert(B)
        mdb.delete(("a",))


def delete(mdb):
    mdb.delete(("a",))


def save(mdb):
    mdb.save()


@pytest.mark.parametrize(("body", "step"), [(upsert, 1), (read, 1), (transaction, 3), (delete, 3), (save, 7)])
def test_an_interrupt_at_any_line_leaves_memory_as_the_disk_and_nothing_locked(tmp_path, body, step):
    """Each place on a database of its own. The longer ones at every so many lines, for the sake of time."""
    number = 0
    while True:
        number += step
        path = tmp_path / f"{number}.json"
        mdb, other = (microdb.MicroDB(path, ["id"], timeout=5) for _ in range(2))
        mdb.upsert(A)
        other.upsert_many([{"id": "c"}, {"id": "d"}])
        came = interrupted(functools.partial(body, mdb), number)
        check_in_another_thread(mdb, other, path)
        mdb.close()
        other.close()
        if not came:
            break
    assert number > 20


def check_in_another_thread(mdb, other, path):
    """The thread that was interrupted could enter a lock that it failed to leave."""
    failures = []

    def check():
        try:
            with microdb.MicroDB(path, ["id"], timeout=5) as third:
                assert list(mdb.items()) == list(other.items()) == list(third.items())
                third.upsert({"id": "third"})
                mdb.upsert({"id": "again"})
                mdb.save(timeout=5)
                assert list(mdb.items()) == list(other.items()) == list(third.items())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=check)
    thread.start()
    thread.join()
    assert not failures


@pytest.fixture
def on_signal():
    """Call something on SIGUSR1."""
    before = signal.getsignal(signal.SIGUSR1)
    yield lambda act: signal.signal(signal.SIGUSR1, lambda *_: act())
    signal.signal(signal.SIGUSR1, before)


class _SignallingFile(File):
    def write_at(self, data, offset):
        super().write_at(data, offset)
        signal.raise_signal(signal.SIGUSR1)


class Signalling(Files):
    """A file system that sends a signal to this process in the middle of each append."""

    def open(self, path, **options):
        file = super().open(path, **options)
        if path.endswith(".log"):
            file.__class__ = _SignallingFile
        return file


@pytest.mark.parametrize("same", [True, False])
def test_a_signal_handler_that_writes_into_an_interrupted_write_is_refused(open_db, on_signal, same):
    mdb, other = open_db(files=Signalling()), open_db()
    refused = []

    def act():
        with pytest.raises(microdb.ReentrantError):
            (mdb if same else other).upsert({"id": "handler"})
        refused.append(len(other))

    on_signal(act)
    mdb.upsert(A)
    mdb.upsert(B)
    assert refused == [0, 1]
    assert list(mdb) == list(other) == [("a",), ("b",)]


def test_a_signal_handler_may_raise_out_of_a_write(open_db, on_signal):
    mdb, other = open_db(files=Signalling()), open_db()

    def act():
        raise KeyboardInterrupt

    on_signal(act)
    with pytest.raises(KeyboardInterrupt):
        mdb.upsert(A)
    on_signal(lambda: None)
    assert len(mdb) == len(other) == 0
    mdb.upsert(B)
    assert list(mdb) == list(other) == [("b",)]
