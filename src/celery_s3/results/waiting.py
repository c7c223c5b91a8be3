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
from itertools import chain, islice
from random import SystemRandom
from typing import Protocol, TypeVar

from celery.exceptions import TimeoutError

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

#: The fewest and the most members that a look at a group asks for in vain.
FEWEST = 4
MOST = 16


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


#: Says which id to ask for next; ``None``: none now, perhaps one after the next answer.
NextQuestion = Callable[[], str | None]
#: Asks in parallel, as long as there is a next question: ``(id, what was found or None)`` in the order of the answers.
Ask = Callable[[NextQuestion], Iterator[tuple[str, T | None]]]


class _Look:
    """One look at a group: the ids to ask for, as long as asking is worth it.

    ``size`` questions are free and each found member earns another: a look in vain asks ``size`` times, a
    finished group is read to its end. As long as nothing was missing, a member beyond the first 16 earns two:
    a group that is finished is read with ever more requests under way.

    Tasks finish roughly in the order in which they were sent, so a look goes along the oldest members. Half of
    the free questions go to the others in ``turn``, so that an early failure or a fast member is seen as well.
    """

    def __init__(self, pending: list[str], size: int, turn: int) -> None:
        self.found = 0
        self.missed = 0
        self.turn = turn % len(pending)
        self._size = size
        self._asked: set[str] = set()
        others = islice(chain(pending[self.turn :], pending[: self.turn]), max(1, size // 2))
        self._oldest = iter(pending)
        self._order = chain(self._alternate(others), self._oldest)

    def _alternate(self, others: Iterator[str]) -> Iterator[str]:
        for id in others:
            self.turn += 1
            yield id
            yield from islice(self._oldest, 1)

    def next_question(self) -> str | None:
        growth = 0 if self.missed else max(0, self.found - MOST)
        if len(self._asked) >= self._size + self.found + growth:
            return None
        id = next((id for id in self._order if id not in self._asked), None)
        if id is not None:
            self._asked.add(id)
        return id


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
    """Yield ``(id, found)`` for every id as it appears, in about one request per id and a few per look.

    Arguments:
        passes: give up quietly after so many looks, each of them at every member (Celery's ``max_iterations``).

    Raises:
        celery.exceptions.TimeoutError: some were not there after ``timeout`` seconds.
    """
    pending = dict.fromkeys(ids)
    pace = _Pace(delay, timeout, clock)
    size, turn, looks = MOST, 0, 0
    while pending:
        look = _Look(list(pending), size if passes is None else len(pending), turn)
        for id, value in ask(look.next_question):
            if value is None:
                look.missed += 1
            else:
                look.found += 1
                del pending[id]
                yield id, value
        size, turn = min(MOST, max(FEWEST, (look.found or size) // 2)), look.turn
        looks += 1
        if not pending or looks == passes:
            return
        if on_interval is not None:
            on_interval()
        pace.nap()
