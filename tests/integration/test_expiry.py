"""`result_expires`, applied at the moment of reading."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
from kombu.utils.uuid import uuid


@pytest.fixture
def at(proxy):
    """``at(app, 60)``: the app's clock shows so many seconds after the whole second in which the object was stored."""

    def move(app, result, seconds):
        results = app.backend.results
        prefix = app.backend.get_key_for_group if hasattr(result, "results") else app.backend.get_key_for_task
        modified = app.backend.store.get(app.backend._full(prefix(result.id))).modified.timestamp()
        results.now = lambda: modified + seconds

    return move


@pytest.mark.parametrize("expires", [60, 60.0, timedelta(minutes=1)])
def test_boundary(counted, stored, at, expires, spends):
    """A result lives as long as `result_expires` says, and up to a second longer, never shorter."""
    app = counted(result_expires=expires)
    result = stored(app, 1)
    at(app, result, 60.999)
    assert app.AsyncResult(result.id).get(timeout=0) == 1
    at(app, result, 61)
    with spends(GET=2):
        assert app.AsyncResult(result.id).state == "PENDING"
        assert not app.backend.task_result_exists(result.id)


@pytest.mark.parametrize("expires", [None, 0, timedelta(0)])
def test_never(counted, stored, at, expires):
    """None and 0 mean that results stay."""
    app = counted(result_expires=expires)
    result = stored(app, 1)
    at(app, result, 10 * 365 * 24 * 3600)
    assert app.AsyncResult(result.id).get(timeout=0) == 1


def test_default_is_celerys(counted, stored, at):
    """Without a setting a result lives for a day, as Celery's default says."""
    app = counted()
    result = stored(app, 1)
    at(app, result, 24 * 3600)
    assert result.state == "SUCCESS"
    at(app, result, 24 * 3600 + 1)
    assert app.AsyncResult(result.id).state == "PENDING"


def test_every_state_expires(counted, stored, at):
    """Failures and progress expire like successes, and a large result like a small one."""
    app = counted(result_expires=60)
    for value, state in ((KeyError("x"), "FAILURE"), ({}, "STARTED"), ("x" * 100_000, "SUCCESS")):
        result = stored(app, value, state)
        at(app, result, 61)
        assert app.AsyncResult(result.id).state == "PENDING"
        assert list(app.backend.get_many([result.id], max_iterations=1)) == []


def test_groups_expire(counted, stored, at):
    """A saved group expires too."""
    app = counted(result_expires=60)
    group = app.GroupResult(uuid(), [stored(app, 1)])
    group.save()
    at(app, group, 60)
    assert app.GroupResult.restore(group.id, app=app) == group
    at(app, group, 61)
    assert app.GroupResult.restore(group.id, app=app) is None


def test_rewritten_result_lives_on(counted, stored):
    """Each write of a state begins its life anew."""
    app = counted(result_expires=60)
    result = stored(app, {}, "STARTED")
    app.backend.results.now = lambda: time.time() + 55
    assert result.state == "STARTED"
    stored(app, "done", id=result.id)
    assert result.get(timeout=0) == "done"


def test_expired_between_head_and_rest(counted, stored, at):
    """A large result whose head was read in time is fetched to its end."""
    app = counted(result_expires=60)
    result = stored(app, "x" * 100_000)
    assert result.ready()
    at(app, result, 1000)
    assert len(result.get(timeout=5)) == 100_000
