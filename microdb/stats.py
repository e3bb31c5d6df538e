"""What `MicroDB.stats` tells."""

from typing import NamedTuple

__all__ = ["Stats"]


class Stats(NamedTuple):
    """What a database looks like at a moment.

    Attributes:
        records: How many records the table holds.
        generation: Number of the current log.
        sequence: Of the last change.
        log_bytes: Length of the current log.
        snapshot_bytes: Length of the snapshot; 0 where there is none.
        owner_pid: The process that took the write lock last; None if none did.
        dirty_pid: The process that is inside a write, or died inside one; None if none is.
        saves: How many saves there were.
        repairs: How many writes of dead processes were rolled back.
        torn_tails: How many unfinished tails recovery has cut.
    """

    records: int
    generation: int
    sequence: int
    log_bytes: int
    snapshot_bytes: int
    owner_pid: int | None
    dirty_pid: int | None
    saves: int
    repairs: int
    torn_tails: int
