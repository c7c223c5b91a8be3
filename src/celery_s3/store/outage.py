"""One log for an outage, however many requests wait for its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from celery_s3.errors import StoreError
from celery_s3.printable import get_logger

__all__ = ["Outage"]

logger = get_logger(__name__)

#: Seconds for which a request has failed before anybody is told, and between two lines.
BEGINNING, BETWEEN = 1.0, 30.0


class Outage:
    """What this process's log says of an outage: when it begins, every half minute, and when it is over.

    It is one as long as a request that must not be lost is being tried again.

    Arguments:
        name: of what is away.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, name: str = "S3") -> None:
        self._clock = clock
        self._name = name
        self._lock = threading.Lock()
        self._waiting = 0
        self._began = 0.0
        self._told = 0.0

    def joined(self, error: StoreError, since: float) -> bool:
        """A request has failed; whether it counts among those that wait: it has failed for a second.

        Arguments:
            since: when it failed first, by the clock.
        """
        now = self._clock()
        if now - since < BEGINNING:
            return False
        with self._lock:
            self._waiting += 1
            begins = self._waiting == 1
            if begins:
                self._began, self._told = since, now
        if begins:
            what = "%s does not take what must not be lost: it is kept, and tried again. %s"
            logger.warning(what, self._name, error)
        return True

    def lasts(self, error: StoreError) -> None:
        """A request that has joined has failed again."""
        now = self._clock()
        with self._lock:
            due = now - self._told >= BETWEEN
            if due:
                self._told = now
            waiting, seconds = self._waiting, now - self._began
        if due:
            what = "%s has been failing for %.0f s, writes that wait: %s. %s"
            logger.warning(what, self._name, seconds, waiting, error)

    def left(self, *, answered: bool) -> None:
        """A request that has joined is over.

        Arguments:
            answered: S3 has answered it; else it was given up, which its error tells.
        """
        with self._lock:
            self._waiting -= 1
            over, seconds = answered and not self._waiting, self._clock() - self._began
        if over:
            logger.warning("%s answers again: what had to wait is stored, after %.0f s.", self._name, seconds)
