"""`result_expires` and its like, applied at the moment of reading, and what tells lifecycle rules and beat."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
from celery.beat import Scheduler
from kombu.utils.uuid import uuid

from celery_s3.errors import ConfigurationError
from celery_s3.metadata import term_of
from celery_s3.store.clients.boto3_client import connect
from celery_s3.store.clients.control import Control


@pytest.fixture
def at(server):
    """``at(app, 60)``: the app's clock shows so many seconds after the whole second in which the object was stored."""

    def move(app, result, seconds):
        results = app.backend.results
        prefix = app.backend.get_key_for_group if hasattr(result, "results") else app.backend.get_key_for_task
        modified = app.backend.store.get(app.backend._full(prefix(result.id))).modified.timestamp()
        results.now = lambda: modified + seconds

    return move


@pytest.mark.parametrize("expires", [60, 60.0, "60", timedelta(minutes=1)])
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


# -- terms of their own


def term(app, result):
    """The term that a stored result carries, ``None`` where it carries none."""
    return term_of(app.backend.store.get(app.backend._full(app.backend.get_key_for_task(result.id))).metadata)


def test_own_term(counted, stored, at, spends):
    """The header `result_expires` of a call is its result's term, shorter or longer, in as many requests as ever."""
    app = counted(result_expires=60)
    with spends(PUT=2):
        short = stored(app, 1, headers={"result_expires": 10})
        long = stored(app, 2, headers={"result_expires": 3600})
    at(app, short, 10.999)
    assert app.AsyncResult(short.id).get(timeout=0) == 1
    at(app, short, 11)
    assert app.AsyncResult(short.id).state == "PENDING"
    at(app, long, 3600)
    with spends(GET=1):
        assert app.AsyncResult(long.id).get(timeout=0) == 2
    at(app, long, 3601)
    assert app.AsyncResult(long.id).state == "PENDING"


def test_own_term_for_ever(counted, stored, at):
    """0 keeps a result for ever, whatever `result_expires` says."""
    app = counted(result_expires=60)
    result = stored(app, 1, headers={"result_expires": 0})
    at(app, result, 10 * 365 * 24 * 3600)
    assert app.AsyncResult(result.id).get(timeout=0) == 1


def test_own_term_is_honoured_by_all(counted, stored, at):
    """A process with other settings, or none, honours it as well."""
    result = stored(counted(result_expires=60), 1, headers={"result_expires": 3600})
    for other in (counted(result_expires=1), counted(result_expires=None)):
        at(other, result, 3600)
        assert other.AsyncResult(result.id).get(timeout=0) == 1
        at(other, result, 3601)
        assert other.AsyncResult(result.id).state == "PENDING"


def test_own_term_of_a_run_task(counted, run):
    """A task that a worker runs, retries included, hands its message's header on to each of its states."""
    app = counted()

    @app.task(bind=True, max_retries=1)
    def job(self):
        if not self.request.retries:
            raise self.retry(countdown=0)
        return 1

    id = run(job, request={"result_expires": 90})
    assert term(app, app.AsyncResult(id)) == 90
    run(job, id=id, request={"result_expires": 90, "retries": 1})
    assert (app.AsyncResult(id).state, term(app, app.AsyncResult(id))) == ("SUCCESS", 90)


@pytest.mark.parametrize(("value", "shown"), [("a week", "'a week'"), (10**400, "1000000")])
def test_own_term_that_makes_no_sense(counted, stored, caplog, value, shown):
    """A header that is no number of seconds costs no result: a warning names task, value and remedy."""
    app = counted()
    result = stored(app, 1, headers={"result_expires": value})
    assert result.get(timeout=0) == 1
    assert term(app, result) is None
    (record,) = [one for one in caplog.records if one.name.startswith("celery_s3")]
    assert f"Task {result.id}: the message header result_expires is {shown}" in record.getMessage()


@pytest.mark.parametrize("failures", [7200, timedelta(hours=2)])
def test_failures(counted, stored, at, failures):
    """`result_failure_expires` is the term of failures on every Celery; any process honours it."""
    app = counted(result_expires=60, result_failure_expires=failures)
    failed, done = stored(app, KeyError("x"), "FAILURE"), stored(app, 1)
    assert (term(app, failed), term(app, done)) == (7200, None)
    other = counted(result_expires=60)
    at(other, failed, 7200)
    assert other.AsyncResult(failed.id).state == "FAILURE"
    assert other.AsyncResult(done.id).state == "PENDING"
    at(other, failed, 7201)
    assert other.AsyncResult(failed.id).state == "PENDING"


def test_failures_for_ever(counted, stored):
    """0 keeps failures, and a call's own term is stronger."""
    app = counted(result_failure_expires=0)
    assert term(app, stored(app, KeyError("x"), "FAILURE")) == 0
    assert term(app, stored(app, KeyError("x"), "FAILURE", headers={"result_expires": 60})) == 60


def test_failures_like_any(counted, stored):
    """Where failures live as long as successes, nothing is stored beside them."""
    app = counted(result_expires=60, result_failure_expires=60)
    assert term(app, stored(app, KeyError("x"), "FAILURE")) is None


def test_failure_term_that_makes_no_sense(make_app, seaweed):
    """A setting that is no length of time is an error that names it, when the backend is made."""
    with pytest.raises(ConfigurationError, match="`result_failure_expires` is 'soon': give seconds or a timedelta"):
        make_app(seaweed, result_failure_expires="soon").backend.get_task_meta("x")


def test_terms_are_told_with_the_other_mistakes(make_app, seaweed):
    """`result_expires` that is no length of time, as a variable that is empty, stands beside what else is wrong."""
    app = make_app(seaweed, result_expires="", s3_backend_settings={"concurrency": 0})
    with pytest.raises(ConfigurationError) as told:
        app.backend.get_task_meta("x")
    assert "`result_expires` is '': give seconds or a timedelta; 0 means for ever" in str(told.value)
    assert "concurrency" in str(told.value)


def test_expired_success_is_overwritten(counted, stored, at, spends):
    """What has expired by its own term may be written again, though a SUCCESS is final; one that lives on may not."""
    app = counted(result_expires=3600)
    for headers, expected in (({"result_expires": 10}, "second"), ({"result_expires": 3600}, "first")):
        result = stored(app, "first", headers=headers)
        at(app, result, 11)
        app.backend.results.server_now = app.backend.results.now
        stored(app, "second", id=result.id)
        app.backend.results.now = time.time
        assert app.AsyncResult(result.id).get(timeout=0) == expected


# -- tags


@pytest.mark.parametrize("client", ["obstore", "boto3"])
def test_tags(moto_s3, make_app, stored, client):
    """With `expiry_tags` a result's tag says how long it lives, beside the user's own; nothing else is tagged."""
    settings = {"client": client, "expiry_tags": True, "tags": {"team": "ops"}}
    app = make_app(moto_s3, result_failure_expires=3 * 24 * 3600, s3_backend_settings=settings)
    s3 = connect(app.backend.settings)

    def tags(key):
        found = s3.get_object_tagging(Bucket=moto_s3.bucket, Key=app.backend._full(key))["TagSet"]
        return {tag["Key"]: tag["Value"] for tag in found}

    for args, expected in (
        ((1,), "default"),
        ((KeyError("x"), "FAILURE"), "4"),
    ):
        result = stored(app, *args)
        assert tags(app.backend.get_key_for_task(result.id)) == {"team": "ops", "celery-s3-expires": expected}
    kept = stored(app, 1, headers={"result_expires": 0})
    assert tags(app.backend.get_key_for_task(kept.id)) == {"team": "ops"}
    group = app.GroupResult(uuid(), [kept])
    group.save()
    assert tags(app.backend.get_key_for_group(group.id)) == {"team": "ops"}
    assert kept.get(timeout=0) == 1


def test_too_many_tags(make_app, seaweed):
    """S3 allows ten tags: with ten of one's own there is no room for another."""
    settings = {"expiry_tags": True, "tags": {str(number): "" for number in range(10)}}
    with pytest.raises(ConfigurationError, match="S3 allows 10 tags, and one is needed"):
        make_app(seaweed, s3_backend_settings=settings).backend.get_task_meta("x")


# -- beat


@pytest.fixture
def ruled(seaweed, moto_s3, make_app, fresh_bucket):
    """``ruled(rules, **conf)``: an app in a bucket of its own with lifecycle rules."""

    def make(rules=None, **conf):
        settings = {"bucket": fresh_bucket(moto_s3), **conf.pop("s3_backend_settings", {})}
        app = make_app(moto_s3, s3_backend_settings=settings, **conf)
        rules = app.backend.lifecycle_rules() if rules is None else rules
        if rules:
            Control(app.backend.settings).put_lifecycle(rules)
        return app

    return make


def scheduled(app):
    scheduler = Scheduler(app=app, lazy=True)
    scheduler.install_default_entries({})
    return set(scheduler.schedule)


def test_beat_with_rules(ruled):
    """Where the bucket's rules delete all results, beat schedules no cleanup."""
    app = ruled()
    assert app.backend.supports_autoexpire is True
    assert scheduled(app) == set()
    assert ruled(s3_backend_settings={"expiry_tags": True}).backend.supports_autoexpire is True


@pytest.mark.parametrize(
    "conf", [{"rules": []}, {"result_failure_expires": 0}, {"rules": [{"ID": "x", "Status": "Enabled"}]}]
)
def test_beat_without_rules(ruled, conf):
    """Without rules, or with some that leave anything out, beat schedules the cleanup."""
    if conf.get("rules"):
        conf["rules"][0] |= {"Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 1}}
    assert scheduled(ruled(**conf)) == {"celery.backend_cleanup"}


def test_beat_without_an_answer(make_app, proxy):
    """A bucket that does not tell its rules counts as one without; it is asked once, not when a backend is made."""
    app = make_app(proxy)
    proxy.reset()
    backend = app.backend
    assert proxy.records() == []
    proxy.fail("GET lifecycle", "access_denied", times=-1)
    assert backend.supports_autoexpire is False
    asked = len(proxy.records())
    assert backend.supports_autoexpire is False
    assert len(proxy.records()) == asked
    proxy.restore()
    assert scheduled(app) == {"celery.backend_cleanup"}


def test_chords_are_mended_without_beat(make_app, seaweed, monkeypatch):
    """A worker that is up looks after chords, and again after an hour: nobody schedules a cleanup, perhaps."""
    backend = make_app(seaweed).backend
    planned = []
    monkeypatch.setattr(backend.mending, "_later", lambda seconds, act: planned.append((seconds, act)))
    backend.mending.worker_started()
    ((first, act),) = planned
    assert first <= 2 * backend.chords.lease
    act()
    assert planned[1][0] <= 3660
