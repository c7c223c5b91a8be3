"""Until when the request under way in this thread may be tried again: a caller's ``timeout`` bounds the retries too."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["moment", "remaining", "retried_until", "retried_while"]

_thread = threading.local()


@contextmanager
def retried_until(moment: float | None) -> Iterator[None]:
    """Inside, no request is tried again after ``moment`` (of ``time.monotonic``); ``None`` sets no bound."""
    outer = getattr(_thread, "moment", None)
    _thread.moment = moment
    try:
        yield
    finally:
        _thread.moment = outer


@contextmanager
def retried_while(wanted: Callable[[], bool]) -> Iterator[None]:
    """Inside, no request is tried again once nobody wants it any more."""
    outer = getattr(_thread, "wanted", None)
    _thread.wanted = wanted
    try:
        yield
    finally:
        _thread.wanted = outer


def moment() -> float | None:
    """The moment that :func:`retried_until` has set in this thread, for those that work for it."""
    set_to: float | None = getattr(_thread, "moment", None)
    return set_to


def remaining() -> float | None:
    """Seconds left, ``None`` where there is no bound."""
    wanted: Callable[[], bool] | None = getattr(_thread, "wanted", None)
    if wanted is not None and not wanted():
        return 0.0
    until = moment()
    return None if until is None else until - time.monotonic()
