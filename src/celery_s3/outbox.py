"""What must become durable without anybody waiting for it: bounded, in order for each id, concurrent, patient.

The main process of a worker hands its writes over and goes on consuming: nothing that S3 does reaches its event loop.
A child of its pool hands over what a task has come to and begins the next one. A write that raises is told in one line
and is over; how long one is tried again is the business of the store (:mod:`celery_s3.store.retrying`), so that a write
which waits for an outage to end holds one thread, and those behind it wait in the queue.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial

from celery_s3.printable import get_logger

from .errors import CeleryS3Error
from .interruptions import brief
from .processes import PerProcess, without_sigterm

__all__ = ["Outbox"]

logger = get_logger(__name__)

#: Writes that wait at most: a few kilobytes each.
LIMIT = 20_000
#: Writes that are under way at a time: 500 revoked tasks take a second at 20 ms a request.
THREADS = 16
#: Seconds after which a thread without work ends.
IDLE = 5.0


@dataclass(frozen=True, slots=True)
class _Write:
    id: str
    what: str
    carry_out: Callable[[], object]


@dataclass(slots=True)
class _State:
    """One process's writes; a forked child begins with none, for its parent's are its parent's."""

    change: threading.Condition = field(default_factory=threading.Condition)
    #: by id, the first of each under way or next
    waiting: dict[str, deque[_Write]] = field(default_factory=dict)
    #: ids whose first write may begin
    ready: deque[str] = field(default_factory=deque)
    count: int = 0
    threads: int = 0
    idle: int = 0


class Outbox:
    """Writes on threads of its own, which start at need and end when there is nothing to do.

    Arguments:
        limit: writes that wait at most; one more is refused.
        threads: writes that are under way at a time.
    """

    def __init__(self, limit: int = LIMIT, threads: int = THREADS) -> None:
        self._limit = limit
        self._threads = threads
        self._own = PerProcess(_State)

    def __len__(self) -> int:
        """Writes that are waiting or under way."""
        state = self._own.peek()
        return state.count if state is not None else 0

    def put(self, id: str, what: str, carry_out: Callable[[], object]) -> bool:
        """Hand over a write, and return at once.

        Arguments:
            id: writes of one id are carried out one after the other, in the order in which they come.
            what: is written, for the log, as ``REVOKED of task 1234``.
            carry_out: writes it, in a copy of the caller's context; whatever it raises is logged.

        Returns:
            Whether it was taken; where too many are waiting it is not.
        """
        state = self._own.get()
        with state.change:
            if state.count >= self._limit:
                return False
            state.count += 1
            queue = state.waiting.setdefault(id, deque())
            queue.append(_Write(id, what, partial(copy_context().run, carry_out)))
            if len(queue) == 1:
                state.ready.append(id)
                self._wake(state)
        return True

    def flush(self, seconds: float | None) -> list[str]:
        """Wait until all is written; what is still not after so many seconds, in words.

        Arguments:
            seconds: ``None``: as long as it takes.
        """
        state = self._own.peek()
        if state is None:
            return []
        with state.change:
            state.change.wait_for(lambda: not state.count, seconds)
            return [write.what for queue in state.waiting.values() for write in queue]

    def _wake(self, state: _State) -> None:
        """Let a thread begin, an idle one or a new one; the caller holds the lock."""
        if state.idle >= len(state.ready):
            state.change.notify_all()  # flush() waits on it too
        elif state.threads < self._threads:
            state.threads += 1
            without_sigterm(threading.Thread(target=_work, args=(state,), name="celery-s3-outbox", daemon=True).start)


def _work(state: _State) -> None:
    while (write := _next(state)) is not None:
        try:
            write.carry_out()
        except Exception as exc:
            known = isinstance(exc, CeleryS3Error)  # its message tells all there is; anything else is a fault of ours
            why = exc if known else brief(exc)
            extra = {"s3_task": write.id}
            logger.log(logging.ERROR, "%s is lost: %s", write.what, why, exc_info=not known, extra=extra)
        _done(state, write)
        del write


def _next(state: _State) -> _Write | None:
    """The next write, ``None`` where none has come for a while: the thread ends."""
    until = time.monotonic() + IDLE
    with state.change:
        state.idle += 1
        try:
            while not state.ready:
                left = until - time.monotonic()
                if left <= 0:
                    state.threads -= 1
                    return None
                state.change.wait(left)
            return state.waiting[state.ready.popleft()][0]
        finally:
            state.idle -= 1


def _done(state: _State, write: _Write) -> None:
    with state.change:
        queue = state.waiting[write.id]
        queue.popleft()
        if queue:
            state.ready.append(write.id)
        else:
            del state.waiting[write.id]
        state.count -= 1
        if not state.count or state.ready:
            state.change.notify_all()
