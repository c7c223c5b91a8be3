"""Who waits: what is read, remembered and told, with a reader that knows what it is asked."""

from __future__ import annotations

import time

import pytest
from celery.exceptions import TimeoutError

from celery_s3.codec.chunks import LARGE
from celery_s3.codec.lazy import LazyMeta
from celery_s3.errors import ResultNotRead
from celery_s3.results.reader import Replaced, pending
from celery_s3.results.waiter import Waiter
from celery_s3.store import deadline
from celery_s3.store.parallel import Pool


def meta(value, status="SUCCESS"):
    return {"status": status, "result": value}


class Reader:
    """Answers with what there is, an error or a value; notes what it is asked and until when it may try again."""

    def __init__(self, stored):
        self.stored = stored
        self.asked = []
        self.bounds = []

    def meta(self, id):
        self.asked.append(id)
        self.bounds.append(deadline.remaining())
        found = self.stored.get(id) or pending()
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture(params=[1, 4])
def pool(request):
    pool = Pool(request.param)
    yield pool
    pool.close()


def waiter(pool, stored, known=None):
    reader = Reader(stored)
    return Waiter(reader, pool, {} if known is None else known, reader.meta, 4)


def test_what_is_known_is_not_read(pool):
    """Metas that the process remembers come first, and only the others are read, remembered, and told to the caller."""
    known, told = {"b": meta(2)}, []
    waits = waiter(pool, {"a": meta(1), "c": meta(3)}, known)
    found = waits.many(["a", b"b", "c", "a"], timeout=0, on_message=told.append)
    assert next(found) == ("b", meta(2))
    assert dict(found) == {"a": meta(1), "c": meta(3)}
    assert sorted(waits.reader.asked) == ["a", "c"]
    assert (sorted(known), len(told)) == (["a", "b", "c"], 2)


def test_own_idea_of_ready(pool):
    """The caller says which states it waits for; those that it does not, also remembered ones, are read again."""
    known = {"a": meta(1, "STARTED")}
    waits = waiter(pool, {"a": meta(2, "PROGRESS")}, known)
    assert list(waits.many(["a"], timeout=0, ready_states={"PROGRESS"})) == [("a", meta(2, "PROGRESS"))]
    with pytest.raises(TimeoutError):
        list(waiter(pool, {"a": meta(2, "PROGRESS")}).many(["a"], timeout=0))


def test_a_limited_number_of_looks(pool):
    """So many looks at everyone, and a quiet end."""
    waits = waiter(pool, {"c": meta(3)})
    assert list(waits.many(["a", "b", "c"], interval=0, passes=2)) == [("c", meta(3))]
    assert sorted(waits.reader.asked) == ["a", "a", "b", "b", "c"]


def test_errors_end_the_wait(pool):
    """What the store raises for one of them is raised."""
    with pytest.raises(ResultNotRead):
        list(waiter(pool, {"a": ResultNotRead("x"), "b": meta(1)}).many(["a", "b"], timeout=0))
    with pytest.raises(ResultNotRead):
        waiter(pool, {"a": ResultNotRead("x")}).one("a", timeout=0, interval=None, on_interval=None)


@pytest.mark.parametrize("size", [100_000, LARGE + 1])
def test_large_ones_come_with_their_values(pool, size):
    """A meta of which only the state is known is fetched before it is handed out, one that is remembered too."""
    stored = {id: LazyMeta({"status": "SUCCESS"}, lambda: meta(5), size) for id in "abc"}
    waits = waiter(pool, stored, {"c": stored["c"]})
    assert [found.partial for _, found in waits.many(["a", "b", "c"], timeout=0)] == [False] * 3
    assert not stored["a"].partial
    lazy = LazyMeta({"status": "SUCCESS"}, lambda: meta(6), size)
    assert waiter(pool, {"a": lazy}).one("a", timeout=0, interval=None, on_interval=None)["result"] == 6


def test_not_all_values_ahead_of_the_caller(pool, monkeypatch):
    """No more values are fetched than a slow caller takes, up to so many bytes; each comes whole all the same."""
    monkeypatch.setattr("celery_s3.results.waiter.AHEAD", 250)
    fetched, taken = [], []

    def value(id):
        def load():
            fetched.append(id)
            return meta(id)

        return LazyMeta({"status": "SUCCESS"}, load, 100)

    waits = waiter(pool, {id: value(id) for id in "abcdefghijkl"})
    for id, found in waits.many("abcdefghijkl", timeout=0):
        taken.append((id, found["result"]))
        time.sleep(0.005)
        assert len(fetched) <= len(taken) + 2
    assert sorted(taken) == [(id, id) for id in "abcdefghijkl"]


def test_replaced_in_between(pool):
    """A result that is replaced after its state was read is not ready yet: it is asked for again."""

    def replaced():
        waits.reader.stored["a"] = meta("new")
        raise Replaced("x")

    waits = waiter(pool, {"a": LazyMeta({"status": "SUCCESS"}, replaced, 1)})
    assert list(waits.many(["a"], timeout=5)) == [("a", meta("new"))]
    waits = waiter(pool, {"a": LazyMeta({"status": "SUCCESS"}, replaced, 1)})
    assert waits.one("a", timeout=5, interval=None, on_interval=None) == meta("new")


def test_a_timeout_bounds_the_retries(pool):
    """No request is tried again beyond the timeout, in whichever thread it is made."""
    waits = waiter(pool, {"a": meta(1), "b": meta(2)})
    list(waits.many(["a", "b"], timeout=50))
    waits.one("a", timeout=50, interval=None, on_interval=None)
    assert all(0 < bound <= 50 for bound in waits.reader.bounds)
    waits.one("a", timeout=None, interval=None, on_interval=None)
    assert waits.reader.bounds[-1] is None
