"""``celery s3 cost``: the model against requests that were really made, and the command as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest
from celery import chord, group
from celery.bin.base import CLIContext
from celery.result import AsyncResult, GroupResult
from click.testing import CliRunner
from kombu.utils.uuid import uuid

from celery_s3.cli import s3
from celery_s3.costs.model import Deployment, celery_own, celery_s3

VALUE = {"order": 4711}


def expected(work):
    """The model's requests by verb."""
    counts = Counter()
    for one in work:
        counts[one.verb] += one.requests
    return {verb: pytest.approx(count) for verb, count in counts.items() if count}


def made(proxy):
    """What passed the proxy, without what is free."""
    return {verb: count for verb, count in proxy.counts().items() if verb not in ("DELETE", "DeleteObjects")}


@pytest.fixture
def ours(counted):
    return counted()


@pytest.fixture
def own(make_app, proxy):
    """An app on Celery's own `s3` backend, behind the same proxy."""
    settings = proxy.settings()
    app = make_app(proxy)
    app.conf.update(
        result_backend="s3",
        s3_bucket=settings["bucket"],
        s3_endpoint_url=settings["endpoint_url"],
        s3_region=settings["aws_region"],
        s3_access_key_id=settings["aws_access_key_id"],
        s3_secret_access_key=settings["aws_secret_access_key"],
        s3_base_path=f"own-{uuid()}/",
    )
    return app


APPS = [("ours", celery_s3), ("own", celery_own)]


@pytest.mark.parametrize(("name", "model"), APPS)
def test_store_and_fetch(request, proxy, name, model):
    """Results that are there: the model is exact, for a share of them too."""
    app = request.getfixturevalue(name)
    ids = [uuid() for _ in range(6)]
    proxy.reset()
    for id in ids:
        app.backend.store_result(id, VALUE, "SUCCESS")
    for id in ids[:3]:
        app.AsyncResult(id).get(timeout=10)
    assert made(proxy) == expected(model(Deployment(tasks=6, fetch=0.5)))


@pytest.mark.parametrize(("name", "model"), APPS)
def test_group(request, proxy, name, model):
    """A group that is finished: the model is exact."""
    app = request.getfixturevalue(name)
    ids = [uuid() for _ in range(40)]
    proxy.reset()
    for id in ids:
        app.backend.store_result(id, VALUE, "SUCCESS")
    GroupResult("group", [AsyncResult(id, app=app) for id in ids], app=app).get(timeout=30)
    assert made(proxy) == expected(model(Deployment(tasks=40, group=40)))


def test_large(ours, proxy):
    """A result over 64 KiB takes a GET for its beginning and one for each 4 MiB of the rest: exact."""
    id, size = uuid(), 9_000_000
    proxy.reset()
    ours.backend.store_result(id, "x" * size, "SUCCESS")
    ours.AsyncResult(id).get(timeout=30)
    assert made(proxy) == expected(celery_s3(Deployment(tasks=1, size=size)))


@pytest.mark.parametrize(("name", "model"), APPS)
def test_wait(request, proxy, name, model):
    """A wait of a second: two looks more at most, since naps are jittered and a result is stored between two of them.

    A machine that is busy with something else looks less often than it would.
    """
    app, id, wait = request.getfixturevalue(name), uuid(), 1.0
    proxy.configure(delay=0.02)
    proxy.reset()
    timer = threading.Timer(wait - 0.03, lambda: app.backend.store_result(id, VALUE, "SUCCESS"))
    timer.start()
    app.AsyncResult(id).get(timeout=10)
    timer.join()
    model = {verb: count.expected for verb, count in expected(model(Deployment(tasks=1, wait=wait))).items()}
    assert model.keys() == made(proxy).keys()
    assert all(1 <= count <= model[verb] + 2 for verb, count in made(proxy).items())


@pytest.mark.parametrize("members", [3, 64])
def test_chord(ours, proxy, members):
    """A chord whose members run in their order, each in a process that has seen nothing of it: exact."""
    app = ours

    result = sent_chord(app, proxy, members)
    for message in messages(app):
        app.backend.chords._memory.drop()
        execute(app, message)
    (body,) = messages(app)
    execute(app, body)
    assert result.get(timeout=10) == sum(range(members))
    assert made(proxy) == expected(celery_s3(Deployment(tasks=members, chord=members)))


def sent_chord(app, proxy, members):
    """A chord of so many members; what was asked before it is not counted."""

    @app.task
    def member(number):
        return number

    @app.task
    def total(numbers):
        return sum(numbers)

    proxy.reset()
    return chord([member.s(number) for number in range(members)], total.s()).apply_async()


def messages(app):
    """What is on the app's queue, taken off."""
    with app.connection_for_read() as connection:
        found = app.amqp.queues[app.conf.task_default_queue](connection.default_channel)
        found.declare()
        return list(iter(lambda: found.get(no_ack=True), None))


def execute(app, message):
    """Run a message as a worker's child does."""
    from celery.app.trace import build_tracer

    args, kwargs, embed = message.payload
    request = {**message.headers, **embed, "delivery_info": {"routing_key": "jobs"}, "hostname": "here"}
    task = app.tasks[message.headers["task"]]
    build_tracer(task.name, task, app=app)(message.headers["id"], args, kwargs, request)


def test_own_chord(own, proxy):
    """Celery's own chord, of which `chord_unlock` finds all members ready the first time: exact."""
    app = own

    result = sent_chord(app, proxy, 3)
    sent = messages(app)
    for _ in range(2):
        for message in sorted(sent, key=lambda one: one.headers["task"] == "celery.chord_unlock"):
            execute(app, message)
        sent = messages(app)
    assert result.get(timeout=10) == 3
    assert made(proxy) == expected(celery_own(Deployment(tasks=3, chord=3)))


# -- the command

MODULE = """
import json, os
from celery import Celery

app = Celery("costly")
app.conf.update(json.loads(os.environ["CELERY_S3_TEST_CONF"]))

@app.task(name="costly.job")
def job():
    return 1
"""


@pytest.fixture
def proj(tmp_path):
    (tmp_path / "costly.py").write_text(MODULE)
    return tmp_path / "costly.py"


def cost(app, *arguments):
    """The command in this process."""
    obj = CLIContext(app=app, no_color=True, workdir=None)
    return CliRunner(env={"COLUMNS": "80"}).invoke(s3, ["cost", *arguments], obj=obj)


def test_it_needs_no_app():
    """The prediction works without an app, and makes no request."""
    command = [sys.executable, "-W", "error", "-m", "celery", "s3", "cost", "--tasks", "1000", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    ours, own, express = json.loads(done.stdout)["bills"]
    assert (ours["backend"], own["backend"], express["backend"]) == ("celery-s3", "Celery's own s3", "celery-s3")
    assert ours["total"] == pytest.approx(0.0054, rel=0.01)
    assert express["prices"]["title"] == "S3 Express One Zone"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--keep", "nan"],
        ["--keep", "inf"],
        ["--wait", "nan"],
        ["--fetch", "nan"],
        ["--tasks", "1" + "0" * 400],
        ["--group", "100000", "--wait", "86400"],
    ],
)
def test_shapes_without_an_answer(arguments):
    """What is no number, without end, or takes minutes to reckon is a wrong use, told at once."""
    done = CliRunner().invoke(s3, ["cost", "--json", *arguments])
    assert (done.exit_code, done.stdout) == (2, "")
    assert arguments[0] in done.stderr


def test_measured(seaweed, make_app, worker, proj):
    """Workers tell what all their processes have asked, a killed child's requests too, and log it when they end."""
    conf = {"broker_pool_limit": None, "worker_enable_remote_control": True}
    app = make_app(seaweed, broker="filesystem", **conf)
    one = worker(app, proj, concurrency=2, args=["--max-tasks-per-child=3"])
    job = app.signature("costly.job")
    group([job] * 10).apply_async().get(timeout=30)
    deadline = time.monotonic() + 20
    while True:
        done = cost(app, "--measured", "--timeout", "0.5", "--json")
        (answer,) = json.loads(done.stdout or "[{}]")
        if answer.get("counted", {}).get("PUT", {}).get("bytes_up") and answer["uncounted"] == 0:
            break
        assert time.monotonic() < deadline, done
    assert done.exit_code == 0, done.stderr
    # two more: the probe of a server that is not Amazon's
    assert answer["counted"]["PUT"]["requests"] >= 10
    assert {item["verb"] for item in answer["items"]} >= {"PUT"}
    while (done := cost(app, "--measured", "--timeout", "1")).exit_code:  # a child is being replaced just now
        assert time.monotonic() < deadline, done
    assert done.stderr == ""
    assert done.stdout.splitlines()[0].split()[:3] == ["WORKER", "VERB", "REQUESTS"]
    assert "at the list price of S3 Standard" in done.stdout
    one.kill(15)
    one.wait()
    assert f"S3 requests of this worker: {answer['counted']['PUT']['requests']} PUT" in one.log


def test_no_worker(seaweed, make_app):
    """Nobody answers: an error that says what may be wrong."""
    app = make_app(seaweed, broker="filesystem")
    done = cost(app, "--measured", "--timeout", "0.2")
    assert done.exit_code == 1
    assert "No worker answered within 0.2 s" in done.stderr


def test_sqs(seaweed, make_app):
    """SQS has no remote control: said at once, with what works there; no queue is left behind."""
    app = make_app(seaweed, broker="sqs")
    done = cost(app, "--measured")
    assert done.exit_code == 1
    assert "The broker (sqs) has no remote control" in done.stderr
    assert "S3 requests of this worker" in done.stderr
