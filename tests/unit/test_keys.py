"""Ids and keys, both directions."""

import re

import pytest
from celery.backends.base import KeyValueStoreBackend
from hypothesis import given
from hypothesis import strategies as st

from celery_s3 import keys
from celery_s3.keys import Layout

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


layouts = st.builds(
    Layout,
    st.sampled_from(["", "base/", "a//", "celery-files/"]),
    st.sampled_from(["", "blue_", "celery-chords/", "ü."]),
)
digests, randoms = (st.text("0123456789abcdef", min_size=size, max_size=size) for size in (64, 32))


@given(layouts, texts | awkward)
def test_results_and_groups(layout, id):
    """The key of a result, and of a saved group, gives its id back; the two never meet."""
    assert layout.parse(layout.result_key(id)) == (keys.RESULTS, id, "")
    assert layout.parse(layout.group_key(id)) == (keys.GROUPS, id, "")


@given(layouts, texts | awkward, texts | awkward)
def test_chords(layout, id, member):
    """Every object of a chord tells the id of its group and what it is, whatever both ids hold."""
    added = f"added/{keys.encode_segment(member)}"
    for rest in ("manifest", "claim", "0/0", "1/12", f"now/{'0a' * 16}", added):
        assert layout.parse(layout.chords + keys.chord_folder(id) + rest) == (keys.CHORDS, id, rest)
    assert keys.decode_id(added.rpartition("/")[2]) == member


@given(layouts, st.none() | texts | awkward, randoms)
def test_files(layout, owner, random):
    """A file's key tells its folder, which is the task's id where that is a plain name; no id has that of no task."""
    key = layout.files + keys.file_folder(owner) + random
    found = layout.parse(key)
    assert (found.kind, f"{found.id}/", found.rest) == (keys.FILES, keys.file_folder(owner), random)
    assert key.startswith(layout.sent) == (owner is None)
    if owner is not None and re.fullmatch("[A-Za-z0-9-]{1,60}", owner) and owner[0] != "-":
        assert found.id == owner


@given(layouts, digests, randoms | st.just(""))
def test_messages(layout, digest, random):
    """A message's key gives back its digest, and what makes it one message's own."""
    assert layout.parse(layout.messages + keys.message_name(digest, random)) == (keys.MESSAGES, digest, random)


@given(layouts, randoms, st.sampled_from(["object", "missing", "delete-1", "plain-000001"]))
def test_scratch_objects(layout, run, name):
    """What `doctor` and `bench` write is known by its key."""
    assert layout.parse(layout.doctor_key(run, name)) == (keys.DOCTOR, run, name)
    assert layout.parse(layout.bench_key(run, name)) == (keys.BENCH, run, name)


@given(layouts)
def test_single_objects(layout):
    """The probe and the mark of the last mending have one key each."""
    assert layout.parse(layout.probe) == (keys.PROBE, "", "")
    assert layout.parse(layout.mended) == (keys.MENDED, "", "")


def test_every_kind_has_a_round_trip():
    """A new kind of object needs a test above."""
    tested = {"results", "groups", "chords", "files", "messages", "doctor", "bench", "probe", "mended"}
    assert {kind.name for kind in keys.KINDS} == tested


@pytest.mark.parametrize(
    "key",
    [
        "",
        "base/",
        "celery-task-meta-id",
        "base/celery-task-meta-",
        "base/celery-s3-probe-else",
        "base/celery-chords/group/",
        "base/celery-chords/2025/letter.pdf",
        "base/celery-chords/2025/11/29/letter.pdf",
        "base/celery-chords/group/manifest/letter.pdf",
        "base/celery-chords/group/now/letter.pdf",
        "base/celery-chords/group/0/01",
        "base/celery-chords-repaired-else",
        "base/celery-files/id/report.pdf",
        "base/celery-files/" + "0" * 32,
        "base/celery-messages/hello",
        f"base/celery-messages/{'0' * 64}.1",
    ],
)
def test_other_keys(key):
    """What is none of ours is told so, wherever it stands."""
    assert Layout("base/").parse(key) is None


def test_too_long():
    """An id for which there is no room is refused, whatever its kind."""
    for build in (Layout("base/").result_key, Layout("base/").group_key):
        with pytest.raises(ValueError, match="S3 allows 1024"):
            build("x" * 1024)


def test_names_of_celery():
    """Results and groups stand where Celery's own backends put them."""
    assert keys.RESULTS.start == KeyValueStoreBackend.task_keyprefix
    assert keys.GROUPS.start == KeyValueStoreBackend.group_keyprefix


def test_every_key_is_documented():
    """The page of keys, which is the module's docstring, shows each kind."""
    assert [kind.name for kind in keys.KINDS if f">{kind.start}" not in keys.__doc__] == []


def test_foreign_escapes_are_left_alone():
    """A name that this package cannot have made is returned as it stands."""
    assert keys.decode_id("%FF") == "%FF"
