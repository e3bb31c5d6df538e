"""The changes of several logs in one order, that of their sequences; and what is missing in it. Pure.

A save writes the changes that came while it ran into the new log as well, so the ends of the logs overlap: what one of
them lacks another may hold.
"""

import os
from collections.abc import Iterator
from typing import NamedTuple

from microdb.keys import PartitionKeys
from microdb.repair.evidence import Log, Page
from microdb.repair.findings import Finding, changes, listed
from microdb.repair.search import Frame, Gap
from microdb.table import Records, apply
from microdb.wal.codec import CodecError, decode
from microdb.wal.format import FRAME

__all__ = ["Timeline"]


class _Entry(NamedTuple):
    """A sound frame, and the file that it stands in."""

    frame: Frame
    path: str


class Timeline:
    """The changes of some logs over a base.

    Attributes:
        start: The sequence of the base.
        missing: The first and last of each run of sequences that should follow and that no log holds.
    """

    def __init__(self, logs: list[Log], first: Log, keys: PartitionKeys) -> None:
        """Follow the logs from `first` on; those before it only fill what it lacks."""
        self._logs = [log for log in logs if log.generation >= first.generation]
        self._keys = keys
        entries = {frame.sequence: _Entry(frame, log.path) for log in logs for frame in log.frames}
        own = first.frames[0].sequence - 1 if first.frames else 0
        self.start = own if first.header is None else first.header.base_sequence
        self._entries = {sequence: entries[sequence] for sequence in sorted(entries) if sequence > self.start}
        self.missing = list(self._runs_missing())

    def _runs_missing(self) -> Iterator[tuple[int, int]]:
        at = self.start
        for sequence in self._entries:
            if sequence > at + 1:
                yield at + 1, sequence - 1
            at = sequence
        base = max((log.header.base_sequence for log in self._logs if log.header is not None), default=at)
        if base > at:
            yield at + 1, base

    def leads_to(self, sequence: int) -> bool:
        """Whether nothing is missing on the way from the base to a sequence."""
        reached = next(reversed(self._entries), self.start) if not self.missing else self.missing[0][0] - 1
        return reached >= sequence

    def apply(self, records: Records, findings: list[Finding], *, until: int | None, behind_gaps: bool) -> int:
        """Carry out the changes on records, in order, up to the sequence `until`. Gives the number of batches."""
        end = self.missing[0][0] if self.missing and not behind_gaps else until and until + 1
        count = 0
        for sequence, (frame, path) in self._entries.items():
            if end is not None and sequence >= end:
                break
            try:
                apply(decode(frame.payload, self._keys), records)
                count += 1
            except CodecError as error:
                findings.append(Finding("lost", f"{path}, bytes {frame.offset} to {frame.end}", str(error)))
        return count

    def findings(self, page: Page | None, *, behind_gaps: bool) -> Iterator[Finding]:
        """What is missing, and what stands behind it."""
        told: set[tuple[int, int]] = set()
        for log in self._logs:
            if log.flaw is not None:
                yield self._of_header(log, log.flaw)
            for gap in log.gaps:
                yield self._of_gap(log, gap, page)
                told.update(run for run in self.missing if _overlap(run, gap))
        for run in self.missing:
            if run not in told:
                yield Finding("lost", os.path.dirname(self._logs[-1].path), f"{changes(*run)}: no log holds them")
        yield from self._unseen(page)
        if self.missing:
            yield from self._behind(behind_gaps=behind_gaps)

    def _of_header(self, log: Log, flaw: str) -> Finding:
        where = f"{log.path}, its header"
        if log.header is not None:
            return Finding("note", where, flaw)
        return Finding("in doubt", where, f"{flaw}; so nothing tells that this is the log that follows the snapshot")

    def _of_gap(self, log: Log, gap: Gap, page: Page | None) -> Finding:
        where = f"{log.path}, bytes {gap.start:,} to {gap.end:,}"
        runs = [run for run in self.missing if _overlap(run, gap)]
        if gap.before is None:
            return self._of_tail(log, gap, page, where)
        if gap.after < 0 or (not runs and gap.before == gap.after + 1):
            return Finding("note", where, f"{gap.reason}; no change is missing")
        if not runs:
            return Finding("note", where, f"{gap.reason}; another log holds the same changes")
        which = " and ".join(changes(*run) for run in runs)
        return Finding("lost", where, f"{which}: {gap.reason}{self._perhaps_of(log, gap)}")

    def _of_tail(self, log: Log, gap: Gap, page: Page | None, where: str) -> Finding:
        if page is not None and page.is_exact and (page.generation, page.offset) <= (log.generation, gap.start):
            return Finding("note", where, f"{gap.reason}; nothing in them was ever acknowledged")
        following = [one.header.base_sequence for one in self._logs if one.header and one.generation > log.generation]
        if following and not self.missing:
            return Finding("note", where, f"{gap.reason}; another log holds the same changes")
        after = "its changes" if gap.after < 0 else f"any change after {gap.after}"
        return Finding("lost", where, f"{after}: {gap.reason}{self._perhaps_of(log, gap)}")

    def _perhaps_of(self, log: Log, gap: Gap) -> str:
        """The keys in the damaged frame, if it can be read all the same."""
        if gap.end - gap.start < FRAME.size:
            return ""
        at = gap.start + FRAME.size
        length = FRAME.unpack_from(log.data, gap.start)[0]
        try:
            keys = [key for key, _ in decode(log.data[at : min(at + length, gap.end)], self._keys) if key is not None]
        except CodecError:
            return ""
        return f" (perhaps of {listed(keys)})" if keys else ""

    def _unseen(self, page: Page | None) -> Iterator[Finding]:
        """What the page knows of, and no log shows."""
        log = self._logs[-1]
        end = max((frame.end for frame in log.frames), default=log.header.end if log.header is not None else 0)
        if page is not None and page.generation == log.generation and page.offset > end and not log.gaps:
            what = f"it was acknowledged up to byte {page.offset:,}, and ends at byte {end:,}"
            yield Finding("lost", log.path, what)

    def _behind(self, *, behind_gaps: bool) -> Iterator[Finding]:
        gap = self.missing[0][0]
        later = [(sequence, entry.path) for sequence, entry in self._entries.items() if sequence > gap]
        if not later:
            return
        path, which = later[0][1], changes(later[0][0], later[-1][0])
        if behind_gaps:
            what = "sound, and applied; but they stand behind a gap, so nothing proves that they are of this log"
            yield Finding("in doubt", path, f"{which}: {what}")
        else:
            yield Finding("lost", path, f"{which}: left out, as they stand behind a gap")


def _overlap(run: tuple[int, int], gap: Gap) -> bool:
    """Whether some of the missing sequences should have stood in a gap."""
    return run[1] > gap.after and (gap.before is None or run[0] < gap.before)
