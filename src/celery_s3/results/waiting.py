"""When to look again: a pure schedule, and the two loops that follow it.

S3 tells nobody when an object appears, so somebody has to look. A look costs a GET and a round trip. The
nap grows with the square root of the time already waited: short tasks are seen within milliseconds, and the
latency's share of a long task and the looks per second both fall (``docs/decisions/waiting.md``).

Time, sleep and randomness are passed in.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from random import SystemRandom
from typing import Protocol, TypeVar

from celery.exceptions import TimeoutError

from .window import Window

__all__ = ["Clock", "adaptive", "each", "fixed", "schedule", "until"]

T = TypeVar("T")
#: Draws nothing from the generator that the application may have seeded.
_CHANCE = SystemRandom()

#: Seconds to sleep after having waited so many seconds.
Delay = Callable[[float], float]

#: Seconds: the first nap, what each root second adds, and the longest nap.
FIRST = 0.020
GROWTH = 0.10
LONGEST = 2.0

#: Celery's default for ``interval``: the caller said nothing.
UNSAID = 0.5


class Clock(Protocol):
    """What the loops need of time; :class:`time` itself is one."""

    def monotonic(self) -> float:
        """Seconds that pass, from any start."""

    def sleep(self, seconds: float, /) -> None:
        """Let so many seconds pass."""


def adaptive(jitter: Callable[[float, float], float] = _CHANCE.uniform) -> Delay:
    """From 20 ms to 2 s with the root of the time waited, jittered so that waiters do not march in step."""

    def delay(waited: float) -> float:
        return min(FIRST + GROWTH * math.sqrt(waited), LONGEST) * jitter(0.9, 1.1)

    return delay


def fixed(interval: float) -> Delay:
    """The caller's interval, to the letter."""
    return lambda _waited: interval


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

    def nap(self) -> float:
        """Sleep until the next look, never past the deadline; the seconds since the first one.

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
        return self.clock.monotonic() - self.began


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


#: Says which id to ask for next; ``None``: none now, perhaps one after the next answer.
NextQuestion = Callable[[], str | None]
#: Asks in parallel, as long as there is a next question: ``(id, what was found or None)`` in the order of the answers.
Ask = Callable[[NextQuestion], Iterator[tuple[str, T | None]]]


def each(
    ids: Iterable[str],
    ask: Ask[T],
    *,
    delay: Delay,
    timeout: float | None = None,
    on_interval: Callable[[], object] | None = None,
    passes: int | None = None,
    clock: Clock = time,
) -> Iterator[tuple[str, T]]:
    """Yield ``(id, found)`` for every id as it appears: which of them a look asks for, a :class:`Window` says.

    Arguments:
        passes: give up quietly after so many looks, each of them at every member (Celery's ``max_iterations``).

    Raises:
        celery.exceptions.TimeoutError: some were not there after ``timeout`` seconds.
    """
    window = Window(ids, everyone=passes is not None)
    pace = _Pace(delay, timeout, clock)
    looks = 0
    while window.pending:
        for id, value in ask(window.next_question):
            window.answer(id, found=value is not None)
            if value is not None:
                yield id, value
                del value  # it may be large
        looks += 1
        if not window.pending or looks == passes:
            return
        if on_interval is not None:
            on_interval()
        window.look_again(pace.nap())
