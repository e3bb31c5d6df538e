"""What many processes do at once, killed and stopped at random, is as if they had done it one after the other."""

import itertools
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crash.histories import Plan, judge, plans, record
from crash.linearizability import ABSENT, Operation, UndecidedError, apart, linearization, violations

# Real histories.

QUICK = [
    Plan(2, 1, 60, kills=2),
    Plan(2, 4, 15, kills=1),
    Plan(8, 1, 15, inherited=True, kills=2),
]


@pytest.mark.parametrize(
    "plan", QUICK, ids=["2 processes", "2 processes of 4 threads", "8 forks of one that has it open"]
)
def test_what_processes_do_while_others_are_killed_and_stopped_is_linearizable(tmp_path, seed, plan):
    history = record(tmp_path / "history", plan, seed)
    assert judge(history, effort=300_000)
    assert len(history.operations) > 100
    assert history.acknowledged


@pytest.mark.long  # Ten minutes.
def test_200_histories_of_200_operations_and_more_are_linearizable(tmp_path, seed):
    totals, whole, operations, unknown = [0, 0, 0], 0, 0, 0
    chosen = [*plans(260)] * 9
    for number, plan in enumerate(chosen):
        history = record(tmp_path / str(number), plan, seed + number)
        assert len(history.operations) >= 200
        whole += judge(history)
        operations += len(history.operations)
        unknown += sum(one.returned is None for one in history.operations)
        totals = [a + b for a, b in zip(totals, history[-3:], strict=True)]
    killed, stopped, saves = totals
    print(
        f"figures: {len(chosen)} histories, {whole} of them judged as a whole, {operations:,} operations, {unknown} "
        f"of unknown outcome, {killed} killed, {stopped} stopped, {saves:,} saves, 0 violations"
    )
    assert whole > len(chosen) // 2
    assert killed > len(chosen)


# The checker.


def simulated(random, *, clients, count):
    """A history that is linearizable: each operation takes place at one moment between its invocation and its return.

    Now and then a client dies in an operation, before that moment or after it.
    """
    state, history, now = {}, [], 0
    free = [0] * clients
    for _ in range(count):
        client = random.randrange(clients)
        now = max(now, free[client]) + random.randrange(1, 10)
        invoked, returned = random.randint(free[client] + 1, now), now + random.randrange(10 * clients)
        keys = random.sample("abcd", random.choice([1, 1, 1, 2]))
        writes = {key: random.choice([ABSENT, now, now]) for key in keys if random.random() < 0.6}
        reads = {key: state.get(key, ABSENT) for key in keys if key not in writes or random.random() < 0.5}
        dies, is_made = random.random() < 0.05, random.random() < 0.5
        if not dies or is_made:
            state |= writes
        history.append(Operation(invoked, None, {}, writes) if dies else Operation(invoked, returned, reads, writes))
        free[client] = returned
    return history, max(free) + 1


@pytest.mark.parametrize("clients", [2, 8, 16])
def test_a_valid_history_with_unknown_outcomes_passes(seed, clients):
    random = Random(seed)
    for _ in range(5):
        history, _ = simulated(random, clients=clients, count=120)
        random.shuffle(history)
        assert violations(history) == []
        assert violations(apart(history)) == []


def _in_turn(*operations):
    """Operations of which each began after the one before had ended, as (reads, writes)."""
    return [Operation(10 * i, 10 * i + 5, *operation) for i, operation in enumerate(operations)]


PLANTED = {
    "a stale read": _in_turn(({}, {"x": 1}), ({}, {"x": 2}), ({"x": 1}, {})),
    "a lost write": _in_turn(({}, {"x": 1}), ({}, {"y": 1}), ({"x": ABSENT}, {})),
    "writes in another order for one who reads later": _in_turn(
        ({}, {"x": 1}), ({}, {"x": 2}), ({"x": 2}, {}), ({"x": 1}, {})
    ),
    "writes at the same time, seen in two orders": [
        Operation(0, 9, {}, {"x": 1}),
        Operation(0, 9, {}, {"x": 2}),
        Operation(1, 2, {"x": 1}),
        Operation(1, 2, {"x": 2}),
        Operation(3, 4, {"x": 1}),
        Operation(5, 6, {"x": 2}),
    ],
    "half a transaction": _in_turn(
        ({}, {"x": 1, "y": 1}), ({"x": 1, "y": 1}, {"x": 2, "y": 2}), ({"x": 2, "y": 1}, {})
    ),
    "half a transaction that died": [
        *_in_turn(({}, {"x": 1, "y": 1})),
        Operation(7, None, {}, {"x": 2, "y": 2}),
        Operation(8, 9, {"x": 2, "y": 1}),
    ],
    "a record that is back after its deletion": _in_turn(
        ({}, {"x": 1}), ({"x": 1}, {"x": ABSENT}), ({"x": ABSENT}, {}), ({"x": 1}, {})
    ),
    "a record that two have popped": _in_turn(
        ({}, {"x": 1}), ({"x": 1}, {"x": ABSENT}), ({"x": 1}, {"x": ABSENT}), ({"x": ABSENT}, {})
    ),
    "an increment that another one undid": _in_turn(
        ({"x": ABSENT}, {"x": 1}), ({"x": 1}, {"x": 2}), ({"x": 1}, {"x": "2 too"}), ({"x": "2 too"}, {})
    ),
    "a write of unknown outcome, made and undone": [
        Operation(0, None, {}, {"x": 1}),
        Operation(1, 2, {"x": 1}),
        Operation(3, 4, {"x": ABSENT}),
    ],
    "a value that nobody wrote": _in_turn(({"x": 1}, {})),
    "a read of what was written only later": _in_turn(({"x": 1}, {}), ({}, {"x": 1})),
    "one moment of which each key alone is right": [
        *_in_turn(({}, {"x": 1}), ({}, {"y": 1}), ({"x": 1}, {})),
        Operation(0, 30, {"x": ABSENT, "y": 1}),
    ],
}


@pytest.mark.parametrize("what", PLANTED)
def test_the_checker_finds(what):
    assert violations(PLANTED[what])


@pytest.mark.parametrize("what", PLANTED)
def test_the_checker_finds_among_much_that_is_right(what, seed):
    random = Random(seed)
    history, end = simulated(random, clients=8, count=100)
    planted = [
        one._replace(invoked=one.invoked + end, returned=one.returned and one.returned + end) for one in PLANTED[what]
    ]
    assert violations(history) == []
    assert len(violations([*history, *planted])) == 1


def test_an_operation_that_never_returned_may_take_place_late_or_not_at_all():
    late = [Operation(0, None, {}, {"x": 1}), Operation(1, 2, {"x": ABSENT}), Operation(3, 4, {"x": 1})]
    assert violations(late) == []
    assert violations(late[:2]) == []
    assert violations([late[0]._replace(returned=1), *_in_turn(({"x": ABSENT}, {}), ({"x": ABSENT}, {}))[1:]])


def test_a_read_of_several_groups_of_keys_is_taken_apart():
    moment = PLANTED["one moment of which each key alone is right"]
    assert violations(moment)
    assert violations(apart(moment)) == []


def test_a_search_that_takes_too_long_is_given_up():
    together = [Operation(0, 100, {}, {"x": i % 3, "y": i}) for i in range(20)]
    with pytest.raises(UndecidedError, match="after 50 steps"):
        violations([*together, Operation(0, 50, {"x": 0, "y": 1})], effort=50)


def _is_explained(order):
    """Whether operations, one by one in this order, give the results that they gave."""
    state = {}
    for one in order:
        if any(state.get(key, ABSENT) != value for key, value in one.reads.items()):
            return False
        state.update(one.writes)
    pairs = itertools.combinations(order, 2)
    return not any(late.returned is not None and late.returned < early.invoked for early, late in pairs)


def _by_brute_force(history):
    """Whether any order of those that returned, and of any of those that did not, explains them all."""
    returned = [one for one in history if one.returned is not None]
    unknown = [one for one in history if one.returned is None]
    chosen = (some for count in range(len(unknown) + 1) for some in itertools.combinations(unknown, count))
    return any(_is_explained(order) for some in chosen for order in itertools.permutations([*returned, *some]))


@st.composite
def tiny_histories(draw):
    """One after the other, but for intervals that overlap; in about a quarter of the reads, anything."""
    history, state, now = [], {}, 0
    for number in range(draw(st.integers(1, 5))):
        now += draw(st.integers(0, 3))
        keys = draw(st.sampled_from(["a", "b", "ab"]))
        writes = {key: draw(st.sampled_from([number, number, 0, ABSENT])) for key in keys if draw(st.booleans())}
        reads = {key: state.get(key, ABSENT) for key in keys if draw(st.booleans())}
        if draw(st.integers(0, 3)) == 0:
            reads = {key: draw(st.sampled_from([0, 1, 2, ABSENT])) for key in reads}
        invoked, returned = max(now - draw(st.integers(0, 8)), 0), now + draw(st.integers(0, 8))
        if draw(st.integers(0, 3)) == 0:
            reads, returned = {}, None
        if returned is not None or draw(st.booleans()):
            state |= writes
        history.append(Operation(invoked, returned, reads, writes))
    return draw(st.permutations(history))


@given(tiny_histories())
@settings(max_examples=60)
def test_the_checker_agrees_with_brute_force(history):
    order, _ = linearization(history)
    assert (order is not None) == _by_brute_force(history)
    assert order is None or _is_explained(order)
    assert (order is not None) == (not violations(history)), "keys that nothing touches together are checked apart"
    assert order is None or not violations(apart(history))
