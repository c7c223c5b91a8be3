"""The tasks of the claim check's acceptance test; a test calls them by name."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from celery import Celery, Task

from celery_s3 import claimcheck

app = Celery("claimcheck_tasks")
claimcheck.install(app)
app.conf.update(json.loads(os.environ["CELERY_S3_TEST_CONF"]))


@app.task(name="length")
def length(*texts: str) -> int:
    return sum(map(len, texts))


@app.task(name="many")
def many(size: int) -> str:
    return "x" * size


@app.task(name="lengths")
def lengths(texts: list[str]) -> list[int]:
    return [len(text) for text in texts]


@app.task(name="again", bind=True, max_retries=1)
def again(self: Task, text: str) -> int:
    if not self.request.retries:
        raise self.retry(countdown=0)
    return len(text)


@app.task(name="die_once", acks_late=True, reject_on_worker_lost=True)
def die_once(mark: str, text: str) -> int:
    """Kill its process at the first run; the second finds the mark that the first left."""
    if not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return len(text)


@app.task(name="too_long", time_limit=1)
def too_long(text: str) -> None:
    time.sleep(60)


@app.task(name="note")
def note(request: Any, exc: Exception, traceback: object, path: str) -> None:
    """An errback: note whose failure it was told."""
    Path(path).write_text(request.id)
