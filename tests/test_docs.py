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


def test_every_public_name_and_method_has_a_docstring():
    public = {name: getattr(microdb, name) for name in PUBLIC}
    public |= {name: member for name, member in vars(microdb.MicroDB).items() if callable(member)}
    assert not [name for name, thing in public.items() if not name.startswith("_") and not inspect.getdoc(thing)]


LATER = ["rich", "msgspec", "filelock", "pprint", "microdb.literals"]


def test_importing_it_imports_nothing_that_only_a_command_or_a_save_needs():
    def imported_by(names):
        code = f"import sys, {names}; print([name for name in {LATER} if name in sys.modules])"
        return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout

    assert imported_by("microdb") == imported_by("portalocker, msgpack")
