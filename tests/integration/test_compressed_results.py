"""Compressed results on a real server: what they cost, and who can read them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import celery
import pytest
from celery import Celery
from kombu.compression import encoders
from kombu.utils.uuid import uuid

from celery_s3 import claimcheck
from celery_s3.claimcheck.messages import messages_of
from celery_s3.codec.compression import COMPRESSED_PAYLOAD_MAGIC

CELERY = tuple(map(int, celery.__version__.split(".")[:2]))
METHODS = sorted(encoders())
ROWS = [{"id": number, "name": f"customer {number % 7}"} for number in range(1000)]


def body_of(result):
    backend = result.backend
    return backend.store.get(backend._full(backend.get_key_for_task(result.id))).body


@pytest.mark.parametrize("method", METHODS)
def test_every_method(counted, stored, spends, method):
    """Each method of kombu's costs no request more, and a process with other settings reads it."""
    app, reader = counted(result_compression=method), counted()
    with spends(PUT=1):
        result = stored(app, ROWS)
    body = body_of(result)
    assert body.startswith(COMPRESSED_PAYLOAD_MAGIC + method.encode() + b"\0")
    assert len(body) < len(json.dumps(ROWS)) / 5
    with spends(GET=1):
        assert reader.AsyncResult(result.id).get(timeout=5) == ROWS


def test_small_ones_stay_plain(counted, stored):
    """Anybody can read a small result, and one that compression does not help, by `result_compression` or without."""
    app = counted(result_compression="gzip")
    assert json.loads(body_of(stored(app, 1)))["result"] == 1
    noise = os.urandom(4000).hex()
    assert body_of(stored(app, noise)).startswith(COMPRESSED_PAYLOAD_MAGIC)  # hexadecimal digits: half
    low = counted(result_compression="gzip", s3_backend_settings={"compression_threshold": 200})
    assert body_of(stored(low, "x" * 200)).startswith(COMPRESSED_PAYLOAD_MAGIC)


def test_state_and_children_without_the_body(counted, stored, spends):
    """A compressed result that is still large tells its state by its first part alone."""
    app = counted(result_compression="gzip")
    value = "".join(uuid() for _ in range(8_000))
    result = stored(app, value)
    with spends(GET=1):
        assert result.state == "SUCCESS"
        assert result.children == []
    assert app.AsyncResult(result.id).get(timeout=5) == value


@pytest.mark.parametrize("seal", ["encrypt", "sign"])
def test_sealed(counted, stored, seal):
    """Compressed first, then sealed: the other way round nothing would become smaller."""
    keys = {"seal_keys": "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=", "seal": seal}
    app = counted(result_compression="gzip", s3_backend_settings=keys)
    result = stored(app, ROWS)
    assert len(body_of(result)) < len(json.dumps(ROWS)) / 5
    assert counted(s3_backend_settings=keys).AsyncResult(result.id).get(timeout=5) == ROWS


@pytest.mark.skipif(CELERY < (5, 7), reason="this Celery compresses no results")
def test_celerys_own_backend(counted, stored, tmp_path):
    """Celery's filesystem backend reads the bytes that we stored, and we read those that it stored."""
    other = Celery("other", set_as_current=False, broker="memory://")
    other.conf.update(result_backend=f"file://{tmp_path}", result_compression="bzip2")
    app = counted(result_compression="gzip")
    ours = stored(app, ROWS)
    (tmp_path / f"celery-task-meta-{ours.id}").write_bytes(body_of(ours))
    assert other.AsyncResult(ours.id).get(timeout=5) == ROWS
    theirs = uuid()
    other.backend.store_result(theirs, ROWS, "SUCCESS")
    body = Path(tmp_path / f"celery-task-meta-{theirs}").read_bytes()
    assert body.startswith(COMPRESSED_PAYLOAD_MAGIC)
    app.backend.store.put(app.backend._full(app.backend.get_key_for_task(theirs)), body)
    assert app.AsyncResult(theirs).get(timeout=5) == ROWS
    other.close()


def test_arguments_of_messages(make_app, seaweed):
    """The objects of the claim check follow the same rule; what its reader knows makes no difference."""
    app = make_app(seaweed, task_compression="gzip")
    claimcheck.install(app)
    messages, others = messages_of(app), messages_of(make_app(seaweed))
    for content, compressed in ((json.dumps(ROWS).encode(), True), (os.urandom(200_000), False), (b"x" * 100, False)):
        pointer = messages.put(content, "application/json", removable=False)
        stored = app.backend.store.get(messages._prefix + pointer["object"]).body
        assert stored.startswith(COMPRESSED_PAYLOAD_MAGIC) == compressed
        assert others.get(pointer["object"], pointer["at"]) == content
