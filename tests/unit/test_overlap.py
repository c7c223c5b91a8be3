"""A child that stores while it goes on: what it hands over, and what it stores at once."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
from celery.signals import worker_process_shutdown

from celery_s3.backends import overlap as module
from celery_s3.backends.acknowledgements import DELIVERY
from celery_s3.backends.overlap import LARGEST, SLOTS, Overlap
from celery_s3.results.recorder import Prepared


class Line:
    """Notes what a child tells its main process."""

    def __init__(self, reachable=True):
        self.reachable = reachable
        self.told = []

    def begins(self, delivery):
        self.told.append(("begins", delivery))
        return self.reachable

    def durable(self, delivery):
        self.told.append(("durable", delivery))


class Child:
    """A child of a pool that stores results of ``size`` bytes."""

    def __init__(self, slots=None, *, reachable=True):
        self.line = Line(reachable)
        self.overlap = Overlap(slots, self.line)
        self.go = threading.Event()
        self.go.set()
        self.stored = []

    def request(self, id="a", delivery=7, **other):
        fields = {"id": id, "is_eager": False, "errbacks": None, "chain": None} | other
        return SimpleNamespace(**fields | ({DELIVERY: delivery} if delivery else {}))

    def store(self, request, state="SUCCESS", size=10, task_id=None):
        def write():
            assert self.go.wait(10)
            self.stored.append((request.id, threading.current_thread() is threading.main_thread()))

        prepared = Prepared(size, write)
        take = lambda: lambda store: store()  # noqa: E731
        what, told = f"{state} of task {request.id}", (task_id or request.id, None, state, request)
        return self.overlap.store(lambda: self.overlap.carry_out(prepared), take, what, *told)


@pytest.fixture
def make():
    made = []

    def make(*args, **how):
        made.append(Child(*args, **how))
        return made[-1]

    yield make
    for one in made:
        one.overlap.close()


def test_it_goes_on(make):
    """The result is stored by another thread; the main process is told before, and when it is durable."""
    child = make()
    child.go.clear()
    assert child.store(child.request())
    assert (child.stored, child.line.told) == ([], [("begins", 7)])
    child.go.set()
    child.overlap._child_ends()
    assert (child.stored, child.line.told) == ([("a", False)], [("begins", 7), ("durable", 7)])


def test_no_free_slot(make):
    """As many as there are slots; the next one is left to the caller, who stores it as ever."""
    child = make()
    child.go.clear()
    assert all(child.store(child.request(str(number), number + 1)) for number in range(SLOTS))
    assert not child.store(child.request("one more", 99))
    child.go.set()
    child.overlap._child_ends()
    assert len(child.stored) == SLOTS


def test_too_large(make):
    """A large result is stored at once: its memory is needed for the next task."""
    child = make()
    assert child.store(child.request(), size=LARGEST + 1)
    assert (child.stored, child.line.told) == ([("a", True)], [])


def test_a_main_process_that_cannot_hold(make):
    """Where it is not told, or cannot be, the result is stored at once."""
    child = make(reachable=False)
    assert child.store(child.request())
    assert child.stored == [("a", True)]


@pytest.mark.parametrize(("slots", "taken"), [(None, False), (0, False), (4, True)])
def test_acknowledged_early(make, monkeypatch, slots, taken):
    """A task whose message nobody holds is stored at once, unless the application has said how many may be lost."""
    monkeypatch.setattr(module, "prefork_child", lambda: True)
    child = make(slots)
    assert child.store(child.request(delivery=None)) is taken
    child.overlap._child_ends()
    assert child.line.told == []


def test_switched_off(make):
    """`overlap = 0` stores every result at once."""
    child = make(0)
    assert not child.store(child.request())


@pytest.mark.parametrize(
    "how",
    [
        {"is_eager": True},
        {"id": "another"},
        {"state": "FAILURE", "errbacks": ["one"]},
        {"state": "FAILURE", "chain": ["one"]},
    ],
)
def test_what_is_stored_at_once(make, how):
    """An eager task's result, that of another task, and a failure that somebody is about to look for."""
    child, state = make(), how.pop("state", "SUCCESS")
    assert not child.store(child.request(**how), state, task_id="a")
    assert child.store(child.request(), "FAILURE")


def test_what_cannot_be_encoded(make):
    """It is raised where the task ends, which then fails; nobody was told anything."""
    child = make()

    def fails():
        raise ValueError("no JSON")

    with pytest.raises(ValueError, match="no JSON"):
        child.overlap.store(fails, lambda: lambda store: store(), "", "a", None, "SUCCESS", child.request())
    assert child.line.told == []


def test_a_write_that_fails(make, caplog):
    """It is told in the log, and the message is not held for ever."""
    child = make()

    def refused():
        raise ValueError("refused")

    prepared = Prepared(1, refused)
    store = lambda: child.overlap.carry_out(prepared)  # noqa: E731
    child.overlap.store(store, lambda: lambda write: write(), "a's SUCCESS", "a", None, "SUCCESS", child.request())
    child.overlap._child_ends()
    assert child.line.told == [("begins", 7), ("durable", 7)]
    assert "a's SUCCESS is lost: " in caplog.text


def test_a_child_that_is_ended(make, monkeypatch, caplog):
    """One that a signal ends goes on for a moment, and says what it leaves; one that ends by itself stores all."""
    child = make()
    monkeypatch.setattr(module, "WHEN_ENDED", 0.05)
    child.go.clear()
    child.store(child.request())
    worker_process_shutdown.send(sender=None, pid=1, exitcode=-15)
    assert "SUCCESS of task a was not stored before this process was ended" in caplog.text
    threading.Timer(0.2, child.go.set).start()
    worker_process_shutdown.send(sender=None, pid=1, exitcode=0x9B)
    assert child.stored == [("a", False)]
