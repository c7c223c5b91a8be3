"""Notices over SQS: a queue for each process that waits, which nothing leaves behind for long."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from celery import states
from celery.app.task import Context
from kombu.utils.uuid import uuid

from celery_s3.notices import sqs_line
from celery_s3.notices.notice import LARGEST, PREFIX
from celery_s3.notices.sqs_line import USED, SQSLine
from celery_s3.operate import policy
from celery_s3.operate.doctor import broker

ON = {"s3_backend_settings": {"notices": "on"}}


@pytest.fixture
def app(counted, monkeypatch):
    """An app with a task; its thread ends soon after the test."""
    monkeypatch.setattr(SQSLine, "turn", 1.0)
    monkeypatch.setattr(sqs_line, "USABLE_AFTER", 0.0)
    app = counted(broker="sqs", **ON)

    @app.task(name="job")
    def job(value=None):
        return value

    return app


@pytest.fixture
def client(app):
    """Of the broker, as kombu has it."""
    with app.connection_for_write() as connection:
        return connection.channel().sqs()


def queues(client):
    urls = client.list_queues(QueueNamePrefix=PREFIX).get("QueueUrls", ())
    return {url.rpartition("/")[2] for url in urls}


def begin_to_wait(app):
    """Until a notice has come: then both ends are connected."""
    assert app.backend.notices.round_trip(uuid(), 20.0)
    return app.backend.notices._listeners.get().address


def sent(app):
    """A task of this process, and the message that a worker would get."""
    result = app.tasks["job"].delay()
    with app.connection_for_write() as connection:
        queue = app.amqp.queues[app.conf.task_default_queue](connection.default_channel)
        while (message := queue.get(no_ack=True)) is None:
            pass
    return result, message


def end(app, message, value):
    """Store a task's result as its worker would."""
    request = Context({**message.headers, "reply_to": message.properties["reply_to"]})
    app.backend.store_result(request.id, value, states.SUCCESS, request=request)


def later(seconds, do, *args):
    threading.Timer(seconds, do, args).start()


@pytest.mark.parametrize(("value", "gets"), [("value", 1), ("x" * (LARGEST + 1), 2)])
def test_who_waits_is_told(app, server, value, gets):
    """One look, one notice; one GET more for what is too large to come along."""
    address = begin_to_wait(app)
    result, message = sent(app)
    assert message.properties["reply_to"] == address
    server.reset()
    later(0.6, end, app, message, value)
    assert result.get(timeout=20) == value
    assert server.counts() == {"GET": gets, "PUT": 1}


def test_who_never_waits_pays_nothing(app, client):
    """No queue, no address in its messages; and the worker sends nothing."""
    before = queues(client)
    result, message = sent(app)
    assert not message.properties["reply_to"].startswith(PREFIX)
    end(app, message, "value")
    assert app.backend.notices._outgoing.peek() is None
    assert app.backend.notices._listeners.peek() is None
    assert result.get(timeout=20) == "value"
    assert queues(client) <= before | {app.backend.notices._listeners.get().address}


def test_a_queue_that_is_gone(app, client, eventually, caplog):
    """Who waits polls and makes a new one; who tells the old one does not make it again, and goes on telling others."""
    address = begin_to_wait(app)
    result, message = sent(app)
    client.delete_queue(QueueUrl=client.get_queue_url(QueueName=address)["QueueUrl"])
    later(0.6, end, app, message, "value")
    assert result.get(timeout=20) == "value"
    again = eventually(lambda: (found := app.backend.notices._listeners.get().address) != address and found)
    assert again in queues(client)
    assert address not in queues(client)
    assert not [record for record in caplog.records if "not sent" in record.message]


def test_strangers_messages(app, client, server):
    """What is no notice is dropped."""
    address = begin_to_wait(app)
    result, message = sent(app)
    for body in ("no base64!", "AAAA", "e30="):
        client.send_message(QueueUrl=client.get_queue_url(QueueName=address)["QueueUrl"], MessageBody=body)
    server.reset()
    later(0.6, end, app, message, "value")
    assert result.get(timeout=20) == "value"
    assert server.counts()["GET"] == 1


PROGRAM = """
import json, os, sys, time
from celery import Celery
app = Celery()
app.conf.update(json.loads(sys.argv[1]))
try:
    app.AsyncResult("nobody").get(timeout=0.1)
except Exception:
    pass
listener = app.backend.notices._listeners.get()
while not listener.address:
    time.sleep(0.01)
print(listener.address, flush=True)
if not os.fork():
    sys.exit()  # a child deletes nothing of its parent's
os.wait()
print(len(listener._line._client.list_queues(QueueNamePrefix=listener.address)["QueueUrls"]))
"""


def test_deleted_at_exit(seaweed, make_app, sqs):
    """A process takes its queue with it when it ends, at once, and prints nothing; its children leave it alone."""
    app = make_app(seaweed, broker="sqs", **ON)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(app.test_conf)], capture_output=True, timeout=15, check=True
    )
    address, seen = done.stdout.decode().split()
    assert seen == "1"
    assert not done.stderr
    with app.connection_for_write() as connection:
        assert address not in queues(connection.channel().sqs())


def test_a_sweep_of_leftovers(app, client, monkeypatch):
    """Queues that say that nobody has used them for a day; no others, and none in a dry run; however many there are."""
    monkeypatch.setattr(sqs_line, "PAGE", 2)
    address = begin_to_wait(app)
    now = datetime.now(UTC)
    old, young, unnamed, silent = (PREFIX + uuid(), PREFIX + uuid(), f"{PREFIX}mine", PREFIX + uuid())
    for name, hours in ((old, 25), (young, 23), (unnamed, 25)):
        client.create_queue(QueueName=name, tags={USED: (now - timedelta(hours=hours)).isoformat()})
    client.create_queue(QueueName=silent, tags={USED: "yesterday"})
    notices = app.backend.notices
    assert notices.sweep(dry_run=True) == 1
    assert old in queues(client)
    assert notices.sweep(dry_run=False) == 1
    assert {address, young, unnamed, silent} <= queues(client)
    assert old not in queues(client)


def test_doctor_tries_the_line(app, counted, client):
    """One notice, sent and heard; nothing is tried where nobody has asked for notices by SQS."""
    found = broker.notices(SimpleNamespace(settings=app.backend.settings, notices=app.backend.notices))
    assert (found.level, "over SQS" in found.text) == ("OK", True)
    before = queues(client)
    quiet = counted(broker="sqs").backend
    found = broker.notices(SimpleNamespace(settings=quiet.settings, notices=quiet.notices))
    assert (found.level, "SQS with `notices` `on`" in found.text) == ("OK", True)
    assert queues(client) <= before


def test_the_policy_allows_what_is_asked(app, monkeypatch):
    """Telling, waiting, sweeping: an operator may do these calls, and no others."""
    make, asked = sqs_line._client, set()

    def watched(*args):
        client = make(*args)
        client.meta.events.register("provide-client-params.sqs", lambda model, **_: asked.add(f"sqs:{model.name}"))
        return client

    monkeypatch.setattr(sqs_line, "_client", watched)
    monkeypatch.setattr(sqs_line, "USED_EVERY", 0.0)
    notices = app.backend.notices
    assert notices.round_trip(uuid(), 20.0)
    notices.sweep(dry_run=True)
    notices._listeners.get()._line.close()
    document = policy.document(app.backend.settings, "operator", queues=True)
    allowed = {action for one in document["Statement"] for action in one["Action"]}
    assert asked == {action for action in allowed if action.startswith("sqs:")}
