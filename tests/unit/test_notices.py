"""The listener, subscriptions and the wire, without a broker."""

from __future__ import annotations

import queue
import time
from types import SimpleNamespace

import pytest
from celery.app.task import Context
from kombu.utils.uuid import uuid

from celery_s3.notices import Subscription, service
from celery_s3.notices import listener as module
from celery_s3.notices.listener import Listener
from celery_s3.notices.notice import LARGEST, PREFIX, Notice, Noticing, answered_by, dumps, loads, watched
from celery_s3.notices.service import _Outgoing
from celery_s3.results import waiting
from celery_s3.store.memory import MemoryStore
from celery_s3.store.requests import Put


class Line:
    """A broker in this process: ``say()`` lets something come, ``confirms`` says whether keys are confirmed."""

    address = ""
    turn = 0.05

    def __init__(self, confirms=True):
        self.confirms = confirms
        self.came = queue.SimpleQueue()
        self.subscribed = set()
        self.closed = False

    def say(self, what):
        self.came.put(what)

    def subscribe(self, keys):
        self.subscribed |= set(keys)
        if self.confirms:
            for key in keys:
                self.say(key)
        return ()

    def unsubscribe(self, keys):
        self.subscribed -= set(keys)

    def receive(self, seconds):
        try:
            said = self.came.get(timeout=seconds)
        except queue.Empty:
            return ()
        if isinstance(said, Exception):
            raise said
        return (said,)

    def close(self):
        self.closed = True


@pytest.fixture
def lines():
    return [Line(), Line()]


@pytest.fixture
def listener(lines):
    left = iter(lines)
    one = Listener(lambda: next(left))
    yield one
    one.close()


def test_confirmed_then_told(listener, lines):
    """Who waits is sure once the broker has confirmed, and gets what came along."""
    with Subscription(listener) as told:
        told.add(["a", "b"])
        told.get_ready(10)
        assert told.listening
        assert sorted(told.sure_now()) == ["a", "b"]
        lines[0].say(loads(dumps("a", Put("a", b"body", None, {"celery-state": "SUCCESS"}, "text/plain"))))
        lines[0].say(Notice("b", None))
        lines[0].say(Notice("c", None))
        heard = []
        while len(heard) < 2:
            told.wait(10)
            heard += told.news()
        assert heard == ["a", "b"]
        assert told.take("a").body == b"body"
        assert told.take("a") is None
        assert told.take("b") is None


def test_nothing_stays_behind(listener, lines, eventually):
    """Keys are subscribed to as long as somebody wants them."""
    one, other = Subscription(listener), Subscription(listener)
    one.add(["a", "b"])
    other.add(["b"])
    other.get_ready(10)
    one.close()
    eventually(lambda: lines[0].subscribed == {"b"})
    other.discard("b")
    eventually(lambda: lines[0].subscribed == set())


def test_a_second_waiter_is_sure_at_once(listener, lines):
    """What the broker has confirmed for one holds for the next."""
    with Subscription(listener) as one, Subscription(listener) as other:
        one.add(["a"])
        one.get_ready(10)
        other.add(["a"])
        assert other.listening


def test_broken_line(listener, lines):
    """When the line breaks who waits is woken and no longer sure; when another one is up he is again."""
    with Subscription(listener) as told:
        told.add(["a"])
        told.get_ready(10)
        lines[0].say(ConnectionError("cut"))
        while told.listening:
            told.wait(10)
        assert lines[0].closed
        while not told.listening:
            told.wait(10)
        assert lines[1].subscribed == {"a"}


def test_never_confirmed(lines):
    """Where no confirmation comes the first look waits no longer than it was told to, and looks are as without."""
    lines[0].confirms = False
    listener = Listener(lambda: lines[0])
    with Subscription(listener) as told:
        told.add(["a"])
        began = time.monotonic()
        told.get_ready(0.1)
        assert 0.1 <= time.monotonic() - began < 5
        assert not told.listening
    listener.close()


def test_who_has_not_waited_for_a_while(lines, monkeypatch, eventually):
    """Nobody has waited for a minute: no task is told an address any more, the line is closed and the thread ends."""
    monkeypatch.setattr(module, "IDLE", 0.2)
    lines[0].address = "queue"
    listener = Listener(lambda: lines[0], confirms=False)
    with Subscription(listener) as told:
        told.add(["a"])
        assert not told.may_be_sure  # its task was sent without
        assert eventually(lambda: listener.address) == "queue"
    eventually(lambda: lines[0].closed)
    assert listener.address == ""
    eventually(lambda: listener._thread is None)


def test_what_need_not_come(lines):
    """What is listened for besides does not keep anybody from relying on the rest."""
    lines[0].confirms = False
    listener = Listener(lambda: lines[0])
    with Subscription(listener) as told:
        told.add(["a"])
        told.add(["parent"], expected=False)
        lines[0].say("a")
        told.get_ready(10)
        assert told.listening
    listener.close()


def test_three_misses(listener, lines):
    """Three results in a row without notice: nobody relies on notices until one comes."""
    with Subscription(listener) as told:
        told.add(["a"])
        told.get_ready(10)
        for _ in range(3):
            told.missed()
        assert not told.listening
        lines[0].say(Notice("a", None))
        while not told.listening:
            told.wait(10)


def test_nobody_to_listen_to():
    """Where nothing can be heard a subscription sleeps and is never sure."""
    with Subscription() as told:
        told.add(["a"])
        told.get_ready(10)
        told.missed()
        told.wait(0)
        assert not told.listening
        assert not told.news()


# -- the wire


def test_a_notice_there_and_back():
    """An object comes out as it went in; its time is when it came."""
    put = Put("base/ключ", b"\x00\n\xff", None, {"celery-state": "SUCCESS", "celery-seal": "x"}, "application/x")
    stored = loads(dumps(put.key, put)).stored
    assert (stored.key, stored.body, stored.metadata, stored.content_type) == (
        put.key,
        put.body,
        put.metadata,
        put.content_type,
    )
    assert stored.complete
    assert abs(stored.modified.timestamp() - time.time()) < 5


@pytest.mark.parametrize("stored", [None, Put("k", b"x" * (LARGEST + 1))])
def test_without_bytes(stored):
    """Nothing or too much to go along."""
    assert loads(dumps("k", stored)) == Notice("k", None)


def test_what_is_told_is_got_below_the_seal():
    """A told object answers a GET from its beginning, and no other one; PUTs are seen as they are stored."""
    memory = MemoryStore()
    store = Noticing(memory)
    with watched() as writes:
        store.put("k", b"stored")
    assert [put.body for put in writes] == [b"stored"]
    told = loads(dumps("k", Put("k", b"told", None, {}, ""))).stored
    with answered_by(told):
        assert store.get("k", length=100).body == b"told"
        assert store.get("k", start=1).body == b"tored"
    assert store.get("k").body == b"stored"


# -- sending


class Refusing:
    def __init__(self, error=None):
        self.error = error or ConnectionError("refused")
        self.sent = 0
        self.closed = False

    def send(self, key, payload, reply_to):
        self.sent += 1
        raise self.error

    def close(self):
        self.closed = True


def test_a_broker_that_refuses_is_left_alone(caplog):
    """Nothing is raised; one line in the log; nothing is sent for a while."""
    sender = Refusing()
    outgoing = _Outgoing(lambda: sender)
    for _ in range(3):
        outgoing.send("k", b"", "")
    assert sender.sent == 1
    assert sender.closed
    assert len(caplog.records) == 1


def test_a_broken_connection_is_made_anew(caplog):
    """A broker may close a connection that was idle: the notice goes over another one."""
    senders = [Working(), Working()]
    left = iter(senders)
    outgoing = _Outgoing(lambda: next(left))
    outgoing.send("a", b"", "")
    senders[0].error = ConnectionError("closed")
    outgoing.send("b", b"", "")
    assert [sender.sent for sender in senders] == [["a"], ["b"]]
    assert senders[0].closed
    assert not caplog.records


class Working(Refusing):
    def __init__(self):
        self.error, self.sent, self.closed = None, [], False

    def send(self, key, payload, reply_to):
        if self.error is not None:
            raise self.error
        self.sent.append(key)


def test_the_end_of_a_process_is_not_swallowed():
    """What ends the process comes out, and the connection is not used any more."""
    sender = Refusing(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        _Outgoing(lambda: sender).send("k", b"", "")
    assert sender.closed


# -- the schedule


def test_looks_are_few_when_a_notice_is_expected():
    """At 1, 2.3, 3.8, 5.8, 8.2 s, then every 10 s; none of them more for an interval of one's own."""
    delay, waited, looks = waiting.schedule(None, lambda: True), 0.0, []
    while waited < 30:
        waited += delay(waited)
        looks.append(round(waited, 1))
    assert looks == [1.0, 2.3, 3.8, 5.8, 8.2, 18.2, 28.2, 38.2]
    assert waiting.schedule(5, lambda: True)(0.0) == 5


class News:
    """A clock on which news comes at given moments; false ones unless ``ids`` says something."""

    def __init__(self, at, ids=()):
        self.at, self.ids = sorted(at), list(ids)
        self.now, self.misses = 0.0, 0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds

    def wait(self, seconds):
        end = self.now + seconds
        if self.at and self.at[0] <= end:
            self.now = max(self.now, self.at.pop(0))
        else:
            self.now = end

    def news(self):
        return self.ids

    def missed(self):
        self.misses += 1


def looks_of(news, ends):
    """When :func:`until` looks for what is there after ``ends`` seconds."""
    looks = []

    def look():
        looks.append(news.now)
        return True if news.now >= ends else None

    waiting.until(look, delay=waiting.schedule(None, lambda: True), clock=news, news=news)
    return looks


def test_news_ends_a_nap():
    """There is a look when news comes, and those that were due are due still."""
    assert looks_of(News([4.5]), 4.5) == pytest.approx([0, 1, 2.3, 3.8, 4.5])
    assert looks_of(News([1.5]), 5.0) == pytest.approx([0, 1, 1.5, 2.3, 3.8, 5.8])


def test_false_news_is_no_more_than_polling():
    """A flood of false notices makes no more looks than a wait without notices."""
    flood = len(looks_of(News([n / 1000 for n in range(10_000)]), 9.5))
    polled = []
    clock = News([])
    waiting.until(
        lambda: polled.append(1) or (clock.now >= 9.5 or None), delay=waiting.adaptive(lambda *_: 1.0), clock=clock
    )
    assert flood <= 1.5 * len(polled)


def test_a_group_asks_for_what_it_heard_of():
    """News of a member asks for that member alone."""
    asked = []
    news = News([0.5, 0.6], ["c"])

    def ask(next_id):
        for id in iter(next_id, None):
            asked.append((round(news.now, 1), id))
            found = news.now >= (0.5 if id == "c" else 1.0)
            yield id, id if found else None

    found = waiting.each("abcdef", ask, delay=waiting.schedule(None, lambda: True), clock=news, news=news)
    assert next(found) == ("c", "c")
    assert asked[-1] == (0.5, "c")
    before = len(asked)
    assert len(list(found)) == 5
    assert asked[before][0] == 0.6
    assert news.misses


def test_whom_to_tell(make_app):
    """Final states of tasks that nothing goes on from, where there is a broker that can tell."""

    class Server:
        def settings(self):
            return {"bucket": "results"}

    redis = make_app(Server(), broker_url="redis://localhost").backend.notices
    assert redis.telling("SUCCESS", Context({"id": "a"}))
    assert redis.telling("REVOKED", None)
    assert redis.telling("FAILURE", Context({"id": "a", "chain": ["next"]}))
    assert not redis.telling("SUCCESS", Context({"id": "a", "chain": ["next"]}))
    assert not redis.telling("SUCCESS", Context({"id": "a", "chord": {"task": "body"}}))
    assert not redis.telling("STARTED", Context({"id": "a"}))
    on = {"s3_backend_settings": {"notices": "on"}}
    for conf in ({"broker_url": "amqp://localhost"}, {"broker_url": "sqs://"} | on):
        addressed = make_app(Server(), **conf).backend.notices
        assert addressed.telling("SUCCESS", Context({"id": "a", "reply_to": PREFIX + uuid()}))
        for reply_to in ("celery", f"{PREFIX}x", f"{PREFIX}{uuid()}/x", 5):
            assert not addressed.telling("SUCCESS", Context({"id": "a", "reply_to": reply_to}))
        assert not addressed.telling("SUCCESS", Context({"id": "a"}))
    off = {"s3_backend_settings": {"notices": "off"}}
    for conf in ({"broker_url": None}, {"broker_url": "sqs://"}, {"broker_url": "redis://localhost"} | off):
        assert not make_app(Server(), **conf).backend.notices.telling("SUCCESS", Context({"id": "a"}))


def test_a_body_that_fails_without_a_request(make_app, monkeypatch):
    """The address is that of the task which is running: a body that fails is stored without a request of its own."""

    class Server:
        def settings(self):
            return {"bucket": "results"}

    notices = make_app(Server(), broker_url="amqp://localhost").backend.notices
    assert not notices.telling("FAILURE", None)
    member = SimpleNamespace(request=Context({"id": "member", "reply_to": PREFIX + uuid()}))
    monkeypatch.setattr(service, "current_task", lambda: member)
    assert notices.telling("FAILURE", None)
