"""Interrupts, signal handlers and lack of memory at every place: memory equals disk, and nothing stays locked."""

import gc
import random
import signal
import tempfile
from pathlib import Path

import pytest

import microdb
from children import spawned
from crash import interrupts
from crash.interrupts import ACTS, Bomb, Guest, Scene, be_guest, descriptors, drop_traceback, go_off, grow, starve
from microdb import collecting
from microdb.files import File, Files

A = {"id": "a", "n": 1}
B = {"id": "b", "n": 2}

LEAKY = ("File.__del__", "File.close", "File.__init__", "Files.open", "Files.create", "Files.sync_folder")
"""Where one descriptor is lost if an exception comes right there: Python can make no integer and its owner at once, nor
is it made to end a finalizer that was interrupted. No lock is lost with it: they are taken later, and let go before."""


@pytest.fixture(scope="module")
def guest():
    with spawned((be_guest,)) as ((pipe,), _):
        yield Guest(pipe)
        pipe.send(None)


@pytest.fixture
def folder(tmp_path):
    """In memory where there is such a place: nothing here depends on the disk, and many saves do on its speed."""
    shm = Path("/dev/shm")
    gc.collect()
    gc.freeze()  # Garbage is looked for after each place; not among what the test runner holds.
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else tmp_path) as name:
        yield Path(name)
    gc.unfreeze()


KINDS = pytest.mark.parametrize(("kind", "lines"), [(KeyboardInterrupt, False), (MemoryError, True)])


def places_of(scene, act, *, lines):
    """How many there are in an act."""
    bomb = Bomb(None, 0, lines=lines)
    act.prepare(scene)
    assert bomb.run(lambda: act.run(scene)) is None
    return bomb.met


@KINDS
@pytest.mark.parametrize("name", ACTS)
def test_whatever_is_raised_at_a_place_leaves_memory_as_the_disk_and_nothing_locked(  # noqa: PLR0917  # Fixtures.
    name, kind, lines, guest, folder, seed
):
    """At one place chosen at random. The long form takes every place."""
    act = ACTS[name]
    scene = Scene(folder / "mdb.json", guest, act.options)
    places = places_of(scene, act, lines=lines)
    if not places:
        scene.close()  # A save in the background may go on, whose folder goes with the test.
        pytest.skip("this Python shows no place of this act to a tracer")
    number = random.Random(seed).randrange(places) + 1
    bomb = Bomb(kind("bomb"), number, lines=lines)
    try:
        go_off(scene, act, bomb)
    except Exception as error:
        error.add_note(f"place {number} of {name}: {bomb.where}")
        raise
    finally:
        scene.close()


def hold_off():
    with collecting.paused():
        return


def test_whatever_is_raised_while_garbage_is_not_collected_it_is_collected_then():
    number, went_off = 0, True
    while went_off:
        number += 1
        bomb = Bomb(MemoryError("bomb"), number, lines=True)
        bomb.run(hold_off)
        drop_traceback(bomb.error)
        went_off = bomb.where is not None
        assert gc.isenabled(), bomb.where
        assert not collecting._pausing, bomb.where
    assert number > 10, "so many lines it has at least"


def grows(scene, act, bombs):
    """Whether with each time that an act breaks off there one more file stays open, and not only with the first."""
    counts = []
    for bomb in bombs:
        go_off(scene, act, bomb)
        counts.append(len(descriptors()))
    return counts == sorted(set(counts))


@pytest.mark.long
@pytest.mark.timeout(900)
@KINDS
@pytest.mark.parametrize("name", ACTS)
def test_whatever_is_raised_at_any_place_leaves_memory_as_the_disk_and_nothing_locked(name, kind, lines, guest, folder):
    """All places of an act, one after the other on one handle; ten minutes for all acts together."""
    act, number, failures = ACTS[name], 0, []
    leaks = []
    scene = Scene(folder / "0.json", guest, act.options)
    went_off = True
    while went_off:
        number += 1
        before = len(descriptors())
        bomb = Bomb(kind("bomb"), number, lines=lines)
        try:
            went_off = go_off(scene, act, bomb)
            # A tracer that raises amid another exception makes Python 3.11 itself lose the frame.
            is_known = bomb.is_amid or (bomb.where or "").endswith(LEAKY)
            if (
                len(descriptors()) > before
                and not is_known
                and grows(scene, act, [Bomb(kind("bomb"), number, lines=lines) for _ in range(3)])
            ):
                leaks.append(bomb.where)
        except Exception as error:
            failures.append(f"{bomb.where}: {error!r:.300}")
            scene = Scene(folder / f"{number}.json", guest, act.options)
    scene.close()
    print(f"figures: {name}: {kind.__name__} at {number - 1:,} places, {len(failures)} failures")
    assert failures == []
    assert leaks == [], "files leak"


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.skipif(interrupts._testcapi is None, reason="this Python has no _testcapi to make allocations fail")
def test_any_allocation_of_any_act_that_fails_leaves_memory_as_the_disk_and_nothing_locked(folder):
    """One at a time: see "Known to be weak" in docs/reliability.md for more of them. A minute.

    Not of saves, as filelock keeps a lock of its own for ever if memory fails it within; and not of opening, where
    Python itself does not survive each of them, and makes other errors of some.
    """
    names = [name for name in ACTS if name not in {"save", "automatic save"} and not name.startswith("open")]
    with spawned((starve, str(folder), names, [1])) as ((pipe,), _):
        told = [pipe.recv() for _ in names]
        assert pipe.recv() == "done"
    print(f"figures: MemoryError came {sum(raised for _, raised in told):,} times in {len(told)} acts")


def test_a_write_or_a_save_for_which_there_is_no_memory_raises_and_changes_nothing(path):
    _grow(path, [1 << 20, 40 << 20])


@pytest.mark.long
def test_writes_and_saves_with_little_more_memory_than_there_is_are_made_or_raise(path):
    """A quarter of a minute."""
    raised = _grow(path, [n << 18 for n in range(150)])
    print(f"figures: {len(raised)} writes and saves with up to 37 MiB, {sum(map(bool, raised))} raised, 0 half done")


def _grow(path, margins):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MALLOC_ARENA_MAX", "1")  # Else what one thread cannot have may be found in what another reserved.
        return _grown(path, margins)


def _grown(path, margins):
    with spawned((grow, str(path), margins)) as ((pipe,), _):
        while isinstance(margin := pipe.recv(), int):
            with microdb.MicroDB(path, ["id"], timeout=5) as mdb:
                mdb.upsert({"id": "other", "margin": margin})
            pipe.send("written")
        assert isinstance(margin, list), margin
        assert "MemoryError" in margin
        assert "" in margin
        return margin


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
