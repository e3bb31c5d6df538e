"""What is done while the disk fails: databases in every state, and the calls of a user."""

import contextlib
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import microdb
from children import forked
from crash.io_errors import Door, Fault, Faults
from microdb.cli import main


class Step(NamedTuple):
    """One call of a user, and what it means.

    Attributes:
        call: Does it, to a handle.
        change: Does the same to a dict of records by id.
        is_barrier: Whether all that came before is on the disk when it has returned.
        is_close: Whether the handle is closed afterwards.
    """

    name: str
    call: Callable
    change: Callable = lambda _: None
    is_barrier: bool = False
    is_close: bool = False


EXPORTED = ".export"
REPAIRED = ".repaired"


def record(number, size=0):
    return {"id": number, "text": "x" * size}


def upsert(number, size=0):
    one = record(number, size)
    return Step(f"upsert {number}", lambda mdb: mdb.upsert(one), lambda model: model.update({number: one}))


def upsert_many(*numbers, size=0):
    many = {number: record(number, size) for number in numbers}
    return Step("upsert_many", lambda mdb: mdb.upsert_many(many.values()), lambda model: model.update(many))


def delete(number):
    return Step("delete", lambda mdb: mdb.delete((number,)), lambda model: model.pop(number, None))


def transaction(*steps):
    def call(mdb):
        with mdb.transaction():
            for step in steps:
                step.call(mdb)

    def change(model):
        for step in steps:
            step.change(model)

    return Step("transaction", call, change)


def export(mdb):
    mdb.save(f"{mdb.filename}{EXPORTED}")


def repair(mdb):
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        code = main(["repair", str(mdb.filename), "--into", f"{mdb.filename}{REPAIRED}"])
    if code == 2:
        raise microdb.MicroDBError(told.getvalue())
    assert code == 0, told.getvalue()


CLEAR = Step("clear", lambda mdb: mdb.clear(), dict.clear)
SAVE = Step("save", lambda mdb: mdb.save(), is_barrier=True)
GRID = Step("save_as_grid", lambda mdb: mdb.save_as_grid(), is_barrier=True)
EXPORT = Step("save elsewhere", export)
REPAIR = Step("repair --into", repair)
SYNC = Step("sync", lambda mdb: mdb.sync(), is_barrier=True)
READ = Step("read", lambda mdb: list(mdb.all()))
CLOSE = Step("close", lambda mdb: mdb.close(), is_close=True)


@dataclass
class Scenario:
    """What is done.

    Attributes:
        prepare: ``prepare(path, live)`` makes the database and gives what it holds; `live` may open it.
        steps: What is done while calls fail.
        is_open: Whether the handle is opened before, and not under faults.
        options: Of the handle.
    """

    name: str
    prepare: Callable
    steps: tuple[Step, ...]
    is_open: bool = True
    options: dict = field(default_factory=dict)


OLD = {number: record(number) for number in ("a", "b", "c")}


def begin(path, *, saved=True):
    """A database with records in its snapshot, and one in its log."""
    with microdb.MicroDB(path, ["id"], files=Door()) as mdb:
        mdb.upsert_many([OLD["a"], OLD["b"]])
        if saved:
            mdb.save()
        mdb.upsert(OLD["c"])
    return dict(OLD)


def nothing(path, live):
    return {}


def by_hand(path, live):
    path.write_text(json.dumps([OLD["a"], OLD["b"]]))
    return {number: OLD[number] for number in "ab"}


def alone(path, live):
    return begin(path)


def shared(path, live):
    found = begin(path)
    live.open(path, ["id"], files=Door())
    return found


def with_news(path, live):
    """Somebody else has written, saved and written again since the handle looked."""
    found = shared(path, live)
    for step in (upsert("news"), upsert("more news")):
        live.upsert(record(step.name.removeprefix("upsert ")))
        step.change(found)
        live.save()
    return found


def torn(path, live):
    """A dead writer's last bytes, behind the head."""
    found = begin(path)
    with _log(path).open("ab") as stream:
        stream.write(b"torn" * 20)
    return found


def torn_by_power_cut(path, live):
    """As above, and the page is not of this run of the machine."""
    found = torn(path, live)
    (folder_of(path) / "header").unlink()
    return found


def folder_of(path):
    return path.with_name(f"{path.name}.wal")


def _log(path):
    return max(folder_of(path).glob("*.log"))


class Dying(Faults):
    """Dies, as by kill -9, at the first call of this kind on a file whose name ends so; within a write at its half."""

    def __init__(self):
        super().__init__()
        self.last = None

    def meet(self, kind, path):
        if self.last is None or not path.endswith(self.last[1]):
            return False
        if self.last[0] == "write":
            if kind == "write":
                return True
            kind = {"truncate": "write"}.get(kind)  # The first thing after half of a write.
        if kind == self.last[0]:
            os._exit(9)
        return False


def dead(kind, suffix, call, *, saved=True, lives=True):
    """A process died inside `call`, at such a call of its own; with a survivor, or with nobody alive."""

    def prepare(path, live):
        found = begin(path, saved=saved)
        if lives:
            live.open(path, ["id"], files=Door())
        where = path.name if suffix == "SNAPSHOT" else path.parent.name if suffix == "PARENT" else suffix

        def body():
            dying = Dying()
            mdb = microdb.MicroDB(path, ["id"], files=Door(dying), durability="power")
            dying.last = kind, where
            call(mdb)

        assert forked(body) == 9
        return found

    return prepare


def poisoned(path, live):
    """An fsync has failed in another process, which is gone; somebody else is alive."""
    found = shared(path, live)

    def body():
        faults = Faults()
        mdb = microdb.MicroDB(path, ["id"], files=Door(faults), durability="power")
        faults.arm(Fault(range(1, 2), kinds=frozenset({"fdatasync"})))
        with contextlib.suppress(OSError):
            mdb.upsert(record("never"))
        assert len(faults.hits) == 1

    assert forked(body) == 0
    return found


POWER = {"durability": "power"}
AUTO = {"auto_save_bytes": 500}

SCENARIOS = [
    Scenario("first open", nothing, (upsert("x"),), is_open=False),
    Scenario("first open, power", nothing, (upsert("x"), upsert("y")), is_open=False, options=POWER),
    Scenario("open a snapshot written by hand", by_hand, (upsert("x"),), is_open=False),
    Scenario("open alone", alone, (upsert("x"),), is_open=False),
    Scenario("open beside another", shared, (upsert("x"),), is_open=False),
    Scenario("open to read alone", alone, (READ,), is_open=False, options={"read_only": True}),
    Scenario("open to read beside another", shared, (READ,), is_open=False, options={"read_only": True}),
    Scenario("upsert", shared, (upsert("a", 100), upsert("x", 5000))),
    Scenario("upsert, power", shared, (upsert("a", 100), upsert("x", 5000), upsert("y")), options=POWER),
    Scenario("upsert_many", shared, (upsert_many("a", "x", "y"), upsert("z"))),
    Scenario("upsert_many, power", shared, (upsert_many("a", "x", "y"), upsert_many("z", "b")), options=POWER),
    Scenario(
        "transaction", shared, (transaction(upsert("x"), delete("a"), upsert("b", 9)), upsert("z")), options=POWER
    ),
    Scenario("delete", shared, (delete("a"), delete("c"), upsert("z"))),
    Scenario("clear", shared, (CLEAR, upsert("z"))),
    Scenario("save", shared, (upsert("x"), SAVE, upsert("y"))),
    Scenario("save, power", shared, (upsert("x"), SAVE, upsert("y")), options=POWER),
    Scenario("save_as_grid", shared, (GRID, upsert("y"))),
    Scenario("save elsewhere", shared, (EXPORT, upsert("y"))),
    Scenario("automatic save", shared, (upsert("x", 1000), CLOSE, upsert("y")), options=AUTO),
    Scenario("sync", shared, (upsert("x"), SYNC, upsert("y"), SYNC, upsert("z"))),
    Scenario("sync twice", shared, (upsert("x"), SYNC, SYNC, upsert("y"))),
    Scenario("close", shared, (upsert("x"), CLOSE, upsert("y"), CLOSE)),
    Scenario("catch up", with_news, (READ, upsert("x"), SAVE)),
    Scenario("recover a torn tail", torn, (upsert("x"),), is_open=False),
    Scenario("recover a torn tail after a power cut", torn_by_power_cut, (upsert("x"),), is_open=False),
    *(
        Scenario(
            f"{'repair' if lives else 'recover'} what died: {name}",
            dead(kind, suffix, call, lives=lives),
            (upsert("x"), SAVE),
            is_open=lives,
        )
        for lives in (True, False)
        for name, kind, suffix, call in (
            ("a saver before its log has its name", "rename", ".log", lambda mdb: mdb.save()),
            ("a saver before its snapshot is in place", "rename", "SNAPSHOT", lambda mdb: mdb.save()),
            ("a saver whose snapshot is in place", "fsync", "PARENT", lambda mdb: mdb.save()),
            ("a writer in a write", "write", ".log", lambda mdb: mdb.upsert(record("never", 100))),
        )
    ),
    Scenario(
        "repair what died: a writer before its fsync",
        dead("fdatasync", ".log", lambda mdb: mdb.upsert(record("never"))),
        (upsert("x"), SAVE),
    ),
    Scenario("write into a poisoned generation", poisoned, (upsert("x"), upsert("y")), is_open=False, options=POWER),
]

IN_SYSTEM_CALLS = [*SCENARIOS, Scenario("repair into another", shared, (REPAIR, upsert("y")))]
"""`repair` knows no other door than the one to the system."""
