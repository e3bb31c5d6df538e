"""`transaction` and `lock`: all or nothing, seen by oneself, by nobody else before the end."""

import os
import threading

import pytest

import microdb
from children import forked
from microdb.transaction import Transaction

A = {"id": "a", "n": 1}
B = {"id": "b", "n": 2}


@pytest.fixture(params=["file", "memory"])
def mdb(request, open_db):
    mdb = open_db() if request.param == "file" else open_db(":memory:")
    mdb.upsert_many([A, B])
    return mdb


def in_thread(function):
    """What `function` returns in another thread."""
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def test_its_own_reads_see_its_changes_and_others_do_not(mdb):
    with mdb.transaction():
        mdb.upsert({"id": "c"})
        mdb.delete(("a",))
        mdb["b",] = {"id": "b", "n": 3}
        assert mdb.get(("a",)) is None
        assert ("a",) not in mdb
        assert mdb["b",]["n"] == 3
        assert list(mdb) == [("b",), ("c",)]
        assert len(mdb) == 2
        assert list(mdb.all()) == [{"id": "b", "n": 3}, {"id": "c"}]
        mdb.upsert({"id": "d"})
        assert list(mdb) == [("b",), ("c",), ("d",)]
        assert in_thread(lambda: list(mdb.items())) == [(("a",), A), (("b",), B)]
        assert in_thread(lambda: mdb["a",]) == A
    assert list(mdb) == [("b",), ("c",), ("d",)]


def test_another_handle_sees_nothing_before_the_end_and_all_after_it(open_db):
    mdb, other = open_db(), open_db()
    with mdb.transaction():
        mdb.upsert(A)
        assert len(other) == 0
        mdb.upsert(B)
        assert len(other) == 0
    assert list(other.all()) == [A, B]
    assert other.stats().sequence == 1, "one frame"


def test_an_exception_leaves_nothing_behind(mdb):
    sequence = mdb.stats().sequence
    with pytest.raises(ZeroDivisionError), mdb.transaction():
        mdb.clear()
        mdb.upsert({"id": "c"})
        assert list(mdb) == [("c",)]
        raise ZeroDivisionError
    assert list(mdb.all()) == [A, B]
    assert mdb.stats().sequence == sequence


def test_a_refused_record_changes_nothing_and_the_transaction_goes_on(mdb):
    with mdb.transaction():
        mdb.upsert({"id": "c"})
        with pytest.raises(microdb.RecordError):
            mdb.upsert({"id": "x", "bad": object()})
        with pytest.raises(microdb.RecordError):
            mdb.upsert({"id": "x", "bad": "\ud800"})
        assert ("x",) not in mdb
    assert list(mdb) == [("a",), ("b",), ("c",)]


def test_an_inner_one_is_undone_alone(mdb):
    with mdb.transaction():
        mdb.upsert({"id": "outer"})
        with pytest.raises(ZeroDivisionError), mdb.transaction():
            mdb.clear()
            mdb.upsert({"id": "inner"})
            raise ZeroDivisionError
        assert list(mdb) == [("a",), ("b",), ("outer",)]
        with mdb.transaction():
            mdb.upsert({"id": "kept"})
        assert ("kept",) in mdb
    assert list(mdb) == [("a",), ("b",), ("outer",), ("kept",)]


def test_an_empty_one_writes_nothing(mdb):
    sequence = mdb.stats().sequence
    with mdb.transaction():
        assert mdb["a",] == A
    assert mdb.stats().sequence == sequence


def test_mapping_methods_work_inside(mdb):
    with mdb.transaction():
        assert mdb.pop(("a",)) == A
        assert mdb.popitem() == (("b",), B)
        assert mdb.setdefault(("c",), {"id": "c"}) == {"id": "c"}
        with mdb.lock():
            mdb.update({("d",): {"id": "d"}})
        mdb.upsert_many([{"id": "e"}])
    assert list(mdb) == [("c",), ("d",), ("e",)]


def test_saving_and_closing_wait_until_it_has_ended(open_db):
    mdb = open_db()
    with mdb.transaction():
        for call in (mdb.save, mdb.save_as_grid, mdb.erase_all, mdb.close):
            with pytest.raises(microdb.TransactionError):
                call()
        mdb.upsert(A)
    assert list(mdb.all()) == [A]


def test_closing_inside_a_lock_is_refused(mdb):
    with mdb.lock(), pytest.raises(microdb.TransactionError, match=r"close\(\) inside"):
        mdb.close()


def test_exporting_inside_one_shows_its_own_view(mdb, tmp_path):
    with mdb.transaction():
        mdb.upsert({"id": "c"})
        mdb.save(tmp_path / "out.json")
    assert '"c"' in (tmp_path / "out.json").read_text()


def test_a_lock_is_reentrant_over_all_handles_of_its_thread(open_db):
    one, other = open_db(), open_db()
    with one.lock(), other.lock(), one.transaction():
        other.upsert(A)
        one.upsert(B)
        assert one["a",] == A
        assert list(one) == [("a",), ("b",)]
        assert ("b",) not in other
    assert list(other) == [("a",), ("b",)]


def test_a_write_through_another_handle_inside_a_transaction_is_in_its_view(open_db):
    one, other = open_db(), open_db()
    with one.transaction():
        one.upsert(A)
        assert len(one) == 1
        other.upsert(B)
        assert len(one) == 2
        assert one["b",] == B
    assert list(other) == [("b",), ("a",)]


def test_a_lock_excludes_other_threads_and_not_their_reads(mdb):
    order = []
    entered = threading.Event()

    def write():
        entered.set()
        mdb.upsert({"id": "a", "n": "thread"})
        order.append("thread")

    with mdb.lock():
        thread = threading.Thread(target=write)
        thread.start()
        entered.wait()
        assert in_thread(lambda: mdb["a",]) == A
        mdb.upsert({"id": "a", "n": "holder"})
        order.append("holder")
        assert mdb["a",]["n"] == "holder", "the waiting write came not in between"
    thread.join()
    assert order == ["holder", "thread"]
    assert mdb["a",]["n"] == "thread"


def test_a_lock_that_is_not_free_in_time_says_who_holds_it(mdb):
    with mdb.lock():

        def attempt():
            with pytest.raises(microdb.LockTimeoutError) as caught:
                mdb.lock(timeout=0.01).__enter__()
            return caught.value

        error = in_thread(attempt)
    assert error.timeout_s == 0.01
    assert isinstance(error, TimeoutError)
    with mdb.lock(timeout=0):
        mdb.upsert(A)


def test_a_transaction_that_is_not_free_in_time_changes_nothing(open_db):
    mdb = open_db()

    def attempt():
        with pytest.raises(microdb.LockTimeoutError), mdb.transaction(timeout=0.01):
            mdb.upsert(A)
        return True

    with mdb.lock():
        assert in_thread(attempt)
    assert len(mdb) == 0


def test_threads_that_write_at_once_share_appends_and_lose_nothing(mdb):
    barrier = threading.Barrier(16)

    def write(thread):
        barrier.wait()
        for n in range(100):
            mdb.upsert({"id": (thread, n)})
            assert ((thread, n),) in mdb

    threads = [threading.Thread(target=write, args=(t,)) for t in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(mdb) == 1_602
    for thread in range(16):
        mine = [key[0][1] for key in mdb if isinstance(key[0], tuple) and key[0][0] == thread]
        assert mine == list(range(100))


def test_a_fork_inside_a_transaction_leaves_it_to_the_parent(open_db):
    mdb = open_db()

    def child():
        with pytest.raises(microdb.TransactionError, match="is the parent's"):
            context.__exit__(None, None, None)
        assert len(mdb) == 0

    context = mdb.transaction()
    context.__enter__()
    mdb.upsert(A)
    assert forked(child) == 0
    assert mdb["a",] == A
    context.__exit__(None, None, None)
    assert list(open_db().all()) == [A]


def cannot_write_in_the_transaction(mdb):
    for write in (lambda: mdb.upsert(B), lambda: mdb.upsert_many([B]), mdb.clear):
        with pytest.raises(microdb.TransactionError, match="before a fork"):
            write()


def test_a_child_forked_inside_a_transaction_can_add_nothing_to_it_and_is_told_so_at_once(open_db):
    mdb = open_db(timeout=2)

    def child():
        cannot_write_in_the_transaction(mdb)
        assert list(mdb) == []

    with mdb.transaction():
        mdb.upsert(A)
        assert forked(child) == 0
    assert list(open_db().all()) == [A]


def test_a_child_forked_inside_a_transaction_can_add_nothing_to_it_after_the_parent_has_ended_it(open_db):
    mdb = open_db()
    ended, end = os.pipe()

    def child():
        os.read(ended, 1)
        cannot_write_in_the_transaction(mdb)
        assert list(mdb) == [("a",)]

    with mdb.transaction():
        mdb.upsert(A)
        pid = os.fork()
        if pid == 0:
            os._exit(forked(child))
    os.write(end, b"1")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert list(open_db().all()) == [A]


def test_changes_that_cannot_all_be_taken_in_leave_the_view_as_it_was():
    transaction = Transaction({("a",): A})
    transaction.add([(("b",), B)], [b"b"])
    assert list(transaction.whole()) == [("a",), ("b",)]
    with pytest.raises(ValueError, match="zip"):
        transaction.add([(("c",), A), (("d",), A)], [b"c"])
    assert transaction.pairs == [((("b",), B), b"b")]
    assert transaction.get(("c",)) is None
    assert transaction.whole() == {("a",): A, ("b",): B}
