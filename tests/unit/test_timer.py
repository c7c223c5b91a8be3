"""What is to be done later is done, in its order, by one thread that ends when nothing is left."""

from __future__ import annotations

import os
import threading
import time

import pytest

from celery_s3.chords.timer import Timer


def _wait(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_in_order_of_their_times():
    """What is added last may be due first."""
    timer, done = Timer(), []
    timer(0.2, lambda: done.append("last"))
    timer(0.05, lambda: done.append("first"))
    timer(0, lambda: done.append("now"))
    _wait(lambda: len(done) == 3)
    assert done == ["now", "first", "last"]


def test_one_thread_for_all_and_none_for_nothing():
    """A thousand entries wait in one thread; it ends with the last one, and a later entry starts another."""
    timer, done = Timer(), []
    before = set(threading.enumerate())
    for _ in range(1000):
        timer(0.5, lambda: done.append(1))
    (waiting,) = (thread for thread in set(threading.enumerate()) - before if thread.name == "celery-s3-chord")
    _wait(lambda: len(done) == 1000 and not waiting.is_alive())
    timer(0.01, lambda: done.append(2))
    _wait(lambda: done[-1] == 2)


def test_one_that_fails_leaves_the_others(caplog):
    """An error in one function is that function's, and logged."""
    timer, done = Timer(), []
    timer(0.01, lambda: 1 / 0)
    timer(0.05, lambda: done.append(1))
    _wait(lambda: done)
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_has_a_timer_of_its_own():
    """A child does not wait for its parent's entries, nor for a thread that it does not have."""
    timer = Timer()
    timer(60, lambda: None)
    if (child := os.fork()) == 0:
        done: list[int] = []
        timer(0.01, lambda: done.append(1))
        deadline = time.monotonic() + 5
        while not done and time.monotonic() < deadline:
            time.sleep(0.01)
        os._exit(0 if done else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_no_thread_to_be_had_for_a_while(monkeypatch):
    """Where no thread can be started, nothing is raised, and the next entry brings all of them."""
    timer, done = Timer(), []
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", _no_thread)
        timer(0.01, lambda: done.append(1))
    timer(0.01, lambda: done.append(2))
    _wait(lambda: sorted(done) == [1, 2])


def _no_thread(thread):
    raise RuntimeError("can't start new thread")


def test_closed():
    """What waits when it is closed is never done, nor what is added afterwards; its thread ends."""
    timer, done = Timer(), []
    before = set(threading.enumerate())
    timer(0.5, lambda: done.append(1))
    waiting = set(threading.enumerate()) - before
    timer.close()
    _wait(lambda: not any(thread.is_alive() for thread in waiting))
    timer(0, lambda: done.append(2))
    time.sleep(0.1)
    assert done == []


def test_what_has_begun_when_it_is_closed():
    """It ends, and what it wants to be done later is not done."""
    timer, begun, go_on, done = Timer(), threading.Event(), threading.Event(), []

    def work():
        begun.set()
        go_on.wait(10)
        timer(0, lambda: done.append("later"))
        done.append("now")

    timer(0, work)
    begun.wait(10)
    timer.close()
    go_on.set()
    _wait(lambda: done)
    time.sleep(0.05)
    assert done == ["now"]


def test_closed_before_anything():
    """One that was never used makes nothing to close it."""
    timer = Timer()
    timer.close()
    assert timer._entries.peek() is None
