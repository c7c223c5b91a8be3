"""The claim check with a real S3 server: messages are sent and then run as a worker's child runs them."""

from __future__ import annotations

import base64

import pytest
from celery import chain, chord, group, states
from celery.app.trace import trace_task_ret
from celery.worker.strategy import hybrid_to_proto2, proto1_to_proto2

from celery_s3 import claimcheck
from celery_s3.errors import MessageNotRead

BIG = "x" * 1_000_000


@pytest.fixture
def claiming(server, make_app):
    """``app = claiming(**conf)``: an app on ``server`` whose messages go by S3; all that can be asked is known."""

    def make(**conf):
        app = make_app(server, **{"task_serializer": "s3+json", "accept_content": ["s3+json", "json"], **conf})
        claimcheck.install(app)
        if hasattr(app.backend, "results"):
            app.backend.results.conditional.supported()
        return app

    return make


@pytest.fixture
def work():
    """``work(app)``: run the messages that are in the queue and those that come of it; their bodies."""

    def drain(app, redelivered=False, times=100):
        bodies = []
        with app.connection_for_read() as connection:
            queue = app.amqp.queues[app.conf.task_default_queue](connection.default_channel)
            queue.declare()
            while times and (message := queue.get(no_ack=True, accept=app.conf.accept_content)):
                bodies.append(message.body)
                execute(app, message, redelivered)
                times -= 1
        return bodies

    return drain


def execute(app, message, redelivered=False):
    body, headers = message.body, dict(message.headers)
    content_type, encoding = message.content_type, message.content_encoding
    if "task" not in headers:
        body, headers, _, _ = proto1_to_proto2(message, message.payload)
        content_type = None
    elif "args" in message.payload:
        body, headers, _, _ = hybrid_to_proto2(message, message.payload)
    request = headers | {"delivery_info": {"redelivered": redelivered, "routing_key": app.conf.task_default_queue}}
    request["delivery_info"]["exchange"] = ""
    trace_task_ret(headers["task"], headers["id"], request, body, content_type, encoding, app=app)


def objects(app):
    return [entry.key for entry in app.backend.store.list(app.backend.settings.base + "celery-messages/")]


def length_of(app, **options):
    @app.task(name="length", **options)
    def length(text, more=""):
        return len(text) + len(more)

    return length


@pytest.mark.parametrize("protocol", [1, 2])
def test_what_it_costs(claiming, work, spends, protocol):
    """A large argument costs one PUT for who sends it and one GET for who runs the task; a small one nothing."""
    app = claiming(task_protocol=protocol)
    length = length_of(app)
    with spends(PUT=2, GET=1):
        large = length.delay(BIG, more=BIG)
        assert [len(body) < 3000 for body in work(app)] == [True]
    with spends(PUT=1):
        small = length.delay("small")
        work(app)
    assert (large.get(timeout=5), small.get(timeout=5)) == (2_000_000, 5)


def test_20_mb(claiming, work, spends):
    """What is larger than one request should be is fetched in parts."""
    app = claiming()
    with spends(PUT=2, GET=3):
        result = length_of(app).delay(BIG * 20)
        work(app)
    assert result.get(timeout=5) == 20_000_000


@pytest.mark.parametrize("serializer", ["s3+pickle", "s3+yaml", "s3+msgpack", "s3+typed+json"])
def test_serializers(claiming, work, serializer):
    """All of them, by a task's own `serializer` too."""
    app = claiming(accept_content=["json", "s3+json", serializer])
    result = length_of(app, serializer=serializer).delay(BIG[:300_000])
    work(app)
    assert result.get(timeout=5) == 300_000


def test_another_result_backend(claiming, work, spends):
    """Results may be anywhere: the bucket of `s3_backend_settings` takes the messages."""
    app = claiming(result_backend="cache+memory://")
    with spends(PUT=1, GET=1):
        result = length_of(app).delay(BIG)
        work(app)
    assert result.get(timeout=5) == 1_000_000


def test_sealed(claiming, work):
    """With `seal_keys` what messages point to is encrypted as everything else."""
    key = base64.b64encode(bytes(range(32))).decode()
    app = claiming(s3_backend_settings={"seal_keys": key})
    result = length_of(app).delay(BIG)
    stored = app.backend.store._inner.get(objects(app)[0])
    assert b"xxxx" not in stored.body
    work(app)
    assert result.get(timeout=5) == 1_000_000


def test_retries(claiming, work):
    """A task that asks for another run gets its arguments again; the same bytes stay one object."""
    app = claiming()

    @app.task(bind=True, name="retried")
    def retried(self, text):
        if self.request.retries < 2:
            raise self.retry(countdown=0)
        return len(text)

    result = retried.delay(BIG)
    assert len(work(app)) == 3
    assert result.get(timeout=5) == 1_000_000
    assert len(objects(app)) == 1


def test_hiccups(claiming, work, proxy):
    """A server that fails for a moment is asked again."""
    app = claiming()
    proxy.fail("PUT", "slow_down", times=1)
    result = length_of(app).delay(BIG)
    proxy.fail("GET", "internal_error", times=2)
    work(app)
    assert result.get(timeout=5) == 1_000_000


def fragile(app):
    """A task whose arguments will be gone, and the errback that is told so."""
    told = []

    @app.task(name="told")
    def told_(request, exc, traceback):
        told.append((request.id, type(exc)))

    return length_of(app), told_, told


def test_gone(claiming, work):
    """Arguments that are no longer there fail the task: FAILURE with the reason, errbacks called; the next one runs."""
    app = claiming()
    length, told, calls = fragile(app)
    result = length.apply_async((BIG,), link_error=told.s())
    app.backend.store.delete(objects(app)[0])
    after = length.delay("after")
    work(app)
    with pytest.raises(MessageNotRead, match="older than the lifecycle rule keeps them"):
        result.get(timeout=5)
    assert calls == [(result.id, MessageNotRead)]
    assert after.get(timeout=5) == 5


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_extended_failures(claiming, work, serializer):
    """With `result_extended` the stored failure has a text in the place of arguments that could not be fetched."""
    app = claiming(result_extended=True, result_serializer=serializer, accept_content=["s3+json", serializer])
    result = length_of(app).delay(BIG, more="1")
    app.backend.store.delete(objects(app)[0])
    work(app)
    with pytest.raises(MessageNotRead):
        result.get(timeout=5)
    assert result.args == ["<1,000,021 bytes of arguments in S3>"]


def test_out(claiming, work, proxy):
    """So does a server that stays away."""
    app = claiming(s3_backend_settings={"max_retries": 1, "outage_patience": 0})
    length, told, calls = fragile(app)
    result = length.apply_async((BIG,), link_error=told.s())
    proxy.fail("GET", "internal_error", times=2)
    work(app)
    with pytest.raises(MessageNotRead, match=r"could not be fetched: .*2 tries"):
        result.get(timeout=5)
    assert calls == [(result.id, MessageNotRead)]


def test_chains(claiming, work):
    """Large values go from task to task, and so do large arguments of a task further down the chain."""
    app = claiming()
    length_of(app)

    @app.task(name="join")
    def join(*texts):
        return "".join(texts)

    result = chain(join.s(BIG, "1"), join.s(BIG), join.s("2"))()
    bodies = work(app)
    assert max(map(len, bodies)) < 3000
    assert result.get(timeout=5) == BIG + "1" + BIG + "2"


def test_chords(claiming, work, spends):
    """A native chord whose values make 5 MB, and whose body has large arguments of its own: the body gets them all."""
    app = claiming()

    @app.task(name="many")
    def many(number):
        return str(number) * 1_000_000

    @app.task(name="together")
    def together(texts, more):
        return [len(more), *map(len, texts), *(text[0] for text in texts)]

    result = chord(group(many.s(number) for number in range(5)))(together.s(BIG))
    bodies = work(app)
    assert result.get(timeout=5) == [1_000_000] * 6 + list("01234")
    assert max(map(len, bodies)) < 5000
    assert len(objects(app)) == 2


def test_failing_chord(claiming, work):
    """The failure of a member reaches who waits for a body that has large arguments."""
    app = claiming()
    length = length_of(app)
    result = chord([length.s(BIG), length.s(5)])(length.s(BIG))
    work(app)
    with pytest.raises(TypeError):
        result.get(timeout=5)


# -- removed at success


@pytest.fixture
def tidy(claiming):
    return lambda **conf: claiming(s3_backend_settings={"message_cleanup": "success"}, **conf)


def test_removed(tidy, work):
    """With `message_cleanup` 'success' a task's arguments go when its SUCCESS is stored."""
    app = tidy()
    length = length_of(app)
    first, second = length.delay(BIG), length.delay(BIG)
    assert len(objects(app)) == 2
    work(app, times=1)
    assert len(objects(app)) == 1
    work(app)
    assert objects(app) == []
    assert (first.get(timeout=5), second.get(timeout=5)) == (1_000_000, 1_000_000)


def test_kept(tidy, work):
    """They stay after a failure, and where no stored SUCCESS would tell a second delivery that it is one."""
    app = tidy()
    length = length_of(app)
    length.apply_async((BIG,), ignore_result=True)
    length.delay(BIG, 5)
    work(app)
    assert len(objects(app)) == 2


def test_delivered_twice(tidy, work):
    """A message that comes again after the success changes nothing and calls nobody."""
    app = tidy(task_acks_late=True)
    length, told, calls = fragile(app)
    result = length.apply_async((BIG,), link_error=told.s())
    with app.connection_for_read() as connection:
        queue = app.amqp.queues[app.conf.task_default_queue](connection.default_channel)
        queue.declare()
        message = queue.get(no_ack=True, accept=app.conf.accept_content)
    execute(app, message)
    assert objects(app) == []
    execute(app, message, redelivered=True)
    assert app.AsyncResult(result.id).get(timeout=5) == 1_000_000
    assert calls == []


def test_retries_of_its_own(tidy, work):
    """Each run of a task has its own object; the last one's goes with its success, the others by the lifecycle rule."""
    app = tidy()

    @app.task(bind=True, name="retried")
    def retried(self, text):
        if not self.request.retries:
            raise self.retry(countdown=0)
        return len(text)

    result = retried.delay(BIG)
    work(app)
    assert (result.get(timeout=5), result.state) == (1_000_000, states.SUCCESS)
    assert len(objects(app)) == 1
