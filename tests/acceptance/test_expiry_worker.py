"""The term that a call sets for its result, through a broker and a prefork worker."""

from __future__ import annotations

from pathlib import Path

import pytest
from celery import chain, group, states

from celery_s3.errors import ObjectMissing
from celery_s3.metadata import term_of

TASKS = Path(__file__).with_name("tasks.py")
SOON = 30


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_own_terms(seaweed, make_app, worker, eventually, serializer):
    """The header `result_expires` reaches its task's result, retried, in a chain, in a group, or killed.

    What was killed is stored by the worker's main process. A result without the header has no term of its own.
    """
    app = make_app(seaweed, broker="filesystem", task_serializer=serializer, accept_content=["json", serializer])
    worker(app, TASKS, concurrency=1, env={"C_FORCE_ROOT": "1"})

    def call(name, *args, **options):
        return app.signature(name, args, **options)

    def metadata(result):
        try:
            return app.backend.store.get(app.backend._full(app.backend.get_key_for_task(result.id))).metadata
        except ObjectMissing:
            return {}

    retried = app.send_task("flaky", (1,), headers={"result_expires": 11})
    killed = app.send_task("forever", time_limit=1, headers={"result_expires": 12})
    second = chain(
        call("add", 1, 2).set(headers={"result_expires": 13}), call("add", 3).set(headers={"result_expires": 0.5})
    ).apply_async()
    members = group(call("add", 1, 2), call("add", 3, 4), app=app).apply_async(headers={"result_expires": 15})
    plain = app.send_task("add", (1, 2))
    results = [retried, killed, second, second.parent, *members.results, plain]
    wanted = [11, 12, 0.5, 13, 15, 15, None]
    # not by their state: some read as missing by now
    eventually(lambda: all(metadata(one).get("celery-state") in states.READY_STATES for one in results), SOON)
    assert [term_of(metadata(one)) for one in results] == wanted
    assert killed.state == states.FAILURE
