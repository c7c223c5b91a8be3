"""`celery s3 sweep` and Celery's daily cleanup, on real servers, some days later."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from base64 import b64encode

import pytest
from celery.bin.base import CLIContext
from click.testing import CliRunner
from kombu.utils.uuid import uuid

from celery_s3.cli import query, s3
from celery_s3.errors import AccessDenied
from celery_s3.expiry import clock, sweep
from celery_s3.keys import PROBE
from celery_s3.store.clients.control import Control

DAY = 86_400


@pytest.fixture
def later(monkeypatch):
    """``later(2 * DAY)``: the server's clock shows that much more to a sweep."""

    def move(seconds):
        monkeypatch.setattr(clock, "server_clock", lambda control: lambda: time.time() + seconds)

    return move


@pytest.fixture
def command(proxy):
    """``command(app, "--json")``: the command in this process; ``requests`` are those that passed the proxy."""

    def run(app, *arguments):
        proxy.reset()
        done = CliRunner().invoke(s3, ["sweep", *arguments], obj=CLIContext(app=app, no_color=True, workdir=None))
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        done.requests = dict(proxy.counts())
        return done

    return run


def ids(*results):
    return {f"celery-task-meta-{result.id}" for result in results}


@pytest.fixture
def mine(prefix):
    """The keys of this test, without the probe's."""

    def list_(app):
        names = (entry.key.removeprefix(prefix) for entry in app.backend.store.list(prefix))
        return {name for name in names if name != PROBE.start}

    return list_


def test_sweep(counted, stored, later, command, mine):
    """What has expired goes: told by kind with its size, in one GET for each; what lives, and the probe, stays."""
    app = counted()
    old = [stored(app, number) for number in range(3)]
    kept = [stored(app, 1, headers={"result_expires": 9 * DAY}), stored(app, 1, headers={"result_expires": 0})]
    app.GroupResult(uuid(), old).save()
    probe = app.backend.layout.probe
    app.backend.store.put(probe, b"kept")
    later(2 * DAY)
    done = command(app)
    assert (done.exit_code, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines[:3]] == [["KIND", "OBJECTS"], ["results", "3"], ["groups", "1"]]
    assert lines[3].startswith("Deleted 4 objects, ")
    assert mine(app) == ids(*kept)
    assert done.requests["GET"] == 6
    assert app.backend.store.get(probe).body == b"kept"


def test_json_and_dry_run(counted, stored, later, command, mine):
    """--json has these names, --dry-run tells the same and does nothing; a second sweep has nothing left."""
    app = counted()
    old, other = stored(app, "x" * 500), stored(app, 1, headers={"result_expires": 0})
    size = app.backend.store.get(app.backend._full(app.backend.get_key_for_task(old.id))).size
    later(2 * DAY)
    expected = {
        "deleted": {"results": {"count": 1, "bytes": size}},
        "count": 1,
        "bytes": size,
        "looked": 2,
        "foreign": {"count": 0, "bytes": 0},
        "uploads": 0,
        "queues": 0,
        "complete": True,
        "saved_per_month": None,
        "versioned": False,
    }
    dry = json.loads(command(app, "--json", "--dry-run").stdout)
    assert "DELETE_OBJECTS" not in dry.pop("requests")
    assert dry == expected | {"dry_run": True}
    assert mine(app) == ids(old, other)
    wet = json.loads(command(app, "--json").stdout)
    assert wet.pop("requests") == {"LIST": 7, "GET": 2, "DELETE_OBJECTS": 1}
    assert wet == expected | {"dry_run": False}
    assert json.loads(command(app, "--json").stdout)["count"] == 0
    assert mine(app) == ids(other)


def test_nothing_to_do(counted, stored, later, command):
    """In a bucket without anything that has expired all is well, for the price of a listing."""
    app = counted()
    stored(app, 1)
    done = command(app)
    assert done.exit_code == 0
    assert done.stdout.startswith("Deleted 0 objects, 0 B. It took ")
    assert "GET" not in done.requests or done.requests["GET"] <= 1


def test_limit(counted, stored, later, command, mine):
    """--limit is kept to, and said."""
    app = counted()
    for number in range(5):
        stored(app, number)
    later(2 * DAY)
    done = command(app, "--limit", "2")
    assert (done.exit_code, len(mine(app))) == (0, 3)
    assert done.stdout.endswith("There may be more: run it again for the rest.\n")


def test_thorough(counted, stored, later, command, mine):
    """--thorough also finds what has a shorter term of its own, here where results stay for ever."""
    app = counted(result_expires=None)
    kept, short = stored(app, 1), stored(app, 1, headers={"result_expires": 60})
    later(3600)
    command(app)
    assert mine(app) == ids(kept, short)
    command(app, "--thorough")
    assert mine(app) == ids(kept)


def test_costly(counted, stored, later, command, monkeypatch):
    """What takes many requests is announced before, on standard error."""
    monkeypatch.setattr(query, "FREE", 2)
    app = counted()
    for number in range(3):
        stored(app, number)
    later(2 * DAY)
    done = command(app, "--json")
    assert done.stderr.startswith("To look at 3 objects takes about ")
    assert json.loads(done.stdout)["count"] == 3


def test_versioned(fresh_bucket, moto_s3, make_app, stored, later):
    """In a bucket with versions it is said that what was deleted is still there, and what removes it."""
    app = make_app(moto_s3, s3_backend_settings={"bucket": fresh_bucket(moto_s3)})
    control = Control(app.backend.settings)
    stored(app, 1)
    control._call("put_bucket_versioning", VersioningConfiguration={"Status": "Enabled"})
    later(2 * DAY)
    done = CliRunner().invoke(s3, ["sweep"], obj=CLIContext(app=app, no_color=True, workdir=None))
    assert done.exit_code == 0, done.output
    assert "The bucket keeps versions" in done.stdout
    for version in control._client.s3.list_object_versions(Bucket=app.backend.settings.bucket).get("Versions", ()):
        control._client.s3.delete_object(
            Bucket=app.backend.settings.bucket, Key=version["Key"], VersionId=version["VersionId"]
        )


def test_refused(counted, stored, later, command, proxy, mine):
    """A sweep that may not delete is an error in one line; one that is interrupted is run again."""
    app = counted()
    result = stored(app, 1)
    later(2 * DAY)
    proxy.fail("DeleteObjects", "access_denied", times=-1)
    done = command(app)
    assert done.exit_code == 1
    assert "access denied" in done.stderr
    assert "Traceback" not in done.stderr
    proxy.heal()
    assert mine(app) == ids(result)
    assert command(app).exit_code == 0
    assert mine(app) == set()


def test_interrupted(counted, stored, later, command, monkeypatch):
    """Ctrl-C ends it in a line that says what is done and what to do, without a traceback."""
    app = counted()
    for number in range(25):
        stored(app, number)
    later(2 * DAY)
    delete, calls = sweep.Sweep._delete, []

    def second(self, *args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        delete(self, *args)

    monkeypatch.setattr(sweep.Sweep, "_delete", second)
    done = command(app)
    assert done.exit_code == 130
    assert done.stderr.startswith("Deleted 20 objects, ")
    assert "Run it again for the rest." in done.stderr


def test_by_the_servers_clock(seaweed, make_app, stored, tmp_path, mine, eventually):
    """As a user runs it, in a process of its own; this machine's clock is not asked."""
    app = make_app(seaweed, result_expires=1)
    gone, kept = stored(app, 1), stored(app, 1, headers={"result_expires": 3600})
    (tmp_path / "proj.py").write_text(
        "import json, os, time\nfrom celery import Celery\napp = Celery('proj')\n"
        "app.conf.update(json.loads(os.environ['CELERY_S3_TEST_CONF']))\n"
        "real = time.time\n"
        # days ahead, for everything but the signatures of requests, which take another clock
        "time.time = lambda: real() + 9 * 86400\n"
    )
    env = os.environ | {"CELERY_S3_TEST_CONF": json.dumps(app.test_conf)}

    def swept():
        line = [sys.executable, "-m", "celery", "-A", "proj", "s3", "sweep", "--json"]
        done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env=env, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["count"]

    eventually(lambda: swept() == 1, 30)
    assert mine(app) == ids(kept)
    assert gone.state == "PENDING"


# -- uploads


def test_uploads(counted, stored, later, command, proxy, prefix):
    """Uploads in parts that nobody has completed for a day are aborted, and told; others and younger ones stay."""
    app = counted()
    ours, theirs = f"{app.backend.layout.results}{uuid()}", f"{prefix}theirs"
    for key in (ours, theirs):
        app.backend._plain_store.create_upload(key)
    standing = Control(app.backend.settings).uploads
    later(DAY - 60)
    assert "upload" not in command(app).stdout
    later(DAY + 60)
    assert "Would abort 1 unfinished upload." in command(app, "--dry-run").stdout
    assert json.loads(command(app, "--dry-run", "--json").stdout)["uploads"] == 1
    assert sorted(one.key for one in standing(prefix)) == sorted([ours, theirs])
    assert "Deleted 0 objects, 0 B. Aborted 1 unfinished upload. It took" in command(app).stdout
    (left,) = standing(prefix)
    assert left.key == theirs
    app.backend._plain_store.abort_upload(theirs, left.id)


def test_uploads_may_not_be_listed(counted, stored, later, command, proxy, mine):
    """Who lacks that permission sweeps all the rest, and is told."""
    app = counted()
    stored(app, 1)
    later(2 * DAY)
    proxy.fail("ListMultipartUploads", "access_denied", times=-1)
    assert json.loads(command(app, "--dry-run", "--json").stdout)["uploads"] is None
    done = command(app)
    assert done.exit_code == 0
    assert "Deleted 1 object, " in done.stdout
    assert "Unfinished uploads could not be looked at: access denied" in done.stdout
    assert mine(app) == set()


# -- meanwhile


def test_rewritten_meanwhile(seaweed, make_app, stored, later, mine):
    """On a server that honours versions, what is stored between the look and the deletion stays."""
    app = make_app(seaweed)
    changed, gone = stored(app, "old"), stored(app, "old")
    later(2 * DAY)
    one = app.backend.sweep()
    delete = one.store.delete_unchanged

    def late(versions):
        # a new run stores its result, as a worker that finds the old one expired does
        app.backend.store.put(app.backend._full(app.backend.get_key_for_task(changed.id)), b"the new run")
        return delete(versions)

    one.store.delete_unchanged = late
    try:
        assert one.run().count == 1
    finally:
        del one.store.delete_unchanged
    assert mine(app) == ids(changed)
    assert gone.state == "PENDING"


def test_delete_unchanged(seaweed, moto_s3, make_app):
    """Deleting versions: those that changed are told and stay, where the server can; missing ones are no trouble."""
    for server, honours in ((seaweed, True), (moto_s3, False)):
        backend = make_app(server).backend
        store, base = backend.store, backend.settings.base
        etags = {f"{base}{name}": store.put(f"{base}{name}", name.encode()) for name in "abc"}
        store.put(f"{base}b", b"another")
        store.delete(f"{base}c")
        kept = store.delete_unchanged(etags)
        assert kept == ([f"{base}b"] if honours else [])
        assert [entry.key for entry in store.list(base)] == kept
        assert backend.tally.snapshot()["DELETE_OBJECTS"]["requests"] == 1


def test_two_sweeps(counted, stored, later, proxy, mine):
    """Two sweeps of the same bucket at the same time both end well."""
    app = counted()
    for number in range(30):
        stored(app, number)
    later(2 * DAY)
    sweeps = [app.backend.sweep(), app.backend.sweep()]
    app.backend.pool.map(lambda one: one.run(), sweeps)
    assert mine(app) == set()


def test_others_objects(counted, later, command, mine):
    """What is not named as this package names things stays, however old, also in folders that look like chords."""
    app = counted()
    theirs = {
        "celery-chords/2024/01/report.csv",
        "celery-chords/a/7/notes.txt",
        "celery-chords/readme",
        "celery-messages/readme",
        "celery-task-meta",
    }
    for name in theirs:
        app.backend.store.put(app.backend.settings.base + name, b"somebody else's")
    app.backend.store.put(app.backend.layout.chords + "rest/claim", b"ours")
    later(20 * DAY)
    assert "chords  1" in command(app).stdout
    assert mine(app) == theirs


def test_after_a_migration(seaweed, make_app, stored, later, command, mine, prefix, caplog):
    """A year of results of Celery's own backend outlives the change of a line: the daily cleanup and a sweep leave it
    alone and say so, and Celery's own backend reads it again; `--adopt` alone deletes it."""
    names = {"bucket": seaweed.bucket, "region": seaweed.region, "endpoint_url": seaweed.endpoint_url}
    names |= {"access_key_id": seaweed.access_key, "secret_access_key": seaweed.secret_key, "base_path": prefix}
    conf = {f"s3_{name}": value for name, value in names.items()}
    celerys, ours = make_app(seaweed, result_backend="s3", **conf), make_app(seaweed)
    old = stored(celerys, "a year of these")
    celerys.GroupResult(uuid(), [old]).save()
    stored(ours, "ours"), ours.GroupResult(uuid(), [old]).save()
    later(400 * DAY)
    with caplog.at_level("INFO", "celery_s3"):
        ours.backend.cleanup()
    assert "deleted results 1, groups 1 (" in caplog.text
    assert "2 that another backend wrote stay: `celery s3 sweep --adopt`" in caplog.text
    assert "Left alone: 2 objects, " in command(ours).stdout
    assert celerys.AsyncResult(old.id).get(timeout=5) == "a year of these"
    celerys.backend._s3_resource.meta.client.close()
    assert "say --yes" in command(ours, "--adopt").stderr
    assert command(ours, "--adopt", "--yes").stdout.splitlines()[-1].startswith("Deleted 2 objects, ")
    assert mine(ours) == set()


def test_sealed(seaweed, make_app, stored, later, mine):
    """What is sealed is swept as well, also by who has no key: its term is readable without one."""
    pytest.importorskip("cryptography")
    app = make_app(seaweed, s3_backend_settings={"seal_keys": b64encode(bytes(32)).decode()})
    old, kept = stored(app, 1), stored(app, 1, headers={"result_expires": 9 * DAY})
    later(2 * DAY)
    assert make_app(seaweed).backend.sweep().run().count == 1
    assert mine(app) == ids(kept)
    assert old.state == "PENDING"


# -- the daily cleanup


def test_cleanup(counted, stored, later, proxy, mine, caplog):
    """`celery.backend_cleanup` deletes what has expired and says so in a line."""
    app = counted()
    old, kept = stored(app, 1), stored(app, 1, headers={"result_expires": 0})
    later(2 * DAY)
    with caplog.at_level("INFO", "celery_s3"):
        app.tasks["celery.backend_cleanup"]()
    assert mine(app) == ids(kept)
    assert old.state == "PENDING"
    (line,) = [record.getMessage() for record in caplog.records if record.name == "celery_s3.expiry.service"]
    assert line.startswith(f"Cleanup of {app.backend.settings.uri}: deleted results 1 (")


def test_cleanup_may_not_list(counted, proxy):
    """Without s3:ListBucket the task fails, with the remedy in its error."""
    app = counted()
    proxy.fail("LIST", "access_denied", times=-1)
    with pytest.raises(AccessDenied, match="s3:ListBucket"):
        app.backend.cleanup()
