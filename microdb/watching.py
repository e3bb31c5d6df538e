"""Watch a database, or wait for what is in it, here or in a thread."""

import contextlib
import functools
import logging
import threading
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Final, Self

from microdb.changes import Change
from microdb.claims import Claims
from microdb.errors import (
    ClosedError,
    SinceLostError,
    TransactionError,
    WaitTimeoutError,
    shown,
)
from microdb.feed import Event, News, Origin, Source, Watch
from microdb.keys import Key
from microdb.open_table import records_of
from microdb.query import Query
from microdb.table import Records
from microdb.timeouts import in_seconds
from microdb.values import Record
from microdb.wal.bell import Bell, ring
from microdb.wal.codec import is_carried
from microdb.wal.file_log import FileLog
from microdb.wal.format import Payload, Position, position_of
from microdb.wal.header import HEAD
from microdb.wal.log import GoneError
from microdb.wal.log_file import changes_in

__all__ = ["IN_VAIN", "Listener", "Since", "Watching", "Where"]

Since = Position | Sequence[int]
Where = Query | Mapping[str, Any] | Callable[[Record], object]
Steps = Generator[tuple[int, float | None], None, Any]
"""Gives the head, and how long to sleep there at most, whenever there is nothing to do; returns what was found."""

_NOWHERE: Final = Position(0, 0, 0, 0)
"""Of a snapshot that nobody has written a log to: no log leads on from there."""
IN_VAIN: Final = "waiting inside lock() or transaction(), where nobody else can write"

_LOG: Final = logging.getLogger("microdb")


class Listener:
    """A thread that calls a function with each event, until it is closed, or the database is.

    What the function raises is logged with its traceback, and the next event comes.

    >>> import microdb
    >>> listener = microdb.MicroDB(":memory:", ["id"]).on_change(print)
    >>> listener.close()
    """

    def __init__(self, name: str, watch: Watch, callback: Callable[[Event], object]) -> None:
        self._name = name
        self._watch = watch
        self._callback = callback
        self._thread = threading.Thread(target=self._run, name="microdb-listener", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Call it no more. Returns when the call that is going on has ended, unless it is from there.

        >>> import microdb
        >>> seen = []
        >>> mdb = microdb.MicroDB(":memory:", ["id"])
        >>> mdb.on_change(seen.append).close()
        >>> mdb.upsert({"id": 1})
        >>> seen
        []
        """
        self._watch.close()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> Self:
        """This listener, to be closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def _run(self) -> None:
        try:
            for event in self._watch:
                self._call(event)
        except ClosedError:
            return
        except Exception:  # noqa: BLE001  # A function of the query is a stranger's, too; nobody else would hear of it.
            _LOG.error("%s: the listener has ended\n%s", self._name, traceback.format_exc())

    def _call(self, event: Event) -> None:
        try:
            self._callback(event)
        except Exception:  # noqa: BLE001  # It is a stranger's, and the thread must live.
            _LOG.error("%s: a listener failed at %s\n%s", self._name, event.position, traceback.format_exc())


class Watching(Claims):
    """See, or be told, when others write."""

    def watch(self, *, since: Since | None = None, where: Where | None = None) -> Watch:
        """The changes from now on, or from a position on: all of them, in order, by whomever, across saves.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["id"])
        >>> watch = mdb.watch(where={"status": "done"})
        >>> mdb.upsert_many([{"id": 1, "status": "done"}, {"id": 2, "status": "begun"}])
        >>> mdb.upsert({"id": 1, "status": "lost"})
        >>> [(event.key, event.new["status"]) for event in (watch.take(), watch.take())]
        [((1,), 'done'), ((1,), 'lost')]

        A watch is woken within some 0.1 ms on Linux; elsewhere, and where this handle is read-only, it looks every 1 to
        10 ms. Of what was saved over the newest 16 MiB are kept for slow ones, in 64 logs at most. One that is further
        behind is told a `resync`, see `Event`.

        Args:
            since: Where to begin: the `position` of an event, of a watch or of a database, or its four numbers, as JSON
                gives them back. None: now.
            where: Only changes of records that are meant before or after: a query, or what `where` takes. The order and
                the limit of a query do not count.

        Raises:
            SinceLostError: That position is kept no more, or is none of this database.
            TypeError: `since` is no position; or `where` no condition, or a query of another database.
        """
        begin = None if since is None else position_of(since, "since")
        sleep = functools.partial(self._sleep, Bell())
        source = Source(self._origin, self._news, self._changes_of, sleep, self._wake, self._clock)
        query = None if where is None else self._query(where)
        return Watch(source, query, begin)

    def wait(
        self,
        what: Key | Mapping[str, Any] | Query,
        predicate: Callable[[Any], object] = bool,
        *,
        timeout: float | None = None,
    ) -> Any:
        """Return once a predicate holds for a record, or for the records that a query finds; with those.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["id"])
        >>> mdb.upsert({"id": 1, "status": "done"})
        >>> mdb.wait((1,), lambda record: record and record["status"] == "done", timeout=5)
        {'id': 1, 'status': 'done'}

        It looks at what is there now, and again when somebody has written: what was there for a moment only may be
        missed; `watch` misses nothing.

        Args:
            what: A key tuple or anything with the key fields: the predicate gets the record, or None. Or a query: it
                gets the list of what that finds.
            predicate: Tells whether that is it. By default: whether there is any.
            timeout: How many seconds to wait at most; None: for ever.

        Raises:
            WaitTimeoutError: It did not come in time.
            TypeError: `timeout` is no number of seconds.
            ValueError: It is a nan.
            TransactionError: Inside ``lock()`` or ``transaction()``, where nobody else could write.
        """
        bell = Bell()
        steps = self._until(what, predicate, timeout)
        while True:
            try:
                head, left_s = next(steps)
            except StopIteration as end:
                return end.value
            self._sleep(bell, head, left_s)

    def on_change(
        self, callback: Callable[[Event], object], *, since: Since | None = None, where: Where | None = None
    ) -> Listener:
        """Have a function called with each event, in a thread of its own. Ends with `Listener.close`, or the database.

        >>> import microdb, queue
        >>> mdb = microdb.MicroDB(":memory:", ["id"])
        >>> events = queue.Queue()
        >>> with mdb.on_change(events.put):
        ...     mdb.upsert({"id": 1})
        ...     events.get(timeout=5).key
        (1,)

        Args:
            callback: The function. What it raises is logged.
            since: As for `watch`.
            where: As for `watch`.

        Raises:
            SinceLostError: As `watch`.
            TypeError: As `watch`; or `callback` is no function.
        """
        if not callable(callback):
            raise TypeError(f"callback is a function, which gets each event; found {shown(callback):.60}")
        return Listener(self._log.name, self.watch(since=since, where=where), callback)

    # Inside.

    def _until(
        self, what: Key | Mapping[str, Any] | Query, predicate: Callable[[Any], object], timeout: float | None
    ) -> Steps:
        """The steps of `wait`."""
        if isinstance(what, Query):
            what = self._query(what)
        timeout_s = in_seconds(timeout)
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            head = self._words[HEAD]
            found = list(what) if isinstance(what, Query) else self.get(what)
            if predicate(found):
                return found
            left_s = None if deadline_s is None else deadline_s - time.monotonic()
            if left_s is not None and left_s <= 0:
                raise WaitTimeoutError(f"{self._log.name}: {shown(what):.200} is not so after {timeout_s:g} s")
            yield head, left_s

    def _origin(self, since: Position | None) -> Origin:
        """See `feed.Source`."""
        self._settle()
        with self._telling(), self._table_lock:
            self._log.keep_history()
            records = self._catch_up()
            position = self._position or _NOWHERE
            if since is None or since == position:
                return Origin(dict(records), position)
        if isinstance(self._log, FileLog):
            with contextlib.suppress(GoneError):
                return Origin(records_of(self._log.load_as_of(since), self._log.name, self._keys), since)
        try:
            self._log.check_kept(since)
        except GoneError:
            raise SinceLostError(
                f"{self._log.name}: {since} is not in the logs that are kept: so much was written and saved since, or "
                "it is a position of another database. Read the table as it is, and watch from now on"
            ) from None
        return Origin(None, since)

    def _news(self, after: Position, whole: bool) -> News:  # noqa: FBT001  # See `feed.Source`.
        """See `feed.Source`."""
        self._settle()
        with self._telling(), self._table_lock:
            self._refuse_closed()  # By another thread, since it was settled.
            head = seen = self._words[HEAD]
            records: Records | None = None
            if whole or not self._log.is_followed():
                records = self._catch_up()
                head = (self._position or _NOWHERE).head  # Not the page's, which may be one that nobody keeps up.
            ends: list[Position] = []
            try:
                payloads, end = self._log.read(after, head, ends) if after.head != head else ((), after)
            except GoneError:
                records = self._catch_up()
                return News(seen, (), (), self._position or _NOWHERE, dict(records), is_complete=False)
            table = dict(records) if whole and records is not None else None
            return News(seen, payloads, ends, end, table, is_complete=True)

    def _changes_of(self, payload: Payload) -> list[Change]:
        """See `feed.Source`."""
        if is_carried(payload):
            return []  # What a save carries over is known already, or will be with the table.
        (changes,) = changes_in([payload], self._keys, self._log.name)
        return list(changes)

    def _sleep(self, bell: Bell, head: int, timeout_s: float | None) -> None:
        """See `feed.Source`."""
        if self._log.lock.is_mine():
            raise TransactionError(IN_VAIN)
        bell.wait(self._words, head, timeout_s, rings=self._log.is_followed())

    def _wake(self) -> None:
        """See `feed.Source`."""
        ring(self._words)
