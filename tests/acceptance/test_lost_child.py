"""A child that is killed after its SUCCESS is stored, and before its chord has gone on: Celery 5.7 takes it as done."""

from __future__ import annotations

from pathlib import Path

import celery
import pytest
from celery import chord, states
from kombu.utils.uuid import uuid
from logs import ours

TASKS = Path(__file__).with_name("lost_child_tasks.py")
CELERY = tuple(int(number) for number in celery.__version__.split(".")[:2])
#: Seconds that an answer may take; only a hang takes them.
SOON = 30


@pytest.mark.skipif(CELERY < (5, 7), reason="this Celery runs such a task again, or stores that it failed")
def test_the_chord_goes_on(seaweed, make_app, worker, tmp_path):
    """The main process of the worker hands the chord to another child: once the body, the member does not run again.

    Nobody else would go on: the child was the last member's, the others had found its part missing, and the message is
    acknowledged. A claim that the child held is taken over after its lease.
    """
    # without overlap: else the message is held until the chord has gone on, and comes again
    app = make_app(seaweed, broker="sqs", broker_connection_timeout=0.1, s3_backend_settings={"overlap": 0})
    one = worker(app, TASKS)
    before = set(one.children())
    for where in ("stored", "complete", "claimed"):
        first, runs = uuid(), tmp_path / where
        header = [
            app.signature("add", (1, 1), task_id=first),
            app.signature("last", ([first], str(runs), where)),
        ]
        body = chord(header, app=app)(app.signature("total"))
        assert body.get(timeout=SOON) == 102
        assert body.parent[1].state == states.SUCCESS
        assert len(runs.read_text().split()) == 1
    assert one.log.count("succeeded before the worker was lost") == 3
    assert one.log.count("Task total[") == 6  # received and succeeded, once each
    assert before - set(one.children())
    assert ours(one.log) == []
