"""The one thread of a process that hears notices, and wakes those who wait.

It begins with the first wait and ends a minute after the last one. Where the line breaks everybody is woken and polls
as if there were no notices, until it is up again. After three results that were found without a notice everybody polls,
too, until a notice comes: those who store may be of an older release, or not reach the broker.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from typing import Protocol

from celery_s3.interruptions import brief
from celery_s3.printable import get_logger
from celery_s3.processes import without_sigterm

from .notice import Notice
from .subscription import Subscription

__all__ = ["Line", "Listener"]

logger = get_logger(__name__)

#: Seconds without anybody who waits, after which the line is closed and no task is told our address.
IDLE = 60.0
#: Seconds after which a line that has broken is tried again: at first, and at most.
AGAIN, AGAIN_AT_MOST = 1.0, 30.0
#: Results found without a notice, in a row, after which none is expected.
MISSES = 3


class Line(Protocol):
    """A connection to the broker; its methods raise whatever they like when it breaks.

    Attributes:
        address: the `reply_to` of messages whose notices come here; empty where notices need none.
        turn: seconds that one look at it takes, and so an end of the thread.
    """

    address: str
    turn: float

    def subscribe(self, keys: Collection[str]) -> Collection[str]:
        """Let notices of these keys come; those of which it is sure at once. The others are received as texts."""

    def unsubscribe(self, keys: Collection[str]) -> None:
        """Let no notices of these keys come any more."""

    def receive(self, seconds: float) -> Iterable[Notice | str]:
        """What has come, waiting so many seconds for the first; a text is a key that is confirmed."""

    def close(self) -> None:
        """Let go of the connection."""


class Listener:
    """Hears for all who wait in this process.

    Arguments:
        connect: a line, connected; in this thread.
        confirms: the line confirms keys one by one; else it is told of tasks that have its address already.
    """

    def __init__(self, connect: Callable[[], Line], *, confirms: bool = True) -> None:
        self._connect = connect
        self._confirms = confirms
        self._lock = threading.Lock()
        self._waiting: dict[str, set[Subscription]] = {}
        self._line: Line | None = None
        self._thread: threading.Thread | None = None
        #: keys of which every notice comes
        self._confirmed: set[str] = set()
        self._failures = 0
        self._misses = 0
        self._closed = threading.Event()
        self._waited = time.monotonic()

    # -- for subscriptions

    @property
    def trusted(self) -> bool:
        """Whether notices have come of what was stored."""
        return self._misses < MISSES

    @property
    def address(self) -> str:
        """Where notices come to, empty where none are needed or nobody has waited for a minute."""
        line = self._line
        return line.address if line is not None and time.monotonic() - self._waited < IDLE else ""

    @property
    def may_confirm(self) -> bool:
        """Whether keys that are not confirmed may be soon."""
        return self._confirms and not self._failures

    def missed(self) -> None:
        """A result was there, and no notice of it."""
        self._misses += 1
        if self._misses == MISSES:
            logger.info("Results come without notices: they are polled for until one comes")

    def add(self, subscription: Subscription, keys: Collection[str]) -> None:
        """Let somebody hear of these keys."""
        with self._lock:
            self._waited = time.monotonic()
            new = [key for key in keys if key not in self._waiting]
            for key in keys:
                self._waiting.setdefault(key, set()).add(subscription)
            self._start()
            if self._line is not None:
                self._subscribe(self._line, new)
                # those that another one waits for were confirmed before, or will be for both
                self._confirm(self._confirmed.intersection(keys), subscription)

    def discard(self, subscription: Subscription, keys: Collection[str]) -> None:
        """Let somebody hear no more of these keys."""
        with self._lock:
            self._waited = time.monotonic()
            gone = []
            for key in keys:
                others = self._waiting.get(key, set())
                others.discard(subscription)
                if not others:
                    self._waiting.pop(key, None)
                    gone.append(key)
            if self._line is not None and gone:
                self._confirmed.difference_update(gone)
                with suppress(Exception):  # the thread finds out
                    self._line.unsubscribe(gone)

    def close(self) -> None:
        """End the thread, and let go of the line with it."""
        self._closed.set()

    # -- with the lock

    def _subscribe(self, line: Line, keys: Collection[str]) -> None:
        if keys:
            with suppress(Exception):  # the thread finds out
                self._confirm(line.subscribe(keys))

    def _confirm(self, keys: Collection[str], only: Subscription | None = None) -> None:
        self._confirmed.update(keys)
        for key in keys:
            for one in self._waiting.get(key, ()) if only is None else (only,):
                one.confirmed(key)

    def _start(self) -> None:
        if self._thread is None and not self._closed.is_set():
            self._failures = 0
            self._thread = threading.Thread(target=self._run, name="celery-s3-notices", daemon=True)
            without_sigterm(self._thread.start)

    # -- in the thread

    def _run(self) -> None:
        while not self._ends():
            try:
                self._hear(self._connect())
            except Exception as exc:  # noqa: BLE001 - whatever the broker's client raises
                self._broken(exc)
                self._closed.wait(min(AGAIN * 2 ** (self._failures - 1), AGAIN_AT_MOST))

    def _ends(self) -> bool:
        with self._lock:
            idle = not self._waiting and time.monotonic() - self._waited > IDLE
            if idle or self._closed.is_set():
                self._thread = None
                return True
            return False

    def _hear(self, line: Line) -> None:
        try:
            with self._lock:
                self._failures = 0
                self._line = line
                self._subscribe(line, tuple(self._waiting))
            while not self._over():
                for said in line.receive(line.turn):
                    self._deliver(said)
        finally:
            with self._lock:
                self._line = None
                self._confirmed = set()
            with suppress(Exception):
                line.close()

    def _over(self) -> bool:
        return self._closed.is_set() or (not self._waiting and time.monotonic() - self._waited > IDLE)

    def _deliver(self, said: Notice | str) -> None:
        with self._lock:
            if isinstance(said, str):
                if said in self._waiting:
                    self._confirm([said])
                return
            for one in self._waiting.get(said.key, ()):
                self._misses = 0
                one.heard(said)

    def _broken(self, exc: Exception) -> None:
        with self._lock:
            self._failures += 1
            for one in set(self._everybody()):
                one.broken()
        if self._failures == 1 and not self._closed.is_set():
            logger.warning("Notices are not heard, results are polled for: %s", brief(exc))

    def _everybody(self) -> Iterator[Subscription]:
        for some in self._waiting.values():
            yield from some
