"""Results that are bytes: the preamble in front of them, and what is read of it."""

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


def with_preamble(value, content_type=JSON, **meta):
    meta = {"status": "SUCCESS", "result": len(value), **meta}
    return raw.preamble(pickle.dumps(meta) if content_type == PICKLE else json.dumps(meta), content_type) + value


@given(st.binary(max_size=300), st.text(max_size=50))
def test_round_trip(value, name):
    """Any bytes come back behind any meta, whose type the preamble tells whatever the object declares."""
    for content_type in (JSON, TYPED):
        meta = Decoder(JSON, {JSON, TYPED}).loads(with_preamble(value, content_type, name=name), raw.CONTENT_TYPE)
        assert meta == {"status": "SUCCESS", "result": value, "name": name}
        assert type(meta["result"]) is bytes


@given(st.binary(max_size=50), st.integers(0, 200))
def test_preamble_of_a_beginning(value, length):
    """The beginning of a body tells its preamble once all of it is there, where its bytes begin a little earlier."""
    body = with_preamble(value)
    start = len(body) - len(value)
    assert raw.preamble_of(body[:length]) == (body[:start] if length >= start else b"")
    assert raw.value_start(body[:length]) in ((start,) if length >= start else (0, start))
    assert raw.preamble_of(b"{" + body) == b""


def test_the_type_must_be_accepted():
    """The meta's type is no way round `accept_content`."""
    with pytest.raises(ContentDisallowed):
        Decoder(JSON, {JSON}).loads(with_preamble(b"x", YAML), raw.CONTENT_TYPE)


@pytest.mark.parametrize("content_type", [PICKLE, "application/data", "application/x-own"])
def test_only_plain_text_stands_before_bytes(content_type):
    """A preamble of a serializer that signs, encrypts or is not known vouches for nothing behind it: it is refused."""
    for accept in ({JSON, content_type}, None):
        with pytest.raises(DecodeError, match=f"{content_type}' does not stand before bytes"):
            Decoder(JSON, accept).loads(with_preamble(b"x", content_type), raw.CONTENT_TYPE)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (with_preamble(b"xyz")[:-1], "2 bytes are there, 3 were stored"),
        (with_preamble(b"xyz") + b"!", "4 bytes are there"),
        (with_preamble(b"xyz", status="FAILURE"), "no SUCCESS"),
        (raw.preamble("[3]", JSON) + b"xyz", "no SUCCESS"),
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
    """Bytes that begin with a preamble, or with the mark of compression, are bytes."""
    for value in (with_preamble(b"x"), COMPRESSED_PAYLOAD_MAGIC + b"application/x-gzip\x00"):
        assert Decoder(JSON, {JSON}).loads(with_preamble(value), raw.CONTENT_TYPE)["result"] == value


@given(st.binary(max_size=100))
def test_garbage(body):
    """Garbage behind the magic is a SUCCESS, a DecodeError or refused: never anything else."""
    with suppress(DecodeError, ContentDisallowed):
        assert Decoder(JSON, {JSON}).loads(raw.MAGIC + body, raw.CONTENT_TYPE)["status"] == "SUCCESS"
