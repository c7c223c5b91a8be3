"""Celery's chord hooks: the header's parts go up a tree of objects, its last one sends the body."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

from celery import chord, group, maybe_signature, states
from celery._state import get_current_task
from celery.app.task import Context
from celery.canvas import Signature, _chain
from celery.exceptions import ChordError
from kombu.serialization import dumps, loads, prepare_accept_content

from ..chords import Chords, Delivery, Manifest, Outcome, Ticket, arrange, leaf_ids, nesting
from ..errors import StoreError
from ..store.parallel import Pool
from ..store.situation import prefork_parent
from .repair import RepairHooks

__all__ = ["ChordHooks"]

logger = logging.getLogger(__name__)

#: The key in the body's options under which the ticket travels to every header task.
TICKET = "celery_s3"
#: Seconds.
SHORTEST_LEASE = 30.0


class ChordHooks(RepairHooks):
    """The part of the backend that Celery calls for chords.

    The backend has ``app``, ``pool``, ``chords``, ``accept``, ``encode``, ``decode``, ``encode_result``,
    ``exception_to_python``, ``chord_error_from_stack`` and ``task_result_exists``.
    """

    app: Any
    pool: Pool
    chords: Chords
    _deliveries: threading.local

    def _open_chords(self, prefix: str) -> None:
        """Prepare for chords under a key prefix; no request."""
        self.chords = Chords(self.store, self.pool, f"{prefix}chords/", lease=_lease(self.app.conf), later=_later)
        self._deliveries = threading.local()
        self._mend_at_start()

    # -- the producer

    def apply_chord(self, header_result_args: Any, body: Signature, **kwargs: Any) -> None:
        """Write the manifest before the header is published."""
        self.ensure_chords_allowed()  # type: ignore[attr-defined]
        if not self._native_chords():
            body.options[TICKET] = None
            super().apply_chord(header_result_args, body, **kwargs)  # type: ignore[misc]
            return
        group_id, results = header_result_args[0], list(header_result_args[1])
        body.options.pop(TICKET, None)
        content_type, _, signature = dumps(self._rooted(body), serializer=self.app.conf.task_serializer)
        payload = signature.encode() if isinstance(signature, str) else signature
        manifest = Manifest(0, leaf_ids(results), nesting(results), payload, content_type)
        body.options[TICKET] = self.chords.open(group_id, manifest).dumps()

    def _rooted(self, body: Signature) -> dict[str, Any]:
        """The body as a header task would send it: with the root that they all inherit from the current task."""
        parent = self.app.current_worker_task
        root_id = body.options.get("root_id") or (parent and (parent.request.root_id or parent.request.id))
        return {**body, "options": {**body.options, "root_id": root_id}} if root_id else dict(body)

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        """Nothing to do: the manifest has it."""

    def add_to_chord(self, chord_id: str, result: Any) -> None:
        """Let the current task add others to its chord: its part will name them, and theirs are needed as well.

        Celery has put the task's own ``request.chord`` into the signature of what it adds: what is noted there
        reaches the added task, and this task's part.
        """
        request = get_current_task().request
        ticket = _ticket(request)
        slot = self.chords.slot(ticket, request.id, getattr(request, "group_index", None)) if ticket else None
        if ticket is None or slot is None:
            raise NotImplementedError("add_to_chord needs a chord that this backend runs natively")
        request.chord["options"][TICKET] = ticket.adding(request.id, slot, leaf_ids([result])).dumps()

    # -- the workers

    def store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **kwargs: Any
    ) -> Any:
        """A chord member's part is durable before its final state is: Celery never delivers it afterwards."""

        def store() -> Any:
            return super(ChordHooks, self).store_result(  # type: ignore[misc]
                task_id, result, state, traceback=traceback, request=request, **kwargs
            )

        delivery = self._deliver(request, state, result) if state in states.READY_STATES else None
        if delivery is None:
            return store()
        self._deliveries.latest = (task_id, delivery)
        outcomes = dict(self.pool.stream(lambda step: step(), (store, delivery.look)))
        if isinstance(outcomes[store], BaseException):
            raise outcomes[store]
        return outcomes[store]

    def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> None:
        task_id, delivery = getattr(self._deliveries, "latest", ("", None))
        if task_id != request.id:
            delivery = self._deliver(request, state, result)
        self._deliveries.latest = ("", None)
        if delivery is None:
            return
        if prefork_parent():
            # its event loop must not wait for the join
            self.chords.later(0, lambda: self._go_up(delivery, request.chord))
        else:
            self._go_up(delivery, request.chord)

    def _deliver(self, request: Any, state: str, result: Any) -> Delivery | None:
        ticket = _ticket(request)
        if ticket is None or not request.id:
            return None
        value = self.encode_result(result, state)  # type: ignore[attr-defined]
        payload = self.encode([request.id, state, value])
        payload = payload.encode() if isinstance(payload, str) else payload
        return self.chords.deliver(ticket, request.id, getattr(request, "group_index", None), payload)

    def _go_up(self, delivery: Delivery, body: Any) -> None:
        try:
            complete = delivery.climb()
            if complete is not None:
                tree, leaves = complete
                self.chords.decide(delivery.ticket, tree, leaves, lambda *found: self._decide(body, *found))
        except StoreError:
            # The part is durable: whoever looks later goes on.
            logger.exception("Chord %s: its tree could not be followed, trying again", delivery.ticket.group)
            self.chords.later(
                self.chords.lease,
                lambda: self.chords.follow(delivery.ticket, lambda *found: self._decide(body, *found)),
            )

    # -- the owner of the claim

    def _decide(self, body: Any, parts: list[list[bytes]], manifest: Manifest, perhaps_sent: bool) -> Outcome:
        """Send the body with the values, or report the first failure."""
        callback = maybe_signature(body, app=self.app).clone()
        callback.options.pop(TICKET, None)
        if perhaps_sent and callback.id and self.task_result_exists(callback.id):  # type: ignore[attr-defined]
            return "sent"
        try:
            values = arrange([[self._value(payload) for payload in part] for part in parts], manifest.nesting)
        except ChordError as exc:
            logger.exception("Chord body %r is not sent", callback)
            return self._fail(callback, exc)
        try:
            publish = getattr(self.app.amqp, "_retry_publish", lambda send, *args: send(*args))
            publish(callback.delay, values)
        except Exception as exc:
            logger.exception("Chord body %r could not be sent", callback)
            error = ChordError(f"Callback error: {exc!r}")
            error.__cause__ = exc
            return self._fail(callback, error)
        return "sent"

    def _value(self, payload: bytes) -> Any:
        task_id, state, value = self.decode(payload)  # type: ignore[attr-defined]
        if state in states.EXCEPTION_STATES:
            value = self.exception_to_python(value)  # type: ignore[attr-defined]
        if state in states.PROPAGATE_STATES:
            error = ChordError(f"Dependency {task_id} raised {value!r}")
            error.__cause__ = value if isinstance(value, BaseException) else None
            raise error
        return value

    def _fail(self, callback: Signature, exc: ChordError) -> Outcome:
        self.chord_error_from_stack(callback, exc)  # type: ignore[attr-defined]
        # Celery's other backends leave an outer chord waiting for a member that will never run.
        for member in _members_of_outer_chords(callback):
            self.on_chord_part_return(member, states.FAILURE, exc)
        return "failed"

    def body_of(self, manifest: Manifest) -> Signature:
        """The body's signature, for who repairs a chord without one of its tasks."""
        accept = prepare_accept_content(self.app.conf.accept_content)
        body = loads(manifest.body, content_type=manifest.serializer, content_encoding="utf-8", accept=accept)
        return maybe_signature(body, app=self.app)

    def _native_chords(self) -> bool:
        options = self.app.conf.get("result_backend_transport_options") or {}
        return bool(options.get("native_chords", True)) and self.results.conditional.supported()


def _lease(conf: Any) -> float:
    """Seconds in which an owner has joined and published for certain: Celery's join time-out and its retries."""
    policy = conf.task_publish_retry_policy or {}
    retries = (policy.get("max_retries") or 0) if conf.task_publish_retry else 0
    attempt = float(conf.broker_connection_timeout or 4) + float(policy.get("interval_max") or 1)
    return max(SHORTEST_LEASE, 2 * float(conf.result_chord_join_timeout or 5) + (retries + 1) * attempt)


def _later(seconds: float, fn: Callable[[], None]) -> None:
    """Run a function in a thread of its own, after some seconds; the process may end before."""
    timer = threading.Timer(seconds, fn)
    timer.daemon = True
    timer.start()


def _ticket(request: Any) -> Ticket | None:
    body = getattr(request, "chord", None)
    options = body.get("options") if isinstance(body, dict) else None
    found = options.get(TICKET) if options else None
    return Ticket.loads(found) if found else None


def _members_of_outer_chords(body: Signature) -> Iterator[Context]:
    """The tasks of a body, as requests, that an outer chord is waiting for."""
    if isinstance(body, group):
        for task in body.tasks:
            yield from _members_of_outer_chords(task)
    elif isinstance(body, _chain):
        yield from _members_of_outer_chords(body.tasks[-1])
    elif isinstance(body, chord):
        yield from _members_of_outer_chords(body.body)
    elif body.options.get("chord"):
        member = Context(body)
        member.update(body.options)
        member.id, member.group = body.options.get("task_id"), body.options.get("group_id")
        yield member
