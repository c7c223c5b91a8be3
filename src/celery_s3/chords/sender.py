"""What the owner of a chord's claim does: it sends the body with all values, or makes its failure known."""

from __future__ import annotations

from functools import partial
from typing import Any
from uuid import uuid4

from celery import chord, group, states
from celery.backends.base import Backend
from celery.canvas import Signature
from celery.exceptions import ChordError
from kombu.exceptions import OperationalError

from celery_s3.celery_private import publish, sending_as
from celery_s3.errors import BodyNotSent, MessageNotStored, NotRepaired, ResultNotRead, ResultNotStored, StoreError
from celery_s3.interruptions import INTERRUPTIONS_OF_LARGE
from celery_s3.printable import get_logger

from .body import body_in, errbacks_of, first_ids, last_tasks, mark_of_errback, size_hint, without_ticket
from .claim import PUBLISHING
from .decision import Act, Outcome, Ready
from .manifest import Manifest, arrange
from .parts import CALLED, UNREADABLE

__all__ = ["Sender"]

logger = get_logger(__name__)

#: What keeps this process from sending a body, and does not fail the chord: another try may, or another process.
TROUBLE = (*INTERRUPTIONS_OF_LARGE, StoreError, ResultNotRead, ResultNotStored)
#: What a broker is known by that is away, or a store without which nothing can be sent. A broker that refuses a message
#: for what it is raises something else.
AWAY = (OperationalError, ConnectionError, TimeoutError, StoreError, MessageNotStored)


class Sender:
    """Sends bodies.

    Arguments:
        resend: whether a body is sent again that may have been sent by an owner which died.
    """

    def __init__(self, host: Backend, *, resend: bool) -> None:
        self._host = host
        self._resend = resend

    def decide(
        self, body: Any, parts: list[list[bytes]], manifest: Manifest, perhaps_sent: bool, *, look: bool = False
    ) -> Ready:
        """Join the values; what then sends the body with them, or reports the first failure.

        Arguments:
            body: the body's signature.
            parts: per member its payload and those of the tasks that it added.
            perhaps_sent: an owner before this one may have sent the body already.
            look: somebody may have, long ago, and what tells of it was removed from the bucket, or what stood there
                before was put back.

        Raises:
            What is trouble of this process, and no failure of the chord: see :data:`TROUBLE`.
        """
        callback = without_ticket(body, self._host.app)
        if (perhaps_sent or look) and self._has_begun(callback):
            return lambda: "sent"
        try:
            if perhaps_sent and not self._resend:
                raise ChordError("The body may have been sent before its sender died, and `chord_resend` is off")
            values = [[self._value(payload) for payload in part] for part in parts]
            if len(values) < len(manifest.ids):
                raise ChordError("A member's part says that it failed, and holds no failure")
            values = arrange(values, manifest.nesting)
        except ChordError as exc:
            logger.exception("Chord body %r is not sent", callback, extra={"s3_task": callback.id})
            self._leave_out(callback, parts[0][0])
            return partial(self.fail, callback, exc)
        except TROUBLE:
            raise
        except Exception as exc:
            logger.exception("Chord body %r cannot be given its values", callback, extra={"s3_task": callback.id})
            return partial(self.fail, callback, _chord_error(f"Join error: {exc!r}", exc))
        return partial(self._send, callback, values)

    def _send(self, callback: Signature, values: list[Any]) -> Outcome:
        callback.options["retry_policy"] = {**(callback.options.get("retry_policy") or {}), **PUBLISHING}
        try:
            publish(self._host.app, callback.delay, values)
        except AWAY as exc:
            raise BodyNotSent(f"its body could not be sent: {exc!r}") from exc
        except TROUBLE:
            raise
        except Exception as exc:
            logger.exception("Chord body %r could not be sent", callback, extra={"s3_task": callback.id})
            hint = size_hint(values, self._host.app.conf.task_serializer)
            return self.fail(callback, _chord_error(f"Callback error: {exc!r}{hint}", exc))
        return "sent"

    def without_a_task(self, manifest: Manifest, *, trusted: bool) -> Act:
        """What the owner of the claim does who has none of the chord's tasks at hand: the manifest has the body.

        Arguments:
            trusted: who wrote the manifest has the keys.

        Raises:
            NotRepaired: this process cannot send it; the chord must not fail for that.
        """
        app = self._host.app
        try:
            body = body_in(manifest, app, trusted=trusted)
            with app.connection_for_write() as connection:
                connection.ensure_connection(max_retries=1, interval_start=0)
        except Exception as exc:
            raise NotRepaired(f"the body cannot be read or sent from here: {exc!r}") from exc

        def act(parts: list[list[bytes]], current: Manifest, perhaps_sent: bool) -> Ready:
            ready = self.decide(body, parts, current, perhaps_sent, look=True)

            def as_member() -> Outcome:
                # The body's parent is the chord's last member, as if that one sent it. Any task serves to say so.
                id = manifest.ids[-1]
                request = {"id": id, "root_id": manifest.root or id, "called_directly": False, "delivery_info": {}}
                with sending_as(app.tasks["celery.backend_cleanup"], **request):
                    return ready()

            return as_member

        return act

    def give_up(self, body: Any, exc: Exception) -> None:
        """Fail the body, which nobody can send any more, unless something has become of it already."""
        callback = without_ticket(body, self._host.app)
        logger.error("Chord body %r is not sent: %s", callback, exc, extra={"s3_task": callback.id})
        if not self._has_begun(callback):
            self.fail(callback, _chord_error(str(exc), exc))

    def _has_begun(self, callback: Signature) -> bool:
        """Whether the owner of the claim before this one has sent the body, or reported the failure."""
        if callback.id:
            meta = self._host.get_task_meta(callback.id, cache=False)
            if meta["status"] in states.PROPAGATE_STATES:
                # it may have died before the failure was known everywhere
                self.fail_ends(callback, meta["result"])
            if meta["status"] != states.PENDING:
                return True
        return any(self._host.task_result_exists(id) for id in first_ids(callback))

    def _value(self, payload: bytes) -> Any:
        if payload.startswith(UNREADABLE):
            raise _chord_error(payload.removeprefix(UNREADABLE).decode(), None)
        task_id, state, value, *_ = self._host.decode(payload)
        if state in states.EXCEPTION_STATES:
            value = self._host.exception_to_python(value)
        if state in states.PROPAGATE_STATES:
            cause = value if isinstance(value, BaseException) else None
            raise _chord_error(f"Dependency {task_id} raised {value!r}", cause)
        return value

    # -- the failure of a body

    def _leave_out(self, callback: Signature, payload: bytes) -> None:
        """Leave out the errbacks that were called already, for the failure of an inner chord of which this one fails.

        Celery links what is linked to a chord to the bodies of its inner chords too.
        """
        called = [] if payload.startswith(UNREADABLE) else self._host.decode(payload)[3:]
        if called and not isinstance(callback, group):
            errbacks = callback.options.get("link_error") or ()
            callback.options["link_error"] = [one for one in errbacks if self._mark(one) not in called[0]]

    def _mark(self, errback: Any) -> str:
        return mark_of_errback(errback, self._host.app.conf.task_serializer)

    def fail(self, callback: Signature, exc: ChordError) -> Outcome:
        """Store a body's failure, call its errbacks, and let who waits for its ends know."""
        if not callback.id:
            # a chain, before Celery 5.7: its error is stored where it is waited for
            callback.options["task_id"] = next((end.id for end in last_tasks(callback)), None) or uuid4().hex
        try:
            raise exc  # its traceback is what Celery looks for on the stack
        except ChordError:
            self._host.chord_error_from_stack(callback, exc)
        if isinstance(callback, chord):
            # what is waited for is its body
            return self.fail(callback.body, exc)
        self.fail_ends(callback, exc)
        return "failed"

    def fail_ends(self, callback: Signature, exc: BaseException) -> None:
        """Let a body's failure be known to who waits for its ends.

        Celery's other backends leave them waiting: the end of a chain or a chord, and an outer chord.
        """
        for end in last_tasks(callback):
            if not self._host.task_result_exists(end.id):
                self._host.store_result(end.id, exc, states.FAILURE, request=end)
            if end.chord:
                setattr(end, CALLED, [self._mark(errback) for errback in errbacks_of(callback)])
                self._host.on_chord_part_return(end, states.FAILURE, exc)


def _chord_error(message: str, cause: BaseException | None) -> ChordError:
    error = ChordError(message)
    error.__cause__ = cause
    return error
