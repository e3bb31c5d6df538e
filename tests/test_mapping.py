"""`MicroDB` as a mapping from key tuple to record."""

import json
from collections.abc import MutableMapping

import pytest

import microdb
from microdb import MicroDB, RecordError, mapping
from steps import in_thread

A = {"id": "a", "n": 1}
B = {"id": "b", "n": 2}


@pytest.fixture(params=["file", "memory"])
def mdb(request, open_db):
    mdb = open_db() if request.param == "file" else open_db(":memory:")
    mdb.upsert_many([A, B])
    return mdb


def test_it_is_a_mutable_mapping(mdb):
    assert isinstance(mdb, MutableMapping)


def test_iteration_gives_the_keys_in_insertion_order(mdb):
    assert list(mdb) == [("a",), ("b",)]
    mdb.upsert({"id": "a", "n": 3})
    assert list(mdb) == [("a",), ("b",)], "an overwritten record keeps its place"
    del mdb["a",]
    mdb.upsert(A)
    assert list(mdb) == [("b",), ("a",)]


def test_keys_values_and_items_are_views_of_now(mdb):
    keys, values, items = mdb.keys(), mdb.values(), mdb.items()
    mdb.upsert({"id": "c"})
    assert list(keys) == [("a",), ("b",), ("c",)]
    assert list(values) == [A, B, {"id": "c"}]
    assert list(items) == [(("a",), A), (("b",), B), (("c",), {"id": "c"})]
    assert (len(keys), len(values), len(items)) == (3, 3, 3)
    assert A in values
    assert (("a",), A) in items
    assert keys & {("a",), ("z",)} == {("a",)}


def test_iterating_shows_one_moment_whatever_is_written_meanwhile(mdb):
    for iterator, expected in [(mdb.all(), [A, B]), (iter(mdb.values()), [A, B]), (iter(mdb), [("a",), ("b",)])]:
        mdb.upsert({"id": "late"})
        mdb.delete(("a",))
        assert list(iterator) == expected
        mdb.clear()
        mdb.upsert_many([A, B])


def test_it_equals_a_dict_of_the_same_records(mdb):
    assert mdb == {("a",): A, ("b",): B}
    assert {("a",): A, ("b",): B} == mdb
    assert mdb != {("a",): A}


def test_it_cannot_be_hashed(mdb):
    with pytest.raises(TypeError):
        hash(mdb)


def test_setting_an_item_demands_that_the_record_has_that_key(mdb):
    mdb["c",] = {"id": "c", "n": 3}
    assert mdb["c",]["n"] == 3
    with pytest.raises(RecordError, match=r"its key is \('d',\), not \('c',\)"):
        mdb["c",] = {"id": "d"}
    assert ("d",) not in mdb


def test_get_and_in_take_a_record_or_a_key(mdb):
    assert mdb.get(("a",)) == mdb.get({"id": "a", "other": 1}) == A
    assert ("a",) in mdb
    assert {"id": "a"} in mdb
    assert ("z",) not in mdb
    assert {"id": "z"} not in mdb
    assert mdb.get(("z",), 5) == 5
    assert mdb.get({"id": "z"}, d=5) == 5


@pytest.mark.parametrize("call", ["get", "__contains__", "delete"])
def test_what_is_neither_a_record_nor_a_key_is_refused(mdb, call):
    with pytest.raises(TypeError, match="expected a record or a key tuple"):
        getattr(mdb, call)("a")


def test_delete_tells_whether_it_was_there(mdb):
    assert mdb.delete(("a",)) is True
    assert mdb.delete(("a",)) is False
    assert mdb.delete({"id": "b", "n": "whatever"}) is True
    assert len(mdb) == 0


def test_pop_returns_the_record_once(mdb):
    assert mdb.pop(("a",)) == A
    assert mdb.pop(("a",), None) is None
    with pytest.raises(KeyError) as caught:
        mdb.pop(("a",))
    assert caught.value.args == (("a",),)


def test_popitem_takes_the_last_until_there_is_none(mdb):
    assert mdb.popitem() == (("b",), B)
    assert mdb.popitem() == (("a",), A)
    with pytest.raises(KeyError):
        mdb.popitem()


def test_setdefault_keeps_what_is_there_and_adds_what_is_not(mdb):
    assert mdb.setdefault(("a",), {"id": "a", "n": 9}) == A
    assert mdb.setdefault(("c",), {"id": "c"}) == {"id": "c"}
    assert mdb["c",] == {"id": "c"}
    with pytest.raises(RecordError):
        mdb.setdefault(("d",))


def test_update_is_all_or_nothing(mdb):
    mdb.update({("a",): {"id": "a", "n": 5}, ("c",): {"id": "c"}})
    assert mdb["a",]["n"] == 5
    with pytest.raises(RecordError):
        mdb.update([(("x",), {"id": "x"}), (("y",), {"id": "wrong"})])
    assert ("x",) not in mdb


def test_clear_removes_everything(mdb):
    mdb.clear()
    assert len(mdb) == 0
    assert list(mdb) == []


def test_upsert_many_is_all_or_nothing(mdb):
    with pytest.raises(RecordError):
        mdb.upsert_many([{"id": "x"}, {"id": object()}])
    assert ("x",) not in mdb
    mdb.upsert_many([])
    mdb.upsert_many(iter([{"id": "x"}, {"id": "x", "n": 2}]))
    assert mdb["x",] == {"id": "x", "n": 2}


def test_what_goes_in_and_what_comes_out_is_the_callers_own(mdb):
    record = {"id": "deep", "list": [1, {"k": [2]}], "set": {3}, "t": ([4],)}
    expected = {"id": "deep", "list": [1, {"k": [2]}], "set": {3}, "t": ([4],)}
    mdb.upsert(record)
    record["list"][1]["k"].append("in")
    record["set"].add("in")
    record["t"][0].append("in")
    outs = [mdb["deep",], mdb.get(("deep",)), *mdb.all(), *mdb.values(), *[value for _, value in mdb.items()]]
    for out in outs:
        if out["id"] == "deep":
            out["list"][1]["k"].append("out")
            out["set"].add("out")
            out["t"][0].append("out")
        out["new"] = 1
    assert mdb["deep",] == expected
    assert type(mdb["deep",]) is dict
    assert mdb["a",] == A


def test_handles_of_one_path_show_the_same(open_db):
    one, other = open_db(), open_db()
    one.upsert(A)
    assert other["a",] == A
    other.upsert(B)
    assert list(one.all()) == [A, B]
    one.clear()
    assert len(other) == 0


def test_a_link_leads_to_the_same_database(open_db, path, tmp_path):
    one = open_db()
    link = tmp_path / "link.json"
    link.symlink_to(path)
    other = open_db(link)
    one.upsert(A)
    assert other["a",] == A


def test_the_snapshot_has_one_record_a_line(open_db, path):
    mdb = open_db()
    mdb.upsert_many([A, {"id": "naïve", "v": (1, b"x")}])
    mdb.save()
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "["
    assert lines[-1] == "]"
    assert json.loads(lines[1].rstrip(",")) == A
    assert "naïve" in lines[2]


def test_a_grid_can_be_saved_opened_and_printed(open_db, path, capsys):
    mdb = open_db()
    mdb.upsert_many([A, B])
    mdb.save_as_grid()
    assert json.loads(path.read_text()) == [["id", "n"], ["a", 1], ["b", 2]]
    mdb.close()
    again = open_db()
    assert list(again.all()) == [A, B]
    again.pprint_all_as_grid()
    assert capsys.readouterr().out == "[['id', 'n'], ['a', 1], ['b', 2]]\n"
    again.upsert({"id": "c"})
    with pytest.raises(microdb.GridError) as caught:
        again.pprint_all_as_grid()
    assert (caught.value.record, caught.value.missing) == ({"id": "c"}, ["n"])


def test_erase_all_empties_the_table_and_its_file(open_db, path):
    mdb = open_db()
    mdb.upsert(A)
    mdb.erase_all()
    assert json.loads(path.read_text()) == []
    assert len(mdb) == 0


def test_a_table_in_memory_saves_where_it_is_told(open_db, tmp_path):
    mdb = open_db(":memory:")
    mdb.upsert(A)
    with pytest.raises(TypeError, match="save\\(filename\\)"):
        mdb.save()
    mdb.save(tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == [A]


def test_repr_tells_how_it_was_opened_and_how_much_is_in_it(open_db, path):
    assert repr(MicroDB(":memory:", ["a", "b"])) == "<MicroDB(':memory:', partition_keys=['a', 'b']): 0 records>"
    mdb = open_db(durability="power")
    mdb.upsert(A)
    start = f"<MicroDB({str(path)!r}, partition_keys=['id'], "
    assert repr(mdb) == start + "durability='power'): 1 record>"
    assert repr(open_db(read_only=True)) == start + "read_only=True): 1 record>"
    mdb.close()
    assert repr(mdb) == start + "durability='power'): closed>"


def test_repr_waits_for_nobody(open_db):
    mdb = open_db()
    with mdb._table_lock, mdb.lock():
        assert in_thread(lambda: repr(mdb)).endswith(": 0 records>")


def test_a_path_object_and_bytes_like_names_work(open_db, path):
    assert open_db(path).filename == path
    assert open_db(str(path)).filename == str(path)


def test_using_it_as_a_context_manager_closes_it(path):
    with MicroDB(path, ["id"]) as mdb:
        mdb.upsert(A)
    with pytest.raises(microdb.ClosedError):
        mdb.get(("a",))
    with MicroDB(path, ["id"]) as mdb:
        assert mdb["a",] == A


def test_what_another_thread_does_to_a_record_while_it_is_taken_in_changes_nothing(open_db, monkeypatch):
    mdb = open_db()
    record = {"id": 1, "a": 1}
    kept = mapping.kept
    monkeypatch.setattr(mapping, "kept", lambda records: (kept(records), record.update(a=[1]))[0])
    mdb.upsert_many([record])
    assert mdb[1,] == {"id": 1, "a": 1}


def test_many_nested_records_share_nothing_with_what_was_given_or_what_is_read(open_db):
    mdb = open_db()
    given = [{"id": 1}, {"id": 2, "a": ["x", {"b": [1]}]}, {"id": 3, "a": (["y"],)}]
    for some in (given[:2], given):  # The second has something that needs a closer look.
        mdb.upsert_many(some)
        for record in (given[1], mdb[2,]):
            record["a"][1]["b"].append(2)
            assert mdb[2,] == {"id": 2, "a": ["x", {"b": [1]}]}
            record["a"][1]["b"].pop()
    assert list(open_db().all()) == list(mdb.all())


@pytest.mark.parametrize("value", [["\ud800"], {"\ud800": 1}, {"b": ["\ud800"]}])
def test_of_many_nested_records_none_is_stored_if_one_has_a_lone_surrogate(open_db, value):
    mdb = open_db()
    with pytest.raises(RecordError, match="lone surrogate"):
        mdb.upsert_many([{"id": 1, "a": ["x"]}, {"id": 2, "a": value}])
    assert len(mdb) == 0


class Name(str):
    __slots__ = ()


@pytest.mark.parametrize("record", [{Name("id"): 2}, {"id": 2, Name("b"): 3}, {"id": 2, 1: 3}, {"id": 2, b"id": 3}])
def test_of_many_records_none_is_stored_if_a_name_in_the_last_is_no_str(open_db, record):
    mdb = open_db()
    with pytest.raises(RecordError, match="field names are str"):
        mdb.upsert_many([{"id": 1}, record])
    assert len(mdb) == 0
