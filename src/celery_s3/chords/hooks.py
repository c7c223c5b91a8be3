"""Celery's chord hooks: the header's parts go up a tree of objects, its last one sends the body."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any
from uuid import uuid4

import celery
from celery import chord, group, maybe_signature, states
from celery._state import get_current_task
from celery.app.task import Context
from celery.canvas import Signature, _chain
from celery.exceptions import ChordError
from kombu.serialization import dumps, loads, prepare_accept_content

from celery_s3.codec.chunks import LARGE
from celery_s3.errors import CeleryS3Error, ResultNotStored, StoreError, Untrusted
from celery_s3.processes import prefork_parent
from celery_s3.settings import Settings
from celery_s3.store.parallel import Pool

from . import Agenda, Chords, Delivery, Manifest, Outcome, Ticket, arrange, leaf_ids, nesting
from .hooks_repair import RepairHooks
from .service import ATTEMPTS
from .tree import UNREADABLE

__all__ = ["ChordHooks"]

logger = logging.getLogger(__name__)

#: The key in the body's options under which the ticket travels to every header task.
TICKET = "celery_s3"
#: Seconds.
SHORTEST_LEASE = 30.0
#: Bytes of a body's message that some broker may refuse.
LARGE_MESSAGE = 32 * 1024


class ChordHooks(RepairHooks):
    """The part of the backend that Celery calls for chords.

    The backend has ``app``, ``pool``, ``chords``, ``accept``, ``encode``, ``decode``, ``encode_result``,
    ``exception_to_python``, ``chord_error_from_stack`` and ``task_result_exists``.
    """

    app: Any
    settings: Settings
    pool: Pool
    chords: Chords
    _deliveries: threading.local

    def _open_chords(self) -> None:
        """Prepare for chords; no request."""
        self.chords = Chords(self.store, self.pool, self.layout.chords, lease=_lease(self.app.conf), later=Agenda())
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
        content_type, _, signature = dumps(dict(body), serializer=self.app.conf.task_serializer)
        payload = signature.encode() if isinstance(signature, str) else signature
        parent = self.app.current_worker_task
        root_id = parent and (parent.request.root_id or parent.request.id)
        ids, nonce = leaf_ids(results), uuid4().hex[:12]
        manifest = Manifest(0, ids, nesting(results), payload, content_type, root_id, nonce)
        # Celery before 5.6 gives all of a header the index that the chord itself has in an outer one.
        numbered = celery.VERSION >= (5, 6) or body.options.get("group_index") is None
        body.options[TICKET] = self.chords.open(group_id, manifest, numbered=numbered).dumps()

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
        try:
            if prefork_parent() or delivery.size > LARGE:
                # A large result goes up in parts, which needs the pool's threads.
                return store()
            return self.pool.together(store, delivery.rise)[0]
        except Exception:
            # Celery will not call on_chord_part_return, and this may have been the last part.
            self.chords.later(self.chords.lease, partial(self._go_up, delivery, request.chord))
            raise

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

    def _child_was_lost(self) -> None:
        """Go on with a chord whose member was lost after it had stored its SUCCESS.

        Celery 5.7 acknowledges such a task without calling `on_chord_part_return`. It asks the backend before, in the
        worker's main process, and gives it no more than the id: the request is read off the call stack.
        """
        asking = _asking_request()
        ticket = _ticket(asking._context) if asking is not None else None
        if ticket is not None:
            self.chords.later(0, partial(self._go_on, ticket, asking._context, asking.worker_pid))

    def _go_on(self, ticket: Ticket, request: Any, lost: int | None) -> None:
        with _logged(ticket):
            delivery = self.chords.delivered(ticket, request.id, getattr(request, "group_index", None), lost)
            if delivery is not None:
                self._go_up(delivery, request.chord)

    def _deliver(self, request: Any, state: str, result: Any) -> Delivery | None:
        ticket = _ticket(request)
        if ticket is None or not request.id:
            return None
        value = self.encode_result(result, state)  # type: ignore[attr-defined]
        payload = self.encode([request.id, state, value])
        payload = payload.encode() if isinstance(payload, str) else payload
        try:
            index = getattr(request, "group_index", None)
            # The event loop of a prefork worker's main process does not look at others' parts.
            return self.chords.deliver(ticket, request.id, index, payload, foresee=not prefork_parent())
        except Untrusted as exc:
            # of the manifest: nobody can tell this member's slot
            self._give_up(request.chord, exc)
            return None
        except StoreError as exc:
            what = f"{state} of task {request.id} was not delivered to its chord {ticket.group}: {exc}"
            raise ResultNotStored(what, request.id, state) from exc

    def _go_up(self, delivery: Delivery, body: Any, attempts: int = ATTEMPTS) -> None:
        try:
            complete = delivery.climb()
            if complete is not None:
                tree, leaves = complete
                act = partial(self._decide, body)
                give_up = partial(self._give_up, body)
                ticket, since, lost = delivery.ticket, delivery.since, delivery.lost
                self.chords.decide(ticket, tree, leaves, act, since=since, lost=lost, give_up=give_up)
        except Untrusted as exc:
            # of the manifest or the claim: nobody can decide any more, and trying again would not help
            self._give_up(body, exc)
        except CeleryS3Error:
            # The part is durable: whoever looks later goes on.
            group_id = delivery.ticket.group
            logger.exception("Chord %s: its tree could not be followed", group_id, extra={"s3_group": group_id})
            if attempts > 1:
                self.chords.later(self.chords.lease, lambda: self._go_up(delivery, body, attempts - 1))

    def _give_up(self, body: Any, exc: Untrusted) -> None:
        """Fail the body without a claim, unless something has become of it already."""
        callback = maybe_signature(body, app=self.app).clone()
        callback.options.pop(TICKET, None)
        logger.error("Chord body %r is not sent: %s", callback, exc, extra={"s3_task": callback.id})
        if not self._has_begun(callback):
            self._fail(callback, _chord_error(str(exc), exc))

    # -- the owner of the claim

    def _decide(self, body: Any, parts: list[list[bytes]], manifest: Manifest, perhaps_sent: bool) -> Outcome:
        """Send the body with the values, or report the first failure."""
        callback = maybe_signature(body, app=self.app).clone()
        callback.options.pop(TICKET, None)
        if perhaps_sent and self._has_begun(callback):
            return "sent"
        try:
            if perhaps_sent and not self.settings.chord_resend:
                raise ChordError("The body may have been sent before its sender died, and `chord_resend` is off")
            values = arrange([[self._value(payload) for payload in part] for part in parts], manifest.nesting)
        except ChordError as exc:
            logger.exception("Chord body %r is not sent", callback, extra={"s3_task": callback.id})
            return self._fail(callback, exc)
        except Exception as exc:
            logger.exception("Chord body %r cannot be given its values", callback, extra={"s3_task": callback.id})
            return self._fail(callback, _chord_error(f"Join error: {exc!r}", exc))
        try:
            publish = getattr(self.app.amqp, "_retry_publish", lambda send, *args: send(*args))
            publish(callback.delay, values)
        except Exception as exc:
            logger.exception("Chord body %r could not be sent", callback, extra={"s3_task": callback.id})
            hint = _size_hint(values, self.app.conf.task_serializer)
            return self._fail(callback, _chord_error(f"Callback error: {exc!r}{hint}", exc))
        return "sent"

    def _has_begun(self, callback: Signature) -> bool:
        """Whether the owner of the claim before this one has sent the body, or reported the failure."""
        if callback.id:
            meta = self.get_task_meta(callback.id, cache=False)  # type: ignore[attr-defined]
            if meta["status"] in states.PROPAGATE_STATES:
                # it may have died before the failure was known everywhere
                self._fail_ends(callback, meta["result"])
            if meta["status"] != states.PENDING:
                return True
        return any(self.task_result_exists(id) for id in _first_ids(callback))  # type: ignore[attr-defined]

    def _value(self, payload: bytes) -> Any:
        if payload.startswith(UNREADABLE):
            raise _chord_error(payload.removeprefix(UNREADABLE).decode(), None)
        task_id, state, value = self.decode(payload)  # type: ignore[attr-defined]
        if state in states.EXCEPTION_STATES:
            value = self.exception_to_python(value)  # type: ignore[attr-defined]
        if state in states.PROPAGATE_STATES:
            cause = value if isinstance(value, BaseException) else None
            raise _chord_error(f"Dependency {task_id} raised {value!r}", cause)
        return value

    def _fail(self, callback: Signature, exc: ChordError) -> Outcome:
        if not callback.id:
            # a chain, before Celery 5.7: its error is stored where it is waited for
            callback.options["task_id"] = next((end.id for end in _ends(callback)), None) or uuid4().hex
        self.chord_error_from_stack(callback, exc)  # type: ignore[attr-defined]
        if isinstance(callback, chord):
            # what is waited for is its body
            return self._fail(callback.body, exc)
        self._fail_ends(callback, exc)
        return "failed"

    def _fail_ends(self, callback: Signature, exc: BaseException) -> None:
        """Let a body's failure be known to who waits for its ends.

        Celery's other backends leave them waiting: the end of a chain or a chord, and an outer chord.
        """
        for end in _ends(callback):
            if not self.task_result_exists(end.id):  # type: ignore[attr-defined]
                self.store_result(end.id, exc, states.FAILURE, request=end)
            if end.chord:
                self.on_chord_part_return(end, states.FAILURE, exc)

    def body_of(self, manifest: Manifest) -> Signature:
        """The body's signature, for who repairs a chord without one of its tasks."""
        accept = prepare_accept_content(self.app.conf.accept_content)
        body = loads(manifest.body, content_type=manifest.serializer, content_encoding="utf-8", accept=accept)
        return maybe_signature(body, app=self.app)

    def _native_chords(self) -> bool:
        options = self.app.conf.get("result_backend_transport_options") or {}
        return bool(options.get("native_chords", True)) and self.results.conditional.supported()


@contextmanager
def _logged(ticket: Ticket) -> Iterator[None]:
    """In a thread of the worker's main process, where nobody sees what is raised."""
    try:
        yield
    except CeleryS3Error:
        logger.exception("Chord %s could not be gone on with", ticket.group, extra={"s3_group": ticket.group})


def _asking_request() -> Any:
    """The worker's request of the lost task, when called for Celery's check whether it has succeeded."""
    frame: FrameType | None = sys._getframe(2)
    for _ in range(6):
        if frame is None:
            return None
        if frame.f_code.co_name == "_success_was_stored" and frame.f_globals["__name__"] == "celery.worker.request":
            return frame.f_locals["self"]
        frame = frame.f_back
    return None


def _lease(conf: Any) -> float:
    """Seconds in which an owner has joined and published for certain: Celery's join time-out and its retries."""
    policy = conf.task_publish_retry_policy or {}
    retries = (policy.get("max_retries") or 0) if conf.task_publish_retry else 0
    attempt = float(conf.broker_connection_timeout or 4) + float(policy.get("interval_max") or 1)
    # Half of it may have passed when sending begins.
    return max(SHORTEST_LEASE, 2 * (float(conf.result_chord_join_timeout or 5) + (retries + 1) * attempt))


def _ticket(request: Any) -> Ticket | None:
    body = getattr(request, "chord", None)
    options = body.get("options") if isinstance(body, dict) else None
    found = options.get(TICKET) if options else None
    return Ticket.loads(found) if found else None


def _chord_error(message: str, cause: BaseException | None) -> ChordError:
    error = ChordError(message)
    error.__cause__ = cause
    return error


def _size_hint(values: list[Any], serializer: str) -> str:
    """What to say about a body that could not be sent, perhaps because it was too large for the broker."""
    if serializer.startswith("s3+"):
        return ""  # it would have gone by S3
    try:
        size = len(dumps((values,), serializer=serializer)[2])
    except Exception:  # noqa: BLE001 (they are not what the error is about, or are it themselves)
        return ""
    if size < LARGE_MESSAGE:
        return ""
    return (
        f". The {len(values)} values make a message of {size:,} bytes before the broker's own encoding (SQS, for one,"
        " takes 262,144 after it, or up to 1,048,576): let them go by S3 (task_serializer 's3+json', see"
        " celery_s3.claimcheck), or let the header's tasks store what is large, and return where"
    )


def _first_ids(body: Signature) -> Iterator[str]:
    """The ids of the tasks that a body begins with."""
    if isinstance(body, group):
        for task in body.tasks:
            yield from _first_ids(task)
    elif isinstance(body, _chain):
        yield from _first_ids(body.tasks[0])
    elif isinstance(body, chord):
        yield from _first_ids(body.tasks)
    elif body.id:
        yield body.id


def _ends(body: Signature) -> Iterator[Context]:
    """The tasks, as requests, that a body ends with, and those of the chain behind it."""
    for follower in body.options.get("chain") or ():
        yield from _ends(maybe_signature(follower, app=body.app))
    if isinstance(body, group):
        for task in body.tasks:
            yield from _ends(task)
    elif isinstance(body, _chain):
        yield from _ends(body.tasks[-1])
    elif isinstance(body, chord):
        yield from _ends(body.body)
    elif body.id:
        end = Context(body)
        end.update(body.options)
        end.id, end.group, end.chain = body.id, body.options.get("group_id"), None
        yield end
