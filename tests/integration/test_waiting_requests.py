"""What waiting costs: O(1) requests a look, parents included; intervals and deadlines as the caller says."""

from __future__ import annotations

import sys
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


class Naps(list):
    """The naps between looks, in seconds; they are not slept. In some of them something happens."""

    def __init__(self):
        super().__init__()
        self.happens = {}

    def sleep(self, seconds):
        self.append(seconds)
        self.happens.get(len(self), lambda: None)()


@pytest.fixture
def naps(monkeypatch):
    """``naps(nap_2=do)`` does something in the second nap; the :class:`Naps`."""
    taken, sleep = Naps(), time.sleep

    def nap(seconds):
        waiting = sys._getframe(1).f_globals["__name__"] == "celery_s3.results.waiting"
        (taken.sleep if waiting else sleep)(seconds)

    def begin(**happens):
        taken.clear()
        taken.happens = {int(name.removeprefix("nap_")): do for name, do in happens.items()}
        return taken

    monkeypatch.setattr(time, "sleep", nap)
    return begin


def enough():
    raise KeyboardInterrupt


def test_single_result(counted, stored, spends, naps):
    """Waiting for a result without parents is one GET a look."""
    app, id = counted(), uuid()
    naps(nap_3=lambda: stored(app, "there", id=id))
    with spends(GET=4, PUT=1):
        assert app.AsyncResult(id).get(timeout=10) == "there"


def test_interval_is_obeyed(counted, naps):
    """A caller's interval is slept to the letter, for a result and for a group."""
    app = counted()
    for result in (app.AsyncResult("x"), app.GroupResult("g", [app.AsyncResult("x")])):
        taken = naps(nap_3=enough)
        with pytest.raises(KeyboardInterrupt):
            result.get(interval=5, timeout=600)
        assert taken == [5, 5, 5]


def test_no_interval_is_adaptive(counted, naps):
    """Celery's own default interval means that nothing was said: the first naps are short."""
    taken = naps(nap_3=enough)
    with pytest.raises(KeyboardInterrupt):
        counted().AsyncResult("x").get()
    assert all(nap < 0.2 for nap in taken)


def test_on_interval(counted, stored):
    """The caller's ``on_interval`` is called while a result is waited for, and what it raises ends the wait."""
    app, id = counted(), uuid()
    assert app.AsyncResult(id).get(timeout=10, on_interval=lambda: stored(app, "there", id=id)) == "there"
    with pytest.raises(KeyboardInterrupt):
        app.AsyncResult("x").get(timeout=10, on_interval=enough)


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


def test_running_chain(counted, chain, stored, spends, naps):
    """A look at a running chain is two GETs, however long the chain: its end, and its earliest unfinished parent."""
    app = counted()
    results = chain(app, 20)
    naps(nap_4=lambda: stored(app, "end", id=results[-1].id))
    with spends(GET=19 + 4 * 2 + 1, PUT=1):
        assert results[-1].get(timeout=10) == "end"


def test_failed_parent(counted, chain, stored, spends, naps):
    """The failure of a task in a chain is raised to who waits for its end, before the wait and during it."""
    app = counted()
    results = chain(app, 4)
    naps(
        nap_1=lambda: stored(app, 1, id=results[0].id),
        nap_3=lambda: stored(app, KeyError("second"), states.FAILURE, id=results[1].id),
    )
    with pytest.raises(KeyError, match="second"):
        results[-1].get(timeout=10)
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


def test_large_parents(counted, chain, stored, proxy, naps):
    """Of a parent's large value, nothing but the first bytes is fetched: that it succeeded is all that is asked."""
    app = counted()
    results = chain(app, 3)
    for result in results[:2]:
        stored(app, "x" * 1_000_000, id=result.id)
    naps(nap_3=lambda: stored(app, "end", id=results[-1].id))
    proxy.reset()
    assert results[-1].get(timeout=10) == "end"
    assert sum(record.received for record in proxy.records()) < 300_000
    assert proxy.counts()["GET"] <= 2 + 2 + 4
    assert len(results[0].get(timeout=5)) == 1_000_000


def test_chord_body(counted, spends, stored, naps):
    """Waiting for a chord's body asks no member of the header: one GET a look, for fifty members as for one."""
    app = counted()
    header = app.GroupResult(uuid(), [app.AsyncResult(uuid()) for _ in range(50)])
    body = app.AsyncResult(uuid(), parent=header)
    naps(nap_5=lambda: stored(app, "joined", id=body.id))
    with spends(GET=6, PUT=1):
        assert body.get(timeout=10) == "joined"


def test_chain_of_chords(counted, spends, stored, naps):
    """A chain through a chord: headers are not asked, the tasks before them are."""
    app = counted()
    first = app.AsyncResult(uuid())
    header = app.GroupResult(uuid(), [app.AsyncResult(uuid()) for _ in range(50)], parent=first)
    body = app.AsyncResult(uuid(), parent=header)
    last = app.AsyncResult(uuid(), parent=body)
    naps(nap_3=lambda: stored(app, "end", id=last.id))
    with spends(GET=2 + 3 * 2 + 1, PUT=1):
        assert last.get(timeout=10) == "end"
    stored(app, KeyError("first"), states.FAILURE, id=first.id)
    with pytest.raises(KeyError, match="first"):
        app.AsyncResult(last.id, parent=body).get(timeout=5)


def test_waiting_inside_of_waiting(counted, chain, stored, spends, naps):
    """An ``on_interval`` that waits for another chain leaves the first one's parents to be asked one a look."""
    app = counted()
    results, others = chain(app, 10), chain(app, 3)
    for other in others:
        stored(app, "other", id=other.id)
    naps(nap_1=others[-1].get, nap_4=lambda: stored(app, "end", id=results[-1].id))
    with spends(GET=9 + 4 * 2 + 1 + 3, PUT=1):
        assert results[-1].get(timeout=10) == "end"


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
