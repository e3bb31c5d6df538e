"""What a run of the demonstration is told, and what comes of it. Values only."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from microdb.demo.index import Module
from microdb.demo.verify import Verdict
from microdb.demo.worker import Durability, Tally


class DemoError(Exception):
    """The demonstration could not be carried through. This says nothing of the records."""


@dataclass(frozen=True)
class Plan:
    """What to do: all that decides a run, but for the moments at which its processes meet."""

    path: str
    modules: Sequence[Module]
    workers: int
    seed: int
    durability: Durability


@dataclass(frozen=True)
class Kill:
    """The worker that was killed.

    Attributes:
        pid: Its process id.
        module: What it worked on.
        tries: How often a worker was stopped to see where it stands, the last time included.
        in_mid_write: Whether it was stopped inside a write when it was killed.
    """

    pid: int
    module: str
    tries: int
    in_mid_write: bool


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        modules: How many modules are done.
        acknowledged: How many writes were acknowledged; some overwrote an earlier one.
        writing_s: Seconds from the first acknowledgement to the last.
        seconds: Seconds for everything, from the first process to the last verdict.
        tally: What the workers counted for the modules that they finished.
        kill: None when the work ran out before a worker could be killed.
        unreadable: The modules that do not decode or do not parse, and why.
        interrupted: Whether Ctrl-C ended it early.
        records: How many records are in the table at the end.
        log_bytes: Size of the log that took all the writes, before the save.
        snapshot_bytes: Size of the snapshot after the save.
        repairs: How often a process cut off what a dead one had left.
        while_open: The verdict through the handle that was open all the time.
        reopened: The verdict after save, close and reopen.
    """

    modules: int = 0
    acknowledged: int = 0
    writing_s: float = 0.0
    seconds: float = 0.0
    tally: Tally = field(default_factory=Tally)
    kill: Kill | None = None
    unreadable: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False
    records: int = 0
    log_bytes: int = 0
    snapshot_bytes: int = 0
    repairs: int = 0
    while_open: Verdict = field(default_factory=Verdict)
    reopened: Verdict = field(default_factory=Verdict)

    @property
    def good(self) -> bool:
        """Whether every acknowledged record is there and was there whenever it was read, and nothing else is."""
        return self.while_open.good and self.reopened.good and not self.tally.wrong_reads

    @property
    def lost(self) -> int:
        """How many acknowledged records are not there as they were acknowledged, by the worse of both verdicts."""
        return max(self.while_open.lost, self.reopened.lost)

    @property
    def unexpected(self) -> int:
        """How many records are there that nobody can have written, by the worse of both verdicts."""
        return max(len(self.while_open.unexpected), len(self.reopened.unexpected))

    @property
    def writes_per_s(self) -> float:
        """Acknowledged writes a second, of all workers together, the indexing between them included."""
        return self.acknowledged / self.writing_s if self.writing_s else 0.0

    @property
    def reads_per_s(self) -> float:
        """Reads a second of one worker, in the time that it spends reading."""
        return self.tally.reads / self.tally.read_ns * 1e9 if self.tally.read_ns else 0.0
