"""When a worker's main process settles the messages of tasks whose results children store while they work on."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import pytest
from celery import Celery
from celery.signals import celeryd_after_setup, task_received, worker_shutdown
from kombu.common import QoS

from celery_s3.backends import acknowledgements as module
from celery_s3.backends.acknowledgements import DELIVERY, Acknowledgements
from celery_s3.outbox import Outbox


class Worker:
    """A main process: it receives tasks, and Celery settles their messages."""

    def __init__(self, monkeypatch, *, prefork=True):
        monkeypatch.setattr(module, "prefork_parent", lambda: prefork)
        monkeypatch.setattr(module, "settled_by_result", lambda: self.by_result)
        self.by_result = True
        self.outbox = Outbox()
        self.settled: list[tuple[str, str]] = []
        self.qos = QoS(lambda prefetch_count: None, 8)
        self.soon = []
        self.consumer = SimpleNamespace(qos=self.qos, hub=None, call_soon=lambda *call: self.soon.append(call))
        self.one = Acknowledgements(lambda task: task.backend == "ours", self.outbox)

    def receive(self, id, backend="ours", late=True):
        request = SimpleNamespace(
            id=id,
            request_dict={},
            task=SimpleNamespace(backend=backend, acks_late=late),
            _on_ack=lambda logger, errors: self.settled.append((id, "acknowledged")),
            _on_reject=lambda logger, errors, requeue: self.settled.append((id, "again" if requeue else "rejected")),
        )
        self.one._received(self.consumer, request)
        return request

    def ack(self, request):
        request._on_ack(None, ())


@pytest.fixture
def worker(monkeypatch):
    one = Worker(monkeypatch)
    yield one
    one.one.close()


def delivery(request):
    return request.request_dict[DELIVERY]


def test_held_until_durable(worker, eventually):
    """A task has ended, its child still stores: the message is acknowledged once that is done, and not before."""
    request = worker.receive("a")
    assert worker.one.begins(delivery(request))
    worker.ack(request)
    assert worker.settled == []
    worker.one.durable(delivery(request))
    eventually(lambda: worker.settled == [("a", "acknowledged")])


@pytest.mark.parametrize("already", [False, True])
def test_nothing_under_way(worker, already):
    """What a child has stored at once, or by now, is acknowledged as Celery does it."""
    request = worker.receive("a")
    if already:
        worker.one.begins(delivery(request))
        worker.one.durable(delivery(request))
    worker.ack(request)
    assert worker.settled == [("a", "acknowledged")]


def test_each_by_itself(worker, eventually):
    """Two deliveries of one task are two messages."""
    first, second = worker.receive("a"), worker.receive("a")
    worker.one.begins(delivery(first))
    worker.ack(second)
    assert worker.settled == [("a", "acknowledged")]
    worker.ack(first)
    worker.one.durable(delivery(first))
    eventually(lambda: len(worker.settled) == 2)


def test_rejected_for_good(worker, eventually):
    """A failure that Celery rejects instead of acknowledging it (`acks_on_failure_or_timeout`) waits likewise."""
    request = worker.receive("a")
    worker.one.begins(delivery(request))
    request._on_reject(None, (), False)
    assert worker.settled == []
    worker.one.durable(delivery(request))
    eventually(lambda: worker.settled == [("a", "rejected")])


def test_a_child_that_dies(worker, eventually, caplog):
    """What it had not stored was never acknowledged, and comes again; what it had stored does not."""
    stored, lost = worker.receive("stored"), worker.receive("lost")
    pid = os.fork()
    if not pid:
        worker.one.begins(delivery(stored))
        worker.one.begins(delivery(lost))
        worker.one.durable(delivery(stored))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    worker.ack(stored)
    worker.ack(lost)
    eventually(lambda: len(worker.settled) == 2)
    assert worker.settled == [("stored", "acknowledged"), ("lost", "again")]
    assert "come again: 1" in caplog.text


def test_what_celery_finds_out(worker):
    """Of a lost child, or one whose time is over, the main process stores FAILURE: acknowledged when that is written.

    It waits for no child, and for a write that Celery makes only after it has acknowledged.
    """
    request = worker.receive("a")
    worker.one.begins(delivery(request))
    worker.by_result = False
    worker.ack(request)
    written = []
    worker.outbox.put("a", "FAILURE of task a", lambda: written.append(list(worker.settled)))
    for call, *args in worker.soon:
        call(*args)
    assert worker.outbox.flush(5) == []
    assert written == [[]]
    assert worker.settled == [("a", "acknowledged")]


def test_the_prefetch_count(worker, eventually):
    """Messages that are held take no room from those whose tasks have to be run; in the end it is what it was."""
    requests = [worker.receive(str(number)) for number in range(10)]
    for number, request in enumerate(requests, 1):
        worker.one.begins(delivery(request))
        worker.ack(request)
        assert worker.qos.value == 8 + number
    for request in requests:
        worker.one.durable(delivery(request))
    eventually(lambda: len(worker.settled) == 10)
    eventually(lambda: worker.qos.value == 8)


def test_another_connection(worker):
    """A prefetch count that has begun anew is not lowered by what the last one was raised."""
    request = worker.receive("a")
    worker.one.begins(delivery(request))
    worker.ack(request)
    worker.consumer.qos = QoS(lambda prefetch_count: None, 8)
    worker.one.durable(delivery(request))
    worker.ack(worker.receive("b"))
    assert worker.consumer.qos.value == 8


@pytest.mark.parametrize("how", [{"backend": "another"}, {"late": False}])
def test_other_tasks(worker, how):
    """A task that is acknowledged early, or stores elsewhere, has no delivery: nobody holds its message."""
    request = worker.receive("a", **how)
    assert request.request_dict == {}
    worker.ack(request)
    assert worker.settled == [("a", "acknowledged")]


def test_other_pools(monkeypatch):
    """Where tasks run in the worker's own process nothing is held, and a child of nobody is told so."""
    worker = Worker(monkeypatch, prefork=False)
    assert worker.receive("a").request_dict == {}
    assert not worker.one.begins(1)
    worker.one.close()


def test_a_full_pipe(worker):
    """A child whose main process does not read is told that it cannot hold: it stores at once."""
    told = 0
    while worker.one.begins(told):
        told += 1
    assert told > 1000
    request = worker.receive("a")
    worker.ack(request)  # reads it
    assert worker.one.begins(told)


def test_the_end_of_a_worker(worker):
    """At a warm shutdown all children have ended: what is durable is acknowledged, before the connection closes."""
    request = worker.receive("a")
    worker.one.begins(delivery(request))
    state = worker.one._own.get()
    state.listening = True  # nobody else reads
    worker.ack(request)
    worker.one.durable(delivery(request))
    worker.one._worker_ends()
    assert worker.settled == [("a", "acknowledged")]


def test_it_listens_to_the_worker(worker):
    """It learns by Celery's signals when a worker starts, receives and ends; closed, it does not listen."""
    signals = celeryd_after_setup, task_received, worker_shutdown
    before = [len(one.receivers) for one in signals]
    worker.one.close()
    assert [len(one.receivers) for one in signals] == [count - 1 for count in before]


def test_a_delivery_does_not_travel():
    """The number stands in the request of one run: neither a retry nor what the task sends has it."""
    app = Celery("travel", set_as_current=False, broker="memory://", backend="cache+memory://")

    @app.task(name="t")
    def task():
        """Does nothing."""

    request = {DELIVERY: 7, "called_directly": False, "headers": {}, "delivery_info": {}}
    task.push_request(id="a", args=(), kwargs={}, **request)
    try:
        assert task.request.get(DELIVERY) == 7
        assert DELIVERY not in str(dict(task.signature_from_request())) + str(task.request.as_execution_options())
    finally:
        task.pop_request()
