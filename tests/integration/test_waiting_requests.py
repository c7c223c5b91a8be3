"""What waiting costs: O(1) requests a look, parents included; intervals and deadlines as the caller says."""

from __future__ import annotations

import time

import pytest
from celery import states
from celery.exceptions import TimeoutError
from kombu.utils.uuid import uuid


@pytest.fixture
def chain():
    """``chain(app, 5)``: the last of so many results, each the parent of the next; the first comes first."""

    def make(app, length):
        results = []
        for _ in range(length):
            results.append(app.AsyncResult(uuid(), parent=results[-1] if results else None))
        return results

    return make


class Looks:
    """An ``on_interval`` that does what it is told to after so many looks in vain."""

    def __init__(self, **after):
        self.count = 0
        self._after = {int(number.removeprefix("look_")): do for number, do in after.items()}

    def __call__(self):
        self.count += 1
        self._after.get(self.count, lambda: None)()


def test_single_result(counted, stored, spends):
    """Waiting for a result without parents is one GET a look."""
    app, id = counted(), uuid()
    looks = Looks(look_3=lambda: stored(app, "there", id=id))
    with spends(GET=4, PUT=1):
        assert app.AsyncResult(id).get(timeout=10, on_interval=looks) == "there"


def test_interval_is_obeyed(counted, monkeypatch):
    """A caller's interval is slept to the letter, for a result and for a group."""
    app, naps = counted(), []
    monkeypatch.setattr("celery_s3.waiting.time.sleep", naps.append)
    for result in (app.AsyncResult("x"), app.GroupResult("g", [app.AsyncResult("x")])):
        naps.clear()

        def stop(naps=naps):
            if len(naps) == 3:
                raise KeyError("enough")

        with pytest.raises(KeyError):
            result.get(interval=5, timeout=600, on_interval=stop)
        assert naps == [5, 5, 5]


def test_no_interval_is_adaptive(counted, monkeypatch):
    """Celery's own default interval means that nothing was said: the first naps are short."""
    app, naps = counted(), []
    monkeypatch.setattr("celery_s3.waiting.time.sleep", naps.append)

    def stop():
        if len(naps) == 3:
            raise KeyError("enough")

    with pytest.raises(KeyError):
        app.AsyncResult("x").get(on_interval=stop)
    assert all(nap < 0.2 for nap in naps)


@pytest.mark.parametrize("timeout", [0, 0.0])
def test_timeout_zero(counted, stored, spends, timeout):
    """``timeout=0`` is one look."""
    app = counted()
    with spends(GET=1, PUT=1):
        assert stored(app, 1).get(timeout=timeout) == 1
    with pytest.raises(TimeoutError), spends(GET=1):
        app.AsyncResult(uuid()).get(timeout=timeout)


def test_deadline(counted):
    """A deadline is kept, with a last look at its end."""
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"0\.15 seconds"):
        counted().AsyncResult(uuid()).get(timeout=0.15, interval=60)
    assert time.monotonic() - began < 5


# -- parents


def test_finished_chain(counted, chain, stored, spends):
    """The end of a finished chain is one GET for each of its results."""
    app = counted()
    results = chain(app, 5)
    for number, result in enumerate(results):
        stored(app, number, id=result.id)
    with spends(GET=5):
        assert results[-1].get(timeout=5) == 4
    with spends():
        assert [result.get() for result in results] == [0, 1, 2, 3, 4]


def test_running_chain(counted, chain, stored, spends):
    """A look at a running chain is two GETs, however long the chain: its end, and its earliest unfinished parent."""
    app = counted()
    results = chain(app, 20)
    looks = Looks(look_4=lambda: stored(app, "end", id=results[-1].id))
    with spends(GET=19 + 4 * 2 + 1, PUT=1):
        assert results[-1].get(timeout=10, on_interval=looks) == "end"


def test_failed_parent(counted, chain, stored, spends):
    """The failure of a task in a chain is raised to who waits for its end, before the wait and during it."""
    app = counted()
    results = chain(app, 4)
    with pytest.raises(KeyError, match="second"):
        results[-1].get(
            timeout=10,
            on_interval=Looks(
                look_1=lambda: stored(app, 1, id=results[0].id),
                look_3=lambda: stored(app, KeyError("second"), states.FAILURE, id=results[1].id),
            ),
        )
    with pytest.raises(KeyError, match="second"), spends(GET=2):
        results[-1].get(timeout=10)


def test_failed_parent_is_not_followed(counted, chain, stored, spends):
    """Without ``follow_parents``, or with ``propagate=False``, no parent is asked."""
    app = counted()
    results = chain(app, 3)
    stored(app, "end", id=results[-1].id)
    with spends(GET=1):
        assert results[-1].get(timeout=5, follow_parents=False) == "end"
    with spends(GET=1):
        assert app.AsyncResult(results[-1].id, parent=results[1]).get(timeout=5, propagate=False) == "end"


def test_large_parents(counted, chain, stored, proxy):
    """Of a parent's large value, nothing but the first bytes is fetched: that it succeeded is all that is asked."""
    app = counted()
    results = chain(app, 3)
    for result in results[:2]:
        stored(app, "x" * 1_000_000, id=result.id)
    looks = Looks(look_3=lambda: stored(app, "end", id=results[-1].id))
    proxy.reset()
    assert results[-1].get(timeout=10, on_interval=looks) == "end"
    assert sum(record.received for record in proxy.records()) < 300_000
    assert proxy.counts()["GET"] <= 2 + 2 + 4
    assert len(results[0].get(timeout=5)) == 1_000_000


def test_chord_body(counted, spends, stored):
    """Waiting for a chord's body asks no member of the header: one GET a look, for fifty members as for one."""
    app = counted()
    header = app.GroupResult(uuid(), [app.AsyncResult(uuid()) for _ in range(50)])
    body = app.AsyncResult(uuid(), parent=header)
    looks = Looks(look_5=lambda: stored(app, "joined", id=body.id))
    with spends(GET=6, PUT=1):
        assert body.get(timeout=10, on_interval=looks) == "joined"


def test_chain_of_chords(counted, spends, stored):
    """A chain through a chord: headers are not asked, the tasks before them are."""
    app = counted()
    first = app.AsyncResult(uuid())
    header = app.GroupResult(uuid(), [app.AsyncResult(uuid()) for _ in range(50)], parent=first)
    body = app.AsyncResult(uuid(), parent=header)
    last = app.AsyncResult(uuid(), parent=body)
    looks = Looks(look_3=lambda: stored(app, "end", id=last.id))
    with spends(GET=2 + 3 * 2 + 1, PUT=1):
        assert last.get(timeout=10, on_interval=looks) == "end"
    stored(app, KeyError("first"), states.FAILURE, id=first.id)
    with pytest.raises(KeyError, match="first"):
        app.AsyncResult(last.id, parent=body).get(timeout=5)


def test_waiting_inside_of_waiting(counted, chain, stored, spends):
    """An ``on_interval`` that waits for another chain leaves the first one's parents to be asked one a look."""
    app = counted()
    results, others = chain(app, 10), chain(app, 3)
    for other in others:
        stored(app, "other", id=other.id)
    looks = Looks(look_1=others[-1].get, look_4=lambda: stored(app, "end", id=results[-1].id))
    with spends(GET=9 + 4 * 2 + 1 + 3, PUT=1):
        assert results[-1].get(timeout=10, on_interval=looks) == "end"


def test_parents_of_several_threads(counted, chain, stored):
    """Threads that wait for different chains at the same time do not mix up their parents."""
    from concurrent.futures import ThreadPoolExecutor

    app = counted()
    chains = [chain(app, 4) for _ in range(6)]
    for number, results in enumerate(chains):
        stored(app, KeyError(number), states.FAILURE, id=results[number % 3].id)

    def failure(results):
        with pytest.raises(KeyError) as caught:
            results[-1].get(timeout=10)
        return caught.value.args[0]

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(failure, chains)) == list(range(6))


def test_state_of_a_parent_is_looked_up(counted, chain, stored, spends):
    """Asking a parent for its state is one GET, whoever waits for its child."""
    app = counted()
    results = chain(app, 2)
    stored(app, 1, id=results[0].id)
    with spends(GET=1):
        assert results[1].parent.state == "SUCCESS"
