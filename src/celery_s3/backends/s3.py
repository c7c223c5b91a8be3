"""Celery's hooks, each a few lines that hand over to a room."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from celery import states
from celery.backends.base import KeyValueStoreBackend
from celery.result import ResultSet, result_from_tuple
from kombu.utils.encoding import bytes_to_str, str_to_bytes

from celery_s3 import keys
from celery_s3.bucket import open_store
from celery_s3.celery_private import ResultBackend, checked_parents_of
from celery_s3.chords.hooks import ChordHooks
from celery_s3.codec.compression import compression_method
from celery_s3.codec.decoding import Decoder
from celery_s3.codec.encoding import Encoder
from celery_s3.codec.lazy import LazyMeta
from celery_s3.costs.workers import Reporter
from celery_s3.expiry.hooks import ExpiryHooks
from celery_s3.expiry.terms import Terms
from celery_s3.files.hooks import FileHooks, transient
from celery_s3.processes import prefork_parent
from celery_s3.results.groups import gather
from celery_s3.results.reader import Meta, Reader
from celery_s3.results.recorder import Recorder, is_rerun
from celery_s3.results.waiter import Waiter
from celery_s3.results.write_once import Results
from celery_s3.settings import resolve

__all__ = ["S3Backend"]


class S3Backend(FileHooks, ExpiryHooks, ChordHooks, ResultBackend):
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
        self.terms = Terms.of(self.app.conf, self.expires)
        opened = open_store(self.settings)
        self.store, self.tally, self.pool = opened.store, opened.tally, opened.pool
        self._plain_store, self.uploads = opened.plain, opened.uploads
        self._reporter = Reporter(self.tally, self.settings)
        self._encoder = Encoder(
            self.serialize, self.content_type, self.compression, self.settings.compression_threshold
        )
        self._decoder = Decoder(self.content_type, self.accept)
        self.results = Results(
            self.store,
            self.uploads,
            opened.conditional,
            self.pool,
            state_in=self._decoder.state_in,
            expires=self.terms.results,
        )
        self.recorder = Recorder(self.results, self._encoder, self.task_key)
        self.reader = Reader(
            self.results,
            self._decoder,
            self.settings.bucket,
            self.task_key,
            self.meta_from_decoded,
            partial(result_from_tuple, app=self.app),
            self._changed,
            self._noticed,
        )
        self.waiter = Waiter(self.reader, self.pool, self.known_metas, self.get_task_meta, self.settings.concurrency)
        self._open_files()
        self._open_chords(self._full(self.task_keyprefix.removesuffix(KeyValueStoreBackend.task_keyprefix)))

    def as_uri(self, include_password: bool = False) -> str:
        """Bucket and prefix; there is never a secret to include."""
        return self.settings.uri

    def __reduce__(self, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        return super().__reduce__(args, {**(kwargs or {}), "url": self.url, "expires": self.expires})

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        """Whether ``result_backend_always_retry`` may try again; never in the event loop of a prefork worker."""
        return transient(exc) and not prefork_parent()

    def _changed(self, task_id: str) -> None:
        self.known_metas.pop(task_id, None)

    # -- keys

    def _full(self, key: str | bytes) -> str:
        return keys.full_key(self.settings.base, bytes_to_str(key))

    def task_key(self, task_id: str) -> str:
        """The key of a task's result, that of the base path included."""
        return self._full(self.get_key_for_task(task_id))

    # -- the key/value verbs of Celery's base class

    def get(self, key: str | bytes) -> bytes | None:
        found = self.results.read(self._full(key))
        whole = found and self.results.whole(found)
        return whole.frame + whole.body if whole else None

    def mget(self, keys: Iterable[str | bytes]) -> list[bytes | None]:
        return self.pool.map(self.get, keys)

    def set(self, key: str | bytes, value: bytes | str) -> None:
        self.store.put(self._full(key), str_to_bytes(value), content_type=self.content_type)

    def delete(self, key: str | bytes) -> None:
        self.results.delete(self._full(key))

    # -- storing

    def store_meta(self, meta: Meta, request: Any) -> None:
        rerun, expires = is_rerun(request), self._term_of(meta["status"], request)
        files = self._files_so_far(meta["task_id"], rerun=rerun)
        self.recorder.record(meta, getattr(request, "task", None), expires=expires, files=files, rerun=rerun)

    def encode(self, data: Any) -> bytes | str:
        return self._encoder.payload(data)

    def prepare_compression(self, compression: str | None) -> str | None:
        return compression_method(compression)

    # -- fetching

    def get_task_meta(self, task_id: str, cache: bool = True) -> Meta:
        waited = None if cache and task_id in self.known_metas else checked_parents_of()
        if waited is not None:
            return self.waiter.parents.meta(waited, task_id)
        meta: Meta = super().get_task_meta(task_id, cache=cache)
        return meta

    def fetch_meta(self, task_id: str) -> Meta:
        meta = self.reader.meta(task_id)
        if meta["status"] == states.SUCCESS and prefork_parent():
            self._child_was_lost()
        return meta

    def meta_from_decoded(self, meta: Meta) -> Meta:
        # A large one's body comes through here when it is fetched.
        return meta if isinstance(meta, LazyMeta) else super().meta_from_decoded(meta)

    def task_result_exists(self, task_id: str) -> bool:
        """Whether anything is stored for the task; one request, whatever its size."""
        return self.reader.exists(task_id)

    def fetch_group(self, group_id: str) -> Meta | None:
        return self.reader.group(
            group_id,
            self._full(self.get_key_for_group(group_id)),
            lambda meta: {**meta, "result": result_from_tuple(meta["result"], self.app)},
        )

    def decode(self, payload: bytes | str) -> Any:
        return self._decoder.loads(str_to_bytes(payload))

    # -- waiting

    def wait_for(
        self,
        task_id: str,
        timeout: float | None = None,
        interval: float | None = 0.5,
        no_ack: bool = True,
        on_interval: Callable[[], object] | None = None,
    ) -> Meta:
        self.warn_if_eager()
        return self.waiter.one(task_id, timeout=timeout, interval=interval, on_interval=on_interval)

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
        return self.waiter.many(
            task_ids,
            timeout=timeout,
            interval=interval,
            on_message=on_message,
            on_interval=on_interval,
            passes=max_iterations,
            ready_states=READY_STATES,
        )

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
        self.warn_if_eager()
        return gather(
            result,
            lambda ids: self.get_many(
                ids, timeout=timeout, interval=interval, on_message=on_message, on_interval=on_interval
            ),
        )
