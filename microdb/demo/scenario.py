"""The whole of one run, from an empty database to the verdict."""

import time
from multiprocessing.connection import Connection

from microdb import MicroDB
from microdb.demo.index import PARTITION_KEYS, Key, Record, key_of
from microdb.demo.parent import Observer, Parent
from microdb.demo.result import Outcome, Plan
from microdb.demo.verify import verify


def play(plan: Plan, observer: Observer, interrupt: Connection) -> Outcome:
    """Carry out `plan` on a new database. Returns after every process that it started is gone.

    At the first message on `interrupt` the workers end after the write that is under way, and what they wrote is judged
    like the rest. At a second one they are killed.

    Raises:
        DemoError: A worker died by itself, or nobody said anything for a minute.
        KeyboardInterrupt: At the second message on `interrupt`.
    """
    begin = time.monotonic()
    with MicroDB(plan.path, PARTITION_KEYS, durability=plan.durability) as mdb:
        parent = Parent(plan, mdb, observer, interrupt)
        parent.work()
        outcome = parent.outcome
        in_flight = parent.records_in_flight()
        outcome.while_open = verify(parent.acknowledged, _table(mdb), in_flight=in_flight)
        stats = mdb.stats()
        outcome.log_bytes, outcome.repairs = stats.log_bytes, stats.repairs
        mdb.save()
    with MicroDB(plan.path, PARTITION_KEYS, read_only=True) as mdb:
        outcome.reopened = verify(parent.acknowledged, _table(mdb), in_flight=in_flight)
        outcome.records, outcome.snapshot_bytes = len(mdb), mdb.stats().snapshot_bytes
    outcome.seconds = time.monotonic() - begin
    return outcome


def _table(mdb: MicroDB) -> dict[Key, Record]:
    return {key_of(record): record for record in mdb.all()}
