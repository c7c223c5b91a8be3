"""``celery s3 doctor`` on real servers, and against the refusals that only AWS gives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from celery.bin.base import CLIContext
from click.testing import CliRunner

from celery_s3.cli import s3
from celery_s3.store.clients.control import Control


@pytest.fixture
def doctor(proxy, make_app):
    """``code, findings = doctor(sse="AES256")``: the exit code, and what was found by step; no secret is told."""

    def run(server=proxy, **settings):
        app = make_app(server, s3_backend_settings=settings)
        obj = CLIContext(app=app, no_color=True, workdir=None)
        done = CliRunner().invoke(s3, ["doctor", "--json"], obj=obj, catch_exceptions=False)
        assert server.secret_key not in done.output
        assert "hush" not in done.output
        return done.exit_code, {one["step"]: one for one in json.loads(done.stdout)}

    return run


def keys(backend):
    return [entry.key for entry in backend.store.list(backend.settings.base)]


def levels(found, level):
    return {step for step, one in found.items() if one["level"] == level}


@pytest.mark.parametrize("client", ["obstore", "boto3"])
def test_a_healthy_bucket(doctor, make_app, seaweed, client):
    """With both clients nothing fails, no rule is missing once there is one, nothing is left."""
    app = make_app(seaweed)
    control = Control(app.backend.settings)
    control.put_lifecycle([*control.lifecycle(), *app.backend.lifecycle_rules()])
    code, found = doctor(seaweed, client=client)
    assert (code, levels(found, "FAIL"), levels(found, "WARN")) == (0, set(), set()), found
    assert len(found) == 21
    assert keys(app.backend) == []
    control.put_lifecycle([])


def test_requests(doctor, proxy):
    """What it costs is what its help says: about 70 requests."""
    doctor()
    assert 50 <= sum(proxy.methods().values()) <= 75
    assert proxy.counts()["LIST"] <= 3


@pytest.mark.parametrize(
    ("match", "how", "step", "remedy"),
    [
        ("LIST", "access_denied", "LIST", "s3:ListBucket"),
        ("PUT", "access_denied", "PUT", "s3:PutObject"),
        ("DELETE", "access_denied", "DELETE", "s3:DeleteObject"),
        ("DeleteObjects", "access_denied", "DeleteObjects", "s3:DeleteObject"),
        ("*", "wrong_region", "bucket", "`aws_region`"),
        ("*", "signature_mismatch", "bucket", "`aws_secret_access_key`"),
        ("*", "clock_skew", "bucket", "clock"),
        ("*", "no_such_bucket", "bucket", "s3 init"),
        ("*", "reset", "bucket", "`read_timeout`"),
    ],
)
def test_refusals(doctor, proxy, match, how, step, remedy):
    """Each is told where it stands, with what to do; the exit code is 1."""
    proxy.fail(match, how, times=-1)
    code, found = doctor(read_timeout=0.5)
    assert code == 1
    assert found[step]["level"] == "FAIL"
    assert remedy in found[step]["remedy"] or remedy in found[step]["text"], found[step]


def test_the_region_is_named(doctor, proxy):
    """A redirect tells the right region."""
    proxy.fail("*", "wrong_region", times=-1)
    assert "eu-central-1" in doctor()[1]["bucket"]["text"]


def test_missing_keys_answer_403(doctor, proxy):
    """Without s3:ListBucket S3 answers 403 for what is not there: told with both remedies; all else goes on."""
    proxy.fail("GET missing", "access_denied", times=-1)
    code, found = doctor()
    assert code == 0
    assert levels(found, "WARN") - {"lifecycle"} == {"missing key"}
    assert "`missing_as_403`" in found["missing key"]["remedy"]


def test_kms_denied(doctor, proxy):
    """The key may be what is refused."""
    proxy.fail("PUT", "access_denied", times=-1)
    code, found = doctor(sse="aws:kms")
    assert code == 1
    assert "kms:GenerateDataKey" in found["PUT"]["remedy"]
    assert found["LIST"]["level"] == "OK"


def test_kms(doctor, moto_s3):
    """What the stored object says is what the settings say."""
    code, found = doctor(moto_s3, sse="aws:kms", sse_kms_key_id="some-key")
    assert code == 0
    assert found["encryption"]["text"] == "aws:kms with some-key"


def test_no_conditional_writes(doctor, proxy_for, seaweed):
    """A server that ignores the headers is told from one that has them."""
    proxy = proxy_for(seaweed, strip_preconditions=True)
    code, found = doctor(proxy)
    assert (code, found["conditional"]["level"]) == (0, "WARN")
    code, found = doctor(proxy, conditional_writes="required")
    assert (code, found["conditional"]["level"]) == (1, "FAIL")


def test_sealed(doctor):
    """Keys that seal are tried."""
    found = doctor(seal_keys="A" * 43 + "=")[1]
    assert found["sealing"]["text"] == "what is sealed can be opened"


def test_a_key_that_anybody_may_read(doctor, tmp_path):
    """A key file of mode 0644 is objected to, with the command that mends it; one of 0640 is not."""
    file = tmp_path / "results.key"
    file.write_text("A" * 43 + "=")
    file.chmod(0o644)
    found = doctor(seal_keys=f"file:{file}")[1]["sealing"]
    assert (found["level"], found["remedy"]) == ("WARN", f"chmod o= {file}")
    file.chmod(0o640)
    assert doctor(seal_keys=f"file:{file}")[1]["sealing"]["level"] == "OK"


def test_versioned_bucket(doctor, moto_s3, fresh_bucket):
    """Old versions are billed until a rule removes them; what `init` adds is enough."""
    bucket = fresh_bucket(moto_s3)
    body = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
    assert moto_s3.answers("PUT", f"/{bucket}?versioning", body)
    found = doctor(moto_s3, bucket=bucket)[1]
    assert found["versioning"]["level"] == "WARN"
    assert "s3 init" in found["versioning"]["remedy"]


def test_settings_tell_their_source(doctor):
    """Each setting stands with its source; secrets are masked."""
    text = doctor(max_retries=3)[1]["settings"]["text"]
    assert "from s3_backend_settings: " in text
    assert "max_retries=3" in text
    assert "aws_secret_access_key=********" in text


def test_as_a_person_sees_it(proxy, make_app):
    """A line for each step, the remedy under it, a count at the end."""
    app = make_app(proxy)
    proxy.fail("DELETE", "access_denied")
    done = CliRunner().invoke(s3, ["doctor"], obj=CLIContext(app=app, no_color=True, workdir=None))
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"celery-s3://{proxy.bucket}/")
    assert [line.split()[0] for line in lines[2:8]] == ["OK"] * 6
    place = next(number for number, line in enumerate(lines) if line.startswith("FAIL  DELETE"))
    assert lines[place + 1].lstrip().startswith("→ Allow s3:DeleteObject;")
    assert lines[-1] == "19 OK, 1 WARN, 1 FAIL, 0 SKIP."
    assert done.exit_code == 1


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(proxy, make_app, tmp_path, signum):
    """Ctrl-C or SIGTERM in the middle: the scratch objects are gone all the same."""
    app = make_app(proxy)
    (tmp_path / "proj.py").write_text(
        "import json, os\nfrom celery import Celery\napp = Celery('proj')\n"
        "app.conf.update(json.loads(os.environ['CELERY_S3_TEST_CONF']))\n"
    )
    env = os.environ | {"CELERY_S3_TEST_CONF": json.dumps(app.test_conf), "PYTHONUNBUFFERED": "1"}
    proxy.configure(delay=0.05)
    process = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "proj", "s3", "doctor"],
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while not (line := process.stdout.readline()).startswith("OK    conditional"):
            assert line, process.stderr.read()
        assert keys(app.backend) != []
        time.sleep(0.1)
        process.send_signal(signum)
        process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == (130 if signum == signal.SIGINT else 1)
    assert keys(app.backend) == []
