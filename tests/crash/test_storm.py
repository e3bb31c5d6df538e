"""A storm of kills: nothing acknowledged is missing, nothing is there twice, and no reader ever goes back."""

import pytest

from crash.storm import WINDOW, Storm, step, steps_seen


@pytest.mark.parametrize("power", [False, True])
def test_no_acknowledged_write_is_missing_after_a_storm_of_kills(path, seed, power):
    storm = Storm(path, seed=seed, kills=16, least=100, writers=4, readers=1, power=power)
    storm.run()
    assert storm.killed >= 16


@pytest.mark.long  # Ten minutes.
@pytest.mark.parametrize("power", [False, True])
def test_no_acknowledged_write_is_missing_after_a_long_storm_of_kills(path, seed, power):
    storm = Storm(path, seed=seed, kills=1_600, least=10_000, power=power)
    storm.run()
    print(f"figures: storm, durability {storm.durability}: {storm.report}")
    assert storm.parses > 100


def test_every_state_that_a_writer_passes_through_tells_its_step():
    records = {}
    for n in range(3 * WINDOW):
        upserts, deletes = step("w", n, 0)
        records |= {record["n"]: record for record in upserts}
        for _, key in deletes:
            records.pop(key, None)
        assert steps_seen(records.values()) == {"w": n}


@pytest.mark.parametrize("lost", [0, 4, -9])
def test_a_state_that_lacks_a_record_is_that_of_no_step(lost):
    records = {}
    for n in range(WINDOW - 2):
        upserts, deletes = step("w", n, 0)
        records |= {record["n"]: record for record in upserts}
        for _, key in deletes:
            records.pop(key, None)
    del records[sorted(records)[lost]]
    with pytest.raises(AssertionError, match="writer w"):
        steps_seen(records.values())
