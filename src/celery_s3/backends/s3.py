"""Celery's hooks, each a few lines that hand over to a room."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from math import inf
from typing import Any, TypeGuard

from celery import states
from celery.backends.base import KeyValueStoreBackend
from celery.result import ResultSet, result_from_tuple
from kombu.utils.encoding import bytes_to_str

from celery_s3 import keys
from celery_s3.bucket import open_store
from celery_s3.chords.hooks import ChordHooks
from celery_s3.codec import decoding, raw
from celery_s3.codec.chunks import LARGE, Chunks, one_body
from celery_s3.codec.compression import compress_payload, compression_method
from celery_s3.costs.workers import Reporter
from celery_s3.errors import ResultNotStored, StoreError
from celery_s3.expiry.hooks import ExpiryHooks
from celery_s3.expiry.terms import Terms
from celery_s3.files.hooks import FileHooks, transient
from celery_s3.metadata import result_metadata
from celery_s3.processes import prefork_parent
from celery_s3.results import waiting
from celery_s3.results.groups import gather
from celery_s3.results.parents import Parents, checking
from celery_s3.results.reader import Decoder, Meta, Reader, Replaced, pending, ready
from celery_s3.results.write_once import Results
from celery_s3.settings import resolve
from celery_s3.store.deadline import retried_until

__all__ = ["S3Backend"]


class S3Backend(FileHooks, ExpiryHooks, ChordHooks, KeyValueStoreBackend):
    """Stores results in S3: one PUT to store, one GET to fetch, a SUCCESS never overwritten.

    Settings: ``result_backend = "celery_s3.backends.S3Backend"`` with the dict ``s3_backend_settings``, or
    ``result_backend = "celery-s3://bucket/prefix?region=…"``; see :mod:`celery_s3.settings`.

    Raises:
        ConfigurationError: the settings are wrong; nothing connects before the first result.
    """

    persistent = True
    supports_native_join = True
    supports_result_compression = True
    implements_incr = False
    key_t = bytes_to_str

    def __init__(self, app: Any = None, url: str | None = None, **kwargs: Any) -> None:
        super().__init__(app, url=url, **kwargs)
        # The base constructor reads this from a setting of its own.
        self.thread_safe = True
        # Celery before 5.7 knows no `result_compression`.
        self.compression = self.prepare_compression(self.app.conf.get("result_compression"))
        self.settings = resolve(self.app, url)
        self.layout = keys.Layout(self.settings.base, self.task_keyprefix.removesuffix(keys.RESULTS.start))
        self.terms = Terms.of(self.app.conf, self.expires)
        opened = open_store(self.settings)
        self.store, self.tally, self.pool = opened.store, opened.tally, opened.pool
        self._plain_store, self.uploads = opened.plain, opened.uploads
        self._reporter = Reporter(self.tally, self.settings)
        self._decoder = Decoder(self.content_type, self.accept)
        self.results = Results(
            self.store,
            self.uploads,
            opened.conditional,
            self.pool,
            state_in=self._decoder.state_in,
            expires=self.terms.results,
        )
        self.reader = Reader(
            self.results,
            self._decoder,
            self.settings.bucket,
            self.meta_from_decoded,
            partial(result_from_tuple, app=self.app),
            self._changed,
            self._noticed,
        )
        self._open_files()
        self._parents = Parents(self._fetch, self.settings.concurrency)
        self._open_chords()

    def as_uri(self, include_password: bool = False) -> str:
        """Bucket and prefix; there is never a secret to include."""
        return self.settings.uri

    def __reduce__(self, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        return super().__reduce__(args, {**(kwargs or {}), "url": self.url, "expires": self.expires})

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        """Whether ``result_backend_always_retry`` may try again; never in the event loop of a prefork worker."""
        return transient(exc) and not prefork_parent()

    def _changed(self, task_id: str) -> None:
        self._cache.pop(task_id, None)

    # -- keys

    def _get_key_for(self, prefix: str, id: Any, key: str = "") -> str:
        return f"{prefix}{keys.encode_id(bytes_to_str(id) if isinstance(id, bytes) else str(id))}{key}"

    def _full(self, key: str | bytes) -> str:
        return keys.full_key(self.settings.base, bytes_to_str(key))

    # -- the key/value verbs of Celery's base class

    def get(self, key: str | bytes) -> bytes | None:
        found = self.results.read(self._full(key))
        whole = found and self.results.whole(found)
        return whole.frame + whole.body if whole else None

    def mget(self, keys: Iterable[str | bytes]) -> list[bytes | None]:
        return self.pool.map(self.get, keys)

    def set(self, key: str | bytes, value: bytes | str) -> None:
        self.store.put(self._full(key), _bytes(value), content_type=self.content_type)

    def delete(self, key: str | bytes) -> None:
        self.results.delete(self._full(key))

    # -- storing

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **kwargs: Any
    ) -> Any:
        meta = self._get_result_meta(result=result, state=state, traceback=traceback, request=request)
        meta["task_id"] = bytes_to_str(task_id)
        body, content_type = self._body(meta)
        beside = result_metadata(
            state,
            getattr(request, "task", None),
            meta.get("children"),
            self._term_of(state, request),
            self._files_so_far(meta["task_id"], rerun=_is_rerun(request)),
        )
        try:
            key = self._full(self.get_key_for_task(task_id))
            self.results.write(key, body, state, beside, content_type, rerun=_is_rerun(request))
        except (StoreError, ValueError) as exc:
            raise ResultNotStored(f"{state} of task {task_id} was not stored: {exc}", str(task_id), state) from exc
        return result

    def _body(self, meta: Meta) -> tuple[bytes | Chunks, str]:
        """A meta as it is stored, and its content type; bytes stay what they are where text would be made of them."""
        value = meta["result"]
        if type(value) is not bytes or meta["status"] != states.SUCCESS or self.content_type not in raw.PLAIN:
            return one_body(*self._packed(self._encode(meta)[2])), self.content_type
        meta["result"] = len(value)
        frame = raw.frame(self._encode(meta)[2], self.content_type)
        return one_body(*self._packed_raw(frame, value)), raw.CONTENT_TYPE

    def _packed_raw(self, frame: bytes, value: bytes) -> tuple[bytes | str, ...]:
        if self.compression:
            packed = self._packed(frame + value)
            if len(packed) > 1:
                return packed
        return frame, value  # apart: where compression does not help, no second copy is kept

    def encode(self, data: Any) -> bytes | str:
        first, *more = self._packed(self._encode(data)[2])
        return b"".join(map(_bytes, (first, *more))) if more else first

    def _packed(self, payload: bytes | str) -> tuple[bytes | str, ...]:
        if not self.compression:
            return (payload,)
        return compress_payload(payload, self.compression, self.settings.compression_threshold)

    def prepare_compression(self, compression: str | None) -> str | None:
        return compression_method(compression)

    # -- fetching

    def get_task_meta(self, task_id: str, cache: bool = True) -> Meta:
        if not (cache and task_id in self._cache):
            waited = checking()
            if waited is not None:
                return self._parents.meta(waited, task_id)
        meta: Meta = super().get_task_meta(task_id, cache=cache)
        return meta

    def _get_task_meta_for(self, task_id: str) -> Meta:
        meta = self.reader.meta(task_id, self._full(self.get_key_for_task(task_id)))
        if meta["status"] == states.SUCCESS and prefork_parent():
            self._child_was_lost()
        return meta

    def meta_from_decoded(self, meta: Meta) -> Meta:
        # what has not been fetched yet goes through here when it is
        return meta if isinstance(meta, decoding.LazyMeta) else super().meta_from_decoded(meta)

    def task_result_exists(self, task_id: str) -> bool:
        """Whether anything is stored for the task; one request, whatever its size."""
        return self.reader.exists(task_id, self._full(self.get_key_for_task(task_id)))

    def _restore_group(self, group_id: str) -> Meta | None:
        return self.reader.group(
            group_id,
            self._full(self.get_key_for_group(group_id)),
            lambda meta: {**meta, "result": result_from_tuple(meta["result"], self.app)},
        )

    def decode(self, payload: bytes | str) -> Any:
        return self._decoder.loads(_bytes(payload))

    # -- waiting

    def wait_for(
        self,
        task_id: str,
        timeout: float | None = None,
        interval: float | None = 0.5,
        no_ack: bool = True,
        on_interval: Callable[[], object] | None = None,
    ) -> Meta:
        self._ensure_not_eager()
        with self._parents.waiting(task_id), retried_until(_moment(timeout)):
            return waiting.until(
                # with its value: a timeout bounds that too
                lambda: _whole(ready(self.get_task_meta(task_id))),
                delay=waiting.schedule(interval),
                timeout=timeout,
                on_interval=on_interval,
            )

    def get_many(
        self,
        task_ids: Iterable[str],
        timeout: float | None = None,
        interval: float | None = 0.5,
        no_ack: bool = True,
        on_message: Callable[[Meta], object] | None = None,
        on_interval: Callable[[], object] | None = None,
        max_iterations: int | None = None,
        READY_STATES: frozenset[str] = states.READY_STATES,
    ) -> Iterator[tuple[str, Meta]]:
        """Yield ``(id, meta)`` of each task as it becomes ready."""
        ids = list(dict.fromkeys(bytes_to_str(id) for id in task_ids))
        until = _moment(timeout)

        def whole(meta: Meta | None, up_to: float = inf) -> Meta | None:
            with retried_until(until):
                found = _whole(meta, up_to)
            return found and ready(found, READY_STATES)

        def read(id: str) -> Meta:
            meta = self._cached(id, READY_STATES)
            if meta is None:
                with retried_until(until):
                    meta = self.reader.meta(id, self._full(self.get_key_for_task(id)))
            return whole(ready(meta, READY_STATES), LARGE) or pending()

        def look(wanted: Iterable[str]) -> Iterator[tuple[str, Meta | None]]:
            for id, meta in self._fetch(wanted, READY_STATES, read):
                # in this thread: in one of the pool's, the parts of a large one would come one after the other
                yield id, whole(meta)

        known = {id: meta for id in ids if (meta := self._cached(id, READY_STATES)) and not _partial(meta)}
        yield from known.items()
        for id, meta in waiting.each(
            (id for id in ids if id not in known),
            look,
            delay=waiting.schedule(interval),
            timeout=timeout,
            on_interval=on_interval,
            passes=max_iterations,
        ):
            self._cache[id] = meta
            if on_message is not None:
                on_message(meta)
            yield id, meta

    def _cached(self, id: str, ready_states: frozenset[str]) -> Meta | None:
        try:
            return ready(self._cache[id], ready_states)
        except KeyError:  # asking first would not help: another thread may push it out in between
            return None

    def _fetch(
        self,
        ids: Iterable[str],
        ready_states: frozenset[str] = states.READY_STATES,
        read: Callable[[str], Meta] | None = None,
    ) -> Iterator[tuple[str, Meta | None]]:
        """Read metas in parallel, unready ones as ``None``."""
        for id, meta in self.pool.stream(read or self._get_task_meta_for, ids):
            if isinstance(meta, BaseException):
                raise meta
            yield id, ready(meta, ready_states)

    def iter_native(
        self,
        result: ResultSet,
        timeout: float | None = None,
        interval: float | None = 0.5,
        no_ack: bool = True,
        on_message: Callable[[Meta], object] | None = None,
        on_interval: Callable[[], object] | None = None,
    ) -> Iterator[tuple[str, Any]]:
        """Yield ``(id, meta)`` of each member as it becomes ready, ``(id, results)`` of a group in the group."""
        self._ensure_not_eager()
        return gather(
            result,
            lambda ids: self.get_many(
                ids, timeout=timeout, interval=interval, on_message=on_message, on_interval=on_interval
            ),
        )


def _partial(meta: Meta | None) -> TypeGuard[decoding.LazyMeta]:
    return isinstance(meta, decoding.LazyMeta) and meta.partial


def _whole(meta: Meta | None, up_to: float = inf) -> Meta | None:
    """A meta with its value, if its object has no more than so many bytes; ``None`` where it is another one by now."""
    if _partial(meta) and meta.size <= up_to:
        with suppress(Replaced):
            return meta.whole()
        return None
    return meta


def _moment(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def _is_rerun(request: Any) -> bool:
    """Whether the task has run before, elsewhere perhaps: after a retry or a redelivery."""
    delivery = getattr(request, "delivery_info", None) or {}
    return bool(getattr(request, "retries", 0) or delivery.get("redelivered"))


def _bytes(payload: bytes | str) -> bytes:
    return payload.encode() if isinstance(payload, str) else payload
