"""Several handles of one database against a plain dict, over saves, crashes, forks and reopening."""

import contextlib
import functools
import gc
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
CHANGES = st.lists(
    st.tuples(st.just("upsert"), RECORDS) | st.tuples(st.just("delete"), KEYS) | st.just(("clear", None)), max_size=6
)


def key_of(record):
    return record.get("job"), record.get("name")


def carry_out(changes, mdb):
    for what, argument in changes:
        getattr(mdb, what)(*([] if argument is None else [argument]))


def carry_out_on_dict(changes, model):
    for what, argument in changes:
        if what == "upsert":
            model[key_of(argument)] = argument
        elif what == "delete":
            model.pop(argument, None)
        else:
            model.clear()


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
        self.model = {}
        self.open_handles = []
        self.followers = []

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
            microdb.MicroDB(self.path, ["job", "name"], indexes=["v", ("name", "v")], sorted_indexes=["v"])
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
        assert same(by_name(follower.table.items()), by_name(self.model.items()))

    def handle(self, index):
        return self.open_handles[index % len(self.open_handles)]

    @rule(index=INDEXES, record=RECORDS)
    def upsert(self, index, record):
        mdb = self.handle(index)
        mdb.upsert(record)
        self.model[key_of(record)] = record

    @rule(index=INDEXES, records=st.lists(RECORDS, max_size=5))
    def upsert_many(self, index, records):
        mdb = self.handle(index)
        mdb.upsert_many(records)
        self.model.update((key_of(record), record) for record in records)

    @rule(index=INDEXES, key=KEYS, value=values(), create=st.booleans())
    def patch(self, index, key, value, create):
        mdb = self.handle(index)
        if key not in self.model and not create:
            with pytest.raises(KeyError):
                mdb.patch(key, v=value)
            return
        begun = {name: part for name, part in zip(("job", "name"), key, strict=True) if part is not None}
        self.model[key] = {**self.model.get(key, begun), "v": value}
        assert same(mdb.patch(key, v=value, create=create), self.model[key])

    @rule(index=INDEXES, record=RECORDS, is_right=st.booleans())
    def upsert_expecting(self, index, record, is_right):
        mdb = self.handle(index)
        key = key_of(record)
        if is_right:
            mdb.upsert(record, expected=mdb.get(key, microdb.ABSENT))
            self.model[key] = record
        else:
            with pytest.raises(microdb.ConflictError) as caught:
                mdb.upsert(record, expected={"job": key[0], "name": "nobody's"})
            assert same(caught.value.found, self.model.get(key, microdb.ABSENT))

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
        assert mdb.delete(key) == (self.model.pop(key, None) is not None)

    @rule(index=INDEXES)
    def clear(self, index):
        mdb = self.handle(index)
        mdb.clear()
        self.model.clear()

    @rule(index=INDEXES, changes=CHANGES)
    def transaction(self, index, changes):
        mdb = self.handle(index)
        with mdb.transaction():
            carry_out(changes, mdb)
            carry_out_on_dict(changes, self.model)
            assert same(by_name(mdb.items()), by_name(self.model.items()))

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

    @rule(index=INDEXES)
    def save_as_grid(self, index):
        mdb = self.handle(index)
        fields = {tuple(sorted(record)) for record in self.model.values()}
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
        carry_out_on_dict(changes, self.model)

    @invariant()
    def every_handle_shows_the_model(self):
        for mdb in self.open_handles:
            assert same(by_name(mdb.items()), by_name(self.model.items()))
            assert len(mdb) == len(self.model)
            for key, record in self.model.items():
                assert same(by_name([(key, mdb[key])]), by_name([(key, record)]))


ManyHandles.TestCase.settings = settings(
    max_examples=settings.default.max_examples * 2 // 5,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
test_many_handles_behave_as_one_dict = ManyHandles.TestCase
