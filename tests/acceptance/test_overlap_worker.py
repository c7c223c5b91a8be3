"""A child stores while it works on: whoever is killed, nothing is lost, nor acknowledged before it is written."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[1] / "soak"
sys.path.insert(0, str(SOAK))

import overlap  # noqa: E402


@pytest.mark.long
def test_children_are_killed():
    """Three children are killed with results under way: all tasks of them come again; `make overlap` has more."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    report = overlap.trial("children", seed=1)
    assert report.problems == [], report
    assert report.lost_by_redis == 0
    assert report.again > 0
