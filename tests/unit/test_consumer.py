"""The thread that receives tasks: it writes by the outbox, and what it asks is answered in time."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
from celery.signals import task_received, worker_ready, worker_shutdown

from celery_s3.backends import consumer as module
from celery_s3.backends.consumer import ANSWERED_IN, Consumer
from celery_s3.errors import ResultNotRead
from celery_s3.outbox import Outbox
from celery_s3.store.deadline import remaining


class Reader:
    """Tells ``state``, or raises it, and notes the seconds that it was given."""

    def __init__(self, state=None):
        self.told, self.seconds = state, []

    def state(self, task_id):
        self.seconds.append(remaining())
        if isinstance(self.told, Exception):
            raise self.told
        return self.told

    def meta(self, task_id):
        return {"status": self.state(task_id), "result": 42}


class Members:
    """Notes whose chord was gone on with."""

    def __init__(self):
        self.gone_on = []

    def lost(self, request):
        self.gone_on.append(request)


class SimpleRequest:
    """A task's request, as Celery's signal has it."""

    def __init__(self, id):
        self.id = id


@pytest.fixture
def make():
    made = []

    def make(state=None):
        made.append(Consumer(Outbox(), Reader(state), Members()))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def lost():
    """A request that the worker has received."""
    return SimpleRequest("a")


def test_any_other_thread_writes_by_itself(make):
    """A task's own process, a client: the write is made at once, and its value or error is the caller's."""
    consumer = make()
    assert consumer.spared(lambda: "written", "a", "SUCCESS of task a", None) == "written"
    with pytest.raises(ZeroDivisionError):
        consumer.spared(lambda: 1 / 0, "a", "SUCCESS of task a", None)


def test_the_main_process_hands_over(make, monkeypatch):
    """What a prefork worker's main process stores is written by another thread, and what fails there is not raised."""
    consumer, threads = make(), []
    monkeypatch.setattr(module, "prefork_parent", lambda: True)
    assert consumer.spared(lambda: threads.append(threading.current_thread()), "a", "FAILURE of task a", 7) == 7
    assert consumer.spared(lambda: 1 / 0, "a", "REVOKED of task a", None) is None
    assert consumer.outbox.flush(5) == []
    assert threads != [threading.current_thread()]


def test_no_room_is_told(make, monkeypatch, caplog):
    """What the outbox has no room for is lost, which the log says: silence would be no answer."""
    consumer, go = make(), threading.Event()
    consumer.outbox = Outbox(limit=1, threads=1)
    monkeypatch.setattr(module, "prefork_parent", lambda: True)
    consumer.spared(go.wait, "a", "FAILURE of task a", None)
    consumer.spared(go.wait, "b", "REVOKED of task b", None)
    assert "REVOKED of task b is lost: 1 writes wait for S3 already" in caplog.text
    go.set()
    assert consumer.outbox.flush(5) == []


def test_our_own_threads_wait(make, monkeypatch):
    """Threads of ours in the main process, which mend chords or write for others, make their requests themselves."""
    consumer, found = make(), []
    monkeypatch.setattr(module, "prefork_parent", lambda: True)
    thread = threading.Thread(target=lambda: found.append(consumer.is_here()), name="celery-s3-chord")
    thread.start()
    thread.join()
    assert found == [False]


def test_the_consumer_of_other_pools(make, monkeypatch):
    """Where tasks run in the worker's own process, it is the thread that got ready, while that runs no task itself."""
    consumer, elsewhere = make(), []
    assert not consumer.is_here()
    consumer._worker_is_ready()
    assert consumer.is_here()
    thread = threading.Thread(target=lambda: elsewhere.append(consumer.is_here()))
    thread.start()
    thread.join()
    assert elsewhere == [False]
    monkeypatch.setattr(module, "current_task", lambda: SimpleNamespace(name="a task of the solo pool"))
    assert not consumer.is_here()


def test_it_listens_to_the_worker(make):
    """It learns by Celery's signals which thread it is, and when the worker ends; closed, it does not listen."""
    consumer = make()
    heard = [[receiver for key, receiver in signal.receivers] for signal in (worker_ready, worker_shutdown)]
    consumer.close()
    left = [[receiver for key, receiver in signal.receivers] for signal in (worker_ready, worker_shutdown)]
    assert [len(before) - len(after) for before, after in zip(heard, left, strict=True)] == [1, 1]


def test_asked_before_a_write(make, monkeypatch):
    """Revoking asks for each id, and writes where it may: no request for the question."""
    consumer = make("SUCCESS")
    monkeypatch.setattr(module, "asks_before_writing", lambda: True)
    assert consumer.meta("a")["status"] == "PENDING"
    assert consumer._reader.seconds == []


def test_any_other_question(make):
    """A signal's receiver, say, gets its answer, but no more seconds than a worker can spare."""
    consumer = make("SUCCESS")
    assert consumer.meta("a") == {"status": "SUCCESS", "result": 42}
    assert 0 < consumer._reader.seconds[0] <= ANSWERED_IN


def test_a_lost_task_that_had_succeeded(make, lost):
    """Its value is not read, and its chord is gone on with by another thread."""
    consumer = make("SUCCESS")
    task_received.send(sender="here", request=lost)
    assert consumer.meta("a") == {"status": "SUCCESS", "result": None}
    assert consumer.outbox.flush(5) == []
    assert consumer._members.gone_on == [lost]


def test_requests_are_not_kept(make, lost):
    """What the worker has done with is forgotten."""
    consumer = make()
    task_received.send(sender="here", request=SimpleRequest("b"))
    assert list(consumer._at_work) == []
    task_received.send(sender="here", request=lost)
    assert list(consumer._at_work) == ["a"]


@pytest.mark.parametrize("state", [None, "STARTED", ResultNotRead("away", "a")])
def test_a_lost_task_that_had_not(make, lost, state):
    """It counts as not finished, also where nobody can tell: it fails, which is stored where no SUCCESS stands."""
    consumer = make(state)
    task_received.send(sender="here", request=lost)
    assert consumer.meta("a")["status"] in ("PENDING", "STARTED")
    assert consumer._members.gone_on == []
    assert 0 < consumer._reader.seconds[0] <= ANSWERED_IN


def test_the_end_of_a_worker(make, monkeypatch, caplog):
    """It writes what is left, and names what S3 did not take."""
    consumer, go = make(), threading.Event()
    monkeypatch.setattr(module, "AT_SHUTDOWN", 0.05)
    consumer.outbox.put("a", "FAILURE of task a", go.wait)
    consumer._worker_ends()
    assert "FAILURE of task a is lost: S3 has not taken it before this worker ended" in caplog.text
    go.set()
    assert consumer.outbox.flush(5) == []
