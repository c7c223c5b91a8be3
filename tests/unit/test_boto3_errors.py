"""What happens to a request but is not about it reaches the caller as it is."""

from __future__ import annotations

import json

import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from botocore.exceptions import HTTPClientError
from botocore.httpsession import URLLib3Session
from botocore.parsers import ResponseParserError

from celery_s3.errors import BadCredentials, StoreError
from celery_s3.sealing.kms import KMSKey
from celery_s3.settings import Secret, Settings
from celery_s3.store.clients.boto3_client import Boto3Client
from celery_s3.store.clients.boto3_errors import call, translated
from celery_s3.store.clients.control import Control
from celery_s3.store.clients.translate import Operation

SETTINGS = Settings(bucket="bucket", access_key_id=Secret("key"), secret_access_key=Secret("secret"))
CALLS = {
    "store": lambda: Boto3Client(SETTINGS).get("key"),
    "control": lambda: list(Control(SETTINGS).uploads("")),
    "KMS": lambda: KMSKey("alias/key", SETTINGS).sealing(),
}


@pytest.fixture
def requests(monkeypatch):
    """What every request meets, once that is told; and how many there were."""
    sent = []

    def meet(inner):
        def send(self, request):
            sent.append(request)
            try:
                raise inner
            except Exception as exc:
                raise HTTPClientError(error=exc)  # noqa: B904 (as botocore does it)

        monkeypatch.setattr(URLLib3Session, "send", send)
        return sent

    return meet


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("inner", [SoftTimeLimitExceeded(), MemoryError()], ids=repr)
def test_a_soft_time_limit(requests, call, inner):
    """botocore makes a network's error of whatever is raised while it sends, and would try again."""
    sent = requests(inner)
    with pytest.raises(type(inner)):
        call()
    assert len(sent) == 1


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_network_that_fails(requests, call, monkeypatch):
    """What is about the request stays an error of ours."""
    monkeypatch.setattr("time.sleep", lambda _: None)
    requests(ConnectionResetError("reset"))
    with pytest.raises(StoreError):
        call()


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (json.JSONDecodeError("Expecting value", "hush", 0), "prints no JSON"),
        (FileNotFoundError(2, "No such file", "/opt/tells"), "/opt/tells"),
        (HTTPClientError(error=ValueError("Invalid header value b'hush'")), "line break"),
    ],
)
def test_credentials_that_cannot_be_used(raised, told):
    """What a profile's command prints, and a line break in a key, are mistakes of the credentials; none is shown."""
    error = translated(raised, Operation("get", "k"), SETTINGS)
    assert type(error) is BadCredentials
    assert told in str(error)
    assert "hush" not in f"{error}{error.__cause__!r}"


def test_an_answer_that_is_none_of_aws():
    """A plain text where XML should be, as of a server without STS, is an error of ours."""
    with pytest.raises(StoreError):
        call(lambda: _raise(ResponseParserError("invalid XML: Not Found")), Operation("get_caller_identity"), SETTINGS)


def _raise(exc):
    raise exc
