"""Until when a request may be tried again: a caller's ``timeout`` bounds the retries, a patient one goes on.

Context variables: :class:`~celery_s3.store.parallel.Pool` carries them into its threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import TypeVar

__all__ = ["patience", "patient", "remaining", "retried_until", "retried_while"]

_T = TypeVar("_T")

_moment: ContextVar[float | None] = ContextVar("celery-s3-moment", default=None)
_patience: ContextVar[float | None] = ContextVar("celery-s3-patience", default=None)
_wanted: ContextVar[Callable[[], bool] | None] = ContextVar("celery-s3-wanted", default=None)


@contextmanager
def _inside(variable: ContextVar[_T], value: _T) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def retried_until(moment: float | None) -> AbstractContextManager[None]:
    """Inside, no request is tried again after ``moment`` (of ``time.monotonic``); ``None`` sets no bound."""
    return _inside(_moment, moment)


def retried_while(wanted: Callable[[], bool]) -> AbstractContextManager[None]:
    """Inside, no request is tried again once nobody wants it any more."""
    return _inside(_wanted, wanted)


def patient(seconds: float) -> AbstractContextManager[None]:
    """Inside, what fails transiently is tried again for so many ``seconds`` from now, however many tries that takes.

    For what must not be lost: a final state, a part of a chord, a mark. The bounds of :func:`retried_until` and
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
