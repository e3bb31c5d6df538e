"""What the crash lab's tests share: a seed that is told, and may be given again."""

import os
import random

import pytest


@pytest.fixture
def seed():
    """What makes it the same run again, as far as the scheduler allows: printed, and taken from MICRODB_SEED if set."""
    number = int(os.environ.get("MICRODB_SEED") or random.randrange(2**32))
    print(f"MICRODB_SEED={number}")
    return number
