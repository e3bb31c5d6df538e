"""The list of mutants fits the code. That each is noticed is shown by `tox -e mutants`, which takes long."""

import shutil
from pathlib import Path

import pytest

import microdb
from crash.mutants import MUTANTS, apply


def test_the_names_of_the_mutants_are_different():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_mutant_breaks_one_place_and_compiles(mutant, tmp_path):
    package = Path(microdb.__file__).parent
    copy = tmp_path / mutant.file
    copy.parent.mkdir(exist_ok=True)
    shutil.copy(package / mutant.file, copy)
    apply(mutant, tmp_path)
    assert copy.read_text() != (package / mutant.file).read_text()
    compile(copy.read_text(), mutant.file, "exec")
