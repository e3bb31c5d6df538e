"""Mutation testing: break the code in each small way, one at a time, and see the tests fail.

    python tests/mutation/run.py                      all mutants of all modules below
    python tests/mutation/run.py wal/reader save      those of some modules
    python tests/mutation/run.py --sample 300         so many of them, chosen by --seed
    python tests/mutation/run.py --list               what would be done

The mutants are made by Cosmic Ray (the operators in OPERATORS, of which one replacement each is taken: the others are
nearly the same) and by one operator of our own, which leaves out a statement. What they are made in is a copy of the
tree, a copy for each process; children that a test starts import the copy as well, by PYTHONPATH. Each is met by the
test files that stand for its module in TESTS, in that order, up to the first failure.

A mutant that all tests pass is a survivor. Either there is a test to be written, or equivalent.toml says why nobody can
tell the difference. The score is the part of all mutants that is killed or so explained. The exit code is 1 if that is
below --fail-under in any module.
"""

import argparse
import ast
import concurrent.futures
import contextlib
import difflib
import json
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator
from parso.python.tree import Keyword

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("microdb", "tests", "pyproject.toml")

TESTS = {
    "commits": ("test_commits", "test_transactions", "test_save"),
    "recovery": ("test_recovery", "test_bad_files", "test_file_log", "test_save"),
    "save": ("test_save", "test_recovery", "test_file_log", "test_auto_save"),
    "wal/codec": ("test_codec", "test_reader", "test_handle"),
    "wal/file_log": ("test_file_log", "test_recovery", "test_bad_files", "test_save", "test_fork"),
    "wal/format": ("test_format", "test_reader", "test_file_log", "test_codec"),
    "wal/generations": ("test_generations", "test_save", "test_file_log"),
    "wal/header": ("test_header", "test_format", "test_recovery", "test_file_log", "test_bad_files"),
    "wal/log": ("test_generations", "test_file_log", "test_transactions"),
    "wal/log_file": ("test_generations", "test_recovery", "test_file_log", "test_bad_files", "test_save"),
    "wal/memory_log": ("test_file_log", "test_handle", "test_transactions", "test_mapping"),
    "wal/reader": ("test_reader", "test_recovery", "test_bad_files"),
    "wal/writer": ("test_reader", "test_format", "test_recovery"),
}

OPERATORS = (
    *("ReplaceComparisonOperator_Eq_NotEq", "ReplaceComparisonOperator_NotEq_Eq"),
    *("ReplaceComparisonOperator_Lt_LtE", "ReplaceComparisonOperator_Lt_GtE"),
    *("ReplaceComparisonOperator_LtE_Lt", "ReplaceComparisonOperator_LtE_Gt"),
    *("ReplaceComparisonOperator_Gt_GtE", "ReplaceComparisonOperator_Gt_LtE"),
    *("ReplaceComparisonOperator_GtE_Gt", "ReplaceComparisonOperator_GtE_Lt"),
    *("ReplaceComparisonOperator_Is_IsNot", "ReplaceComparisonOperator_IsNot_Is"),
    *("ReplaceBinaryOperator_Add_Sub", "ReplaceBinaryOperator_Sub_Add"),
    *("ReplaceBinaryOperator_Mul_FloorDiv", "ReplaceBinaryOperator_FloorDiv_Mul"),
    *("ReplaceBinaryOperator_Mod_FloorDiv",),
    *("ReplaceBinaryOperator_LShift_RShift", "ReplaceBinaryOperator_RShift_LShift"),
    *("ReplaceBinaryOperator_BitAnd_BitOr", "ReplaceBinaryOperator_BitOr_BitAnd"),
    *("ReplaceUnaryOperator_Delete_Not", "ReplaceUnaryOperator_Delete_Invert", "ReplaceUnaryOperator_Delete_USub"),
    *("AddNot", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd"),
    *("ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "ZeroIterationForLoop"),
    *("ExceptionReplacer", "NumberReplacer", "RemoveDecorator"),
)

KILLED, SURVIVED, TIMED_OUT, EXPLAINED = "killed", "survived", "timed out", "explained"


class LeaveOut(Operator):
    """Puts ``pass`` in the place of a statement: a store, a call, a ``raise``, a ``return``."""

    def mutation_positions(self, node):
        """Where."""
        if node.type == "simple_stmt" and not _is_left_alone(node.children[0]):
            yield node.children[0].start_pos, node.children[0].end_pos

    def mutate(self, node, index):
        """The node without it."""
        first = node.get_first_leaf()
        node.children[0] = Keyword("pass", first.start_pos, first.prefix)
        return node

    @classmethod
    def examples(cls):
        """None."""
        return ()


def _is_left_alone(statement):
    """A docstring, an import, and what does nothing anyway."""
    text = statement.get_code().strip()
    return statement.type in ("string", "strings", "import_name", "import_from") or text in ("pass", "...")


class Mutant(NamedTuple):
    """One way to break one module: what stands there, and what is put in its place.

    Attributes:
        module: As in TESTS.
        within: The function or class around it.
        old: The lines that it changes, as one.
        new: What it makes of them.
        code: The whole module with it.
        line: Where it is.
    """

    module: str
    within: str
    old: str
    new: str
    code: str
    line: int

    def __str__(self):
        return f"{self.module}:{self.line} {self.within}: {self.old}  ->  {self.new}"


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
    results = judge(mutants, options)
    code = report(mutants, results, options.fail_under)
    print(f"figures: {len(mutants)} mutants in {(time.monotonic() - begin) / 60:.0f} minutes, seed {options.seed}")
    return code


def _options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"default: {' '.join(TESTS)}")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="how many at once (default: all cores)")
    parser.add_argument("--sample", type=int, metavar="N", help="only N mutants")
    parser.add_argument("--seed", type=int, default=1, help="chooses them (default: 1)")
    parser.add_argument("--limit", type=float, metavar="S", help="how long the tests may take (default: as measured)")
    parser.add_argument("--fail-under", type=float, default=90, help="the score to reach, in percent (default: 90)")
    parser.add_argument("--log", type=Path, help="note each outcome here, and leave out what is noted already")
    parser.add_argument("--list", action="store_true", help="only list the mutants")
    return parser.parse_args()


# Making mutants.


class Place(NamedTuple):
    """Where a module can be broken, and how.

    Attributes:
        module: As in TESTS.
        operator: What breaks it.
        occurrence: At which of the places that suit the operator.
        start: Line and column.
    """

    module: str
    operator: Operator
    occurrence: int
    start: tuple[int, int]


def places_of(module):
    """All places of a module, but those in annotations, which nothing reads."""
    source = _source(module)
    annotated = _annotations(source)
    nodes = list(ast_nodes(get_ast(source)))
    for operator in (*(get_operator(f"core/{name}")() for name in OPERATORS), LeaveOut()):
        starts = [start for node in nodes for start, _ in operator.mutation_positions(node)]
        for occurrence, start in enumerate(starts):
            if not any(begin <= start < end for begin, end in annotated):
                yield Place(module, operator, occurrence, start)


def mutants_at(places):
    """The mutants at these places, but what is no Python, and what another operator makes too."""
    seen = set()
    for place in places:
        source = _source(place.module)
        code = mutate_code(source, place.operator, place.occurrence)
        if _is_python(code) and (place.module, code) not in seen:
            seen.add((place.module, code))
            old, new = _changed(source, code)
            yield Mutant(place.module, _around(get_ast(source), place.start), old, new, code, place.start[0])


def _source(module):
    return (ROOT / "microdb" / f"{module}.py").read_text()


def _annotations(source):
    """From where to where each annotation goes, and what is only for those who import everything."""
    found = []
    for node in ast.walk(ast.parse(source)):
        parts = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("__all__", "Payload", "Recover", "Encode"):
            parts.append(node)
        found += [((p.lineno, p.col_offset), (p.end_lineno, p.end_col_offset)) for p in parts if p is not None]
    return found


def _is_python(code):
    try:
        ast.parse(code)
    except SyntaxError:
        return False
    return True


def _changed(source, code):
    lines = list(difflib.unified_diff(source.split("\n"), code.split("\n"), lineterm="", n=0))[2:]
    return tuple(" ".join(line[1:].strip() for line in lines if line[0] == sign) for sign in "-+")


def _around(tree, place):
    """The functions and classes around a place, outermost first."""
    node, names = tree.get_leaf_for_position(place), []
    while node is not None:
        if node.type in ("funcdef", "classdef"):
            names.append(node.name.value)
        node = node.parent
    return ".".join(reversed(names)) or "module"


# Judging them.


def judge(mutants, options):
    """What became of each mutant."""
    known, log = {}, options.log
    if log is not None and log.exists():
        known = {tuple(key): outcome for *key, outcome in map(json.loads, log.read_text().splitlines())}
    explanations = tomllib.loads((Path(__file__).parent / "equivalent.toml").read_text())["mutant"]
    with tempfile.TemporaryDirectory(prefix="microdb-mutation-") as folder, contextlib.ExitStack() as stack:
        trees = queue.SimpleQueue()
        for number in range(options.processes):
            trees.put(_copied(Path(folder, str(number))))
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(options.processes))
        modules = sorted({mutant.module for mutant in mutants})
        limits = dict.fromkeys(modules, options.limit)
        if options.limit is None:
            limits = dict(zip(modules, pool.map(lambda module: _limit(module, trees), modules), strict=True))

        def judged(mutant):
            key = (mutant.module, mutant.within, mutant.old, mutant.new, mutant.line)
            outcome = known.get(key)
            if outcome is None or (outcome == SURVIVED and os.environ.get("MUTATION_AGAIN")):
                outcome = _tested(mutant, trees, limits[mutant.module])
                if log is not None:
                    with log.open("a") as file:
                        file.write(json.dumps([*key, outcome]) + "\n")
            if outcome == SURVIVED and any(_explains(one, mutant) for one in explanations):
                outcome = EXPLAINED
            if outcome != KILLED:
                print(f"{outcome}: {mutant}", flush=True)
            return outcome

        return dict(zip(mutants, pool.map(judged, mutants), strict=True))


def _copied(tree):
    tree.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree / name)
    return tree


def _limit(module, trees):
    """How long the tests of a module may take. They must pass while nothing is broken."""
    tree = trees.get()
    begin = time.monotonic()
    code = _run_tests(tree, module, 600)
    duration_s = time.monotonic() - begin
    trees.put(tree)
    if code != 0:
        raise SystemExit(f"the tests of {module} fail without a mutant, with {code}")
    print(f"{module}: its tests take {duration_s:.0f} s", flush=True)
    return 30 + 4 * duration_s


def _tested(mutant, trees, limit_s):
    tree = trees.get()
    path = tree / "microdb" / f"{mutant.module}.py"
    sound = path.read_text()
    try:
        path.write_text(mutant.code)
        code = _run_tests(tree, mutant.module, limit_s)
    finally:
        path.write_text(sound)
        trees.put(tree)
    return TIMED_OUT if code is None else SURVIVED if code == 0 else KILLED


def _run_tests(tree, module, limit_s):
    """The exit code of the tests; None if they did not end in time. All processes that they started are gone."""
    files = [name for name in (f"tests/{file}.py" for file in TESTS[module]) if (tree / name).exists()]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--timeout", "60", *files]
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONSAFEPATH": "1"}
    process = subprocess.Popen(
        command,
        cwd=tree,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _explains(explanation, mutant):
    return all(explanation[name] == getattr(mutant, name) for name in ("module", "within", "old", "new"))


# Telling.


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
