"""The tasks of ``test_lost_child.py``: a chord's member whose process dies between its SUCCESS and the chord's end."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from celery import Celery

from celery_s3.chords import claim
from celery_s3.chords.decision import Decision
from celery_s3.chords.members import Members
from celery_s3.chords.sender import Sender

claim.SHORTEST_LEASE = 2.0
app = Celery("lost_child")
app.conf.update(json.loads(os.environ["CELERY_S3_TEST_CONF"]))


@app.task(name="add")
def add(x: int, y: int) -> int:
    return x + y


@app.task(name="total")
def total(values: list[Any]) -> int:
    return sum(value if isinstance(value, int) else 100 for value in values)


@app.task(name="last", acks_late=True, reject_on_worker_lost=True)
def last(others: list[str], runs: str, where: str) -> dict[str, str]:
    """Return when the other members have done all that they do; the process dies ``where`` that says."""
    while not all(app.AsyncResult(id).ready() for id in others):
        time.sleep(0.05)
    time.sleep(0.5)
    with Path(runs).open("a") as file:
        file.write(f"{os.getpid()}\n")
    return {"dies": where}


# Celery calls the first as soon as the SUCCESS is stored, that the second when all parts are found, and that the third
# with the claim and the values in hand.
_return, _decide, _send = Members.returned, Decision.go, Sender.decide
_doomed = {"where": ""}


def _returned(self: Any, request: Any, result: Any, state: str) -> None:
    _doomed["where"] = result["dies"] if isinstance(result, dict) else ""
    _die("stored")
    _return(self, request, result, state)


def _decided(self: Any) -> bool:
    _die("complete")
    return _decide(self)


def _sent(self: Any, *args: Any, **options: Any) -> Any:
    _die("claimed")
    return _send(self, *args, **options)


def _die(where: str) -> None:
    if _doomed["where"] == where:
        os.kill(os.getpid(), signal.SIGKILL)


Members.returned = _returned  # type: ignore[method-assign]
Decision.go = _decided  # type: ignore[method-assign]
Sender.decide = _sent  # type: ignore[method-assign]
