"""The tasks of ``overlap.py``.

When each begins, has done its work and lets go of its message is written down, line by line, in ``events``.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from celery import Celery
from kombu.transport.redis import QoS

from celery_s3.store.clients.boto3_client import Boto3Client
from celery_s3.store.clients.obstore_client import ObstoreClient
from celery_s3.store.requests import Put

CONF = json.loads(os.environ["OVERLAP_CONF"])
EVENTS = Path(os.environ["OVERLAP_EVENTS"])
#: Seconds before a write is sent: the longer, the more is under way when somebody dies.
DELAY = float(os.environ["OVERLAP_DELAY"])

app = Celery("overlap")
app.conf.update(CONF)


def _late(client: type[Any]) -> None:
    send = client.send

    def late(self: Any, request: Any) -> Any:
        if isinstance(request, Put):
            time.sleep(DELAY)
        return send(self, request)

    client.send = late


_late(ObstoreClient)
_late(Boto3Client)


def event(kind: str, name: str) -> None:
    """One line, written whole whatever happens to this process."""
    with EVENTS.open("ab", buffering=0) as file:
        file.write(f"{json.dumps([time.time(), kind, name, os.getpid()])}\n".encode())


def _told(settle: Any) -> Any:
    def tells(self: QoS, delivery_tag: str, requeue: bool = False) -> None:
        if not requeue:
            event("settled", self.get(delivery_tag).headers["id"])
        settle(self, delivery_tag, *([True] if requeue else []))

    return tells


QoS.ack, QoS.reject = _told(QoS.ack), _told(QoS.reject)


@app.task(name="plain", bind=True)
def plain(self: Any, number: int, seconds: float) -> int:
    event("began", self.request.id)
    time.sleep(seconds)
    event("ended", self.request.id)
    return number


@app.task(name="fails", bind=True)
def fails(self: Any, number: int) -> None:
    event("began", self.request.id)
    event("ended", self.request.id)
    raise ValueError(number)


@app.task(name="overruns", bind=True, time_limit=1)
def overruns(self: Any) -> None:
    event("began", self.request.id)
    time.sleep(60)


@app.task(name="stays", bind=True)
def stays(self: Any) -> None:
    """Until somebody revokes it."""
    event("began", self.request.id)
    time.sleep(60)


@app.task(name="body", bind=True)
def body(self: Any, values: list[int], size: int) -> int:
    event("ran" if values == list(range(size)) else "wrong", self.request.id)
    return len(values)
