"""What is in an object and beside it."""

import json
import pickle
from contextlib import suppress
from datetime import datetime
from types import SimpleNamespace
from uuid import UUID

import pytest
from celery.result import AsyncResult
from hypothesis import given
from hypothesis import strategies as st
from kombu import serialization
from kombu.exceptions import ContentDisallowed, DecodeError

from celery_s3.codec import kombu_json, raw
from celery_s3.codec.compression import COMPRESSED_PAYLOAD_MAGIC
from celery_s3.codec.decoding import Decoder
from celery_s3.codec.encoding import Encoder
from celery_s3.codec.lazy import LazyMeta
from celery_s3.metadata import children_in, result_metadata, state_of

JSON = "application/json"
PICKLE = "application/x-python-serialize"
META = {"status": "SUCCESS", "result": [1, "é"]}


def test_metadata_round_trip():
    """State and children come back from the user metadata."""
    stored = result_metadata("PROGRÈS 50%", "proj.tasks.add", [[["child", None], None]])
    assert state_of(stored) == "PROGRÈS 50%"
    assert children_in(stored) == {"children": [[["child", None], None]]}


@given(st.text(max_size=900), st.text(max_size=900), st.lists(st.text(max_size=40), max_size=60))
def test_metadata_fits_in_headers(state, task, children):
    """Whatever the state, the task's name and the children are: ASCII, printable, within S3's 2 KB."""
    stored = result_metadata(state, task, children)
    assert all(value.isascii() and value.isprintable() and value == value.strip() for value in stored.values())
    assert sum(len(name) + len(value) for name, value in stored.items()) <= 2048


def test_no_children_is_not_unknown_children():
    """Children ``None`` is an answer; no metadata is none."""
    assert children_in(result_metadata("SUCCESS")) == {"children": None}
    assert children_in({}) == {}
    assert children_in({"celery-children": "garbage"}) == {}


def test_many_children_are_left_to_the_body():
    """A list of children that is too long for a header is left out rather than cut."""
    assert children_in(result_metadata("SUCCESS", None, ["x" * 40] * 100)) == {}


def test_foreign_object_has_no_state():
    """An object of another writer tells no state."""
    assert state_of({}) is None


def test_declared_type_wins():
    """A body is decoded by the serializer its object declares, where that is accepted."""
    assert Decoder(JSON, {JSON, PICKLE}).loads(pickle.dumps(META), PICKLE) == META
    assert Decoder(JSON, {JSON}).loads(json.dumps(META).encode(), "binary/octet-stream") == META


def test_declared_type_must_be_accepted():
    """A declared type is no way round ``accept_content``."""
    with pytest.raises(ContentDisallowed):
        Decoder(JSON, {JSON}).loads(pickle.dumps(META), PICKLE)


@given(st.binary(min_size=1, max_size=200))
def test_garbage(body):
    """Garbage is what JSON makes of it, or raises kombu's DecodeError: never anything else."""
    with suppress(DecodeError):
        found = Decoder(JSON, {JSON}).loads(body, "")
        assert repr(found) == repr(json.loads(body.decode()))


# -- encoding


def encoder(compression=None, content_type=JSON, threshold=100):
    return Encoder(lambda data: dumps(data, content_type=content_type), content_type, compression, threshold)


def dumps(data, content_type=JSON):
    return json.dumps(data) if content_type == JSON else pickle.dumps(data)


@pytest.mark.parametrize("content_type", [JSON, PICKLE])
def test_a_body_is_what_the_serializer_makes(content_type):
    """Nothing is added to a body, and text becomes UTF-8."""
    payload = dumps(META, content_type)
    body = payload.encode() if content_type == JSON else payload
    assert encoder(content_type=content_type).body(META) == (body, content_type)
    assert encoder(content_type=content_type).payload(META) == payload


@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize("value", [b"", b"\xff" * 500, [1, "é"], "x" * 500])
def test_encoded_and_decoded(compression, value):
    """Whatever was encoded is decoded to the same meta, which encoding leaves as it is."""
    meta = {**META, "result": value}
    body, content_type = encoder(compression).body(meta)
    assert meta["result"] is value
    assert (content_type == raw.CONTENT_TYPE) == isinstance(value, bytes)
    assert body.startswith(COMPRESSED_PAYLOAD_MAGIC) == bool(compression and len(value) == 500)
    assert Decoder(JSON, {JSON}).loads(body, content_type) == meta


def test_bytes_where_the_serializer_keeps_them():
    """A serializer that may sign, encrypt or keep bytes is given them; those of a failure are no value."""
    bytes_in = {**META, "result": b"value"}
    assert encoder(content_type=PICKLE).body(bytes_in) == (pickle.dumps(bytes_in), PICKLE)
    with pytest.raises(TypeError):
        encoder().body({**bytes_in, "status": "PROGRESS"})


# -- large metas


@pytest.fixture
def lazy():
    loads = []

    def load():
        loads.append(1)
        return {"status": "SUCCESS", "result": 42, "children": [], "traceback": None}

    meta = LazyMeta({"status": "SUCCESS", "children": None}, load)
    return meta, loads


def test_lazy_meta_knows_without_loading(lazy):
    """State and children are answered without the body."""
    meta, loads = lazy
    assert meta["status"] == "SUCCESS"
    assert meta.get("children", 1) is None
    assert "body not fetched" in repr(meta)
    assert loads == []


def test_lazy_meta_loads_once(lazy):
    """The body is fetched once, when something in it is asked for, and what a caller set stays."""
    meta, loads = lazy
    meta["children"] = ["mine"]
    assert meta["result"] == meta.get("result") == 42
    assert meta["children"] == ["mine"]
    assert meta.get("nothing") is None
    with pytest.raises(KeyError):
        meta["nothing"]
    assert set(meta) == set(meta.keys()) == {"status", "result", "children", "traceback"}
    assert len(meta) == len(meta.values()) == len(meta.items()) == 4
    assert loads == [1]


def test_lazy_meta_kept_by_celery():
    """Celery, which makes results of a meta's children when it is given one, is no reason to fetch them; others are."""
    loads = []

    def load():
        loads.append(1)
        return {"status": "SUCCESS", "result": 42, "children": ["mine"]}

    meta, result = LazyMeta({"status": "SUCCESS"}, load), SimpleNamespace(app=None)
    AsyncResult._set_cache(result, meta)
    assert (result._cache, loads) == (meta, [])
    assert (result._cache.get("children"), loads) == (["mine"], [1])


def test_lazy_meta_tells_the_state_of_its_body():
    """A state that was not final may have become another one by the time its value is fetched: they go together."""
    meta = LazyMeta({"status": "PROGRESS"}, lambda: {"status": "SUCCESS", "result": 42})
    assert (meta["status"], meta["result"], meta["status"]) == ("PROGRESS", 42, "SUCCESS")


def test_lazy_meta_is_compared_and_joined_like_a_dict():
    """Comparing and joining see the whole meta."""
    whole = {"status": "SUCCESS", "result": 42}
    lazy = lambda: LazyMeta({"status": "SUCCESS"}, lambda: whole)  # noqa: E731
    assert lazy() == whole
    assert (lazy() != whole, whole != lazy()) == (False, False)
    assert lazy() != {"status": "SUCCESS"}
    assert lazy() | {"a": 1} == whole | {"a": 1}
    assert {"a": 1} | lazy() == whole | {"a": 1}


def test_lazy_meta_loses_what_is_deleted(lazy):
    """What was deleted before it was fetched is not there any more afterwards."""
    meta, loads = lazy
    del meta["result"]
    assert "result" not in meta
    assert set(meta) == {"status", "children", "traceback"}
    meta.clear()
    assert (dict(meta), len(meta), loads) == ({}, 0, [1])


def test_lazy_meta_cleared_is_empty(lazy):
    """Nothing is fetched for a meta that was cleared."""
    meta, loads = lazy
    meta.clear()
    assert (dict(meta), loads) == ({}, [])


def test_lazy_meta_is_changed_like_a_dict(lazy):
    """What takes things out of a dict finds what has not been fetched yet."""
    meta, _ = lazy
    assert meta.setdefault("result", None) == 42
    assert meta.pop("result") == 42
    assert "result" not in meta
    assert "traceback" in list(reversed(meta))
    meta.popitem()
    assert len(meta) == 2


@pytest.mark.parametrize(
    "use", [dict, lambda m: m.copy(), lambda m: dict(m.items()), lambda m: pickle.loads(pickle.dumps(m))]
)
def test_lazy_meta_as_a_dict(lazy, use):
    """Copying and pickling give the whole meta."""
    meta, _ = lazy
    assert use(meta)["result"] == 42
    assert meta == use(meta)


def outcome(fn, *args, **kwargs):
    """What a call returns, or the type and text of its error and of what that was made of."""
    try:
        return fn(*args, **kwargs)
    except Exception as exc:
        return type(exc), str(exc), type(exc.__context__)


@pytest.mark.parametrize(
    "value", [{"a": [1, None, "ä"]}, UUID(int=7), b"\xff", datetime(2026, 1, 2), {1}, object(), "\ud800"]
)
def test_json_is_kombus(value):
    """One encoder for all calls makes what kombu's own makes, and fails as that does."""
    theirs = outcome(lambda: serialization.dumps(value, serializer="json")[2])
    assert outcome(kombu_json.dumps, value, "json") == theirs


@pytest.mark.parametrize("accept", [None, {"application/json"}, set()])
@pytest.mark.parametrize(
    "payload",
    [
        b'{"a": {"__type__": "uuid", "__value__": {"hex": "00"}}}',
        b'{"__type__": "x", "__value__": 1}',
        "[1]",
        b"\xff",
        b"\xef\xbb\xbf1",
        b"[",
        b"",
    ],
)
def test_json_is_read_as_kombu_reads_it(payload, accept):
    """One decoder for all calls reads what kombu's own reads, refuses what it refuses, and fails as it does."""
    how = {"content_type": "application/json", "content_encoding": "utf-8", "accept": accept}
    theirs, ours = (
        outcome(serialization.loads, payload, **how),
        outcome(kombu_json.loads, payload, "application/json", accept),
    )
    assert ours[:1] + ours[2:] == theirs[:1] + theirs[2:] if isinstance(theirs, tuple) else ours == theirs


def test_an_applications_own_json(monkeypatch):
    """Who registers another serializer under the name gets that one."""
    monkeypatch.setitem(kombu_json.ENCODERS, "json", serialization.codec("application/json", "utf-8", lambda _: "own"))
    monkeypatch.setitem(kombu_json.DECODERS, "application/json", lambda _: "own")
    assert kombu_json.dumps(1, "json") == "own"
    assert kombu_json.loads(b"1", "application/json", {"application/json"}) == "own"
