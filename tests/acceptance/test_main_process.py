"""A worker's main process, which receives tasks: S3 may do what it likes, it goes on, and what it had to store is."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from celery import chord, states

TASKS = Path(__file__).with_name("tasks.py")
#: Seconds that something may take; only a hang takes them.
SOON = 40
LATE = {"expires": datetime.now(UTC) - timedelta(minutes=1)}


@pytest.fixture
def work(proxy, make_app, worker):
    """``app, one = work(pool, **conf)``: an app on Redis, and its worker; ``proxy`` stands before the server."""

    def start(pool="prefork", **conf):
        app = make_app(proxy, broker="redis", **conf)
        one = worker(app, TASKS, pool=pool)
        # ready a moment before it hears what is sent to all workers
        assert app.control.ping(timeout=SOON, limit=1)
        return app, one

    return start


def state(app, id):
    return app.AsyncResult(id).state


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_s3_is_away_while_tasks_come_that_nobody_runs(work, proxy, eventually, pool):
    """An expired, a revoked and an unknown task in an outage: the worker lives, and their states are there later."""
    app, one = work(pool)
    gone = app.send_task("nap", (0,), countdown=600)
    app.control.revoke(gone.id)
    proxy.down()
    expired = app.send_task("add", (1, 2), **LATE)
    unknown = app.send_task("nobody.knows")
    eventually(lambda: "Discarding revoked task" in one.log and "unregistered task" in one.log, SOON)
    time.sleep(2)
    assert one.running
    proxy.up()
    wanted = {expired.id: states.REVOKED, unknown.id: states.FAILURE, gone.id: states.REVOKED}
    eventually(lambda: {id: state(app, id) for id in wanted} == wanted, SOON)
    assert app.send_task("add", (1, 2)).get(timeout=SOON) == 3


def test_s3_is_away_when_a_child_ends(work, proxy, eventually):
    """A hard time limit and a child that is killed, in an outage: both tasks have failed later, nobody waits.

    The errback of one is a chord, which Celery sends from the main process: that stands still no more than otherwise.
    """
    app, one = work(task_track_started=True)
    sign = partial(app.signature, immutable=True)
    errback = chord([sign("add", (1, 2)), sign("add", (3, 4))], sign("add", (5, 6), task_id="of-errback"), app=app)
    limited = app.send_task("forever", time_limit=1, link_error=errback)
    killed = app.send_task("die")
    eventually(lambda: state(app, limited.id) == states.STARTED, SOON)
    proxy.down()
    eventually(lambda: "Hard time limit" in one.log, SOON)
    time.sleep(1)
    assert app.control.ping(timeout=5, limit=1)
    assert one.running
    proxy.up()
    eventually(lambda: state(app, limited.id) == state(app, killed.id) == states.FAILURE, SOON)
    assert app.AsyncResult("of-errback").get(timeout=SOON) == 11


def test_a_revoke_of_many(work, proxy, eventually):
    """500 ids at 20 ms a request: the worker answers meanwhile, and each of them costs one PUT and no GET before."""
    app, _ = work()
    proxy.configure(delay=0.02)
    assert app.send_task("add", (1, 2)).get(timeout=SOON) == 3
    proxy.reset()
    ids = [f"revoked-{number}" for number in range(500)]
    app.control.revoke(ids)
    slowest = 0.0
    for _ in range(10):
        began = time.monotonic()
        assert app.control.ping(timeout=5, limit=1)
        slowest = max(slowest, time.monotonic() - began)
    assert slowest < 3  # one by one it would be 10 s and more; a look at each first, 20
    eventually(lambda: proxy.counts()["PUT"] >= 500, SOON)
    assert proxy.counts()["GET"] == 0
    assert {state(app, id) for id in ids[::100]} == {states.REVOKED}


def test_a_revoke_of_what_has_begun_or_ended(work, eventually):
    """A task that was revoked by its id alone keeps the state of who runs it, and that of its end."""
    app, _ = work(task_track_started=True)
    done, failed = app.send_task("add", (1, 2)), app.send_task("fail", ("no luck",))
    running = app.send_task("nap", (4,))
    eventually(lambda: done.ready() and failed.ready() and state(app, running.id) == states.STARTED, SOON)
    app.control.revoke([done.id, failed.id, running.id, "never-sent"])
    eventually(lambda: state(app, "never-sent") == states.REVOKED, SOON)
    found = [state(app, id) for id in (done.id, failed.id, running.id)]
    assert found == [states.SUCCESS, states.FAILURE, states.STARTED]


def test_an_id_that_can_be_no_key(work):
    """An expired task whose id is longer than a key may be: one line with the reason, and the worker lives."""
    app, one = work()
    app.send_task("add", (1, 2), task_id="x" * 1100, **LATE)
    one.wait_for(" is lost: ", SOON)
    assert "S3 allows 1024" in one.log
    assert app.send_task("add", (1, 2)).get(timeout=SOON) == 3


@pytest.mark.parametrize("fault", ["access_denied", "no_such_bucket"])
def test_a_bucket_that_refuses(work, proxy, fault):
    """Credentials that may not write, a bucket that is gone: one line that says so, and the worker lives."""
    app, one = work()
    proxy.fail("PUT", fault, times=-1)
    late = app.send_task("add", (1, 2), **LATE)
    one.wait_for(f"REVOKED of task {late.id} is lost: ", SOON)
    proxy.heal()
    assert app.send_task("add", (1, 2)).get(timeout=SOON) == 3


def test_what_is_left_at_shutdown(work, proxy, eventually):
    """A worker that is shut down writes what is left; of what S3 does not take, each has its line."""
    app, one = work()
    proxy.configure(delay=0.3)
    app.control.revoke([f"late-{number}" for number in range(40)])
    assert app.control.ping(timeout=5, limit=1)
    one.kill(15)
    assert one.wait(SOON) == 0
    proxy.configure(delay=0.0)
    assert {state(app, f"late-{number}") for number in range(40)} == {states.REVOKED}


def test_a_warm_shutdown_waits_for_what_waits_for_s3(work, proxy):
    """SIGTERM in an outage: a task whose result waits is running still, as Celery sees it; then the worker ends."""
    app, one = work()
    assert app.send_task("add", (1, 2)).get(timeout=SOON) == 3
    proxy.down()
    late = app.send_task("add", (3, 4))
    one.wait_for("it is kept, and tried again", SOON)
    one.kill(15)
    time.sleep(1.5)
    assert one.running
    proxy.up()
    assert one.wait(SOON) == 0
    assert late.get(timeout=SOON) == 7


def test_a_cold_shutdown_does_not(work, proxy):
    """SIGQUIT ends it at once, whatever S3 does: what waited is lost, or run again where it is acknowledged late."""
    app, one = work()
    assert app.send_task("add", (1, 2)).get(timeout=SOON) == 3
    proxy.down()
    late = app.send_task("add", (3, 4))
    one.wait_for("it is kept, and tried again", SOON)
    one.kill(15)
    one.kill(3)
    one.wait(SOON)
    proxy.up()
    assert state(app, late.id) == states.PENDING
