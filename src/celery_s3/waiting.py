"""When to look again: a pure schedule, and the two loops that follow it.

S3 tells nobody when an object appears, so somebody has to look. A look costs a GET and a round trip. The
nap grows with the square root of the time already waited: short tasks are seen within milliseconds, and the
latency's share of a long task and the looks per second both fall (``docs/decisions/waiting.md``).

Time, sleep and randomness are passed in.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Protocol, TypeVar

from celery.exceptions import TimeoutError

__all__ = ["Clock", "adaptive", "each", "fixed", "schedule", "until"]

T = TypeVar("T")

#: Seconds to sleep after having waited so many seconds.
Delay = Callable[[float], float]

#: Seconds: the first nap, what each root second adds, and the longest nap.
FIRST = 0.020
GROWTH = 0.10
LONGEST = 2.0

#: Celery's default for ``interval``: the caller said nothing.
UNSAID = 0.5

#: The fewest absent members that a look at a group asks for before it gives up.
FEWEST_MISSES = 4


class Clock(Protocol):
    """What the loops need of time; :class:`time` itself is one."""

    def monotonic(self) -> float: ...

    def sleep(self, seconds: float, /) -> None: ...


def adaptive(jitter: Callable[[float, float], float] = random.uniform) -> Delay:
    """From 20 ms to 2 s with the root of the time waited, jittered so that waiters do not march in step."""

    def delay(waited: float) -> float:
        return min(FIRST + GROWTH * math.sqrt(waited), LONGEST) * jitter(0.9, 1.1)

    return delay


def fixed(interval: float) -> Delay:
    """The caller's interval, to the letter."""
    return lambda waited: interval


def schedule(interval: float | None) -> Delay:
    """What the ``interval`` argument of ``get()`` and ``join()`` asks for."""
    return adaptive() if interval is None or interval == UNSAID else fixed(interval)


class _Pace:
    """The nap between two looks, and the deadline."""

    def __init__(self, delay: Delay, timeout: float | None, clock: Clock) -> None:
        self.delay = delay
        self.timeout = timeout
        self.clock = clock
        self.began = clock.monotonic()

    def nap(self) -> None:
        """Sleep until the next look; never past the deadline.

        Raises:
            celery.exceptions.TimeoutError: the deadline has passed.
        """
        waited = self.clock.monotonic() - self.began
        nap = self.delay(waited)
        if self.timeout is not None:
            if waited >= self.timeout:
                raise TimeoutError(f"The result was not there after {self.timeout} seconds.")
            nap = min(nap, self.timeout - waited)
        self.clock.sleep(nap)


def until(
    look: Callable[[], T | None],
    *,
    delay: Delay,
    timeout: float | None = None,
    on_interval: Callable[[], object] | None = None,
    clock: Clock = time,
) -> T:
    """Look until there is something, and return it. ``timeout=0`` is one look.

    Raises:
        celery.exceptions.TimeoutError: nothing was there after ``timeout`` seconds.
    """
    pace = _Pace(delay, timeout, clock)
    while True:
        found = look()
        if found is not None:
            return found
        if on_interval is not None:
            on_interval()
        pace.nap()


#: Reads ids in parallel: ``(id, what was found or None)`` in the order in which the answers come. It asks
#: for no further id once its argument is exhausted.
Stream = Callable[[Iterable[str]], Iterator[tuple[str, T | None]]]


class _Window:
    """Which pending members a look asks for, and when it has seen enough absent ones.

    Tasks finish roughly in the order in which they were sent, so a look goes along the oldest members; every
    other question goes to one of the rest in turn, so that an early failure or a fast member is seen as well.
    A look ends after ``misses`` absent members: fewer when the last look found nothing.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.misses = limit
        self.turn = 0

    def order(self, pending: list[str]) -> Iterator[str]:
        start = self.turn % len(pending)
        seen: set[str] = set()
        for oldest, in_turn in zip(pending, chain(pending[start:], pending[:start]), strict=True):
            self.turn += 1
            for id in (oldest, in_turn):
                if id not in seen:
                    seen.add(id)
                    yield id

    def learn(self, found: int) -> None:
        self.misses = min(self.limit, max(FEWEST_MISSES, found or self.misses // 2))


def each(
    ids: Iterable[str],
    stream: Stream[T],
    *,
    limit: int,
    delay: Delay,
    timeout: float | None = None,
    on_interval: Callable[[], object] | None = None,
    passes: int | None = None,
    clock: Clock = time,
) -> Iterator[tuple[str, T]]:
    """Yield ``(id, found)`` for every id as it appears, in about one request per id and a few per look.

    Arguments:
        limit: the most absent members that one look may ask for.
        passes: give up quietly after so many looks, each of them at every member (Celery's ``max_iterations``).

    Raises:
        celery.exceptions.TimeoutError: some were not there after ``timeout`` seconds.
    """
    pending = dict.fromkeys(ids)
    window = _Window(limit)
    pace = _Pace(delay, timeout, clock)
    looks = 0
    while pending:
        misses = found = 0

        def wanted() -> Iterator[str]:
            for id in window.order(list(pending)):
                if passes is None and misses >= window.misses:  # noqa: B023 (read while this look goes on)
                    return
                yield id

        for id, value in stream(wanted()):
            if value is None:
                misses += 1
            else:
                found += 1
                del pending[id]
                yield id, value
        window.learn(found)
        looks += 1
        if not pending or looks == passes:
            return
        if on_interval is not None:
            on_interval()
        pace.nap()
