"""Each pool of Celery's with a real worker: results right, nothing hangs, the client that DESIGN names."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from celery import chord
from logs import complaints

TASKS = Path(__file__).with_name("tasks.py")
#: Seconds that an answer may take; only a hang takes them.
SOON = 40
COUNT = 30


def probes(proxy):
    """The requests that asked whether the server has conditional writes."""
    return [record for record in proxy.records() if record.target.endswith("celery-s3-probe")]


def all_right(app):
    """Let 30 tasks run and compare each result with what it must be."""
    results = [app.send_task("add", (number, 1)) for number in range(COUNT)]
    assert [result.get(timeout=SOON) for result in results] == [number + 1 for number in range(COUNT)]
    return results


def clients_of(app, count=1):
    """The clients that each of the worker's processes has made, by process id."""
    asked = [app.send_task("clients") for _ in range(count)]
    told = [result.get(timeout=SOON) for result in asked]
    return {each["pid"]: each["clients"] for each in told}


@pytest.mark.parametrize(
    ("pool", "concurrency", "client"),
    [
        ("prefork", 2, "ObstoreClient"),
        ("solo", 1, "ObstoreClient"),
        ("threads", 4, "ObstoreClient"),
        ("gevent", 10, "Boto3Client"),
        ("eventlet", 10, "Boto3Client"),
    ],
)
def test_pool(seaweed, proxy, make_app, worker, pool, concurrency, client):
    """Thirty right results by one kind of client, one PUT each; nobody probes who comes later; it ends when told.

    So do chords, also one whose header is generated.
    """
    app = make_app(seaweed, broker="sqs", s3_backend_settings={"endpoint_url": proxy.endpoint_url})
    one = worker(app, TASKS, pool=pool, concurrency=concurrency)
    results = all_right(app)
    for header in ([app.signature("add", (n, 1)) for n in range(5)], (app.signature("add", (n, 1)) for n in range(5))):
        assert chord(header, app.signature("total"), app=app).apply_async().get(timeout=SOON) == 15
    asked = probes(proxy)
    assert len(asked) >= 4
    for result in results:
        assert [record.status for record in proxy.records() if record.target.endswith(result.id)].count(200) == 1
    assert set(map(tuple, clients_of(app, 2).values())) == {(client,)}
    assert probes(proxy) == asked
    one.kill(signal.SIGTERM)
    assert one.wait(SOON) == 0
    # kombu's SQS consumer keeps ten connections and says so when there are more
    assert complaints(one.log, "Connection pool size: 10") == []


def test_green_threads_wait_together(seaweed, proxy, make_app, worker, eventually):
    """Where every request takes a second, fifty greenlets store results at the same time, and nobody complains."""
    conf = {"broker_connection_retry_on_startup": True, "s3_backend_settings": {"endpoint_url": proxy.endpoint_url}}
    app = make_app(seaweed, broker="redis", **conf)
    one = worker(app, TASKS, pool="gevent", concurrency=50)
    app.send_task("add", (1, 1)).get(timeout=SOON)
    proxy.configure(delay=1.0)
    results = [app.send_task("add", (number, 1)) for number in range(100)]
    eventually(lambda: one.log.count("succeeded") == 101, SOON)
    assert proxy.peak() > 32
    proxy.configure(delay=0.0)
    assert [result.get(timeout=SOON) for result in results] == [number + 1 for number in range(100)]
    assert complaints(one.log) == []


def test_one_task_per_child(seaweed, proxy, make_app, worker):
    """With `--max-tasks-per-child=1` every task has a process of its own, which need not probe the server again."""
    app = make_app(seaweed, broker="sqs", s3_backend_settings={"endpoint_url": proxy.endpoint_url})
    one = worker(app, TASKS, concurrency=4, args=["--max-tasks-per-child=1"])
    assert set(map(tuple, clients_of(app).values())) == {("ObstoreClient",)}
    asked = probes(proxy)
    assert len(asked) == 4
    told = clients_of(app, 12)
    assert len(told) == 12
    assert set(map(tuple, told.values())) == {("ObstoreClient",)}
    assert probes(proxy) == asked
    assert complaints(one.log) == []


def test_spawned_children(seaweed, make_app, worker):
    """Children that are spawned instead of forked (Celery 5.7) work the same."""
    app = make_app(seaweed, broker="sqs", worker_pool_start_method="spawn")
    one = worker(app, TASKS)
    all_right(app)
    assert set(map(tuple, clients_of(app, 4).values())) == {("ObstoreClient",)}
    assert complaints(one.log) == []


def test_a_client_that_was_asked_for(seaweed, make_app, worker):
    """`client` 'boto3' is used in every process."""
    app = make_app(seaweed, broker="sqs", s3_backend_settings={"client": "boto3"})
    one = worker(app, TASKS)
    all_right(app)
    assert set(map(tuple, clients_of(app, 4).values())) == {("Boto3Client",)}
    assert complaints(one.log) == []


def test_a_server_without_conditional_writes(seaweed, proxy, make_app, worker):
    """Results are right, one warning for the whole worker says what is lost."""
    proxy.configure(strip_preconditions=True)
    app = make_app(seaweed, broker="sqs", s3_backend_settings={"endpoint_url": proxy.endpoint_url})
    one = worker(app, TASKS)
    all_right(app)
    assert one.log.count("does not keep conditional writes") == 1
    assert len(complaints(one.log)) == 1
