import threading

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from microdb.changes import CLEAR
from microdb.table import apply
from microdb.transaction import Transaction

KEYS = [(number,) for number in range(6)]

key = st.sampled_from(KEYS)
value = st.integers(0, 99)


def upsert_of(key, value):
    return key, {"id": key[0], "value": value}


change = st.builds(upsert_of, key, value) | key.map(lambda key: (key, None)) | st.just(CLEAR)
tables = st.dictionaries(key, value, max_size=6).map(lambda found: dict(upsert_of(*item) for item in found.items()))


def encoded(changes):
    """Something in the place of bytes, to be told apart."""
    return [repr(change).encode() for change in changes]


def applied(changes, records):
    """The table as it should be: a copy, with the changes carried out one by one."""
    found = dict(records)
    for key, record in changes:
        if key is None:
            found = {}
        elif record is None:
            found.pop(key, None)
        else:
            found[key] = record
    return found


class View(RuleBasedStateMachine):
    """A transaction beside a list of changes that knows nothing."""

    @initialize(records=tables)
    def begin(self, records):
        self.records = records
        self.before = dict(records)
        self.transaction = Transaction(records)
        self.changes = []

    @property
    def expected(self):
        return applied(self.changes, self.before)

    @rule(changes=st.lists(change, max_size=4))
    def add(self, changes):
        self.transaction.add(changes, encoded(changes))
        self.changes = self.changes + changes

    @rule(data=st.data())
    def rewind(self, data):
        length = data.draw(st.integers(0, len(self.changes)))
        self.transaction.rewind(length)
        self.changes = self.changes[:length]

    @rule(records=tables)
    def rebase(self, records):
        self.transaction.rebase(records)
        self.records, self.before = records, dict(records)

    @rule(changes=st.lists(change, max_size=3))
    def rebase_after_a_change_in_place(self, changes):
        apply(changes, self.records)
        self.before = dict(self.records)
        self.transaction.rebase(self.records)

    @rule(key=key)
    def get(self, key):
        assert self.transaction.get(key) == self.expected.get(key)

    @rule()
    def whole(self):
        assert list(self.transaction.whole().items()) == list(self.expected.items())

    @invariant()
    def keeps_the_changes_in_order(self):
        if hasattr(self, "transaction"):
            assert self.transaction.pairs == list(zip(self.changes, encoded(self.changes), strict=True))

    @invariant()
    def leaves_the_table_below_alone(self):
        if hasattr(self, "transaction"):
            assert list(self.records.items()) == list(self.before.items())

    def teardown(self):
        if hasattr(self, "transaction"):
            assert {key: self.transaction.get(key) for key in KEYS} == {key: self.expected.get(key) for key in KEYS}
            self.whole()


TestView = View.TestCase


@given(st.lists(change, max_size=10), tables)
def test_apply_does_what_the_changes_say_one_by_one(changes, records):
    expected = applied(changes, records)
    apply(changes, records)
    assert list(records.items()) == list(expected.items())


@given(tables, st.lists(change, min_size=1, max_size=6), st.data())
def test_the_view_is_the_same_whether_or_not_the_whole_was_read_before(records, changes, data):
    early, late = Transaction(records), Transaction(records)
    early.whole()
    for each in changes:
        for transaction in (early, late):
            transaction.add([each], encoded([each]))
    length = data.draw(st.integers(0, len(changes)))
    early.rewind(length)
    late.rewind(length)
    assert list(early.whole().items()) == list(late.whole().items()) == list(applied(changes[:length], records).items())


def test_a_deleted_record_that_comes_back_goes_to_the_end():
    transaction = Transaction({(1,): {"id": 1}, (2,): {"id": 2}})
    transaction.add([((1,), None), ((1,), {"id": 1})], [b"", b""])
    assert list(transaction.whole()) == [(2,), (1,)]


def test_a_transaction_belongs_to_the_thread_that_began_it():
    transaction = Transaction({})
    found = []
    thread = threading.Thread(target=lambda: found.append(transaction.is_mine()))
    thread.start()
    thread.join()
    assert (transaction.is_mine(), transaction.is_inherited(), found) == (True, False, [False])
