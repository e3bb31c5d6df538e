"""Mutation testing: break the code in each small way, one at a time, and see the tests fail.

    python tests/mutation/run.py                      all mutants of all modules below
    python tests/mutation/run.py wal/reader save      those of some modules
    python tests/mutation/run.py --sample 300         so many of them, chosen by --seed
    python tests/mutation/run.py --list               what would be done

The mutants are made by Cosmic Ray (the operators in `breaking.OPERATORS`, of which one replacement each is taken: the
others are nearly the same) and by one operator of our own, which leaves out a statement. What they are made in is a
copy of the tree, a copy for each process; children that a test starts import the copy as well, by PYTHONPATH.

Each is met by the tests in the files that stand for its module in TESTS, up to the first failure. The tests are first
run once under coverage, to learn which of them run which lines in their own process. A mutant then meets those that
run its lines, quickest first, and only if all of these pass the others. Examples of Hypothesis are the same each time.

A mutant that all tests pass is a survivor. Either there is a test to be written, or equivalent.toml says why nobody can
tell the difference. The score is the part of all mutants that is killed or so explained. The exit code is 1 if that is
below --fail-under in any module.
"""

import argparse
import json
import os
import random
import sys
import time
import tomllib
from collections import Counter
from pathlib import Path

from breaking import mutants_at, places_of
from scope import TESTS
from workers import Workers

KILLED, SURVIVED, TIMED_OUT, EXPLAINED = "killed", "survived", "timed out", "explained"
_OUTCOMES = {"passed": SURVIVED, "failed": KILLED, "timed out": TIMED_OUT}


def main():
    options = _options()
    places = [place for module in options.modules or TESTS for place in places_of(module)]
    if options.sample:
        places = random.Random(options.seed).sample(places, min(options.sample, len(places)))
    mutants = list(mutants_at(places))
    if options.list:
        for mutant in mutants:
            print(mutant)
        print(Counter(mutant.module for mutant in mutants), len(mutants))
        return 0
    begin = time.monotonic()
    explanations = tomllib.loads((Path(__file__).parent / "equivalent.toml").read_text())["mutant"]
    results = judge(mutants, explanations, options)
    if not options.sample:
        tell_of_idle(explanations, mutants, results)
    code = report(mutants, results, options.fail_under)
    print(f"figures: {len(mutants)} mutants in {(time.monotonic() - begin) / 60:.0f} minutes, seed {options.seed}")
    return code


def _options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"default: {' '.join(TESTS)}")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="how many at once (default: all cores)")
    parser.add_argument("--sample", type=int, metavar="N", help="only N mutants")
    parser.add_argument("--seed", type=int, default=1, help="chooses them (default: 1)")
    parser.add_argument("--fail-under", type=float, default=90, help="the score to reach, in percent (default: 90)")
    parser.add_argument("--log", type=Path, help="note each outcome here, and leave out what is noted already")
    parser.add_argument("--again", action="store_true", help="with --log: but not the survivors")
    parser.add_argument("--list", action="store_true", help="only list the mutants")
    return parser.parse_args()


# Judging them.


def judge(mutants, explanations, options):
    """What became of each mutant."""
    log = _Log(options.log, again=options.again)
    with Workers(options.processes) as workers:
        todo = [mutant for mutant in mutants if log.outcome(mutant) is None]
        files = sorted({file for mutant in todo for file in _files(mutant.module)})
        begin = time.monotonic()
        reach = workers.reach(files)
        print(f"{len(reach.durations)} tests: {time.monotonic() - begin:.0f} s", flush=True)

        def judged(worker, mutant):
            is_explained = any(_explains(one, mutant) for one in explanations)
            outcome = log.outcome(mutant)
            if outcome is None:
                requests = reach.requests(mutant.module, mutant.lines, _files(mutant.module))
                # Of those that are explained nobody needs to be told that they survive all tests.
                answer = worker.run_with(mutant.module, mutant.code, requests[:1] if is_explained else requests)
                outcome = _OUTCOMES[answer.outcome]
                log.note(mutant, outcome, answer.by)
            if outcome == SURVIVED and is_explained:
                outcome = EXPLAINED
            if outcome != KILLED:
                print(f"{outcome}: {mutant}", flush=True)
            return outcome

        return dict(zip(mutants, workers.map(judged, mutants), strict=True))


def _files(module):
    return [f"tests/{name}.py" for name in TESTS[module]]


def _explains(explanation, mutant):
    return all(explanation[name] == getattr(mutant, name) for name in ("module", "within", "old", "new"))


class _Log:
    """What became of mutants in this run and in earlier ones, in a file, if there is one."""

    def __init__(self, path, *, again):
        self._path = path
        self._outcomes = {}
        if path is not None and path.exists():
            for *key, outcome, _ in map(json.loads, path.read_text().splitlines()):
                self._outcomes[tuple(key)] = None if again and outcome == SURVIVED else outcome

    def outcome(self, mutant):
        return self._outcomes.get(self._key(mutant))

    def note(self, mutant, outcome, by):
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps([*self._key(mutant), outcome, by]) + "\n")

    def _key(self, mutant):
        return (mutant.module, mutant.within, mutant.old, mutant.new, mutant.line)


# Telling.


def tell_of_idle(explanations, mutants, results):
    """Print which explanations of these modules explain no survivor."""
    modules = {mutant.module for mutant in mutants}
    for one in explanations:
        outcomes = {results[mutant] for mutant in mutants if _explains(one, mutant)}
        if one["module"] in modules and EXPLAINED not in outcomes:
            what = ", ".join(outcomes) or "not there"
            print(f"explained, but {what}: {one['module']} {one['within']}: {one['new']}")


def report(mutants, results, fail_under):
    """Print the score of each module, and say whether all reach the least one."""
    print(f"{'module':18}{'mutants':>8}{'killed':>8}{'explained':>10}{'survived':>9}{'score':>8}")
    worst = 100.0
    modules = list(dict.fromkeys(mutant.module for mutant in mutants))
    for name in (*modules, "all"):
        counts = Counter(results[mutant] for mutant in mutants if name in (mutant.module, "all"))
        total = counts.total()
        score = 100 * (total - counts[SURVIVED]) / total
        worst = min(worst, score)
        killed = counts[KILLED] + counts[TIMED_OUT]
        print(f"{name:18}{total:8}{killed:8}{counts[EXPLAINED]:10}{counts[SURVIVED]:9}{score:7.1f}%")
    return 1 if worst < fail_under else 0


if __name__ == "__main__":
    sys.exit(main())
