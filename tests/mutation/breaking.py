"""All the small ways to break a module, made by the operators of Cosmic Ray and one of our own."""

import ast
import difflib
from pathlib import Path
from typing import NamedTuple

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator
from parso.python.tree import Keyword

MICRODB = Path(__file__).resolve().parents[2] / "microdb"

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
        lines: Those of which one is run before it makes a difference.
    """

    module: str
    within: str
    old: str
    new: str
    code: str
    line: int
    lines: tuple[int, ...]

    def __str__(self):
        return f"{self.module}:{self.line} {self.within}: {self.old}  ->  {self.new}"


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
            line, _ = place.start
            around = _around(get_ast(source), place.start)
            yield Mutant(place.module, around, old, new, code, line, _lines_around(source, line))


def _source(module):
    return (MICRODB / f"{module}.py").read_text()


def _annotations(source):
    """From where to where each annotation goes, and what is only for those who import everything."""
    found = []
    for node in ast.walk(ast.parse(source)):
        parts = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "Protocol" for base in node.bases):
            parts += [one for one in node.body if isinstance(one, ast.AnnAssign)]
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


def _lines_around(source, line):
    """The lines of the statement around one; of a statement with a body, those of its head."""
    kinds = (ast.stmt, ast.ExceptHandler)
    around = [
        one for one in ast.walk(ast.parse(source)) if isinstance(one, kinds) and one.lineno <= line <= one.end_lineno
    ]
    if not around:  # A decorator stands before its function.
        return (line,)
    inner = min(around, key=lambda one: one.end_lineno - one.lineno)
    body = getattr(inner, "body", None)
    end = body[0].lineno if body and line < body[0].lineno else inner.end_lineno + 1
    return tuple(range(inner.lineno, max(end, inner.lineno + 1)))


def _around(tree, place):
    """The functions and classes around a place, outermost first."""
    node, names = tree.get_leaf_for_position(place), []
    while node is not None:
        if node.type in ("funcdef", "classdef"):
            names.append(node.name.value)
        node = node.parent
    return ".".join(reversed(names)) or "module"
