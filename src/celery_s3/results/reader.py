"""From an object to the meta that Celery wants: decoded once, large ones only as far as somebody asks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any, NoReturn, TypeVar

from celery import states
from celery.result import ResultBase
from kombu.exceptions import DecodeError

from celery_s3.codec.decoding import Decoder, Whole
from celery_s3.codec.lazy import LazyMeta
from celery_s3.codec.raw import preamble_of
from celery_s3.errors import NoException, NotDecompressed, ResultNotRead, StoreError, UnreadableResult
from celery_s3.interruptions import brief, reraise_interruption
from celery_s3.metadata import SEAL, are_children, children_in, state_of
from celery_s3.store.api import Object

from .write_once import Results

__all__ = ["Meta", "Reader", "Replaced", "pending", "ready"]

Meta = dict[str, Any]
K = TypeVar("K")
V = TypeVar("V")


def pending() -> Meta:
    """The meta of a task that nothing is known of."""
    return {"status": states.PENDING, "result": None}


def ready(meta: Meta, ready_states: Collection[str] = states.READY_STATES) -> Meta | None:
    """The meta if its task is finished."""
    return meta if meta["status"] in ready_states else None


class Replaced(ResultNotRead):
    """A result was forgotten or replaced after its state was read, and before its value was."""


class _Held:
    """What was read of a large object, for who will want the rest."""

    def __init__(self, found: Object) -> None:
        self.found = found

    def let_go_of_value(self) -> None:
        """Keep its name and version, and no 64 KiB of a value that may never be asked for."""
        self.found = replace(self.found, body=preamble_of(self.found.body))


class Reader:
    """Fetches metas.

    Arguments:
        bucket: its name, for messages.
        task_key: the key of a task's result.
        to_python: Celery's last step, which makes exceptions of what stands for them.
        to_result: makes a result of a child as it is stored.
        changed: told the id of a task whose result turned out to be another one while it was read.
        about_to_decode: told an id and what stands under it, before that is decoded.

    All methods raise :class:`ResultNotRead` where the store fails, and :class:`UnreadableResult` for an object
    that is no result.
    """

    def __init__(
        self,
        results: Results,
        decoder: Decoder,
        bucket: str,
        task_key: Callable[[str], str],
        to_python: Callable[[Meta], Meta],
        to_result: Callable[[Any], ResultBase],
        changed: Callable[[str], object],
        about_to_decode: Callable[[str, Object], object],
    ) -> None:
        self.results = results
        self.decoder = decoder
        self.bucket = bucket
        self.task_key = task_key
        self.to_python = to_python
        self.to_result = to_result
        self.changed = changed
        self.about_to_decode = about_to_decode

    def exists(self, task_id: str) -> bool:
        """Whether there is anything, whatever its size."""
        return self._read(task_id, self.results.read, self.task_key(task_id)) is not None

    def state(self, task_id: str) -> str | None:
        """The state as an object's metadata tells it, in one request; ``None`` where nothing tells one."""
        found = self._read(task_id, self.results.read, self.task_key(task_id))
        return None if found is None else state_of(found.metadata)

    def meta(self, task_id: str) -> Meta:
        """The meta in one request; of a large one all but the state is left out until somebody asks for it."""
        found = self._read(task_id, self.results.read, self.task_key(task_id))
        if found is None:
            return pending()
        if found.complete:
            return self._decoded(task_id, Whole(found, found.body), self._result)
        state = state_of(found.metadata)
        if state is None:
            return self.meta_in(task_id, found)
        known = {"status": state, "task_id": task_id}
        if state in states.READY_STATES:
            known |= children_in(found.metadata)
        held = _Held(found)
        return LazyMeta(
            known, lambda: self._rest(task_id, held.found, state), found.size, self.to_result, held.let_go_of_value
        )

    def without_value(self, task_id: str, meta: Meta) -> Meta:
        """A final meta whose value is read again by who asks for it."""
        state = meta["status"]
        known: Meta = {name: meta[name] for name in ("status", "task_id", "children") if name in meta}
        return LazyMeta(known, lambda: self._again(task_id, state), to_result=self.to_result)

    def meta_in(self, task_id: str, found: Object) -> Meta:
        """The meta with its value in what was read of its object."""
        whole = self._read(task_id, self.results.whole, found)
        return pending() if whole is None else self._decoded(task_id, whole, self._result)

    def group(self, group_id: str, key: str, to_python: Callable[[Any], Meta]) -> Meta | None:
        """The meta of a saved group, ``None`` where there is none."""
        found = self._read(group_id, self.results.read, key)
        return None if found is None else self.group_in(group_id, found, to_python)

    def group_in(self, group_id: str, found: Object, to_python: Callable[[Any], Meta]) -> Meta | None:
        """The meta of a saved group in what was read of its object; ``None`` where that is gone by now."""
        whole = self._read(group_id, self.results.whole, found)
        return None if whole is None else self._decoded(group_id, whole, to_python)

    def _read(self, id: str, read: Callable[[K], V], what: K) -> V:
        """``read(what)``, whose errors name the id."""
        try:
            return read(what)
        except StoreError as exc:
            raise ResultNotRead(f"{id} was not read: {exc}", str(id)) from exc

    def _again(self, task_id: str, state: str) -> Meta:
        """The whole meta of a result that was there before; raises as :meth:`_rest` does."""
        found = self._read(task_id, self.results.read, self.task_key(task_id))
        if found is None:
            raise self._replaced(task_id)
        return self._rest(task_id, found, state)

    def _rest(self, task_id: str, found: Object, state: str) -> Meta:
        """The whole meta of a result whose state somebody has been told already.

        Raises:
            Replaced: that state was final, and there is another result by now, or none.
        """
        whole = self._read(task_id, self.results.whole, found)
        meta = pending() if whole is None else self._decoded(task_id, whole, self._result)
        if meta["status"] == state or state not in states.READY_STATES:
            return meta
        if whole is not None and whole.about.etag == found.etag and state_of(found.metadata) == state:
            self.changed(task_id)
            raise UnreadableResult(
                f"The object s3://{self.bucket}/{found.key} is {state} by its metadata and {meta['status']} by its"
                f" body: celery-s3 did not write it so. Forget the result of {task_id}.",
                task_id,
            )
        raise self._replaced(task_id)

    def _replaced(self, task_id: str) -> Replaced:
        self.changed(task_id)
        why = f"The result of task {task_id} was forgotten or replaced while it was read: ask a new AsyncResult."
        return Replaced(why, task_id)

    def _result(self, meta: Any) -> Meta:
        if not (isinstance(meta, dict) and isinstance(meta.get("status"), str) and "result" in meta):
            raise DecodeError("no status and result in it")
        if not are_children(meta.get("children")):
            raise DecodeError("its children are no results")
        try:
            return self.to_python(meta)
        except (TypeError, ValueError) as exc:
            if meta["status"] not in states.EXCEPTION_STATES:
                raise
            return self._without_exception(meta, exc)

    def _without_exception(self, meta: Meta, exc: Exception) -> Meta:
        """A meta of which all is known but the exception: who asks for that gets Celery's error, and nobody else."""
        task_id, state = str(meta.get("task_id", "")), meta["status"]
        message = (
            f"{exc}. Task {task_id} has stored {state} with a meta of its own: give that `exc_type` and `exc_message`"
            " beside the rest."
        )

        def refuse() -> NoReturn:
            raise NoException(message, task_id) from exc

        return LazyMeta({name: value for name, value in meta.items() if name != "result"}, refuse)

    def _decoded(self, id: str, whole: Whole, to_python: Callable[[Any], Meta]) -> Meta:
        """The meta in an object. Whatever goes wrong with its body is an error that names object and remedy."""
        about = whole.about
        self.about_to_decode(str(id), about)
        handled = sys.exception()
        try:
            return to_python(self.decoder.decode(whole))
        except Exception as exc:
            reraise_interruption(exc, handled, whole.interruptions)
            raise UnreadableResult(self._why_not(id, about, exc), str(id)) from exc

    def _why_not(self, id: str, about: Object, exc: Exception) -> str:
        """Why an object cannot be decoded, and what to do."""
        name = f"s3://{self.bucket}/{about.key}"
        if isinstance(exc, NotDecompressed):
            return f"The object {name}, the result of {id}, cannot be read: {exc}."
        if SEAL in about.metadata:
            return (
                f"The object {name}, the result of {id}, is sealed: give this process the `seal_keys` of whoever wrote"
                " it."
            )
        return (
            f"The object {name} ({about.size} bytes, {about.content_type or 'no content type'}) is not a result that"
            f" this process can read as {self.decoder.content_type}: {brief(exc)}. Use the `result_serializer` of"
            f" whoever wrote it and allow it in `result_accept_content`, or forget the result of {id}."
        )
