"""From the meta that Celery wants to store to its object."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery_s3.codec.encoding import Encoder
from celery_s3.errors import ResultNotStored, StoreError
from celery_s3.metadata import result_metadata

from .write_once import Results, WriteOutcome

__all__ = ["Recorder", "is_rerun"]


class Recorder:
    """Stores metas.

    Arguments:
        task_key: the key of a task's result.
        files: how many files a task has uploaded, ``None`` where nobody knows, by its id and whether it is a rerun.
    """

    def __init__(
        self,
        results: Results,
        encoder: Encoder,
        task_key: Callable[[str], str],
        files: Callable[[str, bool], int | None],
    ) -> None:
        self.results = results
        self.encoder = encoder
        self.task_key = task_key
        self.files = files

    def record(self, meta: dict[str, Any], task: str | None, *, expires: float | None, rerun: bool) -> WriteOutcome:
        """Store a meta, in one request where nobody else has stored another state of the task.

        Arguments:
            task: the task's name, where it is known.
            expires: the seconds that this result lives, 0 for ever; ``None``: like any.
            rerun: another run of the task has probably left a state here.

        Raises:
            kombu.exceptions.EncodeError: the serializer cannot hold the value; nothing was stored.
            ResultNotStored: the store failed.
        """
        id, state = meta["task_id"], meta["status"]
        body, content_type = self.encoder.body(meta)
        # Asked now: files in the value were uploaded while it was encoded.
        files = self.files(id, rerun)
        beside = result_metadata(state, task, meta.get("children"), expires, files)
        try:
            return self.results.write(self.task_key(id), body, state, beside, content_type, rerun=rerun)
        except (StoreError, ValueError) as exc:
            raise ResultNotStored(f"{state} of task {id} was not stored: {exc}", str(id), state) from exc


def is_rerun(request: Any) -> bool:
    """Whether a task's request says that it has run before, elsewhere perhaps: after a retry or a redelivery."""
    delivery = getattr(request, "delivery_info", None) or {}
    return bool(getattr(request, "retries", 0) or delivery.get("redelivered"))
