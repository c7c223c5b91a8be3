"""Time-outs are totals: of a caller and of a request, whatever the server does."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import suppress

import pytest
from celery import states
from celery.exceptions import TimeoutError
from celery.result import AsyncResult, GroupResult

from celery_s3.errors import Interrupted, ResultNotRead
from celery_s3.results import write_once
from celery_s3.store.api import CREATE
from celery_s3.store.clients.control import Control
from celery_s3.store.deadline import retried_until

CLIENTS = ["obstore", "boto3"]
#: Faults, and how long each goes on with every request.
SLOW = {"hang": 30.0, "slow_body": 300.0, "dribble": 1.0, "dribble_body": 1.0}


@pytest.fixture(params=CLIENTS)
def app_for(request, seaweed, proxy, make_app):
    """``app_for(read_timeout=…, result_…=…)``: an app behind the proxy, whose backend has made its first request."""

    def make(**overrides):
        conf = {name: overrides.pop(name) for name in list(overrides) if name.startswith("result_")}
        values = {"endpoint_url": proxy.endpoint_url, "client": request.param} | overrides
        app = make_app(seaweed, s3_backend_settings=values, **conf)
        assert app.backend.results.conditional.supported()
        app.backend.store_result("warm", 1, states.SUCCESS)
        app.backend.store_result("pending", 1, states.STARTED)
        assert app.backend.get_state("pending") == states.STARTED
        return app

    return make


class Within:
    """At most so many seconds pass inside."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __enter__(self) -> None:
        self.began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        assert time.monotonic() - self.began < self.seconds


@pytest.mark.parametrize("fault", SLOW)
@pytest.mark.parametrize("always", [False, True])
def test_get_ends_in_time(app_for, proxy, fault, always):
    """`get(timeout=1)` ends within 1.5 s (and half a second for a busy machine), whatever the server does."""
    app = app_for(result_backend_always_retry=always)
    proxy.fail("GET", fault, times=-1, seconds=SLOW[fault])
    with Within(2.0), pytest.raises((TimeoutError, ResultNotRead)):
        app.AsyncResult("warm").get(timeout=1)


def test_get_ends_in_time_where_nobody_listens(app_for, proxy):
    """The same with `result_backend_always_retry`, whose own loop knows no time-outs."""
    app = app_for(result_backend_always_retry=True)
    with proxy.down(), Within(2.0), pytest.raises((TimeoutError, ResultNotRead)):
        app.AsyncResult("warm").get(timeout=1)


def test_always_retry_outlives_an_outage_where_nobody_says_how_long(app_for, proxy):
    """Without a timeout it goes on asking until the server is back, as it does with Celery's Redis backend."""
    app = app_for(result_backend_always_retry=True, max_retries=0)
    timer = threading.Timer(1.5, proxy.up)
    proxy.down()
    timer.start()
    assert app.AsyncResult("warm").state == states.SUCCESS
    timer.join()


@pytest.mark.parametrize("late", [False, True])
def test_a_chain_ends_in_time(app_for, proxy, late):
    """What the parents of a result take is part of its timeout, before the wait and during it."""
    app = app_for()
    parent = AsyncResult("pending", app=app)
    last = AsyncResult("last", app=app, parent=AsyncResult("middle", app=app, parent=parent))
    proxy.fail("GET", "hang", times=-1, after=2 if late else 0)
    with Within(2.0), pytest.raises((TimeoutError, ResultNotRead)):
        last.get(timeout=1)


def test_a_group_does_not_wait_for_another(app_for, proxy):
    """`group.get(timeout=…)` on healthy objects is done beside five threads that read groups that hang."""
    app = app_for()
    for number in range(20):
        app.backend.store_result(f"fine-{number}", number, states.SUCCESS)
    proxy.fail("GET stuck-", "hang", times=-1)

    def wait(one: int) -> None:
        stuck = GroupResult(f"g{one}", [AsyncResult(f"stuck-{one}-{n}", app=app) for n in range(40)], app=app)
        with suppress(TimeoutError, ResultNotRead):
            stuck.get(timeout=6)

    threads = [threading.Thread(target=wait, args=(one,)) for one in range(5)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    fine = GroupResult("fine", [AsyncResult(f"fine-{number}", app=app) for number in range(20)], app=app)
    with Within(20.0):
        assert fine.get(timeout=20) == list(range(20))
    with Within(15.0):
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("fault", SLOW)
@pytest.mark.parametrize("verb", ["GET", "PUT"])
def test_a_request_ends_in_time(app_for, proxy, fault, verb):
    """A request has `connect_timeout` and `read_timeout` in all, its answer's last byte included."""
    store = app_for(connect_timeout=0.5, read_timeout=0.7, max_retries=0).backend.store
    store.put("time/k", b"x" * 1000)
    proxy.fail(verb, fault, times=-1, seconds=SLOW[fault])
    if (verb, fault) in (("PUT", "slow_body"), ("PUT", "dribble_body")):  # its answer has none
        return
    with Within(2.2), pytest.raises(Interrupted):
        store.get("time/k", length=64 * 1024) if verb == "GET" else store.put("time/k", b"y")


@pytest.mark.parametrize("fault", ["hang", "dribble"])
def test_the_control_plane_has_deadlines_too(seaweed, proxy, settings_for, fault):
    """A question about the bucket ends when its caller's time is over, whatever the server does."""
    control = Control(settings_for(seaweed, endpoint_url=proxy.endpoint_url))
    control.region()
    proxy.fail("LIST", fault, times=-1, seconds=SLOW[fault])
    with Within(2.5), retried_until(time.monotonic() + 1), pytest.raises(Interrupted):
        control.region()


def test_an_expired_success_is_replaced_although_nobody_tells_the_time(seaweed, proxy, make_app, monkeypatch):
    """The server's clock is asked before, and not waited for: this machine's has to do after some seconds."""
    values = {"endpoint_url": proxy.endpoint_url, "outage_patience": 60}
    app = make_app(seaweed, s3_backend_settings=values, result_expires=1)
    app.backend.store_result("old", 1, states.SUCCESS)
    time.sleep(2.1)
    monkeypatch.setattr(write_once, "CLOCK_ANSWERS_IN", 1.0)
    proxy.fail("LIST", "dribble", times=-1, seconds=1.0)
    with Within(5.0):
        app.backend.store_result("old", 2, states.SUCCESS)
    assert app.AsyncResult("old").result == 2


@pytest.mark.parametrize("mebibytes", [2, 7])
def test_a_large_write_ends_in_time(app_for, proxy, mebibytes):
    """A body of some MiB has a second for each of them more, and not a minute."""
    store = app_for(connect_timeout=0.5, read_timeout=0.5, max_retries=0, client="obstore").backend.store
    proxy.fail("PUT", "hang", times=-1)
    with Within(mebibytes + 2.5), pytest.raises(Interrupted):
        store.put("time/k", b"y" * mebibytes * 1024 * 1024, precondition=CREATE)


def test_a_signal_interrupts_a_large_write(app_for, proxy):
    """What a signal raises while a large body is being sent comes at once."""
    store = app_for(max_retries=0).backend.store
    proxy.fail("PUT", "hang", times=-1)

    class Limit(Exception):
        pass

    def strike(*_: object) -> None:
        raise Limit

    before = signal.signal(signal.SIGALRM, strike)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with Within(2.0), pytest.raises(Limit):
            store.put("time/k", b"y" * 4 * 1024 * 1024)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_threads_of_what_was_given_up_end(seaweed, proxy, make_app):
    """botocore would read for hours from who sends a byte a second: the connection is broken with the request."""
    values = {"endpoint_url": proxy.endpoint_url, "client": "boto3", "connect_timeout": 0.3, "read_timeout": 1.5}
    store = make_app(seaweed, s3_backend_settings={**values, "max_retries": 0}).backend.store
    store.put("time/k", b"x" * 1000)
    while hasattr(store, "_inner"):
        store = store._inner
    client = store._boto3.get()
    ended, send = [], client._client.send

    def watched(request):
        try:
            return send(request)
        finally:
            ended.append(request)

    client._client.send = watched
    for fault in ("dribble", "dribble_body"):
        proxy.fail("GET", fault, times=1, seconds=1.0)
        with pytest.raises(Interrupted):
            store.get("time/k", length=100)
    over = time.monotonic() + 2
    while len(ended) < 2 and time.monotonic() < over:
        time.sleep(0.05)
    assert len(ended) == 2
