"""The tasks of a header: each delivers its part before its final state is stored, then goes up the tree."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from celery import states
from celery.result import ResultBase

from celery_s3.celery_private import current_task, lost_request
from celery_s3.codec.chunks import LARGE
from celery_s3.errors import CeleryS3Error, ResultNotStored, StoreError, Untrusted
from celery_s3.printable import get_logger
from celery_s3.processes import prefork_parent

from .delivery import Delivery
from .host import Host
from .manifest import leaf_ids
from .sender import Sender
from .service import ATTEMPTS, Chords
from .ticket import TICKET, Ticket

__all__ = ["Members"]

logger = get_logger(__name__)


class Members:
    """What a worker does for the members of chords.

    Arguments:
        host: encodes their values.
        sender: decides, for the member that completes the tree.
    """

    def __init__(self, host: Host, chords: Chords, sender: Sender) -> None:
        self._host = host
        self._chords = chords
        self._sender = sender
        # Celery stores a task's result and returns its part in one thread, one right after the other.
        self._latest = threading.local()

    def add(self, result: ResultBase) -> None:
        """Let the current task add others to its chord: its part will name them, and theirs are needed as well.

        Celery has put the task's own ``request.chord`` into the signature of what it adds: what is noted there
        reaches the added task, and this task's part.

        Raises:
            NotImplementedError: the task is no member of a chord that is run natively.
        """
        request = current_task().request
        ticket = Ticket.of(request)
        slot = self._chords.slot(ticket, request.id, _index(request)) if ticket else None
        if ticket is None or slot is None:
            raise NotImplementedError("add_to_chord needs a chord that this backend runs natively")
        request.chord["options"][TICKET] = ticket.adding(request.id, slot, leaf_ids([result])).dumps()

    # -- Celery's hooks of a task that ends

    def store(self, store: Callable[[], Any], task_id: str, result: Any, state: str, request: Any) -> Any:
        """Store a result by ``store``; its part is durable before it, where it is a member's final one.

        Afterwards would be too late: Celery does not run a task again whose SUCCESS stands.

        Raises:
            ResultNotStored: the part was not delivered; nothing is stored then.
            Whatever ``store`` raises.
        """
        delivery = self._deliver(request, result, state) if state in states.READY_STATES else None
        if delivery is None:
            return store()
        self._latest.delivery = (task_id, delivery)
        try:
            if prefork_parent() or delivery.size > LARGE:
                # A large result goes up in parts, which needs the pool's threads.
                return store()
            return self._chords.pool.run_both(store, delivery.climb_quietly)[0]
        except Exception:
            # Celery will not call on_chord_part_return, and this may have been the last part.
            self._chords.later(self._chords.lease, partial(self._go_up, delivery, request.chord))
            raise

    def returned(self, request: Any, result: Any, state: str) -> None:
        """Go up from a member's part, and decide if it completed the chord.

        Raises:
            ResultNotStored: the part was not delivered before, and could not be now.
        """
        task_id, delivery = getattr(self._latest, "delivery", ("", None))
        if task_id != request.id:
            delivery = self._deliver(request, result, state)
        self._latest.delivery = ("", None)
        if delivery is None:
            return
        if prefork_parent():
            # its event loop must not wait for the join
            self._chords.later(0, lambda: self._go_up(delivery, request.chord))
        else:
            self._go_up(delivery, request.chord)

    def child_was_lost(self) -> None:
        """Go on with a chord whose member was lost after it had stored its SUCCESS.

        Celery 5.7 acknowledges such a task without calling `on_chord_part_return`. It asks the backend for the result
        before, in the worker's main process: to be called there.
        """
        request, pid = lost_request() or (None, None)
        if (ticket := Ticket.of(request)) is not None:
            self._chords.later(0, partial(self._go_on, ticket, request, pid))

    def _go_on(self, ticket: Ticket, request: Any, lost: int | None) -> None:
        """Runs in a thread of the worker's main process, where nobody sees what is raised."""
        try:
            delivery = self._chords.delivered(ticket, request.id, _index(request), lost)
            if delivery is not None:
                self._go_up(delivery, request.chord)
        except CeleryS3Error:
            logger.exception("Chord %s could not be gone on with", ticket.group, extra={"s3_group": ticket.group})

    # -- steps

    def _deliver(self, request: Any, result: Any, state: str) -> Delivery | None:
        ticket = Ticket.of(request)
        if ticket is None or not request.id:
            return None
        payload = self._host.encode([request.id, state, self._host.encode_result(result, state)])
        payload = payload.encode() if isinstance(payload, str) else payload
        try:
            # The event loop of a prefork worker's main process does not look at others' parts.
            return self._chords.deliver(ticket, request.id, _index(request), payload, foresee=not prefork_parent())
        except Untrusted as exc:
            # of the manifest: nobody can tell this member's slot
            self._sender.give_up(request.chord, exc)
            return None
        except StoreError as exc:
            what = f"{state} of task {request.id} was not delivered to its chord {ticket.group}: {exc}"
            raise ResultNotStored(what, request.id, state) from exc

    def _go_up(self, delivery: Delivery, body: Any, attempts: int = ATTEMPTS) -> None:
        try:
            complete = delivery.climb()
            if complete is not None:
                self._chords.decide(
                    delivery.ticket,
                    *complete,
                    partial(self._sender.decide, body),
                    since=delivery.since,
                    lost=delivery.lost,
                    give_up=partial(self._sender.give_up, body),
                )
        except Untrusted as exc:
            # of the manifest or the claim: nobody can decide any more, and trying again would not help
            self._sender.give_up(body, exc)
        except CeleryS3Error:
            # The part is durable: whoever looks later goes on.
            group_id = delivery.ticket.group
            logger.exception("Chord %s: its tree could not be followed", group_id, extra={"s3_group": group_id})
            if attempts > 1:
                self._chords.later(self._chords.lease, lambda: self._go_up(delivery, body, attempts - 1))


def _index(request: Any) -> int | None:
    """Celery's number of a task in its group; absent from the requests of lost and foreign tasks."""
    return getattr(request, "group_index", None)
