"""From the meta that Celery wants to store to its object.

::

    SUCCESS, FAILURE, REVOKED   tried for `outage_patience`: Celery acknowledges the task and forgets it
    of an eager task            tried as any request: its caller waits; so does a worker's event loop
    any other                   tried for 3 s, and dropped with a warning: no task fails because of it
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from celery import states

from celery_s3.codec.encoding import Encoder
from celery_s3.errors import ResultNotStored, StoreError
from celery_s3.metadata import result_metadata
from celery_s3.processes import prefork_parent
from celery_s3.store.deadline import patient, retried_until

from .write_once import Outcome, Results

__all__ = ["Recorder", "is_eager", "is_rerun"]

logger = logging.getLogger(__name__)

#: Seconds for which a state is tried to be stored that the next one replaces anyway.
PASSING = 3.0


class Recorder:
    """Stores metas.

    Arguments:
        task_key: the key of a task's result.
        files: how many files a task has uploaded, ``None`` where nobody knows, by its id and whether it is a rerun.
        patience: seconds for which a final state is tried to be stored.
    """

    def __init__(
        self,
        results: Results,
        encoder: Encoder,
        task_key: Callable[[str], str],
        files: Callable[[str, bool], int | None],
        patience: float,
    ) -> None:
        self.results = results
        self.encoder = encoder
        self.task_key = task_key
        self.files = files
        self.patience = patience

    def record(
        self, meta: dict[str, Any], task: str | None, *, expires: float | None, rerun: bool, eager: bool = False
    ) -> Outcome:
        """Store a meta, in one request where nobody else has stored another state of the task.

        Arguments:
            task: the task's name, where it is known.
            expires: the seconds that this result lives, 0 for ever; ``None``: like any.
            rerun: another run of the task has probably left a state here.
            eager: the task ran where it was called.

        Raises:
            kombu.exceptions.EncodeError: the serializer cannot hold the value; nothing was stored.
            ResultNotStored: the store failed and the state is final, or there can be no key for such an id.
        """
        id, state = meta["task_id"], meta["status"]
        body, content_type = self.encoder.body(meta)
        # Asked now: files in the value were uploaded while it was encoded.
        files = self.files(id, rerun)
        beside = result_metadata(state, task, meta.get("children"), expires, files)
        try:
            with self._tried(state, eager=eager):
                return self.results.write(self.task_key(id), body, state, beside, content_type, rerun=rerun)
        except (StoreError, ValueError) as exc:
            what = f"{state} of task {id} was not stored: {exc}"
            if isinstance(exc, StoreError) and state not in states.READY_STATES:
                logger.warning("%s", what, extra={"s3_task": str(id)})
                return Outcome.DROPPED
            raise ResultNotStored(what, str(id), state) from exc

    def _tried(self, state: str, *, eager: bool) -> AbstractContextManager[None]:
        """For how long a state is tried to be stored."""
        if state not in states.READY_STATES:
            return retried_until(time.monotonic() + PASSING)
        in_event_loop = prefork_parent() and threading.current_thread() is threading.main_thread()
        return nullcontext() if eager or in_event_loop else patient(self.patience)


def is_rerun(request: Any) -> bool:
    """Whether a task's request says that it has run before, elsewhere perhaps: after a retry or a redelivery."""
    delivery = getattr(request, "delivery_info", None) or {}
    return bool(getattr(request, "retries", 0) or delivery.get("redelivered"))


def is_eager(request: Any) -> bool:
    """Whether a task's request says that it runs where it was called."""
    return bool(getattr(request, "is_eager", False))
