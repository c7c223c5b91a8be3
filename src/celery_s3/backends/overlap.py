"""A child of a prefork pool stores what a task has come to while it works on the next one.

What must not be lost on the way stands in :mod:`celery_s3.backends.acknowledgements`. Only what a task has come to goes
this way, encoded before the next task begins; where it cannot, it is stored at once, as in any other process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Protocol

from celery import states
from celery.signals import worker_process_shutdown

from celery_s3.outbox import Outbox
from celery_s3.printable import get_logger
from celery_s3.processes import greenlets, prefork_child
from celery_s3.results.recorder import Prepared

from .acknowledgements import DELIVERY, Acknowledgements

__all__ = ["SLOTS", "Overlap"]

logger = get_logger(__name__)

#: Results that a child stores at the same time, where the application does not say how many.
SLOTS = 16
#: Bytes of the largest result that is kept in memory meanwhile.
LARGEST = 256 * 1024
#: Seconds that a child goes on storing which somebody has ended; one that ends by itself stores all.
WHEN_ENDED = 3.0

_collecting: ContextVar[list[Prepared] | None] = ContextVar("celery-s3-collecting", default=None)


class Taken(Protocol):
    """What is done about a result in another thread, given what stores it: see ``Members.deferred``."""

    def __call__(self, store: Callable[[], Any], /) -> None: ...


class Overlap:
    """What a child stores while it goes on.

    Arguments:
        slots: results that it stores at the same time; ``None``: :data:`SLOTS` of tasks that are acknowledged late,
            and none of others.
        acknowledgements: hold back the messages of their tasks.
    """

    def __init__(self, slots: int | None, acknowledgements: Acknowledgements) -> None:
        self._slots = SLOTS if slots is None else slots
        self._unheld = slots is not None
        self._acknowledgements = acknowledgements
        self._outbox = Outbox(self._slots, self._slots)
        worker_process_shutdown.connect(self._child_ends, dispatch_uid=f"celery-s3-overlap-{id(self)}")

    def close(self) -> None:
        """Listen to the worker's signals no more."""
        worker_process_shutdown.disconnect(dispatch_uid=f"celery-s3-overlap-{id(self)}")

    def store(
        self,
        store: Callable[[], Any],
        take: Callable[[], Taken],
        what: str,
        task_id: str,
        _result: Any,
        state: str,
        request: Any,
    ) -> bool:
        """Store what a task has come to while this process goes on; whether that is done, or was done at once.

        Arguments:
            store: hands the encoded result to :meth:`carry_out`.
            take: what else is to be encoded now, and how it is carried out.
            what: is stored, for the log.
            task_id, state, request: as Celery's ``store_result`` has them.

        Raises:
            Whatever ``store`` and ``take`` raise, in this thread.
        """
        delivery = getattr(request, DELIVERY, None)
        if not self._fits(task_id, state, request, delivery):
            return False
        taken = take()
        with _collected() as prepared:
            store()
        carry_out = partial(_all, taken, prepared)
        small = sum(each.size for each in prepared) <= LARGEST
        if not small or not self._put(task_id, what, carry_out, delivery):
            carry_out()
        return True

    def _fits(self, task_id: str, state: str, request: Any, delivery: int | None) -> bool:
        if not (delivery or (self._unheld and prefork_child())) or greenlets():
            return False
        if len(self._outbox) >= self._slots or getattr(request, "id", None) != task_id or request.is_eager:
            return False
        # An errback may look for the failure that it is sent for, and the rest of a chain is failed at once.
        return state == states.SUCCESS or not (request.errbacks or request.chain)

    def _put(self, task_id: str, what: str, carry_out: Callable[[], None], delivery: int | None) -> bool:
        if delivery is None:
            return self._outbox.put(task_id, what, carry_out)
        if not self._acknowledgements.begins(delivery):
            return False
        taken = False
        try:
            taken = self._outbox.put(task_id, what, partial(self._carry_out, carry_out, delivery))
        finally:
            if not taken:
                self._acknowledgements.durable(delivery)
        return taken

    def _carry_out(self, carry_out: Callable[[], None], delivery: int) -> None:
        try:
            carry_out()
        finally:
            self._acknowledgements.durable(delivery)

    def carry_out(self, prepared: Prepared) -> None:
        """Store a result: now, or when :meth:`store`, which has asked for it, does."""
        collecting = _collecting.get()
        if collecting is None:
            prepared.store()
        else:
            collecting.append(prepared)

    def _child_ends(self, exitcode: int = 0, **_: Any) -> None:
        # Celery's children end with a negative code after a signal.
        ended = exitcode < 0
        for what in self._outbox.flush(WHEN_ENDED if ended else None):
            logger.warning("%s was not stored before this process was ended.", what)


@contextmanager
def _collected() -> Iterator[list[Prepared]]:
    found: list[Prepared] = []
    token = _collecting.set(found)
    try:
        yield found
    finally:
        _collecting.reset(token)


def _all(taken: Taken, prepared: list[Prepared]) -> None:
    def store() -> None:
        for each in prepared:
            each.store()

    taken(store)
