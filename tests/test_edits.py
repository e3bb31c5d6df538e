"""Changes in place: each is one read and one write, whoever else does the same."""

import math
import multiprocessing
import os
import pickle
import re
import signal
from decimal import Decimal

import pytest

import microdb
from steps import in_thread

BOB = {"id": "bob", "n": 1, "tags": ["new"]}


@pytest.fixture
def mdb(either):
    either.upsert(BOB)
    return either


EDITS = {
    "patch": lambda mdb, key, **how: mdb.patch(key, n=2, **how),
    "modify": lambda mdb, key, **how: mdb.modify(key, lambda record: {**record, "n": 2}, **how),
    "increment": lambda mdb, key, **how: mdb.increment(key, "n", **how),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("key", [("bob",), {"id": "bob", "n": "whatever"}])
def test_an_edit_changes_a_field_and_leaves_the_others(mdb, edit, key):
    assert EDITS[edit](mdb, key) == ({**BOB, "n": 2} if edit != "increment" else 2)
    assert list(mdb.all()) == [{**BOB, "n": 2}]


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_of_what_is_not_there_is_refused_or_begins_with_the_key_alone(mdb, edit):
    with pytest.raises(KeyError, match="eve"):
        EDITS[edit](mdb, ("eve",))
    assert list(mdb.all()) == [BOB]
    EDITS[edit](mdb, ("eve",), create=True)
    assert mdb["eve",] == {"id": "eve", "n": 1 if edit == "increment" else 2}


def test_a_key_field_that_is_none_is_left_out_of_a_record_that_is_begun(open_db):
    mdb = open_db(partition_keys=["job", "name"])
    assert mdb.patch((None, "bob"), create=True, n=1) == {"name": "bob", "n": 1}
    assert list(mdb) == [(None, "bob")]
    with pytest.raises(microdb.RecordError, match=r"\('bob',\) has not one value for each of \['job', 'name'\]"):
        mdb.patch(("bob",), create=True, n=1)


def test_a_patch_takes_names_that_are_no_python_names_from_a_mapping(mdb):
    assert mdb.patch(("bob",), {"create": 1, "two words": 2}, n=3) == {**BOB, "create": 1, "two words": 2, "n": 3}


@pytest.mark.parametrize("edit", ["patch", "modify", "edit"])
def test_a_record_keeps_its_key(mdb, edit):
    with pytest.raises(microdb.RecordError, match=r"its key is \('eve',\), not \('bob',\)"):
        if edit == "patch":
            mdb.patch(("bob",), id="eve")
        elif edit == "modify":
            mdb.modify(("bob",), lambda record: {**record, "id": "eve"})
        else:
            with mdb.edit(("bob",)) as record:
                record["id"] = "eve"
    assert list(mdb.all()) == [BOB]


def test_what_cannot_be_stored_is_refused_and_nothing_is_changed(mdb):
    with pytest.raises(microdb.RecordError, match="n"):
        mdb.patch(("bob",), n=object())
    with pytest.raises(microdb.RecordError, match="the function returned None; let it return the record"):
        mdb.modify(("bob",), lambda record: record.update(n=2))
    with pytest.raises(microdb.RecordError, match="holds 'much', which is no number"):
        mdb.patch(("bob",), n="much")
        mdb.increment(("bob",), "n")
    assert list(mdb.all()) == [{**BOB, "n": "much"}]


@pytest.mark.parametrize("by", ["1", True, None])
def test_what_is_no_number_is_not_added(mdb, by):
    with pytest.raises(TypeError, match="by is a number"):
        mdb.increment(("bob",), "n", by)
    assert mdb["bob",] == BOB


def test_a_sum_is_what_python_makes_of_it(mdb):
    assert mdb.increment(("bob",), "n", 0.5) == 1.5
    assert mdb.increment(("bob",), "m") == 1
    mdb.patch(("bob",), n=Decimal("0.1"), m=None)
    assert mdb.increment(("bob",), "n", Decimal("0.2")) == Decimal("0.3")
    assert mdb.increment(("bob",), "m", 2) == 2
    with pytest.raises(TypeError):
        mdb.increment(("bob",), "n", 0.1)
    with pytest.raises(microdb.RecordError):
        mdb.increment(("bob",), "tags")


@pytest.mark.parametrize(
    ("number", "by", "reason"),
    [
        (10**400, 1.0, "to which 1.0 cannot be added: OverflowError"),
        (Decimal("9e999999"), Decimal("9e999999"), "cannot be added: Overflow"),
        (Decimal("sNaN"), Decimal(1), "cannot be added: InvalidOperation"),
    ],
)
def test_a_sum_that_is_none_is_refused(mdb, number, by, reason):
    mdb.patch(("bob",), n=number)
    with pytest.raises(microdb.RecordError, match=reason) as caught:
        mdb.increment(("bob",), "n", by)
    assert caught.value.field == "record['n']"
    assert repr(mdb["bob",]["n"]) == repr(number)


@pytest.mark.parametrize("field", [[1], None, 5])
def test_what_is_no_name_of_a_field_is_not_incremented(mdb, field):
    with pytest.raises(TypeError, match=re.escape(f"field is the name of one, found {field!r}")):
        mdb.increment(("bob",), field)
    assert mdb["bob",] == BOB


@pytest.mark.parametrize("changes", [0, "ab", ["ab"], [("n", 2)], [], ""])
def test_a_patch_takes_nothing_but_a_mapping(mdb, changes):
    with pytest.raises(TypeError, match=re.escape(f"changes is a mapping from field to value, found {changes!r}")):
        mdb.patch(("bob",), changes)
    assert mdb["bob",] == BOB


def test_a_bool_is_no_number_to_add_to(mdb):
    mdb.patch(("bob",), n=True)
    with pytest.raises(microdb.RecordError, match="holds True"):
        mdb.increment(("bob",), "n")


def test_what_an_edit_gives_is_the_callers_own(mdb):
    record = mdb.patch(("bob",), m=1)
    record["tags"].append("mine")
    with mdb.edit(("bob",)) as edited:
        edited["m"] = 2
    edited["tags"].append("mine")
    made = mdb.modify(("bob",), lambda record: record)
    made["tags"].append("mine")
    assert mdb["bob",] == {**BOB, "m": 2}


def test_an_edit_that_changes_nothing_writes_nothing(mdb):
    before = mdb.stats().sequence
    with mdb.edit(("bob",)) as record:
        record["n"] = 1
    mdb.patch(("bob",), n=1)
    assert mdb.stats().sequence == before
    mdb.patch(("bob",), n=True)
    assert mdb["bob",]["n"] is True, "equal, and not the same"
    with mdb.edit(("eve",), create=True):
        pass
    assert mdb["eve",] == {"id": "eve"}


def test_an_edit_that_raises_changes_nothing(mdb):
    with pytest.raises(ZeroDivisionError), mdb.edit(("bob",)) as record:
        record["n"] = 2
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError):
        mdb.modify(("bob",), lambda record: record["n"] / 0)
    assert list(mdb.all()) == [BOB]
    assert in_thread(lambda: mdb.increment(("bob",), "n")) == 2


def test_an_edit_within_which_the_record_is_changed_otherwise_is_refused(mdb):
    with pytest.raises(microdb.ConflictError, match="was changed within its own edit"), mdb.edit(("bob",)) as record:
        mdb.increment(("bob",), "n")
        record["m"] = 1
    with pytest.raises(microdb.ConflictError) as caught:
        mdb.modify(("bob",), lambda record: {**record, "was": mdb.pop(("bob",))})
    assert caught.value.found is microdb.ABSENT
    assert len(mdb) == 0
    with pytest.raises(microdb.ConflictError), mdb.edit(("eve",), create=True):
        mdb.upsert({"id": "eve", "n": 7})
    assert mdb["eve",] == {"id": "eve", "n": 7}


def test_edits_in_a_transaction_are_made_at_its_end_or_not_at_all(mdb):
    with pytest.raises(ZeroDivisionError), mdb.transaction():
        mdb.increment(("bob",), "n")
        assert mdb.increment(("bob",), "n") == 3
        raise ZeroDivisionError
    assert mdb["bob",] == BOB
    with mdb.transaction():
        mdb.increment(("bob",), "n")
        mdb.patch(("bob",), m=1)
    assert mdb["bob",] == {**BOB, "n": 2, "m": 1}


def test_a_read_only_handle_makes_no_edit_and_finds_what_it_need_not_create(open_db):
    open_db().upsert(BOB)
    reader = open_db(read_only=True)
    assert reader.get_or_create({"id": "bob"}) == (BOB, False)
    for act in (lambda: reader.get_or_create({"id": "eve"}), lambda: reader.patch(("bob",), n=2)):
        with pytest.raises(microdb.ReadOnlyError):
            act()


def test_of_many_that_create_one_does(mdb):
    assert mdb.get_or_create({"id": "eve", "n": 1}) == ({"id": "eve", "n": 1}, True)
    assert mdb.get_or_create({"id": "eve", "n": 2}) == ({"id": "eve", "n": 1}, False)
    found, _ = mdb.get_or_create(BOB)
    found["tags"].append("mine")
    assert mdb["bob",] == BOB
    for bad in ({"id": "new", "n": object()}, {"id": []}, ("new",)):
        with pytest.raises(microdb.RecordError):
            mdb.get_or_create(bad)
    assert len(mdb) == 2


def test_of_two_that_create_at_the_same_time_the_second_finds_what_the_first_made(open_db):
    mdb, other = open_db(), open_db()
    lock = mdb.lock
    mdb.lock = lambda: (other.upsert({"id": "eve", "n": 1}), lock())[1]
    assert mdb.get_or_create({"id": "eve", "n": 2}) == ({"id": "eve", "n": 1}, False)


# Expected.


def test_an_upsert_is_made_if_the_record_is_as_expected(mdb):
    mdb.upsert({"id": "eve"}, expected=microdb.ABSENT)
    mdb.upsert({"id": "ann"}, expected=mdb.get(("ann",)))
    mdb.upsert({"id": "bob", "n": 2}, expected=BOB)
    assert mdb["bob",] == {"id": "bob", "n": 2}


@pytest.mark.parametrize(
    ("record", "expected", "found"),
    [
        ({"id": "bob"}, microdb.ABSENT, BOB),
        ({"id": "bob"}, None, BOB),
        ({"id": "bob"}, {**BOB, "n": 2}, BOB),
        ({"id": "eve"}, {"id": "eve"}, microdb.ABSENT),
    ],
)
def test_an_upsert_is_refused_if_it_is_not_and_the_error_has_what_is_there(mdb, record, expected, found):
    with pytest.raises(microdb.ConflictError, match="is not what was expected: someone else has changed it") as caught:
        mdb.upsert(record, expected=expected)
    assert caught.value.found == pickle.loads(pickle.dumps(caught.value)).found == found
    if found is not microdb.ABSENT:
        caught.value.found["tags"].append("mine")
    assert list(mdb.all()) == [BOB]


@pytest.mark.parametrize("expected", [[1], "bob", microdb.UNKNOWN, type(microdb.ABSENT)])
@pytest.mark.parametrize("key", ["bob", "eve"])
def test_what_no_record_can_be_is_not_expected(mdb, key, expected):
    with pytest.raises(TypeError, match=re.escape("expected is a record, microdb.ABSENT or None, found ")):
        mdb.upsert({"id": key}, expected=expected)
    assert list(mdb.all()) == [BOB]


def test_a_nan_is_as_expected(open_db):
    mdb, other = open_db(), open_db()
    mdb.upsert({"id": 1, "n": math.nan, "m": [math.nan]})
    other.upsert({"id": 1, "n": 2}, expected=mdb[1,])
    assert mdb[1,] == {"id": 1, "n": 2}


def test_what_cannot_be_stored_is_no_conflict(mdb):
    with pytest.raises(microdb.RecordError):
        mdb.upsert({"id": "bob", "n": object()}, expected=microdb.ABSENT)


def test_absent_is_one_thing_wherever_it_comes_from():
    assert pickle.loads(pickle.dumps(microdb.ABSENT)) is microdb.ABSENT
    assert repr(microdb.ABSENT) == "microdb.ABSENT"


# Many processes.


def work(path, number, kind, barrier, told):
    mdb = microdb.MicroDB(path, ["id"])
    barrier.wait()
    for turn in range(200):
        if kind == "increment":
            mdb.increment(("sum",), "n", create=True)
        elif kind == "modify":
            mdb.modify(("sum",), lambda record: {**record, "n": record.get("n", 0) + 1}, create=True)
        elif kind == "edit":
            with mdb.edit(("sum",), create=True) as record:
                record["n"] = record.get("n", 0) + 1
        else:
            compare_and_set(mdb)
        told[number] += 1
        if number == 0 and turn == 100:
            os.kill(os.getpid(), signal.SIGKILL)


def compare_and_set(mdb):
    old = mdb.get(("sum",), microdb.ABSENT)
    while True:
        try:
            mdb.upsert({"id": "sum", "n": 1 if old is microdb.ABSENT else old["n"] + 1}, expected=old)
        except microdb.ConflictError as error:
            old = error.found
        else:
            return


@pytest.mark.parametrize("kind", ["increment", "modify", "edit", "expected"])
def test_eight_processes_that_change_one_record_lose_no_change(path, open_db, kind):
    """One of them is killed on its way."""
    context = multiprocessing.get_context("fork")
    barrier, told = context.Barrier(8), context.Array("l", 8)
    workers = [context.Process(target=work, args=(path, number, kind, barrier, told)) for number in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [-signal.SIGKILL] + [0] * 7
    assert list(told) == [101] + [200] * 7
    assert open_db()["sum",]["n"] == sum(told)
