"""`celery s3 migrate`: what a change of the backend would do, told before it is made."""

from __future__ import annotations

import json
import time

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner

from celery_s3.cli import s3
from celery_s3.operate import migration


@pytest.fixture
def celerys(seaweed, make_app, prefix):
    """``celerys(result_expires=…)``: an app with Celery's own backend, as it is before the switch."""
    names = {"bucket": seaweed.bucket, "region": seaweed.region, "endpoint_url": seaweed.endpoint_url}
    names |= {"access_key_id": seaweed.access_key, "secret_access_key": seaweed.secret_key, "base_path": prefix}
    closing = []

    def make(**conf):
        app = make_app(seaweed, result_backend="s3", **{f"s3_{name}": value for name, value in names.items()}, **conf)
        app.conf.s3_backend_settings = None
        closing.append(app)
        return app

    yield make
    for app in closing:
        if "s3" in app.__dict__.get("_stored", ()):
            app.backend._s3_resource.meta.client.close()


def migrate(app, code=0):
    done = CliRunner().invoke(s3, ["migrate", "--json"], obj=CLIContext(app=app, no_color=True, workdir=None))
    assert done.exit_code == code, done.output
    told = json.loads(done.stdout)
    return {one["step"]: one for one in told["findings"]}, told["stored"]


def store(app, stored, *values):
    app._stored = {"s3"}
    return [stored(app, value) for value in values]


def test_nothing_is_lost(celerys, stored, prefix):
    """Where nothing is older than `result_expires`, all steps are OK: settings are taken over, results are read."""
    app = celerys()
    store(app, stored, 1, "é", None)
    steps, found = migrate(app)
    assert {name: one["level"] for name, one in steps.items()} == {
        "settings": "OK",
        "permissions": "OK",
        "expiry": "OK",
        "reading": "OK",
        "rules": "SKIP" if steps["rules"]["level"] == "SKIP" else "OK",
        "way back": "OK",
    }
    assert "`s3_bucket`" in steps["settings"]["text"]
    assert steps["reading"]["text"].startswith("3 of 3 results")
    assert (found["count"], found["expired"], found["rules_would_delete"]) == (3, 0, 0)


def test_what_would_expire(celerys, stored, monkeypatch):
    """Results that would read as PENDING, and those that a rule would delete, are counted beforehand, with the remedy;
    they are read all the same, and `result_expires = None` keeps them."""
    store(celerys(), stored, 1, 2)
    monkeypatch.setattr(migration, "server_clock", lambda control: lambda: time.time() + 400 * 86_400)
    steps, found = migrate(celerys(), code=1)
    assert steps["expiry"]["text"].startswith("2 of 2 are older than `result_expires` (86,400 s)")
    assert "None" in steps["expiry"]["remedy"]
    assert (found["expired"], found["rules_would_delete"]) == (2, 2)
    assert steps["reading"]["text"].startswith("2 of 2 ")
    steps, found = migrate(celerys(result_expires=None))
    assert (steps["expiry"]["level"], found["expired"], found["rules_would_delete"]) == ("OK", 0, 0)


def test_what_cannot_be_read(celerys, stored):
    """A serializer that the settings forbid shows here, not after the switch; so does what bars the way back."""
    store(celerys(result_serializer="yaml", result_accept_content=["yaml"]), stored, 1)
    steps, _ = migrate(celerys(result_compression="gzip", result_accept_content=["json"]), code=1)
    assert steps["reading"]["level"] == "FAIL"
    assert "0 of 1 results" in steps["reading"]["text"]
    assert "result_compression" in steps["way back"]["text"]


def test_settings_of_1_0_1(seaweed, make_app, stored):
    """An app whose backend is named as 1.0.1 was is checked as it is; wrong settings are told, all at once."""
    app = make_app(seaweed)
    stored(app, 1)
    steps, found = migrate(app)
    assert found["count"] == 1
    assert "`bucket` in" in steps["settings"]["text"]
    wrong = make_app(seaweed, s3_backend_settings={"bukket": "x"})
    done = CliRunner().invoke(s3, ["migrate"], obj=CLIContext(app=wrong, no_color=True, workdir=None))
    assert done.exit_code == 1
    assert "did you mean `bucket`?" in done.output


def test_another_backend():
    """Results that are not in S3 are not taken over, which it says."""
    app = Celery("proj", backend="cache+memory://", set_as_current=False)
    done = CliRunner().invoke(s3, ["migrate"], obj=CLIContext(app=app, no_color=True, workdir=None))
    assert done.exit_code == 1
    assert "CacheBackend: what it stores is not in S3" in done.output
