"""What the settings put on the wire, the same through both clients."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest
from scripted import Answer, Request, ScriptedServer, error, stored

from celery_s3.errors import BadCredentials, BadRequest, Unreachable
from celery_s3.settings import Secret, Settings
from celery_s3.settings.network import Proxies, Proxy
from celery_s3.store.api import CREATE, Match, Store
from celery_s3.store.clients import obstore_options
from celery_s3.store.clients.obstore_client import ObstoreClient

#: what is sent for each setting with every request, and with a PUT alone
EVERYWHERE: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({"request_payer": True}, {"x-amz-request-payer": "requester"}),
    ({"expected_bucket_owner": "123456789012"}, {"x-amz-expected-bucket-owner": "123456789012"}),
]
PUT_ONLY: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({"storage_class": "REDUCED_REDUNDANCY"}, {"x-amz-storage-class": "REDUCED_REDUNDANCY"}),
    ({"sse": "AES256"}, {"x-amz-server-side-encryption": "AES256"}),
    (
        {"sse": "aws:kms", "sse_kms_key_id": "key-1", "bucket_key": True},
        {
            "x-amz-server-side-encryption": "aws:kms",
            "x-amz-server-side-encryption-aws-kms-key-id": "key-1",
            "x-amz-server-side-encryption-bucket-key-enabled": "true",
        },
    ),
    (
        {"sse": "aws:kms", "bucket_key": False},
        {
            "x-amz-server-side-encryption": "aws:kms",
            "x-amz-server-side-encryption-bucket-key-enabled": "false",
        },
    ),
    ({"sse": "aws:kms:dsse"}, {"x-amz-server-side-encryption": "aws:kms:dsse"}),
    ({"tags": {"a b": "c&d/é"}}, {"x-amz-tagging": "a+b=c%26d%2F%C3%A9"}),
]

VERBS: dict[str, Callable[[Store], object]] = {
    "put": lambda store: store.put("k", b"x"),
    "get": lambda store: store.get("k", length=10),
    "delete": lambda store: store.delete("k"),
    "delete_many": lambda store: store.delete_many(["k"]),
    "list": lambda store: list(store.list("p")),
}
ANSWERS = {
    "put": Answer(headers={"ETag": '"e1"'}),
    "get": stored(b"x"),
    "delete": Answer(204),
    "delete_many": Answer(body=b"<DeleteResult><Deleted><Key>k</Key></Deleted></DeleteResult>"),
    "list": Answer(body=b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"),
}


def sent(script: ScriptedServer, store: Store, verb: str) -> Request:
    """The first request of a verb."""
    script.requests.clear()
    script.answer = ANSWERS[verb]
    VERBS[verb](store)
    return script.requests[0]


def amazon(request: Request) -> dict[str, str]:
    """The headers that are about S3, less those that every signed request has."""
    usual = {"x-amz-date", "x-amz-content-sha256", "x-amz-checksum-sha256", "x-amz-sdk-checksum-algorithm"}
    return {name: value for name, value in request.headers.items() if name.startswith("x-amz-") and name not in usual}


def signed(request: Request) -> set[str]:
    return set(re.search("SignedHeaders=([^,]+)", request.headers["authorization"])[1].split(";"))


def page(token: str = "") -> Answer:
    told = (
        f"<IsTruncated>{str(bool(token)).lower()}</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>"
    )
    return Answer(body=f"<ListBucketResult>{told}</ListBucketResult>".encode())


def test_pages_of_a_listing(script: ScriptedServer, scripted: Callable[..., Store]) -> None:
    """Each page is asked for by the token of the one before; the first one's place to start stays said."""
    script.answers = [page("one"), page("two"), page()]
    assert list(scripted().list("p", start_after="p/k")) == []
    asked = [parse_qs(urlsplit(request.target).query, keep_blank_values=True) for request in script.requests]
    assert [one.get("continuation-token") for one in asked] == [None, ["one"], ["two"]]
    assert [one["start-after"] for one in asked] == [["p/k"]] * 3


def test_a_listing_that_goes_round_in_circles(script: ScriptedServer, scripted: Callable[..., Store]) -> None:
    """A server that names a page as its own next one is not asked for ever."""
    script.answer = page("one")
    with pytest.raises(BadRequest, match="circles"):
        list(scripted().list("p"))
    assert len(script.requests) == 2


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(("given", "headers"), EVERYWHERE)
def test_settings_of_every_request(
    script: ScriptedServer, scripted: Callable[..., Store], given: dict[str, Any], headers: dict[str, str], verb: str
) -> None:
    """Who pays and whose bucket it must be is said, and signed, with every request."""
    request = sent(script, scripted(**given), verb)
    assert headers.items() <= request.headers.items()
    assert set(headers) <= signed(request)


@pytest.mark.parametrize(("given", "headers"), PUT_ONLY)
def test_settings_of_a_put(
    script: ScriptedServer, scripted: Callable[..., Store], given: dict[str, Any], headers: dict[str, str]
) -> None:
    """Class, encryption and tags are said, and signed, with a PUT, and with nothing else: S3 refuses them there."""
    store = scripted(**given)
    request = sent(script, store, "put")
    assert amazon(request) == headers
    assert set(headers) <= signed(request)
    for verb in ("get", "delete", "delete_many", "list"):
        assert not set(headers) & set(sent(script, store, verb).headers)


def test_tags(script: ScriptedServer, scripted: Callable[..., Store]) -> None:
    """All tags are sent, in any order."""
    tags = {"team": "a", "kind": "", "x=y": "1&2"}
    sent_tags = sent(script, scripted(tags=tags), "put").headers["x-amz-tagging"]
    assert dict(parse_qsl(sent_tags, keep_blank_values=True)) == tags


def test_a_plain_put(script: ScriptedServer, scripted: Callable[..., Store]) -> None:
    """Without settings a PUT is one request of body and signature: no checksum, no Expect, one region."""
    script.answer = ANSWERS["put"]
    scripted(region="eu-central-1").put("a/k", b"hello", metadata={"state": "SUCCESS"}, content_type="a/b")
    (request,) = script.requests
    assert (request.method, request.target, request.body) == ("PUT", "/scripted/a/k", b"hello")
    assert amazon(request) == {"x-amz-meta-state": "SUCCESS"}
    assert request.headers["content-type"] == "a/b"
    assert "/eu-central-1/s3/aws4_request" in request.headers["authorization"]
    for name in ("expect", "if-match", "if-none-match", "transfer-encoding", "content-encoding"):
        assert name not in request.headers


@pytest.mark.parametrize(
    ("precondition", "headers"),
    [(CREATE, {"if-none-match": "*"}), (Match('"e1"'), {"if-match": '"e1"'})],
)
def test_preconditions(
    script: ScriptedServer, scripted: Callable[..., Store], precondition: Any, headers: dict[str, str]
) -> None:
    """A precondition is a header of the one PUT."""
    script.answer = ANSWERS["put"]
    scripted().put("k", b"x", precondition=precondition)
    (request,) = script.requests
    assert headers == {name: value for name, value in request.headers.items() if name.startswith("if-")}


@pytest.mark.parametrize(
    ("start", "length", "header"), [(0, 10, "bytes=0-9"), (5, 10, "bytes=5-14"), (5, None, "bytes=5-"), (0, None, None)]
)
def test_a_get_is_one_request(
    script: ScriptedServer, scripted: Callable[..., Store], start: int, length: int | None, header: str | None
) -> None:
    """A GET is one request with its range and its version, and no HEAD."""
    body = b"0123456789" * 10
    stop = len(body) if length is None else start + length
    partial = {"Content-Range": f"bytes {start}-{stop - 1}/100"} if header else {}
    whole = stored(body[start:stop])
    script.answer = Answer(206 if header else 200, whole.body, {**whole.headers, **partial})
    found = scripted().get("k", start=start, length=length, if_match='"e1"')
    (request,) = script.requests
    assert (request.method, request.headers.get("range"), request.headers["if-match"]) == ("GET", header, '"e1"')
    assert (found.body, found.size) == (body[start:stop], 100)


def test_a_deletion_has_1000_keys_and_a_digest(script: ScriptedServer, scripted: Callable[..., Store]) -> None:
    """2,001 keys are three requests, with the digest that servers older than CRC32 ask for."""
    script.answer = ANSWERS["delete_many"]
    script.answers = [_deleted(0, 1000), _deleted(1000, 2000), _deleted(2000, 2001)]
    scripted().delete_many([f"k{number}" for number in range(2001)])
    assert [request.body.count(b"<Key>") for request in script.requests] == [1000, 1000, 1]
    for request in script.requests:
        assert (request.method, request.target.rstrip("=")) == ("POST", "/scripted?delete")
        assert request.headers["content-md5"]


def _deleted(start: int, stop: int) -> Answer:
    found = "".join(f"<Deleted><Key>k{number}</Key></Deleted>" for number in range(start, stop))
    return Answer(body=f"<DeleteResult>{found}</DeleteResult>".encode())


@pytest.fixture
def through_proxy(script: ScriptedServer) -> Proxies:
    """The scripted server stands for every host, as their proxy."""
    return Proxies({"all": Proxy(Secret(script.endpoint_url))})


@pytest.mark.parametrize(
    ("style", "url"),
    [
        ("auto", "http://s3.example.test:8333/scripted/k"),
        ("path", "http://s3.example.test:8333/scripted/k"),
        ("virtual", "http://scripted.s3.example.test:8333/k"),
    ],
)
def test_addressing_style(
    script: ScriptedServer, scripted: Callable[..., Store], through_proxy: Proxies, style: str, url: str
) -> None:
    """The bucket is in the path of a custom endpoint, and in its host where that is asked for."""
    script.answer = ANSWERS["get"]
    scripted(addressing_style=style, endpoint_url="http://s3.example.test:8333", proxies=through_proxy).get("k")
    (request,) = script.requests
    assert request.target == url
    assert request.headers["host"] == url.split("/")[2]


@pytest.mark.parametrize(
    ("given", "host"),
    [
        ({}, "scripted.s3.eu-central-1.amazonaws.com"),
        ({"addressing_style": "path"}, "s3.eu-central-1.amazonaws.com"),
        ({"bucket": "with.dots"}, "s3.eu-central-1.amazonaws.com"),
    ],
)
def test_hosts_of_aws(
    script: ScriptedServer, scripted: Callable[..., Store], through_proxy: Proxies, given: dict[str, Any], host: str
) -> None:
    """Without an endpoint it is the region's S3, by https, the bucket in the host unless its dots would break TLS."""
    script.answer = Answer(403)
    with pytest.raises(Unreachable):
        scripted(endpoint_url=None, region="eu-central-1", proxies=through_proxy, **given).put("k", b"x")
    assert {(request.method, request.target) for request in script.requests} == {("CONNECT", f"{host}:443")}


# -- the environment


STRAY = {
    "AWS_SKIP_SIGNATURE": "true",
    "AWS_UNSIGNED_PAYLOAD": "true",
    "AWS_CHECKSUM_ALGORITHM": "sha256",
    "AWS_SERVER_SIDE_ENCRYPTION": "aws:kms",
    "AWS_SSE_KMS_KEY_ID": "stray",
    "AWS_SSE_BUCKET_KEY_ENABLED": "true",
    "AWS_REQUEST_PAYER": "true",
    "AWS_ENDPOINT": "http://127.0.0.1:1",
    "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
    "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1",
    "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true",
    "AWS_S3_EXPRESS": "true",
    "AWS_DISABLE_TAGGING": "true",
    "AWS_CONDITIONAL_PUT": "disabled",
    "AWS_BUCKET": "stray",
    "AWS_BUCKET_NAME": "stray",
    "AWS_REGION": "mars-north-1",
    "AWS_DEFAULT_REGION": "mars-north-1",
    "AWS_SESSION_TOKEN": "stray",
    "AWS_ACCESS_KEY_ID": "AKSTRAY",
    "AWS_SECRET_ACCESS_KEY": "stray-secret",
    "AWS_DEFAULT_CONTENT_TYPE": "a/b",
    "AWS_PROXY_URL": "http://127.0.0.1:1",
    "HTTP_PROXY": "http://127.0.0.1:1",
    "ALL_PROXY": "http://127.0.0.1:1",
    "AWS_TIMEOUT": "1ns",
    "AWS_ALLOW_HTTP": "false",
    "AWS_MAX_ATTEMPTS": "7",
    "AWS_RETRY_MODE": "adaptive",
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_supported",
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("given", [{}, {"sse": "aws:kms", "tags": {"a": "b"}}], ids=["plain", "kms"])
def test_the_environment_does_not_change_what_the_settings_say(
    script: ScriptedServer, scripted: Callable[..., Store], monkeypatch: Any, verb: str, given: dict[str, Any]
) -> None:
    """Variables that either library reads change no request where the settings have spoken, or said nothing."""
    before = sent(script, scripted(**given), verb)
    for name, value in STRAY.items():
        monkeypatch.setenv(name, value)
    after = sent(script, scripted(**given), verb)
    assert (after.method, after.target, after.body) == (before.method, before.target, before.body)
    changing = {"authorization", "x-amz-date", "amz-sdk-invocation-id", "user-agent"}
    assert {name: value for name, value in after.headers.items() if name not in changing} == {
        name: value for name, value in before.headers.items() if name not in changing
    }
    assert signed(after) == signed(before)
    assert "Credential=AKSCRIPTED/" in after.headers["authorization"]
    assert "/us-east-1/s3/" in after.headers["authorization"]


def test_the_environment_is_as_before(script: ScriptedServer, scripted_settings: Any, monkeypatch: Any) -> None:
    """What is taken out of the environment while obstore reads it is back afterwards, and nothing is left in it."""
    monkeypatch.setattr(obstore_options, "_runtime_started", False)
    for name in ("AWS_SERVER_SIDE_ENCRYPTION", "AWS_SSE_KMS_KEY_ID"):
        monkeypatch.setenv(name, "stray")
    monkeypatch.delenv("TOKIO_WORKER_THREADS", raising=False)
    before = dict(os.environ)
    ObstoreClient(scripted_settings()).put("k", b"x")
    assert dict(os.environ) == before


def test_obstore_has_one_thread_of_its_own() -> None:
    """A process pays for one thread of obstore, not for one per core; what the user asks for is kept."""
    code = (
        "import os, sys\n"
        "from celery_s3.store.clients.obstore_client import ObstoreClient\n"
        "from celery_s3.errors import Unreachable\n"
        "from celery_s3.settings import Secret, Settings\n"
        "key = Secret('secret-of-the-test')\n"
        "client = ObstoreClient(Settings(bucket='b', endpoint_url='http://127.0.0.1:1',"
        " access_key_id=key, secret_access_key=key))\n"
        "assert len(os.listdir('/proc/self/task')) == 1\n"
        "try: client.put('k', b'x')\n"
        "except Unreachable: pass\n"
        "assert 'botocore' not in sys.modules\n"
        "print(len(os.listdir('/proc/self/task')) - 1)\n"
    )
    if not Path("/proc/self/task").is_dir():
        pytest.skip("threads are counted in /proc")
    for asked, threads in (({}, "1"), ({"TOKIO_WORKER_THREADS": "3"}, "3")):
        run = subprocess.run([sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True)
        assert (run.stdout.strip(), run.returncode) == (threads, 0), run.stderr


# -- credentials


def signer(script: ScriptedServer) -> tuple[str, str]:
    """Access key id and session token of the last request."""
    headers = script.requests[-1].headers
    return re.search("Credential=([^/]+)/", headers["authorization"])[1], headers.get("x-amz-security-token", "")


NOBODY: dict[str, Any] = {"access_key_id": None, "secret_access_key": None}


def test_static_keys_with_a_token(script: ScriptedServer, scripted: Callable[..., Store]) -> None:
    """Keys and token of the settings sign the request."""
    sent(script, scripted(session_token=Secret("the-token")), "put")
    assert signer(script) == ("AKSCRIPTED", "the-token")


def test_keys_of_the_environment(script: ScriptedServer, scripted: Callable[..., Store], monkeypatch: Any) -> None:
    """Without keys in the settings those of the environment sign, token and all."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKENVIRONMENT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-environment")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token-of-the-environment")
    sent(script, scripted(**NOBODY), "put")
    assert signer(script) == ("AKENVIRONMENT", "token-of-the-environment")


def test_profile(script: ScriptedServer, scripted: Callable[..., Store], monkeypatch: Any, tmp_path: Path) -> None:
    """``profile`` takes the keys of the shared credentials file, whatever the environment holds."""
    file = tmp_path / "credentials"
    file.write_text("[results]\naws_access_key_id = AKPROFILE\naws_secret_access_key = secret-of-the-profile\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKENVIRONMENT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-environment")
    sent(script, scripted(**NOBODY, profile="results"), "put")
    assert signer(script) == ("AKPROFILE", "")


def test_a_profile_that_is_not_there(scripted: Callable[..., Store]) -> None:
    """An unknown profile is BadCredentials."""
    with pytest.raises(BadCredentials, match="nowhere"):
        scripted(**NOBODY, profile="nowhere").get("k")


def test_credential_process(
    script: ScriptedServer, scripted: Callable[..., Store], monkeypatch: Any, tmp_path: Path
) -> None:
    """A profile's credential process is asked once, not for every request."""
    tool, calls = tmp_path / "tool.sh", tmp_path / "calls"
    answer = '{"Version": 1, "AccessKeyId": "AKPROCESS", "SecretAccessKey": "s", "SessionToken": "t"}'
    tool.write_text(f"#!/bin/sh\necho x >> {calls}\necho '{answer}'\n")
    tool.chmod(0o700)
    file = tmp_path / "config"
    file.write_text(f"[profile tool]\ncredential_process = {tool}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(file))
    store = scripted(**NOBODY, profile="tool")
    for verb in ("put", "get", "delete_many"):
        sent(script, store, verb)
    assert signer(script) == ("AKPROCESS", "t")
    assert calls.read_text() == "x\n"


def test_assumed_role(script: ScriptedServer, scripted: Callable[..., Store], moto_s3: Any, monkeypatch: Any) -> None:
    """``role_arn`` signs with the keys that STS gives for it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", moto_s3.endpoint_url)
    sent(script, scripted(role_arn="arn:aws:iam::123456789012:role/results"), "put")
    key, token = signer(script)
    assert key != "AKSCRIPTED"
    assert token


def test_a_role_that_cannot_be_assumed(
    script: ScriptedServer, scripted: Callable[..., Store], monkeypatch: Any
) -> None:
    """What STS refuses is told as S3's own refusals are, and an STS that cannot be reached is worth another try."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", script.endpoint_url)
    body = b"<ErrorResponse><Error><Code>InvalidClientTokenId</Code><Message>no</Message></Error></ErrorResponse>"
    script.answer = Answer(403, body, {"Content-Type": "text/xml"})
    arn = "arn:aws:iam::123456789012:role/results"
    with pytest.raises(BadCredentials):
        scripted(role_arn=arn).get("k")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:1")
    with pytest.raises(Unreachable):
        scripted(role_arn=arn).get("k")


def test_a_web_identity_without_its_token(scripted: Callable[..., Store], monkeypatch: Any, tmp_path: Path) -> None:
    """A token file that is not there is BadCredentials, and names the file."""
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/results")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "no-token"))
    with pytest.raises(BadCredentials, match="no-token"):
        scripted(**NOBODY).get("k")


def test_no_credentials_at_all(script: ScriptedServer, scripted: Callable[..., Store]) -> None:
    """Nobody to sign as is BadCredentials, and nothing is sent."""
    with pytest.raises(BadCredentials, match="aws_access_key_id"):
        scripted(**NOBODY).get("k")
    assert script.requests == []


@pytest.mark.parametrize("answer", [Answer(403), error(404, "no role here"), Answer(fault="reset")])
def test_no_credentials_of_the_instance(
    script: ScriptedServer, scripted_settings: Any, monkeypatch: Any, answer: Answer
) -> None:
    """obstore's own question to the instance's metadata is not mistaken for an answer of S3."""
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    with ScriptedServer() as metadata:
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", metadata.endpoint_url)
        metadata.answer = answer
        with pytest.raises(BadCredentials, match="no credentials"):
            ObstoreClient(scripted_settings(**NOBODY)).get("k")
    assert script.requests == []


def test_a_session_of_the_application(script: ScriptedServer, scripted_settings: Any, open_client: Any) -> None:
    """A boto3 session signs with its own credentials."""
    import boto3

    session = boto3.Session("AKSESSION", "secret-of-the-session", "token-of-the-session", "us-east-1")
    sent(script, open_client("boto3", scripted_settings(**NOBODY, session=session)), "put")
    assert signer(script) == ("AKSESSION", "token-of-the-session")


def test_a_big_body_may_take_longer_than_the_read_timeout(scripted_settings: Any, open_client: Any) -> None:
    """``read_timeout`` is about waiting for the server, not about sending a large body over a slow line.

    obstore counts it from the start of a request; boto3 by the block.
    """
    with ScriptedServer() as slow:
        slow.answer = ANSWERS["put"]
        slow.bytes_per_second = 4_000_000
        store = open_client("obstore", scripted_settings(endpoint_url=slow.endpoint_url, read_timeout=0.3))
        assert store.put("k", b"x" * 6_000_000) == '"e1"'


def test_a_client_is_made_anywhere(client_name: str, open_client: Any) -> None:
    """A client is made without a request, a file or a thread."""
    threads = set(threading.enumerate())
    missing = Settings(bucket="b", endpoint_url="http://nothing.invalid", profile="nowhere", verify="/no/such/file")
    open_client(client_name, missing).close()
    assert set(threading.enumerate()) <= threads
