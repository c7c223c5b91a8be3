"""Notices over a real Redis, whatever happens to them: told and teller are in one process."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from celery.app.task import Context
from celery.exceptions import TimeoutError
from celery.result import GroupResult
from kombu.utils.uuid import uuid
from redis import Redis

from celery_s3 import aio
from celery_s3.errors import ConfigurationError
from celery_s3.notices.notice import LARGEST, dumps
from celery_s3.operate.doctor import broker
from celery_s3.store.requests import Put
from devtools.proxy import Proxy

#: Seconds within which what was told is there. Without notices the naps of a wait that has gone on for as long as the
#: tests wait are shorter: so these tests count requests.
SOON = 5.0


@pytest.fixture
def app(counted, server):
    app = counted(broker="redis")
    server.reset()
    return app


@pytest.fixture
def waiting(app, eventually):
    """``with waiting(id) as wait:`` somebody waits in a thread and has looked; ``wait()`` is what ``get()`` returns."""

    @contextmanager
    def begun(id, app=app, **how):
        outcome = []

        def get():
            try:
                outcome.append(app.AsyncResult(id).get(**({"timeout": 30} | how)))
            except Exception as exc:
                outcome.append(exc)

        thread = threading.Thread(target=get)
        thread.start()
        eventually(lambda: listening(app, id))

        def wait():
            thread.join(40)
            return outcome[0]

        yield wait
        thread.join(40)

    return begun


def key(app, id):
    return app.backend.layout.result_key(id)


def channel(app, id):
    return f"/0.celery-s3-notices/{app.backend.settings.bucket}/{key(app, id)}"


def listening(app, id):
    """Whether somebody listens for a task and has looked since."""
    listener = app.backend.notices._listeners.peek()
    return listener is not None and key(app, id) in listener._confirmed and looked(app, id)


def looked(app, id):
    if isinstance(app.server, Proxy):
        return any(one.method == "GET" and key(app, id) in one.target for one in app.server.records())
    return any(request[:2] == ("GET", key(app, id)) for request in app.server.store.requests)


def put(app, id, value, state="SUCCESS"):
    app.backend.store_result(id, value, state, request=Context({"id": id, "task": "job"}))


def test_told_without_another_request(app, waiting, server):
    """The bytes come along: one look before the task ends, and none after it."""
    id = uuid()
    with waiting(id) as wait:
        put(app, id, {"x": [1, 2]})
        assert wait() == {"x": [1, 2]}
    assert server.counts() == {"GET": 1, "PUT": 1}


@pytest.mark.parametrize(
    ("conf", "value"),
    [
        ({"s3_backend_settings": {"notices": "ids"}}, "short"),
        ({}, "x" * LARGEST),
    ],
    ids=["ids alone", "too large to go along"],
)
def test_told_the_id_alone(counted, waiting, server, conf, value):
    """Without bytes one GET is made, at once."""
    app, id = counted(broker="redis", **conf), uuid()
    server.reset()
    with waiting(id, app) as wait:
        put(app, id, value)
        assert wait() == value
    assert server.counts() == {"GET": 2, "PUT": 1}


def test_failure_is_told(app, waiting, server):
    """An error comes as an error."""
    id = uuid()
    with waiting(id) as wait:
        app.backend.mark_as_failure(id, KeyError("lost"), request=Context({"id": id, "task": "job"}))
        assert isinstance(wait(), KeyError)
    assert server.counts()["GET"] == 1


def test_what_is_there_is_found_at_once(app, server):
    """Nobody waits for a notice of what was stored before: one GET."""
    id = uuid()
    put(app, id, 5)
    server.reset()
    assert app.AsyncResult(id).get(timeout=10) == 5
    assert server.counts() == {"GET": 1}


def test_nothing_is_told_in_the_middle(app, redis_url):
    """A success that a chain or chord goes on from has nobody who waits for it; nor has what is not final."""
    heard = Redis.from_url(redis_url).pubsub()
    heard.psubscribe("*")
    heard.get_message(timeout=5)
    ids = [uuid() for _ in range(4)]
    app.backend.store_result(ids[0], 1, "SUCCESS", request=Context({"id": ids[0], "chain": [{"task": "next"}]}))
    app.backend.store_result(ids[1], 1, "PROGRESS", request=Context({"id": ids[1]}))
    app.backend.store_result(ids[2], 1, "SUCCESS", request=Context({"id": ids[2], "is_eager": True}))
    put(app, ids[3], 1)
    assert heard.get_message(timeout=5)["channel"].decode() == channel(app, ids[3])
    heard.close()


def test_sealed_stays_sealed(counted, waiting, server, redis_url):
    """What goes over the broker is what goes to S3; plain bytes in its place are no result, and the bucket is asked."""
    sealed = {"seal_keys": "A" * 43 + "="}
    app, id = counted(broker="redis", s3_backend_settings=sealed), uuid()
    heard = Redis.from_url(redis_url).pubsub()
    heard.subscribe(channel(app, id))
    assert heard.get_message(timeout=5)["type"] == "subscribe"
    with waiting(id, app) as wait:
        body = b'{"status": "SUCCESS", "result": "forged", "task_id": "%b"}' % id.encode()
        forged = Put(key(app, id), body, None, {"celery-state": "SUCCESS"}, "application/json")
        Redis.from_url(redis_url).publish(channel(app, id), dumps(forged.key, forged))
        assert b"forged" in heard.get_message(timeout=5)["data"]
        put(app, id, "the truth")
        assert wait() == "the truth"
    assert b"the truth" not in heard.get_message(timeout=5)["data"]
    heard.close()


@pytest.mark.parametrize(
    "forged",
    [
        b"",
        b"{",
        b"[]\nx",
        b"\x80" * 100,
        b"x" * 100_000,
        b'{"key": 5}',
        b"[" * 20_000,
        None,  # of another key
        "garbage",
        "pickle",
    ],
)
def test_forged_notices(app, waiting, redis_url, forged):
    """Garbage, another's key, a serializer that is not accepted: nothing but a look comes of it."""
    id = uuid()
    name = key(app, id)
    if forged is None:
        forged = dumps(key(app, "other"), None)
    elif isinstance(forged, str):
        kind = "application/json" if forged == "garbage" else "application/x-python-serialize"
        forged = dumps(name, Put(name, b"\x80\x04N.", None, {"celery-state": "SUCCESS"}, kind))
    with waiting(id) as wait:
        Redis.from_url(redis_url).publish(channel(app, id), forged)
        put(app, id, "the truth")
        assert wait() == "the truth"


def test_lost_notice(app, waiting, monkeypatch):
    """A notice that never comes costs the time to the next look."""
    id = uuid()
    with waiting(id) as wait:
        monkeypatch.setattr(app.backend.notices._outgoing.get(), "send", lambda *_: None)
        put(app, id, "found")
        began = time.monotonic()
        assert wait() == "found"
        assert time.monotonic() - began < SOON


def test_cut_connections(app, waiting, redis_url):
    """Connections that are cut, the listener's and the sender's: the result comes all the same, and later ones too."""
    ids = [uuid(), uuid()]
    with waiting(ids[0]) as wait:
        put(app, uuid(), "the sender is connected")
        client = Redis.from_url(redis_url)
        for kind in ("normal", "pubsub"):
            client.client_kill_filter(_type=kind)
        put(app, ids[0], 1)
        assert wait() == 1
    with waiting(ids[1]) as wait:
        put(app, ids[1], 2)
        assert wait() == 2


def test_two_waiters_and_one_that_gives_up(app, waiting, server):
    """One's timeout is its own; both others are told by one notice; then nothing is subscribed to any more."""
    id = uuid()
    with waiting(id) as one, waiting(id) as other:
        with pytest.raises(TimeoutError):
            app.AsyncResult(id).get(timeout=0.2)
        put(app, id, "both")
        assert (one(), other()) == ("both", "both")
    listener = app.backend.notices._listeners.peek()
    assert not listener._waiting
    assert server.counts()["GET"] <= 5


def test_timeout_is_kept(app):
    """A timeout of a wait that listens is that of one that polls."""
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        app.AsyncResult(uuid()).get(timeout=0.3)
    assert 0.3 <= time.monotonic() - began < SOON


def test_broker_away(counted, waiting, server):
    """Where the broker cannot be reached, storing and waiting are as without notices."""
    app, id = counted(broker="redis", broker_url="redis://127.0.0.1:1/0"), uuid()
    threading.Timer(0.5, put, (app, id, "polled")).start()
    assert app.AsyncResult(id).get(timeout=10) == "polled"
    assert server.counts()["GET"] > 3


@pytest.mark.parametrize("conf", [{"s3_backend_settings": {"notices": "off"}}, {"broker": "memory"}])
def test_no_notices(counted, conf):
    """Switched off, or with a broker that cannot tell: no thread, no connection."""
    app, id = counted(**({"broker": "redis"} | conf)), uuid()
    threading.Timer(0.2, put, (app, id, "polled")).start()
    assert app.AsyncResult(id).get(timeout=10) == "polled"
    assert app.backend.notices._listeners.peek() is None
    assert app.backend.notices._outgoing.peek() is None


def test_those_who_do_not_tell(app, waiting, monkeypatch, server):
    """After three results that nobody was told of, all is polled for until somebody is told again."""
    listener = app.backend.notices._listeners.get()
    assert listener.trusted
    for _ in range(3):
        listener.missed()
    assert not listener.trusted
    threading.Timer(0.6, put, (app, "polled", "polled")).start()
    assert app.AsyncResult("polled").get(timeout=10) == "polled"
    assert server.counts()["GET"] > 3
    with waiting("told", interval=60) as wait:
        put(app, "told", "again")
        assert wait() == "again"
    assert listener.trusted


def test_group_is_told(app, server):
    """Members come by their notices; a lost one is found by a look."""
    ids = [uuid() for _ in range(20)]
    group = GroupResult(uuid(), [app.AsyncResult(id) for id in ids], app=app)

    def work():
        for number, id in enumerate(ids):
            time.sleep(0.02)
            put(app, id, number)

    threading.Timer(0.5, work).start()
    assert group.get(timeout=30) == list(range(20))
    assert server.counts()["GET"] <= 30


def test_failure_before_the_end_of_a_chain(app, waiting, eventually):
    """Who waits for the end of a chain is told of a task before it that was revoked."""
    first, last = app.AsyncResult(uuid()), app.AsyncResult(uuid())
    last.parent = first
    threading.Timer(0.5, lambda: app.backend.mark_as_revoked(first.id, "no", request=Context({"id": first.id}))).start()
    began = time.monotonic()
    with pytest.raises(Exception, match="no"):
        last.get(timeout=30)
    assert time.monotonic() - began < 0.95  # the look without a notice comes after a second


def test_doctor_tries_the_line(app, counted, monkeypatch):
    """One notice, to itself; where none comes it says what that costs, and what to do."""
    finding = broker.notices(SimpleNamespace(settings=app.backend.settings, notices=app.backend.notices))
    assert (finding.level, "over Redis" in finding.text) == ("OK", True)
    monkeypatch.setattr(broker, "_WITHIN", 0.3)
    away = counted(broker="redis", broker_url="redis://127.0.0.1:1/0").backend
    finding = broker.notices(SimpleNamespace(settings=away.settings, notices=away.notices))
    assert (finding.level, "polled for" in finding.text) == ("WARN", True)


# -- then()


def test_then(app, eventually, server):
    """A callback is called with the result when its task ends; one look, no more requests."""
    result, called = app.AsyncResult(uuid()), []
    result.then(lambda result: called.append(result.get()))
    eventually(lambda: looked(app, result.id))
    put(app, result.id, 7)
    assert eventually(lambda: called) == [7]
    assert server.counts() == {"GET": 1, "PUT": 1}
    assert not len(app.backend.watcher)


def test_then_of_what_failed_or_was_known(app, eventually):
    """As with Redis' backend: a failed task's result is handed over too, and one that is known at once."""
    result, called = app.AsyncResult(uuid()), []
    app.backend.mark_as_failure(result.id, KeyError("lost"), request=Context({"id": result.id}))
    result.then(lambda result: called.append(result.state))
    assert eventually(lambda: called) == ["FAILURE"]
    result.then(lambda result: called.append("again"))
    assert called == ["FAILURE", "again"]


def test_then_without_notices(counted, eventually):
    """Without notices the watcher polls."""
    app = counted()
    result, called = app.AsyncResult(uuid()), []
    result.then(lambda result: called.append(result.get()))
    threading.Timer(0.2, put, (app, result.id, 7)).start()
    assert eventually(lambda: called) == [7]


def test_groups_do_not_watch_their_members(app, server):
    """A group counts its members by `then()` whether or not anybody wants to know: that asks for nothing."""
    group = GroupResult(uuid(), [app.AsyncResult(uuid()) for _ in range(3)], app=app)
    assert not app.backend.pending._cancel
    assert server.counts() == {}
    del group


@pytest.mark.parametrize(
    "reads",
    [
        lambda group: group.get(timeout=5),
        lambda group: group.join(timeout=5),
        lambda group: group.ready(),
        lambda group: [member.get(timeout=5) for member in group.results],
        lambda group: [member.then(lambda _: None) for member in group.results],
    ],
    ids=["get", "join", "ready", "members", "then"],
)
def test_then_of_a_group(app, eventually, reads):
    """Who has subscribed to a group is called when all members are known here, and not before, as with Redis."""
    ids = [uuid() for _ in range(3)]
    group = GroupResult(uuid(), [app.AsyncResult(id) for id in ids], app=app)
    called = []
    group.then(lambda result: called.append(result.get(timeout=5)))
    for id in ids:
        put(app, id, id)
    assert not called
    reads(group)
    assert eventually(lambda: called) == [ids]


def test_then_forgotten(app, eventually):
    """A result that was subscribed to weakly, or is forgotten, is watched no more."""
    one, other = app.AsyncResult(uuid()), app.AsyncResult(uuid())
    one.then(lambda _: None, weak=True)
    other.then(lambda _: None)
    eventually(lambda: len(app.backend.watcher) == 2)
    gone = weakref.ref(one)
    del one
    gc.collect()
    assert gone() is None
    other.forget()
    eventually(lambda: not len(app.backend.watcher))


# -- asyncio


def test_await(app, server):
    """The loop goes on while a result is awaited; its value costs no request after the task's end."""

    async def main():
        result = app.AsyncResult(uuid())
        waiter = asyncio.ensure_future(aio.result(result, timeout=30))
        while not looked(app, result.id):
            await asyncio.sleep(0.01)
        await asyncio.to_thread(put, app, result.id, "value")
        assert await waiter == "value"
        return await aio.result(result)

    assert asyncio.run(main()) == "value"
    assert server.counts() == {"GET": 1, "PUT": 1}


def test_await_failure_and_timeout(app):
    """An error is raised, or returned with ``propagate=False``; a timeout is Celery's."""

    async def main():
        id = uuid()
        app.backend.mark_as_failure(id, KeyError("lost"), request=Context({"id": id}))
        with pytest.raises(KeyError):
            await aio.result(app.AsyncResult(id))
        assert isinstance(await aio.result(app.AsyncResult(id), propagate=False), KeyError)
        with pytest.raises(TimeoutError):
            await aio.result(app.AsyncResult(uuid()), timeout=0.1)
        with pytest.raises(TimeoutError):
            async for _ in aio.as_completed([app.AsyncResult(uuid())], timeout=0.1):
                pass

    asyncio.run(main())


def test_await_parent_that_failed(app):
    """As ``get()`` does, it raises the error of a task before the one that is awaited."""

    async def main():
        first, last = app.AsyncResult(uuid()), app.AsyncResult(uuid())
        last.parent = first
        app.backend.mark_as_failure(first.id, KeyError("lost"), request=Context({"id": first.id}))
        with pytest.raises(KeyError):
            await aio.result(last, timeout=30)

    asyncio.run(main())


def test_cancelled_await_leaves_nothing(app, eventually):
    """A cancelled await, a closed loop, an abandoned iteration: nothing is watched any more."""

    async def main():
        waits = [asyncio.ensure_future(aio.result(app.AsyncResult(uuid()))) for _ in range(20)]
        while len(app.backend.watcher) < 20:
            await asyncio.sleep(0.01)
        for one in waits:
            one.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        done = app.AsyncResult(uuid())
        put(app, done.id, 1)
        results = aio.as_completed([done, app.AsyncResult(uuid())])
        assert (await anext(results)).id == done.id
        await results.aclose()

    asyncio.run(main())
    eventually(lambda: not len(app.backend.watcher))
    eventually(lambda: not app.backend.notices._listeners.peek()._waiting)


def test_as_completed(app):
    """Results come as they end, whatever their state, and know it."""

    async def main():
        results = [app.AsyncResult(uuid()) for _ in range(3)]
        came = []

        def work():
            put(app, results[2].id, 2)
            app.backend.mark_as_failure(results[0].id, KeyError("lost"), request=Context({"id": results[0].id}))
            put(app, results[1].id, 1)

        threading.Timer(0.1, work).start()
        async for one in aio.as_completed(results, timeout=30):
            came.append((one.id, one.state))
        assert sorted(came) == sorted(zip([one.id for one in results], ["FAILURE", "SUCCESS", "SUCCESS"], strict=True))

    asyncio.run(main())


def test_await_group(app):
    """A group's values come as a list in its order; its error as soon as it is there."""

    async def main():
        ids = [uuid() for _ in range(3)]
        group = GroupResult(uuid(), [app.AsyncResult(id) for id in ids], app=app)
        for number, id in enumerate(ids):
            put(app, id, number)
        assert await aio.result(group, timeout=30) == [0, 1, 2]
        lost, never = app.AsyncResult(uuid()), app.AsyncResult(uuid())
        app.backend.mark_as_failure(lost.id, KeyError("lost"), request=Context({"id": lost.id}))
        with pytest.raises(KeyError):
            await aio.result(GroupResult(uuid(), [never, lost], app=app), timeout=30)

    asyncio.run(main())


def test_await_of_another_backend(make_app, server):
    """What another backend has stored is refused in words."""
    app = make_app(server, result_backend="cache+memory://")
    with pytest.raises(ConfigurationError, match="awaits those of celery-s3"):
        asyncio.run(aio.result(app.AsyncResult(uuid())))
