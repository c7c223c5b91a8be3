"""The battery's server; the runs that are kept."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import servers

from . import kept


@pytest.fixture(params=servers.parameters(servers.OF_BATTERY))
def server(request: pytest.FixtureRequest, real_server: Callable[..., Any], record_property: Any) -> Any:
    record_property("server", request.param)
    return real_server(request)


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> Any:
    """What is known of the server at hand."""
    return servers.kind(request.node.callspec.params["server"])


class Keeper:
    """Collects outcomes where they come together: in the one process, or in xdist's first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runs: dict[str, kept.Run] = {}

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        told = dict(report.user_properties)
        if report.when == "call" and "server" in told:
            run = self._runs.setdefault(told["server"], kept.Run())
            run.note(report.nodeid.partition("::")[2].partition("[")[0], told, report.outcome)

    @pytest.hookimpl
    def pytest_sessionfinish(self) -> None:
        for name, run in self._runs.items():
            run.write(self._folder, servers.kind(name))


def pytest_configure(config: pytest.Config) -> None:
    folder = os.environ.get("KEEP_RUNS")
    if folder and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Keeper(Path(folder)))
