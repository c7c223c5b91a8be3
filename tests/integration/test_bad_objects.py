"""An object under a result's key that is no result: a clear error that names key and remedy, never PENDING."""

from __future__ import annotations

import gzip
import json
import pickle

import pytest
from celery.exceptions import BackendGetMetaError
from kombu.utils.uuid import uuid

from celery_s3.codec.compression import COMPRESSED_PAYLOAD_MAGIC
from celery_s3.errors import UnreadableResult

GOOD = {"status": "SUCCESS", "result": 1, "traceback": None, "children": []}


def failure(**exception):
    return json.dumps({"status": "FAILURE", "result": exception}).encode()


def packed(method, body):
    return COMPRESSED_PAYLOAD_MAGIC + method + b"\0" + body


BAD = {
    "empty": (b"", ""),
    "garbage": (b"\x00\xff garbage", ""),
    "text": (b"hello", "text/plain"),
    "HTML": (b"<html>Please log in</html>", "text/html"),
    "truncated": (json.dumps(GOOD).encode()[:-9], "application/json"),
    "null": (b"null", "application/json"),
    "a number": (b"1", "application/json"),
    "a list": (b'["status", "result"]', "application/json"),
    "no status": (b'{"result": 1}', "application/json"),
    "no result": (b'{"status": "SUCCESS"}', "application/json"),
    "deep": (b"[" * 100_000, "application/json"),
    "pickle, not accepted": (pickle.dumps(GOOD), "application/x-python-serialize"),
    "pickle, undeclared": (pickle.dumps(GOOD), "binary/octet-stream"),
    "declared as what it is not": (json.dumps(GOOD).encode(), "application/x-msgpack"),
    "compressed, unknown method": (packed(b"application/x-zopfli", b"?"), "application/json"),
    "compressed, broken": (packed(b"application/x-gzip", b"not zlib"), "application/json"),
    "compressed, no method": (COMPRESSED_PAYLOAD_MAGIC, "application/json"),
    "compressed by somebody else": (gzip.compress(json.dumps(GOOD).encode()), "application/json"),
    "no exception": (failure(exc_type="system", exc_message=["true"], exc_module="os"), "application/json"),
    "a function for an exception": (failure(exc_type="eval", exc_message=["1"], exc_module="builtins"), ""),
    "unhashable status": (b'{"status": [], "result": 1}', "application/json"),
    "status that is no text": (b'{"status": null, "result": 1}', "application/json"),
}


@pytest.fixture
def put(prefix):
    """``put(app, "garbage")``: the id of a result that is one of :data:`BAD`."""

    def store(app, name):
        id, (body, content_type) = uuid(), BAD[name]
        app.backend.store.put(f"{prefix}celery-task-meta-{id}", body, content_type=content_type)
        return id

    return store


@pytest.mark.parametrize("name", BAD)
def test_named(counted, put, prefix, name):
    """Whatever asks for it gets an error of Celery's kind with bucket, key, reason and remedy."""
    app = counted()
    id = put(app, name)
    result = app.AsyncResult(id)
    for use in (lambda: result.state, lambda: result.get(timeout=0), result.ready, result.successful):
        with pytest.raises(UnreadableResult) as caught:
            use()
        assert isinstance(caught.value, BackendGetMetaError)
        for part in (
            f"s3://{app.backend.settings.bucket}/{prefix}celery-task-meta-{id}",
            "result_serializer",
            "forget",
        ):
            assert part in str(caught.value)
        assert pickle.loads(pickle.dumps(caught.value)).task_id == id
    assert app.backend.task_result_exists(id)
    result.forget()
    assert result.state == "PENDING"


def test_it_is_not_carried_out(counted, put, monkeypatch):
    """A stored "exception" that names a function is not called."""
    app, called = counted(), []
    monkeypatch.setattr("os.system", called.append)
    with pytest.raises(UnreadableResult, match=r"SecurityError.*os\.system"):
        app.AsyncResult(put(app, "no exception")).get(timeout=0)
    assert called == []


@pytest.mark.parametrize("name", ["garbage", "pickle, not accepted", "no exception"])
@pytest.mark.parametrize("how", ["get", "join"])
def test_in_a_group(counted, put, stored, name, how):
    """In a group it is raised too, and names its key; the other members can still be fetched."""
    app = counted()
    bad = put(app, name)
    members = [stored(app, 1), app.AsyncResult(bad), stored(app, 3)]
    for propagate in (True, False):
        with pytest.raises(UnreadableResult, match=bad):
            getattr(app.GroupResult("g", members), how)(timeout=5, propagate=propagate)
    assert [members[0].get(timeout=0), members[2].get(timeout=0)] == [1, 3]


def test_as_a_parent(counted, put, stored):
    """As a parent of a result that is waited for it is raised as well."""
    app = counted()
    result = stored(app, 1)
    result.parent = app.AsyncResult(put(app, "garbage"))
    with pytest.raises(UnreadableResult, match=result.parent.id):
        result.get(timeout=5)


def test_large_garbage(counted, prefix):
    """A large object that is no result, too; one that claims to be a SUCCESS when its value is asked for."""
    app = counted()
    for metadata, state in (({}, None), ({"celery-state": "SUCCESS", "celery-children": "null"}, "SUCCESS")):
        result = app.AsyncResult(uuid())
        app.backend.store.put(f"{prefix}celery-task-meta-{result.id}", b"{" * 100_000, metadata=metadata)
        if state:
            assert result.state == state
        with pytest.raises(UnreadableResult, match=result.id):
            result.get(timeout=5)


@pytest.mark.parametrize("body", [b"", b"garbage", b"[]", b"{}", b'{"result": 1}', b'{"result": [1, 2]}', b"null"])
def test_bad_groups(counted, prefix, body):
    """So is an object under a group's key that is no group."""
    app, id = counted(), uuid()
    app.backend.store.put(f"{prefix}celery-taskset-meta-{id}", body, content_type="application/json")
    with pytest.raises(UnreadableResult, match=f"celery-taskset-meta-{id}.*result_serializer"):
        app.GroupResult.restore(id, backend=app.backend, app=app)


def test_bucket_that_is_not_there(make_app, seaweed):
    """A bucket that does not exist is an error at the first use, never PENDING."""
    app = make_app(seaweed, s3_backend_settings={"bucket": "no-such-bucket"})
    with pytest.raises(BackendGetMetaError, match=r"bucket does not exist.*Create it"):
        assert app.AsyncResult(uuid()).state


@pytest.mark.parametrize("meta", [{"lines": [1, 7]}, "disk full", 28])
def test_failure_with_a_meta_of_its_own(counted, stored, meta):
    """A FAILURE whose meta names no exception is one to its group, and Celery's ValueError to who wants its value."""
    app = counted()
    result = stored(app, meta, "FAILURE")
    group = app.GroupResult(uuid(), [stored(app, 1), app.AsyncResult(result.id)], app=app)
    assert (result.state, result.ready(), result.failed()) == ("FAILURE", True, True)
    assert (group.ready(), group.failed(), group.completed_count()) == (True, True, 1)
    for use in (result.get, lambda: result.result, lambda: group.get(timeout=10)):
        with pytest.raises(ValueError, match=f"{result.id} has stored FAILURE.*`exc_type` and `exc_message`") as caught:
            use()
        assert isinstance(caught.value, UnreadableResult)
