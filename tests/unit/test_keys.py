"""Ids and keys, both directions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_s3 import keys

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
awkward = st.text(st.sampled_from(list("a/.%\\25FE \x00\x1f\x7f\x85é\ufffe~")), min_size=1, max_size=12)


@pytest.mark.parametrize(
    "id", ["3f2b0c1e-8d5a-4c8e-9f1d-0a2b3c4d5e6f", "a b", "a/b", "100%", "é", "a+b&c=d?e#f", "..", "%zz", "a.b/.c", "~"]
)
def test_plain_ids_stay(id):
    """An id that both clients and every server carry goes into the key as it is."""
    assert keys.encode_id(id) == id


@given(texts | awkward)
def test_round_trip(id):
    """Every id comes back from its key."""
    assert keys.decode_id(keys.encode_id(id)) == id


@given(texts | awkward)
def test_what_no_key_may_hold(id):
    """No encoded id holds a control character, a backslash, an empty segment or a dot segment after the first."""
    encoded = keys.encode_id(id)
    assert not any(ord(char) < 32 or char in "\x7f\\\ufffe\uffff" for char in encoded)
    assert not {"", ".", ".."} & set(encoded.split("/")[1:])


@given(awkward, awkward)
def test_two_ids_never_share_a_key(one, other):
    """Different ids have different keys."""
    assert (keys.encode_id(one) == keys.encode_id(other)) == (one == other)


def test_empty_id():
    """An empty id is refused."""
    with pytest.raises(ValueError, match="must not be empty"):
        keys.encode_id("")


def test_lone_surrogate():
    """An id that is no text is refused, and the message names it."""
    with pytest.raises(ValueError, match=r"\\ud800"):
        keys.encode_id("a\ud800")


def test_length_counts_bytes():
    """The limit is S3's 1,024 bytes of UTF-8, base and prefix included."""
    assert keys.full_key("base/", "x" * 1019)
    with pytest.raises(ValueError, match="1025 bytes, S3 allows 1024"):
        keys.full_key("base/", "x" * 1020)
    with pytest.raises(ValueError, match="S3 allows 1024"):
        keys.full_key("", "é" * 600)


def test_result_id():
    """A listing's key gives its id back; another key gives none."""
    prefix = "base/celery-task-meta-"
    assert keys.result_id(prefix + "a%2F", prefix) == "a/"
    assert keys.result_id(prefix, prefix) is None
    assert keys.result_id("base/celery-taskset-meta-x", prefix) is None


def test_foreign_escapes_are_left_alone():
    """A name that this package cannot have made is returned as it stands."""
    assert keys.decode_id("%FF") == "%FF"
