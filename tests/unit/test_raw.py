"""Results that are bytes: the frame in front of them, and what is read of it."""

from __future__ import annotations

import json
import pickle
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.exceptions import ContentDisallowed, DecodeError

from celery_s3.codec import raw
from celery_s3.codec.compression import COMPRESSED_PAYLOAD_MAGIC
from celery_s3.codec.decoding import Decoder

JSON, PICKLE = "application/json", "application/x-python-serialize"
YAML, TYPED = "application/x-yaml", "application/x-typed+json"


def framed(value, content_type=JSON, **meta):
    meta = {"status": "SUCCESS", "result": len(value), **meta}
    return raw.frame(pickle.dumps(meta) if content_type == PICKLE else json.dumps(meta), content_type) + value


@given(st.binary(max_size=300), st.text(max_size=50))
def test_round_trip(value, name):
    """Any bytes come back behind any meta, whose type the frame tells whatever the object declares."""
    for content_type in (JSON, TYPED):
        meta = Decoder(JSON, {JSON, TYPED}).loads(framed(value, content_type, name=name), raw.CONTENT_TYPE)
        assert meta == {"status": "SUCCESS", "result": value, "name": name}
        assert type(meta["result"]) is bytes


@given(st.binary(max_size=50), st.integers(0, 200))
def test_frame_of_a_beginning(value, length):
    """The beginning of a body tells its frame once all of it is there, and where its bytes begin a little earlier."""
    body = framed(value)
    start = len(body) - len(value)
    assert raw.frame_of(body[:length]) == (body[:start] if length >= start else b"")
    assert raw.value_start(body[:length]) in ((start,) if length >= start else (0, start))
    assert raw.frame_of(b"{" + body) == b""


def test_the_type_must_be_accepted():
    """The meta's type is no way round `accept_content`."""
    with pytest.raises(ContentDisallowed):
        Decoder(JSON, {JSON}).loads(framed(b"x", YAML), raw.CONTENT_TYPE)


@pytest.mark.parametrize("content_type", [PICKLE, "application/data", "application/x-own"])
def test_only_plain_text_stands_before_bytes(content_type):
    """A frame of a serializer that signs, encrypts or is not known vouches for nothing behind it: it is refused."""
    for accept in ({JSON, content_type}, None):
        with pytest.raises(DecodeError, match=f"{content_type}' does not stand before bytes"):
            Decoder(JSON, accept).loads(framed(b"x", content_type), raw.CONTENT_TYPE)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (framed(b"xyz")[:-1], "2 bytes are there, 3 were stored"),
        (framed(b"xyz") + b"!", "4 bytes are there"),
        (framed(b"xyz", status="FAILURE"), "no SUCCESS"),
        (raw.frame("[3]", JSON) + b"xyz", "no SUCCESS"),
        (raw.MAGIC, "cut, or garbage"),
        (raw.MAGIC + b"application/json", "cut, or garbage"),
        (raw.MAGIC + b"application/json\x00\xff\xff\xff\xff{}", "cut, or garbage"),
    ],
)
def test_what_does_not_belong_together(body, why):
    """A body that was cut, that has grown, or that is no SUCCESS, is an error and never a value."""
    with pytest.raises(DecodeError, match=why):
        Decoder(JSON, {JSON}).loads(body, raw.CONTENT_TYPE)


def test_bytes_that_look_like_ours():
    """Bytes that begin with a frame, or with the mark of compression, are bytes."""
    for value in (framed(b"x"), COMPRESSED_PAYLOAD_MAGIC + b"application/x-gzip\x00"):
        assert Decoder(JSON, {JSON}).loads(framed(value), raw.CONTENT_TYPE)["result"] == value


@given(st.binary(max_size=100))
def test_garbage(body):
    """Garbage behind the magic is a DecodeError or refused: never anything else."""
    with suppress(DecodeError, ContentDisallowed):
        Decoder(JSON, {JSON}).loads(raw.MAGIC + body, raw.CONTENT_TYPE)
