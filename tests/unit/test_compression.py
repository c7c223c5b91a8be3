"""What is compressed and what is not, that everybody can read it, and what the names of messages tell."""

from __future__ import annotations

import json
import os
import tracemalloc
from contextlib import suppress

import pytest
from celery import Celery, states
from celery.exceptions import ImproperlyConfigured
from hypothesis import given
from hypothesis import strategies as st
from kombu import compression as registry
from kombu.exceptions import DecodeError

from celery_s3.codec.compression import (
    COMPRESSED_PAYLOAD_MAGIC,
    SAMPLED,
    compress_payload,
    compression_method,
    decompress_payload,
)
from celery_s3.errors import NotDecompressed, UnreadableResult
from celery_s3.store.memory import MemoryStore

METHODS = sorted(registry.encoders())
ROWS = json.dumps([{"id": number, "name": f"customer {number % 7}"} for number in range(200)]).encode()


def packed(payload, method="gzip", threshold=0):
    return b"".join(compress_payload(payload, method, threshold))


def is_packed(body):
    return body.startswith(COMPRESSED_PAYLOAD_MAGIC)


# -- bombs


@pytest.mark.parametrize("method", METHODS)
def test_a_bomb(method):
    """No more comes out of it than is allowed, and what is refused takes no memory."""
    body = COMPRESSED_PAYLOAD_MAGIC + method.encode() + b"\0" + registry.compress(bytes(20_000_000), method)[0]
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError, match=r"more than 2,000,000 bytes .* `decompression_limit`"):
            decompress_payload(body, 2_000_000)
        assert tracemalloc.get_traced_memory()[1] < 15_000_000
    finally:
        tracemalloc.stop()
    assert len(decompress_payload(body, 20_000_000)) == 20_000_000


@pytest.mark.parametrize("method", METHODS)
def test_the_bound_is_exact(method, monkeypatch):
    """As many bytes as are allowed come out, and a hundred times those stored always do; cut streams do not."""
    head = COMPRESSED_PAYLOAD_MAGIC + method.encode() + b"\0"
    body = head + registry.compress(bytes(1_000_000), method)[0]
    assert len(decompress_payload(body, 1_000_000)) == 1_000_000
    with pytest.raises(DecodeError):
        decompress_payload(body, 999_999)
    with pytest.raises(DecodeError):
        decompress_payload(body[:-1])
    noise = head + registry.compress(os.urandom(100_000) * 2, method)[0]
    assert len(decompress_payload(noise, 0)) == 200_000


def test_what_nobody_would_decompress_is_not_compressed(monkeypatch):
    """An honest result never meets the bound."""
    monkeypatch.setattr("celery_s3.codec.compression.LIMIT", 1_000_000)
    assert is_packed(packed(bytes(1_000_000), "bzip2"))
    assert not is_packed(packed(bytes(1_000_001), "bzip2"))


def test_two_streams():
    """One behind the other, as some compressors write them, are one payload."""
    body = registry.compress(b"a" * 1000, "bzip2")[0] + registry.compress(b"b" * 1000, "bzip2")[0]
    assert decompress_payload(COMPRESSED_PAYLOAD_MAGIC + b"application/x-bz2\0" + body) == b"a" * 1000 + b"b" * 1000


# -- what is compressed


@pytest.mark.parametrize("method", METHODS)
def test_round_trip(method):
    """A compressed payload names its method, is smaller, and is restored by anyone."""
    body = packed(ROWS, method)
    assert body.startswith(COMPRESSED_PAYLOAD_MAGIC + method.encode() + b"\0")
    assert len(body) < len(ROWS) / 5
    assert decompress_payload(body) == ROWS


@given(
    st.binary(max_size=500) | st.binary(max_size=500).map(lambda body: COMPRESSED_PAYLOAD_MAGIC + body),
    st.integers(1, 20),
    st.sampled_from(METHODS),
    st.integers(0, 1000),
)
def test_any_bytes(body, times, method, threshold):
    """Whatever the bytes, the method and the threshold, they come back, also where they look like compressed ones."""
    assert decompress_payload(packed(body * times, method, threshold)) == body * times


@given(st.binary(max_size=200), st.sampled_from(METHODS))
def test_garbage(body, method):
    """Garbage behind the marker, with a method's name or without, is a DecodeError and nothing else."""
    with suppress(DecodeError):
        decompress_payload(COMPRESSED_PAYLOAD_MAGIC + body)
    with suppress(DecodeError):
        decompress_payload(COMPRESSED_PAYLOAD_MAGIC + method.encode() + b"\0" + body)


def test_threshold():
    """From the threshold on, and not below it."""
    assert packed(ROWS, threshold=len(ROWS) + 1) == ROWS
    assert is_packed(packed(ROWS, threshold=len(ROWS)))


def test_text_counts_in_bytes():
    """The threshold is one of bytes, whatever the serializer makes."""
    assert is_packed(packed("é" * 600, threshold=1000))
    assert packed("x" * 600, threshold=1000) == b"x" * 600


@pytest.mark.parametrize("method", METHODS)
def test_what_does_not_become_smaller_stays(method):
    """Without a tenth saved the payload is stored as it is."""
    noise = os.urandom(5000)
    assert packed(noise, method) == noise


def test_it_is_not_joined():
    """A compressed payload comes in pieces, so that a large one need not be copied."""
    head, body = compress_payload(ROWS, "gzip", 0)
    assert head == COMPRESSED_PAYLOAD_MAGIC + b"application/x-gzip\0"
    assert registry.decompress(body, "gzip") == ROWS
    assert compress_payload(ROWS, "gzip", 1_000_000)[0] is ROWS


@pytest.fixture
def work(monkeypatch):
    """The sizes of what is compressed."""
    sizes, (encode, name) = [], registry.get_encoder("gzip")

    def counting(body):
        sizes.append(len(body))
        return encode(body)

    monkeypatch.setitem(registry._encoders, name, counting)
    return sizes


def test_a_large_payload_is_tried_with_a_sample(work):
    """Of what cannot be compressed only a small part is tried, which tells enough."""
    noise = os.urandom(2 * SAMPLED)
    assert packed(noise) == noise
    assert sum(work) <= SAMPLED / 16
    work.clear()
    rows = ROWS * (2 * SAMPLED // len(ROWS))
    assert is_packed(packed(rows))
    assert sum(work) <= len(rows) + SAMPLED / 16


def test_the_sample_is_from_all_over(work):
    """A large payload that begins with noise is compressed where most of it can be."""
    assert is_packed(packed(os.urandom(SAMPLED // 4) + ROWS * (3 * SAMPLED // len(ROWS))))


# -- methods


@pytest.fixture
def without_zstd(monkeypatch):
    """A process without the package that kombu needs for zstd."""
    for table in (registry._encoders, registry._decoders):
        monkeypatch.delitem(table, "application/zstd", raising=False)
    for alias in ("zstd", "zstandard"):
        monkeypatch.delitem(registry._aliases, alias, raising=False)


def test_unknown_method():
    """An unknown method is named, with what there is and the setting that names it."""
    with pytest.raises(ImproperlyConfigured, match=r"result_compression is 'gzap'.*use gzip, "):
        compression_method("gzap")
    with pytest.raises(ImproperlyConfigured, match="task_compression is 'gzap'"):
        compression_method("gzap", "task_compression")
    assert compression_method(None) is None
    assert compression_method("gzip") == "gzip"


@pytest.mark.parametrize("name", ["zstd", "zstandard", "application/zstd"])
def test_missing_package(without_zstd, name):
    """A method whose package is missing is an error at the start, with what to install."""
    with pytest.raises(ImproperlyConfigured, match=r"pip install 'celery-s3\[zstd\]'"):
        compression_method(name)


# -- the backend


@pytest.fixture
def make():
    """``make(**conf)``: a backend; it asks nobody anything."""
    apps = []

    def backend(**conf):
        app = Celery("unit", set_as_current=False, broker="memory://")
        app.conf.update({"result_backend": "celery_s3.backends.S3Backend", "s3_bucket": "memory", **conf})
        apps.append(app)
        return app.backend

    yield backend
    for app in apps:
        app.close()


def meta(value):
    return {"status": states.SUCCESS, "result": value, "traceback": None, "children": [], "task_id": "id"}


@pytest.mark.parametrize("method", METHODS)
def test_the_backends_threshold(make, method):
    """A backend compresses from 4 KiB on, or from what `compression_threshold` says."""
    backend = make(result_compression=method)
    assert is_packed(backend.encode(meta("x" * 4096)))
    assert backend.encode(meta("x" * 1000)) == make().encode(meta("x" * 1000)).encode()
    low = make(result_compression=method, s3_backend_settings={"compression_threshold": 500})
    assert is_packed(low.encode(meta("x" * 1000)))
    assert make().decode(low.encode(meta("x" * 1000))) == meta("x" * 1000)


@pytest.mark.parametrize("helps", [True, False])
def test_raw_bytes_are_kept_once(make, helps):
    """Bytes that do not become smaller are stored behind their preamble, not in a copy that holds both."""
    value = b"x" * 100_000 if helps else os.urandom(100_000)
    pieces = make(result_compression="gzip")._encoder._with_preamble(b"frame", value)
    assert (pieces[1] is value) == (not helps)
    assert is_packed(pieces[0]) == helps


def test_nothing_changes_without_it(make):
    """Without `result_compression` a body is what Celery's base class makes of it, whatever its size."""
    backend = make(s3_backend_settings={"compression_threshold": 0})
    for value in ("", "x" * 100_000):
        assert backend.encode(meta(value)) == backend._encode(meta(value))[2]


def test_refused_at_the_start(make, without_zstd):
    """An app whose method is missing is told when its backend is made, on every Celery, by our words."""
    with pytest.raises(ImproperlyConfigured, match=r"celery-s3\[zstd\]"):
        make(result_compression="zstd")


def test_a_reader_without_the_package(make, without_zstd):
    """A reader that lacks the package is told which, and that nothing is lost; forgetting it is no remedy."""
    backend, store = make(), MemoryStore()
    backend.results.store = store
    store.put("celery-task-meta-one", COMPRESSED_PAYLOAD_MAGIC + b"application/zstd\0body")
    with pytest.raises(UnreadableResult) as caught:
        backend.get_task_meta("one")
    for part in ("s3://memory/celery-task-meta-one", "'application/zstd'", "'celery-s3[zstd]'", "stays"):
        assert part in str(caught.value)
    assert "forget" not in str(caught.value)
    assert isinstance(caught.value.__cause__, NotDecompressed)


def test_a_method_of_the_applications_own():
    """Who registers one may rely on kombu's contract: it is given bytes."""
    from kombu import compression

    def unpack(body):
        return body.removeprefix(b"own:") * 10

    compression.register(lambda body: b"own:" + body[: len(body) // 10], unpack, "application/x-own", aliases=["own"])
    body = b"a" * 10_000
    assert decompress_payload(b"".join(compress_payload(body, "own", 0))) == body
