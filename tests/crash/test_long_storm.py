"""Hundreds of kills, several times over. Takes about ten minutes."""

import pytest

from storm import Storm

pytestmark = pytest.mark.long


@pytest.mark.parametrize("round_number", range(4))
def test_no_acknowledged_write_is_missing_after_a_long_storm_of_kills(path, round_number):
    storm = Storm(path, writers=6, kills=750, power=bool(round_number % 2))
    storm.run()
    assert sum(storm.acknowledged.values()) > 10_000
