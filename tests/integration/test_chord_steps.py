"""Chords on a real S3 server, their messages taken from the broker one by one: what happens between two of them."""

from __future__ import annotations

import contextlib
import json
from copy import deepcopy

import pytest
from celery import VERSION, chain, chord, group, states
from celery.app.trace import build_tracer
from celery.exceptions import ChordError, SoftTimeLimitExceeded
from celery.signals import task_received
from celery.worker.request import Request
from kombu.exceptions import OperationalError

from celery_s3.chords.claim import Claim
from celery_s3.errors import AccessDenied, ResultNotStored


class Timers:
    """What is to be done later waits for the test."""

    def __init__(self):
        self.entries = []

    def __call__(self, seconds, fn):
        self.entries.append(fn)

    def flush(self):
        entries, self.entries = self.entries, []
        for fn in entries:
            fn()

    def close(self):
        pass


class Broker:
    """An app's queue in memory; ``run`` does what a worker's child does with a message."""

    def __init__(self, app):
        self.app = app
        self.ran = []

    def take(self):
        """All messages, as task id, name, arguments and request."""
        taken = []
        with self.app.connection_for_read() as connection:
            queue = self.app.amqp.queues[self.app.conf.task_default_queue](connection.default_channel)
            queue.declare()
            while (message := queue.get(no_ack=True)) is not None:
                args, kwargs, embedded = message.payload
                taken.append(
                    (message.headers["id"], message.headers["task"], args, kwargs, {**message.headers, **embedded})
                )
        return taken

    def run(self, message):
        id, name, args, kwargs, request = deepcopy(message)  # as each delivery is decoded anew
        if name != "celery.backend_cleanup":  # a message by which a chord is mended
            self.ran.append(id)
        task = self.app.tasks[name]
        return build_tracer(name, task, app=self.app)(id, args, kwargs, {**request, "delivery_info": {}})

    def drain(self):
        """Run what there is, and what comes of it."""
        while messages := self.take():
            for message in messages:
                self.run(message)


@pytest.fixture
def work(proxy, make_app):
    """``app, tasks, broker = work()``: tasks by name; ``app.look()``: what is left undecided is looked at."""

    def make(**conf):
        app = make_app(proxy, task_publish_retry=False, **conf)
        later = app.backend.mender._later = Timers()
        app.look = later.flush
        app.called = []

        @app.task(name="add", shared=False)
        def add(x, y=1):
            return x + y

        @app.task(name="fail", shared=False)
        def fail(*_):
            raise KeyError("no luck")

        @app.task(name="note", shared=False)
        def note(value):
            app.called.append(value)
            return value

        @app.task(name="note_error", shared=False)
        def note_error(request, exc, traceback):
            app.called.append(exc)

        return app, app.tasks, Broker(app)

    return make


def values(tasks, count):
    return [tasks["add"].si(number, 0) for number in range(count)]


class Died(BaseException):
    """The process ends here."""


def dies(monkeypatch, method, times=1):
    """Let the process die instead of ``Claim.method``, so many times."""
    whole, left = getattr(Claim, method), [times]

    def die(*args):
        if left[0]:
            left[0] -= 1
            raise Died
        return whole(*args)

    monkeypatch.setattr(Claim, method, die)


# -- an applier that comes again


def test_an_applier_that_is_redelivered(work, caplog):
    """`chain(a, group) | body` whose `a` comes again: its header runs again, its body not, and one line says so."""
    app, tasks, broker = work()
    chain(tasks["add"].s(1), group(tasks["add"].s(10), tasks["add"].s(20)), tasks["note"].s()).apply_async()
    (applier,) = broker.take()
    broker.run(applier)
    broker.drain()
    assert (app.called, len(broker.ran)) == ([[12, 22]], 4)
    broker.run(applier)
    broker.drain()
    assert (app.called, len(broker.ran)) == ([[12, 22]], 7)
    assert sum("is applied again, and was decided before" in line for line in caplog.messages) == 1
    assert len(list(app.backend.store.list(app.backend.chords.prefix))) == 2


# -- an owner that dies


@pytest.mark.parametrize("method", ["holds", "acquire"])
def test_owner_dies_before_it_sends(work, monkeypatch, method):
    """Its message comes again: the body is sent then, after the lease, and once."""
    app, tasks, broker = work()
    result = chord(values(tasks, 2), tasks["note"].s()).apply_async()
    first, last = broker.take()
    broker.run(first)
    dies(monkeypatch, method)
    with pytest.raises(Died):
        broker.run(last)
    broker.run(last)
    monkeypatch.setattr(Claim, "remaining", lambda *_: 0)
    app.look()
    broker.drain()
    assert app.called == [[0, 1]]
    assert result.get(timeout=5) == [0, 1]


@pytest.mark.parametrize("body_ran", [True, False])
def test_owner_dies_between_sending_and_noting_it(work, monkeypatch, body_ran):
    """Whoever takes over sends the body again, with the id that it had; not if the result is there already."""
    app, tasks, broker = work()
    chord(values(tasks, 2), tasks["note"].s()).apply_async()
    first, last = broker.take()
    broker.run(first)
    dies(monkeypatch, "mark")
    with pytest.raises(Died):
        broker.run(last)
    late = []
    if body_ran:
        broker.drain()
    else:
        late = broker.take()
    monkeypatch.setattr(Claim, "remaining", lambda *_: 0)
    broker.run(last)
    app.look()
    broker.drain()
    for message in late:
        broker.run(message)
    bodies = [id for id in broker.ran if id not in (first[0], last[0])]
    assert len(bodies) == (1 if body_ran else 2)
    assert len(set(bodies)) == 1


@pytest.mark.parametrize(
    "body",
    [lambda t: chain(t["note"].s(), t["note"].s()), lambda t: group(t["note"].s(), t["note"].s())],
    ids=["chain", "group"],
)
def test_a_larger_body_that_has_begun_is_not_sent_again(work, monkeypatch, body):
    """Of a chain or a group, the result of a task that it begins with tells that it was sent."""
    app, tasks, broker = work()
    chord(values(tasks, 2), body(tasks)).apply_async()
    first, last = broker.take()
    broker.run(first)
    dies(monkeypatch, "mark")
    with pytest.raises(Died):
        broker.run(last)
    broker.run(broker.take()[0])
    monkeypatch.setattr(Claim, "remaining", lambda *_: 0)
    broker.run(last)
    app.look()
    broker.drain()
    assert len(broker.ran) == len(set(broker.ran)) + 1  # the member that was delivered twice


def test_no_body_twice_where_that_is_wanted(work, proxy, monkeypatch):
    """With `chord_resend` off, a body that may have been sent is not sent again: the chord fails, and says why."""
    app, tasks, broker = work(s3_backend_settings={**proxy.settings(), "chord_resend": False})
    result = chord(values(tasks, 2), tasks["note"].s()).apply_async()
    first, last = broker.take()
    broker.run(first)
    dies(monkeypatch, "mark")
    with pytest.raises(Died):
        broker.run(last)
    sent = broker.take()
    monkeypatch.setattr(Claim, "remaining", lambda *_: 0)
    broker.run(last)
    app.look()
    assert len(sent) == 1
    broker.drain()
    assert app.called == []
    with pytest.raises(ChordError, match="chord_resend"):
        result.get(timeout=5)
    broker.run(sent[0])
    assert app.backend.get_task_meta(result.id, cache=False)["result"] == [0, 1]


def test_owner_dies_before_an_outer_chord_hears_of_the_failure(work, monkeypatch):
    """The body's FAILURE is stored, its part in the outer chord is not: whoever takes over delivers that."""
    app, tasks, broker = work()
    inner = chord([tasks["fail"].si(), tasks["add"].si(1)], tasks["note"].s())
    outer = chord([inner, tasks["add"].si(7)], tasks["note"].s()).apply_async()
    messages = broker.take()
    fail = next(message for message in messages if message[1] == "fail")
    for message in messages:
        if message is not fail:
            broker.run(message)
    with monkeypatch.context() as patch:
        patch.setattr(app.backend.chord_sender, "fail_ends", lambda *_: (_ for _ in ()).throw(Died))
        with pytest.raises(Died):
            broker.run(fail)
    monkeypatch.setattr(Claim, "remaining", lambda *_: 0)
    broker.run(fail)
    app.look()
    broker.drain()
    assert isinstance(outer.get(timeout=5, propagate=False), ChordError)


# -- a store that fails


def test_a_part_that_cannot_be_stored(work, proxy):
    """The member's result is not stored either, so that the task is not taken for finished."""
    app, tasks, broker = work(s3_backend_settings={"max_retries": 0, "outage_patience": 0})
    result = chord(values(tasks, 1), tasks["note"].s()).apply_async()
    (message,) = broker.take()
    proxy.fail("PUT", "access_denied")
    with pytest.warns(RuntimeWarning, match="was not delivered to its chord"):
        broker.run(message)
    assert app.AsyncResult(result.parent[0].id).state != states.SUCCESS


def test_a_tree_that_cannot_be_followed_for_a_while(work, proxy, monkeypatch):
    """The member succeeds; its process tries again later, and the body is sent then."""
    app, tasks, broker = work(s3_backend_settings={"max_retries": 0, "outage_patience": 0})
    result = chord(values(tasks, 2), tasks["note"].s()).apply_async()
    first, last = broker.take()
    broker.run(first)
    proxy.fail("* /claim", "access_denied", times=1)
    broker.run(last)
    assert app.called == []
    assert app.AsyncResult(last[0]).state == states.SUCCESS
    monkeypatch.setattr(Claim, "remaining", lambda *_: 0)
    app.look()
    broker.drain()
    assert result.get(timeout=5) == [0, 1]


@pytest.mark.filterwarnings("ignore:Exception raised outside body:RuntimeWarning")
def test_the_last_members_result_cannot_be_stored(work, monkeypatch):
    """Its part completes the chord all the same, and Celery will not say so: its process goes on after the lease."""
    app, tasks, broker = work()
    result = chord(values(tasks, 2), tasks["note"].s()).apply_async()
    first, last = broker.take()
    broker.run(first)
    whole = type(app.backend)._store_result

    def refuse(backend, task_id, *args, **kwargs):
        if task_id == last[0]:
            raise ResultNotStored("the bucket is gone", task_id, "SUCCESS")
        return whole(backend, task_id, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(type(app.backend), "_store_result", refuse)
        with contextlib.suppress(ResultNotStored):
            broker.run(last)
    assert app.called == []
    app.look()
    broker.drain()
    assert result.get(timeout=5) == [0, 1]


@pytest.mark.skipif(VERSION < (5, 7), reason="Celery looks for a stored SUCCESS since 5.7")
def test_a_child_that_is_lost_after_its_success_was_stored(work, monkeypatch):
    """Celery acknowledges its task and delivers nothing: the worker's main process goes on with the chord."""
    app, tasks, broker = work()
    result = chord(values(tasks, 2), tasks["note"].s()).apply_async()
    with app.connection_for_read() as connection:
        queue = app.amqp.queues[app.conf.task_default_queue](connection.default_channel)
        messages = [queue.get(), queue.get()]
    requests = [Request(message, app=app, task=app.tasks["add"]) for message in messages]
    for request in requests:
        task_received.send(sender="here", request=request)
    ran = [(r.id, "add", r.args, r.kwargs, vars(r._context)) for r in requests]
    broker.run(ran[0])
    with monkeypatch.context() as patched:
        patched.setattr(app.backend, "on_chord_part_return", lambda *args, **kwargs: None)  # killed before
        broker.run(ran[1])
    assert broker.take() == []
    with monkeypatch.context() as patched:
        patched.setattr("celery_s3.backends.consumer.prefork_parent", lambda: True)
        assert requests[1]._success_was_stored()
        assert app.backend.consumer.outbox.flush(5) == []
    broker.drain()
    assert result.get(timeout=5) == [0, 1]


def test_no_manifest_no_body(work, proxy, seaweed):
    """The last member's worker finds no manifest where it looks: nothing is sent, and the body's error says so."""
    app, tasks, broker = work()
    result = chord(values(tasks, 1), tasks["note"].s()).apply_async()
    (message,) = broker.take()
    app.backend.store.delete(f"{app.backend.chords.folder(result.parent.id)}manifest")
    broker.run(message)
    assert broker.take() == []
    assert app.AsyncResult(message[0]).state == states.SUCCESS
    error = result.get(timeout=5, propagate=False)
    assert isinstance(error, ChordError)
    assert f"has no manifest under {app.backend.chords.prefix}, where it was applied" in str(error)
    assert app.backend.chords.claim(result.parent.id).read().state == "failed"


# -- what a member has come to


@pytest.mark.parametrize("state", [states.SUCCESS, states.FAILURE])
def test_what_the_worker_reports_counts(work, state):
    """A member that says by `update_state` that it is done delivers what it returns, as with Redis."""
    app, tasks, broker = work()

    @app.task(name="says", bind=True, shared=False)
    def says(self):
        self.update_state(state=state, meta={"progress": 100} if state == states.SUCCESS else KeyError("not yet"))
        return 42

    chord([says.si(), tasks["add"].si(0)], tasks["note"].s()).apply_async()
    broker.drain()
    assert app.called == [[42, 1]]


def test_a_soft_time_limit_during_the_join(work, monkeypatch):
    """That of the last member's task: its result stands, its chord goes on, and nobody else hears of it."""
    app, tasks, broker = work()
    result = chord(values(tasks, 3), tasks["note"].s()).apply_async()
    whole, struck = app.backend.chord_sender._value, []

    def value(payload):
        if not struck:
            struck.append(True)
            raise SoftTimeLimitExceeded
        return whole(payload)

    monkeypatch.setattr(app.backend.chord_sender, "_value", value)
    broker.drain()
    assert struck
    assert app.called == [[0, 1, 2]]
    assert result.get(timeout=5) == [0, 1, 2]
    assert [member.state for member in result.parent.results] == [states.SUCCESS] * 3


def test_a_broker_that_is_away_for_a_while(work, monkeypatch):
    """It comes back: the body is sent, once, and the chord has never failed; its claim was kept meanwhile."""
    app, tasks, broker = work()
    publish, away = app.amqp.send_task_message, [OperationalError("no route to host")] * 5

    def refuse(producer, name, message, **options):
        if name == "note" and away:
            raise away.pop()
        return publish(producer, name, message, **options)

    app.amqp.send_task_message = refuse
    monkeypatch.setattr(app.backend.chords, "sleep", lambda seconds: None)
    result = chord(values(tasks, 3), tasks["note"].s()).apply_async()
    broker.drain()
    assert (app.called, away) == ([[0, 1, 2]], [])
    assert broker.ran.count(result.id) == 1
    assert result.get(timeout=5) == [0, 1, 2]


# -- failures on the way to the body


def test_a_value_that_cannot_be_read(work, monkeypatch):
    """Whatever goes wrong with the values ends the chord in an error that says so."""
    app, tasks, broker = work()
    result = chord(values(tasks, 1), tasks["note"].s()).apply_async()
    monkeypatch.setattr(app.backend.chord_sender, "_value", lambda payload: json.loads("garbage"))
    broker.drain()
    error = result.get(timeout=5, propagate=False)
    assert isinstance(error, ChordError)
    assert "Join error: JSONDecodeError" in str(error)


def test_a_broker_that_takes_no_large_message(work, monkeypatch):
    """The error names the number of values, the size and the remedy; of a small body it names what the broker said."""
    app, tasks, broker = work()
    publish = app.amqp.send_task_message

    def refuse(producer, name, message, **options):
        if name == "note":
            raise OSError("Message must be shorter than 262144 bytes")
        return publish(producer, name, message, **options)

    app.amqp.send_task_message = refuse
    large = chord([tasks["add"].si("x" * 50_000, "") for _ in range(8)], tasks["note"].s()).apply_async()
    small = chord([tasks["add"].si(1)], tasks["note"].s()).apply_async()
    broker.drain()
    said = [str(result.get(timeout=5, propagate=False)) for result in (large, small)]
    assert "8 values make a message of 400,0" in said[0]
    assert "let the header's tasks store what is large, and return where" in said[0]
    assert all("shorter than 262144" in each for each in said)
    assert "let the header" not in said[1]


def test_error_has_its_cause(work):
    """An errback gets the ChordError with the member's own exception as its cause."""
    app, tasks, broker = work()
    body = tasks["note"].s()
    body.link_error(tasks["note_error"].s())
    chord([tasks["fail"].si()], body).apply_async()
    broker.drain()
    (error,) = app.called
    assert isinstance(error, ChordError)
    assert isinstance(error.__cause__, KeyError)


# -- producers


def test_a_chord_costs_its_producer_one_write(work, proxy):
    """The manifest is all that `apply_async` writes, whatever the size."""
    app, tasks, _ = work()
    app.backend.results.conditional.supported()
    proxy.reset()
    chord(values(tasks, 100), tasks["note"].s()).apply_async()
    assert proxy.counts() == {"PUT": 1}


def test_a_producer_that_may_not_write(work, proxy):
    """It is told at `apply_async`, and nothing is published."""
    app, tasks, broker = work()
    app.backend.results.conditional.supported()
    proxy.fail("PUT", "access_denied")
    with pytest.raises(AccessDenied, match="s3:PutObject"):
        chord(values(tasks, 3), tasks["note"].s()).apply_async()
    assert broker.take() == []


def test_the_ticket_does_not_reach_the_body(work):
    """What header tasks are told of their chord is not in the body's message."""
    _, tasks, broker = work()
    chord(values(tasks, 1), tasks["note"].s()).apply_async()
    (member,) = broker.take()
    assert member[4]["chord"]["options"]["celery_s3"]["size"] == 1
    broker.run(member)
    (body,) = broker.take()
    assert "celery_s3" not in json.dumps(body)


@pytest.mark.parametrize("order", ["forward", "backward"])
@pytest.mark.parametrize(("ignored", "each"), [(False, 2), (True, 1)])
def test_requests(work, proxy, order, ignored, each):
    """64 members, one by one: two writes each (one where results are ignored), four reads at most, no LIST."""
    app, tasks, broker = work()
    app.backend.results.conditional.supported()
    proxy.reset()
    members = [member.set(ignore_result=ignored) for member in values(tasks, 64)]
    chord(members, tasks["note"].s()).apply_async()
    messages = broker.take()
    for message in messages if order == "forward" else reversed(messages):
        broker.run(message)
    counts = proxy.counts()
    assert counts["PUT"] <= 64 * (each + 0.04) + 4  # the manifest; the claim, and its mark
    assert counts["GET"] <= 64 * 4
    assert counts["DeleteObjects"] == 1
    assert set(counts) == {"PUT", "GET", "DeleteObjects"}
    broker.drain()
    assert app.called == [list(range(64))]


def test_a_member_waits_for_two_round_trips(work, proxy):
    """The part; then the result and the look at the same time: none waits for the other's answer."""
    app, tasks, broker = work()
    app.backend.results.conditional.supported()
    chord(values(tasks, 64), tasks["note"].s()).apply_async()
    first, second, *_ = broker.take()
    broker.run(first)
    proxy.reset()
    proxy.configure(delay=0.5)
    try:
        broker.run(second)
    finally:
        proxy.configure(delay=0)
    part, *others = sorted(proxy.records(), key=lambda record: record.time)
    assert part.kind == "PUT"
    assert "/celery-chords/" in part.target
    assert sorted(record.kind for record in others) == ["GET", "PUT"]
    assert all(record.time - part.time >= 0.45 for record in others)
    assert abs(others[0].time - others[1].time) < 0.4
