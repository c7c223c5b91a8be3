"""Children and workers that are killed: every task ends in a result, and a SUCCESS stays one."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from celery import states
from celery.exceptions import TaskRevokedError, TimeLimitExceeded, WorkerLostError
from logs import ours

TASKS = Path(__file__).with_name("tasks.py")
#: Seconds that an answer may take; only a hang takes them.
SOON = 40


@pytest.fixture
def work(seaweed, proxy, make_app, worker):
    """``app, one = work(**conf)``: an app on SQS, and its worker with two processes; ``proxy`` sees the requests."""

    def start(broker="sqs", args=(), **conf):
        conf["s3_backend_settings"] = {"endpoint_url": proxy.endpoint_url} | conf.get("s3_backend_settings", {})
        app = make_app(seaweed, broker=broker, **conf)
        return app, worker(app, TASKS, args=args)

    return start


def stored_by(proxy, task_id):
    """The clients that wrote a result, by what they call themselves."""
    puts = [record for record in proxy.records() if record.method == "PUT" and record.target.endswith(task_id)]
    return {record.headers["user-agent"].partition("/")[0].lower() for record in puts if record.status == 200}


def goes_on(app):
    """Whether all processes of the worker do their work, and which they are."""
    results = [app.send_task("clients") for _ in range(8)]
    told = [result.get(timeout=SOON) for result in results]
    assert {tuple(each["clients"]) for each in told} == {("ObstoreClient",)}
    return {each["pid"] for each in told}


# -- children


@pytest.mark.parametrize("broker", ["sqs", "filesystem"])
def test_hard_time_limit(work, proxy, eventually, broker):
    """The main process stores FAILURE through boto3 and forks a replacement, which works, and uses obstore.

    On SQS its event loop does that, on a broker without one a thread.
    """
    app, one = work(broker, task_track_started=broker == "sqs")
    before = one.children()
    for _ in range(2):
        late = app.send_task("forever", time_limit=1)
        with pytest.raises(TimeLimitExceeded, match="1"):
            late.get(timeout=SOON)
        assert late.state == states.FAILURE
        assert "botocore" in stored_by(proxy, late.id)
    eventually(lambda: not set(before) <= set(one.children()), SOON)
    assert goes_on(app)
    assert ours(one.log) == []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_children_that_share_a_queue(work, proxy, host):
    """On a broker without an event loop the children share a lock: none is killed while it holds it.

    It happens where another thread of the child, as obstore's or that of a name's look-up, takes the SIGTERM.
    """
    url = proxy.endpoint_url.replace("127.0.0.1", host)
    app, one = work("filesystem", s3_backend_settings={"endpoint_url": url})
    for _ in range(3):
        goes_on(app)
        with pytest.raises(TimeLimitExceeded):
            app.send_task("forever", time_limit=1).get(timeout=SOON)
    goes_on(app)
    assert ours(one.log) == []


def test_soft_time_limit(work):
    """The task is told, and its answer is the result; one that does not listen ends in FAILURE."""
    app, one = work()
    told = app.send_task("softly", soft_time_limit=1)
    deaf = app.send_task("forever", soft_time_limit=1)
    assert told.get(timeout=SOON) == "told"
    with pytest.raises(Exception, match="SoftTimeLimitExceeded"):
        deaf.get(timeout=SOON)
    goes_on(app)
    assert ours(one.log) == []


def test_a_child_that_kills_itself(work, proxy):
    """Its task ends in FAILURE, stored by the main process through boto3; the replacement works."""
    app, one = work()
    before = one.children()
    dead = app.send_task("die")
    with pytest.raises(WorkerLostError, match="SIGKILL"):
        dead.get(timeout=SOON)
    assert stored_by(proxy, dead.id) == {"botocore"}
    assert goes_on(app) - set(before)
    assert ours(one.log) == []


def test_a_lost_task_runs_again(work, tmp_path):
    """With `acks_late` and `reject_on_worker_lost` the second run's result is stored, and no FAILURE."""
    app, one = work("redis")
    twice = app.send_task("die_once", (str(tmp_path / "mark"),))
    assert twice.get(timeout=SOON) == "second run"
    goes_on(app)
    assert ours(one.log) == []


def test_success_outlives_the_child(work, proxy, eventually):
    """A child that dies after it stored SUCCESS: the main process believes it lost, SUCCESS stays."""
    app, one = work()
    stored = app.send_task("die_stored")
    # Celery 5.7 looks whether SUCCESS is stored, older ones try to store FAILURE
    eventually(lambda: "before the worker was lost" in one.log or "Task handler raised error" in one.log, SOON)
    goes_on(app)
    assert stored.get(timeout=SOON) == "stored"
    assert stored_by(proxy, stored.id) == {"object_store"}
    assert ours(one.log) == []


def test_revoke_and_terminate(work, eventually):
    """A task that is revoked while it runs ends in REVOKED, one that is revoked before too; the others go on."""
    app, one = work(broker="redis")
    running = [app.send_task("forever") for _ in range(2)]
    waiting = app.send_task("add", (1, 1))
    eventually(lambda: one.log.count("received") == 3, SOON)
    waiting.revoke()
    for result in running:
        result.revoke(terminate=True, signal="SIGKILL")
    for result in [*running, waiting]:
        with pytest.raises(TaskRevokedError):
            result.get(timeout=SOON)
    goes_on(app)
    assert ours(one.log) == []


def test_children_killed_all_the_time(work):
    """Every child is killed again and again from outside: each task ends, in its result or in FAILURE."""
    app, one = work()
    results = [app.send_task("nap", (0.1, number)) for number in range(30)]
    for index in range(0, 12, 3):
        results[index].get(timeout=SOON, propagate=False)
        for pid in one.children():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    for number, result in enumerate(results):
        outcome = result.get(timeout=SOON, propagate=False)
        assert outcome == number or isinstance(outcome, WorkerLostError)
    goes_on(app)
    assert ours(one.log) == []


# -- workers


def late_acks(sqs, seconds):
    """A queue whose messages come again after so many seconds without an acknowledgement."""
    return {"broker_transport_options": sqs.broker_transport_options | {"visibility_timeout": seconds}}


def test_a_killed_worker(sqs, work, worker, eventually, tmp_path):
    """A worker and all its children are killed in the middle of a task: another one runs it and stores its result."""
    app, first = work(**late_acks(sqs, 4))
    runs, gate = tmp_path / "runs", tmp_path / "gate"
    result = app.send_task("late", (str(runs), str(gate)))
    eventually(runs.exists, SOON)
    first.end()
    gate.touch()
    worker(app, TASKS)
    assert result.get(timeout=SOON) == 2
    assert result.state == states.SUCCESS


@pytest.mark.parametrize("deduplicate", [False, True])
def test_a_worker_killed_before_it_acknowledged(work, worker, eventually, tmp_path, deduplicate):
    """The task comes again although its SUCCESS is stored: that one stays, and with deduplication it is not run."""
    options = {"visibility_timeout": 1}
    app, first = work("redis", broker_transport_options=options, worker_deduplicate_successful_tasks=deduplicate)
    runs, gate = tmp_path / "runs", tmp_path / "gate"
    result = app.send_task("late", (str(runs), str(gate)))
    eventually(runs.exists, SOON)
    first.kill(signal.SIGSTOP)
    gate.touch()
    assert result.get(timeout=SOON) == 1
    first.end()

    time.sleep(1)  # kombu looks for messages that are due when a worker starts, and not soon again
    second = worker(app, TASKS)
    eventually(lambda: "already completed" in second.log or "succeeded" in second.log, SOON)
    assert len(runs.read_text().split()) == (1 if deduplicate else 2)
    again = app.AsyncResult(result.id)
    assert (again.get(timeout=SOON), again.date_done) == (1, result.date_done)
    assert ours(second.log) == []
