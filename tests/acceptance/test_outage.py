"""S3 is killed under a working worker, and comes back: nothing is lost, nothing stands still, nobody dies."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[1] / "soak"
sys.path.insert(0, str(SOAK))

import outage  # noqa: E402


@pytest.mark.long
@pytest.mark.timeout(300)
def test_forty_seconds_without_s3():
    """A server killed with -9 and back after 40 s, with tasks of every kind meanwhile; `make outage` has more.

    Nothing consumed for a second at most, `get(timeout=1)` in time: by the clocks of the worker and of a client, which
    stand still while the machine lets others run.
    """
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    report = outage.trial(outage.Row("killed", 40, load=outage.SMALL), quiet=False)
    assert report.problems == [], report
