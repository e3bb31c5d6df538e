"""Watch a database, wait for what is in it, and do either in a thread or in asyncio: all by one way to sleep."""

import contextlib
import functools
import logging
import threading
import time
import traceback
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, Final, Self

from microdb.changes import Change
from microdb.claims import Claims
from microdb.errors import (
    ClosedError,
    LockTimeoutError,
    SinceLostError,
    TransactionError,
    WaitTimeoutError,
    shown,
)
from microdb.feed import Event, News, Origin, Source, Watch
from microdb.keys import Key
from microdb.locks import WriteLock
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

__all__ = ["Listener", "Since", "Watching"]

Since = Position | Sequence[int]
Where = Query | Mapping[str, Any] | Callable[[Record], object]
Steps = Generator[tuple[int, float | None], None, Any]
"""Gives the head, and how long to sleep there at most, whenever there is nothing to do; returns what was found."""

_NOWHERE: Final = Position(0, 0, 0, 0)
"""Of a snapshot that nobody has written a log to: no log leads on from there."""
_IN_VAIN: Final = "waiting inside lock() or transaction(), where nobody else can write"
_TRY_AGAIN_S: Final = (0.0005, 0.01)
"""How soon asyncio tries again for the lock: at first, and in the end."""
_GIVEN_MAX: Final = 64
"""Events that may be there already, until other tasks get a turn."""

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

    # For asyncio.

    def awatch(self, *, since: Since | None = None, where: Where | None = None) -> AsyncIterator[Event]:
        """As `watch`, for ``async for``. It begins now, not when it is first iterated.

        >>> import asyncio, microdb
        >>> mdb = microdb.MicroDB(":memory:", ["id"])
        >>> async def first():
        ...     events = mdb.awatch()
        ...     mdb.upsert({"id": 1})
        ...     async for event in events:
        ...         return event.key
        >>> asyncio.run(first())
        (1,)
        """
        return _Events(self.watch(since=since, where=where), self._check_may_wait)

    async def await_change(
        self,
        what: Key | Mapping[str, Any] | Query,
        predicate: Callable[[Any], object] = bool,
        *,
        timeout: float | None = None,  # noqa: ASYNC109  # As `wait` has it.
    ) -> Any:
        """As `wait`, while the event loop goes on; the predicate is called in its thread.

        >>> import asyncio, microdb
        >>> mdb = microdb.MicroDB(":memory:", ["id"])
        >>> mdb.upsert({"id": 1})
        >>> asyncio.run(mdb.await_change((1,)))
        {'id': 1}
        """
        bell = Bell()
        steps = self._until(what, predicate, timeout)
        with _asleep(self._wake) as sleep:
            while True:
                try:
                    head, left_s = next(steps)
                except StopIteration as end:
                    return end.value
                self._check_may_wait()
                await sleep(functools.partial(self._sleep, bell, head, left_s))

    @contextlib.asynccontextmanager
    async def alock(self, timeout: float | None = None) -> AsyncIterator[None]:  # noqa: ASYNC109
        """As `lock`, for ``async with``: keeps out other processes, other threads, and other tasks that use `alock`.

        Reentrant in its task. Two tasks of one event loop run in one thread, which has the lock as a whole: what
        another task writes without `alock` is let in.

        >>> import asyncio, microdb
        >>> mdb = microdb.MicroDB(":memory:", ["id"])
        >>> async def add():
        ...     async with mdb.alock(timeout=5):
        ...         mdb.upsert({"id": len(mdb)})
        >>> asyncio.run(add())
        >>> len(mdb)
        1
        """
        import asyncio  # noqa: PLC0415  # For those alone who use it.

        timeout_s = in_seconds(timeout, self._timeout_s)
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        self._settle_for_write(timeout_s)
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        of_loops = _tasks.setdefault(self._log.lock, {})
        tasks = of_loops.setdefault(loop, _Tasks())
        if tasks.holder is task:
            with self.lock(timeout=0):
                yield
            return
        tasks.count += 1
        try:
            try:
                async with asyncio.timeout(timeout_s):
                    await tasks.lock.acquire()
            except TimeoutError:
                raise self._log.lock.timeout(timeout_s) from None
            with contextlib.ExitStack() as stack:
                stack.callback(tasks.lock.release)
                tasks.holder = task
                stack.callback(setattr, tasks, "holder", None)
                again_s, longest_s = _TRY_AGAIN_S
                while True:
                    try:
                        stack.enter_context(self.lock(timeout=0))
                        break
                    except LockTimeoutError as error:
                        if deadline_s is not None and time.monotonic() > deadline_s:
                            raise LockTimeoutError(error.path, timeout_s or 0, error.owner_pid) from None
                    await asyncio.sleep(again_s)
                    again_s = min(2 * again_s, longest_s)
                yield
        finally:
            tasks.count -= 1
            if not tasks.count:
                of_loops.pop(loop, None)

    # Inside.

    def _has_lock(self) -> bool:
        """Whether the running task has the write lock, or its thread has it by `lock`; not if another task has it."""
        import asyncio  # noqa: PLC0415  # As above.

        lock = self._log.lock
        tasks = _tasks.get(lock, {}).get(asyncio.get_running_loop())
        return lock.is_mine() and (tasks is None or tasks.holder in (None, asyncio.current_task()))

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
            raise TransactionError(_IN_VAIN)
        bell.wait(self._words, head, timeout_s, rings=self._log.is_followed())

    def _check_may_wait(self) -> None:
        """For asyncio, which sleeps in another thread."""
        if self._has_lock():
            raise TransactionError(_IN_VAIN)

    def _wake(self) -> None:
        """See `feed.Source`."""
        ring(self._words)


class _Events(AsyncIterator[Event]):
    """The events of a watch. Whoever waits for the next one may be cancelled, and ask for it again."""

    def __init__(self, watch: Watch, check: Callable[[], None]) -> None:
        self._watch = watch
        self._check = check  # Raises if the running task must not wait.
        self._given = 0

    async def __anext__(self) -> Event:
        import asyncio  # noqa: PLC0415  # As above.

        self._given += 1
        if self._given % _GIVEN_MAX == 0:
            await asyncio.sleep(0)
        event = self._watch.take()
        if event is None:
            with _asleep(self._watch.wake) as sleep:
                while (event := self._watch.take()) is None:
                    if self._watch.is_closed:
                        raise StopAsyncIteration
                    self._check()
                    await sleep(functools.partial(self._watch.sleep, None))
        return event

    async def aclose(self) -> None:
        """End it. Whoever waits for an event gets none any more."""
        self._watch.close()


@contextlib.contextmanager
def _asleep(wake: Callable[[], None]) -> Iterator[Callable[[Callable[[], None]], Awaitable[None]]]:
    """A way for asyncio to sleep: in a thread of one's own, because those of the event loop are few."""
    import asyncio  # noqa: PLC0415  # As above.
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415  # As above.

    executor = ThreadPoolExecutor(1, "microdb-sleeper")
    try:
        yield functools.partial(asyncio.get_running_loop().run_in_executor, executor)
    except BaseException:
        wake()
        raise
    finally:
        executor.shutdown(wait=False)


class _Tasks:
    """The tasks of one event loop that have the write lock, or wait for it: one lock among them in front of that.

    Attributes:
        lock: It.
        holder: Which of them has it.
        count: How many there are.
    """

    def __init__(self) -> None:
        import asyncio  # noqa: PLC0415  # As above.

        self.lock = asyncio.Lock()
        self.holder: object | None = None
        self.count = 0


_tasks: Final[weakref.WeakKeyDictionary[WriteLock, dict[object, _Tasks]]] = weakref.WeakKeyDictionary()
"""By event loop, as long as there are any: the lock refers to the loop, and would keep it for ever."""
