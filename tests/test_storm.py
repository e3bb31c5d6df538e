"""A short storm; the long one is `tox -e storm`."""

import pytest

from storm import Storm


@pytest.mark.parametrize("power", [False, True])
def test_no_acknowledged_write_is_missing_after_a_storm_of_kills(path, power):
    storm = Storm(path, writers=4, kills=15, power=power)
    storm.run()
    assert sum(storm.acknowledged.values()) > 100
    assert storm.reads > 100
