"""Keys: where they come from, that none is ever printed, and how long those of AWS KMS are used."""

from __future__ import annotations

import base64
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback

import pytest
from celery import Celery

from celery_s3.bucket import open_store
from celery_s3.errors import ConfigurationError
from celery_s3.notices.notice import Noticing
from celery_s3.sealing import kms
from celery_s3.sealing.ciphers import Broken, SecretKey
from celery_s3.sealing.keyring import StaticKey, keyring
from celery_s3.settings import Secret, Settings, resolve
from celery_s3.settings.seal_keys import KEY_BYTES

KEY = base64.b64encode(b"LEAK" * 8).decode()
OTHER = base64.b64encode(b"leak" * 8).decode()
#: What must stand in no message, in any form.
SECRETS = (KEY, OTHER, "LEAK", "leak", KEY.rstrip("="), (b"LEAK" * 8).hex())


def app_with(**given):
    app = Celery("tests", set_as_current=False)
    app.conf.update({"s3_backend_settings": {"bucket": "results"} | given})
    return app


def settings_with(**given):
    return resolve(app_with(**given), environ={})


def silent(text):
    return not any(secret in text for secret in SECRETS)


# -- where they come from


def test_each_source(monkeypatch, tmp_path):
    """A key may be given itself, by a variable, by a file or by AWS KMS; with or without a list, masked or not."""
    monkeypatch.setenv("RESULTS_KEY", KEY)
    (tmp_path / "key").write_text(KEY + "\n")
    for given in (KEY, [KEY], (Secret(KEY),), "env:RESULTS_KEY", [f"file:{tmp_path}/key"], f"  {KEY} ".strip()):
        assert settings_with(seal_keys=given).seal_keys == (Secret(KEY),)
    kms_key = "kms://alias/results"
    assert settings_with(seal_keys=[kms_key, KEY]).seal_keys == (Secret(kms_key), Secret(KEY))


def test_both_alphabets_of_base64():
    """A URL-safe key is the same key."""
    key = b"\xfb\xff" * 16
    both = [base64.b64encode(key).decode(), base64.urlsafe_b64encode(key).decode()]
    found = settings_with(seal_keys=both).seal_keys
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "empty"),
        ([], "empty list"),
        (7, "must be text"),
        ({"a": KEY}, "must be text, not dict"),
        (KEY[:-5], "not in base64"),
        ("a password: LEAK", "not in base64"),
        (base64.b64encode(b"LEAK" * 4).decode(), "has 16 bytes, not 32: make one with `openssl rand -base64 32`"),
        (base64.b64encode(b"LEAK" * 16).decode(), "has 64 bytes"),
        ([KEY, "LEAK"], "has 3 bytes"),
        ("env:NO_SUCH_VARIABLE", "no variable 'NO_SUCH_VARIABLE'"),
        ("env:" + KEY, "not the name of a variable"),
        ("env:SHORT", "the variable 'SHORT' has 3 bytes"),
        ("file:/no/such/file", "'/no/such/file' cannot be read (No such file or directory)"),
        ("file:/", "cannot be read (Is a directory)"),
        ("kms:alias/results", "names no KMS key: give kms://alias/results"),
        ("kms://", "names no KMS key"),
    ],
    ids=str,
)
def test_what_is_no_key(given, message, monkeypatch):
    """Each is one line of a ConfigurationError, with the reason and without any part of a key."""
    monkeypatch.setenv("SHORT", "LEAK")
    with pytest.raises(ConfigurationError) as caught:
        settings_with(seal_keys=given)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("  - `seal_keys` in s3_backend_settings: ")
    assert message in lines[1]
    assert silent("".join(traceback.format_exception(caught.value)))


@pytest.mark.parametrize("given", [{"seal": "sign"}, {"seal": "encrypt"}, {"accept_unsealed": True}], ids=str)
def test_nothing_without_keys(given):
    """What would have no effect without keys is refused without them."""
    with pytest.raises(ConfigurationError, match="`seal_keys`: the first needs the second"):
        settings_with(**given)


def test_keys_do_not_belong_in_a_url():
    """A key in the URL would be printed by `celery report`."""
    with pytest.raises(ConfigurationError, match="hold credentials"):
        resolve(app_with(), f"celery-s3://results?seal_keys={KEY}", environ={})


# -- that none is ever printed


@pytest.mark.parametrize(
    "given", [KEY, [KEY, OTHER], (OTHER, KEY), [Secret(KEY)]], ids=["text", "list", "tuple", "Secret"]
)
def test_no_key_in_celerys_report(given):
    """`celery report` shows the settings, and no key, before and after they were used."""
    app = app_with(seal_keys=given)
    assert silent(app.bugreport())
    assert silent(repr(settings_with(seal_keys=given)))
    resolve(app, environ={})
    assert silent(app.bugreport())


def test_no_key_in_what_is_printed_of_a_store():
    """Nor in the reprs of ring, keys and store, nor in a text that went through `redact`."""
    settings = settings_with(seal_keys=[KEY, OTHER])
    opened = open_store(settings)
    key = keyring(settings).first
    assert silent(f"{opened!r} {opened.store!r} {vars(opened.store)} {key!r} {key.id}")
    assert silent(settings.redact(f"the server says {KEY}"))
    assert "LEAK" not in repr(pickle.loads(pickle.dumps(settings)))


def test_an_id_tells_which_key_and_nothing_else():
    """Equal keys have equal ids, in every process and release; others have others."""
    assert StaticKey(SecretKey(b"k" * 32)).id == StaticKey(SecretKey(b"k" * 32)).id == "2eae19dd5f353fbf"
    assert StaticKey(SecretKey(b"l" * 32)).id != StaticKey(SecretKey(b"k" * 32)).id
    assert StaticKey(SecretKey(b"k" * 32)).opening(b"") == SecretKey(b"k" * 32)
    with pytest.raises(Broken):
        StaticKey(SecretKey(b"k" * 32)).opening(b"a token of KMS")


# -- what a worker pays

PROBE = """
import sys
from celery import Celery
app = Celery("tests", set_as_current=False)
app.conf.update(result_backend="celery_s3.backends.S3Backend", s3_backend_settings={settings})
app.backend.store
heavy = [name for name in ("cryptography", "botocore", "boto3", "celery_s3.sealing") if name in sys.modules]
print(type(app.backend.store).__name__, *heavy)
"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "Noticing"),
        ({"seal_keys": KEY, "seal": "sign"}, "Sealing celery_s3.sealing"),
        ({"seal_keys": KEY}, "Sealing cryptography celery_s3.sealing"),
        ({"seal_keys": "kms://alias/results", "seal": "sign"}, "Sealing celery_s3.sealing"),
    ],
    ids=str,
)
def test_imports(given, expected):
    """Without keys nothing of this is imported; signing needs no package; botocore comes with the first request."""
    code = PROBE.format(settings={"bucket": "results"} | given)
    # `coverage` and such would import more
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "COV"))}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert ran.stdout.split() == expected.split()


def test_without_keys_the_store_is_what_it_was():
    """No layer that seals."""
    assert isinstance(open_store(settings_with()).store, Noticing)


def test_without_the_package(monkeypatch):
    """Encryption without `cryptography` is told when the backend is made, with both remedies; signing works."""
    monkeypatch.setitem(sys.modules, "celery_s3.sealing.aes", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'celery-s3\[encryption\]', or set `seal` to 'sign'"):
        open_store(settings_with(seal_keys=KEY))
    open_store(settings_with(seal_keys=KEY, seal="sign"))


# -- AWS KMS


class Service:
    """What KMS does, in memory; it writes down what it is asked."""

    def __init__(self):
        self.asked = []
        self.wait = None

    def generate_data_key(self, **parameters):
        self.asked.append("GenerateDataKey")
        key = os.urandom(KEY_BYTES)
        return {"Plaintext": key, "CiphertextBlob": b"wrapped " + key}

    def decrypt(self, *, CiphertextBlob, **parameters):  # noqa: N803
        self.asked.append("Decrypt")
        if self.wait:
            self.wait.wait(5)
        return {"Plaintext": CiphertextBlob.removeprefix(b"wrapped ")}

    def close(self):
        self.asked.append("closed")


@pytest.fixture
def service(monkeypatch):
    service = Service()
    monkeypatch.setattr(kms, "_client", lambda name, settings: service)
    return service


@pytest.fixture
def clock():
    return [1000.0]


@pytest.fixture
def key(service, clock):
    return kms.KMSKey("alias/results", Settings(bucket="results"), clock=lambda: clock[0])


def test_a_data_key_serves_for_a_while(key, service, clock):
    """KMS is asked once in five minutes, however many objects are written, and what one wrote it reads."""
    token, secret = key.sealing()
    clock[0] += kms.LIFETIME - 1
    assert (key.sealing(), key.opening(token)) == ((token, secret), secret)
    assert service.asked == ["GenerateDataKey"]
    clock[0] += 1
    assert key.sealing() != (token, secret)
    assert key.opening(token) == secret
    assert service.asked == ["GenerateDataKey", "GenerateDataKey", "Decrypt"]


def test_others_data_keys_are_kept_for_a_while(key, service, clock):
    """To read, KMS is asked once in five minutes for each data key."""
    for _ in range(3):
        assert key.opening(b"wrapped one") == SecretKey(b"one")
    clock[0] += kms.LIFETIME
    assert key.opening(b"wrapped one") == SecretKey(b"one")
    assert service.asked == ["Decrypt", "Decrypt"]


def test_the_number_of_kept_data_keys_is_bounded(key, service):
    """The oldest goes."""
    for number in range(kms.KEPT + 1):
        key.opening(b"wrapped %d" % number)
    assert len(key._cache.get()._slots) == kms.KEPT
    service.asked.clear()
    key.opening(b"wrapped %d" % kms.KEPT)
    assert service.asked == []
    key.opening(b"wrapped 0")
    assert service.asked == ["Decrypt"]


def test_a_closed_key_lets_go_of_its_connections(key, service):
    """What it keeps is used on, and the next request finds a client again."""
    token, secret = key.sealing()
    key.close()
    key.close()
    assert service.asked == ["GenerateDataKey", "closed"]
    assert key.opening(token) == secret
    assert key.opening(b"wrapped one") == SecretKey(b"one")
    assert service.asked[2:] == ["Decrypt"]


def test_threads_ask_together(key, service):
    """Threads that meet the same data key at once make one request."""
    service.wait = threading.Event()
    threads = [threading.Thread(target=key.opening, args=(b"wrapped one",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    service.wait.set()
    for thread in threads:
        thread.join()
    assert service.asked == ["Decrypt"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_waits_for_no_thread_of_its_parent(key, service):
    """A child that was forked while a thread of its parent was asking makes its own request."""
    service.wait = threading.Event()
    thread = threading.Thread(target=key.opening, args=(b"wrapped one",))
    thread.start()
    while not service.asked:
        pass
    pid = os.fork()
    if pid == 0:
        service.wait = None
        signal.alarm(20)
        os._exit(0 if key.opening(b"wrapped one") == SecretKey(b"one") and key.sealing() else 1)
    service.wait.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_only_what_botocore_says_of_kms_is_hidden():
    """Its answers are kept out of the log while KMS is asked, at level DEBUG; warnings are not."""
    record = logging.LogRecord("botocore.parsers", logging.DEBUG, "", 0, "Response body: …", (), None)
    warning = logging.LogRecord("botocore.parsers", logging.WARNING, "", 0, "trouble", (), None)
    assert kms._silent.filter(record)
    with kms._unlogged():
        assert not kms._silent.filter(record)
        assert kms._silent.filter(warning)
