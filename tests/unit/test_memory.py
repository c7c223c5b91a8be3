"""The bucket in memory keeps S3's rules."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from celery_s3.errors import BadRequest, Interrupted, ObjectMissing, PreconditionFailed, Throttled
from celery_s3.store.api import CREATE, Match
from celery_s3.store.memory import Fault, MemoryStore
from celery_s3.store.requests import Delete, DeleteMany, DeleteUnchanged


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(clock=lambda: 1_700_000_000.9)


def test_what_was_put_is_got(store):
    """Body, metadata with lower-case names, type, size, a quoted etag and a time in whole seconds come back."""
    etag = store.put("k", b"body", metadata={"State": "SUCCESS"}, content_type="text/plain")
    found = store.get("k")
    assert (found.body, found.size, found.complete, found.etag) == (b"body", 4, True, etag)
    assert etag.startswith('"')
    assert etag.endswith('"')
    assert found.metadata == {"state": "SUCCESS"}
    assert found.content_type == "text/plain"
    assert found.modified == datetime.fromtimestamp(1_700_000_000, UTC)


def test_etag_is_of_the_content(store):
    """Equal bytes have equal etags, others have others: an old If-Match passes over equal bytes."""
    assert store.put("a", b"1") == store.put("b", b"1") != store.put("a", b"2")


def test_create_writes_only_where_nothing_is(store):
    """A create is refused where an object stands, and succeeds again after a delete."""
    store.put("k", b"1", precondition=CREATE)
    with pytest.raises(PreconditionFailed):
        store.put("k", b"2", precondition=CREATE)
    assert store.get("k").body == b"1"
    store.delete("k")
    store.put("k", b"3", precondition=CREATE)
    assert store.get("k").body == b"3"


def test_match_writes_only_over_its_version(store):
    """A replacement is refused over another version and where there is none."""
    etag = store.put("k", b"1")
    store.put("k", b"2", precondition=Match(etag))
    for key in ("k", "absent"):
        with pytest.raises(PreconditionFailed):
            store.put(key, b"3", precondition=Match(etag))


def test_without_conditional_writes_preconditions_are_ignored():
    """A server that ignores the headers can be played."""
    store = MemoryStore(conditional=False)
    store.put("k", b"1")
    store.put("k", b"2", precondition=CREATE)
    store.put("k", b"3", precondition=Match('"other"'))
    assert store.get("k").body == b"3"


def test_ranges(store):
    """A range past the end answers what there is; one that starts behind it is refused; an empty object is empty."""
    store.put("k", b"0123456789")
    part = store.get("k", start=8, length=10)
    assert (part.body, part.size, part.complete) == (b"89", 10, False)
    with pytest.raises(BadRequest):
        store.get("k", start=10, length=1)
    store.put("empty", b"")
    assert store.get("empty", length=100).complete


def test_get_of_another_version_is_refused(store):
    """A read with if_match is of that version or fails."""
    etag = store.put("k", b"1")
    assert store.get("k", if_match=etag).body == b"1"
    with pytest.raises(PreconditionFailed):
        store.get("k", if_match='"other"')
    with pytest.raises(ObjectMissing):
        store.get("absent", if_match=etag)


def test_deleting_what_is_not_there_is_no_error(store):
    """Deletes, of one or of many, are idempotent."""
    store.put("a", b"")
    store.delete("absent")
    store.delete_many(["a", "absent"])
    assert list(store.list("")) == []


def test_listing_goes_by_pages_in_order(store):
    """Keys come in byte order, behind start_after, one request for a thousand."""
    for number in reversed(range(1500)):
        store.put(f"p/{number:04}", b"x")
    store.put("q", b"")
    store.requests.clear()
    keys = [entry.key for entry in store.list("p/")]
    assert keys == [f"p/{number:04}" for number in range(1500)]
    assert store.requests == [("LIST", "p/")] * 2
    assert [entry.key for entry in store.list("p/", start_after="p/1498")] == ["p/1499"]


def test_faults_hit_what_they_name(store):
    """A fault hits its verb and key as often as it says, before or after the request is carried out."""
    store.faults.append(Fault(Throttled(), "PUT", "a", times=2, after=1))
    store.faults.append(Fault(Interrupted(), "PUT", "b", landed=True))
    store.put("a", b"1")
    for _ in range(2):
        with pytest.raises(Throttled):
            store.put("a", b"2")
    assert store.get("a").body == b"1"
    store.put("a", b"3")
    with pytest.raises(Interrupted):
        store.put("b", b"4")
    assert store.get("b").body == b"4"


def test_others_run_before_a_request():
    """`before` is called outside the lock, so that it may use the store: the winner of a race can be chosen."""

    def other(verb: str, key: str) -> None:
        if (verb, key) not in seen:
            seen.add((verb, key))
            store.put(key, b"theirs")

    seen: set[tuple[str, str]] = set()
    store = MemoryStore(before=other)
    with pytest.raises(PreconditionFailed):
        store.put("k", b"ours", precondition=CREATE)


class Refusing(MemoryStore):
    """Refuses what it is told to, by the class of the request."""

    def __init__(self, *refused):
        super().__init__()
        self.refused = refused

    def send(self, request):
        if isinstance(request, self.refused) and not (isinstance(request, Delete) and request.if_match is None):
            raise BadRequest("", request.operation, "memory", request.key, 400)
        return super().send(request)


@pytest.mark.parametrize("refused", [[], [DeleteMany, DeleteUnchanged], [DeleteMany, DeleteUnchanged, Delete]])
def test_deletes_where_batches_are_refused(refused):
    """One by one, and where conditions are refused too, looked at right before: another version stays."""
    store = Refusing(*refused)
    etags = {key: store.put(key, key.encode()) for key in ("one", "two", "three")}
    store.put("two", b"new")
    assert store.delete_unchanged({**etags, "never": '"e"'}) == ["two"]
    assert [entry.key for entry in store.list("")] == ["two"]
    store.delete_many(["two", "never"])
    assert list(store.list("")) == []
