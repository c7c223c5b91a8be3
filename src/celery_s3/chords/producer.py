"""Whoever applies a chord: the manifest is written before the header is published."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from uuid import uuid4

from celery.canvas import Signature
from celery.result import ResultBase
from kombu.serialization import dumps

from celery_s3.celery_private import NUMBERS_HEADERS
from celery_s3.errors import PreconditionFailed
from celery_s3.printable import get_logger

from .manifest import Manifest, leaf_ids, nesting
from .service import Chords
from .ticket import TICKET

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

    def native(self) -> bool:
        """Whether chords are run natively; where they are not, Celery's task `celery.chord_unlock` polls."""
        options = self._app.conf.get("result_backend_transport_options") or {}
        return bool(options.get("native_chords", True)) and self._conditional()

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
        body.options[TICKET] = ticket.dumps()
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
