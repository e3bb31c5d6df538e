import copy

from hypothesis import given
from hypothesis import strategies as st

from microdb import snapshot
from microdb.keys import PartitionKeys
from microdb.values import Nested, checked, is_sound, kept, stored
from microdb.wal.codec import decode, encode_delete, encode_upsert, join
from strategies import names, records, same, values

KEYS = PartitionKeys(["no field of any record", "nor this"])


def through_log(table):
    """What another process stores of these records."""
    changes = decode(join([encode_upsert(record) for record in table]), KEYS)
    assert all(same(key, KEYS.of(record)) for (key, _), record in zip(changes, table, strict=True))
    return [record for _, record in changes]


def through_list(table):
    return snapshot.decode(b"".join(snapshot.encode_list(table)), "mdb.json")


def through_grid(table):
    return snapshot.decode(b"".join(snapshot.encode_grid(table)), "mdb.json")


def copies(table):
    """What readers get of stored records: plain dicts."""
    found = [record.copy() for record in table]
    assert {type(record) for record in found} <= {dict}
    return found


def is_hashable(value):
    try:
        hash(value)
    except TypeError:
        return False
    return True


def tables():
    return st.lists(records(), max_size=3)


def grids():
    """Records that share their fields and the order of them, which is all that a grid keeps."""
    return st.lists(names(), unique=True, min_size=1, max_size=3).flatmap(
        lambda fields: st.lists(
            st.tuples(*[values()] * len(fields)).map(lambda row: dict(zip(fields, row, strict=True))), max_size=3
        )
    )


def with_mutations(value):
    """Change everything mutable in a value, at every depth."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    for item in list(items):
        with_mutations(item)
    if isinstance(value, list):
        value.append("changed")
    elif isinstance(value, set):
        value.add("changed")
    elif isinstance(value, dict):
        value["changed"] = "changed"


@given(records())
def test_what_is_stored_is_the_same_as_what_was_given(record):
    assert same(stored(record), record)
    assert same(checked(record), record)
    assert same(stored(record).copy(), record)


@given(records())
def test_what_is_stored_is_independent_of_what_was_given_and_of_what_is_read(record):
    before = copy.deepcopy(record)
    kept = stored(record)
    with_mutations(record)
    assert same(kept, before)
    read = kept.copy()
    with_mutations(read)
    assert same(kept, before)
    assert same(kept.copy(), before)


@given(tables())
def test_what_the_log_gives_back_is_the_same(table):
    assert same(copies(through_log([stored(record) for record in table])), table)


@given(tables())
def test_what_the_log_gives_back_is_stored_as_it_was_by_the_writer(table):
    kept = [stored(record) for record in table]
    assert list(map(type, through_log(kept))) == list(map(type, kept))


@given(tables())
def test_the_log_does_not_care_whether_a_record_was_stored_or_is_plain(table):
    assert [encode_upsert(record) for record in table] == [encode_upsert(Nested(record)) for record in table]


@given(tables())
def test_what_comes_through_the_log_and_then_a_list_is_the_same(table):
    assert same(copies(through_list(through_log([stored(record) for record in table]))), table)


@given(tables())
def test_what_comes_through_a_list_and_then_the_log_is_the_same(table):
    assert same(copies(through_log(through_list([stored(record) for record in table]))), table)


@given(grids())
def test_what_comes_through_the_log_and_then_a_grid_is_the_same(table):
    assert same(copies(through_grid(through_log([stored(record) for record in table]))), table)


@given(grids())
def test_what_comes_through_every_format_in_turn_is_the_same(table):
    assert same(copies(through_log(through_grid(through_list(through_log(table))))), table)


@given(st.lists(values().filter(is_hashable), min_size=1, max_size=3))
def test_the_key_of_a_delete_is_the_same(key):
    [(found, record)] = decode(join([encode_delete(tuple(key))]), KEYS)
    assert record is None
    assert same(found, tuple(key))


@given(st.lists(records()))
def test_records_that_are_kept_together_are_as_if_stored_one_by_one(found):
    taken = kept([record.copy() for record in found])
    assert taken is not None or not all(map(is_sound, found))
    for one, record in zip(taken or (), found, strict=taken is not None):
        assert same(one, record)
        assert type(one) is type(stored(record))
