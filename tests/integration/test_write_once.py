"""A stored SUCCESS is final, whoever else writes, and whatever stands in the way."""

from __future__ import annotations

import logging
import multiprocessing
import time

import pytest
from celery import Celery, states
from celery.exceptions import BackendStoreError, ImproperlyConfigured
from kombu.utils.uuid import uuid

LATE = {
    "FAILURE": ValueError("lost worker"),
    "RETRY": OSError("no route"),
    "STARTED": {"pid": 1},
    "REVOKED": KeyError("revoked"),
    "PROGRESS": {"done": 1},
    "SUCCESS": "the duplicate's",
}


def value_of(app, id):
    meta = app.backend.get_task_meta(id, cache=False)
    return meta["status"], meta["result"]


@pytest.fixture
def two(counted, make_app, server):
    """Two processes' backends, as far as they know."""
    return counted(), counted()


@pytest.mark.parametrize("state", LATE)
@pytest.mark.parametrize("where", ["same", "other"])
def test_late_writes(two, stored, spends, state, where):
    """A write that comes after a SUCCESS changes nothing and is no error: one PUT, refused, and one GET."""
    result = stored(two[0], "mine")
    late = two[0] if where == "same" else two[1]
    with spends(PUT=1, GET=1):
        stored(late, LATE[state], state, id=result.id)
    assert value_of(two[1], result.id) == ("SUCCESS", "mine")


@pytest.mark.parametrize("state", LATE)
def test_success_in_between(two, stored, state):
    """A SUCCESS that another process stores while this one reports progress is kept."""
    id = uuid()
    stored(two[0], {"pid": 1}, "STARTED", id=id)
    stored(two[1], "theirs", id=id)
    stored(two[0], LATE[state], state, id=id)
    assert value_of(two[0], id) == ("SUCCESS", "theirs")


def test_success_over_unfinished_and_failed(two, stored, spends):
    """A SUCCESS replaces what another process stored of STARTED, RETRY and FAILURE: PUT, GET, PUT."""
    for state in ("STARTED", "RETRY", "FAILURE"):
        result = stored(two[0], LATE[state], state)
        with spends(PUT=2, GET=1):
            stored(two[1], "at last", id=result.id)
        assert value_of(two[0], result.id) == ("SUCCESS", "at last")


def test_failure_over_failure(two, stored):
    """Of two failures the later one stands, as with every backend."""
    result = stored(two[0], KeyError(1), "FAILURE")
    stored(two[1], KeyError(2), "FAILURE", id=result.id)
    assert value_of(two[0], result.id)[1].args == (2,)


def test_every_worker_reports_a_revoked_task(two, spends):
    """A REVOKED that stands there already is not written again."""
    id = uuid()
    two[0].backend.mark_as_revoked(id, "revoked")
    with spends(PUT=1, GET=1):
        two[1].backend.mark_as_revoked(id, "revoked")
    with spends(PUT=1, GET=1):
        two[1].backend.mark_as_revoked(id, "revoked")


def test_forgotten_in_between(two, stored, spends):
    """What was forgotten between a task's STARTED and its end is stored as new."""
    result = stored(two[0], {}, "STARTED")
    two[1].AsyncResult(result.id).forget()
    with spends(PUT=2, GET=1):
        stored(two[0], "after all", id=result.id)
    assert value_of(two[1], result.id) == ("SUCCESS", "after all")


def test_forgotten_by_the_writer(two, stored, spends):
    """A process that forgets a result itself stores the next one in one PUT."""
    result = stored(two[0], {}, "STARTED")
    result.forget()
    with spends(PUT=1):
        stored(two[0], 1, id=result.id)


def test_the_same_result_twice(two, stored, monkeypatch, spends):
    """Equal bytes count as stored: a write that is repeated is no new version."""
    for app in two:
        monkeypatch.setattr(app, "now", two[0].now, raising=False)
    result = stored(two[0], {"pid": 7}, "STARTED")
    version = two[0].backend.results.read(two[0].backend._full(two[0].backend.get_key_for_task(result.id)))
    with spends(PUT=1, GET=1):
        stored(two[1], {"pid": 7}, "STARTED", id=result.id)
    again = two[0].backend.results.read(version.key)
    assert (again.etag, again.modified) == (version.etag, version.modified)


def test_expired_success_is_replaced(two, stored):
    """A SUCCESS that has expired is as good as gone: a new run of the same id stores its result, or its failure."""
    for value, state in (("new", "SUCCESS"), (KeyError("new"), "FAILURE")):
        result = stored(two[0], "old")
        results = two[1].backend.results
        results.expires, results.now = 60, lambda: time.time() + 62
        results.server_now = results.now
        stored(two[1], value, state, id=result.id)
        assert value_of(two[0], result.id)[0] == state


def test_success_lives_by_the_servers_clock(counted, stored, proxy):
    """A process whose clock is ahead by more than results live replaces no SUCCESS that lives; it asks for the time."""
    app = counted(result_expires=60)
    result = stored(app, "done")
    app.backend.results.now = lambda: time.time() + 120
    proxy.reset()
    stored(app, KeyError("late"), "FAILURE", id=result.id)
    assert proxy.counts() == {"PUT": 1, "GET": 1, "LIST": 1}
    app.backend.results.now = time.time
    assert app.AsyncResult(result.id).get(timeout=5) == "done"


@pytest.mark.parametrize("garbage", [b"", b"\x00garbage", b'{"status": "SUCC', b"[1, 2]"])
def test_garbage(two, stored, garbage, caplog):
    """Garbage under a result's key gives way to a SUCCESS, and to nothing else; a warning names it."""
    backend, id = two[0].backend, uuid()
    key = backend._full(backend.get_key_for_task(id))
    backend.store.put(key, garbage)
    with caplog.at_level(logging.WARNING, "celery_s3"):
        stored(two[0], KeyError("x"), "FAILURE", id=id)
        assert backend.store.get(key).body == garbage
        stored(two[0], "good", id=id)
    assert value_of(two[1], id) == ("SUCCESS", "good")
    assert [key in record.getMessage() for record in caplog.records] == [True, True]


def test_success_of_celerys_own_backend_is_final(two, stored):
    """A SUCCESS without our metadata, as other backends write it, is kept like one of ours."""
    backend, id = two[0].backend, uuid()
    backend.store.put(backend._full(backend.get_key_for_task(id)), b'{"status": "SUCCESS", "result": "theirs"}')
    stored(two[0], KeyError("x"), "FAILURE", id=id)
    stored(two[1], "mine", id=id)
    assert value_of(two[0], id) == ("SUCCESS", "theirs")


# -- two real processes


def racer(conf, state, barrier, ids):
    app = Celery("racer", set_as_current=False)
    app.conf.update(conf)
    app.backend.results.conditional.supported()
    for id in ids:
        barrier.wait(30)
        app.backend.store_result(id, ValueError("late") if state == states.FAILURE else state, state)


@pytest.mark.timeout(60)
def test_two_processes_race(make_app, seaweed):
    """Two processes that store SUCCESS and FAILURE of one task in the same moment: SUCCESS stands, 50 times of 50."""
    app, ids = make_app(seaweed), [uuid() for _ in range(50)]
    app.backend.results.conditional.supported()
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(2)
    arguments = [(app.test_conf, state, barrier, ids) for state in ("SUCCESS", "FAILURE")]
    racers = [spawn.Process(target=racer, args=each, daemon=True) for each in arguments]
    for process in racers:
        process.start()
    for process in racers:
        process.join(50)
    assert [process.exitcode for process in racers] == [0, 0]
    assert {value_of(app, id) for id in ids} == {("SUCCESS", "SUCCESS")}


# -- servers without conditional writes


@pytest.fixture
def old_server(proxy_for, seaweed):
    """One that ignores preconditions."""
    return proxy_for(seaweed, strip_preconditions=True)


def test_server_without_conditional_writes(make_app, old_server, stored, caplog):
    """Results are right without conditional writes: a SUCCESS is kept, read before each write; one warning says so."""
    with caplog.at_level(logging.WARNING, "celery_s3"):
        one, other = make_app(old_server), make_app(old_server)
        result = stored(one, {}, "STARTED")
        old_server.reset()
        stored(one, "mine", id=result.id)
        assert old_server.counts() == {"GET": 1, "PUT": 1}
        for app in (one, other):
            for state, value in LATE.items():
                stored(app, value, state, id=result.id)
        assert value_of(other, result.id) == ("SUCCESS", "mine")
        failed = stored(one, KeyError("x"), "FAILURE")
        stored(other, "at last", id=failed.id)
        assert value_of(one, failed.id) == ("SUCCESS", "at last")
    assert len([record for record in caplog.records if "conditional writes" in record.getMessage()]) == 1


def test_garbage_without_conditional_writes(make_app, old_server, stored):
    """Garbage gives way to a SUCCESS only, there too."""
    app, id = make_app(old_server), uuid()
    key = app.backend._full(app.backend.get_key_for_task(id))
    app.backend.store.put(key, b"garbage")
    stored(app, KeyError("x"), "FAILURE", id=id)
    assert app.backend.store.get(key).body == b"garbage"
    stored(app, "good", id=id)
    assert value_of(app, id) == ("SUCCESS", "good")


def test_conditional_writes_off(make_app, proxy, stored, caplog):
    """`conditional_writes` off reads before it writes, asks the server nothing and warns of nothing."""
    app = make_app(proxy, s3_backend_settings={"conditional_writes": "off"})
    with caplog.at_level(logging.WARNING, "celery_s3"):
        result = stored(app, "mine")
        stored(app, KeyError("x"), "FAILURE", id=result.id)
    assert proxy.counts() == {"GET": 2, "PUT": 1}
    assert value_of(app, result.id) == ("SUCCESS", "mine")
    assert caplog.records == []


def test_conditional_writes_required(make_app, old_server, seaweed, stored):
    """`conditional_writes` required works where they work, and refuses to write where they do not."""
    required = {"s3_backend_settings": {"conditional_writes": "required"}}
    assert stored(make_app(seaweed, **required), 1).get() == 1
    app = make_app(old_server, **required)
    with pytest.raises(ImproperlyConfigured, match="conditional_writes"):
        stored(app, 1, id="refused")
    assert app.AsyncResult("refused").state == "PENDING"


def test_losing_again_and_again(two, stored, proxy):
    """A write that loses to others for ever ends in an error that Celery knows."""
    stored(two[1], {}, "STARTED", id="job")
    proxy.fail("PUT celery-task-meta-job", "precondition_failed", times=-1)
    with pytest.raises(BackendStoreError, match="other writers"):
        stored(two[0], 1, id="job")
