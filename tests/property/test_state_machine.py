"""Several handles of one database against a plain dict, over saves, crashes, forks, reopening, and as time goes by."""

import contextlib
import functools
import gc
import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import microdb
from children import forked
from strategies import same, values

INDEXES = st.integers(0, 11)
NAMES = st.sampled_from(["a", "b", "c", "d", "e"])
RECORDS = st.fixed_dictionaries({"job": NAMES}, optional={"name": NAMES, "v": values()})
KEYS = st.tuples(NAMES, NAMES | st.none())
TTLS = st.sampled_from([1, 3, 10, 1000])
CHANGES = st.lists(
    st.tuples(st.just("upsert"), RECORDS)
    | st.tuples(st.just("upsert_for"), st.tuples(RECORDS, TTLS))
    | st.tuples(st.just("delete"), KEYS)
    | st.just(("clear", None)),
    max_size=6,
)


def key_of(record):
    return record.get("job"), record.get("name")


def carry_out(changes, mdb):
    for what, argument in changes:
        if what == "upsert_for":
            record, ttl = argument
            mdb.upsert(record, ttl=ttl)
        else:
            getattr(mdb, what)(*([] if argument is None else [argument]))


class Model:
    """What a table should show: a plain dict, from which nothing goes before it is deleted, and when what expires."""

    def __init__(self):
        self.now = 1_000_000.0
        self.records = {}
        self.times = {}

    def shown(self):
        """Without what has expired."""
        return {key: record for key, record in self.records.items() if not self.times.get(key, math.inf) <= self.now}

    def carry_out(self, changes):
        for what, argument in changes:
            if what == "upsert":
                self.upsert(argument)
            elif what == "upsert_for":
                self.upsert(*argument)
            elif what == "delete":
                self.delete(argument)
            else:
                self.records.clear()
                self.times.clear()

    def upsert(self, record, ttl=None):
        key = key_of(record)
        self.records[key] = record
        self.times.pop(key, None)
        if ttl is not None:
            self.times[key] = self.now + ttl

    def delete(self, key):
        """Whether there was one. What has expired stays at its place."""
        if key not in self.shown():
            return False
        del self.records[key]
        self.times.pop(key, None)
        return True

    def drop_expired(self):
        """As a save does."""
        self.records = self.shown()
        self.times = {key: time for key, time in self.times.items() if key in self.records}


def by_name(items):
    """Keys and records in their order; the fields by name, because a grid gives all records one order of fields."""
    return [(key, sorted(record.items())) for key, record in items]


def _meets(wanted, record):
    return all(
        condition.holds(record.get(field)) if hasattr(condition, "holds") else record.get(field) == condition
        for field, condition in wanted.items()
    )


class OnPurposeError(Exception):
    pass


class Follower:
    """A table that is kept by nothing but what a watch tells; when its handle is gone it goes on with another one."""

    def __init__(self, mdb):
        self.watch = mdb.watch()
        self.table = dict(mdb)

    def let_go(self):
        if self.watch is not None:
            self.position = self.watch.position
            self.watch = None

    def follow(self, mdb):
        if self.watch is None:
            self.watch = mdb.watch(since=self.position)
        for event in iter(self.watch.take, None):
            assert event.kind != "resync"
            if event.kind == "clear":
                self.table.clear()
                continue
            if event.kind == "expire":  # Perhaps once more.
                assert same(event.old, self.table.pop(event.key, event.old))
                continue
            assert event.old is microdb.UNKNOWN or same(event.old, self.table.get(event.key))
            if event.new is None:
                del self.table[event.key]
            else:
                self.table[event.key] = event.new


class ManyHandles(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "mdb.json"
        self.model = Model()
        self.open_handles = []
        self.followers = []
        self.moments = []

    def teardown(self):
        for mdb in self.open_handles:
            mdb.close()
        self.folder.cleanup()

    @initialize()
    def first(self):
        self.another_handle()

    @precondition(lambda self: len(self.open_handles) < 4)
    @rule()
    def another_handle(self):
        self.open_handles.append(
            microdb.MicroDB(
                self.path,
                ["job", "name"],
                indexes=["v", ("name", "v")],
                sorted_indexes=["v"],
                clock=lambda: self.model.now,
            )
        )

    def drop(self, index):
        """A handle, which nobody knows any more."""
        mdb = self.open_handles.pop(index % len(self.open_handles))
        for follower in self.followers:
            follower.let_go()
        return mdb

    @precondition(lambda self: len(self.followers) < 3)
    @rule(index=INDEXES)
    def another_follower(self, index):
        self.followers.append(Follower(self.handle(index)))

    @precondition(lambda self: self.followers)
    @rule(index=INDEXES, which=INDEXES)
    def follow(self, index, which):
        follower = self.followers[which % len(self.followers)]
        follower.follow(self.handle(index))
        found, expected = (by_name(table.items()) for table in (follower.table, self.model.shown()))
        assert same(sorted(found, key=str), sorted(expected, key=str))  # What has expired and comes back is last there.

    def handle(self, index):
        return self.open_handles[index % len(self.open_handles)]

    @rule(index=INDEXES, record=RECORDS)
    def upsert(self, index, record):
        mdb = self.handle(index)
        mdb.upsert(record)
        self.model.upsert(record)

    @rule(index=INDEXES, record=RECORDS, ttl=TTLS)
    def upsert_for(self, index, record, ttl):
        mdb = self.handle(index)
        mdb.upsert(record, ttl=ttl)
        self.model.upsert(record, ttl)

    @rule(seconds=TTLS | TTLS.map(lambda seconds: -seconds))
    def time_goes_by(self, seconds):
        """And perhaps the clock is set back."""
        self.model.now += seconds
        if seconds < 0:
            self.followers.clear()  # What has expired is told once.

    @rule(index=INDEXES, key=KEYS, ttl=TTLS | st.none())
    def set_expiry(self, index, key, ttl):
        mdb = self.handle(index)
        if key not in self.model.shown():
            with pytest.raises(KeyError):
                mdb.set_expiry(key, ttl=ttl)
            return
        mdb.set_expiry(key, ttl=ttl)
        self.model.upsert(self.model.records[key], ttl)

    @rule(index=INDEXES, records=st.lists(RECORDS, max_size=5), ttl=TTLS | st.none())
    def upsert_many(self, index, records, ttl):
        mdb = self.handle(index)
        mdb.upsert_many(records, ttl=ttl)
        for record in records:
            self.model.upsert(record, ttl)

    @rule(index=INDEXES, key=KEYS, value=values(), create=st.booleans())
    def patch(self, index, key, value, create):
        mdb = self.handle(index)
        shown = self.model.shown()
        if key not in shown and not create:
            with pytest.raises(KeyError):
                mdb.patch(key, v=value)
            return
        begun = {name: part for name, part in zip(("job", "name"), key, strict=True) if part is not None}
        patched = {**shown.get(key, begun), "v": value}
        assert same(mdb.patch(key, v=value, create=create), patched)
        if key in shown:
            self.model.records[key] = patched
        else:
            self.model.upsert(patched)

    @rule(index=INDEXES, key=KEYS, value=values(), how=st.sampled_from(["modify", "edit", "increment", "complete"]))
    def change_in_place(self, index, key, value, how):
        mdb = self.handle(index)
        found = self.model.shown().get(key)
        if found is None:
            with pytest.raises(KeyError):
                mdb.increment(key, "n")
            return
        made = {**found, "v": value}
        if how == "modify":
            mdb.modify(key, lambda record: {**record, "v": value})
        elif how == "edit":
            with mdb.edit(key) as record:
                record["v"] = value
        elif how == "increment":
            made = {**found, "n": found.get("n", 0) + 2}
            assert mdb.increment(key, "n", 2) == made["n"]
        else:
            claim = mdb.claim(lambda record: key_of(record) == key, lease=60)
            assert mdb.claim(lambda record: key_of(record) == key, lease=60) is None
            made["claim"] = claim.complete(v=value)["claim"]
            assert made["claim"] == {"owner": None, "until": None, "fence": claim.fence}
        assert same(by_name([(key, mdb[key])]), by_name([(key, made)]))
        self.model.records[key] = made

    @rule(index=INDEXES, record=RECORDS)
    def get_or_create(self, index, record):
        mdb = self.handle(index)
        found = self.model.shown().get(key_of(record))
        assert same(mdb.get_or_create(record), (record, True) if found is None else (found, False))
        if found is None:
            self.model.upsert(record)

    @rule(index=INDEXES, key=KEYS)
    def pop(self, index, key):
        mdb = self.handle(index)
        found = self.model.shown().get(key)
        assert same(mdb.pop(key, None), found)
        self.model.delete(key)

    @precondition(lambda self: len(self.moments) < 3)
    @rule(index=INDEXES)
    def moment(self, index):
        mdb = self.handle(index)
        self.moments.append((mdb.snapshot(), self.model.shown(), mdb.position, not self.model.times))

    @precondition(lambda self: self.moments)
    @rule(index=INDEXES, which=INDEXES)
    def look_back(self, index, which):
        """A view shows its moment whatever has come since; so does the log, until a save."""
        view, shown, position, is_timeless = self.moments.pop(which % len(self.moments))
        assert same(by_name(view.items()), by_name(shown.items()))
        with contextlib.suppress(microdb.SinceLostError):
            then = self.handle(index).as_of(position)
            assert not is_timeless or same(by_name(then.items()), by_name(shown.items()))

    @rule(index=INDEXES, record=RECORDS, is_right=st.booleans())
    def upsert_expecting(self, index, record, is_right):
        mdb = self.handle(index)
        key = key_of(record)
        if is_right:
            mdb.upsert(record, expected=mdb.get(key, microdb.ABSENT))
            self.model.upsert(record)
        else:
            with pytest.raises(microdb.ConflictError) as caught:
                mdb.upsert(record, expected={"job": key[0], "name": "nobody's"})
            assert same(caught.value.found, self.model.shown().get(key, microdb.ABSENT))

    @rule(index=INDEXES, name=NAMES, value=values(), changes=CHANGES, job=NAMES)
    def find(self, index, name, value, changes, job):
        """An index finds what a scan finds, also in a transaction, which is given up."""
        mdb = self.handle(index)
        with contextlib.suppress(OnPurposeError), mdb.transaction():
            for _ in range(2):
                for wanted in (
                    {"v": value},
                    {"name": name, "v": value},
                    {"job": job},
                    {"v": microdb.at_least(value)},
                    {"v": microdb.one_of([value, None])},
                ):
                    found = [key_of(record) for record in mdb.where(wanted)]
                    expected = [key_of(record) for record in mdb.where(functools.partial(_meets, wanted))]
                    assert sorted(found, key=str) == sorted(expected, key=str)
                carry_out(changes, mdb)
            raise OnPurposeError

    @rule(index=INDEXES, key=KEYS)
    def delete(self, index, key):
        mdb = self.handle(index)
        assert mdb.delete(key) == self.model.delete(key)

    @rule(index=INDEXES)
    def clear(self, index):
        mdb = self.handle(index)
        mdb.clear()
        self.model.carry_out([("clear", None)])

    @rule(index=INDEXES, changes=CHANGES)
    def transaction(self, index, changes):
        mdb = self.handle(index)
        with mdb.transaction():
            carry_out(changes, mdb)
            self.model.carry_out(changes)
            assert same(by_name(mdb.items()), by_name(self.model.shown().items()))

    @rule(index=INDEXES, changes=CHANGES)
    def failing_transaction(self, index, changes):
        mdb = self.handle(index)
        with pytest.raises(OnPurposeError), mdb.transaction():
            carry_out(changes, mdb)
            raise OnPurposeError

    @rule(index=INDEXES)
    def save(self, index):
        mdb = self.handle(index)
        mdb.save()
        self.model.drop_expired()

    @rule(index=INDEXES)
    def save_as_grid(self, index):
        mdb = self.handle(index)
        self.model.drop_expired()
        fields = {tuple(sorted(record)) for record in self.model.records.values()}
        if len(fields) > 1:
            with pytest.raises(microdb.GridError):
                mdb.save_as_grid()
        else:
            mdb.save_as_grid()

    @rule(index=INDEXES)
    def reopen(self, index):
        self.drop(index).close()
        self.another_handle()

    @rule(index=INDEXES)
    def crash(self, index):
        """A handle is dropped without being closed."""
        self.drop(index)
        gc.collect()
        self.another_handle()

    @rule()
    def everybody_crashes(self):
        while self.open_handles:
            self.drop(0)
        gc.collect()
        self.another_handle()

    @rule(index=INDEXES, changes=CHANGES)
    def fork(self, index, changes):
        """A child goes on with the same handle, and ends without closing it."""
        assert forked(lambda: carry_out(changes, self.handle(index))) == 0
        self.model.carry_out(changes)

    @invariant()
    def every_handle_shows_the_model(self):
        shown = self.model.shown()
        for mdb in self.open_handles:
            assert same(by_name(mdb.items()), by_name(shown.items()))
            assert len(mdb) == len(shown)
            for key, record in shown.items():
                assert same(by_name([(key, mdb[key])]), by_name([(key, record)]))
                assert mdb.expiry(key) == self.model.times.get(key)
            assert not any(key in mdb for key in self.model.records.keys() - shown.keys())


ManyHandles.TestCase.settings = settings(
    max_examples=settings.default.max_examples * 2 // 5,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
test_many_handles_behave_as_one_dict = ManyHandles.TestCase
