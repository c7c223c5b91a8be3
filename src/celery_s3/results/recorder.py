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

from .write_once import Results, WriteOutcome

__all__ = ["Prepared", "Recorder", "is_eager", "is_rerun"]

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
        patience: seconds for which a final state is tried to be stored.
    """

    def __init__(
        self,
        results: Results,
        encoder: Encoder,
        task_key: Callable[[str], str],
        uploaded: Mapping[str, int],
        patience: float,
    ) -> None:
        self.results = results
        self.encoder = encoder
        self.task_key = task_key
        self.uploaded = uploaded
        self.patience = patience

    def prepare(
        self,
        meta: dict[str, Any],
        task: str | None,
        *,
        expires: float | None,
        rerun: bool = False,
        unless_begun: bool = False,
        eager: bool = False,
        tell: Tell | None = None,
    ) -> Prepared:
        """Encode a meta, to be stored in one request where nobody else has stored another state of the task.

        Arguments:
            task: the task's name, where it is known.
            expires: the seconds that this result lives, 0 for ever; ``None``: like any.
            rerun: another run of the task has probably left a state here.
            unless_begun: leave a task alone that has begun.
            eager: the task ran where it was called.
            tell: called once the state is stored, or stands there already.

        Raises:
            kombu.exceptions.EncodeError: the serializer cannot hold the value.
            ValueError: there is no id, as of a task that calls `update_state` and was itself called as a function.
        """
        id, state = meta["task_id"], meta["status"]
        if not id:
            self.task_key(id)
        body, content_type = self.encoder.body(meta)
        # Looked up now: files in the value were uploaded while it was encoded; an earlier run's perhaps elsewhere.
        files = None if rerun else self.uploaded.get(id, 0)
        beside = result_metadata(state, task, meta.get("children"), expires, files)
        write = partial(self.results.write, rerun=rerun, unless_begun=unless_begun)
        store = partial(self._store, id, state, eager, lambda key: write(key, body, state, beside, content_type), tell)
        return Prepared(body.size if isinstance(body, Chunks) else len(body), store)

    def _store(
        self, id: Any, state: str, eager: bool, write: Callable[[str], WriteOutcome], tell: Tell | None
    ) -> WriteOutcome:
        """Store a state.

        Raises:
            ResultNotStored: the store failed and the state is final, or there can be no key for such an id.
        """
        try:
            key = self.task_key(id)
            with self._tried(state, eager=eager), watched() as written:
                outcome = write(key)
        except (StoreError, ValueError) as exc:
            what = f"{state} of task {id} was not stored: {exc}"
            if isinstance(exc, StoreError) and state not in states.READY_STATES:
                logger.warning("%s", what, extra={"s3_task": str(id)})
                return WriteOutcome.DROPPED
            raise ResultNotStored(what, str(id), state) from exc
        if tell is not None:
            tell(key, written[-1] if written and outcome is WriteOutcome.WRITTEN else None)
        return outcome

    def _tried(self, state: str, *, eager: bool) -> AbstractContextManager[None]:
        """For how long a state is tried to be stored."""
        if state not in states.READY_STATES:
            return retried_until(time.monotonic() + PASSING)
        return nullcontext() if eager else patient(self.patience)


def is_rerun(request: Any) -> bool:
    """Whether a task's request says that it has run before, elsewhere perhaps: after a retry or a redelivery."""
    delivery = getattr(request, "delivery_info", None) or {}
    return bool(getattr(request, "retries", 0) or delivery.get("redelivered"))


def is_eager(request: Any) -> bool:
    """Whether a task's request says that it runs where it was called."""
    return bool(getattr(request, "is_eager", False))
