"""Every example of the page of microdb 0.1.3, in its order. Only the order of grid columns is now first-seen."""

import ast
import json
import os
import shutil

import pytest

import microdb
from conftest import DATA

ROWS = [
    {"job": "clean", "name": "Alice", "status": "undone"},
    {"job": "study", "name": "Alice", "status": "undone"},
    {"job": "clean", "name": "Bob", "status": "undone"},
    {"job": "study", "name": "Bob", "status": "undone"},
]
FINISHED = {"job": "clean", "name": "Alice", "status": "finished"}
EVE = {"job": "clean", "name": "Eve", "status": "undone"}
AFTER = [FINISHED, *ROWS[1:], EVE]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "testdata").mkdir()
    shutil.copy(DATA / "legacy" / "list.json", tmp_path / "testdata" / "mdb.json")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("folder")
def test_every_example_of_the_old_page_runs_in_its_order(capsys):
    mdb = microdb.MicroDB("testdata/mdb.json", partition_keys=["job", "name"])
    mdb.pprint_all()
    assert capsys.readouterr().out == (
        "[{'job': 'clean', 'name': 'Alice', 'status': 'undone'},\n"
        " {'job': 'study', 'name': 'Alice', 'status': 'undone'},\n"
        " {'job': 'clean', 'name': 'Bob', 'status': 'undone'},\n"
        " {'job': 'study', 'name': 'Bob', 'status': 'undone'}]\n"
    )
    mdb.pprint_all_as_grid()
    printed = capsys.readouterr().out
    assert printed == (
        "[['job', 'name', 'status'],\n"
        " ['clean', 'Alice', 'undone'],\n"
        " ['study', 'Alice', 'undone'],\n"
        " ['clean', 'Bob', 'undone'],\n"
        " ['study', 'Bob', 'undone']]\n"
    )

    assert mdb.upsert({"job": "clean", "name": "Alice", "status": "finished"}) is None
    assert mdb.upsert({"job": "clean", "name": "Eve", "status": "undone"}) is None
    mdb.pprint_all()
    assert ast.literal_eval(capsys.readouterr().out) == AFTER

    assert mdb.gen_key({"job": "clean", "name": "Bob", "what": "ever"}) == ("clean", "Bob")
    assert {"job": "clean", "name": "Bob", "what": "ever"} in mdb
    assert mdb.get({"job": "study", "name": "Alice", "whaat": "everr"}) == ROWS[1]
    assert mdb.get({"wrong": "key"}, "when_not_exist") == "when_not_exist"

    mdb.save_as_grid()
    with open("testdata/mdb.json", encoding="utf-8") as file:
        grid = json.load(file)
    assert grid == [["job", "name", "status"], *[list(record.values()) for record in AFTER]]
    mdb.save("another_file_name.json")
    with open("another_file_name.json", encoding="utf-8") as file:
        assert json.load(file) == AFTER
    assert not os.path.exists("another_file_name.json.wal"), "it did not become that file"

    with mdb.lock():
        bob_clean_status = mdb.get({"job": "clean", "name": "Bob"})["status"]
        if bob_clean_status != "finished":
            mdb.upsert({"job": "pay_penalty", "name": "Bob", "status": "undone"})
    assert mdb["pay_penalty", "Bob"] == {"job": "pay_penalty", "name": "Bob", "status": "undone"}
    mdb.close()


@pytest.mark.usefixtures("folder")
def test_the_rest_of_the_old_interface_does_what_it_did():
    mdb = microdb.MicroDB("testdata/mdb.json", ["job", "name"])
    assert mdb.filename == "testdata/mdb.json"
    assert mdb.partition_keys == ["job", "name"]
    assert len(mdb) == 4
    assert str(mdb) == str(ROWS)
    assert list(mdb.all()) == ROWS
    assert mdb.gen_key({"job": "clean"}) == ("clean", None)
    assert mdb.get({"job": "none"}) is None
    assert ("clean", "Bob") in mdb
    assert mdb["clean", "Bob"] == ROWS[2]
    del mdb["clean", "Bob"]
    with pytest.raises(KeyError) as caught:
        del mdb["clean", "Bob"]
    assert caught.value.args == (("clean", "Bob"),)
    with pytest.raises(KeyError) as caught:
        mdb["clean", "Bob"]
    assert caught.value.args == (("clean", "Bob"),)
    mdb.upsert({"other": "fields"})
    with pytest.raises(microdb.GridError):
        mdb.save_as_grid()
    with mdb.lock(), mdb.lock():
        mdb.upsert(EVE)
    mdb.erase_all()
    assert len(mdb) == 0
    with open("testdata/mdb.json", encoding="utf-8") as file:
        assert json.load(file) == []
    mdb.close()


KEYS = {"grid.json": ["job", "name"], "list.json": ["job", "name"], "keys.json": ["a", "b"]}


@pytest.mark.parametrize("name", sorted(os.listdir(DATA / "legacy")))
def test_an_old_file_opens_and_its_next_save_writes_json(name, legacy, open_db):
    path = legacy(name)
    mdb = open_db(path, KEYS.get(name, ["id"]))
    before = list(mdb.all())
    assert bool(before) == (not name.startswith("empty"))
    mdb.save()
    with open(path, encoding="utf-8") as file:
        assert len(json.load(file)) == len(before)
    mdb.close()
    again = open_db(path, KEYS.get(name, ["id"]))
    assert repr(list(again.all())) == repr(before)
