"""Code broken on purpose, one place at a time: each of these must make a test fail.

    python tests/crash/mutants.py [NAME …]

copies the package, breaks it, runs the tests that are to notice, and tells which mutants live. `tox -e mutants` does so
for all of them.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Mutant(NamedTuple):
    """One way to break the code.

    Attributes:
        name: What is broken.
        file: Where, below `microdb/`.
        old: What stands there, exactly once.
        new: What stands there instead.
        tests: What must fail: arguments of pytest.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str


_FSYNC = "tests/crash/test_failed_fsync.py"

MUTANTS = [
    Mutant(
        "a draft after a failed fsync counts as published",
        "recovery.py",
        " and not _is_draft(one)",
        "",
        _FSYNC,
    ),
    Mutant(
        "a log that was written to counts as a draft",
        "recovery.py",
        "newer.log.header.after_failure and not newer.data",
        "newer.log.header.after_failure",
        _FSYNC,
    ),
    Mutant(
        "a snapshot whose name is not fsynced puts the old log away",
        "wal/file_log.py",
        "        if not poisoned:\n            self.generations.retire",
        "        if True:\n            self.generations.retire",
        _FSYNC,
    ),
    Mutant(
        "recovery puts it away",
        "recovery.py",
        "    if poisoned != end.generation:\n",
        "    if True:\n",
        _FSYNC,
    ),
    Mutant(
        "an fsync that failed once is believed the next time",
        "wal/file_log.py",
        "if self.words[POISONED] == log.header.generation:",
        "if False:",
        _FSYNC,
    ),
    Mutant(
        "an append does not look whether the log ends where it did",
        "wal/file_log.py",
        "if file.size() != after.offset:",
        "if False:",
        "tests/test_bad_files.py",
    ),
]


def apply(mutant, package):
    """Break a copy of the package."""
    file = package / mutant.file
    text = file.read_text()
    found = text.count(mutant.old)
    if found != 1:
        raise ValueError(f"{mutant.name}: stands {found} times in {mutant.file}, and must stand there once")
    file.write_text(text.replace(mutant.old, mutant.new))


def is_noticed(mutant):
    """Whether the tests fail on a broken copy."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("microdb", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        apply(mutant, copy / "microdb")
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *mutant.tests.split()]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
        run = subprocess.run(
            command, cwd=copy, env={**environment, "PYTHONPATH": folder}, capture_output=True, text=True, check=False
        )
        if run.returncode not in (0, 1):
            raise RuntimeError(f"{mutant.name}: pytest broke off\n{run.stdout}{run.stderr}")
        return run.returncode == 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="*", help="parts of the names of those to run; default: all")
    names = parser.parse_args().name
    chosen = [one for one in MUTANTS if not names or any(name in one.name for name in names)]
    alive = []
    for mutant in chosen:
        began = time.monotonic()
        noticed = is_noticed(mutant)
        print(f"{'killed' if noticed else 'ALIVE '} {time.monotonic() - began:6.1f} s  {mutant.name}", flush=True)
        if not noticed:
            alive.append(mutant)
    print(f"figures: {len(chosen)} mutants, {len(chosen) - len(alive)} killed")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
