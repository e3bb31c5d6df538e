"""Records that expire: absent for everybody from their time on, and gone with the next save. The clock is stepped."""

import contextlib
import datetime as dt
import json
import math
import os
import struct

import pytest

import microdb
from children import forked
from faulty import Faulty, WatchedFile, fail, only, save_that_waits
from microdb import handle
from microdb.commits import Commit
from microdb.expiry import when
from microdb.keys import PartitionKeys
from microdb.values import Expiring
from microdb.wal.codec import decode, encode_carried, encode_delete, encode_upsert, is_carried, join
from microdb.wal.header import EXPIRING
from steps import Child
from walfiles import Wal, append_payload

A = {"id": "a", "n": 1, "tags": ["old"]}
B = {"id": "b", "n": 2}
C = {"id": "c", "n": 3}
T = 1_000_000.0


class Clock:
    """A clock that is set by hand; all who were forked from one see it, too."""

    def __init__(self, path):
        self.path = path
        self.now = T

    @property
    def now(self):
        return struct.unpack("d", self.path.read_bytes())[0]

    @now.setter
    def now(self, seconds):
        self.path.write_bytes(struct.pack("d", seconds))

    def __call__(self):
        return self.now


@pytest.fixture
def clock(tmp_path):
    return Clock(tmp_path / "clock")


@pytest.fixture
def opened(open_db, clock):
    """Open a database with that clock."""

    def _opened(*args, **options):
        return open_db(*args, **{"clock": clock, **options})

    return _opened


@pytest.fixture(params=["file", "memory"])
def mdb(request, opened):
    """A database with one record that expires in ten seconds, between two that never do."""
    mdb = opened() if request.param == "file" else opened(":memory:", indexes=["n"])
    mdb.upsert(A)
    mdb.upsert(B, ttl=10)
    mdb.upsert(C)
    return mdb


def ids(records):
    return [record["id"] for record in records]


# What is given.


@pytest.mark.parametrize("upsert", ["upsert", "upsert_many", "set_expiry"])
@pytest.mark.parametrize(
    ("times", "error"),
    [
        *[({name: bad}, TypeError) for name in ("ttl", "expires_at") for bad in (True, "60", b"1", [1], 1j, {})],
        *[({name: bad}, ValueError) for name in ("ttl", "expires_at") for bad in (math.nan, math.inf, -math.inf)],
        *[({name: 10**400}, ValueError) for name in ("ttl", "expires_at")],
        *[({"ttl": bad}, ValueError) for bad in (0, 0.0, -1, -0.5)],
        ({"ttl": dt.timedelta(1)}, TypeError),
        ({"expires_at": dt.date(2030, 1, 1)}, TypeError),
        ({"expires_at": dt.datetime(2030, 1, 1)}, TypeError),
        ({"ttl": 1, "expires_at": 1}, TypeError),
    ],
    ids=str,
)
def test_what_is_no_time_is_refused_and_changes_nothing(mdb, upsert, times, error):
    before, position = dict(mdb), mdb.position
    argument = {"upsert": A | {"n": 9}, "upsert_many": [A | {"n": 9}], "set_expiry": ("a",)}[upsert]
    with pytest.raises(error, match=r"ttl|expires_at"):
        getattr(mdb, upsert)(argument, **times)
    assert (dict(mdb), mdb.position) == (before, position)
    assert mdb.expiry(("a",)) is None


def test_a_refusal_says_what_to_do():
    with pytest.raises(TypeError, match=r"^give ttl or expires_at, not both$"):
        when(1, 1, T)
    with pytest.raises(
        ValueError, match=r"^ttl is a number of seconds above 0, found 0; to remove a record, delete it$"
    ):
        when(0, None, T)
    with pytest.raises(TypeError, match=r"^expires_at: .* has no time zone; give it one, as with .astimezone\(\)$"):
        when(None, dt.datetime(2030, 1, 1), T)
    with pytest.raises(TypeError, match=r"^ttl is a number of seconds, found '1'$"):
        when("1", None, T)
    with pytest.raises(ValueError, match=r"^expires_at is a number of seconds since 1970, .*, and finite; found inf$"):
        when(None, 10**400, T)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({"ttl": 5}, T + 5),
        ({"ttl": 0.25}, T + 0.25),
        ({"ttl": 1.7976931348623157e308}, 1.7976931348623157e308),
        ({"expires_at": 2 * T}, 2 * T),
        ({"expires_at": 2_000_000}, 2 * T),
        ({"expires_at": dt.datetime(1970, 1, 24, tzinfo=dt.timezone(dt.timedelta(hours=1)))}, 23 * 86400.0 - 3600),
    ],
)
def test_a_time_is_kept_as_it_is_given(mdb, times, expected):
    mdb.upsert(A, **times)
    assert (mdb.expiry(("a",)), mdb.expiry(A), type(mdb.expiry(("a",)))) == (expected, expected, float)
    assert mdb.set_expiry(("c",), **times) == expected == mdb.expiry(("c",))


def test_a_time_that_is_past_makes_it_absent_at_once(mdb):
    mdb.upsert(A, expires_at=T)
    mdb.set_expiry(("c",), expires_at=-1)
    assert ids(mdb.all()) == ["b"]


# Absent.


def test_it_is_there_until_its_time_and_absent_from_then_on(mdb, clock):
    clock.now = T + 9.999
    assert mdb["b",] == mdb.get(B) == B
    assert (("b",) in mdb, len(mdb), ids(mdb.all())) == (True, 3, ["a", "b", "c"])
    clock.now = T + 10
    assert (mdb.get(("b",)), mdb.get(B, "none"), ("b",) in mdb, B in mdb) == (None, "none", False, False)
    with pytest.raises(KeyError):
        mdb["b",]
    assert (len(mdb), list(mdb), ids(mdb.all()), mdb.stats().records) == (2, [("a",), ("c",)], ["a", "c"], 2)
    assert list(mdb.items()) == [(("a",), A), (("c",), C)]
    assert mdb == {("a",): A, ("c",): C}
    assert str(mdb) == str([A, C])


def test_what_it_gives_is_a_plain_dict_of_the_callers_own(mdb):
    mdb.upsert(A, ttl=60)
    for record in (mdb["a",], mdb.get(A), next(mdb.all()), mdb.where(id="a").first(), mdb.snapshot()["a",]):
        assert type(record) is dict
        record["tags"].append("mine")
    assert mdb["a",] == A


ON_WHAT_IS_NOT_THERE = {
    "pop": lambda mdb: mdb.pop(("b",), "none") == "none",
    "delete": lambda mdb: mdb.delete(B) is False,
    "setdefault": lambda mdb: mdb.setdefault(("b",), {"id": "b"}) == {"id": "b"},
    "get_or_create": lambda mdb: mdb.get_or_create({"id": "b"}) == ({"id": "b"}, True),
    "upsert, expecting nothing": lambda mdb: mdb.upsert({"id": "b"}, expected=microdb.ABSENT) is None,
    "upsert, expecting None": lambda mdb: mdb.upsert({"id": "b"}, expected=mdb.get(B)) is None,
    "patch": lambda mdb: mdb.patch(("b",), create=True, v=1) == {"id": "b", "v": 1} == mdb["b",],
    "modify": lambda mdb: mdb.modify(B, lambda record: record | {"v": 1}, create=True) == mdb["b",],
    "increment": lambda mdb: mdb.increment(("b",), "n", create=True) == 1,
    "claim": lambda mdb: mdb.claim({"id": "b"}, 60) is None,
    "where": lambda mdb: ids(mdb.where(lambda _: True)) == ["a", "c"],
    "where by index": lambda mdb: not mdb.where(n=2).exists() and mdb.where(n=3).exists(),
    "where by key": lambda mdb: mdb.where(id="b").explain() == "key: 0 records",
    "view": lambda mdb: list(mdb.snapshot()) == [("a",), ("c",)] and B not in mdb.snapshot(),
    "popitem": lambda mdb: mdb.delete(C) and mdb.popitem() == (("a",), A),
}


@pytest.mark.parametrize("call", ON_WHAT_IS_NOT_THERE)
@pytest.mark.parametrize("inside", ["nothing", "lock", "transaction"])
def test_everything_takes_what_has_expired_for_absent(mdb, clock, call, inside):
    clock.now = T + 10
    with contextlib.nullcontext() if inside == "nothing" else getattr(mdb, inside)():
        assert ON_WHAT_IS_NOT_THERE[call](mdb)
    clock.now = T + 1000  # Whatever came in its place is there for good.
    assert mdb.get(B) is None or mdb.expiry(B) is None


@pytest.mark.parametrize("call", ["patch", "modify", "increment", "edit", "set_expiry", "expiry", "pop", "del"])
def test_what_asks_for_a_record_raises_if_it_has_expired(mdb, clock, call):
    clock.now = T + 10
    position = mdb.position
    with pytest.raises(KeyError):
        {
            "patch": lambda: mdb.patch(("b",), n=1),
            "modify": lambda: mdb.modify(("b",), dict),
            "increment": lambda: mdb.increment(("b",), "n"),
            "edit": lambda: mdb.edit(("b",)).__enter__(),
            "set_expiry": lambda: mdb.set_expiry(("b",), ttl=1),
            "expiry": lambda: mdb.expiry(("b",)),
            "pop": lambda: mdb.pop(("b",)),
            "del": lambda: mdb.__delitem__(("b",)),
        }[call]()
    assert mdb.position == position


def test_upsert_expecting_what_has_expired_is_a_conflict_with_nothing(mdb, clock):
    clock.now = T + 10
    with pytest.raises(microdb.ConflictError) as caught:
        mdb.upsert(B, expected=B)
    assert caught.value.found is microdb.ABSENT


def test_expected_and_a_time_go_together(mdb):
    mdb.upsert(B | {"n": 5}, expected=B, ttl=20)
    assert (mdb["b",]["n"], mdb.expiry(B)) == (5, T + 20)
    mdb.upsert(B, expected=mdb[("b",)])
    assert mdb.expiry(B) is None


# A time changes.


def test_an_upsert_takes_the_time_away_and_keeps_the_place(mdb, clock):
    mdb.upsert(B | {"n": 5})
    clock.now = T + 10
    assert ids(mdb.all()) == ["a", "b", "c"]
    mdb["b",] = B
    assert mdb.expiry(B) is None


EDITS = {
    "patch": lambda mdb: mdb.patch(B, v=1),
    "modify": lambda mdb: mdb.modify(B, lambda record: record | {"v": [1]}),
    "increment": lambda mdb: mdb.increment(B, "n"),
    "edit": lambda mdb: mdb.edit(B).__enter__().update(v=1),
    "claim": lambda mdb: mdb.claim({"id": "b"}, 60),
    "renew": lambda mdb: mdb.claim({"id": "b"}, 60).renew(),
    "complete": lambda mdb: mdb.claim({"id": "b"}, 60).complete(),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_keeps_the_time(mdb, clock, edit):
    EDITS[edit](mdb)
    assert mdb.expiry(B) == T + 10
    clock.now = T + 10
    assert ids(mdb.all()) == ["a", "c"]


def test_a_time_can_be_put_off_and_taken_away_and_nothing_is_written_if_it_is_the_same(mdb, clock):
    assert mdb.set_expiry(B, ttl=20) == T + 20
    position = mdb.position
    assert mdb.set_expiry(B, expires_at=T + 20) == T + 20
    assert mdb.position == position
    clock.now = T + 15
    assert (mdb["b",], ids(mdb.all())) == (B, ["a", "b", "c"])
    assert mdb.set_expiry(B) is None
    clock.now = T + 1000
    assert mdb["b",] == B


def test_a_record_that_expires_within_its_own_edit_is_stored_and_absent(mdb, clock):
    with mdb.edit(B) as record:
        record["v"] = 1
        clock.now = T + 10
    assert B not in mdb
    clock.now = T
    assert (mdb["b",], mdb.expiry(B)) == (B | {"v": 1}, T + 10)


def test_a_change_of_its_own_record_within_an_edit_is_a_conflict_also_if_it_expires(mdb, clock):
    with pytest.raises(microdb.ConflictError) as caught, mdb.edit(B) as record:
        record["v"] = 1
        mdb.set_expiry(B, ttl=5)
        clock.now = T + 5
    assert caught.value.found is microdb.ABSENT


def test_a_claim_of_what_expires_is_lost_with_it(mdb, clock):
    claim = mdb.claim({"id": "b"}, 60)
    clock.now = T + 10
    with pytest.raises(microdb.ClaimLostError):
        claim.complete()


def test_what_expires_as_it_is_being_claimed_is_not_claimed(opened):
    times = iter([T + 9.9, T + 10])
    mdb = opened(":memory:", clock=lambda: next(times, T))
    mdb.upsert(B, expires_at=T + 10)
    assert mdb.claim({"id": "b"}, 60) is None


# Moments.


def test_a_view_is_of_one_moment_and_does_not_change_later(mdb, clock):
    before = mdb.snapshot()
    clock.now = T + 10
    after = mdb.snapshot()
    mdb.clear()
    assert (ids(before.all()), ids(after.all())) == (["a", "b", "c"], ["a", "c"])
    assert before["b",] == B


def test_a_clock_that_goes_back_brings_back_what_is_not_yet_deleted(mdb, clock):
    clock.now = T + 10
    assert len(mdb) == 2
    clock.now = T + 9
    assert (len(mdb), mdb["b",]) == (3, B)


def test_in_a_transaction_too_a_record_expires(mdb, clock):
    with mdb.transaction():
        mdb.upsert({"id": "d"}, ttl=5)
        mdb.upsert_many([{"id": "e"}, {"id": "f"}], ttl=20)
        assert ids(mdb.all()) == list("abcdef")
        clock.now = T + 5
        assert (ids(mdb.all()), ("d",) in mdb, ids(mdb.where(id="d"))) == (list("abcef"), False, [])
        clock.now = T + 10
        assert ids(mdb.all()) == list("acef")
        mdb.upsert(B)
        assert ids(mdb.all()) == list("abcef")
    assert ids(mdb.all()) == list("abcef")
    assert [mdb.expiry((name,)) for name in "abce"] == [None, None, None, T + 20]


def test_in_the_first_transaction_of_a_table_too_a_record_expires(opened, clock):
    mdb, other = opened(), opened()
    with mdb.transaction():
        mdb.upsert(A, ttl=5)
        clock.now = T + 5
        assert (len(mdb), mdb.where(n=1).count(), mdb.snapshot().get(A)) == (0, 0, None)
    clock.now = T
    assert mdb["a",] == other["a",] == A
    clock.now = T + 5
    assert (mdb.get(A), other.get(A), len(mdb), len(other)) == (None, None, 0, 0)


def test_a_transaction_that_fails_leaves_no_time(mdb):
    with pytest.raises(RuntimeError), mdb.transaction():
        mdb.set_expiry(A, ttl=5)
        mdb.upsert(B, ttl=5)
        raise RuntimeError
    assert (mdb.expiry(A), mdb.expiry(B)) == (None, T + 10)


def test_as_of_leaves_out_what_has_expired_by_now(opened, clock):
    mdb = opened()
    mdb.upsert(A)
    mdb.upsert(B, ttl=10)
    position = mdb.position
    mdb.clear()
    assert list(mdb.as_of(position)) == [("a",), ("b",)]
    clock.now = T + 10
    assert list(mdb.as_of(position)) == [("a",)]


# Other handles, other processes.


def test_every_handle_and_process_sees_it_go_at_its_time(opened, clock):
    mdb, other = opened(), opened()
    assert other.get(B) is None
    mdb.upsert_many([A, C])
    mdb.upsert(B, ttl=10)
    reader = opened(read_only=True)

    def look():
        while True:
            yield str(len(mdb)).encode()

    with Child(look) as child:
        assert ([len(one) for one in (mdb, other, reader)], child.step()) == ([3, 3, 3], b"3")
        clock.now = T + 10
        assert ([len(one) for one in (mdb, other, reader)], child.step()) == ([2, 2, 2], b"2")
        assert [one.get(B) for one in (mdb, other, reader)] == [None] * 3
        other.set_expiry(A, ttl=1)
        clock.now = T + 11
        assert ([len(one) for one in (mdb, other, reader)], child.step()) == ([1, 1, 1], b"1")


def test_a_fork_may_upsert_what_expires(opened, clock):
    mdb = opened()
    mdb.upsert(A)
    assert forked(lambda: mdb.upsert(B, ttl=10)) == 0
    assert (mdb["b",], mdb.expiry(B)) == (B, T + 10)
    clock.now = T + 10
    assert list(mdb) == [("a",)]


def test_a_table_in_which_nothing_expires_is_read_the_short_way(opened):
    mdb, other = opened(), opened()
    mdb.upsert(A)
    mdb.upsert_many([B, C])
    assert (len(mdb), mdb._head, mdb._log.words[EXPIRING]) == (3, mdb._applied, 0)
    assert type(mdb._records) is dict
    other.upsert(B, ttl=10)
    assert [(len(one), one._head) for one in (mdb, other)] == [(3, -1)] * 2
    other.delete(B)
    mdb.save()
    assert len(other) == len(mdb) == 2
    assert (mdb._head, other._head) == (mdb._applied, other._applied), "and again, once none is left at a save"


def test_a_commit_that_others_take_along_is_announced(opened, clock):
    """The word is set for the whole group, before its head is published."""
    mdb, other = opened(), opened()
    commits = [Commit(join([encode_upsert(A)]), [(("a",), A)])]
    expiring = Expiring(B, T + 10)
    commits.append(Commit(join([encode_upsert(expiring)]), [(("b",), expiring)], expires=True))
    with mdb.lock():
        mdb._append_locked(commits)
    clock.now = T + 10
    assert [list(mdb), list(other)] == [[("a",)]] * 2


# Log and save.


def test_the_time_survives_in_the_log_the_save_and_a_crash(opened, path, clock, wal):
    mdb = opened()
    mdb.upsert(A)
    mdb.upsert_many([B, C | {"tags": [1]}], ttl=10)
    mdb.close()
    for step in (lambda: None, wal.forget_boot, lambda: opened().save(), wal.forget_boot):
        step()
        mdb = opened()
        assert [mdb.expiry((name,)) for name in "abc"] == [None, T + 10, T + 10]
        assert mdb.check() == (3, [])
        mdb.close()
        reader = opened(read_only=True)
        assert (reader.expiry(B), len(reader)) == (T + 10, 3)
        clock.now = T + 10
        assert (len(reader), len(opened()), ids(opened().where(n=2))) == (1, 1, [])
        clock.now = T
        assert len(reader) == 3
        reader.close()
    assert json.loads(path.read_text()) == [A, B, C | {"tags": [1]}]


def test_who_only_reads_beside_a_page_of_an_earlier_run_relies_on_no_word_of_it(opened, clock, wal):
    mdb = opened()
    mdb.upsert(A)
    mdb.upsert(B, ttl=10)
    mdb.close()
    wal.forget_boot()
    reader = opened(read_only=True)
    assert (len(reader), reader.expiry(B)) == (2, T + 10)
    clock.now = T + 10
    assert (len(reader), list(reader), B in reader, ids(reader.where(n=2))) == (1, [("a",)], False, [])


def test_a_save_drops_what_has_expired_from_every_table_and_from_the_disk(opened, path, clock):
    mdb, other = opened(), opened()
    mdb.upsert(B, ttl=10)
    mdb.upsert_many([A, C])
    assert len(other) == 3
    clock.now = T + 10
    mdb.save()
    assert json.loads(path.read_text()) == [A, C]
    assert len(other) == 2
    assert list(other._records) == list(mdb._records) == [("a",), ("c",)]
    clock.now = T
    assert list(mdb) == list(other) == list(opened()) == [("a",), ("c",)]
    mdb.upsert(B)
    assert list(mdb) == list(other) == list(opened()) == [("a",), ("c",), ("b",)]


def test_a_save_carries_the_times_into_the_new_log_and_each_reader_goes_on(opened, clock):
    mdb, other, late = opened(), opened(), opened()
    mdb.upsert(A)
    assert len(late) == 1
    mdb.upsert(B, ttl=10)
    mdb.upsert(C, ttl=20)
    mdb.patch(B, tags=["x"])
    known = other.where().explain(), other._records["b",]
    for _ in range(3):
        mdb.save()
        assert (other.where().explain(), other._records["b",]) == known
        assert other._records["b",] is known[1], "who follows needs not read it again"
        assert [one.expiry(name) for one in (mdb, other) for name in (B, C)] == [T + 10, T + 20] * 2
    assert [one.check() for one in (mdb, other, late)] == [(3, [])] * 3
    clock.now = T + 10
    assert list(mdb) == list(other) == list(late) == list(opened()) == [("a",), ("c",)]


def test_what_is_written_while_a_save_runs_keeps_its_time_or_loses_it(opened, clock):
    faulty = Faulty()
    mdb, other = opened(files=faulty), opened()
    mdb.upsert_many([A, B, C], ttl=10)
    mdb.upsert({"id": "d"}, ttl=10)
    with save_that_waits(mdb, faulty):
        other.upsert(A)
        other.set_expiry(B, ttl=20)
        other.delete(("d",))
        other.upsert({"id": "e"}, ttl=30)
    expected = [None, T + 10, T + 20, T + 30]
    for one in (mdb, other, opened()):
        assert [one.expiry((name,)) for name in "acbe"] == expected
        assert ("d",) not in one
        assert one.check() == (4, [])
    for one in (mdb, other):
        one.close()
    assert [opened().expiry((name,)) for name in "acbe"] == expected


@pytest.mark.parametrize(("call", "name"), [("sync", ".tmp"), ("rename", ".log"), ("rename", "mdb.json")])
def test_a_save_that_fails_leaves_the_times(opened, clock, call, name):
    faulty = Faulty()
    mdb, other = opened(files=faulty), opened()
    mdb.upsert(A)
    mdb.upsert(B, ttl=10)
    mdb.upsert(C, expires_at=T)
    faulty.on[call] = only(name)
    with pytest.raises(OSError, match="made to fail"):
        mdb.save()
    faulty.on.clear()
    mdb.upsert({"id": "d"})
    for one in (mdb, other, opened()):
        assert (list(one), one.expiry(B)) == ([("a",), ("b",), ("d",)], T + 10)
    clock.now = T + 10
    assert list(mdb) == list(other) == [("a",), ("d",)]


@pytest.mark.parametrize("is_rebooted", [False, True])
def test_a_saver_that_died_before_its_snapshot_was_in_place_leaves_the_times(opened, wal, is_rebooted):
    """Its log goes further than the other, and yet tells of no change."""
    with opened() as mdb:
        mdb.upsert(A)
        mdb.save()
        mdb.upsert(B, ttl=10)
    faulty = Faulty()

    def die():
        faulty.on["rename"] = only("mdb.json", lambda _: os._exit(9))
        opened(files=faulty).save()

    assert forked(die) == 9
    assert wal.log(3).exists()
    if is_rebooted:
        wal.forget_boot()
    mdb = opened()
    assert (list(mdb), mdb.expiry(A), mdb.expiry(B), wal.log(3).exists()) == ([("a",), ("b",)], None, T + 10, False)


def test_an_export_leaves_out_what_has_expired_and_all_times(opened, tmp_path, clock):
    mdb = opened()
    mdb.upsert_many([A, B], ttl=10)
    mdb.upsert(C, expires_at=T)
    mdb.save(tmp_path / "elsewhere.json")
    clock.now = T + 10
    assert ids(json.loads((tmp_path / "elsewhere.json").read_text())) == ["a", "b"]
    assert len(opened(tmp_path / "elsewhere.json")) == 2


def test_after_a_failed_fsync_the_save_carries_what_has_expired_too(opened, clock):
    faulty = Faulty()
    mdb, other = opened(files=faulty, durability="power"), opened()
    mdb.upsert_many([A, B], ttl=10)
    clock.now = T + 10
    faulty.on["sync_data"] = fail
    with pytest.raises(OSError, match="made to fail"):
        mdb.upsert(C)
    faulty.on.clear()
    assert len(other) == 0
    other.upsert(C)
    assert (mdb.stats().generation, list(mdb), list(other), list(opened())) == (2, [("c",)], [("c",)], [("c",)])
    assert mdb.check().is_sound
    clock.now = T
    assert (list(other), list(opened())) == ([("a",), ("b",), ("c",)],) * 2
    clock.now = T + 10
    mdb.save()
    clock.now = T
    assert list(mdb) == list(other) == [("c",)]


def test_a_log_that_was_cut_is_saved_though_nothing_can_be_appended(opened, path, clock):
    mdb = opened()
    mdb.upsert_many([A, C])
    mdb.upsert(B, ttl=10)
    clock.now = T + 10
    os.truncate(Wal(path).log(), os.path.getsize(Wal(path).log()) - 1)
    with pytest.raises(microdb.CorruptError, match="something cut it"):
        mdb.upsert({"id": "d"})
    mdb.save()
    mdb.upsert({"id": "d"})
    assert list(mdb) == list(opened()) == [("a",), ("c",), ("d",)]
    clock.now = T
    assert list(mdb) == list(opened()) == [("a",), ("c",), ("b",), ("d",)]


def test_many_times_are_carried_in_several_frames(opened, monkeypatch):
    from microdb.wal import codec  # noqa: PLC0415 - for this test alone

    monkeypatch.setattr(codec, "_TOGETHER_BYTES", 200)
    mdb, other = opened(), opened()
    mdb.upsert_many([{"id": n, "text": "x" * 50} for n in range(10)], ttl=10)
    mdb.upsert({"id": 10, "text": "x" * 300}, ttl=20)
    before = mdb.position.sequence
    mdb.save()
    assert mdb.position.sequence >= before + 4
    assert [one.expiry((n,)) for one in (mdb, other, opened()) for n in (0, 9, 10)] == [T + 10, T + 10, T + 20] * 3


def test_an_edit_of_a_snapshot_of_which_the_log_has_the_times_is_refused(opened, path, clock):
    mdb = opened()
    mdb.upsert_many([A, C])
    mdb.upsert(B, ttl=10)
    mdb.save()
    mdb.close()
    sound = path.read_bytes()
    path.write_bytes(sound.replace(b'"n":3', b'"n":4'))
    with pytest.raises(microdb.ConflictError, match=r"holds the times at which its records expire\. .* by upsert\(\);"):
        opened()
    path.write_bytes(sound)
    mdb = opened()
    mdb.set_expiry(B)
    with pytest.raises(microdb.ConflictError, match="holds changes to the old one"):
        path.write_bytes(sound.replace(b'"n":3', b'"n":4'))
        mdb.close()
        opened()
    path.write_bytes(sound)
    mdb = opened()
    mdb.save()
    mdb.close()
    path.write_bytes(sound.replace(b'"n":3', b'"n":4'))
    assert opened()["c",]["n"] == 4


# Growing.


def test_a_table_of_records_that_expire_does_not_grow_for_ever(mdb, clock, monkeypatch):
    monkeypatch.setattr(handle, "_DROP_ABOVE_MIN", 20)
    mdb._drop_above = 20
    most = 0
    for n in range(500):
        clock.now = T + n
        mdb.upsert({"id": n}, ttl=10)
        most = max(most, len(mdb._records))
    assert 12 <= len(mdb) <= 13
    assert most <= 2 * 13 + 1
    live = mdb._records
    looked = mdb._drop_above
    for n in range(500, 1000):
        mdb.upsert({"id": n}, ttl=1000)
    assert len(live) >= 500
    assert mdb._drop_above > looked, "and is looked through the more rarely, the more it holds"


def test_who_only_writes_behind_others_drops_what_has_expired(opened, clock, monkeypatch):
    monkeypatch.setattr(handle, "_DROP_ABOVE_MIN", 20)
    monkeypatch.setattr(handle, "_FAR_BYTES", 300)
    mdb, other = opened(), opened()
    other.upsert(A)
    most = 0
    for n in range(500):
        clock.now = T + n
        mdb.upsert({"id": n}, ttl=10)
        most = max(most, other.freshen() and len(other._records))
    assert most < 60


def test_a_write_without_a_time_drops_nothing(mdb, clock):
    mdb._drop_above = 1
    clock.now = T + 10
    mdb.upsert(A)
    assert len(mdb._records) == 3
    with mdb.transaction():
        mdb.upsert(A, ttl=5)
    assert len(mdb._records) == 3, "nor does one in a transaction"
    mdb.upsert(A, ttl=5)
    assert len(mdb._records) == 2


# Bytes.

KEYS = PartitionKeys(["id"])


def test_the_item_of_a_record_that_expires_comes_back_with_its_time():
    for record in (A, B):
        [(key, found)] = decode(join([encode_upsert(Expiring(record, 1.5))]), KEYS)
        assert (key, found, type(found), found.expires_at) == ((record["id"],), record, Expiring, 1.5)


def test_the_items_of_a_record_that_expires_are_these_bytes_for_ever():
    assert encode_upsert(Expiring({"id": 1}, 1.5)) == bytes.fromhex("93 03 81a2696401 cb3ff8000000000000")
    assert encode_carried(Expiring({"id": 1}, 1.5)) == bytes.fromhex("93 04 81a2696401 cb3ff8000000000000")


@pytest.mark.parametrize("count", [1, 15, 16, 65_535, 65_536])
@pytest.mark.parametrize("wrap", [bytes, memoryview])
def test_what_is_carried_over_is_known_as_such_and_is_an_upsert(count, wrap):
    records = [Expiring({"id": n}, 1.5) for n in range(count)]
    carried, upserted = (wrap(join(list(map(encode, records)))) for encode in (encode_carried, encode_upsert))
    assert (is_carried(carried), is_carried(upserted)) == (True, False)
    assert decode(carried, KEYS) == decode(upserted, KEYS)
    assert not any(map(is_carried, [b"", join([]), join([encode_upsert({"id": 4})]), join([encode_delete((4,))])]))


def test_an_item_is_read_by_who_knows_no_other(path, opened, wal):
    opened().close()
    append_payload(wal, b"\x91" + bytes.fromhex("93 03 81a2696401 cb") + struct.pack(">d", T + 10))
    assert opened().expiry((1,)) == T + 10


def test_where_nothing_expires_a_save_does_not_catch_up_while_others_wait(open_db):
    saver, other = open_db(), open_db()
    len(saver)
    other.upsert(A)
    with saver.lock():
        before = saver._position
        assert saver.expiring() == []
        assert saver._position is before


def test_what_a_save_carries_over_is_as_of_the_end_of_the_old_log(opened, clock):
    """Others write while it is under way; so it catches up before they have to wait, and again."""
    saver, other = opened(), opened()
    saver.upsert(A, ttl=60)
    other.upsert(A, ttl=90)
    other.upsert(B, ttl=30)
    with saver.lock():
        assert {record["id"]: record.expires_at for record in saver.expiring()} == {"a": T + 90, "b": T + 30}


def test_a_reader_whom_nobody_sees_knows_amid_a_recovery_that_records_expire(opened, clock, path):
    with opened() as mdb:
        mdb.upsert(B, ttl=10)
    reader = opened(read_only=True)
    assert reader["b",] == B

    def die_before_it_is_published():
        mdb = opened(files=Faulty())
        write_at = WatchedFile.write_at

        def then_die(*args):
            write_at(*args)
            os._exit(0)

        WatchedFile.write_at = then_die
        mdb.upsert(A)

    assert forked(die_before_it_is_published) == 0
    files = Faulty()
    seen = []
    files.on["unlink"] = files.on["names"] = lambda _: seen.append(ids(reader.all()))
    opened(files=files)
    assert ["b", "a"] in seen, "it looked when the page was made, and the recovery not yet at its end"
    clock.now += 11
    assert reader.get(("b",)) is None
    assert ids(reader.all()) == ["a"]
