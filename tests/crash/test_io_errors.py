"""Errors of the disk at every call: what was acknowledged is there, all agree, and the database works again after.

The quick form draws faults by the seed; the long one runs all, about 15,000 at the door in eight minutes, and as
many in system calls, in ten.
"""

import random

import pytest

from bad_input_children import Peer
from children import spawned
from crash.crash_states import look, quietly
from crash.io_errors import compile_shim
from crash.io_lab import fail_system_calls, lab
from crash.io_power import Lies, after_errors, look_at_lies, on_liar
from crash.io_scenarios import IN_SYSTEM_CALLS, SCENARIOS
from crash.simulated_disk import LONG, QUICK

every_scenario = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
every_scenario_in_system_calls = pytest.mark.parametrize("name", [scenario.name for scenario in IN_SYSTEM_CALLS])


@pytest.fixture(scope="module")
def peers():
    with Peer() as live, Peer() as fresh:
        yield live, fresh


def check(injected, wrong):
    print(f"figures: {injected:,} errors injected, {len(wrong)} wrong outcomes")
    assert not wrong, "\n".join(["", *wrong])


# Errors at the door.


def test_whatever_call_at_the_door_fails_all_agree_and_it_works_again(tmp_path, seed, peers):
    found = lab(tmp_path, peers)
    found.sample(SCENARIOS, 16, random.Random(seed))
    check(found.injected, found.wrong)
    assert found.injected > 8


@pytest.mark.long
@every_scenario
def test_every_call_at_the_door_fails_with_every_error(tmp_path, scenario, peers):
    found = lab(tmp_path, peers)
    found.sweep(scenario, all_first=True)
    check(found.injected, found.wrong)
    assert found.injected > 50


# Errors of system calls.


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    try:
        return compile_shim(tmp_path_factory.mktemp("shim"))
    except FileNotFoundError:
        pytest.skip("there is no C compiler (gcc)")


@pytest.fixture
def in_system_calls(tmp_path, shim, monkeypatch):
    """Run scenarios in a process with the shim."""

    def _run(*chosen):
        monkeypatch.setenv("LD_PRELOAD", str(shim))
        with spawned((fail_system_calls, str(tmp_path), *chosen)) as ((pipe,), _):
            told = pipe.recv()
        assert told[0] != "error", told[1]
        check(*told)
        return told[0]

    return _run


def test_whatever_system_call_fails_all_agree_and_it_works_again(in_system_calls, seed):
    names = [scenario.name for scenario in IN_SYSTEM_CALLS]
    assert in_system_calls(names, 8, seed) > 3


@pytest.mark.long
@every_scenario_in_system_calls
def test_every_system_call_fails_with_every_error(in_system_calls, name):
    assert in_system_calls([name]) > 30


# Power cuts after errors.


@pytest.fixture
def simulated(tmp_path):
    """A folder for simulated disks; the lock of a save is a real file."""
    (tmp_path / "mdb.json.wal").mkdir()
    with quietly():
        yield tmp_path


def check_power_cuts(folder, faults, effort, random, per_point):
    runs = states = 0
    for at in faults:
        run, met = after_errors(at, folder)
        if met:
            found = look(run, effort, random, per_point=per_point, kinds=("cut",))
            assert not found.bad, found.told()
            runs, states = runs + 1, states + found.states
    print(f"figures: power cut after {runs:,} runs with errors, {states:,} states, 0 wrong")
    return runs


def test_a_power_cut_after_errors_takes_nothing_that_was_acknowledged_as_durable(simulated, seed):
    chance = random.Random(seed)
    faults = [(first, first + chance.randrange(1, 6)) for first in chance.sample(range(1, 20), 2)]
    assert check_power_cuts(simulated, faults, QUICK, chance, 1)


@pytest.mark.long
def test_a_power_cut_after_any_one_error_or_two_takes_nothing_that_was_acknowledged_as_durable(simulated, seed):
    faults = [(first, *second) for first in range(1, 90) for second in ((), *((first + n,) for n in range(1, 12)))]
    assert check_power_cuts(simulated, faults, QUICK, random.Random(seed), 2) > 200


# Disks that lie.


def check_lies(folder, lies, random, **options):
    found = Lies()
    for one in lies:
        found += look_at_lies(on_liar(folder, one), LONG, random, **options)
    print(f"figures: power cuts after lies: {found}")
    assert not found.wrong, "\n".join(found.wrong[:3])
    return found


def always(number):
    return True


def test_after_an_fsync_that_lied_the_table_is_one_that_was_or_the_loss_is_noticed(simulated, seed):
    chance = random.Random(seed)
    assert any(check_lies(simulated, [always] * 2, chance, points=5, per_point=1, out_of=100)[:3])


@pytest.mark.long
def test_after_any_fsync_that_lied_the_table_is_one_that_was_or_the_loss_is_noticed(simulated, seed):
    count = on_liar(simulated, None).disk.told
    once = [lambda number, lie=lie: number == lie for lie in range(1, count + 1)]
    ever_after = [lambda number, lie=lie: number >= lie for lie in range(1, count + 1)]
    found = check_lies(simulated, once + ever_after, random.Random(seed), points=1000, per_point=4, out_of=5000)
    assert found.back
    assert found.refused
