"""The table of one moment: now, or at a position that the log still holds."""

import pytest

import microdb
from children import forked

A = {"id": "a", "tags": ["old"]}
B = {"id": "b", "n": 2}


@pytest.fixture
def mdb(either):
    either.upsert_many([A, B])
    return either


def test_a_view_is_a_mapping_that_stays_as_it_is(mdb):
    with mdb.snapshot() as view:
        mdb.clear()
        mdb.upsert({"id": "c"})
        assert dict(view) == {("a",): A, ("b",): B}
        assert (len(view), list(view), list(view.all()), list(view.values())) == (2, [("a",), ("b",)], [A, B], [A, B])
        assert view["a",] == view.get({"id": "a"}) == A
        assert (view.get(("c",)), view.get(("c",), "none")) == (None, "none")
        assert ("a",) in view
        assert {"id": "b"} in view
        assert ("c",) not in view
        with pytest.raises(KeyError):
            view["c",]
        with pytest.raises(TypeError, match="expected a record or a key tuple"):
            view.get("a")
    assert len(view) == 2
    assert list(mdb) == [("c",)]


def test_what_a_view_gives_is_the_callers_own(mdb):
    view = mdb.snapshot()
    for record in (view["a",], view.get(("a",)), next(view.all()), view.where(id="a").first(), dict(view)["a",]):
        record["tags"].append("mine")
    assert view["a",] == mdb["a",] == A


def test_a_view_can_be_asked(mdb):
    view = mdb.snapshot()
    mdb.clear()
    assert list(view.where(n=2)) == [B]
    assert view.where(id="a").explain() == "key: 1 record"
    assert view.where(id="c").explain() == "key: 0 records"
    assert view.where(lambda record: "tags" in record).count() == 1


def test_a_view_in_a_transaction_shows_its_changes(mdb):
    with mdb.transaction():
        mdb.delete(("a",))
        view = mdb.snapshot()
    mdb.clear()
    assert list(view) == [("b",)]
    assert view.position is None


def test_a_view_says_what_it_is(mdb):
    assert repr(mdb.snapshot()) == f"<View of 2 records at {mdb.position}>"
    generation, offset, sequence, crc = mdb.position
    assert repr(mdb.position) == f"Position({generation=}, {offset=}, {sequence=}, {crc=})"
    with mdb.transaction():
        assert repr(mdb.snapshot()) == "<View of 2 records at no position>"


def test_the_table_of_each_position_since_the_last_save_comes_back(open_db):
    mdb, other = open_db(), open_db()
    mdb.upsert(A)
    other.save()
    moments = [(mdb.position, dict(mdb))]
    for change in (lambda: other.upsert(B), lambda: mdb.delete(("a",)), mdb.clear, lambda: mdb.upsert_many([A, B])):
        change()
        moments.append((mdb.position, dict(mdb)))
    for handle in (mdb, other, open_db(read_only=True)):
        for position, records in moments:
            view = handle.as_of(position)
            assert (dict(view), view.position) == (records, position)


def test_what_was_before_a_save_is_lost_and_so_is_what_never_was(open_db):
    mdb = open_db()
    mdb.upsert(A)
    position = mdb.position
    mdb.save()
    with pytest.raises(microdb.SinceLostError, match="is not in the log, which begins with the last save"):
        mdb.as_of(position)
    with pytest.raises(microdb.SinceLostError):
        mdb.as_of(mdb.position._replace(offset=mdb.position.offset + 1))
    assert dict(mdb.as_of(mdb.position)) == {("a",): A}


@pytest.mark.parametrize("wrong", [{"offset": 90}, {"crc": 0}, {"sequence": 0}, {"sequence": 9}, {"generation": 9}])
def test_what_is_no_position_of_this_database_is_lost(open_db, wrong):
    mdb = open_db()
    mdb.upsert(A)
    with pytest.raises(microdb.SinceLostError):
        mdb.as_of(mdb.position._replace(**wrong))


def test_no_position_is_that_of_a_snapshot_without_a_log(open_db):
    with pytest.raises(microdb.SinceLostError, match=r"mdb.json: None .* nobody has written a log to, which keeps no"):
        open_db().as_of(None)


def test_a_position_may_be_given_by_its_numbers(open_db):
    mdb = open_db()
    mdb.upsert(A)
    view = mdb.as_of(list(mdb.position))
    assert (dict(view), repr(view.position)) == ({("a",): A}, repr(mdb.position))


@pytest.mark.parametrize("wrong", ["x", 5, [1, 2, 3], {}])
def test_what_is_no_position_at_all_is_refused(mdb, wrong):
    with pytest.raises(TypeError, match=r"^position is the position of an event"):
        mdb.as_of(wrong)


def test_a_child_of_a_fork_sees_what_was_before_it_wrote_anything(open_db):
    mdb = open_db()
    mdb.upsert(A)
    position = mdb.position
    mdb.upsert(B)
    assert forked(lambda: list(mdb.as_of(position)) == [("a",)] or pytest.fail("differs")) == 0


def test_a_snapshot_that_is_being_replaced_is_as_lost_as_after_it(open_db, path):
    mdb = open_db()
    mdb.upsert(A)
    mdb.save()
    position = mdb.position
    path.write_text("[]")
    with pytest.raises(microdb.SinceLostError):
        mdb.as_of(position)
    mdb.save(path.parent / "elsewhere.json")


def test_a_table_in_memory_keeps_no_history(open_db):
    mdb = open_db(":memory:")
    mdb.upsert(A)
    with pytest.raises(microdb.SinceLostError, match="a table in memory, or without a log, keeps no history"):
        mdb.as_of(mdb.position)


def test_a_snapshot_that_nobody_has_written_a_log_to_has_no_position(open_db, path):
    path.write_text('[{"id": "a"}]')
    mdb = open_db(read_only=True)
    assert mdb.position is None
    assert list(mdb.snapshot()) == [("a",)]
