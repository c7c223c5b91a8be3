"""Serializers, what is accepted of them, and compression; also while a fleet changes from one to another."""

from __future__ import annotations

import datetime
import json
import warnings
from decimal import Decimal
from uuid import UUID

import celery
import pytest
from celery.exceptions import ImproperlyConfigured
from celery.result import GroupResult
from kombu.utils.uuid import uuid

from celery_s3.codec.compression import COMPRESSED_PAYLOAD_MAGIC
from celery_s3.errors import UnreadableResult

CELERY = tuple(map(int, celery.__version__.split(".")[:2]))
SERIALIZERS = ["json", "pickle", "yaml", "msgpack"]
VALUE = {"text": "é", "list": [1, 2.5, None, True], "nested": {"a": {"b": []}}}


def body_of(app, result):
    return app.backend.store.get(app.backend._full(app.backend.get_key_for_task(result.id)))


@pytest.mark.parametrize("serializer", SERIALIZERS)
def test_round_trip(counted, stored, serializer):
    """Each of kombu's serializers carries results, failures and groups; the object declares which it is."""
    app = counted(result_serializer=serializer, result_accept_content=[serializer])
    result = stored(app, VALUE)
    assert result.get(timeout=5) == VALUE
    assert body_of(app, result).content_type == app.backend.content_type
    with pytest.raises(KeyError, match="gone"):
        stored(app, KeyError("gone"), "FAILURE").get(timeout=5)
    group = app.GroupResult(uuid(), [result])
    group.save()
    assert GroupResult.restore(group.id, app=app, backend=app.backend) == group
    child = stored(app, 1, _children=[result])
    assert child.children == [result]


def test_kinds_of_values(counted, stored):
    """JSON carries what kombu's JSON does: dates, UUIDs, decimals."""
    app = counted()
    value = [datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), UUID(int=7), Decimal("1.10")]
    assert stored(app, value).get(timeout=5) == value


def test_body_is_readable_by_anybody(counted, stored):
    """The body is plain JSON, exactly the meta."""
    app = counted()
    result = stored(app, VALUE)
    found = body_of(app, result)
    meta = json.loads(found.body)
    assert (meta["status"], meta["result"], meta["task_id"]) == ("SUCCESS", VALUE, result.id)
    assert found.content_type == "application/json"


@pytest.mark.parametrize("old", SERIALIZERS)
@pytest.mark.parametrize("new", SERIALIZERS)
def test_rolling_change(counted, stored, old, new):
    """While a fleet changes its serializer, both halves read all results and groups, where they accept both."""
    accept = {"result_accept_content": SERIALIZERS}
    before, after = counted(result_serializer=old, **accept), counted(result_serializer=new, **accept)
    for writer, reader in ((before, after), (after, before)):
        assert reader.AsyncResult(stored(writer, VALUE).id).get(timeout=5) == VALUE
        with pytest.raises(KeyError, match="gone"):
            reader.AsyncResult(stored(writer, KeyError("gone"), "FAILURE").id).get(timeout=5)
        large = stored(writer, "x" * 100_000)
        stored(reader, KeyError("late"), "FAILURE", id=large.id)
        assert len(reader.AsyncResult(large.id).get(timeout=5)) == 100_000
        group = writer.GroupResult(uuid(), [large])
        group.save()
        assert GroupResult.restore(group.id, app=reader, backend=reader.backend).results[0].id == large.id
        started = stored(writer, {"pid": 1}, "STARTED")
        stored(reader, "done", id=started.id)
        assert writer.AsyncResult(started.id).get(timeout=5) == "done"


def test_not_accepted(counted, stored):
    """What `result_accept_content` does not allow is refused, however it is declared, and says what to allow."""
    result = stored(counted(result_serializer="pickle", result_accept_content=["pickle"]), VALUE)
    reader = counted(result_serializer="json", result_accept_content=["json"])
    with pytest.raises(UnreadableResult, match=r"pickle.*result_accept_content"):
        reader.AsyncResult(result.id).get(timeout=0)


def test_not_accepted_success_gives_way_to_a_success_only(counted, stored):
    """A SUCCESS that a process may not decode is final to it as well: its state stands beside the body."""
    writer = counted(result_serializer="pickle", result_accept_content=["pickle"])
    result = stored(writer, VALUE)
    other = counted(result_serializer="json", result_accept_content=["json"])
    stored(other, KeyError("late"), "FAILURE", id=result.id)
    stored(other, "late", id=result.id)
    assert writer.AsyncResult(result.id).get(timeout=5) == VALUE


def test_accept_content_without_result_accept_content(counted, stored):
    """`accept_content` counts where `result_accept_content` says nothing."""
    app = counted(result_serializer="pickle", accept_content=["pickle", "json"])
    assert stored(app, VALUE).get(timeout=5) == VALUE


# -- compression


@pytest.mark.parametrize("method", ["gzip", "bzip2", "lzma", "application/x-gzip"])
@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_compression(counted, stored, method, serializer):
    """`result_compression` makes the body small, on every Celery, and names the method in it."""
    app = counted(result_compression=method, result_serializer=serializer, result_accept_content=[serializer])
    result = stored(app, "x" * 50_000)
    found = body_of(app, result)
    assert found.size < 2_000
    assert found.body.startswith(COMPRESSED_PAYLOAD_MAGIC)
    assert result.get(timeout=5) == "x" * 50_000
    with pytest.raises(KeyError, match="gone"):
        stored(app, KeyError("gone"), "FAILURE").get(timeout=5)
    group = app.GroupResult(uuid(), [result])
    group.save()
    assert GroupResult.restore(group.id, app=app, backend=app.backend) == group


def test_compression_comes_and_goes(counted, stored):
    """Results are read whether they were compressed or not, whatever the reader's own setting."""
    plain, gzipped, bzipped = counted(), counted(result_compression="gzip"), counted(result_compression="bzip2")
    value = [VALUE] * 100
    for writer in (plain, gzipped, bzipped):
        for reader in (plain, gzipped, bzipped):
            assert reader.AsyncResult(stored(writer, value).id).get(timeout=5) == value


def test_compressed_failure_with_odd_arguments(counted, stored):
    """An exception whose arguments no serializer takes is one with compression, too."""
    app = counted(result_compression="gzip")
    with pytest.raises(ValueError, match="object"):
        stored(app, ValueError(object, "x" * 5000), "FAILURE").get(timeout=5)


def test_unknown_compression(counted):
    """An unknown method is refused when the backend is made, with those that there are."""
    with pytest.raises(ImproperlyConfigured, match=r"'zopfli'[\s\S]*gzip"):
        counted(result_compression="zopfli")


@pytest.mark.skipif(CELERY < (5, 7), reason="this Celery has no compression of its own")
def test_celerys_own_compression_is_ours(counted, stored):
    """Celery's own decoder reads what we compressed, and we what its encoder did."""
    from celery.backends.base import compress_payload, decompress_payload

    app = counted(result_compression="gzip")
    result = stored(app, [VALUE] * 100)
    found = body_of(app, result)
    assert found.body.startswith(COMPRESSED_PAYLOAD_MAGIC)
    assert json.loads(decompress_payload(found.body))["result"] == [VALUE] * 100
    app.backend.store.put(found.key, compress_payload(json.dumps({"status": "SUCCESS", "result": 2}), "lzma"))
    assert app.AsyncResult(result.id).get(timeout=5) == 2


def test_no_warning_of_compression(counted):
    """Nobody is told that this backend could not compress."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert counted(result_compression="gzip").backend.compression == "gzip"
