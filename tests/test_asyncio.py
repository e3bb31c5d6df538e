"""The same for asyncio: nothing blocks the event loop, and what is cancelled holds nothing."""

import asyncio
import gc
import threading
import weakref

import pytest

import microdb
from children import finish, increment, spawned, start
from microdb import watching
from microdb.wal.bell import ring
from microdb.wal.header import HEAD, WAITING


@pytest.fixture
def mdb(either):
    """A table that is not the very first, whose head would be zero."""
    either.upsert({"id": 0, "n": 0})
    return either


async def asleep(mdb):
    """Return when somebody is asleep."""
    while mdb._words[WAITING] < mdb._words[HEAD]:  # noqa: ASYNC110  # It is another thread that tells.
        await asyncio.sleep(0.001)


def sleepers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("microdb-sleeper")]


def gone(threads):
    for thread in threads:
        thread.join(20)
    return not any(thread.is_alive() for thread in threads)


def test_async_for_gives_each_event_while_the_loop_goes_on(mdb):
    async def follow(events):
        found = []
        async for event in events:
            found.append(event.key)
            if len(found) == 3:
                return found
        return None

    async def main():
        task = asyncio.create_task(follow(mdb.awatch(where=lambda record: record["id"] < 5)))
        await asleep(mdb)
        for n in (1, 9, 2, 3):
            await asyncio.to_thread(mdb.upsert, {"id": n})
        return await asyncio.wait_for(task, 20)

    assert asyncio.run(main()) == [(1,), (2,), (3,)]
    assert gone(sleepers())


def test_awatch_begins_when_it_is_called(mdb):
    async def main():
        events = mdb.awatch(since=mdb.position)
        mdb.upsert({"id": 1})
        event = await anext(events)
        await events.aclose()
        return event.key

    assert asyncio.run(main()) == (1,)


@pytest.mark.parametrize("what", ["awatch", "await_change"])
def test_what_is_cancelled_ends_its_thread(mdb, what, monkeypatch):
    rung = []
    monkeypatch.setattr(watching, "ring", lambda words: rung.append(words) or ring(words))

    async def main():
        waiting = anext(mdb.awatch()) if what == "awatch" else mdb.await_change((9,))
        task = asyncio.ensure_future(waiting)
        await asleep(mdb)
        threads = sleepers()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return threads

    threads = asyncio.run(main())
    assert len(threads) == 1
    assert gone(threads)
    assert rung[:1] == [mdb._words]


def test_whoever_is_cancelled_as_it_waits_may_ask_again(mdb):
    async def main():
        events = mdb.awatch()
        for n in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(events), 0.01)
            mdb.upsert({"id": 1, "n": n})
            assert (await asyncio.wait_for(anext(events), 20)).new["n"] == n
        task = asyncio.create_task(anext(events))
        await asleep(mdb)
        await events.aclose()
        await asyncio.wait([task])
        assert isinstance(task.exception(), StopAsyncIteration | RuntimeError)

    asyncio.run(main())
    assert gone(sleepers())


def test_who_gets_one_event_after_the_other_lets_other_tasks_go_on(mdb):
    async def main():
        events, turns = mdb.awatch(), []

        async def count():
            while True:
                turns.append(1)
                await asyncio.sleep(0)

        mdb.upsert_many([{"id": n} for n in range(1_000)])
        task = asyncio.create_task(count())
        for _ in range(1_000):
            await anext(events)
        task.cancel()
        return len(turns)

    assert asyncio.run(main()) > 10


def test_many_watches_do_not_use_up_the_threads_of_the_loop(mdb):
    async def main():
        tasks = [asyncio.create_task(anext(mdb.awatch())) for _ in range(50)]
        await asleep(mdb)
        await asyncio.to_thread(mdb.upsert, {"id": 1})
        return [event.key for event in await asyncio.wait_for(asyncio.gather(*tasks), 20)]

    assert asyncio.run(main()) == [(1,)] * 50


def test_await_change_ends_when_it_holds_or_in_time(mdb):
    async def main():
        task = asyncio.create_task(mdb.await_change((1,), lambda record: record and record["n"] == 2))
        await asleep(mdb)
        for n in range(3):
            mdb.upsert({"id": 1, "n": n})
        assert await asyncio.wait_for(task, 20) == {"id": 1, "n": 2}
        assert await mdb.await_change(mdb.where(n=2)) == [{"id": 1, "n": 2}]
        with pytest.raises(microdb.WaitTimeoutError):
            await mdb.await_change((9,), timeout=0.01)

    asyncio.run(main())
    assert gone(sleepers())


def test_asave_saves_while_the_loop_goes_on(open_db, path):
    mdb = open_db()
    mdb.upsert({"id": 1})
    asyncio.run(mdb.asave())
    assert path.read_text() == '[\n{"id":1}\n]\n'
    asyncio.run(mdb.asave(path.with_name("copy.json"), timeout=5))
    assert path.with_name("copy.json").read_text() == path.read_text()


def test_alock_excludes_the_tasks_of_the_loop(either):
    async def add():
        for _ in range(20):
            async with either.alock():
                n = (either.get((1,)) or {"n": 0})["n"]
                await asyncio.sleep(0)
                either.upsert({"id": 1, "n": n + 1})

    async def main():
        await asyncio.gather(*[add() for _ in range(10)])

    asyncio.run(main())
    assert either[1,]["n"] == 200
    assert not either._log.lock.is_mine()


def test_alock_excludes_other_processes(open_db, path):
    mdb = open_db()

    async def add():
        for _ in range(100):
            async with mdb.alock():
                record = mdb.get(("counter",)) or {"id": "counter", "n": 0}
                await asyncio.sleep(0)
                record["n"] += 1
                mdb.upsert(record)

    with spawned(*[(increment, path, 100, "lock")] * 2) as (pipes, _):
        start(pipes)
        asyncio.run(add())
        finish(pipes)
    assert mdb["counter",]["n"] == 300


@pytest.mark.parametrize("by", ["task", "thread"])
def test_alock_gives_up_in_time_and_says_who_has_it(either, by):
    held, enough = threading.Event(), threading.Event()

    def hold():
        with either.lock():
            held.set()
            enough.wait(20)

    async def hold_as_task():
        async with either.alock():
            held.set()
            await asyncio.sleep(20)

    async def main():
        holder = asyncio.create_task(asyncio.to_thread(hold) if by == "thread" else hold_as_task())
        while not held.is_set():  # noqa: ASYNC110  # As above.
            await asyncio.sleep(0.001)
        with pytest.raises(microdb.LockTimeoutError, match=r"not free within 0\.02 s") as caught:
            async with either.alock(timeout=0.02):
                pass
        assert caught.value.timeout_s == 0.02
        enough.set()
        if by == "task":
            holder.cancel()
        await asyncio.wait([holder])
        async with either.alock(timeout=5):
            either.upsert({"id": 1})

    asyncio.run(main())
    assert (1,) in either


def test_a_task_that_is_cancelled_as_it_waits_for_alock_leaves_it(either):
    async def take():
        async with either.alock():
            raise AssertionError("it was held")

    async def main():
        async with either.alock():
            task = asyncio.create_task(take())
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        async with either.alock(timeout=1):
            return task.cancelled()

    assert asyncio.run(main())


def test_an_error_inside_alock_frees_it(either):
    async def main():
        with pytest.raises(RuntimeError):
            async with either.alock():
                raise RuntimeError
        async with either.alock(timeout=1):
            pass

    asyncio.run(main())
    asyncio.run(main())  # In another loop.


def test_alock_needs_a_handle_that_may_write(open_db):
    open_db().upsert({"id": 1})
    reader = open_db(read_only=True)

    async def main():
        async with reader.alock():
            pass

    with pytest.raises(microdb.ReadOnlyError):
        asyncio.run(main())


def test_alock_is_reentrant_in_its_task_alone(either):
    async def inner():
        async with either.alock():
            assert order == ["out"]

    order = []

    async def main():
        async with either.alock():
            other = asyncio.create_task(inner())
            async with either.alock(timeout=0):
                await asyncio.sleep(0.01)
            assert either._log.lock.is_mine()
            assert not other.done()
            order.append("out")
        await asyncio.wait_for(other, 20)

    asyncio.run(main())
    assert not either._log.lock.is_mine()


def test_asave_inside_alock_saves(open_db, path):
    mdb = open_db()

    async def main():
        async with mdb.alock():
            mdb.upsert({"id": 1})
            async with asyncio.timeout(20):
                await mdb.asave()
            other = asyncio.create_task(mdb.asave())  # That waits, as another task has the lock.
            await asyncio.sleep(0.01)
            assert not other.done()
        await asyncio.wait_for(other, 20)

    asyncio.run(main())
    assert mdb.stats().saves == 2


def test_an_event_loop_that_has_ended_is_not_kept(mdb):
    async def take():
        async with mdb.alock():
            await asyncio.sleep(0)

    async def main():
        await asyncio.gather(take(), take())
        return weakref.ref(asyncio.get_running_loop())

    loop = asyncio.run(main())
    gc.collect()
    assert loop() is None


def test_nobody_waits_for_others_inside_alock(either):
    async def main():
        async with either.alock():
            events = either.awatch()
            with pytest.raises(microdb.TransactionError, match="nobody else can write"):
                await anext(events)
            with pytest.raises(microdb.TransactionError, match="nobody else can write"):
                await either.await_change((1,))
            either.upsert({"id": 1})
            assert (await anext(events)).key == (1,)
            assert await either.await_change((1,)) == {"id": 1}

    asyncio.run(main())
