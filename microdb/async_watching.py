"""Watch a database, wait for what is in it, and lock it, while an event loop goes on.

Whoever waits sleeps as `watching` does, in a thread of its own. asyncio is imported by those alone who use it.
"""

import contextlib
import functools
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any, Final

from microdb.errors import LockTimeoutError, TransactionError
from microdb.feed import Event, Watch
from microdb.keys import Key
from microdb.locks import WriteLock
from microdb.query import Query
from microdb.timeouts import in_seconds
from microdb.wal.bell import Bell
from microdb.watching import IN_VAIN, Since, Watching, Where

__all__ = ["AsyncWatching"]

_TRY_AGAIN_S: Final = (0.0005, 0.01)
"""How soon one tries again for the lock: at first, and in the end."""
_GIVEN_MAX: Final = 64
"""Events that may be there already, until other tasks get a turn."""


class AsyncWatching(Watching):
    """As `Watching`, for coroutines."""

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

    def _check_may_wait(self) -> None:
        """For asyncio, which sleeps in another thread."""
        if self._has_lock():
            raise TransactionError(IN_VAIN)


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
