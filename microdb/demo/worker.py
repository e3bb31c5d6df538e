"""What one worker process does: index the modules it is told to, store each record, acknowledge it, read others back.

Here live the messages between parent and worker, too. Knows nothing of the parent, nor of the other workers.
"""

import contextlib
import logging
import random
import signal
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any, Literal

from microdb import MicroDB
from microdb.demo.index import PARTITION_KEYS, Key, Module, Record, index_file, key_of

Durability = Literal["process", "power"]

_READS_PER_WRITE = 8


@dataclass(frozen=True)
class Order:
    """What a worker is told once, when it starts."""

    path: str
    durability: Durability
    seed: str


@dataclass(frozen=True)
class Task:
    """One module to index, and records that others stored before: reads must find them as they are here."""

    module: Module
    known: Sequence[Record]


@dataclass
class Tally:
    """What a worker counted, and the nanoseconds that it spent in the calls alone.

    Attributes:
        wrong_reads: Keys for which it read something else than what had been acknowledged.
    """

    writes: int = 0
    write_ns: int = 0
    reads: int = 0
    read_ns: int = 0
    wrong_reads: list[Key] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        """Count what `other` counted, too."""
        self.writes += other.writes
        self.write_ns += other.write_ns
        self.reads += other.reads
        self.read_ns += other.read_ns
        self.wrong_reads += other.wrong_reads


@dataclass(frozen=True)
class Finished:
    """Every record of the module is stored, and was acknowledged before this message."""

    tally: Tally


@dataclass(frozen=True)
class Unreadable:
    """The module does not decode or does not parse, so nothing of it was stored."""

    module: str
    reason: str


@dataclass(frozen=True)
class Failed:
    """The worker met an exception and is gone after this message."""

    traceback: str


# A plain record is the acknowledgement of itself: one small message for each write, sent after the write returned.
Message = Record | Finished | Unreadable | Failed


def work(order: Order, tasks: Connection, messages: Connection) -> None:
    """Index the modules that arrive by `tasks` until it ends, or until SIGTERM; the target of a worker process."""
    stop = _StopFlag.listening()
    # They are about the text that is indexed, not about this program.
    warnings.simplefilter("ignore", SyntaxWarning)
    # That one died, the parent tells.
    logging.getLogger("microdb").addHandler(logging.NullHandler())
    try:
        with MicroDB(order.path, PARTITION_KEYS, durability=order.durability) as mdb:
            chance = random.Random(order.seed)  # noqa: S311 - to be repeatable, not secret
            _Worker(mdb, messages, stop, chance).run(tasks)
    except BrokenPipeError:
        return  # The parent is gone, so there is nobody left to tell.
    except Exception:  # noqa: BLE001 - whatever it is, the parent must hear of it
        with contextlib.suppress(BrokenPipeError):
            messages.send(Failed(traceback.format_exc()))


class _StopFlag:
    """Set by SIGTERM. A flag, not an exception: the write that is under way ends, and is acknowledged."""

    def __init__(self) -> None:
        self.is_set = False

    @classmethod
    def listening(cls) -> "_StopFlag":
        """A flag that SIGTERM sets."""
        flag = cls()
        signal.signal(signal.SIGTERM, flag._set)
        # Ctrl-C reaches every process of the terminal; what it means is for the parent to say.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return flag

    def _set(self, _signal_number: int, _frame: FrameType | None) -> None:
        self.is_set = True


class _Worker:
    def __init__(self, mdb: MicroDB, messages: Connection, stop: _StopFlag, chance: random.Random) -> None:
        self._mdb = mdb
        self._messages = messages
        self._stop = stop
        self._chance = chance
        self._known: list[tuple[Key, Record]] = []

    def run(self, tasks: Connection) -> None:
        """Index one module after another until there are no more, or it is told to stop."""
        while not self._stop.is_set:
            try:
                task: Task = tasks.recv()
            except EOFError:
                return
            self._known += [(key_of(record), record) for record in task.known]
            self._index(task.module)

    def _index(self, module: Module) -> None:
        try:
            records = index_file(module)
        except (SyntaxError, ValueError, OSError) as error:
            self._messages.send(Unreadable(module.name, f"{type(error).__name__}: {error}"))
            return
        tally = Tally()
        for record in records:
            if self._stop.is_set:
                return
            self._write(record, tally)
            self._read_back(tally)
        self._messages.send(Finished(tally))

    def _write(self, record: Record, tally: Tally) -> None:
        begin = time.perf_counter_ns()
        self._mdb.upsert(record)
        tally.write_ns += time.perf_counter_ns() - begin
        tally.writes += 1
        self._messages.send(record)

    def _read_back(self, tally: Tally) -> None:
        if not self._known:
            return
        chosen = self._chance.choices(self._known, k=_READS_PER_WRITE)
        begin = time.perf_counter_ns()
        found: list[dict[str, Any] | None] = [self._mdb.get(key) for key, _ in chosen]
        tally.read_ns += time.perf_counter_ns() - begin
        tally.reads += len(chosen)
        tally.wrong_reads += [key for (key, record), got in zip(chosen, found, strict=True) if got != record]
