"""The input of the demonstration: source text becomes records, one for each function, class and method.

Pure but for `find_modules`, which looks into a folder. Knows nothing of processes, nor of the store.
"""

import ast
import os
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PARTITION_KEYS = ["module", "name"]

# They hold tests and other people's packages, not the library.
_FOLDERS_LEFT_OUT = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})

Record = dict[str, str | int]
Key = tuple[str, str]
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
# What can hold a statement. Expressions hold none, so they are never descended into.
_HOLDS_STATEMENTS = (ast.stmt, ast.excepthandler, ast.match_case)


@dataclass(frozen=True, order=True)
class Module:
    """One source file and the dotted name under which Python imports it."""

    name: str
    path: str


def key_of(record: Record) -> Key:
    """The key under which a record of the demonstration is stored."""
    return str(record["module"]), str(record["name"])


def find_modules(folder: str | None = None) -> list[Module]:
    """All modules below `folder`, sorted by name; by default the standard library of this interpreter.

    Where a package and a module share a name, the package stands for both, as it does for ``import``. So two modules
    never write the same key.
    """
    root = Path(folder or sysconfig.get_path("stdlib"))
    # Depth first would do as well; what matters is that `x/__init__.py` comes after `x.py` and takes its place.
    paths = sorted(_source_files(root), key=lambda path: path.name == "__init__.py")
    by_name = {_dotted_name(path.relative_to(root)): path for path in paths}
    return sorted(Module(name, str(path)) for name, path in by_name.items())


def _source_files(root: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _FOLDERS_LEFT_OUT]
        yield from (Path(folder, name) for name in names if name.endswith(".py"))


def _dotted_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def index_file(module: Module) -> list[Record]:
    """The records of one source file; see `index_source`.

    Raises:
        SyntaxError: It does not decode or does not parse; also, as ValueError, when it holds null bytes.
        OSError: It cannot be read.
    """
    return index_source(Path(module.path).read_bytes(), module.name)


def index_source(source: str | bytes, module: str) -> list[Record]:
    r"""One record for each function, class and method of `source`, in the order in which they begin.

    A record says `module`, `name` (the qualified name, spelled as ``__qualname__``), `kind` (``"function"``,
    ``"method"`` or ``"class"``; a coroutine is a function), `line` and `length` in lines. A definition begins at its
    first decorator, as for `inspect.getsourcelines`.

    A module may define the same qualified name twice (an ``if`` and its ``else``, a property and its setter). Both
    records are returned; they share a key, so stored in this order the later overwrites the earlier.

    Raises:
        SyntaxError: `source` does not decode or does not parse; ValueError when it holds null bytes.

    >>> index_source("class A:\n    def f(self): ...\n", "m")[1]
    {'module': 'm', 'name': 'A.f', 'kind': 'method', 'line': 2, 'length': 1}
    """
    return [
        _record(module, name, kind, definition) for name, kind, definition in _definitions(ast.parse(source), "", ())
    ]


def _definitions(scope: ast.AST, prefix: str, global_names: Iterable[str]) -> Iterator[tuple[str, str, _Definition]]:
    in_class = isinstance(scope, ast.ClassDef)
    for definition in _defined_in(scope):
        # `global f` in a function makes a nested `def f` a name of the module, and its __qualname__ says so.
        name = definition.name if definition.name in global_names else prefix + definition.name
        if isinstance(definition, ast.ClassDef):
            yield name, "class", definition
            inner = f"{name}."
        else:
            yield name, "method" if in_class else "function", definition
            inner = f"{name}.<locals>."
        yield from _definitions(definition, inner, _declared_global(definition))


def _defined_in(scope: ast.AST) -> Iterator[_Definition]:
    return (node for node in _statements(scope) if isinstance(node, _Definition))


def _declared_global(scope: ast.AST) -> set[str]:
    return {name for node in _statements(scope) if isinstance(node, ast.Global) for name in node.names}


def _statements(scope: ast.AST) -> Iterator[ast.AST]:
    """Every statement that runs in this scope: into ``if``, ``try`` and the like, not into definitions."""
    for node in ast.iter_child_nodes(scope):
        if isinstance(node, _HOLDS_STATEMENTS):
            yield node
            if not isinstance(node, _Definition):
                yield from _statements(node)


def _record(module: str, name: str, kind: str, definition: _Definition) -> Record:
    line = min([definition.lineno, *(decorator.lineno for decorator in definition.decorator_list)])
    length = (definition.end_lineno or definition.lineno) - line + 1
    return {"module": module, "name": name, "kind": kind, "line": line, "length": length}
