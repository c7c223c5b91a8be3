"""Notices of a real worker, over a real Redis and an SQS: who waits is told of every way in which a task may end."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest
from celery import chain, chord, group

from celery_s3 import aio
from celery_s3.notices.notice import PREFIX

TASKS = Path(__file__).with_name("tasks.py")


def test_told_by_a_worker(seaweed, make_app, worker, eventually):
    """A task, a failing chain, a chord's body, `then()` and `await`: few requests, however long it takes."""
    app = make_app(seaweed, broker="redis")
    add, fail, nap, total = map(app.signature, ("add", "fail", "nap", "total"))
    worker(app, TASKS)
    assert add.clone((1, 2)).apply_async().get(timeout=30) == 3

    before = gets(app)
    assert nap.clone((1.5,)).apply_async().get(timeout=30) == "rested"
    assert gets(app) - before <= 2

    before = gets(app)
    end = chain(nap.clone((0.6,)), fail.clone(("no",)).set(immutable=True), add.clone((1,))).apply_async()
    with pytest.raises(Exception, match="no"):
        end.get(timeout=30)
    assert gets(app) - before <= 12  # each look asks for the earliest unfinished task, too

    before = gets(app)
    body = chord([add.clone((1, 1)), nap.clone((0.6, 3))])(total.clone())
    assert body.get(timeout=30) == 5
    assert gets(app) - before <= 3

    called = []
    subscribed = nap.clone((0.2,)).apply_async()
    subscribed.then(lambda result: called.append(result.get()))
    assert eventually(lambda: called) == ["rested"]

    async def main():
        results = group(nap.clone((0.01, number)) for number in range(30)).apply_async().results
        return [one.result async for one in aio.as_completed(results, timeout=30)]

    assert sorted(asyncio.run(main())) == list(range(30))


def gets(app):
    return app.backend.tally.snapshot().get("GET", {}).get("requests", 0)


def test_told_by_sqs(seaweed, make_app, worker, sqs):
    """With `notices = on` over SQS too: a client, and a task that waits, whose process takes its queue with it."""
    app = make_app(seaweed, broker="sqs", s3_backend_settings={"notices": "on"})
    add, nap, join = map(app.signature, ("add", "nap", "join"))
    started = worker(app, TASKS)
    assert app.backend.notices.round_trip("nobody", 30.0)
    assert chain(add.clone((1, 1)), add.clone((2,))).apply_async().get(timeout=30) == 4

    before = gets(app)
    assert nap.clone((2.1,)).apply_async().get(timeout=30) == "rested"
    assert gets(app) - before <= 4

    address, looks = join.clone((1.3,)).apply_async().get(timeout=60)
    assert looks <= 3
    assert address in queues(app)
    started.kill(signal.SIGTERM)
    assert started.wait() == 0
    assert address not in queues(app)


def queues(app):
    with app.connection_for_write() as connection:
        found = connection.channel().sqs().list_queues(QueueNamePrefix=PREFIX)
    return {url.rpartition("/")[2] for url in found.get("QueueUrls", ())}
