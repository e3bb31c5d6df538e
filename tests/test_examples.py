"""The examples run, and do what they say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SHOWN = {"jobs.py": "20 of 20 jobs done, 1 worker died", "hits.py": r"all +2000\n"}


def test_each_example_is_tried():
    assert {path.name for path in EXAMPLES.glob("*.py")} == SHOWN.keys()


@pytest.mark.parametrize("name", SHOWN)
def test_an_example_does_what_it_says(name):
    shown = subprocess.run([sys.executable, EXAMPLES / name], check=True, capture_output=True, text=True).stdout
    assert re.search(SHOWN[name], shown), shown
