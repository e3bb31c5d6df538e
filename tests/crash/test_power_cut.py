"""A power cut on ext4 and on xfs loses nothing that had to be durable, and leaves an earlier state, never another one.

The long form, 500 databases on each file system and two cuts each, takes about six minutes for each file system.
"""

import contextlib
import itertools
import random

import pytest

from crash.power_cut import Figures, NoDiskError, disk, trial

WAYS = [(True, True), (False, True), (True, False), (False, False)]  # Power, saves.


@pytest.fixture(params=["ext4", "xfs"])
def formatted(request, tmp_path):
    """A new file system of its own."""
    with contextlib.ExitStack() as stack:
        try:
            made = stack.enter_context(disk(tmp_path, request.param))
        except NoDiskError as error:
            pytest.skip(str(error))
        yield made


def cut_often(formatted, seed, trials):
    rng = random.Random(seed)
    figures = Figures()
    for number, (power, saves) in zip(range(trials), itertools.cycle(WAYS)):
        figures += trial(formatted, number, rng, power=power, saves=saves)
    print(f"{formatted.kind}: {trials} databases, {figures}")
    return figures


def test_a_power_cut_loses_nothing_that_had_to_be_durable(formatted, seed):
    cut_often(formatted, seed, 2)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_thousand_power_cuts_lose_nothing_that_had_to_be_durable(formatted, seed):
    assert cut_often(formatted, seed, 500).required > 10_000
