"""The parts of the benchmark that only compute: without peers, so that they are tested wherever microdb is."""

import collections
import importlib.util
import random
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "benchmarks"


def _package():
    """The package `benchmarks`, without the folder above it on the path: what is tested is the installed microdb."""
    if "benchmarks" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "benchmarks", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        sys.modules["benchmarks"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["benchmarks"])


_package()

from benchmarks import __main__ as command  # noqa: E402 - The path to it stands above.
from benchmarks import contest, data, draws, report, results, targets  # noqa: E402 - As above.

# Results.


def test_a_value_is_the_median_with_its_quartiles():
    assert results.value([5, 1, 3, 2, 4]) == (3, 2, 4)
    assert results.value([7]) == (7, 7, 7)


def test_a_ratio_is_taken_within_each_round():
    """A round in which the machine was slow counts as any other: the ratio of the medians would be 6 here."""
    assert results.ratio([2, 20, 6], [1, 10, 1]).median == 2


def test_results_survive_json():
    result = results.Result("read", 1_000, "records", "s", {"a": [1.5, 2.0]}, {"b": "gone"}, {"seconds": 0.1})
    assert report.loaded(report.dumped([result], {"cores": "2"})) == ([result], {"cores": "2"})


# Rounds.


def test_every_contestant_runs_once_a_round_in_another_order():
    ran = []
    names = "abcdef"
    costs, failed = contest.run_rounds({name: lambda name=name: ran.append(name) or 1.0 for name in names}, 8)
    by_round = [ran[first : first + len(names)] for first in range(0, len(ran), len(names))]
    assert [sorted(order) for order in by_round] == [list(names)] * 8
    assert len({tuple(order) for order in by_round}) > 1
    assert (costs, failed) == ({name: [1.0] * 8 for name in names}, {})


def test_who_did_not_do_the_work_is_out_and_the_others_go_on():
    def cheat():
        raise AssertionError("the record is not there")

    costs, failed = contest.run_rounds({"cheat": cheat, "honest": lambda: 2.0}, 3)
    assert costs == {"honest": [2.0] * 3}
    assert failed == {"cheat": "failed: AssertionError: the record is not there"}


def test_a_measurement_makes_as_many_operations_as_the_time_holds():
    counts = []

    def run(count):
        counts.append(count)
        return count * 1e-4

    measure = contest.cost_of(run, 0.2)
    assert measure() == pytest.approx(1e-4)
    assert measure() == pytest.approx(1e-4)
    assert counts[-2:] == [2_000, 2_000]


# Draws.


@pytest.mark.parametrize("draw", [draws.uniform, draws.zipfian, draws.latest])
def test_a_draw_stays_within_its_bounds_and_is_the_same_for_the_same_seed(draw):
    drawn = draw(50, 5_000, random.Random(1))
    assert (min(drawn), max(drawn), len(drawn)) == (0, 49, 5_000)
    assert drawn == draw(50, 5_000, random.Random(1))


def test_zipfian_draws_follow_the_law():
    counts = [count for _, count in collections.Counter(draws.zipfian(1_000, 200_000, random.Random(1))).most_common()]
    for rank in (2, 4, 8, 16):
        assert counts[0] / counts[rank - 1] == pytest.approx(rank**draws.ZIPF_EXPONENT, rel=0.1)


def test_what_is_popular_lies_scattered_and_is_the_same_for_all():
    one, other = (collections.Counter(draws.zipfian(1_000, 50_000, random.Random(seed))) for seed in (1, 2))
    popular = [index for index, _ in one.most_common(5)]
    assert popular[:2] == [index for index, _ in other.most_common(2)]
    assert max(popular) - min(popular) > 100


def test_of_the_latest_the_last_is_the_most_popular():
    assert collections.Counter(draws.latest(1_000, 50_000, random.Random(1))).most_common(1)[0][0] == 999


# Data.


def test_made_up_records_are_those_of_their_numbers():
    many = data.synthetic(100)
    assert many.records[60:70] == data.synthetic(10, first=60).records
    assert len(set(many.keys)) == 100
    assert many.keys[7] == ("user000000007",) == many.key_of(many.records[7])


# Targets.

A, B = targets.At("read", None, "microdb"), targets.At("read", None, "peer")


def _judged(target, **costs):
    result = results.Result("read", costs={name: [cost] for name, cost in costs.items()})
    return targets.judge(target, {result.name: result})


@pytest.mark.parametrize(("peer", "outcome"), [(6.0, "pass"), (5.9, "short")])
def test_a_target_that_wants_a_ratio_at_least_says_whether_it_is(peer, outcome):
    assert _judged(targets.Target("6 times", B, A, at_least=6), microdb=1.0, peer=peer).outcome == outcome


@pytest.mark.parametrize(("mine", "outcome"), [(3.0, "pass"), (3.1, "short")])
def test_a_target_that_wants_a_ratio_at_most_says_whether_it_is(mine, outcome):
    assert _judged(targets.Target("3 times", A, B, at_most=3), microdb=mine, peer=1.0).outcome == outcome


def test_a_target_may_bound_a_cost_alone():
    target = targets.Target("a second", A, at_most=1)
    assert [_judged(target, microdb=cost).outcome for cost in (0.9, 1.1)] == ["pass", "short"]


def test_against_everyone_the_strongest_counts_and_limits_do_not():
    everyone = targets.At("read", None, targets.ANYONE_ELSE)
    costs = {"microdb": 2.0, "dict": 0.1, "slow": 9.0, "quick": 1.0}
    verdict = _judged(targets.Target("ahead", everyone, A, at_least=1), **costs)
    assert (verdict.outcome, verdict.against, verdict.measured.median) == ("short", "quick", 0.5)


def test_what_was_not_measured_is_neither_reached_nor_missed():
    target = targets.Target("6 times", B, A, at_least=6)
    assert targets.judge(target, {}).outcome == "not measured"
    assert _judged(target, microdb=1.0).outcome == "not measured"


def test_every_target_has_one_bound_and_its_own_words():
    assert all((target.at_least is None) != (target.at_most is None) for target in targets.TARGETS)
    assert len({target.what for target in targets.TARGETS}) == len(targets.TARGETS)


# Reports.


@pytest.mark.parametrize(
    ("cost", "unit", "shown"),
    [(1.234e-7, "s", "123 ns"), (0.01, "s", "10 ms"), (2.5, "s", "2.5 s"), (600.4, "B", "600 B"), (3, "n", "3")],
)
def test_an_amount_has_three_digits_and_a_unit(cost, unit, shown):
    assert report.amount(cost, unit) == shown


def test_only_what_is_between_the_markers_changes():
    document = f"# Title\n\nbefore\n\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    once = report.put_between(document, "new")
    assert once == f"# Title\n\nbefore\n\n{report.BEGIN}\n\nnew\n\n{report.END}\nafter\n"
    assert report.put_between(once, "new") == once


def test_a_document_without_a_place_for_it_is_refused():
    with pytest.raises(ValueError, match="no place"):
        report.put_between("# Title\n", "new")


def test_the_document_of_the_project_has_its_place():
    document = (ROOT.parent / "docs" / "performance.md").read_text(encoding="utf-8")
    assert report.put_between(document, "new").count("new") >= 1


def test_a_report_has_each_target_each_contestant_and_who_was_left_out():
    costs = {"microdb": [1e-7, 1e-7], "dict": [5e-8, 5e-8], "lmdb, sync off": [8e-7, 8e-7]}
    result = results.Result("read, uniform", 1_000, "records", "s", costs, {"redis": "no server"}, {"seconds": 0.2})
    said = report.text([result], {"cores": "2"}, "performance")
    assert all(target.what in said for target in targets.TARGETS)
    assert "| read, uniform @ 1000: at most 3 times dict | 2× | 2× … 2× | ≤ 3× | pass |" in said  # noqa: RUF001
    assert "| lmdb, sync off | 800 ns (800 ns … 800 ns) | 8 |" in said
    assert "![read, uniform](performance/read-uniform.svg)" in said
    assert "Left out: redis: no server." in said


def test_new_results_take_the_place_of_a_group_and_leave_the_others():
    old = [results.Result("a", 1), results.Result("a", 2), results.Result("b", None)]
    new = [results.Result("a", 3)]
    assert [result.name for result in report.merged(old, new)] == ["a @ 3", "b"]


# Usage.


@pytest.mark.parametrize(
    ("option", "given", "reason"),
    [
        ("--sizes", "x", "'x' is no whole number from 1 on"),
        ("--sizes", "10,0", "'0' is no whole number from 1 on"),
        ("--processes", "", "'' is no whole number from 1 on"),
        ("--threads", "1.5", "'1.5' is no whole number from 1 on"),
        ("--backlogs", "1,,2", "'' is no whole number from 1 on"),
        ("--table", "0", "'0' is no whole number from 1 on"),
        ("--rounds", "0", "'0' is no whole number from 1 on"),
        ("--file-rounds", "-1", "'-1' is no whole number from 1 on"),
        ("--seconds", "0", "'0' is no number of seconds above 0"),
        ("--seconds", "-1", "'-1' is no number of seconds above 0"),
        ("--seconds", "nan", "'nan' is no number of seconds above 0"),
        ("--seconds", "inf", "'inf' is no number of seconds above 0"),
        ("--seconds", "x", "'x' is no number of seconds above 0"),
        ("--folder", "/nonexistent", "'/nonexistent' is no folder; make it first"),
    ],
)
def test_what_cannot_be_measured_with_is_wrong_usage(option, given, reason, capsys):
    with pytest.raises(SystemExit) as exit_info:
        command._parser([], []).parse_args([f"{option}={given}"])
    assert exit_info.value.code == 2
    assert capsys.readouterr().err.endswith(f"python -m benchmarks: error: argument {option}: {reason}\n")


def test_what_to_measure_with_is_taken_as_given(tmp_path):
    given = ["--sizes", "10,20", "--rounds", "1", "--seconds", "0.5", "--folder", str(tmp_path)]
    options = command._parser([], []).parse_args(given)
    assert (options.sizes, options.rounds, options.seconds, options.folder) == ((10, 20), 1, 0.5, str(tmp_path))
