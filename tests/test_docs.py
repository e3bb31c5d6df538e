"""What the documents show is run, and what is public is documented."""

import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import microdb

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
MODULES = ["microdb", *(module.name for module in pkgutil.walk_packages(microdb.__path__, "microdb."))]


def test_every_example_of_the_readme_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = README.read_text(encoding="utf-8")
    blocks = re.findall(r"^```pycon\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) > 5
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, "README.md", str(README), 0)
    failed, tried = doctest.DocTestRunner(optionflags=doctest.FAIL_FAST).run(test, clear_globs=False)
    test.globs["mdb"].close()
    test.globs["scratch"].close()
    assert (failed, tried > 30) == (0, True)


def test_the_readme_begins_with_the_two_commands():
    commands = re.findall(r"^```sh\n(.*?)\n```$", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert [command.split()[-1] for command in commands[:2]] == ["demo", ".venv/bin/tox"]
    assert all(command.startswith("python3 -m venv ") for command in commands[:2])


@pytest.mark.parametrize("name", [name for name in MODULES if name != "microdb.__main__"])
def test_the_examples_in_the_docstrings_of_a_module_run(name):
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


PUBLIC = {
    "ABSENT",
    "Claim",
    "ClaimLostError",
    "Position",
    "Query",
    "Report",
    "SinceLostError",
    "View",
    "above",
    "at_least",
    "at_most",
    "below",
    "between",
    "one_of",
    "ClosedError",
    "ConflictError",
    "CorruptError",
    "Event",
    "Listener",
    "UNKNOWN",
    "WaitTimeoutError",
    "Watch",
    "FailedError",
    "GridError",
    "LockTimeoutError",
    "MicroDB",
    "MicroDBError",
    "ReadOnlyError",
    "RecordError",
    "ReentrantError",
    "Stats",
    "StorageError",
    "TransactionError",
    "VersionError",
}


def test_the_public_names_are_these():
    assert set(microdb.__all__) == PUBLIC
    assert len(microdb.__all__) == len(PUBLIC)


WITHOUT_EXAMPLE = {
    "CorruptError": "takes damaged files",
    "FailedError": "takes a disk that fails",
    "VersionError": "takes files of a version to come",
    "ReentrantError": "takes a signal at one moment",
    "MicroDB.begin_in_child": "see forks.Forked",
    "MicroDB.go_on_in_parent": "see forks.Forked",
    "MicroDB.stop_for_fork": "see forks.Forked",
    "MicroDB.capture": "see save.Source",
    "MicroDB.freshen": "see save.Source",
    "MicroDB.kept_open": "see save.Source",
    "MicroDB.log_bytes": "see auto_save.Growing",
    "MicroDB.candidates": "see query.Source",
    "View.candidates": "see query.Source",
    "MicroDB.expiring": "see save.Source",
    "Query.asks": "what claim() asks of it",
    "Query.means": "what watch() asks of it",
    "WaitTimeoutError": "takes time",
}
"""What needs no example, and why; the methods are for other parts of microdb."""


def public_things():
    """All that a user may call by name: the public names, and the methods and properties that microdb gives them."""
    for name in microdb.__all__:
        thing = getattr(microdb, name)
        yield name, thing.__doc__
        for attribute in dir(thing) if isinstance(thing, type) else ():
            owner = next(kind for kind in thing.__mro__ if attribute in vars(kind))
            member = vars(owner).get(attribute)
            is_ours = owner.__module__.startswith("microdb") and (callable(member) or isinstance(member, property))
            if is_ours and not attribute.startswith("_"):
                yield f"{name}.{attribute}", inspect.getdoc(member)


def test_every_public_name_and_method_has_a_docstring_with_an_example():
    found = dict(public_things())
    assert {"MicroDB.upsert", "MicroDB.close", "MicroDB.position", "Query.limit", "Stats.openmetrics"} < found.keys()
    assert not [name for name, text in found.items() if not text]
    assert {name for name, text in found.items() if ">>> " not in text} == WITHOUT_EXAMPLE.keys()


def test_every_public_name_and_method_of_a_database_is_in_the_tour():
    tour = README.read_text(encoding="utf-8")
    names = {name for name, _ in public_things() if "." not in name}
    methods = {name for name, _ in public_things() if name.startswith("MicroDB.")} - WITHOUT_EXAMPLE.keys()
    wanted = names | {name.removeprefix("MicroDB.") for name in methods}
    assert not {name for name in wanted if not re.search(rf"\b{name}\b", tour)}


LATER = ["rich", "msgspec", "filelock", "pprint", "microdb.literals"]


def test_importing_it_imports_nothing_that_only_a_command_or_a_save_needs():
    def imported_by(names):
        code = f"import sys, {names}; print([name for name in {LATER} if name in sys.modules])"
        return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout

    assert imported_by("microdb") == imported_by("portalocker, msgpack")
