"""What `MicroDB.stats` tells."""

from typing import Final, NamedTuple

from microdb.errors import shown

__all__ = ["Stats"]


class Stats(NamedTuple):
    """What a database looks like at a moment.

    >>> import microdb
    >>> mdb = microdb.MicroDB(":memory:", ["id"])
    >>> mdb.upsert_many([{"id": 1}, {"id": 2}])
    >>> stats = mdb.stats()
    >>> stats.records, stats.sequence, stats.saves
    (2, 1, 0)

    Attributes:
        records: How many records the table holds.
        generation: Number of the current log.
        sequence: Of the last change.
        log_bytes: Length of the current log.
        snapshot_bytes: Length of the snapshot; 0 where there is none.
        pids: The processes that have it open, in order, as far as the system tells: on Linux, those that are seen from
            here. A read-only handle counts only if somebody else had it open by then.
        owner_pid: The process that took the write lock last; None if none did.
        dirty_pid: The process that is inside a write, or died inside one; None if none is.
        saves: How many saves there were.
        repairs: How many writes of dead processes were rolled back.
        torn_tails: How many unfinished tails recovery has cut.
        head: How far the log goes, in one number that moves with each change: ``generation << 36 | log_bytes``.
        positions: The sequence up to which each process has read the log, by its pid: of those in `pids` that can
            write. Who does not read falls behind, even if it writes; of several handles in a process the furthest
            behind counts. Some 200 handles are told of at most.
        lock_waits: How often a process found another one writing and had to wait for it.
        conflicts: How many `MicroDB.upsert` found another record than they expected.
        last_save_s: How long the last save took, in seconds; None before the first.

    The page keeps the counts as long as its file is there. They are for people and graphs: nothing depends on them.
    """

    records: int
    generation: int
    sequence: int
    log_bytes: int
    snapshot_bytes: int
    pids: tuple[int, ...]
    owner_pid: int | None
    dirty_pid: int | None
    saves: int
    repairs: int
    torn_tails: int
    head: int
    positions: dict[int, int]
    lock_waits: int
    conflicts: int
    last_save_s: float | None

    def openmetrics(self, database: str) -> str:
        """The numbers as OpenMetrics text, for Prometheus and its like; positions as the lag behind the last change.

        Source of the format: https://prometheus.io/docs/specs/om/open_metrics_spec/

        >>> import microdb
        >>> text = microdb.MicroDB(":memory:", ["id"]).stats().openmetrics("jobs")
        >>> print(text.splitlines()[2])
        microdb_records{database="jobs"} 0

        Args:
            database: What to call it: the value of the label ``database``.

        Raises:
            TypeError: That is no str.
        """
        if not isinstance(database, str):
            raise TypeError(f"database is what to call it, a str; found {shown(database):.60}")
        label = database.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        lines = []
        for field, kind, text in _METRICS:
            suffix = "_total" if kind == "counter" else ""
            lines += [f"# TYPE microdb_{field} {kind}", f"# HELP microdb_{field} {text}"]
            lines += [f'microdb_{field}{suffix}{{database="{label}"}} {getattr(self, field)}']
        lines += ["# TYPE microdb_lag gauge", "# HELP microdb_lag Changes that a process has not read yet."]
        for pid, sequence in self.positions.items():
            lines += [f'microdb_lag{{database="{label}",pid="{pid}"}} {max(self.sequence - sequence, 0)}']
        if self.last_save_s is not None:
            name = "microdb_last_save_seconds"
            lines += [f"# TYPE {name} gauge", f"# UNIT {name} seconds", f"# HELP {name} How long the last save took."]
            lines += [f'{name}{{database="{label}"}} {self.last_save_s}']
        return "\n".join([*lines, "# EOF", ""])


_METRICS: Final = (
    ("records", "gauge", "Records in the table."),
    ("generation", "gauge", "Number of the current log."),
    ("sequence", "gauge", "Number of the last change."),
    ("log_bytes", "gauge", "Length of the current log."),
    ("snapshot_bytes", "gauge", "Length of the snapshot."),
    ("saves", "counter", "Saves."),
    ("repairs", "counter", "Writes of dead processes that were rolled back."),
    ("torn_tails", "counter", "Unfinished tails that recovery has cut."),
    ("lock_waits", "counter", "Waits of a process for another one that was writing."),
    ("conflicts", "counter", "Upserts that found another record than they expected."),
)
