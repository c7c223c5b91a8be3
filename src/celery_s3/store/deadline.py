"""Until when a request may go on and be tried again: a caller's ``timeout`` bounds it, patience prolongs it.

Context variables: :class:`~celery_s3.store.parallel.Pool` carries them into its threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar, Token
from typing import Generic, TypeVar

__all__ = [
    "GRACE",
    "allowed",
    "longer",
    "patience",
    "patient",
    "remaining",
    "retried_until",
    "retried_while",
    "slack",
]

_T = TypeVar("_T")

#: Seconds that a request has at least: one that begins just before a deadline can still be answered.
GRACE = 0.5

_moment: ContextVar[float | None] = ContextVar("celery-s3-moment", default=None)
_patience: ContextVar[float | None] = ContextVar("celery-s3-patience", default=None)
_wanted: ContextVar[Callable[[], bool] | None] = ContextVar("celery-s3-wanted", default=None)

_slack: ContextVar[int] = ContextVar("celery-s3-slack", default=1)


class _inside(Generic[_T]):  # noqa: N801 - used like a function, as those of contextlib
    """A context variable's value inside of a block. A class, since every result passes one: a generator costs more."""

    __slots__ = ("_token", "_value", "_variable")
    _token: Token[_T]

    def __init__(self, variable: ContextVar[_T], value: _T) -> None:
        self._variable = variable
        self._value = value

    def __enter__(self) -> None:
        self._token = self._variable.set(self._value)

    def __exit__(self, *_: object) -> None:
        self._variable.reset(self._token)


def retried_until(moment: float | None) -> AbstractContextManager[None]:
    """Inside, no request goes on or is tried again after ``moment`` of ``time.monotonic``; the innermost one counts.

    ``None`` changes nothing.
    """
    return nullcontext() if moment is None else _inside(_moment, moment)


def retried_while(wanted: Callable[[], bool]) -> AbstractContextManager[None]:
    """Inside, no request is tried again once nobody wants it any more, here or further out."""
    further_out = _wanted.get()
    return _inside(_wanted, wanted if further_out is None else lambda: wanted() and further_out())


def patient(seconds: float) -> AbstractContextManager[None]:
    """Inside, what fails transiently is tried again for so many ``seconds`` from now, however many tries that takes.

    At least as often as anything is, though. For what must not be lost: a final state, a part of a chord, a mark. The
    bounds of :func:`retried_until` and
    :func:`retried_while` hold here too.
    """
    return _inside(_patience, time.monotonic() + seconds)


def patience() -> float | None:
    """Seconds left of :func:`patient`, ``None`` outside of it."""
    moment = _patience.get()
    return None if moment is None else moment - time.monotonic()


def remaining() -> float | None:
    """Seconds left, ``None`` where there is no bound."""
    wanted, moment = _wanted.get(), _moment.get()
    if wanted is not None and not wanted():
        return 0.0
    return None if moment is None else moment - time.monotonic()


def allowed() -> float | None:
    """Seconds that a request may take which begins now, ``None`` where there is no bound."""
    left = remaining()
    return None if left is None else max(left, GRACE)


def longer(failures: int) -> AbstractContextManager[None]:
    """Inside, the body of a request has twice the time for each of its failures: perhaps the line is slow."""
    return _inside(_slack, 2 ** min(failures, 4))


def slack() -> int:
    """How many times its usual time a large body has."""
    return _slack.get()
