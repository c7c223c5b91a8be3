"""The server's time, which alone decides what is deleted."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from celery_s3.errors import AccessDenied
from celery_s3.store.clients.control import Control

__all__ = ["server_clock"]


def server_clock(
    control: Control, wall: Callable[[], float] = time.time, clock: Callable[[], float] = time.monotonic
) -> Callable[[], float]:
    """A clock that tells the server's time, in seconds since the epoch, after one request.

    A server that tells none is taken to have this machine's.

    Raises:
        StoreError: it does not answer; a refusal is an answer.
    """
    with suppress(AccessDenied):
        control.region()
    began, then = wall() - (control.skew or 0.0) - 1.0, clock()
    return lambda: began + clock() - then
