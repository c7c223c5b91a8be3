"""Until when the request under way in this thread may be tried again: a caller's ``timeout`` bounds the retries too."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["remaining", "retried_until"]

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


def remaining() -> float | None:
    """Seconds left, ``None`` where there is no bound."""
    moment: float | None = getattr(_thread, "moment", None)
    return None if moment is None else moment - time.monotonic()
