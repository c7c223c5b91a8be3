"""From the meta that Celery wants to store to its object."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from celery_s3.codec.encoding import Encoder
from celery_s3.errors import ResultNotStored, StoreError
from celery_s3.metadata import result_metadata

from .write_once import Outcome, Results

__all__ = ["Recorder", "is_rerun"]


class Recorder:
    """Stores metas.

    Arguments:
        task_key: the key of a task's result.
        uploaded: how many files of a task this process has uploaded, by its id.
    """

    def __init__(
        self,
        results: Results,
        encoder: Encoder,
        task_key: Callable[[str], str],
        uploaded: Mapping[str, int],
    ) -> None:
        self.results = results
        self.encoder = encoder
        self.task_key = task_key
        self.uploaded = uploaded

    def record(self, meta: dict[str, Any], task: str | None, *, expires: float | None, rerun: bool) -> Outcome:
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
        # Looked up now: files in the value were uploaded while it was encoded; an earlier run's perhaps elsewhere.
        files = None if rerun else self.uploaded.get(id, 0)
        beside = result_metadata(state, task, meta.get("children"), expires, files)
        try:
            return self.results.write(self.task_key(id), body, state, beside, content_type, rerun=rerun)
        except (StoreError, ValueError) as exc:
            raise ResultNotStored(f"{state} of task {id} was not stored: {exc}", str(id), state) from exc


def is_rerun(request: Any) -> bool:
    """Whether a task's request says that it has run before, elsewhere perhaps: after a retry or a redelivery."""
    delivery = getattr(request, "delivery_info", None) or {}
    return bool(getattr(request, "retries", 0) or delivery.get("redelivered"))
