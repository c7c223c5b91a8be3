"""Notices over a real RabbitMQ: an address for those who wait, and none for those who never do."""

from __future__ import annotations

import threading
import time

import pytest
from celery import chain, states
from celery.app.task import Context
from kombu.utils.uuid import uuid

from celery_s3.notices.notice import PREFIX


@pytest.fixture
def app(counted):
    """An app with a task, and its queue."""
    app = counted(broker="rabbitmq")
    name = "job"

    @app.task(name=name)
    def job(value=None):
        return value

    with app.connection_for_write() as connection:
        app.amqp.queues[app.conf.task_default_queue](connection.default_channel).declare()
    return app


def begin_to_wait(app, eventually):
    with pytest.raises(Exception, match="not there"):
        app.AsyncResult(uuid()).get(timeout=0.1)
    return eventually(lambda: app.backend.notices._listeners.get().address)


def messages(app, count):
    """The next messages of the queue."""
    found = []
    with app.connection_for_write() as connection:
        queue = app.amqp.queues[app.conf.task_default_queue](connection.default_channel)
        while len(found) < count:
            message = queue.get(no_ack=True)
            if message is not None:
                found.append(message)
    return found


def end(app, message, value):
    """Store a task's result as its worker would."""
    request = Context({**message.headers, "reply_to": message.properties["reply_to"]})
    app.backend.store_result(request.id, value, states.SUCCESS, request=request)


def test_who_waits_is_told(app, eventually, server):
    """Tasks sent once this process waits carry its address: one look, one notice, no other request."""
    address = begin_to_wait(app, eventually)
    result = app.tasks["job"].delay()
    (message,) = messages(app, 1)
    assert message.properties["reply_to"] == address
    server.reset()
    threading.Timer(0.6, end, (app, message, "value")).start()
    assert result.get(timeout=20) == "value"
    assert server.counts() == {"GET": 1, "PUT": 1}


def test_who_never_waits_is_not(app, monkeypatch):
    """Who never waited has no address in his messages, and the worker sends nothing."""
    result = app.tasks["job"].delay()
    (message,) = messages(app, 1)
    assert not message.properties["reply_to"].startswith(PREFIX)
    end(app, message, "value")
    assert app.backend.notices._outgoing.peek() is None
    assert result.get(timeout=20) == "value"


def test_a_task_without_our_address_is_polled_for(app, eventually, server):
    """Whoever waits for a task that another process has sent polls as ever."""
    begin_to_wait(app, eventually)
    id = uuid()
    server.reset()
    threading.Timer(0.7, app.backend.store_result, (id, 1, "SUCCESS")).start()
    assert app.AsyncResult(id).get(timeout=20) == 1
    assert server.counts()["GET"] > 3


def test_a_chain_has_it_to_its_end(app, eventually, server):
    """What was frozen with the address has it too: the end of a chain is waited for as if it had been sent here."""
    address = begin_to_wait(app, eventually)
    app.tasks["job"].delay()  # from now on this thread freezes with it
    messages(app, 1)
    job = app.tasks["job"]
    result = chain(job.si(1), job.si(2)).apply_async()
    (message,) = messages(app, 1)
    following = message.payload[2]["chain"][0]
    assert (message.properties["reply_to"], following["options"]["reply_to"]) == (address, address)
    server.reset()
    request = Context({"id": result.id, "reply_to": address})
    threading.Timer(0.6, app.backend.store_result, (result.id, 2, "SUCCESS"), {"request": request}).start()
    assert result.get(timeout=20) == 2
    assert server.counts()["GET"] <= 3  # its own, and those of its parent


def test_a_reply_to_of_ones_own_stays(app, eventually):
    """Who wants a reply elsewhere gets it there; a worker sends notices to no other queue than ours."""
    begin_to_wait(app, eventually)
    app.tasks["job"].apply_async(reply_to="mine")
    (message,) = messages(app, 1)
    assert message.properties["reply_to"] == "mine"
    end(app, message, "value")
    assert app.backend.notices._outgoing.peek() is None


def test_when_the_line_breaks(app, eventually, server):
    """The queue is gone with its connection: waiters poll, and the next tasks have another address."""
    address = begin_to_wait(app, eventually)
    result = app.tasks["job"].delay()
    (message,) = messages(app, 1)
    listener = app.backend.notices._listeners.get()

    def cut():
        time.sleep(1.1)
        listener._line._connection.connection.sock.shutdown(2)
        time.sleep(0.5)
        end(app, message, "value")

    threading.Thread(target=cut).start()
    server.reset()
    assert result.get(timeout=20) == "value"
    assert eventually(lambda: listener.address) != address
