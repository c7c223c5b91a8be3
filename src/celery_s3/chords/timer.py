"""What is to be done later: one thread waits for all of it, and does it, as long as there is any."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable

from celery_s3.printable import get_logger
from celery_s3.processes import PerProcess, without_sigterm

__all__ = ["Timer"]

logger = get_logger(__name__)


class Timer:
    """Runs functions after some seconds, one after the other, in one daemon thread of the process.

    Celery's own timers do not serve: a child of a prefork worker has none, and threads that sleep are not free
    where many chords wait for a lease. What is left when the process ends is lost, unless it is flushed.
    """

    def __init__(self) -> None:
        self._entries = PerProcess(_Entries)
        self._closed = False

    def __call__(self, seconds: float, fn: Callable[[], None]) -> None:
        """Call ``fn`` after so many seconds; never, once the timer is closed."""
        if not self._closed:
            self._entries.get().add(time.monotonic() + seconds, fn)

    def flush(self) -> None:
        """Call all that waits now, in this thread."""
        if (entries := self._entries.peek()) is not None:
            for fn in entries.clear():
                fn()

    def close(self) -> None:
        """Drop what waits, and what comes from now on; what has begun goes on to its end."""
        self._closed = True
        if (entries := self._entries.peek()) is not None:
            entries.clear()


class _Entries:
    """What waits in this process, the next one that is due first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._running = False

    def add(self, due: float, fn: Callable[[], None]) -> None:
        with self._changed:
            heapq.heappush(self._heap, (due, next(self._numbers), fn))
            self._changed.notify()
            if self._running:
                return
            thread = threading.Thread(target=self._run, name="celery-s3-chord", daemon=True)
            try:
                without_sigterm(thread.start)
            except RuntimeError:
                logger.warning("No thread can be started; what is to be done later waits for the next such thing.")
            else:
                self._running = True

    def clear(self) -> list[Callable[[], None]]:
        with self._changed:
            waiting = [fn for _, _, fn in sorted(self._heap, key=lambda entry: entry[:2])]
            self._heap.clear()
            self._changed.notify()
        return waiting

    def _run(self) -> None:
        while (fn := self._next()) is not None:
            try:
                fn()
            except Exception:
                logger.exception("What was to be done later for chords failed")

    def _next(self) -> Callable[[], None] | None:
        """Wait for the next one that is due; ``None`` where there is none left."""
        with self._changed:
            while self._heap:
                due, _, fn = self._heap[0]
                pause = due - time.monotonic()
                if pause <= 0:
                    heapq.heappop(self._heap)
                    return fn
                self._changed.wait(pause)
            self._running = False
            return None
