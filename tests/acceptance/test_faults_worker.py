"""A real worker whose store fails now and then, or stands still."""

from __future__ import annotations

import random
import uuid
from pathlib import Path

import pytest
from celery import states
from celery.exceptions import TimeLimitExceeded
from logs import ours

TASKS = Path(__file__).with_name("tasks.py")
#: Seconds that an answer may take; only a hang takes them.
SOON = 40
FAULTS = ["slow_down", "internal_error", "bad_gateway", "conflict", "reset", "reset_after", "internal_error_after"]


@pytest.fixture
def work(seaweed, proxy, make_app, worker):
    """``app, one = work(**settings)``: an app on SQS, and its worker; ``proxy`` stands before the store of both."""

    def start(args=(), conf=None, **settings):
        values = {"endpoint_url": proxy.endpoint_url} | settings
        app = make_app(seaweed, broker="sqs", s3_backend_settings=values, **(conf or {}))
        return app, worker(app, TASKS, args=args)

    return start


def test_no_result_is_lost(work, proxy):
    """Two requests of three fail at first, in one way or another: sixty results arrive, each right."""
    app, one = work(read_timeout=1)
    chance = random.Random(1)
    ids = [str(uuid.uuid4()) for _ in range(60)]
    for task_id in ids:
        proxy.fail(f"PUT {task_id}", chance.choice(FAULTS), times=chance.randrange(4))
        proxy.fail(f"GET {task_id}", chance.choice(FAULTS[:5]), times=chance.randrange(3))
    results = [app.send_task("add", (number, 1), task_id=task_id) for number, task_id in enumerate(ids[:50])]
    failing = [app.send_task("fail", (str(number),), task_id=task_id) for number, task_id in enumerate(ids[50:])]
    assert [result.get(timeout=SOON) for result in results] == [number + 1 for number in range(50)]
    for number, result in enumerate(failing):
        assert str(result.get(timeout=SOON, propagate=False)) == str(number)
    assert sum(1 for record in proxy.records() if record.fault) > 60
    assert ours(one.log) == []


def test_a_spent_budget_is_told_in_the_log(work, proxy, eventually):
    """A result that cannot be stored is an error in the log that names task and object; the next one is stored."""
    app, one = work(max_retries=1, outage_patience=0)
    lost = str(uuid.uuid4())
    proxy.fail(f"PUT {lost}", "internal_error", times=-1)
    app.send_task("add", (1, 1), task_id=lost)
    assert app.send_task("add", (2, 2)).get(timeout=SOON) == 4
    eventually(lambda: f"celery-task-meta-{lost}: the server failed" in one.log, SOON)
    assert f"task {lost} was not stored" in one.log


def test_always_retry_outlives_an_outage(work, proxy, eventually):
    """With `result_backend_always_retry` a worker waits for its store, and stores the result."""
    app, _ = work(max_retries=1, outage_patience=0, conf={"result_backend_always_retry": True})
    task_id = str(uuid.uuid4())
    proxy.fail(f"PUT {task_id}", "slow_down", times=-1)
    result = app.send_task("add", (1, 1), task_id=task_id)
    eventually(lambda: len([record for record in proxy.records() if record.fault]) > 6, SOON)
    assert app.AsyncResult(task_id).state == states.PENDING
    proxy.heal()
    assert result.get(timeout=SOON) == 2


def test_a_store_that_stands_still_does_not_stop_the_worker(work, proxy, eventually):
    """A time limit strikes while the store hangs: the main process replaces the child and goes on."""
    app, one = work(read_timeout=1)
    before = one.children()
    late = str(uuid.uuid4())
    proxy.fail(f"* {late}", "hang", times=-1)
    app.send_task("forever", time_limit=1, task_id=late)
    eventually(lambda: [record for record in proxy.records() if record.target.endswith(late)], SOON)
    results = [app.send_task("add", (number, 1)) for number in range(4)]
    assert [result.get(timeout=SOON) for result in results] == [1, 2, 3, 4]
    eventually(lambda: len(one.children()) == 2 and set(one.children()) != set(before), SOON)
    proxy.heal()
    with pytest.raises(TimeLimitExceeded):
        app.AsyncResult(late).get(timeout=SOON)
    again = app.send_task("forever", time_limit=1)
    with pytest.raises(TimeLimitExceeded):
        again.get(timeout=SOON)


def test_a_store_that_comes_later(seaweed, proxy, make_app, worker):
    """A worker starts although its store is not there, and stores results once it is."""
    proxy.down()
    app = make_app(seaweed, broker="sqs", s3_backend_settings={"endpoint_url": proxy.endpoint_url})
    one = worker(app, TASKS)
    result = app.send_task("nap", (0.5,))
    one.wait_for(f"Task nap[{result.id}] received")
    proxy.up()
    assert result.get(timeout=SOON) == "rested"
    assert ours(one.log) == []


def test_wrong_keys_are_told_in_the_log(work, seaweed, eventually):
    """A worker whose keys are wrong says so for each result, names the settings, tells no secret, and goes on."""
    secret = "wrong+secret/of+forty+characters/0123456"
    app, one = work(aws_secret_access_key=secret)
    results = [app.send_task("add", (1, 1)) for _ in range(2)]
    eventually(lambda: all(f"SUCCESS of task {result.id} was not stored" in one.log for result in results), SOON)
    assert "(403 SignatureDoesNotMatch)" in one.log
    assert "Check `aws_access_key_id`, `aws_secret_access_key`" in one.log
    assert secret not in one.log
    assert seaweed.secret_key not in one.log
    assert one.running
