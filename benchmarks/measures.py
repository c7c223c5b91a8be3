"""The measurements, each a generator of results: which row, whose, its samples and its requests."""

from __future__ import annotations

import json
import random
import subprocess
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from celery import Celery

from celery_s3.dev.process import tail, wait_until

from .rows import DELAY, Effort
from .stage import Stage

__all__ = ["Cell", "measure"]

#: Row, contender, and what was measured: ``samples`` by metric, ``requests`` as a list of counts by operation
#: (one for each sample), ``units`` of work in a sample.
Cell = tuple[str, str, dict[str, Any]]

#: Tasks that are waited for are up to this share shorter or longer than the row says, evenly, so that they end in
#: any phase of a waiter's nap: at 0.05 s to 7.7 s the naps are a tenth of the time waited or more.
VARIATION = 0.2

#: How many tasks run before the worker is measured.
WARM_UP = 40


def measure(stage: Stage, effort: Effort) -> Iterator[Cell]:
    """Everything, in the order of the rows' first appearance on the screen."""
    yield from _singles(stage, effort)
    yield from _firsts(stage, effort)
    stage.proxy.configure(delay=DELAY)
    yield from _groups(stage, effort)
    yield from _tasks(stage, effort)
    yield from _waits(stage, effort)


def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = process.communicate(timeout=300)
    if process.returncode:
        raise RuntimeError(f"a client process failed: {process.args!r}")
    answer: dict[str, Any] = json.loads(output.splitlines()[-1])
    return answer


def _cell(stage: Stage, contender: str, answer: dict[str, Any], units: int = 1) -> dict[str, Any]:
    requests = stage.requests(contender, answer.get("windows", []))
    return {"samples": answer["samples"], "requests": [dict(count) for count in requests], "units": units}


def _joined(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """The cells of several processes as one."""
    samples = {name: list(chain.from_iterable(cell["samples"][name] for cell in cells)) for name in cells[0]["samples"]}
    requests = list(chain.from_iterable(cell["requests"] for cell in cells))
    return {"samples": samples, "requests": requests, "units": cells[0]["units"]}


# -- one result, no delay


def _singles(stage: Stage, effort: Effort) -> Iterator[Cell]:
    batches = {"batches": effort.batches, "batch": effort.batch}
    floor = stage.client("clients", "floor", {"server": stage.server.settings()} | batches)
    yield "floor", "obstore", _answer(floor) | {"requests": [], "units": 1}
    for job in ("store", "fetch"):
        cells: dict[str, list[dict[str, Any]]] = {key: [] for key in stage.contenders}
        for _ in range(effort.rounds):  # in turn, so that what else the machine does hits all of them
            for contender, own in cells.items():
                order = {"conf": stage.conf(contender), "straight": stage.conf(contender, straight=True)} | batches
                stage.proxy.reset()
                answer = _answer(stage.client("clients", job, order))
                own.append(_cell(stage, contender, answer, effort.batch))
        for contender, own in cells.items():
            yield job, contender, _joined(own)


def _firsts(stage: Stage, effort: Effort) -> Iterator[Cell]:
    cells: dict[str, list[dict[str, Any]]] = {key: [] for key in stage.contenders}
    for number in range(effort.firsts + 1):
        for contender, own in cells.items():
            cell = _cell(stage, contender, _answer(stage.client("first", "", {"conf": stage.conf(contender)})))
            if number:  # the first one brings the files into the page cache
                own.append(cell)
    for contender, own in cells.items():
        yield "first", contender, _joined(own)


# -- with the delay


def _groups(stage: Stage, effort: Effort) -> Iterator[Cell]:
    for contender in stage.contenders:
        straight = stage.conf(contender, straight=True)
        order = {"conf": stage.conf(contender), "straight": straight, "size": effort.group}
        stage.proxy.reset()
        process = stage.client("clients", "group", order | {"times": effort.groups[contender]})
        yield "group", contender, _cell(stage, contender, _answer(process))


def _waits(stage: Stage, effort: Effort) -> Iterator[Cell]:
    """All contenders at the same time: they mostly sleep, and it saves minutes."""
    for length, times in effort.waits.items():
        stage.proxy.reset()
        waiting = {
            contender: stage.client("clients", "wait", _wait_order(stage, contender, length, times))
            for contender in stage.contenders
        }
        answers = {contender: _answer(process) for contender, process in waiting.items()}
        for contender, answer in answers.items():
            yield f"wait-{length:g}", contender, _cell(stage, contender, answer)


def _wait_order(stage: Stage, contender: str, length: float, times: int) -> dict[str, Any]:
    steps = [2 * (number + 0.5) / times - 1 for number in range(times)]
    random.Random(times).shuffle(steps)
    lengths = [length * (1 + VARIATION * step) for step in steps]
    return {"conf": stage.conf(contender), "straight": stage.conf(contender, straight=True), "lengths": lengths}


# -- a real worker


def _tasks(stage: Stage, effort: Effort) -> Iterator[Cell]:
    for contender in stage.contenders:
        cells = [
            _burst(stage, contender, effort.tasks, stage.folder / f"{contender}-{number}")
            for number in range(effort.bursts)
        ]
        yield "tasks", contender, _joined(cells)


def _burst(stage: Stage, contender: str, count: int, times: Path) -> dict[str, Any]:
    times.touch()
    publisher = Celery("publisher", set_as_current=False, **stage.broker)
    process = stage.worker(contender, times)
    try:
        _run(publisher, process, times, WARM_UP)
        stage.proxy.reset()
        began, ended = _run(publisher, process, times, count)
    finally:
        process.terminate()
        process.wait(30)
    answer = {"samples": {"rate": [count / (ended - began)]}, "windows": [(began, ended)]}
    return _cell(stage, contender, answer, count)


def _run(publisher: Celery, worker: subprocess.Popen[bytes], times: Path, count: int) -> tuple[float, float]:
    """When the first of ``count`` tasks began and the last result had been stored."""
    noted = len(times.read_text().splitlines())
    for number in range(count):
        publisher.send_task("benchmarks.tasks.add", (number, 1))
    if not wait_until(lambda: len(times.read_text().splitlines()) == noted + 2 * count, worker, 120):
        raise RuntimeError(f"the worker did not run its tasks:\n{tail(times.with_suffix('.log'))}")
    moments = [(what, float(at)) for what, at in map(str.split, times.read_text().splitlines()[noted:])]
    kinds = Counter(what for what, _ in moments)
    assert kinds["begin"] == kinds["end"] == count, kinds
    return min(at for _, at in moments), max(at for _, at in moments)
