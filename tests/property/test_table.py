"""An overlay does to any table what its changes would do one by one: the same records, at the same places."""

from hypothesis import given
from hypothesis import strategies as st

from microdb.changes import CLEAR, Upserts
from microdb.indexes import HashIndex, IndexedRecords
from microdb.table import Overlay, apply

# Keys that are equal and not the same: the table keeps the one that came first.
KEYS = [(0,), (False,), (1,), (True,), (1.0,), (2,)]

key = st.sampled_from(KEYS)
record = st.fixed_dictionaries({"value": st.integers(0, 99)})
changes = st.lists(st.tuples(key, record) | st.tuples(key, st.none()) | st.just(CLEAR), max_size=12)
tables = st.dictionaries(key, record, max_size=4)


def in_order(records):
    return [(repr(key), record) for key, record in records.items()]


@given(tables, st.lists(changes, max_size=3))
def test_an_overlay_laid_on_a_table_does_what_its_changes_do(records, batches):
    overlay, one_by_one = Overlay(), dict(records)
    for batch in batches:
        overlay.add(batch)
        apply(batch, one_by_one)
    overlay.lay_on(records)
    assert in_order(records) == in_order(one_by_one)


@given(tables, changes)
def test_an_overlay_shows_each_record_as_if_its_changes_were_made(records, batch):
    overlay, below = Overlay(batch), dict(records)
    apply(batch, records)
    assert [overlay.get(key, below) for key in KEYS] == [records.get(key) for key in KEYS]


@given(tables, changes, st.lists(st.tuples(key, record), max_size=6))
def test_upserts_carried_out_together_do_what_they_do_one_by_one(records, before, pairs):
    together = Upserts([key for key, _ in pairs], [record for _, record in pairs])
    below, one_by_one, indexed = Overlay(before), dict(records), IndexedRecords(records)
    index = HashIndex(("value",))
    indexed.keep("value", index)
    below.add(together)
    apply(before, one_by_one)
    apply(pairs, one_by_one)
    for table in (records, indexed):
        apply(before, table)
        apply(together, table)
    assert in_order(records) == in_order(indexed) == in_order(one_by_one)
    assert [below.get(key, {}) for key in KEYS] == [Overlay([*before, *pairs]).get(key, {}) for key in KEYS]
    if "value" in indexed.indexes:
        named = {key for value in range(100) for key in index.find({"value": value})}
        assert named == set(one_by_one)
