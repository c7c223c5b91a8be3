"""The report of a benchmark run: what it shows comes from the run, and nowhere else."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest


@pytest.fixture(autouse=True)
def _root_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    if "benchmarks" not in sys.modules:
        monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))


def run(quick: bool = False, cpu: float = 0.2, puts: int = 50) -> dict[str, Any]:
    def cell(value: float) -> dict[str, Any]:
        return {"samples": {"cpu": [value, 2 * value, value]}, "requests": [{"PUT": puts}] * 3, "units": 50}

    floor = {f"{who} {verb} cpu": [0.15] for who in ("obstore", "bytes") for verb in ("PUT", "GET")}
    return {
        "date": "2026-11-23T10:00:00+00:00",
        "quick": quick,
        "broker": "Redis",
        "effort": {"group": 500, "tasks": 300},
        "machine": {"cpus": 2, "cpu": "a CPU", "load": 0.1},
        "versions": {"celery": "5.7.0"},
        "cells": {"floor": {"obstore": {"samples": floor}}, "store": {"ours": cell(cpu), "celery": cell(6.1)}},
    }


def test_a_cell_tells_median_spread_and_requests() -> None:
    """A cell of the table is the median, the spread and the requests of one unit of work."""
    from benchmarks import report, rows

    assert report.cell_text(rows.ROWS[0], run()["cells"]["store"]["ours"]) == "0.20 ms (0.20-0.40); 1 PUT"


@pytest.mark.parametrize(("cpu", "puts", "reached"), [(0.25, 50, True), (0.26, 50, False), (0.2, 100, False)])
def test_a_goal_is_reached_by_the_median_and_by_the_requests(cpu: float, puts: int, reached: bool) -> None:
    """A goal needs the median within its limit and no request too many."""
    from benchmarks import report, rows

    assert report.verdict(rows.ROWS[0], run(cpu=cpu, puts=puts)) is reached


@pytest.mark.parametrize(("ours", "redis", "reached"), [(600, 900, True), (600, 1100, False), (450, 500, False)])
def test_a_goal_may_be_a_share_of_redis(ours: float, redis: float, reached: bool) -> None:
    """The throughput of late tasks is held against Redis in the same run, beside the goal of its own."""
    from benchmarks import report, rows

    (row,) = (row for row in rows.ROWS if row.of_redis is not None)
    cells = {
        key: {"samples": {"rate": [rate]}, "requests": [], "units": 1}
        for key, rate in (("ours", ours), ("redis", redis))
    }
    measured = {"quick": False, "cells": {row.key: cells}}
    cells["ours"]["requests"] = [{"PUT": 1}]
    assert report.verdict(row, measured) is reached
    assert report.goal_text(row) == "≥ 500 tasks/s, ≥ 60% of Redis"


def test_a_quick_run_judges_no_goal() -> None:
    """A quick run has too few samples to call a goal reached or missed."""
    from benchmarks import report, rows

    assert report.verdict(rows.ROWS[0], run(quick=True)) is None


def test_the_readme_gets_the_runs_table_and_keeps_the_rest() -> None:
    """Only what stands between the markers is replaced, each time anew."""
    from benchmarks import report

    readme = f"# Title\n{report.BEGIN}\nold\n{report.END}\nthe rest\n"
    once = report.into_page(readme, report.markdown(run(), "a-run"))
    assert "old" not in once
    assert "0.20 ms (0.20-0.40); 1 PUT" in once
    assert "(runs/a-run.json)" in once
    assert once.startswith("# Title\n")
    assert once.endswith("\nthe rest\n")
    assert report.into_page(once, report.markdown(run(), "a-run")) == once


def test_a_readme_without_a_place_for_the_table_is_an_error() -> None:
    """Nothing is written where the markers are missing, and the message names them."""
    from benchmarks import report

    with pytest.raises(ValueError, match="bench:begin"):
        report.into_page("# Title\n", "table")


def test_the_chart_is_an_svg_with_a_bar_for_each_backend() -> None:
    """The chart parses as XML and has one bar for each backend that was measured."""
    from benchmarks import chart

    picture = ElementTree.fromstring(chart.svg(run()))
    assert sorted(bar.get("class") for bar in picture.iter("{http://www.w3.org/2000/svg}rect")) == ["celery", "ours"]
