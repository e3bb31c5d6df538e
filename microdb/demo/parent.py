"""The parent of the demonstration: hand out modules, note every acknowledgement, kill one worker in mid-write.

Knows nothing of how it looks on a terminal: whoever wants to watch passes an `Observer`.
"""

import random
import time
from collections import deque
from multiprocessing.connection import Connection, wait
from typing import Protocol, assert_never

from microdb import MicroDB
from microdb.demo.crew import CrewMember
from microdb.demo.index import Key, Module, Record, index_file, key_of
from microdb.demo.result import DemoError, Kill, Outcome, Plan
from microdb.demo.worker import Failed, Finished, Message, Order, Unreadable

_SILENCE_S_MAX = 60.0
_STOPS_MAX = 1_000
# A write is short: many looks find one under way, where a stop at random would seldom meet one.
_LOOKS_MAX = 100
# The kill comes when this part of the modules is done, so that there is something to lose and something left to do.
_KILL_AFTER = 0.25
_KNOWN_PER_TASK = 40


class Observer(Protocol):
    """Whoever watches the run. Called by the parent between two messages, so it must be quick."""

    def progressed(self, outcome: Outcome) -> None:
        """One more module is done."""

    def killed(self, kill: Kill) -> None:
        """A worker was killed; another takes over its module."""


class Parent:
    """Hands out the work, and keeps its own list of what was acknowledged, independent of the store.

    Attributes:
        acknowledged: The last acknowledged record of each key.
        outcome: What is known so far.
    """

    def __init__(self, plan: Plan, mdb: MicroDB, observer: Observer, interrupt: Connection) -> None:
        self.acknowledged: dict[Key, Record] = {}
        self.outcome = Outcome()
        self._plan = plan
        self._mdb = mdb
        self._observer = observer
        self._interrupt = interrupt
        self._chance = random.Random(plan.seed)  # noqa: S311 - to be repeatable, not secret
        self._pending = deque(plan.modules)
        self._crew: list[CrewMember] = []
        self._hired = 0
        self._stops = 0
        self._first_acknowledged_at = 0.0
        self._settled: list[tuple[Key, int]] = []
        self._abandoned: set[Module] = set()

    def work(self) -> None:
        """Index all modules, with one worker killed on the way. Returns when all workers are gone.

        Raises:
            DemoError: A worker died by itself, or nobody said anything for a minute.
            KeyboardInterrupt: The second time that the user asked for it; the first is heeded in order.
        """
        try:
            for _ in range(min(self._plan.workers, len(self._pending))):
                self._hire()
            while self._crew:
                self._hand_out()
                self._step()
        finally:
            for member in self._crew:
                member.clear_away()

    def records_in_flight(self) -> list[Record]:
        """What a killed worker may have stored without acknowledging it, and nobody wrote again."""
        return [record for module in self._abandoned for record in index_file(module)]

    def _step(self) -> None:
        # A worker whose messages wait to be heard may be long idle: unless it is now or never, look for a victim only
        # when all are up to date.
        kill_is_due = self._kill_is_due()
        if kill_is_due and self._is_last_chance():
            self._try_to_kill()
        elif self._hear_ready(timeout_s=0 if kill_is_due else _SILENCE_S_MAX):
            return
        elif kill_is_due:
            self._try_to_kill()
        else:
            raise DemoError(f"no worker said anything for {_SILENCE_S_MAX:g} s")

    def _hire(self) -> None:
        self._hired += 1
        order = Order(self._plan.path, self._plan.durability, f"{self._plan.seed}-{self._hired}")
        self._crew.append(CrewMember(order))

    def _hand_out(self) -> None:
        for member in [member for member in self._crew if member.is_free]:
            if not self._pending:
                member.dismiss()
            elif not self._holds_back():
                member.give(self._pending.popleft(), self._settled_by_others(member))

    def _holds_back(self) -> bool:
        """Whether the last modules go out one by one: until somebody is killed, somebody must be at work."""
        return not self.outcome.kill and len(self._pending) <= self._plan.workers and bool(self._busy())

    def _settled_by_others(self, member: CrewMember) -> list[Record]:
        """Some records of finished modules: nobody writes those again, so a read must find exactly this."""
        chosen = self._chance.sample(self._settled, min(_KNOWN_PER_TASK, len(self._settled)))
        return [self.acknowledged[key] for key, pid in chosen if pid != member.pid]

    # Hearing

    def _hear_ready(self, *, timeout_s: float) -> bool:
        ready = wait([self._interrupt, *(member.messages for member in self._crew)], timeout_s)
        if self._interrupt in ready:
            self._stop_all()
        for member in [member for member in self._crew if member.messages in ready]:
            self._hear(member)
        return bool(ready)

    def _stop_all(self) -> None:
        self._interrupt.recv_bytes()
        if self.outcome.interrupted:
            raise KeyboardInterrupt
        self.outcome.interrupted = True
        self._pending.clear()
        for member in self._crew:
            member.ask_to_stop()

    def _hear(self, member: CrewMember) -> None:
        message = member.hear()
        if message is None:
            self._note_gone(member)
        else:
            self._note(member, message)

    def _note(self, member: CrewMember, message: Message) -> None:
        match message:
            case dict():
                self._note_acknowledged(member, message)
            case Finished(tally):
                self._settled += ((key, member.pid) for key in member.keys)
                self.outcome.tally.add(tally)
                self._note_done(member)
            case Unreadable(module, reason):
                self.outcome.unreadable[module] = reason
                self._note_done(member)
            case Failed(traceback):
                raise DemoError(f"worker {member.pid} failed\n{traceback}")
            case _:
                assert_never(message)

    def _note_acknowledged(self, member: CrewMember, record: Record) -> None:
        now = time.monotonic()
        self._first_acknowledged_at = self._first_acknowledged_at or now
        self.outcome.writing_s = now - self._first_acknowledged_at
        self.outcome.acknowledged += 1
        key = key_of(record)
        self.acknowledged[key] = record
        member.keys.append(key)

    def _note_done(self, member: CrewMember) -> None:
        self._abandoned -= {member.module}
        member.module = None
        self.outcome.modules += 1
        self._observer.progressed(self.outcome)

    def _note_gone(self, member: CrewMember) -> None:
        self._crew.remove(member)
        exit_code = member.wait_gone()
        if not self.outcome.interrupted and (member.module or exit_code):
            where = member.module.name if member.module else "no module"
            raise DemoError(f"worker {member.pid} died by itself in {where}, exit code {exit_code}")

    # Killing

    def _kill_is_due(self) -> bool:
        if self.outcome.kill or self.outcome.interrupted or not self.outcome.acknowledged:
            return False
        return self.outcome.modules >= len(self._plan.modules) * _KILL_AFTER and bool(self._busy())

    def _try_to_kill(self) -> None:
        """Stop a worker; kill it if it stopped inside a write, else let it go on until another time.

        The proof: a stopped process changes nothing, and the header names it as the one that is inside a write.
        """
        member = self._candidate()
        if not member.pause():
            self._hear_ready(timeout_s=_SILENCE_S_MAX)  # It died: what it said last, and that it is gone.
            return
        self._stops += 1
        in_mid_write = self._mdb.stats().dirty_pid == member.pid
        if in_mid_write or self._is_last_chance():
            self._kill(member, in_mid_write=in_mid_write)
        else:
            member.resume()

    def _candidate(self) -> CrewMember:
        """Preferably one that is seen inside a write, though it may be out of it again before it stops."""
        busy = self._busy()
        for _ in range(_LOOKS_MAX):
            pid = self._mdb.stats().dirty_pid
            writing = [member for member in busy if member.pid == pid]
            if writing:
                return writing[0]
        return self._chance.choice(busy)

    def _busy(self) -> list[CrewMember]:
        return [member for member in self._crew if member.module]

    def _is_last_chance(self) -> bool:
        return self._stops >= _STOPS_MAX or (len(self._busy()) == 1 and not self._pending)

    def _kill(self, member: CrewMember, *, in_mid_write: bool) -> None:
        for message in member.kill():
            self._note(member, message)
        self._crew.remove(member)
        member.wait_gone()
        module = member.module
        if module:
            self._abandoned.add(module)
            self._pending.appendleft(module)
        self.outcome.kill = Kill(member.pid, module.name if module else "no module", self._stops, in_mid_write)
        self._observer.killed(self.outcome.kill)
        if self._pending:
            self._hire()
