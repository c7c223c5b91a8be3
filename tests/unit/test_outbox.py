"""The outbox: nobody waits for it, and it forgets nothing that it has taken."""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict

import pytest

from celery_s3.errors import AccessDenied
from celery_s3.outbox import Outbox


def test_nobody_waits() -> None:
    """A write that hangs holds neither who hands over the next one, nor that one."""
    outbox, go, written = Outbox(), threading.Event(), []
    outbox.put("a", "first", go.wait)
    began = time.monotonic()
    for number in range(500):
        outbox.put(f"id-{number}", "other", lambda number=number: written.append(number))
    assert time.monotonic() - began < 1
    while len(outbox) > 1:
        time.sleep(0.001)
    assert len(written) == 500
    go.set()
    assert outbox.flush(5) == []


def test_in_order_for_each_id() -> None:
    """Two states of one task never pass each other, while those of other tasks are written at the same time."""
    outbox, seen, under_way = Outbox(threads=8), defaultdict(list), defaultdict(int)

    def write(id: str, number: int) -> None:
        under_way[id] += 1
        assert under_way[id] == 1
        time.sleep(0.001)
        seen[id].append(number)
        under_way[id] -= 1

    for number in range(20):
        for id in "abcdef":
            outbox.put(id, f"{number} of {id}", lambda id=id, number=number: write(id, number))
    assert outbox.flush(10) == []
    assert seen == {id: list(range(20)) for id in "abcdef"}


def test_as_many_at_a_time_as_it_has_threads() -> None:
    """500 writes of 20 ms each take a moment, not ten seconds; and there are never more threads than that."""
    outbox, now, most, lock = Outbox(threads=4), [0], [0], threading.Lock()

    def write() -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.005)
        with lock:
            now[0] -= 1

    for number in range(40):
        outbox.put(str(number), "one", write)
    assert outbox.flush(10) == []
    assert most[0] == 4


def test_a_write_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """It is told in one line with its reason, and the next one of the same task is written."""
    outbox, written = Outbox(), []

    def denied() -> None:
        raise AccessDenied("no", "put", "bucket", "key", 403)

    outbox.put("a", "FAILURE of task a", denied)
    outbox.put("a", "REVOKED of task a", lambda: written.append("a"))
    assert outbox.flush(5) == []
    assert written == ["a"]
    (line,) = caplog.records
    assert line.getMessage().startswith("FAILURE of task a is lost: ")
    assert "403" in line.getMessage() or "denied" in line.getMessage().lower()
    assert line.exc_info in (None, False)


def test_bounded() -> None:
    """Where more wait than there is room for, whoever brings another is told at once: memory has an end."""
    outbox, go = Outbox(limit=3, threads=1), threading.Event()
    taken = [outbox.put(str(number), f"write {number}", go.wait) for number in range(4)]
    assert taken == [True, True, True, False]
    go.set()
    assert outbox.flush(5) == []


def test_what_is_left_at_the_end() -> None:
    """A shutdown names what could not be written."""
    outbox, go = Outbox(threads=1), threading.Event()
    outbox.put("a", "FAILURE of task a", go.wait)
    outbox.put("b", "REVOKED of task b", go.wait)
    assert outbox.flush(0.05) == ["FAILURE of task a", "REVOKED of task b"]
    go.set()
    assert outbox.flush(5) == []


def test_threads_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has nothing to write has no thread for it."""
    monkeypatch.setattr("celery_s3.outbox.IDLE", 0.05)
    outbox, threads = Outbox(), []
    outbox.put("a", "one", lambda: threads.append(threading.current_thread()))
    assert outbox.flush(5) == []
    threads[0].join(5)
    assert not threads[0].is_alive()
    outbox.put("a", "another", lambda: threads.append(threading.current_thread()))
    assert outbox.flush(5) == []
    assert len(threads) == 2


def test_a_forked_child_has_its_own() -> None:
    """What its parent has still to write is the parent's: a child writes none of it, and is not held by its locks."""
    outbox, go = Outbox(threads=1), threading.Event()
    outbox.put("a", "the parent's", go.wait)
    pid = os.fork()
    if not pid:
        fine = len(outbox) == 0 and outbox.put("b", "the child's", lambda: None) and outbox.flush(5) == []
        os._exit(0 if fine else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    go.set()
    assert outbox.flush(5) == []
