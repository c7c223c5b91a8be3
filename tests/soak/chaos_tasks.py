"""The tasks of ``chords.py``; what happens to a chord's body is written down, line by line, in ``events``."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

from celery import Celery
from celery.signals import after_task_publish, before_task_publish, task_postrun

from celery_s3.chords import claim
from celery_s3.chords.claim import Claim

CONF = json.loads(os.environ["CHAOS_CONF"])
EVENTS = Path(os.environ["CHAOS_EVENTS"])
#: Where it is not there, a body's sender dies.
DIES = Path(os.environ["CHAOS_DIES"]) if "CHAOS_DIES" in os.environ else None
# The default is for brokers that are far away; a round would take minutes.
claim.SHORTEST_LEASE = float(os.environ["CHAOS_LEASE"])

app = Celery("chaos")
app.conf.update(CONF)


def event(kind: str, name: str) -> None:
    """One line, written whole whatever happens to this process."""
    line = json.dumps([time.time(), kind, name, os.getpid()])
    with EVENTS.open("ab", buffering=0) as file:
        file.write(f"{line}\n".encode())


@app.task(name="member", bind=True)
def member(self: object, number: int, seconds: float) -> int:
    event("began", self.request.id)  # type: ignore[attr-defined]
    time.sleep(seconds)
    return number


@app.task(name="body", bind=True)
def body(self: object, values: list[int], size: int) -> None:
    event("ran" if values == list(range(size)) else "wrong", self.request.id)  # type: ignore[attr-defined]


@app.task(name="error")
def error(task_id: str) -> None:
    event("error", task_id)


@before_task_publish.connect
def _before(sender: str, headers: dict[str, str], **_: object) -> None:
    if sender == "body":
        event("publishing", headers["id"])
        if DIES and not DIES.exists():
            DIES.touch()
            os.kill(os.getpid(), signal.SIGKILL)


@after_task_publish.connect
def _after(sender: str, headers: dict[str, str], **_: object) -> None:
    if sender == "body":
        event("published", headers["id"])


@task_postrun.connect
def _ended(task_id: str, **_: object) -> None:
    event("ended", task_id)


_mark = Claim.mark


def _marked(own: Claim, state: str) -> bool:
    done = _mark(own, state)  # type: ignore[arg-type]
    event("marked" if done else "lost", own.key)
    return done


Claim.mark = _marked  # type: ignore[assignment, method-assign]
