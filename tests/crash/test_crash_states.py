"""Every crash state, by simulation: see `crash_states` for what is checked against which oracle.

The quick form looks at one state for each step at which a crash may come, and at a few recoveries. The long form looks
at all of them, and at crashes of recoveries from crashes of recoveries. It takes about twenty minutes on one core, in
five tests.
"""

import itertools
import os
from random import Random

import pytest

from crash.crash_states import (
    DEATHS,
    POISONED,
    RUNS,
    Crash,
    Figures,
    bitten,
    failed_fsync,
    first_open,
    flaw,
    look,
    quietly,
    recoveries,
    survivors,
)
from crash.simulated_disk import (
    LONG,
    QUICK,
    Disk,
    Process,
    SimulatedFile,
    at_rest,
    fsyncs_in_code,
    mixtures,
    power_cuts,
)
from microdb.files import OS, File, Files

NEEDED = {
    # The log that a new database begins with, and its name.
    "_begin > create_log: sync aside": "first open",
    "_begin: sync_folder folder": "first open",
    # A snapshot that was edited, and that a log is about to follow.
    "_begin: sync snapshot": "edited in place",
    # What is cut from a log is kept aside first, and once cut does not come back.
    "_cut: sync aside": "torn tail",
    "_cut: sync_folder folder": "torn tail",
    "_cut: sync_data log": "made again",
    # Writes.
    "_write > sync_file: sync_data log": "append, power",
    "sync > sync_file: sync_data log": "append, process",
    # A save: the snapshot, the new log, what was written meanwhile in the old log and in the new one, and both names.
    "_draft > _write_aside: sync aside": "first save",
    "_draft > create_log: sync aside": "first save",
    "_switch > sync_file: sync_data log": "save while others write, process",
    "_follow: sync aside": "save while others write, power",
    "_switch: sync_folder folder": "first save",
    "_switch: sync_folder parent": "first save",
    # A save whose process died between its last rename and the fsync: found by the next to open, and by one alive.
    "apply: sync_folder parent": "saver died",
    "_finish_save: sync_folder parent": "a save",
    # A snapshot elsewhere.
    "export > _write_aside: sync aside": "export",
    "export: sync_folder parent": "export",
}
"""Every fsync without which something acknowledged is lost, or a database no longer opens; and what shows it."""

NOT_NEEDED = {
    "attach: sync_folder parent": "recovery, which follows at once, fsyncs the same folder before a log is begun",
    "create: sync header": "the page is made anew after a power cut; this gives it its blocks, or an error, at once",
    "_draft > sync_file: sync_data log": "it is done again under the write lock, which then is held for less long",
    "_finish_save: sync_folder folder": "a log that was never published and comes back is known as such, and removed",
}
"""Every other fsync, and why it stands."""


@pytest.fixture(autouse=True)
def _quietly():
    with quietly():
        yield


@pytest.fixture
def random(seed):
    return Random(seed)


def good(figures):
    assert figures.states
    assert not figures.bad, figures.told()


# The disk.


def test_the_simulated_disk_has_every_method_of_the_door():
    inherited = {"open_if_exists", "read_all", "digest"}  # Made of the others.
    for double, real in ((Process, Files), (SimulatedFile, File)):
        methods = {name for name in vars(real) if not name.startswith("_")}
        assert methods - vars(double).keys() - inherited == set()


def everything(files, folder):
    """What one reads after one of everything that a door does."""
    at = [os.path.join(folder, name) for name in "abc"]
    found = [files.make_folder(at[0]), files.make_folder(at[0]), files.open_if_exists(at[1]), files.identity(at[1])]
    file = files.create(os.path.join(at[0], "file"))
    file.write_at(b"one two three", 0)
    file.write_at(b"TWO", 4)
    file.write_at(b"far", 20)
    file.sync()
    file.truncate(22)
    file.sync_data()
    files.rename(file.path, at[1])
    files.open(at[2], create=True).close()
    files.sync_folder(at[0])
    files.unlink(at[2])
    files.unlink(at[2])
    found += [files.names(folder), files.names(at[0]), files.identity(at[1]).size]
    found += [file.read_all(), file.read_at(3, 4), file.size(), file.digest(8), len(files.boot_id())]
    for call, path in ((files.open, at[2]), (files.create, at[1]), (files.make_folder, at[1])):
        with pytest.raises(OSError) as caught:
            call(path)
        found.append(type(caught.value))
    return found


def test_the_simulated_disk_does_what_the_real_one_does(tmp_path):
    assert everything(Process(Disk("/disk")), "/disk") == everything(OS, str(tmp_path))


def test_what_was_not_fsynced_may_be_gone_and_what_was_stays(tmp_path, random):
    disk = Disk(tmp_path)
    files = Process(disk)
    file = files.create(str(tmp_path / "a"))
    file.write_at(b"1234", 0)
    left = [state.tree() for _, state in power_cuts(disk.state, QUICK, random)]
    assert {} in left
    for content in (b"", b"12", b"1234", bytes(4)):
        assert {"a": content} in left
    file.sync()
    assert {} in [state.tree() for _, state in power_cuts(disk.state, QUICK, random)]
    files.sync_folder(str(tmp_path))
    assert [state.tree() for _, state in power_cuts(disk.state, QUICK, random)] == [{"a": b"1234"}]


# The quick form.


@pytest.mark.parametrize("name", RUNS)
def test_after_a_crash_anywhere_what_was_acknowledged_is_there(tmp_path, random, name):
    good(look(RUNS[name](tmp_path), QUICK, random, per_point=1))


@pytest.mark.parametrize("name", POISONED)
def test_after_a_failed_fsync_and_a_power_cut_what_was_acknowledged_is_there(tmp_path, random, name):
    good(look(POISONED[name](tmp_path), QUICK, random, per_point=1))


@pytest.mark.parametrize("name", DEATHS)
def test_after_a_death_a_process_that_lives_goes_on_and_makes_it_durable(tmp_path, random, name):
    figures = Figures()
    for run in itertools.islice(survivors(tmp_path, name), None, None, 3):
        figures += look(run, QUICK, random, per_point=1, kinds=["cut"])
    good(figures)


@pytest.mark.parametrize("name", ["first open", "save", "append by turns"])
def test_recovery_may_crash_and_so_may_the_recovery_from_that(tmp_path, random, name):
    figures = Figures()
    for once in recoveries(RUNS[name](tmp_path), QUICK, random, per_way=1, most=4):
        figures += look(once, QUICK, random, per_point=1)
        for twice in recoveries(once, QUICK, random, per_way=1, most=1):
            figures += look(twice, QUICK, random, per_point=1)
    good(figures)


def test_after_a_power_cut_no_word_of_the_page_is_relied_on(tmp_path):
    run = first_open(tmp_path)
    rest = at_rest(run.disk.state)
    number, page = next((number, file) for number, file in run.disk.files.items() if file.is_page)
    for content in mixtures(page):
        state = rest._replace(files={**rest.files, number: rest.files[number]._replace(live=content)})
        reason, _ = flaw(Crash(run, run.count, "power cut", state, [run.tables[-1]]))
        assert reason is None


@pytest.mark.parametrize("fsync", NEEDED)
def test_without_one_fsync_something_is_lost(tmp_path, random, fsync):
    name = NEEDED[fsync]
    if name in RUNS:
        assert bitten([RUNS[name](tmp_path, ignored=fsync)], fsync, random)
    else:
        assert bitten(survivors(tmp_path, name, ignored=fsync), fsync, random)


def test_every_fsync_is_known(tmp_path):
    runs = [make(tmp_path) for make in RUNS.values()]
    runs += [run for name in DEATHS for run in survivors(tmp_path, name)]
    made = {step.fsync for run in runs for step in run.disk.steps} - {None}
    assert made == NEEDED.keys() | NOT_NEEDED.keys()
    reached = set().union(*(run.disk.reached for run in runs))
    assert set(fsyncs_in_code()) == reached, "each is made by some run"


# The long form.


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_crash_state(tmp_path, random):
    """Ten minutes on a machine that was busy with other things."""
    figures = Figures()
    for make in (*RUNS.values(), *POISONED.values()):
        figures += look(make(tmp_path), LONG, random)
    print(f"figures: {figures}")
    good(figures)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_crash_state_after_each_fsync_that_may_fail(tmp_path, random):
    """Two minutes."""
    figures = Figures()
    runs = itertools.takewhile(lambda run: run is not None, (failed_fsync(n, tmp_path) for n in itertools.count(1)))
    for run in runs:
        figures += look(run, LONG, random)
    print(f"figures: {figures}")
    good(figures)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_crash_state_after_a_death_while_another_process_lives(tmp_path, random):
    """Two minutes."""
    figures = Figures()
    for name in DEATHS:
        for run in survivors(tmp_path, name):
            figures += look(run, LONG, random)
    print(f"figures: {figures}")
    good(figures)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_crashes_of_recoveries_from_crashes_of_recoveries(tmp_path, random):
    """Ten minutes."""
    figures = [Figures() for _ in range(3)]
    for make in RUNS.values():
        for once in recoveries(make(tmp_path), LONG, random, per_way=20, most=600):
            figures[0] += look(once, QUICK, random)
        for once in recoveries(make(tmp_path), QUICK, random, per_way=2, most=40):
            for twice in recoveries(once, QUICK, random, per_way=1, most=10):
                figures[1] += look(twice, QUICK, random)
                for thrice in recoveries(twice, QUICK, random, per_way=1, most=1):
                    figures[2] += look(thrice, QUICK, random, per_point=2)
    for times, one in enumerate(figures, 1):
        print(f"figures: {times} deep: {one}")
        good(one)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_without_an_fsync_that_is_not_needed_nothing_is_lost(tmp_path, random):
    """Two minutes. If one is found to be needed after all, it belongs into the other list."""
    figures = Figures()
    for fsync in NOT_NEEDED:
        runs = [make(tmp_path, ignored=fsync) for make in RUNS.values()]
        runs += [run for name in DEATHS for run in survivors(tmp_path, name, ignored=fsync)]
        for run in runs:
            if any(step.fsync == fsync for step in run.disk.steps):
                figures += look(run, LONG, random)
    print(f"figures: {figures}")
    good(figures)
