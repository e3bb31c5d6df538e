"""What happened to a table, event by event: complete, in order, across saves. Pure; a `Source` reads the log.

A `Watch` keeps a table of its own, at the position to which it has told. So it knows what stood there before each
change, and once the log no longer leads on from there, it can still tell the difference.
"""

import heapq
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal, NamedTuple, Self

from microdb.changes import Change
from microdb.errors import SinceLostError
from microdb.expiry import has_expired, unexpired
from microdb.keys import Key
from microdb.query import Query
from microdb.table import Records
from microdb.timeouts import in_seconds
from microdb.values import UNKNOWN, Expiring, Record, Unknown
from microdb.wal.codec import encode_upsert
from microdb.wal.format import Payload, Position

__all__ = ["Event", "News", "Origin", "Source", "Watch"]

_TIMES_MIN: Final = 1_000
"""Of so many times it does not matter if all are past use."""


class Event(NamedTuple):
    """One change of a table. What it holds is the caller's own.

    >>> import microdb
    >>> mdb = microdb.MicroDB(":memory:", ["id"])
    >>> watch = mdb.watch()
    >>> mdb.upsert_many([{"id": 1}, {"id": 2}])
    >>> mdb.clear()
    >>> for event in (watch.take(), watch.take(), watch.take()):
    ...     print(event.kind, event.key, [part.key for part in event.parts])
    upsert (1,) []
    upsert (2,) []
    clear None [(1,), (2,)]

    Attributes:
        position: Where a later ``watch(since=position)`` goes on so that nothing is missed. Of several changes that
            were made as one, all but the last bear the position before them: then they are told once more.
        kind: ``upsert`` or ``delete``; ``expire`` if its time has come, by the clock, and after ``since=`` perhaps once
            more, and before the upsert that put it off if the watch comes to that too late: a log holds no times of
            day; ``clear`` if all records were removed at once; ``resync`` if so much was written and saved since the
            last event that the single changes are kept no more.
        key: Of the record; None for a clear and a resync.
        old: The record that stood there before; None if there was none; `UNKNOWN` if a save has made it impossible to
            tell, as may be for what comes first after ``since=``.
        new: The record that stands there now; None if there is none.
        expires_at: When the new record expires, in seconds since 1970; None: never.
        parts: What a clear or a resync comes to: an upsert or a delete for each record that is another one now. Those
            that are unknown are not among those of a clear.
    """

    position: Position
    kind: Literal["upsert", "delete", "expire", "clear", "resync"]
    key: Key | None
    old: Record | Unknown | None
    new: Record | None
    expires_at: float | None = None
    parts: tuple["Event", ...] = ()


class Origin(NamedTuple):
    """Where a watch begins.

    Attributes:
        records: The table there; None if it cannot be told any more.
        position: How far it goes.
    """

    records: Records | None
    position: Position


class News(NamedTuple):
    """What has come since a position.

    Attributes:
        head: The head that was seen before it was looked for.
        payloads: The batches.
        ends: The position behind each of them.
        end: The position behind all.
        records: The table there; None if it was not asked for and the batches lead there.
        is_complete: Whether they do.
    """

    head: int
    payloads: Sequence[Payload]
    ends: Sequence[Position]
    end: Position
    records: Records | None
    is_complete: bool


class Source(NamedTuple):
    """What a watch asks of its database.

    Attributes:
        origin: The table as of now, or at a position. Raises SinceLostError if the log does not lead on from there.
        news: What has come since a position; with True, also the table.
        changes_of: What a batch holds.
        sleep: Return when the head has moved on from this one, or after so many seconds, or sooner.
        wake: Let all who sleep return.
        clock: By which records expire.
    """

    origin: Callable[[Position | None], Origin]
    news: Callable[[Position, bool], News]
    changes_of: Callable[[Payload], Sequence[Change]]
    sleep: Callable[[int, float | None], None]
    wake: Callable[[], None]
    clock: Callable[[], float]


class Watch(Iterator[Event]):
    """The events of a database, as they come. An iterator that waits for the next one; it ends when it is closed.

    For one thread at a time; `close` may be called by any. Costs the memory of a map of the table, and of the records
    that others have changed.

    >>> import microdb
    >>> mdb = microdb.MicroDB(":memory:", ["id"])
    >>> with mdb.watch() as watch:
    ...     mdb.upsert({"id": 1, "n": 5})
    ...     event = next(watch)
    >>> event.kind, event.key, event.old, event.new
    ('upsert', (1,), None, {'id': 1, 'n': 5})

    Attributes:
        position: Where a later watch goes on: behind the last event that was given, and behind all that was passed over
            since because nobody asked for it.
    """

    def __init__(self, source: Source, query: Query | None, since: Position | None) -> None:
        self._source = source
        self._query = query
        records, self.position = source.origin(since)
        self._records: dict[Key, Record | None] = {}
        self._before: dict[Key, Record | None] = {}  # What the batch that is gone through has changed.
        self._times: list[tuple[float, int, Key]] = []
        self._numbers = itertools.count()
        self._is_whole = False
        if records is not None:
            # Of what has expired since a position nothing was told, perhaps.
            self._begin(unexpired(records, source.clock()) if since is None else records)
        self._head = -1
        # Each step makes one event ready, which is so until it is given: nothing is lost that an interrupt stops here.
        self._coming: Iterator[None] = iter(())
        self._ready: Event | None = None
        self._is_closed = False

    def __next__(self) -> Event:
        """The next event, however long it takes.

        Raises:
            StopIteration: This watch is closed.
            ClosedError: Its database is.
            TransactionError: Inside ``lock()`` or ``transaction()`` of this thread: nobody else could write.
        """
        event = self.next()
        if event is None:
            raise StopIteration
        return event

    def next(self, timeout: float | None = None) -> Event | None:
        """The next event; None if there is none within so many seconds, or if this watch is closed meanwhile.

        `timeout` is a number of seconds, or None for ever; TypeError and ValueError say that it is not.

        >>> import microdb
        >>> microdb.MicroDB(":memory:", ["id"]).watch().next(timeout=0) is None
        True
        """
        timeout_s = in_seconds(timeout)
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while (event := self.take()) is None and not self._is_closed:
            left_s = None if deadline_s is None else deadline_s - time.monotonic()
            if left_s is not None and left_s <= 0:
                return None
            self.sleep(left_s)
        return event

    def take(self) -> Event | None:
        """The next event, if it is there already.

        >>> import microdb
        >>> microdb.MicroDB(":memory:", ["id"]).watch().take() is None
        True
        """
        self._go_on(self._coming)
        if self._ready is None and not self._is_closed:
            news = self._source.news(self.position, not self._is_whole)
            self._head = news.head
            self._go_on(self._events(news) if news.is_complete else self._resync(news))
        if self._ready is None and self._times and not self._is_closed:
            self._go_on(self._expire())
        event = self._ready
        if event is not None:
            self.position, self._ready = event.position, None
        return event

    def sleep(self, timeout: float | None) -> None:
        """Return when there may be something to take, or after a while, for those who wait for other things as well.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["id"])
        >>> with mdb.watch() as watch:
        ...     while (event := watch.take()) is None:
        ...         mdb.upsert({"id": 1})
        ...         watch.sleep(timeout=0.01)
        >>> event.key
        (1,)
        """
        timeout_s = in_seconds(timeout)
        if not self._is_closed:
            limits_s = [] if timeout_s is None else [timeout_s]
            if self._times:
                limits_s.append(self._times[0][0] - self._source.clock())
            self._source.sleep(self._head, min(limits_s, default=None))

    def close(self) -> None:
        """End it: whoever waits for an event gets none any more. Closing twice does nothing.

        >>> import microdb
        >>> watch = microdb.MicroDB(":memory:", ["id"]).watch()
        >>> watch.close()
        >>> list(watch)
        []
        """
        if not self._is_closed:
            self._is_closed = True
            self._coming, self._ready = iter(()), None
            self._source.wake()

    def __enter__(self) -> Self:
        """This watch, to be closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    @property
    def is_closed(self) -> bool:
        """Whether it is.

        >>> import microdb
        >>> microdb.MicroDB(":memory:", ["id"]).watch().is_closed
        False
        """
        return self._is_closed

    def wake(self) -> None:
        """Let whoever is in `sleep` return.

        >>> import microdb
        >>> microdb.MicroDB(":memory:", ["id"]).watch().wake()
        """
        self._source.wake()

    def __repr__(self) -> str:
        """How far it has come."""
        asked = "" if self._query is None else f" of {self._query!r}"
        return f"<Watch{asked} at {self.position}{', closed' if self._is_closed else ''}>"

    def _go_on(self, coming: Iterator[None]) -> None:
        """See that the next of these events is ready, unless another thread has closed this watch meanwhile."""
        if self._ready is None:
            self._coming = iter(()) if self._is_closed else coming
            next(self._coming, None)

    def _events(self, news: News) -> Iterator[None]:
        """One batch after the other, each when the one before has been given."""
        for payload, end in zip(news.payloads, news.ends, strict=True):
            self._before, is_whole = {}, self._is_whole
            try:
                events = [event for change in self._source.changes_of(payload) for event in self._carry_out(change)]
                for event in events[:-1]:
                    self._ready = event
                    yield
                last = events[-1]._replace(position=end) if events else None
            except BaseException:
                # Interrupted, or a function of the query has raised: the batch is gone through once more.
                if is_whole:
                    self._records.update(self._before)
                    self._note_times()
                else:
                    self._is_whole, self._records = False, {}
                raise
            if last is None:
                self.position = end
            else:
                self._ready = last
                yield
        self.position = news.end
        if news.records is not None:
            self._begin(news.records)

    def _begin(self, records: Records) -> None:
        """Go on from a whole table."""
        self._records = {**records}
        self._is_whole = True
        self._note_times()

    def _set(self, key: Key, record: Record | None) -> None:
        self._before.setdefault(key, self._records.get(key))
        if record is None and self._is_whole:
            self._records.pop(key, None)
        else:
            self._records[key] = record
            self._note_time(key, record)

    def _note_time(self, key: Key, record: Record | None) -> None:
        if type(record) is Expiring:
            # The number keeps keys, which may have no order, from being compared.
            heapq.heappush(self._times, (record.expires_at, next(self._numbers), key))
            if len(self._times) > 2 * len(self._records) + _TIMES_MIN:
                self._note_times()  # Without those that were upserted anew since, perhaps again and again.

    def _note_times(self) -> None:
        times = [
            (record.expires_at, next(self._numbers), key)
            for key, record in self._records.items()
            if type(record) is Expiring
        ]
        heapq.heapify(times)
        self._times = times

    def _expire(self) -> Iterator[None]:
        """What has expired by now, in the order of the times."""
        now = self._source.clock()
        while self._times and self._times[0][0] <= now:
            key = self._times[0][2]
            record = self._records.get(key)
            is_over = has_expired(record, now)
            events = self._single("expire", key, record, None) if is_over else []
            heapq.heappop(self._times)
            if is_over:
                self._records[key] = None  # Until it is deleted.
            if events:
                self._ready = events[0]
                yield

    def _carry_out(self, change: Change) -> list[Event]:
        """Do to the own table what a change does, and tell it, if it is asked for."""
        key, new = change
        if key is None:
            event = self._difference("clear", {})
            is_meant = bool(event.parts) or not self._is_whole
            self._before, self._records = {**self._records, **self._before}, {}
            self._is_whole = True
            return [event] * is_meant
        old = self._records.get(key, None if self._is_whole else UNKNOWN)
        events: list[Event] = []
        if isinstance(old, dict) and has_expired(old, self._source.clock()):
            events, old = self._single("expire", key, old, None), None
        self._set(key, new)
        return events + self._single("delete" if new is None else "upsert", key, old, new)

    def _resync(self, news: News) -> Iterator[None]:
        """What the single changes, which are lost, have come to."""
        if not self._is_whole or news.records is None:
            raise SinceLostError(f"{self.position} is kept no more: since then so much was written and saved")
        records = unexpired(news.records, self._source.clock())
        event = self._difference("resync", records)._replace(position=news.end)
        self._records, self._is_whole, self._ready = {**records}, True, event
        self._note_times()
        yield

    def _difference(self, kind: Literal["clear", "resync"], now: Records) -> Event:
        before = self._records
        changed: list[tuple[Key, Record | None, Record | None]]
        changed = [(key, before[key], None) for key in before if key not in now]
        changed += [(key, before.get(key), new) for key, new in now.items() if not _is_same(before.get(key), new)]
        parts = [
            part
            for key, old, new in changed
            for part in self._single("delete" if new is None else "upsert", key, old, new)
        ]
        return Event(self.position, kind, None, None, None, parts=tuple(parts))

    def _single(
        self,
        kind: Literal["upsert", "delete", "expire"],
        key: Key,
        old: Record | Unknown | None,
        new: Record | None,
    ) -> list[Event]:
        """The event of one record; none if nobody asked for it, or nothing has come of it."""
        if old is None and new is None:
            return []
        if self._query is not None and not any(
            isinstance(record, Unknown) or (record is not None and self._query.means(record)) for record in (old, new)
        ):
            return []
        return [
            Event(
                self.position,
                kind,
                key,
                old.copy() if isinstance(old, dict) else old,
                None if new is None else new.copy(),
                new.expires_at if type(new) is Expiring else None,
            )
        ]


def _is_same(old: Record | None, new: Record) -> bool:
    """Whether a record is the same, types included."""
    return old is new or (old is not None and encode_upsert(old) == encode_upsert(new))
