"""Celery's hooks, each a few lines that hand over to a room."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from celery import states
from celery.backends.base import KeyValueStoreBackend
from celery.result import ResultSet, result_from_tuple
from kombu.exceptions import DecodeError
from kombu.utils.encoding import bytes_to_str

from .. import codec, keys, waiting
from ..errors import ResultNotRead, ResultNotStored, StoreError, Transient, UnreadableResult
from ..groups import gather
from ..parents import Parents, checking
from ..results import Results
from ..settings import resolve
from ..store import open_store
from ..store.api import Object
from ..store.situation import prefork_parent
from .chords import ChordHooks

__all__ = ["S3Backend"]

Meta = dict[str, Any]


def _pending() -> Meta:
    return {"status": states.PENDING, "result": None}


class S3Backend(ChordHooks, KeyValueStoreBackend):
    """Stores results in S3: one PUT to store, one GET to fetch, a SUCCESS never overwritten.

    Settings: ``result_backend = "celery_s3.backends.S3Backend"`` with the dict ``s3_backend_settings``, or
    ``result_backend = "celery-s3://bucket/prefix?region=…"``; see :mod:`celery_s3.settings`.

    Raises:
        ConfigurationError: the settings are wrong; nothing connects before the first result.
    """

    persistent = True
    supports_native_join = True
    supports_autoexpire = False
    supports_result_compression = True
    implements_incr = False
    key_t = bytes_to_str

    def __init__(self, app: Any = None, url: str | None = None, **kwargs: Any) -> None:
        super().__init__(app, url=url, **kwargs)
        # The base constructor reads this from a setting of its own.
        self.thread_safe = True
        # Celery before 5.7 knows no `result_compression`.
        self.compression = codec.compression_method(self.app.conf.get("result_compression"))
        self.settings = resolve(self.app, url)
        opened = open_store(self.settings)
        self.store, self.tally, self.pool = opened.store, opened.tally, opened.pool
        self.results = Results(
            self.store, opened.conditional, self.pool, state_in=self._state_in, expires=self.expires or None
        )
        self._parents = Parents(self._fetch, self.settings.concurrency)
        self._open_chords(self._full(self.task_keyprefix.removesuffix(KeyValueStoreBackend.task_keyprefix)))

    def as_uri(self, include_password: bool = False) -> str:
        """Bucket and prefix; there is never a secret to include."""
        return self.settings.uri

    def __reduce__(self, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        return super().__reduce__(args, {**(kwargs or {}), "url": self.url, "expires": self.expires})

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        """Whether ``result_backend_always_retry`` may try again; never in the event loop of a prefork worker."""
        return isinstance(exc.__cause__ or exc, Transient) and not prefork_parent()

    # -- keys

    def _get_key_for(self, prefix: str, id: Any, key: str = "") -> str:
        return f"{prefix}{keys.encode_id(bytes_to_str(id) if isinstance(id, bytes) else str(id))}{key}"

    def _full(self, key: str | bytes) -> str:
        return keys.full_key(self.settings.base, bytes_to_str(key))

    # -- the key/value verbs of Celery's base class

    def get(self, key: str | bytes) -> bytes | None:
        found = self._whole(key)
        return None if found is None else found.body

    def _whole(self, key: str | bytes) -> Object | None:
        found = self.results.read(self._full(key))
        return found and self.results.whole(found)

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
        body = _bytes(self.encode(meta))
        beside = codec.metadata(state, getattr(request, "task", None), meta.get("children"))
        try:
            self.results.write(self._full(self.get_key_for_task(task_id)), body, state, beside, self.content_type)
        except (StoreError, ValueError) as exc:
            raise ResultNotStored(f"{state} of task {task_id} was not stored: {exc}", str(task_id), state) from exc
        return result

    def encode(self, data: Any) -> bytes | str:
        _, _, payload = self._encode(data)
        encoded: bytes | str = codec.compress_payload(payload, self.compression) if self.compression else payload
        return encoded

    # -- fetching

    def get_task_meta(self, task_id: str, cache: bool = True) -> Meta:
        if not (cache and task_id in self._cache):
            waited = checking()
            if waited is not None:
                return self._parents.meta(waited, task_id)
        meta: Meta = super().get_task_meta(task_id, cache=cache)
        return meta

    def _get_task_meta_for(self, task_id: str) -> Meta:
        with _reading(task_id):
            found = self.results.read(self._full(self.get_key_for_task(task_id)))
        return _pending() if found is None else self._meta(task_id, found)

    def task_result_exists(self, task_id: str) -> bool:
        """Whether anything is stored for the task; one request, whatever its size."""
        with _reading(task_id):
            return self.results.read(self._full(self.get_key_for_task(task_id))) is not None

    def _restore_group(self, group_id: str) -> Meta | None:
        with _reading(group_id):
            whole = self._whole(self.get_key_for_group(group_id))
        if whole is None:
            return None
        with self._decoding(group_id, whole):
            meta: Meta = self._loads(whole.body, whole.content_type)
            return {**meta, "result": result_from_tuple(meta["result"], self.app)}

    def _meta(self, task_id: str, found: Object) -> Meta:
        if not found.complete and codec.state_of(found.metadata) == states.SUCCESS:
            known = {"status": states.SUCCESS, "task_id": task_id, **codec.children_in(found.metadata)}
            return codec.LazyMeta(known, lambda: self._rest(task_id, found))
        return self._whole_meta(task_id, found)

    def _rest(self, task_id: str, found: Object) -> Meta:
        """The whole meta of a SUCCESS, which somebody has been told about already."""
        meta = self._whole_meta(task_id, found)
        if meta["status"] != states.SUCCESS:
            self._cache.pop(task_id, None)
            why = f"The result of task {task_id} was forgotten or replaced while it was read: ask again."
            raise ResultNotRead(why, task_id)
        return meta

    def _whole_meta(self, task_id: str, found: Object) -> Meta:
        with _reading(task_id):
            whole = self.results.whole(found)
        return _pending() if whole is None else self._decoded(task_id, whole)

    def _decoded(self, task_id: str, whole: Object) -> Meta:
        with self._decoding(task_id, whole):
            meta = self._loads(whole.body, whole.content_type)
            if not (isinstance(meta, dict) and isinstance(meta.get("status"), str) and "result" in meta):
                raise DecodeError("no status and result in it")
            decoded: Meta = self.meta_from_decoded(meta)
        return decoded

    @contextmanager
    def _decoding(self, id: str, whole: Object) -> Iterator[None]:
        """Whatever goes wrong with an object's body, as an error that names object and remedy."""
        try:
            yield
        except Exception as exc:
            message = (
                f"The object s3://{self.settings.bucket}/{whole.key} ({whole.size} bytes,"
                f" {whole.content_type or 'no content type'}) is not a result that this process can read"
                f" as {self.content_type}: {type(exc).__name__}: {exc}. Use the `result_serializer` of whoever wrote"
                f" it and allow it in `result_accept_content`, or forget the result of {id}."
            )
            raise UnreadableResult(message, str(id)) from exc

    def decode(self, payload: bytes | str) -> Any:
        return self._loads(_bytes(payload), self.content_type)

    def _loads(self, payload: bytes, content_type: str) -> Any:
        return codec.loads(payload, content_type, self.content_type, self.accept)

    def _state_in(self, stored: Object) -> str | None:
        """The state of a stored object: as its metadata tells, else from its body."""
        state = codec.state_of(stored.metadata)
        if state is not None:
            return state
        whole = self.results.whole(stored)
        try:
            return None if whole is None else str(self._loads(whole.body, whole.content_type)["status"])
        except Exception:  # noqa: BLE001 (whatever a decoder makes of garbage)
            return None

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
        with self._parents.waiting(task_id):
            return waiting.until(
                lambda: _ready(self.get_task_meta(task_id)),
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
        known = {id: meta for id in ids if (meta := self._cached(id, READY_STATES))}
        yield from known.items()
        for id, meta in waiting.each(
            (id for id in ids if id not in known),
            lambda wanted: self._fetch(wanted, READY_STATES, self._value_meta),
            limit=self.settings.concurrency,
            delay=waiting.schedule(interval),
            timeout=timeout,
            on_interval=on_interval,
            passes=max_iterations,
        ):
            self._cache[id] = meta
            if on_message is not None:
                on_message(meta)
            yield id, meta

    def _cached(self, id: str, ready: frozenset[str]) -> Meta | None:
        try:
            return _ready(self._cache[id], ready)
        except KeyError:  # asking first would not help: another thread may push it out in between
            return None

    def _value_meta(self, task_id: str) -> Meta:
        """The meta with its value, however large: who waits for a group wants them all, and here they come abreast."""
        with _reading(task_id):
            whole = self._whole(self.get_key_for_task(task_id))
        return _pending() if whole is None else self._decoded(task_id, whole)

    def _fetch(
        self,
        ids: Iterable[str],
        ready: frozenset[str] = states.READY_STATES,
        read: Callable[[str], Meta] | None = None,
    ) -> Iterator[tuple[str, Meta | None]]:
        """Read metas in parallel, unready ones as ``None``."""
        for id, meta in self.pool.stream(read or self._get_task_meta_for, ids):
            if isinstance(meta, BaseException):
                raise meta
            yield id, _ready(meta, ready)

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


def _ready(meta: Meta, ready: frozenset[str] = states.READY_STATES) -> Meta | None:
    return meta if meta["status"] in ready else None


def _bytes(payload: bytes | str) -> bytes:
    return payload.encode() if isinstance(payload, str) else payload


@contextmanager
def _reading(id: str) -> Iterator[None]:
    """What the store raises, as an error that Celery knows."""
    try:
        yield
    except StoreError as exc:
        raise ResultNotRead(f"{id} was not read: {exc}", str(id)) from exc
