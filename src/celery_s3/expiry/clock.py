"""The server's time, which alone decides what is deleted."""

from __future__ import annotations

import time
from collections.abc import Callable

from celery_s3.store.clients.control import Control

__all__ = ["server_clock"]


def server_clock(
    control: Control, wall: Callable[[], float] = time.time, clock: Callable[[], float] = time.monotonic
) -> Callable[[], float]:
    """A clock that tells the server's time, in seconds since the epoch, after one request.

    It is up to a second behind, never ahead: nothing is deleted before its time. Where the server's answers have no
    date, it is this machine's clock.
    """
    control.region()
    server_start, local_start = wall() - (control.skew or 0.0) - 1.0, clock()
    return lambda: server_start + clock() - local_start
