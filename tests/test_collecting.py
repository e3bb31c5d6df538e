"""The collector is held off while a table is built, and then is as it was."""

import gc
import os

import pytest

from faulty import held_elsewhere
from microdb import collecting


@pytest.fixture(params=[True, False])
def was_enabled(request):
    before = gc.isenabled()
    (gc.enable if request.param else gc.disable)()
    yield request.param
    (gc.enable if before else gc.disable)()


def test_nothing_is_collected_within_and_then_it_is_as_before(was_enabled):
    with collecting.paused():
        assert not gc.isenabled()
    assert gc.isenabled() == was_enabled


def test_an_error_within_leaves_it_as_before(was_enabled):
    with pytest.raises(ZeroDivisionError), collecting.paused():
        raise ZeroDivisionError
    assert gc.isenabled() == was_enabled


def test_opening_leaves_it_as_before(open_db, was_enabled):
    open_db().upsert({"id": 1})
    assert gc.isenabled() == was_enabled


def test_what_was_made_within_is_not_looked_at_when_it_ends():
    gc.collect()
    if gc.get_freeze_count():
        pytest.skip("this Python, 3.12, has frozen objects of its own, and what is frozen stays so")
    kept = []
    gc.collect()  # It is done only twice between two of these.
    with collecting.paused():
        kept += [[] for _ in range(100_000)]
    old = set(map(id, gc.get_objects(generation=2)))  # A look would have left them among the middle ones.
    assert sum(id(one) in old for one in kept) == 100_000


class Circle:
    alive = 0

    def __init__(self):
        self.me = self
        Circle.alive += 1

    def __del__(self):
        Circle.alive -= 1


@pytest.mark.parametrize("size", [0, 20_000])
def test_who_opens_tables_again_and_again_does_not_keep_its_garbage(size):
    gc.collect()
    most = Circle.alive
    for _ in range(400):
        for _ in range(500):
            Circle()
        with collecting.paused():
            made = [[] for _ in range(size)]
        most = max(most, Circle.alive)
        del made
    assert most < 100_000, "of twice as many"


def test_small_tables_leave_it_to_the_large_one():
    if gc.get_freeze_count():
        pytest.skip("this Python, 3.12, has frozen objects of its own, and what is frozen stays so")
    gc.collect()
    for count in (10, 10, 10, 100_000):
        with collecting.paused():
            kept = [[] for _ in range(count)]
    old = set(map(id, gc.get_objects(generation=2)))
    assert sum(id(one) in old for one in kept) == 100_000


def test_what_the_program_has_frozen_stays_so():
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        with collecting.paused():
            kept = [[] for _ in range(1_000)]
        assert gc.get_freeze_count() == frozen
        assert len(kept) == 1_000
    finally:
        gc.unfreeze()


def forked_with_collector():
    """Whether a child that is forked now may collect."""
    pid = os.fork()
    if pid == 0:
        os._exit(gc.isenabled())
    return bool(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def test_a_child_whose_parent_held_it_off_in_another_thread_collects():
    with held_elsewhere(collecting.paused()):
        assert forked_with_collector()
    assert forked_with_collector()
    with collecting.paused():
        assert not forked_with_collector()
