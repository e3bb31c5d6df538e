"""Death before every system call and store, and inside every write: nothing acknowledged is lost, no batch is half.

By default a few moments of each scenario, chosen at random; the long form takes them all, with and without a handle
that is open all the time. It takes about ten minutes, less with `--basetemp` on a tmpfs, and prints its figures.
"""

import itertools
import random
import shutil

import pytest

from crash.syscall_kills import PARTS, SCENARIOS, Call, Laboratory, Scenario, Store, Write, compiled, nursed

by_scenario = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name.replace(" ", "_"))

SAVE = next(scenario for scenario in SCENARIOS if scenario.name == "save")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """half_write.c, compiled; None without a compiler."""
    return compiled(tmp_path_factory.mktemp("half_write")) if shutil.which("gcc") else None


@pytest.fixture(scope="module")
def nursery(library, tmp_path_factory):
    with nursed(tmp_path_factory.mktemp("nursery"), library) as pipe:
        yield pipe


@pytest.fixture
def lab(nursery, tmp_path):
    return Laboratory(tmp_path, nursery)


@pytest.fixture
def _gcc(library):
    if library is None:
        pytest.skip("gcc is not installed")


def ways(scenario):
    """Without anybody alive, and with a handle that is open all the time: where there is a database to open."""
    return [False] if scenario.is_new else [False, True]


def moments(lab, scenario, *, is_watched=False):
    names, _ = lab.calls(scenario, is_watched=is_watched)
    return [Call(name, k) for name in sorted(names) for k in range(1, names[name] + 1)]


@pytest.mark.usefixtures("_strace")
def test_strace_kills_before_the_call_and_not_behind_it(lab):
    before = Scenario("a new one", (("open",),), is_new=True)
    assert lab.trial(before, Call("mkdir", 1), is_watched=False)
    assert lab.left_behind == []
    assert not lab.trial(before, Call("mkdir", 2), is_watched=False)
    assert lab.left_behind == ["mdb.json.wal"]


@by_scenario
@pytest.mark.usefixtures("_strace")
def test_who_dies_before_a_system_call_loses_nothing_acknowledged(lab, seed, scenario):
    rng = random.Random(seed)
    moment = Call(rng.choice(["flock", "pwrite64", "close", "openat"]), rng.randrange(1, 4))
    lab.trial(scenario, moment, is_watched=rng.choice(ways(scenario)))


@by_scenario
def test_who_dies_before_a_store_to_the_page_loses_nothing_acknowledged(lab, seed, scenario):
    rng = random.Random(seed)
    lab.trial(scenario, Store(rng.randrange(1, 9)), is_watched=rng.choice(ways(scenario)))


@by_scenario
@pytest.mark.usefixtures("_gcc")
def test_who_dies_inside_a_write_loses_nothing_acknowledged(lab, seed, scenario):
    rng = random.Random(seed)
    lab.trial(scenario, Write(rng.randrange(1, 3), rng.choice(list(PARTS))), is_watched=rng.choice(ways(scenario)))


@pytest.mark.usefixtures("_strace", "_gcc")
def test_every_write_that_the_kernel_sees_may_be_the_last(lab):
    _, writes = lab.calls(SAVE)
    assert lab.trial(SAVE, Write(writes, "half"), is_watched=False)
    assert not lab.trial(SAVE, Write(writes + 1, "half"), is_watched=False)


@pytest.mark.long
@pytest.mark.timeout(900)
@by_scenario
@pytest.mark.usefixtures("_strace")
def test_who_dies_before_any_system_call_loses_nothing_acknowledged(lab, scenario):
    for is_watched in ways(scenario):
        for moment in moments(lab, scenario, is_watched=is_watched):
            lab.trial(scenario, moment, is_watched=is_watched)
    print(f"{scenario.name}, before each system call: {lab.figures()}")
    assert lab.ended <= lab.kills / 10, "too few were killed: what calls there are was not what was counted"


@pytest.mark.long
@pytest.mark.timeout(900)
@by_scenario
def test_who_dies_before_any_store_to_the_page_loses_nothing_acknowledged(lab, scenario):
    for is_watched in ways(scenario):
        for k in itertools.count(1):
            if not lab.trial(scenario, Store(k), is_watched=is_watched):
                break
    print(f"{scenario.name}, before each store: {lab.figures()}")


@pytest.mark.long
@pytest.mark.timeout(900)
@by_scenario
@pytest.mark.usefixtures("_gcc")
def test_who_dies_inside_any_write_loses_nothing_acknowledged(lab, scenario):
    for is_watched, part in itertools.product(ways(scenario), PARTS):
        for k in itertools.count(1):
            if not lab.trial(scenario, Write(k, part), is_watched=is_watched):
                break
    print(f"{scenario.name}, inside each write: {lab.figures()}")
