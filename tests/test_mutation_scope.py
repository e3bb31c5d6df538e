"""Mutation testing knows all of the log. That mutants are noticed is shown by `tox -e mutation`, which takes long."""

from pathlib import Path

import microdb
from mutation.scope import LEFT_OUT, TESTS

HERE = Path(__file__).parent
PACKAGE = Path(microdb.__file__).parent


def test_every_module_of_the_log_is_broken_on_purpose():
    assert {f"wal/{file.stem}" for file in (PACKAGE / "wal").glob("[!_]*.py")} == LEFT_OUT | {
        name for name in TESTS if name.startswith("wal/")
    }


def test_what_is_broken_and_what_is_to_notice_are_there():
    assert all((PACKAGE / f"{module}.py").is_file() for module in TESTS)
    assert all((HERE / f"{name}.py").is_file() for names in TESTS.values() for name in names)
