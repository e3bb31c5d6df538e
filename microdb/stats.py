"""What `MicroDB.stats` tells."""

from typing import Final, NamedTuple

__all__ = ["Stats"]


class Stats(NamedTuple):
    """What a database looks like at a moment.

    Attributes:
        records: How many records the table holds.
        generation: Number of the current log.
        sequence: Of the last change.
        log_bytes: Length of the current log.
        snapshot_bytes: Length of the snapshot; 0 where there is none.
        pids: The processes that have it open, in order, as far as the system tells: on Linux, those that are seen from
            here.
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
    pids: tuple[int, ...]
    owner_pid: int | None
    dirty_pid: int | None
    saves: int
    repairs: int
    torn_tails: int

    def openmetrics(self, database: str) -> str:
        """The numbers as OpenMetrics text, for Prometheus and its like.

        Source of the format: https://prometheus.io/docs/specs/om/open_metrics_spec/

        >>> import microdb
        >>> text = microdb.MicroDB(":memory:", ["id"]).stats().openmetrics("jobs")
        >>> print(text.splitlines()[2])
        microdb_records{database="jobs"} 0

        Args:
            database: What to call it: the value of the label ``database``.
        """
        label = database.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        lines = []
        for field, kind, text in _METRICS:
            name = f"microdb_{field}"
            suffix = "_total" if kind == "counter" else ""
            lines += [f"# TYPE {name} {kind}", f"# HELP {name} {text}"]
            lines += [f'{name}{suffix}{{database="{label}"}} {getattr(self, field)}']
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
)
