"""The measurements, each a generator of results: which row, whose, its samples and its requests."""

from __future__ import annotations

import gc
import json
import random
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from celery import Celery, chord, group

from celery_s3.dev.process import tail, wait_until

from .rows import DELAY, ROWS, TOLD, Effort
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
    yield from _tasks(stage, "tasks", effort.tasks, effort.bursts)
    yield from _tasks(stage, "late-tasks", effort.late_tasks, effort.bursts)
    yield from _chords(stage, "chord", effort.chords)
    yield from _chords(stage, "late-chord", effort.late_chords)
    yield from _waits(stage, effort)
    yield from _told(stage, effort)


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


def _told(stage: Stage, effort: Effort) -> Iterator[Cell]:
    """As :func:`_waits`, where a broker tells; one after the other, for it is about fractions of a millisecond."""
    for row in ROWS:
        told, _, length = row.key.partition("-")
        broker, notices = TOLD.get(told, ("", ""))
        if of_broker := stage.brokers.get(broker):
            stage.proxy.reset()
            order = _wait_order(stage, "ours", float(length), effort.waits[float(length)])
            for conf in (order["conf"], order["straight"]):
                conf |= of_broker
                conf["s3_backend_settings"] |= {"notices": notices}
            process = stage.client("clients", "wait", order)
            yield row.key, "ours", _cell(stage, "ours", _answer(process))


def _wait_order(stage: Stage, contender: str, length: float, times: int) -> dict[str, Any]:
    steps = [2 * (number + 0.5) / times - 1 for number in range(times)]
    random.Random(times).shuffle(steps)
    lengths = [length * (1 + VARIATION * step) for step in steps]
    return {"conf": stage.conf(contender), "straight": stage.conf(contender, straight=True), "lengths": lengths}


# -- a real worker


def _is_late(row: str) -> bool:
    """Whether a row's tasks are acknowledged late: then ours stores their results while it works on."""
    return row.startswith("late-")


def _tasks(stage: Stage, row: str, count: int, bursts: int) -> Iterator[Cell]:
    for contender in stage.contenders:
        cells = [
            _burst(stage, contender, count, stage.folder / f"{contender}-{row}-{number}", late=_is_late(row))
            for number in range(bursts)
        ]
        yield row, contender, _joined(cells)


def _burst(stage: Stage, contender: str, count: int, times: Path, *, late: bool) -> dict[str, Any]:
    times.touch()
    publisher = Celery("publisher", set_as_current=False, **stage.broker)
    stage.proxy.reset()
    process = stage.worker(contender, times, late=late)
    try:
        _run(publisher, process, times, WARM_UP)
        _last_stored(stage, contender, WARM_UP, process)
        stage.proxy.reset()
        began, ended = _run(publisher, process, times, count)
        ended = max(ended, _last_stored(stage, contender, count, process))
    finally:
        process.terminate()
        process.wait(30)
    answer = {"samples": {"rate": [count / (ended - began)]}, "windows": [(began, ended)]}
    return _cell(stage, contender, answer, count)


def _run(publisher: Celery, worker: subprocess.Popen[bytes], times: Path, count: int) -> tuple[float, float]:
    """When the first of ``count`` tasks began and the last had run; but for late ones its result had been stored."""
    noted = len(_notes(times))
    for number in range(count):
        publisher.send_task("benchmarks.tasks.add", (number, 1))
    if not wait_until(lambda: len(_notes(times)) == noted + 2 * count, worker, 120):
        raise RuntimeError(f"the worker did not run its tasks:\n{tail(times.with_suffix('.log'))}")
    notes = _notes(times)[noted:]
    kinds = Counter(note.what for note in notes)
    assert kinds["begin"] == kinds["end"] == count, kinds
    return min(note.time for note in notes), max(note.time for note in notes)


def _last_stored(stage: Stage, contender: str, count: int, worker: subprocess.Popen[bytes]) -> float:
    """When the last of ``count`` results had been stored, as the proxy has seen it; 0 of Redis, which has none."""
    if contender == "redis":
        return 0.0
    if not wait_until(lambda: len(stage.stored(contender)) >= count, worker, 30):
        raise RuntimeError(f"{contender} stored {len(stage.stored(contender))} of {count} results")
    return stage.stored(contender)[-1] + DELAY


@dataclass(frozen=True, slots=True)
class _Note:
    what: str
    task: str
    time: float
    value: float


def _notes(times: Path) -> list[_Note]:
    lines = (line.split() for line in times.read_text().splitlines())
    return [_Note(what, task, float(at), float(value)) for what, task, at, value in lines]


# -- chords


def _chords(stage: Stage, kind: str, sizes: Mapping[int, Mapping[str, int]]) -> Iterator[Cell]:
    for size, times in sizes.items():
        for contender in stage.contenders:
            if times.get(contender):
                row = f"{kind}-{size}"
                notes = stage.folder / f"{contender}-{row}"
                cell = _chords_of(stage, contender, size, times[contender], notes, late=_is_late(row))
                yield row, contender, cell


def _chords_of(stage: Stage, contender: str, size: int, times: int, notes: Path, *, late: bool) -> dict[str, Any]:
    notes.touch()
    app = Celery("publisher", set_as_current=False, **stage.broker, **stage.conf(contender))
    process = stage.worker(contender, notes, late=late)
    samples: dict[str, list[float]] = {"late": [], "wall": [], "memory": []}
    windows = []
    try:
        _chord(app, process, notes, WARM_UP)
        stage.proxy.reset()
        for _ in range(times):
            measured, window = _chord(app, process, notes, size)
            for name, value in measured.items():
                samples[name].append(value)
            windows.append(window)
    finally:
        process.terminate()
        process.wait(30)
        gc.collect()  # Celery's results tell Redis when they go: while it is there
        app.close()
    return _cell(stage, contender, {"samples": samples, "windows": windows})


def _chord(
    app: Celery, worker: subprocess.Popen[bytes], times: Path, size: int
) -> tuple[dict[str, float], tuple[float, float]]:
    """One chord: how late its body began (ms after the last member had run), the whole (s), the sender's peak (MB)."""
    noted = len(_notes(times))
    header = group([app.signature("benchmarks.tasks.member", (number,)) for number in range(size)], app=app)
    began = time.time()
    chord(header, app.signature("benchmarks.tasks.body"), app=app).apply_async()
    if not wait_until(
        lambda: any(note.what == "end" and note.task == "body" for note in _notes(times)[noted:]), worker, 900
    ):
        raise RuntimeError(f"the worker did not run a chord:\n{tail(times.with_suffix('.log'))}")
    # its last writes: the claim's mark, the parts' deletion
    time.sleep(0.5)
    notes = _notes(times)[noted:]
    (begun,) = (note.time for note in notes if (note.what, note.task) == ("begin", "body"))
    (ended,) = (note.time for note in notes if (note.what, note.task) == ("end", "body"))
    (memory,) = (note.value for note in notes if note.what == "sent")
    ran = [note.time for note in notes if note.what == "ran"]
    assert len(ran) == size, len(ran)
    return {"late": 1000 * (begun - max(ran)), "wall": ended - began, "memory": memory}, (began, time.time())
