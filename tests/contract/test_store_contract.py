"""What a store promises, kept by every client on every server."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from celery_s3.errors import BadCredentials, BadRequest, BucketMissing, ObjectMissing, PreconditionFailed
from celery_s3.settings import Secret, Settings
from celery_s3.store.api import CREATE, Match, Store

ABSENT = '"00000000000000000000000000000000"'

ODD = [
    "a b",
    " a ",
    "a%b",
    "a%20b",
    "a%2Fb",
    "a+b",
    "a&b",
    "a?b",
    "a#b",
    "a~b",
    "a=b",
    "a:b*c|d",
    "a;b,c!d$e@f",
    "a'b(c)[d]{e}",
    'a"b<c>d^e`f',
    "é",
    "e\u0301",
    "日本語",
    "😀",
    "...",
    "a.b/c..d",
    "a" * 200,
]


# -- writing


def test_put_answers_the_etag(store: Store, prefix: str) -> None:
    """A PUT answers the etag that a GET shows, in quotes."""
    etag = store.put(f"{prefix}k", b"one")
    assert etag == store.get(f"{prefix}k").etag
    assert etag[0] == etag[-1] == '"'


def test_put_without_precondition_overwrites(store: Store, prefix: str) -> None:
    """Nothing given, the last write stands."""
    store.put(f"{prefix}k", b"one")
    store.put(f"{prefix}k", b"two")
    assert store.get(f"{prefix}k").body == b"two"


def test_create(store: Store, prefix: str) -> None:
    """A create writes where nothing stands, and again after a delete."""
    store.put(f"{prefix}k", b"one", precondition=CREATE)
    store.delete(f"{prefix}k")
    store.put(f"{prefix}k", b"two", precondition=CREATE)
    assert store.get(f"{prefix}k").body == b"two"


def test_create_is_refused_where_an_object_stands(store: Store, prefix: str) -> None:
    """A refused create changes nothing and is told as PreconditionFailed."""
    store.put(f"{prefix}k", b"one")
    with pytest.raises(PreconditionFailed) as refused:
        store.put(f"{prefix}k", b"two", precondition=CREATE)
    assert store.get(f"{prefix}k").body == b"one"
    assert (refused.value.operation, refused.value.key) == ("put", f"{prefix}k")


def test_replace(store: Store, prefix: str) -> None:
    """A replacement of the version that stands is written, and answers a new version."""
    first = store.put(f"{prefix}k", b"one")
    second = store.put(f"{prefix}k", b"two", precondition=Match(first))
    assert store.get(f"{prefix}k").body == b"two"
    assert second != first


def test_replace_is_refused_for_another_version(store: Store, prefix: str) -> None:
    """A replacement of a version that is gone changes nothing."""
    first = store.put(f"{prefix}k", b"one")
    store.put(f"{prefix}k", b"two")
    with pytest.raises(PreconditionFailed):
        store.put(f"{prefix}k", b"three", precondition=Match(first))
    assert store.get(f"{prefix}k").body == b"two"


def test_replace_of_nothing_is_refused(store: Store, prefix: str) -> None:
    """A replacement where no object stands is a failed precondition, not a missing object."""
    with pytest.raises(PreconditionFailed):
        store.put(f"{prefix}k", b"one", precondition=Match(ABSENT))
    with pytest.raises(ObjectMissing):
        store.get(f"{prefix}k")


def test_a_race_of_creates_has_one_winner(store: Store, prefix: str) -> None:
    """Of two creates at the same moment one is written and the other refused."""
    barrier, outcomes = threading.Barrier(2), []

    def create(body: bytes) -> None:
        barrier.wait()
        try:
            store.put(f"{prefix}k", body, precondition=CREATE)
            outcomes.append(body)
        except PreconditionFailed:
            outcomes.append(b"")

    threads = [threading.Thread(target=create, args=(body,)) for body in (b"one", b"two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(bool, outcomes)) == [False, True]
    assert store.get(f"{prefix}k").body in outcomes


# -- reading


def test_get_answers_everything_about_the_object(store: Store, prefix: str) -> None:
    """Body, size, time, metadata and content type come with one GET."""
    metadata = {"state": "SUCCESS", "x-odd": 'a b;c="d" %20+\'~'}
    etag = store.put(f"{prefix}k", b"hello", metadata=metadata, content_type="application/json")
    found = store.get(f"{prefix}k")
    assert (found.key, found.body, found.size, found.etag) == (f"{prefix}k", b"hello", 5, etag)
    assert (dict(found.metadata), found.content_type, found.complete) == (metadata, "application/json", True)
    assert abs(datetime.now(UTC) - found.modified) < timedelta(minutes=5)


def test_metadata_names_are_lower_case(store: Store, prefix: str) -> None:
    """User metadata is found under lower-case names, however it was written."""
    store.put(f"{prefix}k", b"", metadata={"State-1": "A"})
    assert store.get(f"{prefix}k").metadata == {"state-1": "A"}


def test_get_of_nothing(store: Store, prefix: str) -> None:
    """An absent object is ObjectMissing, with its key."""
    with pytest.raises(ObjectMissing) as missing:
        store.get(f"{prefix}none")
    assert (missing.value.operation, missing.value.key, missing.value.status) == ("get", f"{prefix}none", 404)


@pytest.mark.parametrize(
    ("start", "length", "body"),
    [(0, 4, b"0123"), (3, 4, b"3456"), (3, None, b"3456789"), (0, 10, b"0123456789"), (8, 100, b"89"), (9, 1, b"9")],
)
def test_ranges(store: Store, prefix: str, start: int, length: int | None, body: bytes) -> None:
    """A range answers its bytes, those that there are, and the size of the whole."""
    etag = store.put(f"{prefix}k", b"0123456789", metadata={"state": "SUCCESS"})
    found = store.get(f"{prefix}k", start=start, length=length)
    assert (found.body, found.size, found.etag, found.metadata) == (body, 10, etag, {"state": "SUCCESS"})
    assert found.complete == (body == b"0123456789")


def test_range_of_an_absent_object(store: Store, prefix: str) -> None:
    """A ranged GET of nothing is ObjectMissing too."""
    with pytest.raises(ObjectMissing):
        store.get(f"{prefix}none", length=65536)


@pytest.mark.parametrize("length", [None, 65536])
def test_an_empty_object(store: Store, prefix: str, length: int | None) -> None:
    """An empty object is read like any other, though no range of it can be satisfied."""
    etag = store.put(f"{prefix}k", b"", metadata={"state": "SUCCESS"})
    found = store.get(f"{prefix}k", length=length)
    assert (found.body, found.size, found.complete) == (b"", 0, True)
    assert (found.etag, found.metadata) == (etag, {"state": "SUCCESS"})


def test_a_range_behind_the_end(store: Store, prefix: str) -> None:
    """A range without a single byte is the caller's mistake."""
    store.put(f"{prefix}k", b"0123")
    with pytest.raises(BadRequest) as refused:
        store.get(f"{prefix}k", start=4, length=2)
    assert refused.value.status == 416


def test_get_of_a_version(store: Store, prefix: str) -> None:
    """``if_match`` reads that version alone."""
    etag = store.put(f"{prefix}k", b"0123456789")
    assert store.get(f"{prefix}k", start=2, length=3, if_match=etag).body == b"234"
    store.put(f"{prefix}k", b"9876543210")
    with pytest.raises(PreconditionFailed):
        store.get(f"{prefix}k", start=2, length=3, if_match=etag)


def test_a_large_body(store: Store, prefix: str) -> None:
    """5 MB go and come in one request each, byte for byte."""
    body = bytes(range(256)) * 20_480
    store.put(f"{prefix}k", body, precondition=CREATE)
    found = store.get(f"{prefix}k")
    assert found.body == body
    assert "-" not in found.etag  # not a multipart upload
    assert store.get(f"{prefix}k", start=5_000_000, length=300).body == body[5_000_000:5_000_300]


# -- deleting and listing


def test_delete(store: Store, prefix: str) -> None:
    """A deleted object is gone, and to delete it again is no error."""
    store.put(f"{prefix}k", b"one")
    store.delete(f"{prefix}k")
    store.delete(f"{prefix}k")
    with pytest.raises(ObjectMissing):
        store.get(f"{prefix}k")


def test_delete_many(store: Store, prefix: str) -> None:
    """More keys than one request takes, some of them absent, some named twice, one that needs escaping in XML."""
    odd = f"{prefix}a&<b>'\" é"
    here = [f"{prefix}{number:04}" for number in (0, 999, 1000)]
    for key in (*here, odd, f"{prefix}stays"):
        store.put(key, b"x")
    store.delete_many([*(f"{prefix}{number:04}" for number in range(1001)), odd, odd])
    assert [entry.key for entry in store.list(prefix)] == [f"{prefix}stays"]


def test_delete_many_of_nothing(client_name: str, open_client: Any) -> None:
    """No keys, no request, no error: not even where no server could be asked."""
    open_client(client_name, Settings(bucket="b", endpoint_url="http://nothing.invalid")).delete_many([])


def test_list(store: Store, prefix: str) -> None:
    """A listing shows every key under the prefix with size, time and etag, and nothing beside it."""
    for name in ("a", "b/c", "d"):
        store.put(f"{prefix}{name}", name.encode())
    store.put(f"{prefix[:-1]}-beside", b"x")
    found = {entry.key: entry for entry in store.list(prefix)}
    assert set(found) == {f"{prefix}a", f"{prefix}b/c", f"{prefix}d"}
    assert found[f"{prefix}b/c"].size == 3
    assert found[f"{prefix}a"].etag == store.get(f"{prefix}a").etag
    assert abs(datetime.now(UTC) - found[f"{prefix}a"].modified) < timedelta(minutes=5)


def test_list_by_a_part_of_a_name(store: Store, prefix: str) -> None:
    """A prefix need not end at a slash."""
    for name in ("meta-1", "meta-2", "other"):
        store.put(f"{prefix}{name}", b"x")
    assert [entry.key for entry in store.list(f"{prefix}meta-")] == [f"{prefix}meta-1", f"{prefix}meta-2"]


def test_list_starts_after_a_key(store: Store, prefix: str) -> None:
    """``start_after`` leaves out that key and all before it."""
    for name in "abcd":
        store.put(f"{prefix}{name}", b"x")
    assert [entry.key for entry in store.list(prefix, start_after=f"{prefix}b")] == [f"{prefix}c", f"{prefix}d"]


def test_list_of_many_pages(server: Any, prefix: str, settings_for: Callable[..., Settings], open_client: Any) -> None:
    """More keys than one page has come all, each once, through every client."""
    stores = [open_client(name, settings_for(server)) for name in ("obstore", "boto3")]
    keys = [f"{prefix}{number:04}" for number in range(1005)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda key: stores[0].put(key, b""), keys))
    for store in stores:
        assert [entry.key for entry in store.list(prefix)] == keys


def test_list_of_nothing(store: Store, prefix: str) -> None:
    """Nothing under the prefix is an empty listing."""
    assert list(store.list(prefix)) == []


# -- keys


@pytest.mark.parametrize(("writer", "reader"), [("obstore", "boto3"), ("boto3", "obstore")])
def test_odd_keys_are_the_same_for_both_clients(
    server: Any, prefix: str, writer: str, reader: str, settings_for: Callable[..., Settings], open_client: Any
) -> None:
    """What one client writes the other reads, lists and deletes, whatever the key is made of."""
    one, other = open_client(writer, settings_for(server)), open_client(reader, settings_for(server))
    keys = [f"{prefix}{name}/end" for name in ODD] + [f"{prefix}x/{name}" for name in ODD]
    for key in keys:
        one.put(key, key.encode())
    assert [other.get(key).body for key in keys] == [key.encode() for key in keys]
    assert sorted(entry.key for entry in other.list(prefix)) == sorted(keys)
    other.delete(keys[0])
    other.delete_many(keys[1:])
    assert list(one.list(prefix)) == []


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "./a", "a/../b", "a\nb", "a\0b", "\ud800"])
def test_obstore_refuses_keys_that_it_would_change(
    moto_s3: Any, key: str, settings_for: Callable[..., Settings], open_client: Any
) -> None:
    """A key that obstore cannot say exactly is refused by every verb, before anything is sent."""
    store = open_client("obstore", settings_for(moto_s3))
    for verb in (lambda: store.put(key, b""), lambda: store.get(key), lambda: store.delete(key)):
        with pytest.raises(BadRequest):
            verb()
    with pytest.raises(BadRequest):
        store.delete_many([key])


@pytest.mark.parametrize("key", ["/a", "a/", "a//b"])
def test_boto3_takes_the_keys_that_obstore_refuses(
    moto_s3: Any, prefix: str, key: str, settings_for: Callable[..., Settings], open_client: Any
) -> None:
    """boto3 addresses keys with empty segments exactly."""
    store = open_client("boto3", settings_for(moto_s3))
    store.put(f"{prefix}{key}", b"odd")
    assert store.get(f"{prefix}{key}").body == b"odd"
    assert [entry.key for entry in store.list(prefix)] == [f"{prefix}{key}"]


def test_an_empty_key(store: Store) -> None:
    """No key is no request."""
    with pytest.raises(BadRequest):
        store.put("", b"")
    with pytest.raises(BadRequest):
        store.get("")


@pytest.mark.parametrize(
    "metadata", [{"a": "b\nc"}, {"a": "b\r\nx: y"}, {"a": "é"}, {"a": "\0"}, {"a\n": "b"}, {"a b": "c"}, {"": "c"}]
)
def test_metadata_that_is_not_a_header_is_refused(store: Store, prefix: str, metadata: dict[str, str]) -> None:
    """What cannot be an HTTP header is refused before anything is sent."""
    with pytest.raises(BadRequest):
        store.put(f"{prefix}k", b"x", metadata=metadata)
    with pytest.raises(ObjectMissing):
        store.get(f"{prefix}k")


def test_a_content_type_that_is_not_a_header_is_refused(store: Store, prefix: str) -> None:
    """The same of the content type."""
    with pytest.raises(BadRequest):
        store.put(f"{prefix}k", b"x", content_type="a/b\r\nx: y")


# -- wrong settings


def _verbs(store: Store, key: str) -> list[Callable[[], object]]:
    return [
        lambda: store.get(key),
        lambda: store.get(key, length=100),
        lambda: store.put(key, b"x"),
        lambda: store.put(key, b"x", precondition=CREATE),
        lambda: store.delete_many([key]),
        lambda: list(store.list(key)),
    ]


def test_a_missing_bucket(
    server: Any, client_name: str, prefix: str, settings_for: Callable[..., Settings], open_client: Any
) -> None:
    """A missing bucket is never mistaken for a missing object or a failed precondition."""
    store = open_client(client_name, settings_for(server, bucket="no-such-bucket-here"))
    for verb in _verbs(store, f"{prefix}k"):
        with pytest.raises(BucketMissing) as missing:
            verb()
        assert "no-such-bucket-here" in str(missing.value)


def test_a_replacement_in_a_missing_bucket(
    moto_s3: Any, client_name: str, prefix: str, settings_for: Callable[..., Settings], open_client: Any
) -> None:
    """Nor is it where a version is expected (SeaweedFS itself answers 412 there)."""
    store = open_client(client_name, settings_for(moto_s3, bucket="no-such-bucket-here"))
    with pytest.raises(BucketMissing):
        store.put(f"{prefix}k", b"x", precondition=Match(ABSENT))


@pytest.mark.parametrize(
    "wrong", [{"secret_access_key": Secret("wrong-secret-value")}, {"access_key_id": Secret("AKWRONGWRONGWRONGWRO")}]
)
def test_wrong_keys(
    seaweed: Any, client_name: str, prefix: str, wrong: dict[str, Secret], settings_for: Any, open_client: Any
) -> None:
    """Keys that the server does not know are BadCredentials on every verb (moto does not check them)."""
    store = open_client(client_name, settings_for(seaweed, **wrong))
    for verb in _verbs(store, f"{prefix}k"):
        with pytest.raises(BadCredentials):
            verb()


def test_close(
    seaweed: Any, client_name: str, prefix: str, settings_for: Callable[..., Settings], open_client: Any
) -> None:
    """The client works again after it was closed."""
    store = open_client(client_name, settings_for(seaweed))
    store.put(f"{prefix}k", b"one")
    store.close()
    assert store.get(f"{prefix}k").body == b"one"


def test_threads_share_a_client_from_the_first_request_on(store: Store, prefix: str) -> None:
    """Sixteen threads that begin at the same moment are all served."""
    barrier, outcomes = threading.Barrier(16), []

    def work(number: int) -> None:
        barrier.wait()
        store.put(f"{prefix}{number}", str(number).encode())
        outcomes.append(store.get(f"{prefix}{number}").body)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes, key=int) == [str(number).encode() for number in range(16)]


def test_looking_for_what_is_not_there_leaves_no_garbage(
    seaweed: Any, prefix: str, settings_for: Callable[..., Settings], open_client: Any
) -> None:
    """Polling makes an error each time: none may wait for the cycle collector."""
    store = open_client("obstore", settings_for(seaweed))

    def look() -> None:
        with suppress(ObjectMissing):
            store.get(f"{prefix}none", length=100)

    look()
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            look()
        assert gc.collect() < 20
    finally:
        gc.enable()
