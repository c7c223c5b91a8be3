"""No secret is among the locals of a frame that an error has passed: error trackers send them all."""

from __future__ import annotations

import base64
import os
import pickle
import socket
from dataclasses import replace

import pytest
from celery.exceptions import SoftTimeLimitExceeded

from celery_s3.claimcheck.names import Names
from celery_s3.errors import Refused, Tampered, Unreachable
from celery_s3.metadata import SEAL
from celery_s3.sealing import aes, kms, wrapper
from celery_s3.sealing.ciphers import SecretKey
from celery_s3.sealing.format import Header
from celery_s3.settings import Secret, Settings
from celery_s3.store.clients.boto3_client import Boto3Client
from celery_s3.store.clients.obstore_client import ObstoreClient
from celery_s3.store.memory import MemoryStore

RING_KEY = b"the key of the ring, of 32 bytes"
TOKEN, PASSWORD = "the-session-token-of-the-test", "the-secret-access-key-of-the-test"
SECRETS = [RING_KEY, base64.b64encode(RING_KEY), TOKEN.encode(), PASSWORD.encode()]


def flat(value, depth=8):
    """What an error tracker shows of a local: its repr, and what containers hold."""
    yield repr(value).encode()
    if isinstance(value, bytes | bytearray | memoryview):
        yield bytes(value)
    if depth and isinstance(value, dict):
        for pair in value.items():
            yield from flat(pair, depth - 1)
    elif depth and isinstance(value, list | tuple | set | frozenset):
        for one in value:
            yield from flat(one, depth - 1)
    elif depth and type(value).__module__.startswith(("botocore", "urllib3", "http")):
        yield from flat(vars(value) if hasattr(value, "__dict__") else (), depth - 1)


def shown(exc):
    """All that an error and what it was made of show, their frames' locals included but for those of tests."""
    seen = set()
    while exc is not None and id(exc) not in seen:
        seen.add(id(exc))
        yield from flat((exc, exc.args, vars(exc)))
        traceback = exc.__traceback__
        while traceback is not None:
            if not traceback.tb_frame.f_code.co_name.startswith("test_"):
                for name, value in traceback.tb_frame.f_locals.items():
                    for text in flat(value):
                        yield name.encode() + b" " + traceback.tb_frame.f_code.co_qualname.encode() + b": " + text
            traceback = traceback.tb_next
        exc = exc.__cause__ or exc.__context__


def check(exc, *secrets):
    for text in shown(exc):
        for secret in (*SECRETS, *secrets):
            assert secret not in text, text
            assert repr(secret)[2:-1].encode() not in text, text


@pytest.fixture
def settings():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    return Settings(
        bucket="bucket",
        endpoint_url=url,
        access_key_id=Secret("key"),
        secret_access_key=Secret(PASSWORD),
        session_token=Secret(TOKEN),
        seal_keys=(Secret(base64.b64encode(RING_KEY).decode()),),
    )


# -- of the ring


def garbled(field, put=b"x" * 40):
    def change(header):
        return replace(header, **{field: put})

    return change


@pytest.mark.parametrize("seal", ["encrypt", "sign"])
@pytest.mark.parametrize("change", [garbled("key_info"), garbled("token"), garbled("key_info", b"x")])
def test_a_garbled_seal(settings, seal, change):
    """Whatever stands in the header of an object: neither a key of the ring nor one made of it is shown."""
    inner = MemoryStore()
    sealing = wrapper.sealing(inner, replace(settings, seal=seal))
    sealing.put("key", b"body")
    found = inner.get("key")
    header = change(Header.loads(found.metadata[SEAL])).dumps()
    inner.put("key", found.body, metadata={**found.metadata, SEAL: header}, content_type=found.content_type)
    with pytest.raises(Tampered) as caught:
        sealing.get("key")
    derived = [SecretKey(RING_KEY).derived(purpose, salt).reveal() for purpose in (b"wrap",) for salt in (b"",)]
    check(caught.value, *derived, SecretKey(RING_KEY).derived(b"sign", b"x" * 40).reveal())


@pytest.mark.parametrize("function", ["aes_key_wrap", "aes_key_unwrap"])
def test_a_soft_time_limit_in_the_midst_of_wrapping(settings, monkeypatch, function):
    """An object's own key is not shown either."""
    sealing = wrapper.sealing(MemoryStore(), settings)
    sealing.put("key", b"body")
    made = []
    monkeypatch.setattr(os, "urandom", lambda size: made.append(b"o" * size) or made[-1])

    def interrupted(wrapping_key, key):  # Python code in some versions
        raise SoftTimeLimitExceeded

    monkeypatch.setattr(aes, function, interrupted)
    with pytest.raises(SoftTimeLimitExceeded) as caught:
        sealing.put("other", b"body") if function == "aes_key_wrap" else sealing.get("key")
    check(caught.value, SecretKey(RING_KEY).derived(b"wrap").reveal(), b"o" * 32)


class Service:
    """KMS, whose answers lack what they should have."""

    def generate_data_key(self, **_):
        return {"Plaintext": RING_KEY}

    def decrypt(self, **_):
        return {}


def test_what_kms_answers(settings, monkeypatch):
    """A data key is masked as soon as it is there."""
    monkeypatch.setattr(kms, "_client", lambda name, settings: Service())
    key = kms.KMSKey("alias/key", settings)
    assert repr(key.sealing()) == "(b'', ********)"
    with pytest.raises(KeyError) as caught:
        key.opening(b"token")
    check(caught.value)


def test_a_secret_key_masks_itself(settings):
    """However it is printed; and it does not leave its process."""
    key = SecretKey(RING_KEY)
    assert f"{key} {key!r} {[key]}" == "******** ******** [********]"
    assert key == SecretKey(RING_KEY) != SecretKey(b"other")
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(key)
    assert b"mail" not in b"".join(flat(vars(Names(settings))))


# -- of the clients


@pytest.mark.parametrize("client", [Boto3Client, ObstoreClient])
def test_an_unreachable_server(settings, client):
    """What was signed is among the locals of the client's frames, the session token with it."""
    with pytest.raises(Unreachable) as caught:
        client(settings).get("key")
    check(caught.value)


@pytest.mark.parametrize("kind", [SoftTimeLimitExceeded, ConnectionResetError, RuntimeError])
def test_whatever_happens_while_botocore_sends(settings, monkeypatch, kind):
    """The same of a soft time limit, of a reset, and of a fault in a library."""

    def fail(*_, headers, **__):
        raise kind("unlikely")

    monkeypatch.setattr("urllib3.connectionpool.HTTPConnectionPool._make_request", fail)
    with pytest.raises(Exception, match=r"unlikely|broke|cannot be reached") as caught:
        Boto3Client(settings).get("key")
    check(caught.value)


@pytest.mark.parametrize("client", [Boto3Client, ObstoreClient])
def test_credentials_that_cannot_be_had(settings, client, monkeypatch):
    """Nor does an error show those of a session, from which others are asked for."""
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    given = replace(settings, role_arn="arn:aws:iam::123456789012:role/none")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", settings.endpoint_url)
    with pytest.raises((Refused, Unreachable)) as caught:
        client(given).get("key")
    check(caught.value)
