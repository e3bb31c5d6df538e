"""Snapshots that are none, other keys, wrong arguments, closed handles: a clear error, and nothing lost or changed."""

import os
import pathlib
import re
from collections import ChainMap

import pytest

from bad_input_children import KEYS, Peer, contents, records, refusal
from microdb import (
    ABSENT,
    ClosedError,
    ConflictError,
    CorruptError,
    MicroDB,
    ReadOnlyError,
    RecordError,
    StorageError,
    WaitTimeoutError,
    between,
    mounts,
    one_of,
)

GOOD = b'[\n{"job":1,"who":"Bob"},\n{"job":2,"who":"Eve"}\n]\n'
GOOD_RECORDS = [{"job": 1, "who": "Bob"}, {"job": 2, "who": "Eve"}]

BAD = {
    "cut in the middle": (GOOD[:30], "not JSON"),
    "no JSON at all": (b"Dear diary", "JSON"),
    "binary": (b"\x00\xff\x80", "not UTF-8"),
    "empty": (b"", "0 bytes and no JSON"),
    "only white space": (b" \n", "no JSON"),
    "an object": (b'{"job": 1}', "an object"),
    "a number": (b"3", "a number"),
    "a string": (b'"job"', "a string"),
    "null": (b"null", "null"),
    "numbers in a list": (b"[1, 2]", "element 1 is a number"),
    "a string among records": (b'[{"job": 1}, "job"]', "element 2 is a string"),
    "a record among rows": (b'[["job"], {"job": 1}]', "element 2 is an object"),
    "a row too short": (b'[["job", "who"], [1]]', "record 1 of the grid has 1 values for 2 fields"),
    "a grid whose names are none": (b'[[{"job": 1}]]', "names are strings"),
    "a name twice": (b'[["job", "job"], [1, 2]]', "twice"),
    "a literal with a number for a name": (b"[{'job': 1, 2: 3}]", "record 1"),
    "two records with one key": (b'[{"job": 1}, {"job": 1, "who": "Eve"}]', "record 2 has the same key (1,)"),
    "two records without the key": (b'[{"who": "Bob"}, {"who": "Eve"}]', "record 2 has the same key (None,)"),
    "a key that is a list": (b'[{"job": [1]}]', "cannot hold a list"),
    "a key that is nan": (b'[{"job": {"$float": "nan"}}]', "nan"),
    "a tag of nobody": (b'[{"job": 1, "who": {"$whom": 1}}]', "$whom"),
    "nested for ever": (b'[{"job": ' + b"[" * 5000 + b"]" * 5000 + b"}]", "nested"),
}  # fmt: skip


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mdb.json"


bad = pytest.mark.parametrize(("data", "found"), BAD.values(), ids=BAD)


@bad
def test_a_bad_snapshot_is_refused_with_what_was_found_and_what_to_do(path, data, found):
    path.write_bytes(data)

    error = refusal(path)

    assert type(error) is CorruptError
    assert error.path == str(path)
    assert found in str(error)
    assert str(error).startswith(str(path))
    assert re.search(r"mend|restore|write|use|keep one|leave", error.reason)
    assert path.read_bytes() == data


@bad
def test_a_bad_snapshot_opens_once_it_is_mended(path, data, found):
    path.write_bytes(data)
    refusal(path)

    path.write_bytes(GOOD)

    assert records(path) == GOOD_RECORDS


@bad
def test_a_bad_snapshot_is_refused_by_a_read_only_handle_which_leaves_nothing_behind(path, data, found):
    path.write_bytes(data)

    assert type(refusal(path, read_only=True)) is CorruptError
    assert contents(path) == {"mdb.json": data}


@bad
def test_a_bad_edit_changes_nothing(path, data, found):
    path.write_bytes(GOOD)
    records(path)
    path.write_bytes(data)
    before = contents(path)

    error = refusal(path)

    assert type(error) is CorruptError
    assert contents(path) == before


def test_a_mended_snapshot_opens_although_the_error_is_still_at_hand(path):
    path.write_bytes(GOOD[:30])
    with pytest.raises(CorruptError) as kept:
        MicroDB(path, KEYS)

    path.write_bytes(GOOD)

    assert records(path) == GOOD_RECORDS, kept


def test_wrong_keys_at_the_first_opening_do_not_shut_out_the_right_ones(path):
    path.write_bytes(b'[{"job": 1, "who": "Bob"}, {"job": 1, "who": "Eve"}]')

    assert "partition_keys=['job']" in str(refusal(path, ["job"]))

    assert len(records(path, ["who"])) == 2


@pytest.fixture
def written(path):
    """A database with a snapshot and a log, closed."""
    with MicroDB(path, KEYS) as mdb:
        mdb.upsert({"job": 1, "who": "Bob"})
        mdb.save()
        mdb.upsert({"job": 2, "who": "Eve"})
    return path


@pytest.mark.parametrize("keys", [["who"], ["who", "job"], ["job", "who"], ["Job"]])
@pytest.mark.parametrize("read_only", [False, True])
def test_other_keys_are_refused_with_both_named(written, keys, read_only):
    before = contents(written)

    error = refusal(written, keys, read_only=read_only)

    assert type(error) is StorageError
    assert repr(keys) in str(error)
    assert repr(KEYS) in str(error)
    assert "open it with its own keys" in str(error)
    assert contents(written) == before
    assert records(written) == GOOD_RECORDS


def test_other_keys_are_refused_while_others_use_the_database(written):
    with Peer(written) as peer:
        before = contents(written)

        error = refusal(written, ["who"])

        assert type(error) is StorageError
        assert contents(written) == before
        peer.upsert({"job": 3})
        assert len(peer.all()) == 3


def test_whoever_was_refused_is_not_taken_for_alive(written):
    with Peer(written), pytest.raises(StorageError) as kept:
        MicroDB(written, ["who"])
    with MicroDB(written, KEYS) as mdb:
        mdb.save()
    written.write_bytes(GOOD.replace(b"Bob", b"Ann"))

    assert records(written)[0] == {"job": 1, "who": "Ann"}, kept


# ----------------------------------------------------------------------------------------------------- Edited by hand


ANN = GOOD.replace(b"Bob", b"Ann")
EDITS = {"other content": ANN, "less": b"[]", "the same size and time": ANN, "gone": None}
edited = pytest.mark.parametrize("how", EDITS)


def edit(path, how):
    status = path.stat()
    if EDITS[how] is None:
        path.unlink()
        return
    path.write_bytes(EDITS[how])
    if how == "the same size and time":
        path.write_bytes(path.read_bytes()[: status.st_size].ljust(status.st_size))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_an_edit_is_taken_over_if_the_log_is_empty(written, caplog):
    with MicroDB(written, KEYS) as mdb:
        mdb.save()
    written.write_bytes(ANN)

    assert records(written)[0] == {"job": 1, "who": "Ann"}
    assert records(written)[0] == {"job": 1, "who": "Ann"}
    assert [str(written) in entry.getMessage() for entry in caplog.records] == [True]


@pytest.mark.parametrize("read_only", [False, True])
def test_an_edit_is_refused_if_the_log_holds_changes(written, read_only):
    before = contents(written)
    written.write_bytes(ANN)
    after = contents(written)

    error = refusal(written, read_only=read_only)

    assert type(error) is ConflictError
    assert str(error).startswith(str(written))
    assert "Put the old one back" in str(error)
    assert contents(written) == after
    written.write_bytes(before["mdb.json"])
    assert records(written) == GOOD_RECORDS


@edited
@pytest.mark.parametrize("saved", [False, True])
def test_an_edit_while_it_is_open_is_never_overwritten_and_costs_nothing(written, how, saved, tmp_path):
    with Peer(written) as peer:
        if saved:
            peer.save()
        old = written.read_bytes()
        edit(written, how)
        after = contents(written)

        for error in (refusal(written), refusal(written, read_only=True), peer_error(peer, "save")):
            assert type(error) is ConflictError
            assert str(written) in str(error)
            assert re.search("[Pp]ut the old one back", str(error))
        peer.save_as_grid(tmp_path / "elsewhere.json")

        assert {**contents(written), "header": b"", "save.lock": b""} == {**after, "header": b"", "save.lock": b""}
        assert records(tmp_path / "elsewhere.json") == GOOD_RECORDS
        peer.upsert({"job": 3})
        written.write_bytes(old)
        assert records(written) == [*GOOD_RECORDS, {"job": 3}]
        peer.save()
    assert records(written) == [*GOOD_RECORDS, {"job": 3}]


def peer_error(peer, name, *args):
    try:
        getattr(peer, name)(*args)
    except Exception as error:
        return error
    raise AssertionError(f"{name} went through, but should not")


# ---------------------------------------------------------------------------------------------------- Wrong arguments


def test_keys_in_a_tuple_or_from_an_iterator_are_as_good_as_in_a_list(written):
    assert records(written, ("job",)) == records(written, iter(KEYS)) == GOOD_RECORDS


@pytest.mark.parametrize(
    ("keys", "error", "says"),
    [
        ("job", TypeError, "write ['job']"),
        ([], ValueError, "one or more"),
        (["job", "job"], ValueError, "different fields"),
        (["job", 1], TypeError, "found 1"),
        ([b"job"], TypeError, "found b'job'"),
        (None, TypeError, "found None"),
        (1, TypeError, "found 1"),
        (["\ud800"], ValueError, "surrogate"),
        (["x" * 70_000], ValueError, "names"),
    ],
)
def test_keys_that_are_none_are_refused_before_anything_is_created(path, keys, error, says):
    with pytest.raises(error, match=re.escape(says)):
        MicroDB(path, keys)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("durability", ["Power", "", None, True, 1])
def test_a_durability_that_is_none_is_refused_before_anything_is_created(path, durability):
    with pytest.raises(ValueError, match='"process" or "power"'):
        MicroDB(path, KEYS, durability=durability)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("filename", [None, 1, ["mdb.json"], b"mdb.json"])
def test_a_file_name_that_is_none_is_refused(filename, written):
    says = re.escape(f"a filename is a str or a path, found {filename!r}")
    with pytest.raises(TypeError, match=says):
        MicroDB(filename, KEYS)
    if filename is not None:
        with MicroDB(written, KEYS) as mdb, pytest.raises(TypeError, match=says):
            mdb.save(filename)


def test_a_clock_that_is_none_is_refused_before_anything_is_created(path):
    with pytest.raises(TypeError, match="clock is a function that tells the seconds since 1970, found 5"):
        MicroDB(path, KEYS, clock=5)
    assert list(path.parent.iterdir()) == []


def test_a_mount_whose_pages_are_not_shared_is_refused_with_the_reason_and_the_way_out(path, tmp_path, monkeypatch):
    real = pathlib.Path(tmp_path).resolve()
    listing = tmp_path / "mountinfo"
    listing.write_text(f"36 35 98:0 / / rw - ext4 /dev/a rw\n37 36 0:9 / {real} rw - virtiofs host rw\n")
    monkeypatch.setitem(mounts.check.__kwdefaults__, "mountinfo", listing)

    error = refusal(path)

    assert type(error) is StorageError
    assert error.path.startswith(str(real))
    assert "virtiofs" in str(error)
    assert "another operating system" in str(error)
    assert "local disk" in str(error)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mountinfo"]


CALLS = {
    "get": lambda mdb: mdb.get((1,)),
    "[]": lambda mdb: mdb[1,],
    "in": lambda mdb: (1,) in mdb,
    "len": len,
    "iter": iter,
    "all": lambda mdb: mdb.all(),
    "keys": lambda mdb: list(mdb.keys()),
    "values": lambda mdb: list(mdb.values()),
    "items": lambda mdb: list(mdb.items()),
    "str": str,
    "==": lambda mdb: mdb == {},
    "pprint_all": lambda mdb: mdb.pprint_all(),
    "pprint_all_as_grid": lambda mdb: mdb.pprint_all_as_grid(),
    "stats": lambda mdb: mdb.stats(),
    "with": lambda mdb: mdb.__enter__(),
    "save elsewhere": lambda mdb: mdb.save(f"{mdb.filename}.copy"),
    "save as grid elsewhere": lambda mdb: mdb.save_as_grid(f"{mdb.filename}.copy"),
}
WRITES = {
    "upsert": lambda mdb: mdb.upsert({"job": 1}),
    "upsert_many": lambda mdb: mdb.upsert_many([{"job": 1}]),
    "upsert_many of none": lambda mdb: mdb.upsert_many([]),
    "delete": lambda mdb: mdb.delete((1,)),
    "delete of nothing": lambda mdb: mdb.delete((9,)),
    "[]=": lambda mdb: mdb.__setitem__((1,), {"job": 1}),
    "del": lambda mdb: mdb.__delitem__((1,)),
    "pop": lambda mdb: mdb.pop((1,)),
    "pop of nothing": lambda mdb: mdb.pop((9,), None),
    "popitem": lambda mdb: mdb.popitem(),
    "setdefault": lambda mdb: mdb.setdefault((1,), {"job": 1}),
    "update": lambda mdb: mdb.update({(1,): {"job": 1}}),
    "clear": lambda mdb: mdb.clear(),
    "erase_all": lambda mdb: mdb.erase_all(),
    "lock": lambda mdb: mdb.lock().__enter__(),
    "transaction": lambda mdb: mdb.transaction().__enter__(),
    "save": lambda mdb: mdb.save(),
    "save as grid": lambda mdb: mdb.save_as_grid(),
    "sync": lambda mdb: mdb.sync(),
}
every_call = pytest.mark.parametrize("call", [*CALLS.values(), *WRITES.values()], ids=[*CALLS, *WRITES])
every_write = pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)


@every_call
@pytest.mark.parametrize("read_only", [False, True])
def test_a_closed_handle_says_so_to_every_call(written, call, read_only):
    mdb = MicroDB(written, KEYS, read_only=read_only)
    mdb.close()

    with pytest.raises(ClosedError, match="closed"):
        call(mdb)


@every_call
def test_a_closed_table_in_memory_says_so_to_every_call(call):
    mdb = MicroDB(":memory:", KEYS)
    mdb.close()

    with pytest.raises(ClosedError, match="closed"):
        call(mdb)


def test_a_handle_closes_twice_and_still_tells_how_it_was_opened(written):
    mdb = MicroDB(written, KEYS)
    mdb.close()
    mdb.close()

    assert repr(mdb) == f"<MicroDB({str(written)!r}, partition_keys=['job']): closed>"
    assert mdb.gen_key({"job": 7}) == (7,)


@every_write
def test_a_read_only_handle_refuses_every_write(written, write):
    before = contents(written)
    with MicroDB(written, KEYS, read_only=True) as mdb:
        with pytest.raises(ReadOnlyError, match="read_only=True"):
            write(mdb)
        assert list(mdb.all()) == GOOD_RECORDS
    assert contents(written) == before


@pytest.mark.parametrize("what", ["job", 1, None, ["job"], {1}, b"bytes", object()])
@pytest.mark.parametrize("call", ["get", "delete", "__contains__"])
def test_what_is_neither_record_nor_key_is_refused_and_named(written, what, call):
    with MicroDB(written, KEYS) as mdb:
        with pytest.raises(TypeError, match=re.escape("expected a record or a key tuple ('job',)")):
            getattr(mdb, call)(what)
        assert list(mdb.all()) == GOOD_RECORDS


@pytest.mark.parametrize("call", ["get", "delete", "__getitem__", "__contains__", "pop"])
def test_a_key_that_cannot_be_hashed_is_refused(written, call):
    with MicroDB(written, KEYS) as mdb:
        with pytest.raises(TypeError, match="unhashable"):
            getattr(mdb, call)(([1],))
        assert list(mdb.all()) == GOOD_RECORDS


@pytest.mark.parametrize("look_up", [MicroDB.get, MicroDB.__getitem__, MicroDB.__contains__])
def test_a_key_without_a_hash_is_shown_with_what_a_key_is(written, look_up):
    with MicroDB(written, KEYS) as mdb:
        with pytest.raises(TypeError, match=re.escape("a key tuple ('job',), found ([1],): unhashable type: 'list'")):
            look_up(mdb, ([1],))
        with pytest.raises(TypeError, match="never equal"):
            look_up(mdb, (NeverEqual(),))
        with mdb.snapshot() as view, pytest.raises(TypeError, match="never equal"):
            view.get((NeverEqual(),))


class NeverEqual:
    """The value of a caller that fails by itself."""

    def __hash__(self):
        return hash(1)

    def __eq__(self, other):
        raise TypeError("never equal")


def test_a_name_in_place_of_a_key_is_missing_and_how_to_write_a_key_is_said(written):
    with MicroDB(written, KEYS) as mdb, mdb.snapshot() as view:
        for table in (mdb, view):
            with pytest.raises(KeyError, match=re.escape("expected a key tuple ('job',), found 1; write [1,]")):
                table[1]
            with pytest.raises(KeyError) as caught:
                table[9,]
            assert caught.value.args == ((9,),)
            with pytest.raises(TypeError, match=re.escape("found {'job': 1}: unhashable type: 'dict'")):
                table[{"job": 1}]
    with MicroDB(":memory:", ["job", "who"]) as mdb, pytest.raises(KeyError, match=r"'who'\), found 'clean'\"$"):
        mdb["clean"]


@pytest.mark.parametrize("record", [None, 1, "job", (1,), [1]])
def test_the_key_of_what_is_no_record_is_refused(written, record):
    with MicroDB(written, KEYS) as mdb, pytest.raises(TypeError, match=re.escape(f"a record, found {record!r}")):
        mdb.gen_key(record)


def test_the_key_of_any_mapping_is_told():
    assert MicroDB(":memory:", KEYS).gen_key(ChainMap({"job": 7})) == (7,)


def test_what_is_not_several_records_is_refused_and_what_an_iterator_raises_is_not_reworded(written):
    def failing():
        yield {"job": 3}
        raise TypeError("of its own")

    with MicroDB(written, KEYS) as mdb:
        with pytest.raises(TypeError, match="upsert_many takes several records, found None"):
            mdb.upsert_many(None)
        with pytest.raises(TypeError, match="of its own"):
            mdb.upsert_many(failing())
        assert list(mdb.all()) == GOOD_RECORDS


# ------------------------------------------------------------------------------ Ints that Python refuses to write


HUGE = 10**5_000
SHOWN = "0x31e20801036510f3..."


@pytest.fixture
def huge():
    """A table whose one record has such a key."""
    with MicroDB(":memory:", KEYS) as mdb:
        mdb.upsert({"job": HUGE, "n": [HUGE]})
        yield mdb


def changed_within_its_edit(mdb):
    with mdb.edit((HUGE,)) as record:
        mdb.upsert({"job": HUGE})
        record["n"] = 1


ABOUT_HUGE = {
    "get": (TypeError, lambda mdb: mdb.get(HUGE)),
    "[]=": (RecordError, lambda mdb: mdb.__setitem__((HUGE,), {"job": 1})),
    "expected": (ConflictError, lambda mdb: mdb.upsert({"job": HUGE}, expected=ABSENT)),
    "setdefault": (RecordError, lambda mdb: mdb.setdefault((-HUGE,))),
    "patch": (RecordError, lambda mdb: mdb.patch((HUGE,), job=1)),
    "another patch": (RecordError, lambda mdb: mdb.patch((HUGE,), job=-HUGE)),
    "create": (RecordError, lambda mdb: mdb.patch((HUGE, 1), create=True)),
    "edit": (ConflictError, changed_within_its_edit),
    "increment": (RecordError, lambda mdb: mdb.increment((HUGE,), "n")),
    "increment by": (TypeError, lambda mdb: mdb.increment((HUGE,), "m", [HUGE])),
    "wait": (WaitTimeoutError, lambda mdb: mdb.wait((-HUGE,), timeout=0)),
    "where": (TypeError, lambda mdb: mdb.where([HUGE])),
    "limit": (ValueError, lambda mdb: mdb.where().limit(-HUGE)),
    "ttl": (TypeError, lambda mdb: mdb.upsert({"job": 1}, ttl=[HUGE])),
    "a field": (RecordError, lambda mdb: mdb.upsert({"job": 1, "n": {HUGE: object()}})),
    "a name": (RecordError, lambda mdb: mdb.upsert({HUGE: 1})),
    "indexes": (TypeError, lambda _: MicroDB(":memory:", KEYS, indexes=[HUGE])),
    "keys": (TypeError, lambda _: MicroDB(":memory:", [HUGE])),
    "claim": (RecordError, lambda mdb: mdb.patch((HUGE,), claim=[HUGE]) and mdb.claim({}, 60)),
}


@pytest.mark.parametrize(("error", "call"), ABOUT_HUGE.values(), ids=ABOUT_HUGE)
def test_an_error_about_a_huge_int_is_the_one_that_it_is_about_others(huge, error, call):
    with pytest.raises(error, match="0x31e20801036510f") as caught:
        call(huge)
    assert type(caught.value) is error


def test_what_holds_a_huge_int_says_what_it_is(huge, capsys):
    assert str(huge) == f"[{{'job': {SHOWN}, 'n': [{SHOWN}]}}]"
    huge.pprint_all()
    assert capsys.readouterr().out == f"[{{'job': {SHOWN}, 'n': [{SHOWN}]}}]\n"
    huge.pprint_all_as_grid()
    assert capsys.readouterr().out == f"[['job', 'n'], [{SHOWN}, [{SHOWN}]]]\n"
    query = huge.where(job=HUGE, n=one_of([HUGE]), m=between(HUGE, 1))
    text = f"<Query where(job={SHOWN}, n=one of [{SHOWN}], m=>= {SHOWN} and <= 1)>"
    assert repr(query) == text
    assert repr(huge.watch(where=query)).startswith(f"<Watch of {text} at ")
    assert repr(huge.claim({}, 60, owner="me")).startswith(f"<Claim on ({SHOWN},) by 'me'")


def test_two_records_of_one_huge_key_are_refused_and_it_is_shown(path):
    path.write_text(f'[{{"job": {{"$int": "{HUGE:#x}"}}}}, {{"job": {{"$int": "{HUGE:#x}"}}}}]')

    error = refusal(path)

    assert type(error) is CorruptError
    assert f"record 2 has the same key ({SHOWN},)" in str(error)
