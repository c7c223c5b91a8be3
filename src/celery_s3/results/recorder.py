"""From the meta that Celery wants to store to its object.

::

    SUCCESS, FAILURE, REVOKED   tried for `outage_patience`: Celery acknowledges the task and forgets it
    of an eager task            tried as any request: its caller waits; so does a worker's event loop
    any other                   tried for 3 s, and dropped with a warning: no task fails because of it
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

from celery import states

from celery_s3.codec.chunks import Chunks
from celery_s3.codec.encoding import Encoder
from celery_s3.errors import ResultNotStored, StoreError
from celery_s3.metadata import result_metadata
from celery_s3.notices import Tell
from celery_s3.notices.notice import watched
from celery_s3.printable import get_logger
from celery_s3.store.deadline import patient, retried_until
from celery_s3.store.requests import Put

from .write_once import Results, WriteOutcome

__all__ = ["Prepared", "Recorder"]

logger = get_logger(__name__)

#: Seconds for which a state is tried to be stored that the next one replaces anyway.
PASSING = 3.0


class Prepared(NamedTuple):
    """A meta that is encoded, and not stored yet.

    Attributes:
        size: bytes of its body.
        store: stores it; any thread may call it.
    """

    size: int
    store: Callable[[], WriteOutcome]


class Recorder:
    """Stores metas.

    Arguments:
        task_key: the key of a task's result.
        uploaded: how many files of a task this process has uploaded, by its id.
        term_of: the seconds that a state lives which a request leads to, 0 for ever; ``None``: like any.
        telling: what tells who waits of such a state, once it is stored or stands there already; ``None``: nobody does.
        patience: seconds for which a final state is tried to be stored.
    """

    def __init__(
        self,
        results: Results,
        encoder: Encoder,
        task_key: Callable[[str], str],
        uploaded: Mapping[str, int],
        term_of: Callable[[str, Any], float | None],
        telling: Callable[[str, Any], Tell | None],
        patience: float,
    ) -> None:
        self.results = results
        self.encoder = encoder
        self.task_key = task_key
        self.uploaded = uploaded
        self.term_of = term_of
        self.telling = telling
        self.patience = patience

    def prepare(self, meta: dict[str, Any], request: Any) -> Prepared:
        """Encode a meta, to be stored in one request where nobody else has stored another state of the task.

        Arguments:
            request: the task's; ``None`` or incomplete where another process reports for it.

        Raises:
            ResultNotStored: there can be no key for such an id.
            kombu.exceptions.EncodeError: the serializer cannot hold the value.
            ValueError: there is no id, as of a task that calls `update_state` and was itself called as a function.
        """
        id, state = meta["task_id"], meta["status"]
        try:
            key = self.task_key(id)
        except ValueError as exc:
            if not id:
                raise
            raise _not_stored(id, state, exc) from exc
        body, content_type = self.encoder.body(meta)
        delivery = getattr(request, "delivery_info", None) or {}
        # After a retry or a redelivery an earlier run, elsewhere perhaps, has probably left a state here.
        rerun = bool(getattr(request, "retries", 0) or delivery.get("redelivered"))
        # Looked up now: files in the value were uploaded while it was encoded; an earlier run's perhaps elsewhere.
        files = None if rerun else self.uploaded.get(id, 0)
        task, term = getattr(request, "task", None), self.term_of(state, request)
        beside = result_metadata(state, task, meta.get("children"), term, files)
        # Celery 5.7's workers leave a revoked task alone that has begun elsewhere, and know no more of it than its id.
        by_id = request is None and state == states.REVOKED
        write = partial(self.results.write, key, body, state, beside, content_type, rerun=rerun, unless_begun=by_id)
        eager = getattr(request, "is_eager", False)
        tell = None if eager else self.telling(state, request)
        store = partial(self._store, id, state, eager, write, tell and partial(tell, key))
        return Prepared(body.size if isinstance(body, Chunks) else len(body), store)

    def _store(
        self,
        id: Any,
        state: str,
        eager: bool,
        write: Callable[[], WriteOutcome],
        tell: Callable[[Put | None], None] | None,
    ) -> WriteOutcome:
        """Store a state.

        Raises:
            ResultNotStored: the store failed and the state is final.
        """
        try:
            with self._tried(state, eager=eager):
                if tell is None:
                    return write()
                with watched() as written:
                    outcome = write()
        except StoreError as exc:
            if state in states.READY_STATES:
                raise _not_stored(id, state, exc) from exc
            logger.warning("%s", _not_stored(id, state, exc), extra={"s3_task": str(id)})
            return WriteOutcome.DROPPED
        tell(written[-1] if written and outcome is WriteOutcome.WRITTEN else None)
        return outcome

    def _tried(self, state: str, *, eager: bool) -> AbstractContextManager[None]:
        """For how long a state is tried to be stored."""
        if state not in states.READY_STATES:
            return retried_until(time.monotonic() + PASSING)
        return nullcontext() if eager else patient(self.patience)


def _not_stored(id: Any, state: str, exc: Exception) -> ResultNotStored:
    return ResultNotStored(f"{state} of task {id} was not stored: {exc}", str(id), state)
