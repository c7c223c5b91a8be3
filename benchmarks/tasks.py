"""What the worker runs; it notes when each task begins, and when its result has been stored."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from celery import Celery
from celery.signals import task_postrun, task_prerun

app = Celery("benchmarks")
app.conf.update(json.loads(os.environ.get("BENCHMARK_CONF", "{}")))


@app.task
def add(x: int, y: int) -> int:
    return x + y


def _note(what: str) -> None:
    # One short write to a file opened for appending is never torn.
    file = os.open(os.environ["BENCHMARK_TIMES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{what} {time.time()}\n".encode())
    os.close(file)


@task_prerun.connect
def _begins(**_: Any) -> None:
    _note("begin")


@task_postrun.connect
def _stored(**_: Any) -> None:
    _note("end")
