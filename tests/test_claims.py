"""Claims: a job is given to one worker at a time, whoever dies, and a worker that lost its own is told."""

import datetime as dt
import math
import multiprocessing
import os
import pickle
import re
import signal
import time

import pytest

import microdb
from microdb import claims

JOBS = [{"id": n, "status": "undone"} for n in range(3)]


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""

    class Clock:
        now = 1_000.0

        def time(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(claims, "time", clock)
    return clock


@pytest.fixture
def mdb(either):
    either.upsert_many(JOBS)
    return either


def undone(mdb):
    return mdb.where(status="undone").order_by("id")


def test_each_claim_gets_another_record_and_then_there_is_none(mdb):
    taken = [mdb.claim(undone(mdb), 60) for _ in range(4)]
    assert [claim and claim.key for claim in taken] == [(0,), (1,), (2,), None]
    assert [claim.record["claim"]["fence"] for claim in taken[:3]] == [claim.fence for claim in taken[:3]]


@pytest.mark.parametrize("where", [{"id": 1}, lambda record: record["id"] == 1])
def test_what_is_claimed_may_be_said_as_where_takes_it(mdb, where):
    claim = mdb.claim(where, 60, owner="me")
    assert (claim.key, claim.record["id"], claim.owner) == ((1,), 1, "me")
    assert mdb.claim(where, 60) is None


def test_what_is_released_is_claimed_again_with_a_higher_fence(mdb, clock):
    claim = mdb.claim({"id": 0}, 60)
    claim.release(note="tried")
    again = mdb.claim({"id": 0}, 60, owner="you")
    assert (again.record["note"], again.until) == ("tried", 1060.0)
    assert again.fence > claim.fence
    assert mdb[0,]["claim"] == {"owner": "you", "until": 1060.0, "fence": again.fence}


def test_what_is_completed_is_changed_and_free(mdb):
    claim = mdb.claim({"id": 0}, 60)
    assert claim.complete(status="done", n=1) == mdb[0,]
    assert mdb[0,] == {"id": 0, "status": "done", "n": 1, "claim": {"owner": None, "until": None, "fence": claim.fence}}
    assert mdb.claim({"id": 0}, 60).fence > claim.fence


def test_a_lease_runs_out(mdb, clock):
    claim = mdb.claim({"id": 0}, 60)
    clock.now = 1_059.9
    assert mdb.claim({"id": 0}, 60) is None
    clock.now = 1_060
    assert mdb.claim({"id": 0}, 60).fence > claim.fence


def test_a_renewed_lease_runs_longer(mdb, clock):
    claim = mdb.claim({"id": 0}, 60)
    clock.now = 1_050
    claim.renew()
    assert claim.until == 1_110
    claim.renew(200)
    clock.now = 1_249
    assert mdb.claim({"id": 0}, 60) is None
    clock.now = 1_250
    assert mdb.claim({"id": 0}, 60) is not None


ENDS = {
    "renew": lambda claim: claim.renew(),
    "release": lambda claim: claim.release(status="stale"),
    "complete": lambda claim: claim.complete(status="stale"),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_worker_that_slept_over_its_lease_is_told_who_has_its_job_and_changes_nothing(mdb, clock, end):
    claim = mdb.claim({"id": 0}, 60, owner="sleeper")
    clock.now = 2_000
    fence = mdb.claim({"id": 0}, 60, owner="other").fence
    before = mdb[0,]
    with pytest.raises(microdb.ClaimLostError, match=f"{claim.fence} is lost: .* 'other', with fence {fence}$"):
        ENDS[end](claim)
    assert mdb[0,] == before


@pytest.mark.parametrize("end", ENDS)
def test_a_worker_that_slept_over_its_lease_goes_on_if_nobody_else_came(mdb, clock, end):
    claim = mdb.claim({"id": 0}, 60)
    clock.now = 2_000
    ENDS[end](claim)


@pytest.mark.parametrize("end", ENDS)
def test_a_claim_that_has_ended_or_whose_record_is_gone_is_lost(mdb, end):
    claim = mdb.claim({"id": 0}, 60)
    claim.release()
    with pytest.raises(microdb.ClaimLostError, match="is nobody's"):
        ENDS[end](claim)
    gone = mdb.claim({"id": 1}, 60)
    mdb.delete((1,))
    with pytest.raises(microdb.ClaimLostError, match="is deleted") as caught:
        ENDS[end](gone)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert (1,) not in mdb


def test_a_block_releases_what_it_has_not_completed(mdb, clock):
    with mdb.claim({"id": 0}, 60):
        assert mdb.claim({"id": 0}, 60) is None
    with pytest.raises(ZeroDivisionError), mdb.claim({"id": 0}, 60) as claim:
        raise ZeroDivisionError
    assert mdb[0,]["claim"] == {"owner": None, "until": None, "fence": claim.fence}
    with mdb.claim({"id": 0}, 60) as claim:
        claim.complete(status="done")
    assert mdb[0,]["status"] == "done"
    with pytest.raises(ZeroDivisionError), mdb.claim({"id": 0}, 60):
        clock.now = 2_000
        mdb.claim({"id": 0}, 60)
        raise ZeroDivisionError
    with pytest.raises(microdb.ClaimLostError), mdb.claim({"id": 1}, 60):
        clock.now = 3_000
        mdb.claim({"id": 1}, 60)


@pytest.mark.parametrize(
    ("lease", "error", "says"),
    [
        (0, ValueError, "lease is a number of seconds above 0, found 0"),
        (-1, ValueError, "lease is a number of seconds above 0, found -1"),
        (math.nan, ValueError, "lease is a number of seconds, and finite; found nan"),
        (10**400, ValueError, "lease is a number of seconds, and finite; found inf"),
        ("60", TypeError, "lease is a number of seconds, found '60'"),
        (dt.timedelta(1), TypeError, "lease is a number of seconds, found datetime.timedelta"),
    ],
)
def test_a_lease_is_a_number_of_seconds_above_zero(mdb, lease, error, says):
    with pytest.raises(error, match=says):
        mdb.claim({"id": 0}, lease)
    with mdb.claim({"id": 0}, 60) as claim:
        before = mdb[0,]
        with pytest.raises(error, match=says):
            claim.renew(lease)
        assert mdb[0,] == before


def test_a_claim_without_a_lease_is_refused(mdb):
    with pytest.raises(TypeError, match="lease is a number of seconds, found None"):
        mdb.claim({"id": 0}, None)


@pytest.mark.parametrize("owner", [math.nan, 4711, [1], ""])
def test_an_owner_is_named(mdb, owner):
    with pytest.raises(TypeError, match=re.escape(f"owner is a str that names who takes it, found {owner!r}")):
        mdb.claim({"id": 0}, 60, owner=owner)
    assert mdb[0,] == JOBS[0]


def test_another_use_of_the_field_is_refused(mdb):
    mdb.patch((0,), claim="mine")
    with pytest.raises(microdb.RecordError, match="holds 'mine', which is no claim"):
        mdb.claim({"id": 0}, 60)
    with mdb.claim({"id": 1}, 60) as claim, pytest.raises(microdb.RecordError, match="holds the claim itself"):
        claim.complete(claim="mine")
    assert mdb[0,] == {"id": 0, "status": "undone", "claim": "mine"}


@pytest.mark.parametrize("wrong", [{"until": "x"}, {"until": True}, {"fence": "y"}, {"fence": None}, {"fence": 1.5}])
def test_what_only_looks_like_a_claim_is_another_use(mdb, wrong):
    mdb.patch((0,), claim={"owner": "me", "until": 1.5, "fence": 1} | wrong)
    before = mdb[0,]
    with pytest.raises(microdb.RecordError, match="which is no claim; name your field otherwise"):
        mdb.claim({"id": 0}, 60)
    assert mdb[0,] == before


def test_a_claim_survives_a_save_and_says_what_it_is(mdb, path, open_db):
    claim = mdb.claim({"id": 0}, 60, owner="me")
    assert repr(claim) == f"<Claim on (0,) by 'me', fence {claim.fence}, until {claim.until:.3f}>"
    ended = mdb.claim({"id": 1}, 60, owner="me")
    ended.release()
    assert repr(ended) == f"<Claim on (1,) by 'me', fence {ended.fence}, ended>"
    if path.parent.joinpath("mdb.json.wal").exists():
        mdb.save()
        mdb.close()
        assert open_db().claim({"id": 0}, 60) is None


def test_the_fence_of_a_record_rises_whatever_happens_to_it(mdb):
    fences = []
    for change in (lambda: mdb.upsert({"id": 0}), lambda: mdb.delete((0,)), lambda: mdb.patch((0,), claim=None)):
        fences.append(mdb.claim({"id": 0}, 60, owner="me").fence)
        change()
        mdb.get_or_create({"id": 0})
    with mdb.transaction():
        for _ in range(3):
            fences.append(mdb.claim({"id": 0}, 60, owner="me").fence)
            mdb.upsert({"id": 0})
    with mdb.transaction():
        mdb.delete((0,))
        mdb.upsert({"id": 0})
        fences.append(mdb.claim({"id": 0}, 60, owner="me").fence)
    assert fences == sorted(set(fences))


def test_a_claim_is_on_the_table_itself(mdb, open_db):
    view = mdb.snapshot()
    other = open_db(":memory:")
    for query in (view.where(id=0), other.where(id=0)):
        with pytest.raises(TypeError, match="a query of this database itself"):
            mdb.claim(query, 60)


def work(path, number, barrier, done):
    mdb = microdb.MicroDB(path, ["id"])
    if number < 2:
        mdb.claim({"status": "undone"}, 0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    barrier.wait()
    while True:
        claim = mdb.claim({"status": "undone"}, 0.5)
        if claim is None:
            if not mdb.where(status="undone").exists():
                return
            time.sleep(0.01)  # Others have the rest, or died with it.
            continue
        done[claim.record["id"]] += 1
        claim.complete(status="done", by=number)


def test_eight_processes_do_each_job_once_though_some_die_with_one(path, open_db):
    mdb = open_db(indexes=["status"])
    mdb.upsert_many({"id": n, "status": "undone"} for n in range(200))
    context = multiprocessing.get_context("fork")
    barrier, done = context.Barrier(6), context.Array("l", 200)
    workers = [context.Process(target=work, args=(path, number, barrier, done)) for number in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [-signal.SIGKILL] * 2 + [0] * 6
    assert list(done) == [1] * 200
    assert mdb.where(status="done").count() == 200
    fences = [record["claim"]["fence"] for record in mdb.all()]
    assert len(set(fences)) == 200


def test_a_fence_that_a_transaction_gave_is_below_all_later_ones(mdb):
    with mdb.transaction():
        mdb.upsert_many({"id": n, "status": "new"} for n in range(10, 15))
        first = mdb.claim({"id": 0}, lease=60)
    mdb.delete((0,))
    mdb.upsert(JOBS[0])
    assert mdb.claim({"id": 0}, lease=60).fence > first.fence
