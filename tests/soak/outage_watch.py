"""How long something takes while ``outage.py`` runs, by two clocks; and the client that asks for what is not there.

Beside others that load the machine a process now and then stands still through no fault of its own. So there is the
wall's clock, and one of the process: a thread that sleeps 10 ms again and again, and counts no more than 20 ms for each
time. While the machine is free, both go alike; a process that does not get to run stops its own.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

TICK, MOST = 0.01, 0.02
#: Seconds from which a time is written down.
WORTH = 0.1
#: Seconds from which it is written down where a worker stands still.
STANDS = 0.7
#: Seconds between two turns of a worker's event loop, as this asks for them.
TURN = 0.1


class Events:
    """A file of events, a line of JSON each, written whole whatever happens to this process."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, kind: str, *about: Any) -> None:
        """Add one, as ``[time, kind, ...]``."""
        with self._path.open("ab", buffering=0) as file:
            file.write(f"{json.dumps([time.time(), kind, *about])}\n".encode())

    def read(self) -> list[tuple[str, Any]]:
        """All of them, without their times."""
        return [(kind, about) for _, kind, *about in map(json.loads, self._path.read_text().splitlines())]


class Clocks:
    """Both clocks; the thread that keeps the process's own begins now.

    Arguments:
        each: called about every 10 ms.
    """

    def __init__(self, each: Callable[[], object] = lambda: None) -> None:
        self._own = 0.0
        self._each = each
        threading.Thread(target=self._tick, name="outage-clock", daemon=True).start()

    def now(self) -> tuple[float, float]:
        """The wall's and the process's seconds."""
        return time.monotonic(), self._own

    def _tick(self) -> None:
        last = time.monotonic()
        while True:
            time.sleep(TICK)
            now = time.monotonic()
            self._own += min(now - last, MOST)
            last = now
            self._each()


class Longest:
    """Writes down the longest time of a kind, whenever it gets longer; by each clock.

    Arguments:
        kind: of the events: ``[kind, wall, own]``.
    """

    def __init__(self, events: Events, kind: str) -> None:
        self._events = events
        self._kind = kind
        self._longest = [WORTH, WORTH]

    def took(self, began: tuple[float, float], now: tuple[float, float]) -> None:
        """It began and ended then, by :meth:`Clocks.now`."""
        times = [after - before for before, after in zip(began, now, strict=True)]
        longest = [max(pair) for pair in zip(times, self._longest, strict=True)]
        if longest != self._longest:
            self._longest = longest
            self._events.add(self._kind, *longest)


def watch_loop(consumer: Any, events: Events) -> None:
    """Write down how long the event loop of a worker, in which it receives tasks, does not come round."""
    if consumer.hub is None:
        return
    longest = Longest(events, "silence")
    turned: tuple[float, float] | None = None

    told = True
    thread = threading.get_ident()

    def look() -> None:
        nonlocal told
        if turned is None:
            return
        now = clocks.now()
        longest.took(turned, now)
        if now[1] - turned[1] > STANDS and not told:
            told = True
            stack = traceback.extract_stack(sys._current_frames().get(thread))
            events.add("where", [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in stack[-8:]])

    def turn() -> None:
        nonlocal turned, told, thread
        turned, told, thread = clocks.now(), False, threading.get_ident()

    clocks = Clocks(look)
    consumer.hub.call_repeatedly(TURN, turn)


def ask(conf: dict[str, object], events: Events) -> None:
    """Ask for ever, with ``get(timeout=1)``, for a result that is not there; the longest time is written down."""
    from celery import Celery

    app = Celery("outage-asker", set_as_current=False)
    app.conf.update(conf)
    with suppress(Exception):  # imports what it needs
        app.AsyncResult("never-sent").get(timeout=1)
    clocks, longest = Clocks(), Longest(events, "get")
    while True:
        began = clocks.now()
        with suppress(Exception):
            app.AsyncResult("never-sent").get(timeout=1)
        longest.took(began, clocks.now())
        time.sleep(0.3)


if __name__ == "__main__":
    ask(json.loads(os.environ["OUTAGE_CONF"]), Events(Path(os.environ["OUTAGE_EVENTS"])))
