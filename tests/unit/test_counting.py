"""Requests are counted as the server bills them."""

from __future__ import annotations

import os
import threading

import pytest

from celery_s3.errors import Conflict, ObjectMissing, PreconditionFailed, StoreError, Throttled
from celery_s3.store.api import CREATE
from celery_s3.store.counting import Counting, Tally, difference
from celery_s3.store.memory import Fault, MemoryStore

#: Python 3.12 warns of what is tried here.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture
def memory() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def tally() -> Tally:
    return Tally()


@pytest.fixture
def store(memory, tally) -> Counting:
    return Counting(memory, tally)


def test_each_verb_has_its_line(store, tally):
    """Requests and bytes of bodies are counted by verb."""
    store.put("a", b"12345")
    store.put("b", b"678")
    store.get("a", length=2)
    store.delete("a")
    store.delete_many(["b", "c"])
    list(store.list(""))
    counted = tally.snapshot()
    assert {verb: line["requests"] for verb, line in counted.items()} == {
        "PUT": 2,
        "GET": 1,
        "DELETE": 1,
        "DELETE_OBJECTS": 1,
        "LIST": 1,
    }
    assert counted["PUT"]["bytes_up"] == 8
    assert counted["GET"]["bytes_down"] == 2


def test_an_upload_in_parts(memory, store, tally):
    """Its beginning, each part and its completion are PUTs, as they are billed, an abort a DELETE; errors too."""
    upload_id = store.create_upload("k")
    etags = [store.put_part("k", upload_id, number, b"12345") for number in (1, 2)]
    store.complete_upload("k", upload_id, etags)
    store.abort_upload("k", upload_id)
    counted = tally.snapshot()
    assert {verb: line["requests"] for verb, line in counted.items()} == {"PUT": 4, "DELETE": 1}
    assert counted["PUT"]["bytes_up"] == 10
    memory.faults.append(Fault(Throttled("slow down"), times=-1))
    for call in (
        lambda: store.create_upload("k"),
        lambda: store.put_part("k", upload_id, 1, b"123"),
        lambda: store.complete_upload("k", upload_id, []),
        lambda: store.abort_upload("k", upload_id),
    ):
        with pytest.raises(Throttled):
            call()
    counted = tally.snapshot()
    assert (counted["PUT"]["requests"], counted["PUT"]["Throttled"], counted["PUT"]["bytes_up"]) == (7, 3, 13)
    assert (counted["DELETE"]["requests"], counted["DELETE"]["Throttled"]) == (2, 1)


@pytest.mark.parametrize("count", [0, 1, 999, 1000, 1001, 2000, 2001])
def test_pages_and_batches_are_requests(memory, store, tally, count):
    """A listing counts one request for each page, a mass deletion one for each thousand keys, as they are made."""
    keys = [f"{number:05}" for number in range(count)]
    for key in keys:
        memory.put(key, b"")
    memory.requests.clear()
    assert [entry.key for entry in store.list("")] == keys
    store.delete_many(keys)
    counted = tally.snapshot()
    for verb in ("LIST", "DELETE_OBJECTS"):
        made = sum(verb == one for one, _ in memory.requests)
        assert counted.get(verb, {"requests": 0})["requests"] == made


@pytest.mark.parametrize("error", [Throttled, Conflict, PreconditionFailed, ObjectMissing])
def test_errors_are_counted_by_class(memory, store, tally, error):
    """A request that fails is a request, and its error passes unchanged."""
    memory.faults.append(Fault(error("said the server"), times=-1))
    for call in (
        lambda: store.put("k", b"12", precondition=CREATE),
        lambda: store.get("k"),
        lambda: store.delete("k"),
        lambda: store.delete_many(["k"]),
        lambda: list(store.list("k")),
    ):
        with pytest.raises(error):
            call()
    counted = tally.snapshot()
    assert set(counted) == {"PUT", "GET", "DELETE", "DELETE_OBJECTS", "LIST"}
    for line in counted.values():
        assert line["requests"] == line[error.__name__] == 1
    assert counted["PUT"]["bytes_up"] == 2


def test_difference_of_snapshots(store, tally):
    """What happened between two snapshots, without verbs that were not used."""
    store.put("k", b"1")
    store.get("k")
    before = tally.snapshot()
    store.get("k")
    with pytest.raises(StoreError):
        store.get("absent")
    spent = difference(tally.snapshot(), before)
    assert spent == {"GET": {"requests": 2, "retries": 0, "bytes_up": 0, "bytes_down": 1, "ObjectMissing": 1}}


def test_snapshot_is_a_copy(store, tally):
    """A snapshot does not move on."""
    store.put("k", b"1")
    snapshot = tally.snapshot()
    store.put("k", b"1")
    assert snapshot["PUT"]["requests"] == 1


def test_threads_lose_no_count(tally):
    """Threads that count at the same time are all counted."""

    def work() -> None:
        for _ in range(2000):
            tally.count("PUT", up=1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tally.snapshot()["PUT"]["bytes_up"] == 8000


def test_a_forked_child_starts_at_zero(tally):
    """A child counts for itself; its parent's numbers stay with the parent."""
    tally.count("PUT")
    pid = os.fork()
    if pid == 0:
        empty = tally.snapshot() == {}
        tally.count("GET")
        os._exit(0 if empty and set(tally.snapshot()) == {"GET"} else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert set(tally.snapshot()) == {"PUT"}
