"""When to look again: a pure schedule, and the two loops that follow it.

S3 tells nobody when an object appears, so somebody has to look. A look costs a GET and a round trip. The
nap grows with the square root of the time already waited: short tasks are seen within milliseconds, and the
latency's share of a long task and the looks per second both fall (``docs/decisions/waiting.md``).

Where the broker tells (:mod:`celery_s3.notices`), a notice ends a nap, and looks are few: what they find is what nobody
was told of (``docs/decisions/notices.md``).

Time, sleep and randomness are passed in.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from random import SystemRandom
from typing import Protocol, TypeVar

from celery.exceptions import TimeoutError

from .window import Window

__all__ = ["Clock", "News", "adaptive", "each", "fixed", "schedule", "seldom", "until"]

T = TypeVar("T")
#: Draws nothing from the generator that the application may have seeded.
_CHANCE = SystemRandom()

#: Seconds to sleep after having waited so many seconds.
Delay = Callable[[float], float]

#: Seconds: the first nap, what each root second adds, and the longest nap.
FIRST = 0.020
GROWTH = 0.10
LONGEST = 2.0

#: Seconds waited at which there is a look although a notice is expected; and how often after the last of these.
SELDOM = (1.0, 2.3, 3.8, 5.8, 8.2)
AT_LEAST_EVERY = 10.0

#: Seconds before its end at which a nap was not ended by news.
_EARLY = 0.001

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


def seldom(waited: float) -> float:
    """Until the next of a few looks, each of which costs a GET that a notice should have saved."""
    following = next((moment for moment in SELDOM if moment > waited + FIRST), None)
    return AT_LEAST_EVERY if following is None else following - waited


def schedule(interval: float | None, listening: Callable[[], bool] = lambda: False) -> Delay:
    """What the ``interval`` argument of ``get()`` and ``join()`` asks for.

    Arguments:
        listening: whether a notice is to be expected, asked before each nap.
    """
    if not (interval is None or interval == UNSAID):
        return fixed(interval)
    polling = adaptive()
    return lambda waited: seldom(waited) if listening() else polling(waited)


class News(Protocol):
    """Who is told that there is a reason to look."""

    def wait(self, seconds: float) -> None:
        """Wait for so many seconds, or until there is one."""

    def news(self) -> Sequence[str]:
        """What there was news of."""

    def missed(self) -> None:
        """Something was found that there was no news of."""


class _Pace:
    """The nap between two looks, and the deadline."""

    def __init__(self, delay: Delay, timeout: float | None, clock: Clock, news: News | None) -> None:
        self.delay = delay
        self.timeout = timeout
        self.clock = clock
        self.interrupted = news is not None
        self.sleep = clock.sleep if news is None else news.wait
        self.began = clock.monotonic()
        self.due: float | None = None
        self.rest = adaptive(max)

    def nap(self, *, in_vain: bool = True) -> float:
        """Sleep until the next look, never past the deadline; the seconds since the first one.

        Arguments:
            in_vain: the last look has found nothing. If news had ended the nap before it, the next one is as long as
                without: whoever sends false news makes looks no more frequent than they always were.

        Raises:
            celery.exceptions.TimeoutError: the deadline has passed.
        """
        waited = self.clock.monotonic() - self.began
        if self.timeout is not None and waited >= self.timeout:
            raise TimeoutError(f"The result was not there after {self.timeout} seconds.")
        nap = self.delay(waited)
        if self.due is None:
            self.due = waited + nap
        else:  # after news: what was due before is due still
            nap = max(0.0, min(nap, self.due - waited))
            self.due = waited + nap
            if in_vain:
                rest = self._in_time(min(nap, self.rest(waited)), waited)
                self.clock.sleep(rest)
                waited, nap = waited + rest, nap - rest
        self.sleep(self._in_time(nap, waited))
        now = self.clock.monotonic() - self.began
        if not self.interrupted or now >= self.due - _EARLY:
            self.due = None
        return now

    def _in_time(self, nap: float, waited: float) -> float:
        return nap if self.timeout is None else max(0.0, min(nap, self.timeout - waited))

    @property
    def woken(self) -> bool:
        """Whether news has ended the last nap."""
        return self.due is not None


def until(
    look: Callable[[], T | None],
    *,
    delay: Delay,
    timeout: float | None = None,
    on_interval: Callable[[], object] | None = None,
    clock: Clock = time,
    news: News | None = None,
) -> T:
    """Look until there is something, and return it. ``timeout=0`` is one look.

    Raises:
        celery.exceptions.TimeoutError: nothing was there after ``timeout`` seconds.
    """
    pace = _Pace(delay, timeout, clock, news)
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
    news: News | None = None,
) -> Iterator[tuple[str, T]]:
    """Yield ``(id, found)`` for every id as it appears: which of them a look asks for, a :class:`Window` says.

    Arguments:
        passes: give up quietly after so many looks, each of them at every member (Celery's ``max_iterations``).

    Raises:
        celery.exceptions.TimeoutError: some were not there after ``timeout`` seconds.
    """
    window = Window(ids, everyone=passes is not None)
    pace = _Pace(delay, timeout, clock, news)
    looks, heard = 0, list[str]()
    while window.pending:
        before = len(window.pending)
        for id, value in ask(window.next_question):
            window.answer(id, found=value is not None)
            if value is not None:
                yield id, value
                del value  # it may be large
        in_vain = len(window.pending) == before
        if looks and not heard and not in_vain and news is not None:
            news.missed()
        if not window.pending:
            return
        if not heard:
            looks += 1
            if looks == passes:
                return
            if on_interval is not None:
                on_interval()
        waited = pace.nap(in_vain=in_vain)
        told = dict.fromkeys(news.news()) if news is not None and pace.woken else ()
        heard = [id for id in told if id in window.pending]
        if heard:
            window.look_at(heard)
        else:
            window.look_again(waited)
