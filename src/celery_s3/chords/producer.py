"""Whoever applies a chord: the manifest is written before the header is published."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any
from uuid import uuid4
from weakref import WeakValueDictionary

from celery.canvas import Signature
from celery.result import ResultBase, ResultSet
from kombu.serialization import dumps

from celery_s3.celery_private import NUMBERS_HEADERS, generated_header, is_chain
from celery_s3.errors import PreconditionFailed
from celery_s3.printable import get_logger

from .manifest import Manifest, leaf_ids, nesting
from .service import Chords
from .ticket import TICKET, Ticket, redelivered

__all__ = ["Producer"]

logger = get_logger(__name__)


class Producer:
    """Opens chords.

    Arguments:
        app: the Celery app, of which the configuration and the current task are needed.
        conditional: whether the bucket keeps conditional writes; may ask it, once.
        about_to_send: called before a body is encoded, in which there may be files.
    """

    def __init__(
        self,
        app: Any,
        chords: Chords,
        conditional: Callable[[], bool],
        about_to_send: Callable[[], object] = lambda: None,
    ) -> None:
        self._app = app
        self._chords = chords
        self._conditional = conditional
        self._about_to_send = about_to_send
        # The header holds what it streams by: a generator that fails leaves nothing behind.
        self._streams: WeakValueDictionary[str, _Stream] = WeakValueDictionary()

    def native(self) -> bool:
        """Whether chords are run natively; where they are not, Celery's task `celery.chord_unlock` polls."""
        options = self._app.conf.get("result_backend_transport_options") or {}
        return bool(options.get("native_chords", True)) and self._conditional()

    def sized(self, group_id: str) -> None:
        """The size of a header is known, and its last task is about to be sent."""
        if (stream := self._streams.pop(group_id, None)) is not None:
            stream.end()

    def open(self, group_id: str, header: Iterable[ResultBase], body: Signature) -> bool:
        """Write the manifest and put the ticket into the body's options, which Celery copies into every header task.

        Returns:
            Whether there is nothing else to prepare: the chord is run natively, or was decided before.

        Raises:
            StoreError: nothing may be published then.
        """
        self._about_to_send()
        if not self.native():
            body.options[TICKET] = None
            return False
        body.options.pop(TICKET, None)
        # Celery before 5.6 gives all of a header the index that the chord itself has in an outer one.
        numbered = NUMBERS_HEADERS or body.options.get("group_index") is None
        if numbered and (tasks := generated_header()) is not None and self._stream(group_id, tasks, header, body):
            return True
        extra = {"s3_group": group_id}
        try:
            ticket = self._chords.open(group_id, self._manifest(list(header), body), numbered=numbered)
        except PreconditionFailed:
            logger.warning(
                "The group id of chord %s is that of an earlier one with other tasks: `celery.chord_unlock` joins this"
                " one. Leave its `task_id` to Celery.",
                group_id,
                extra=extra,
            )
            body.options[TICKET] = None
            return False
        if ticket is None:
            logger.warning(
                "Chord %s is applied again, and was decided before: its tasks run again, its body does not.",
                group_id,
                extra=extra,
            )
            return True
        body.options[TICKET] = replace(ticket, again=self._again()).dumps()
        return True

    def _again(self) -> bool:
        """Whether the task that applies this was delivered again."""
        return redelivered(getattr(self._app.current_worker_task, "request", None))

    def _stream(self, group_id: str, tasks: Any, header: Iterable[ResultBase], body: Signature) -> bool:
        """Let the tasks be sent as they are generated; ``False`` where all must be known before."""
        if isinstance(next(iter(header)), ResultSet):
            return False  # of groups: where a task belongs is known from all before it
        ticket = self._chords.begin(group_id, self._manifest([], body))
        if ticket is None:
            return False
        ticket = replace(ticket, again=self._again())
        body.options[TICKET] = ticket.dumps()
        stream = _Stream(self._chords, ticket, header, body, self._manifest)
        self._streams[group_id] = stream
        tasks.map(stream.seen)
        return True

    def _manifest(self, header: list[ResultBase], body: Signature) -> Manifest:
        _, _, signature = dumps(dict(body), serializer=self._app.conf.task_serializer)
        parent = self._app.current_worker_task
        return Manifest(
            ids=leaf_ids(header),
            nesting=nesting(header),
            body=signature.encode() if isinstance(signature, str) else signature,
            root=parent and (parent.request.root_id or parent.request.id),
            nonce=uuid4().hex[:12],
        )


class _Stream:
    """A header that is generated while its tasks are sent; the manifest gets their ids before the last one is.

    All of one process share the body's signature until it is sent with a task: the ticket in it is changed on the way.

    Arguments:
        ticket: of a chord of unknown size.
        results: those of the header's tasks, which are frozen as they are asked for.
        manifest: makes one, of results and the body.
    """

    def __init__(
        self,
        chords: Chords,
        ticket: Ticket,
        results: Iterable[ResultBase],
        body: Signature,
        manifest: Callable[[list[ResultBase], Signature], Manifest],
    ) -> None:
        self._chords = chords
        self._ticket = ticket
        self._results = results
        self._next = iter(results)
        self._ids: set[str] = set()
        self._body = body
        self._manifest = manifest

    def seen(self, task: Signature) -> Signature:
        """A task that was generated, and is sent soon.

        One that is several, or none, shifts the places of those behind it: then all are generated, and their places
        are found in the manifest. Those before it have the places that they were sent with.
        """
        if self._ticket.size:
            return task
        nothing = is_chain(task) and not task.tasks
        result = None if nothing else next(self._next)
        if result is None or isinstance(result, ResultSet) or result.id in self._ids:
            self._close(numbered=False)
        else:
            self._ids.add(result.id)
        return task

    def end(self) -> None:
        """All tasks were generated, and the last one is about to be sent."""
        if not self._ticket.size:
            self._close(numbered=True)

    def _close(self, *, numbered: bool) -> None:
        deque(self._next, maxlen=0)  # raises what the generator has: Celery would take that for its end
        self._body.options.pop(TICKET)
        manifest = self._manifest(list(self._results), self._body)
        self._ticket = self._chords.close(self._ticket, manifest, numbered=numbered)
        self._body.options[TICKET] = self._ticket.dumps()
