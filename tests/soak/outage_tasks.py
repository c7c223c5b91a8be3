"""The tasks of ``outage.py``; what ran is written down, line by line, in ``events``."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import worker_ready
from outage_watch import Events, watch_loop

CONF = json.loads(os.environ["OUTAGE_CONF"])
EVENTS = Events(Path(os.environ["OUTAGE_EVENTS"]))

app = Celery("outage")
app.conf.update(CONF)


@worker_ready.connect(weak=False)
def ready(sender: Any, **_: object) -> None:
    watch_loop(sender, EVENTS)


@app.task(name="plain", bind=True)
def plain(self: object, number: int, seconds: float = 0.0) -> int:
    time.sleep(seconds)
    return number


@app.task(name="noted", bind=True)
def noted(self: object) -> None:
    EVENTS.add("began", self.request.id)  # type: ignore[attr-defined]


@app.task(name="reports", bind=True)
def reports(self: object, number: int) -> int:
    """Tells its progress, which may fail quietly."""
    for step in range(3):
        self.update_state(state="PROGRESS", meta={"step": step})  # type: ignore[attr-defined]
    return number


@app.task(name="overruns", time_limit=2)
def overruns() -> None:
    time.sleep(60)


@app.task(name="dies")
def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(name="body", bind=True)
def body(self: object, values: list[int], size: int) -> int:
    EVENTS.add("ran" if values == list(range(size)) else "wrong", self.request.id)  # type: ignore[attr-defined]
    return len(values)
