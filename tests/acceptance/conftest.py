"""Real workers, kills and clocks on a machine that others share: what fails is tried once more."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A fault of ours fails twice, a machine that stood still does not; the report names every rerun."""
    for item in items:
        if "acceptance" in item.path.parts:
            item.add_marker(pytest.mark.flaky(reruns=1))
