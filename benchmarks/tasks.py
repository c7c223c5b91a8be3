"""What the worker runs; it notes when each task begins, when its result has been stored, and when a body is sent."""

from __future__ import annotations

import json
import os
import time
from resource import RUSAGE_SELF, getrusage
from typing import Any

from celery import Celery
from celery.signals import after_task_publish, task_postrun, task_prerun

app = Celery("benchmarks")
app.conf.update(json.loads(os.environ.get("BENCHMARK_CONF", "{}")))


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
def member(number: int) -> int:
    _note("ran", "member")
    return number


@app.task
def body(values: list[int]) -> int:
    return sum(values)


def _note(what: str, task: str, value: float = 0) -> None:
    path = os.environ.get("BENCHMARK_TIMES")
    if path is None:  # the publisher
        return
    # One short write to a file opened for appending is never torn.
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{what} {task.rpartition('.')[2]} {time.time()} {value}\n".encode())
    os.close(file)


@task_prerun.connect
def _begins(sender: Any, **_: Any) -> None:
    _note("begin", sender.name)


@task_postrun.connect
def _stored(sender: Any, **_: Any) -> None:
    _note("end", sender.name)


@after_task_publish.connect
def _published(sender: str, **_: Any) -> None:
    if sender == body.name:
        _note("sent", sender, getrusage(RUSAGE_SELF).ru_maxrss / 1024)
