"""An exception at every place of a call, and what must hold afterwards.

Places are of two kinds. Where Python looks for signals, which is the only way in which Ctrl-C, or an exception out of
a signal handler, comes: as a function is entered or a generator goes on, after each call, and as a loop turns back.
And every line, for what may be raised anywhere: MemoryError.

The oracle is a dict to which the same was done, and a guest: another process that opens the database anew each time,
and writes into it at once, so that a lock that was left held is seen.
"""

import dis
import functools
import gc
import inspect
import itertools
import logging
import os
import random
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import microdb
from children import spawned, with_little_memory

try:
    import _testcapi
except ImportError:  # Some distributions leave it out.
    _testcapi = None

SOON_S = 2
DAY_S = 86_400
"""How long anybody waits for a lock that should be free."""

BASE = [{"id": "a", "n": 1}, {"id": "b", "n": 2, "text": "x" * 100}]
NEW = [{"id": "c", "n": 3}, {"id": "a", "n": 4}, {"id": "d"}]

_LEFT_OUT = frozenset({logging.__file__, threading.__file__})
_CALLS = frozenset({"CALL", "CALL_KW", "CALL_FUNCTION_EX"})


# Places.


@functools.cache
def checkpoints(code):
    """The offsets in a code object before which Python may have looked for signals, if it comes from those given.

    A thread lock that is waited for, as a ``with`` begins, looks for them too, wherever it comes from. What is raised
    as a call ends belongs to the call, for which other handlers may stand than for what follows: that a tracer cannot
    show, and it is left out.
    """
    bytecode = dis.Bytecode(code)
    instructions = list(bytecode)
    found = {}
    for instruction, following in itertools.pairwise(instructions):
        handlers = [_handler(bytecode.exception_entries, one.offset) for one in (instruction, following)]
        if instruction.opname in _CALLS and handlers[0] == handlers[1]:
            found.setdefault(following.offset, set()).add(instruction.offset)
        if instruction.opname.startswith("JUMP_BACKWARD"):
            found.setdefault(instruction.argval, set()).add(instruction.offset)
        if instruction.opname == "RESUME":
            found[following.offset] = _ANYWHERE
    return found | {one.offset: _ANYWHERE for one in instructions if one.opname == "BEFORE_WITH"}


_ANYWHERE = range(1 << 32)


def _handler(entries, offset):
    """Where Python goes on with what is raised at an offset; None if it leaves the function."""
    return next((entry.target for entry in reversed(entries) if entry.start <= offset < entry.end), None)


@functools.cache
def line_starts(code):
    """The offsets at which a line begins, but for the two at which nothing is done that could fail.

    That is the word ``try``, for which there is a NOP; and the line of a ``with`` as its block is left, where three
    constants are pushed before ``__exit__`` is called, whose own lines are places like others.
    """
    instructions = list(dis.get_instructions(code))
    found = set()
    for number, instruction in enumerate(instructions):
        following = [one for one in instructions[number : number + 4] if one.opname != "SWAP"][:3]
        leaves_with = all((one.opname, one.argval) == ("LOAD_CONST", None) for one in following)
        if instruction.opname not in ("NOP", "RESUME") and not leaves_with:
            found.add(instruction.offset)
    return dict.fromkeys(found, _ANYWHERE)


class Bomb:
    """Raises an error at the `number`th place of what is run under it; 0: never.

    Attributes:
        error: What it raises.
        met: How many places were met.
        where: The place where it went off; None if it did not.
        is_amid: Whether another exception was being handled there.
    """

    def __init__(self, error, number, *, lines):
        self.error = error
        self.number = number
        self.met = 0
        self.where = None
        self.is_amid = False
        self._event = "line" if lines else "opcode"
        self._places = line_starts if lines else checkpoints
        self._returned_to = None
        self._last = {}

    def run(self, body):
        """What `body()` raised; None if it returned."""
        before = sys.gettrace()
        # 3.12 and later look for the wish of any frame only when tracing begins.
        sys._getframe().f_trace_opcodes = self._event == "opcode"
        sys.settrace(self._enter)
        try:
            body()
        except BaseException as error:
            return error
        finally:
            sys.settrace(before)

    def _enter(self, frame, event, _):
        # What interrupts the standard library's logging may leave its locks held, and some of it is swallowed there;
        # and so may what interrupts the start of a thread.
        caller = frame.f_back
        if frame.f_code.co_filename in _LEFT_OUT or (caller is not None and caller.f_trace == self._pass_by):
            return self._pass_by
        frame.f_trace_opcodes = self._event == "opcode"
        return self._trace

    def _pass_by(self, frame, event, _):
        return self._pass_by

    def _trace(self, frame, event, _):
        if event == "return":
            self._last.pop(id(frame), None)
            if is_called_inline(frame):
                self._returned_to = id(frame.f_back)
        if event != self._event:
            return self._trace
        # Python looks as it enters a function of its own, and not again as it comes back.
        is_back, self._returned_to = self._returned_to == id(frame), None
        comes_from, self._last[id(frame)] = self._last.get(id(frame), 0), frame.f_lasti
        if comes_from in self._places(frame.f_code).get(frame.f_lasti, ()) and not (event == "opcode" and is_back):
            self.met += 1
            if self.met == self.number:
                self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_qualname}"
                self.is_amid = sys.exc_info()[0] is not None
                raise self.error
        return self._trace


def is_called_inline(frame):
    """Whether Python code called it, without C in between, as it does for a generator or a class."""
    return not frame.f_code.co_flags & inspect.CO_GENERATOR and frame.f_code.co_name != "__init__"


# The guest.


def be_guest(pipe):
    """Do what is asked to databases that are opened anew each time, and tell their records before that."""
    while (asked := pipe.recv()) is not None:
        path, timeout_s, acts = asked
        try:
            with microdb.MicroDB(path, ["id"], timeout=timeout_s, auto_save=False) as mdb:
                found = list(mdb.all())
                for name, *args in acts:
                    getattr(mdb, name)(*args)
        except (OSError, microdb.MicroDBError) as error:
            found = error
        pipe.send(found)


class Guest:
    """The other process, at the end of a pipe."""

    def __init__(self, pipe):
        self._pipe = pipe

    def visit(self, path, *acts, timeout_s=SOON_S):
        """The records that another process finds; then it does what is asked."""
        self._pipe.send((str(path), timeout_s, acts))
        found = self._pipe.recv()
        if isinstance(found, BaseException):
            raise found
        return found


# What is done.


@dataclass
class Scene:
    """A database in use.

    Attributes:
        path: Its snapshot.
        guest: The other process.
        options: How it is opened.
        mdb: The handle; None where an act opens its own.
    """

    path: Path
    guest: Guest
    options: dict
    mdb: microdb.MicroDB | None = None

    @property
    def folder(self):
        return Path(f"{self.path}.wal")

    def open(self):
        self.mdb = microdb.MicroDB(self.path, ["id"], timeout=SOON_S, **self.options)

    def close(self):
        if self.mdb is not None:
            self.mdb.close()
        self.mdb = None

    def settle(self):
        """See that it is open. If the handle was just closing, it has let go of everything once it is closed again."""
        if self.mdb is not None and self.is_closed():
            closing, self.mdb = self.mdb, None
            closing.close()
            self.tear()
            self.open()
            assert list(self.folder.glob("*.torn")), "whoever opened next did not find itself alone"
        if self.mdb is None:
            self.open()

    def is_closed(self):
        try:
            len(self.mdb)
        except microdb.ClosedError:
            return True
        return False

    def reset(self):
        """Back to the base, whatever it holds."""
        self.settle()
        wait_for_savers()
        with self.mdb.transaction():
            self.mdb.clear()
            self.mdb.upsert_many(BASE)

    def forget_history(self):
        for file in self.folder.glob("*.history"):
            file.unlink()

    def tear(self):
        """Close it, and leave behind its log what a writer that died there would."""
        self.close()
        for file in self.folder.glob("*.torn"):
            file.unlink()  # Else there are more places each time, and no end.
        with max(self.folder.glob("*.log")).open("ab") as log:
            log.write(b"torn" * 9)


class AbandonedError(Exception):
    """Raised out of a transaction."""


def upsert(table, *records):
    for record in records:
        table[record["id"],] = record


def remove(table, *ids):
    for one in ids:
        del table[one,]


@dataclass
class Act:
    """Something done to a database, and to a dict of what it should hold.

    Attributes:
        run: Do it.
        steps: The same to a dict, one step for each acknowledgement.
        before: What happens before, on top of the base.
        given: The same to a dict.
        options: How the database is opened.
        logged: What may be logged in place of raised, as the act is done all the same.
    """

    run: Callable[[Scene], None]
    steps: list[Callable[[dict], None]] = field(default_factory=list)
    before: Callable[[Scene], None] = lambda _: None
    given: Callable[[dict], None] = lambda _: None
    options: dict = field(default_factory=dict)
    logged: tuple[type[Exception], ...] = ()

    def prepare(self, scene):
        """What it may find, and leave: the records before it and after each of its steps."""
        scene.reset()
        self.before(scene)
        table = {}
        upsert(table, *BASE)
        self.given(table)
        states = [list(table.values())]
        for step in self.steps:
            step(table)
            states.append(list(table.values()))
        return states


def _commit(scene):
    with scene.mdb.transaction():
        scene.mdb.upsert_many(NEW)
        scene.mdb.delete(("b",))


def _changed(table):
    upsert(table, *NEW)
    remove(table, "b")


def _upserted(table):
    upsert(table, *NEW)


def _roll_back(scene):
    try:
        with scene.mdb.transaction():
            scene.mdb.upsert_many(NEW)
            raise AbandonedError  # noqa: TRY301  # The block is what is tested.
    except AbandonedError:
        return


def _roll_back_inner(scene):
    with scene.mdb.transaction():
        scene.mdb.delete(("b",))
        _roll_back(scene)


def _lock(scene):
    with scene.mdb.lock():
        scene.mdb.upsert(NEW[0])
        scene.mdb.upsert(NEW[1])


def _save_in_lock(scene):
    with scene.mdb.lock():
        scene.mdb.save()


def _news(scene):
    scene.guest.visit(scene.path, ("upsert_many", NEW), ("delete", ("b",)))


def _news_over_a_save(scene):
    scene.guest.visit(scene.path, ("upsert", NEW[0]), ("save",), ("upsert_many", NEW))


def _news_that_are_gone(scene):
    _news_over_a_save(scene)
    scene.forget_history()


def _expire(scene):
    """One record will expire some day, and another has."""
    scene.mdb.upsert(NEW[0], ttl=DAY_S)
    scene.mdb.upsert({"id": "expired"}, expires_at=1)


def _drop_expired(scene):
    scene.mdb._drop_above = 0
    scene.mdb.upsert(NEW[1], ttl=DAY_S)


def _outgrow(scene):
    """A log so long that the next write begins a save, which none of these does."""
    wait_for_savers()
    scene.mdb._auto_save.above = float("inf")
    for _ in range(20):
        scene.mdb.upsert(BASE[1])
    scene.mdb._auto_save.above = 0


def _open_again(scene):
    mdb = microdb.MicroDB(scene.path, ["id"], timeout=SOON_S)
    mdb.close()


def _start_afresh(scene):
    """Nothing at the path yet."""
    scene.close()
    scene.path = scene.path.with_name(f"{random.getrandbits(64):x}.json")


ACTS = {
    "upsert": Act(lambda s: s.mdb.upsert(NEW[0]), [lambda t: upsert(t, NEW[0])]),
    "upsert for a power cut": Act(
        lambda s: s.mdb.upsert(NEW[0]), [lambda t: upsert(t, NEW[0])], options={"durability": "power"}
    ),
    "upsert after others": Act(
        lambda s: s.mdb.upsert({"id": "z"}), [lambda t: upsert(t, {"id": "z"})], _news, _changed
    ),
    "upsert_many": Act(lambda s: s.mdb.upsert_many(NEW), [lambda t: upsert(t, *NEW)]),
    "delete": Act(lambda s: s.mdb.delete(("a",)), [lambda t: remove(t, "a")]),
    "clear": Act(lambda s: s.mdb.clear(), [dict.clear]),
    "pop": Act(lambda s: s.mdb.pop(("b",)), [lambda t: remove(t, "b")]),
    "popitem": Act(lambda s: s.mdb.popitem(), [lambda t: remove(t, "b")]),
    "setdefault": Act(lambda s: s.mdb.setdefault(("d",), NEW[2]), [lambda t: upsert(t, NEW[2])]),
    "update": Act(lambda s: s.mdb.update({("c",): NEW[0], ("a",): NEW[1]}), [lambda t: upsert(t, *NEW[:2])]),
    "transaction": Act(_commit, [_changed]),
    "rollback": Act(_roll_back),
    "inner rollback": Act(_roll_back_inner, [lambda t: remove(t, "b")]),
    "lock": Act(_lock, [lambda t: upsert(t, NEW[0]), lambda t: upsert(t, NEW[1])]),
    "save": Act(lambda s: s.mdb.save()),
    "save in lock": Act(_save_in_lock),
    "automatic save": Act(
        lambda s: s.mdb.upsert(NEW[0]),
        [lambda t: upsert(t, NEW[0])],
        _outgrow,
        options={"auto_save_bytes": 1},
        logged=(MemoryError,),
    ),
    "upsert what expires": Act(lambda s: s.mdb.upsert(NEW[0], ttl=DAY_S), [lambda t: upsert(t, NEW[0])]),
    "iterate what expires": Act(lambda s: list(s.mdb), before=_expire, given=lambda t: upsert(t, NEW[0])),
    "drop what has expired": Act(
        _drop_expired, [lambda t: upsert(t, NEW[1])], _expire, given=lambda t: upsert(t, NEW[0])
    ),
    "save what expires": Act(lambda s: s.mdb.save(), before=_expire, given=lambda t: upsert(t, NEW[0])),
    "sync": Act(lambda s: s.mdb.sync()),
    "get": Act(lambda s: s.mdb.get(("a",))),
    "iterate": Act(lambda s: list(s.mdb)),
    "catch up": Act(lambda s: s.mdb.get(("a",)), before=_news, given=_changed),
    "catch up over a save": Act(lambda s: s.mdb.get(("a",)), before=_news_over_a_save, given=_upserted),
    "load anew": Act(lambda s: s.mdb.get(("a",)), before=_news_that_are_gone, given=_upserted),
    "open and close": Act(_open_again),
    "open when alone": Act(_open_again, before=Scene.close),
    "open and recover": Act(_open_again, before=Scene.tear),
    "close": Act(lambda s: s.mdb.close()),
}


# What must hold.


def descriptors():
    """The open files of this process, by what they are."""
    gc.collect()
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:  # That of the listing itself.
            continue
    return sorted(found)


def wait_for_savers():
    for thread in threading.enumerate():
        if thread.name == "microdb-save" and thread.ident is not None:  # Else an interrupt came first.
            thread.join()


def in_thread(body):
    """Run ``body()`` in another thread, and raise what it raised."""
    failures = []

    def run():
        try:
            body()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


class Swallowed:
    """What was raised in finalizers, where Python itself drops it."""

    def __enter__(self):
        self.errors = []
        self._before = sys.unraisablehook
        sys.unraisablehook = lambda unraisable: self.errors.append(unraisable.exc_value)
        return self

    def __exit__(self, *_):
        sys.unraisablehook = self._before


def go_off(scene, act, bomb):
    """Do an act with a bomb under it, see that all is well, and that it can be done again.

    Returns:
        Whether the bomb went off.
    """
    states = act.prepare(scene)
    with Swallowed() as swallowed:
        caught = bomb.run(functools.partial(act.run, scene))
    was_swallowed = bomb.error in swallowed.errors
    swallowed.errors.clear()
    if caught is not None and caught is not bomb.error:
        raise caught
    if caught is None and bomb.where is not None and not was_swallowed:
        assert isinstance(bomb.error, act.logged), "the exception was lost"
        states = states[-1:]
    drop_traceback(bomb.error)
    check_and_repeat(scene, act, states if bomb.where else states[-1:])
    return bomb.where is not None


def check_and_repeat(scene, act, states):
    """All is well now, and after the same act once more."""
    check(scene, states)
    states = act.prepare(scene)
    act.run(scene)
    check(scene, states[-1:])
    assert scene.guest.visit(scene.path) == list(scene.mdb.all())


def drop_traceback(error):
    """As if the handler of the exception had ended: what its frames hold goes."""
    if error is not None:
        error.__traceback__ = error.__context__ = None


def check(scene, states):
    """Memory is the disk is one of the states; nothing is locked or left about, and garbage is collected as before."""
    assert gc.isenabled(), "the garbage collector was left off"
    scene.settle()
    wait_for_savers()
    found = scene.guest.visit(scene.path, ("upsert", {"id": "guest"}))
    assert found in states, f"on disk: {found}"
    after = [*found, {"id": "guest"}] if {"id": "guest"} not in found else found
    mine = list(scene.mdb.all())
    assert mine == after, f"in memory: {mine}, on disk: {after}"
    in_thread(lambda: scene.mdb.upsert({"id": "thread"}))
    scene.mdb.delete(("thread",))
    scene.mdb.save(timeout=SOON_S)
    wait_for_savers()
    assert list(scene.mdb.all()) == after
    left = [file.name for folder in (scene.folder, scene.path.parent) for file in folder.glob("*.tmp*")]
    assert not left, f"left about: {left}"


# Memory that is not there.


class Starvation:
    """Lets the `number`th allocation fail, and as many after it as `width` says; Python's own hook for its own tests.

    Attributes:
        caught: What came of it; None if it was got over, or never reached.
    """

    def __init__(self, number, width):
        self.number = number
        self.width = width
        self.caught = None

    def run(self, body):
        gc.disable()  # It would come at another place each time.
        _testcapi.set_nomemory(self.number, self.number + self.width)
        try:
            body()
        except (MemoryError, RuntimeError) as error:
            if type(error) is RuntimeError and error.args != ("can't allocate lock",):  # So Python says it there.
                raise
            self.caught = error
        finally:
            _testcapi.remove_mem_hooks()
            gc.enable()


GOT_OVER_MAX = 40
"""So many allocations after the last one that mattered."""


def starve(pipe, folder, names, widths):
    """Do each act with its n-th allocation failing, for every n. Tells how often MemoryError came.

    In a process of its own: who knows what an extension makes of it.
    """
    with spawned((be_guest,)) as ((to_guest,), _):
        for name in names:
            act = ACTS[name]
            scene = Scene(Path(folder) / f"{name}.json", Guest(to_guest), act.options)
            raised = sum(_starve_one(scene, act, width) for width in widths)
            scene.close()
            pipe.send((name, raised))
        to_guest.send(None)
    pipe.send("done")


def _starve_one(scene, act, width):
    number = raised = got_over = 0
    while got_over < GOT_OVER_MAX:
        number += 1
        states = act.prepare(scene)
        hunger = Starvation(number, width)
        with Swallowed():
            hunger.run(functools.partial(act.run, scene))
        if hunger.caught is None:
            got_over += 1
            states = states[-1:]
        else:
            raised, got_over = raised + 1, 0
            drop_traceback(hunger.caught)
            hunger.caught = None
        check_and_repeat(scene, act, states)
    return raised


def grow(pipe, path, margins):
    """Write and save while the system gives this process only so much more memory; then while it gives all again."""
    mdb = microdb.MicroDB(path, ["id"], auto_save=False)
    mdb.upsert_many({"id": n, "text": "x" * 1_000} for n in range(5_000))
    mdb.save()
    big = {"id": "big", "text": "y" * (8 << 20)}
    expected = dict(mdb.items())
    raised = []
    for margin in margins:
        for body in (functools.partial(mdb.upsert, big), mdb.save, functools.partial(_grow_in_transaction, mdb, big)):
            error = with_little_memory(margin, body)
            if error is None and body != mdb.save:
                expected["big",] = big
            raised.append(type(error).__name__ if error is not None else "")
            assert error is None or isinstance(error, MemoryError), repr(error)
            drop_traceback(error)
            assert mdb == expected
            mdb.upsert({"id": "small", "margin": margin})
            expected["small",] = {"id": "small", "margin": margin}
            mdb.pop(("big",), None)
            expected.pop(("big",), None)
            pipe.send(margin)
            assert pipe.recv() == "written"  # By another process, at once.
            expected["other",] = {"id": "other", "margin": margin}
            assert mdb == expected
    mdb.save()
    pipe.send(raised)


def _grow_in_transaction(mdb, big):
    with mdb.transaction():
        mdb.pop((0,), None)
        mdb.upsert_many([big, {"id": 0, "text": "x" * 1_000}])
