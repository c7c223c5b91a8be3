"""Objects in parts on a real server: exact requests, faults at every step, and processes that die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections import Counter

import pytest

from celery_s3.bucket import open_store
from celery_s3.errors import AccessDenied, Conflict, PreconditionFailed, ServerFault, StoreError
from celery_s3.expiry import clock
from celery_s3.settings import Secret
from celery_s3.store import uploads
from celery_s3.store.api import CREATE, Match
from celery_s3.store.clients.control import Control
from celery_s3.store.counting import difference

#: The least that S3 takes for a part that is not the last one.
LENGTH = 5 * 1024 * 1024
BODY = os.urandom(1024) * (2 * LENGTH // 1024) + b"the end"
PARTS = 3
DAY = 86_400


@pytest.fixture(autouse=True)
def short_parts(monkeypatch):
    monkeypatch.setattr(uploads, "part_bytes", lambda size: LENGTH)


@pytest.fixture
def open_(proxy, settings_for, seaweed):
    """``open_(**settings)``: the bucket through the proxy."""
    opened = []

    def make(**options):
        values = {"endpoint_url": proxy.endpoint_url, "read_timeout": 2.0} | options
        opened.append(open_store(settings_for(seaweed, **values)))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


@pytest.fixture
def bucket(open_):
    return open_()


@pytest.fixture
def key(prefix):
    return f"{prefix}celery-task-meta-large"


@pytest.fixture
def unfinished(seaweed, settings_for, prefix):
    """The keys of the uploads that are neither completed nor aborted."""
    control = Control(settings_for(seaweed))
    return lambda: [one.key for one in control.uploads(prefix)]


def in_chunks(body=BODY, step=1_000_003):
    view = memoryview(body)
    for start in range(0, len(body), step):
        yield view[start : start + step]


def seal_keys():
    return (Secret(b64encode(b"k" * 32).decode()),)


# -- what is asked


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, {"PUT": 1}),
        (LENGTH, {"PUT": 1}),
        (LENGTH + 1, {"CreateMultipartUpload": 1, "UploadPart": 2, "GET": 1, "CompleteMultipartUpload": 1}),
        (2 * LENGTH, {"CreateMultipartUpload": 1, "UploadPart": 2, "GET": 1, "CompleteMultipartUpload": 1}),
    ],
)
@pytest.mark.parametrize("sealed", [False, True])
def test_requests(open_, proxy, key, size, expected, sealed):
    """One part is one PUT, more are these requests and no other, counted as PUTs but for the look before the end."""
    if sealed:
        pytest.importorskip("cryptography")
        size = size and size - 16 * -(-size // 16_400)
    bucket = open_(seal_keys=seal_keys()) if sealed else open_()
    body = BODY[:size]
    before = bucket.tally.snapshot()
    proxy.reset()
    etag = bucket.writer.write(key, in_chunks(body), size=size, precondition=CREATE, metadata={"a": "b"})
    assert proxy.counts() == Counter(expected)
    spent = difference(bucket.tally.snapshot(), before)
    looks = expected.get("GET", 0)
    assert spent["PUT"]["requests"] == sum(expected.values()) - looks
    assert spent.get("GET", {}).get("requests", 0) == looks
    assert spent["PUT"]["bytes_up"] == bucket.plain.get(key, length=1).size
    found = bucket.store.get(key)
    assert (found.body, found.etag, found.metadata["a"]) == (body, etag, "b")


def test_sealed_at_any_place(open_, key):
    """A sealed object of parts is checked range by range like any, and tampering with it is seen."""
    pytest.importorskip("cryptography")
    bucket = open_(seal_keys=seal_keys())
    bucket.writer.write(key, in_chunks(), content_type="application/json")
    assert bucket.store.get(key, start=LENGTH - 5, length=10).body == BODY[LENGTH - 5 : LENGTH + 5]
    assert bucket.store.get(key).body == BODY
    stored = bucket.plain.get(key)
    changed = bytearray(stored.body)
    changed[LENGTH] ^= 1
    bucket.plain.put(key, bytes(changed), metadata=stored.metadata, content_type=stored.content_type)
    with pytest.raises(StoreError, match="changed, exchanged or cut"):
        bucket.store.get(key)


def test_replacing_a_version(bucket, key, unfinished):
    """A version is replaced by parts as by a PUT, once."""
    version = bucket.store.put(key, b"started")
    etag = bucket.writer.write(key, in_chunks(), precondition=Match(version))
    with pytest.raises(PreconditionFailed):
        bucket.writer.write(key, in_chunks(), precondition=Match(version))
    assert bucket.store.get(key, length=1).etag == etag
    assert unfinished() == []


# -- faults


@pytest.mark.parametrize(
    ("how", "precondition"),
    [("reset_after", None), ("reset_after", CREATE), ("internal_error_after", CREATE), ("hang_after", CREATE)],
)
def test_a_completion_whose_answer_is_lost(bucket, proxy, key, unfinished, how, precondition):
    """The object is there once and right, the writer has its etag, and nothing is left."""
    proxy.fail("CompleteMultipartUpload", how)
    etag = bucket.writer.write(key, in_chunks(), size=len(BODY), precondition=precondition)
    assert bucket.store.get(key).body == BODY
    assert bucket.store.get(key, length=1).etag == etag
    assert unfinished() == []
    counts = proxy.counts()
    # tried again; looked at after the refusal
    assert (counts["UploadPart"], counts["CompleteMultipartUpload"]) == (PARTS, 2)


@pytest.mark.parametrize(
    ("match", "how"),
    [
        ("CreateMultipartUpload", "slow_down"),
        ("CreateMultipartUpload", "reset_after"),
        ("UploadPart", "slow_down"),
        ("UploadPart", "reset"),
        ("PUT partNumber=2", "reset_after"),
        ("CompleteMultipartUpload", "reset"),
    ],
)
def test_passing_faults(bucket, proxy, key, unfinished, match, how):
    """A fault in any request is tried again; only a beginning whose answer is lost leaves an empty upload behind."""
    proxy.fail(match, how, times=2)
    bucket.writer.write(key, in_chunks(), precondition=CREATE)
    proxy.heal()
    assert bucket.store.get(key).body == BODY
    assert unfinished() == ([key] * 2 if (match, how) == ("CreateMultipartUpload", "reset_after") else [])


@pytest.mark.parametrize("match", ["PUT partNumber=2", "CompleteMultipartUpload"])
@pytest.mark.parametrize(("how", "error"), [("access_denied", AccessDenied), ("internal_error", ServerFault)])
def test_lasting_faults(open_, proxy, key, unfinished, match, how, error):
    """A fault that stays is the error that is raised; neither an object nor an upload stays."""
    bucket = open_(max_retries=2)
    proxy.fail(match, how, times=-1)
    with pytest.raises(error):
        bucket.writer.write(key, in_chunks(), precondition=CREATE)
    assert proxy.records()[-1].kind == "AbortMultipartUpload"
    assert unfinished() == []
    assert list(bucket.store.list(key)) == []


def test_a_conflict(bucket, proxy, key, unfinished):
    """409 at the completion is raised, once, as S3 wants the parts anew; the next write succeeds."""
    proxy.fail("CompleteMultipartUpload", "conflict")
    with pytest.raises(Conflict):
        bucket.writer.write(key, in_chunks(), precondition=CREATE)
    assert proxy.counts()["CompleteMultipartUpload"] == 1
    assert unfinished() == []
    bucket.writer.write(key, in_chunks(), precondition=CREATE)
    assert bucket.store.get(key).body == BODY


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_in_the_chunks(bucket, proxy, key, unfinished, error):
    """Whatever ends the chunks leaves nothing in the bucket."""

    def chunks():
        yield BODY
        raise error("no more")

    with pytest.raises(error, match="no more"):
        bucket.writer.write(key, chunks(), precondition=CREATE)
    assert unfinished() == []
    assert list(bucket.store.list(key)) == []
    assert proxy.records()[-2].kind == "AbortMultipartUpload"


def test_an_abort_that_fails(bucket, proxy, key, unfinished, caplog):
    """It is one line that says what will remove the parts, which stay till then."""
    proxy.fail("PUT partNumber=2", "access_denied")
    proxy.fail("AbortMultipartUpload", "access_denied")
    with pytest.raises(AccessDenied):
        bucket.writer.write(key, in_chunks())
    (record,) = caplog.records
    assert "celery s3 sweep" in record.getMessage()
    assert unfinished() == [key]


def test_two_at_once(bucket, proxy, key, unfinished):
    """Of two uploads with a create one is written, the other is refused and aborted."""
    outcomes, both = [], threading.Barrier(2)
    # half a second between the completions: SeaweedFS does not check and complete in one step
    proxy.fail("CompleteMultipartUpload", "hang", seconds=0.5)

    def write(letter):
        def chunks():
            yield letter * LENGTH
            both.wait(20)
            yield letter * 10

        try:
            outcomes.append((letter, bucket.writer.write(key, chunks(), precondition=CREATE)))
        except PreconditionFailed:
            outcomes.append((letter, ""))

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ((letter, etag),) = [outcome for outcome in outcomes if outcome[1]]
    found = bucket.store.get(key)
    assert (found.etag, found.body) == (etag, letter * (LENGTH + 10))
    assert unfinished() == []


# -- processes that die

DIES = """
import json, sys, time
from celery_s3.settings import Secret, Settings
from celery_s3.bucket import open_store
from celery_s3.store import uploads
values = json.loads(sys.argv[1])
for name in ("access_key_id", "secret_access_key"):
    values[name] = Secret(values[name])
uploads.part_bytes = lambda size: 5 * 1024 * 1024

def chunks():
    for _ in range(9):
        yield b"x" * 3_000_000
    print("under way", flush=True)
    time.sleep(60)

open_store(Settings(**values)).writer.write(sys.argv[2], chunks())
"""


def test_a_process_that_is_killed(seaweed, settings_for, make_app, prefix, unfinished, monkeypatch):
    """SIGKILL leaves no object but parts; the cleanup aborts them when they are a day old, and spares other keys."""
    settings = settings_for(seaweed)
    names = ("bucket", "base", "region", "endpoint_url")
    values = {name: getattr(settings, name) for name in names}
    values |= {"access_key_id": seaweed.access_key, "secret_access_key": seaweed.secret_key}
    key, foreign = f"{prefix}celery-task-meta-killed", f"{prefix}theirs"
    line = [sys.executable, "-c", DIES, json.dumps(values), key]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "under way\n"
        finally:
            process.send_signal(signal.SIGKILL)
    backend = make_app(seaweed).backend
    other = backend._plain_store.create_upload(foreign)
    assert sorted(unfinished()) == [key, foreign]
    assert list(backend.store.list(key)) == []
    for later, left in ((DAY - 60, [key, foreign]), (DAY + 60, [foreign])):
        monkeypatch.setattr(clock, "server_clock", lambda control, later=later: lambda: time.time() + later)
        backend.cleanup()
        assert sorted(unfinished()) == left
    backend._plain_store.abort_upload(foreign, other)
