"""Configuration that cannot work: one clear error at the first use, which names setting and remedy and no secret."""

from __future__ import annotations

import http.server
import json
import logging
import os
import subprocess
import sys
import threading
import time
import traceback
from contextlib import contextmanager

import pytest
from celery import states

from celery_s3.dev.process import free_ports
from celery_s3.errors import CeleryS3Error, Interrupted, ResultNotRead, ResultNotStored
from celery_s3.store.clients.control import Control
from celery_s3.store.deadline import retried_until

CLIENTS = ["obstore", "boto3"]
KEY_ID, SECRET, TOKEN = "AKIAQ7WRONGKEYID0042", 'se&cr<e>t/wi+th"odd==ones', "FwoGZXIvYXdz+token/with==ends"
WRONG_KEYS = {"aws_access_key_id": KEY_ID, "aws_secret_access_key": SECRET}
TEMPORARY_KEYS = {**WRONG_KEYS, "session_token": TOKEN}


@pytest.fixture(params=CLIENTS)
def client(request):
    return request.param


@pytest.fixture
def backend_for(seaweed, make_app, client):
    """``backend_for(bucket="none")``: a backend on SeaweedFS but for these settings; ``None`` leaves one out."""

    def make(**overrides):
        return make_app(
            seaweed, s3_backend_settings={"client": client, "max_retries": 1, "outage_patience": 0} | overrides
        ).backend

    return make


def told(error):
    """Everything that is printed of an error and of its causes, as by a traceback in a log or by a debugger."""
    texts = ["".join(traceback.format_exception(error))]
    while error is not None:
        texts.append(f"{error!s} {error!r} {error.args!r}")
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


@pytest.fixture
def check(caplog, monkeypatch):
    """``check(backend, *texts)``: a write and a read are errors that hold the texts, and nothing tells a secret."""
    caplog.set_level(logging.INFO)

    def run(backend, *texts, secrets=(SECRET, TOKEN)):
        calls = {
            ResultNotRead: lambda: backend.get_state("some-id"),
            ResultNotStored: lambda: backend.store_result("some-id", 1, states.SUCCESS),
        }
        for kind, call in calls.items():
            with pytest.raises(kind) as caught:
                call()
            for text in ("some-id", f"s3://{backend.settings.bucket}/", *texts):
                assert text in str(caught.value)
            assert isinstance(caught.value.__cause__, CeleryS3Error)
            said = told(caught.value) + caplog.text
            for secret in secrets:
                assert secret not in said
                assert secret.replace("&", "&amp;").replace("<", "&lt;") not in said
        assert not [record for record in caplog.records if record.name.startswith("celery_s3")]

    return run


# -- credentials


def test_missing_credentials(backend_for, check):
    """Nobody says any keys."""
    check(
        backend_for(aws_access_key_id=None, aws_secret_access_key=None),
        "there are no credentials to sign with",
        "`aws_access_key_id`, `aws_secret_access_key`, `session_token`, `profile` or the AWS environment",
    )


def test_wrong_secret(seaweed, backend_for, check):
    """The key id is right and the secret is not."""
    check(
        backend_for(aws_secret_access_key=SECRET),
        "the credentials are wrong or expired (403 SignatureDoesNotMatch)",
        "`aws_secret_access_key`",
    )


def test_wrong_key_id(backend_for, check):
    """Nobody has such a key."""
    check(backend_for(**WRONG_KEYS), "(403 InvalidAccessKeyId)", "`aws_access_key_id`", secrets=(SECRET, KEY_ID))


@pytest.mark.parametrize(
    ("fault", "answer"),
    [
        ("expired_token", "(400 ExpiredToken)"),
        ("invalid_access_key", "(403 InvalidAccessKeyId)"),
        ("signature_mismatch", "(403 SignatureDoesNotMatch)"),
        ("clock_skew", "(403 RequestTimeTooSkewed)"),
    ],
)
def test_refused_credentials(proxy, backend_for, check, fault, answer):
    """Temporary keys that have expired, and whatever else S3 says of keys and clock: one request, no retry."""
    proxy.fail("*", fault, times=-1)
    check(backend_for(endpoint_url=proxy.endpoint_url, **TEMPORARY_KEYS), answer, "`session_token`", "system clock")
    assert proxy.methods() == {"GET": 1, "PUT": 1}


def test_a_profile_without_keys(backend_for, check, monkeypatch, tmp_path):
    """The profile exists and has no credentials."""
    (tmp_path / "config").write_text("[profile empty]\nregion = us-east-1\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    keys = {"aws_access_key_id": None, "aws_secret_access_key": None}
    check(backend_for(profile="empty", **keys), "there are no credentials to sign with", "`profile`")


def test_a_credential_process_that_fails(backend_for, check, monkeypatch, tmp_path):
    """The profile's program ends with an error."""
    (tmp_path / "config").write_text("[profile broken]\ncredential_process = false\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    keys = {"aws_access_key_id": None, "aws_secret_access_key": None}
    check(backend_for(profile="broken", **keys), "there are no credentials to sign with", "`profile`")


def test_a_credential_process_that_hangs(seaweed, make_app, monkeypatch, tmp_path):
    """Whoever asks where the credentials come from, or wants a link to be signed, is told so in time."""
    (tmp_path / "config").write_text("[profile slow]\ncredential_process = sleep 5\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    keys = {"aws_access_key_id": None, "aws_secret_access_key": None}
    app = make_app(seaweed, s3_backend_settings={"profile": "slow"} | keys)
    control = Control(app.backend.settings)
    for ask in (lambda: control.credentials_found, lambda: control.presign("key", 60)):
        with retried_until(time.monotonic() + 0.3), pytest.raises(Interrupted, match="no answer within"):
            ask()


# -- bucket, region, permissions


def test_a_bucket_that_does_not_exist(backend_for, check):
    """Absent as it is, it has no results; yet none of them is PENDING."""
    check(backend_for(bucket="no-such-bucket"), "the bucket does not exist", "(404 NoSuchBucket)", "correct `bucket`")


class Scripted(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    answer: tuple[int, dict[str, str], str] = (200, {}, "")

    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, headers, body = self.answer
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body.encode())

    do_PUT = do_GET  # noqa: N815

    def log_message(self, *args):
        pass


@contextmanager
def answering(status, body, **headers):
    """A server that answers everything in one way; its URL."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    handler = type("Handler", (Scripted,), {"answer": (status, names, body)})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def xml(code, more=""):
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>said the server</Message>{more}</Error>"


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (301, xml("PermanentRedirect", "<Endpoint>b.s3.eu-central-1.amazonaws.com</Endpoint>"), {}),
        (301, "", {"x_amz_bucket_region": "eu-central-1"}),
        (307, xml("TemporaryRedirect"), {}),
        (400, xml("AuthorizationHeaderMalformed", "<Region>eu-central-1</Region>"), {}),
        (400, xml("IllegalLocationConstraintException"), {}),
    ],
)
def test_wrong_region(backend_for, check, status, body, headers):
    """Each way in which S3 says that the bucket is elsewhere."""
    with answering(status, body, Content_Type="application/xml", **headers) as url:
        check(backend_for(endpoint_url=url), "another region", "Set `aws_region` (or `s3_region`)")


def test_not_s3(backend_for, check):
    """A web server's own page for a missing document is not a missing result."""
    with answering(404, "<html><body>not here</body></html>", Content_Type="text/html") as url:
        check(backend_for(endpoint_url=url), "not S3's", "`endpoint_url`")


def test_access_denied(proxy, backend_for, check):
    """403 is an error that names the permissions, as long as nothing has ever succeeded."""
    proxy.fail("*", "access_denied", times=-1)
    check(backend_for(endpoint_url=proxy.endpoint_url), "access denied", "s3:PutObject", "`missing_as_403`")
    assert proxy.methods() == {"GET": 1, "PUT": 1}


def test_missing_as_403(proxy, backend_for, check):
    """Where `missing_as_403` says so, a read that is denied is PENDING; a write that is denied is an error."""
    backend = backend_for(endpoint_url=proxy.endpoint_url, missing_as_403=True)
    proxy.fail("*", "access_denied", times=-1)
    assert backend.get_state("some-id") == states.PENDING
    with pytest.raises(ResultNotStored, match="access denied"):
        backend.store_result("some-id", 1, states.SUCCESS)


@pytest.mark.parametrize("fault", ["invalid_access_key", "signature_mismatch", "expired_token", "clock_skew"])
def test_missing_as_403_is_about_permissions(proxy, backend_for, check, fault):
    """Wrong or expired keys stay errors even then."""
    proxy.fail("*", fault, times=-1)
    check(backend_for(endpoint_url=proxy.endpoint_url, missing_as_403=True), "credentials")


@pytest.mark.parametrize(("may_list", "state"), [(False, states.PENDING), (True, None)])
def test_absent_where_listing_is_denied(proxy, backend_for, may_list, state):
    """Without s3:ListBucket S3 answers 403 for what is absent: PENDING where listing is denied and a write worked."""
    backend = backend_for(endpoint_url=proxy.endpoint_url)
    backend.store_result("there", 1, states.SUCCESS)
    proxy.fail("GET some-id", "access_denied", times=-1)
    if not may_list:
        proxy.fail("LIST", "access_denied", times=-1)
    if state is None:
        with pytest.raises(ResultNotRead, match="access denied"):
            backend.get_state("some-id")
    else:
        assert backend.get_state("some-id") == state
    assert backend.get_state("there") == states.SUCCESS


# -- the way there


def test_refused_port(backend_for, check):
    """Nobody listens there."""
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    check(backend_for(endpoint_url=url), "the server cannot be reached", "2 tries", "Check `endpoint_url`")


def test_unresolvable_host(backend_for, check):
    """There is no such name."""
    check(
        backend_for(endpoint_url="http://no-such-host.invalid:9000"),
        "the server cannot be reached",
        "Check `endpoint_url`, `aws_region` and the network",
    )


def test_certificate_of_nobody(seaweed, proxy_for, certificate, backend_for, check):
    """A certificate that no known CA has signed, and the remedy works."""
    proxy = proxy_for(seaweed, tls=certificate)
    check(backend_for(endpoint_url=proxy.endpoint_url), "no TLS connection", "Set `verify` to the CA bundle")
    trusting = backend_for(endpoint_url=proxy.endpoint_url, verify=certificate[0])
    trusting.store_result("id", 1, states.SUCCESS)
    assert trusting.get_state("id") == states.SUCCESS


def test_https_to_a_plain_port(seaweed, backend_for, check):
    """TLS is not spoken there."""
    url = seaweed.endpoint_url.replace("http://", "https://")
    check(backend_for(endpoint_url=url), "no TLS connection", "correct `endpoint_url`")


def test_http_to_a_tls_port(seaweed, proxy_for, certificate, backend_for, check):
    """TLS is spoken there, and nothing else."""
    proxy = proxy_for(seaweed, tls=certificate)
    check(backend_for(endpoint_url=proxy.endpoint_url.replace("https://", "http://")), "`")


# -- the application's report


@pytest.mark.parametrize("named", ["s3_backend_settings", "CELERY_S3_BACKEND_SETTINGS", "url"])
def test_celery_report(tmp_path, named):
    """`celery report` prints the settings with their secrets masked."""
    values = {"bucket": "results", "base_path": "/celery/", **TEMPORARY_KEYS}
    backend = "celery_s3.backends.S3Backend"
    if named == "url":
        values, backend, named = TEMPORARY_KEYS, "celery-s3://results/celery?region=eu-central-1", "s3_backend_settings"
    conf = {("result_backend" if named.islower() else "CELERY_RESULT_BACKEND"): backend, named: values}
    (tmp_path / "reported.py").write_text(
        f"from celery import Celery\napp = Celery('reported')\napp.conf.update({json.loads(json.dumps(conf))!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "reported", "report"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    # older Celery leaves the query out
    assert f"results:{backend.partition('?')[0]}" in done.stdout
    for secret in (KEY_ID, SECRET, TOKEN):
        assert secret not in done.stdout + done.stderr
