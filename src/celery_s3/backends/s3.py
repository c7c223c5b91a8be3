"""Celery's hooks, each a few lines that hand over to a room."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property, partial
from math import inf
from typing import TYPE_CHECKING, Any, TypeGuard

from celery import states
from celery.backends.base import KeyValueStoreBackend
from celery.canvas import Signature
from celery.result import AsyncResult, ResultBase, ResultSet, result_from_tuple
from kombu.utils.encoding import bytes_to_str

from celery_s3 import keys
from celery_s3.bucket import open_store
from celery_s3.celery_private import ResultBackend
from celery_s3.chords import Chords, Timer
from celery_s3.chords.claim import lease_for
from celery_s3.chords.members import Members
from celery_s3.chords.mending import MemberResults, Mending
from celery_s3.chords.producer import Producer
from celery_s3.chords.repair import Repair
from celery_s3.chords.sender import Sender
from celery_s3.codec import decoding, raw
from celery_s3.codec.chunks import LARGE, Chunks, one_body
from celery_s3.codec.compression import compress_payload, compression_method
from celery_s3.costs.workers import Reporter
from celery_s3.errors import ResultNotStored, StoreError
from celery_s3.expiry.terms import Prefixes, Terms
from celery_s3.files.of_tasks import FilesOfTasks, transient
from celery_s3.metadata import result_metadata
from celery_s3.processes import prefork_parent
from celery_s3.results import waiting
from celery_s3.results.groups import gather
from celery_s3.results.parents import Parents, checking
from celery_s3.results.reader import Decoder, Meta, Reader, Replaced, pending, ready
from celery_s3.results.write_once import Results
from celery_s3.settings import resolve
from celery_s3.store.deadline import retried_until

if TYPE_CHECKING:
    from celery_s3.expiry.rules import Rule
    from celery_s3.expiry.service import Expiry
    from celery_s3.expiry.sweep import Sweep
    from celery_s3.files.store import Files

__all__ = ["S3Backend"]


class S3Backend(ResultBackend):
    """Stores results in S3: one PUT to store, one GET to fetch, a SUCCESS never overwritten.

    Settings: ``result_backend = "celery_s3.backends.S3Backend"`` with the dict ``s3_backend_settings``, or
    ``result_backend = "celery-s3://bucket/prefix?region=…"``; see :mod:`celery_s3.settings`.

    Raises:
        ConfigurationError: the settings are wrong; nothing connects before the first result.
    """

    persistent = True
    supports_native_join = True
    supports_result_compression = True
    supports_failure_expires = True
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
        self.prefixes = self._prefixes()
        self._opened = opened = open_store(self.settings)
        self.store, self.tally, self.pool = opened.store, opened.tally, opened.pool
        self._plain_store, self.uploads = opened.plain, opened.uploads
        self._reporter = Reporter(self.tally, self.settings)
        self._decoder = Decoder(self.content_type, self.accept)
        self.files_of_tasks = FilesOfTasks(
            self.store,
            self._plain_store,
            self.uploads,
            self.pool,
            self.settings,
            prefix=self.prefixes.files,
            serializer=self.serializer,
            key_of=self._key_of_task,
        )
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
            self.files_of_tasks.noticed,
        )
        self._parents = Parents(self._fetch, self.settings.concurrency)
        self._open_chords()

    def _open_chords(self) -> None:
        self._timer = Timer()
        lease = lease_for(self.app.conf)
        self.chords = Chords(self.store, self.pool, self.prefixes.chords, lease=lease, later=self._timer)
        self.chord_producer = Producer(self.app, self.chords, self.results.conditional.supported)
        self.chord_sender = Sender(self, resend=self.settings.chord_resend)
        self.chord_members = Members(self, self.chords, self.chord_sender)
        self.mending = Mending(
            self.chords,
            self.chord_sender,
            MemberResults(self.results, self._decoder.take, self.encode, self._key_of_task),
            self.chord_producer.native,
            kept=self.terms.decided,
            dead=self.terms.chords,
        )
        self.mending.start_with_worker()

    def close(self) -> None:
        """Let go of connections and threads; nothing is done about chords later any more. No backend to use then."""
        self.mending.close()
        self._timer.close()
        self._opened.close()

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

    def key_for(self, prefix: str, id: Any, suffix: str) -> str:
        return f"{prefix}{keys.encode_id(bytes_to_str(id) if isinstance(id, bytes) else str(id))}{suffix}"

    def _full(self, key: str | bytes) -> str:
        return keys.full_key(self.settings.base, bytes_to_str(key))

    def _key_of_task(self, task_id: str) -> str:
        return self._full(self.get_key_for_task(task_id))

    def _prefixes(self) -> Prefixes:
        beside = self._full(self.task_keyprefix.removesuffix(KeyValueStoreBackend.task_keyprefix))
        return Prefixes(
            base=self.settings.base,
            results=self._full(self.task_keyprefix),
            groups=self._full(self.group_keyprefix),
            chords=f"{beside}chords/",
            messages=self._full(keys.MESSAGES),
            files=beside + keys.FILES,
        )

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

    def store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **kwargs: Any
    ) -> Any:
        store = partial(super().store_result, task_id, result, state, traceback=traceback, request=request, **kwargs)
        return self.chord_members.store(store, task_id, result, state, request)

    def store_state(self, task_id: str, result: Any, state: str, traceback: str | None, request: Any) -> None:
        meta = self.result_meta(result, state, traceback, request)
        meta["task_id"] = bytes_to_str(task_id)
        body, content_type = self._body(meta)
        beside = result_metadata(
            state,
            getattr(request, "task", None),
            meta.get("children"),
            self.terms.own(state, request),
            self.files_of_tasks.count(meta["task_id"], rerun=_is_rerun(request)),
        )
        try:
            key = self._key_of_task(task_id)
            self.results.write(key, body, state, beside, content_type, rerun=_is_rerun(request))
        except (StoreError, ValueError) as exc:
            raise ResultNotStored(f"{state} of task {task_id} was not stored: {exc}", str(task_id), state) from exc

    def _body(self, meta: Meta) -> tuple[bytes | Chunks, str]:
        """A meta as it is stored, and its content type; bytes stay what they are where text would be made of them."""
        value = meta["result"]
        if type(value) is not bytes or meta["status"] != states.SUCCESS or self.content_type not in raw.PLAIN:
            return one_body(*self._packed(self.serialize(meta))), self.content_type
        meta["result"] = len(value)
        frame = raw.frame(self.serialize(meta), self.content_type)
        return one_body(*self._packed_raw(frame, value)), raw.CONTENT_TYPE

    def _packed_raw(self, frame: bytes, value: bytes) -> tuple[bytes | str, ...]:
        if self.compression:
            packed = self._packed(frame + value)
            if len(packed) > 1:
                return packed
        return frame, value  # apart: where compression does not help, no second copy is kept

    def serialize(self, data: Any) -> bytes | str:
        with self.files_of_tasks.stores(data):
            return super().serialize(data)

    def encode(self, data: Any) -> bytes | str:
        first, *more = self._packed(self.serialize(data))
        return b"".join(map(_bytes, (first, *more))) if more else first

    def _packed(self, payload: bytes | str) -> tuple[bytes | str, ...]:
        if not self.compression:
            return (payload,)
        return compress_payload(payload, self.compression, self.settings.compression_threshold)

    def prepare_compression(self, compression: str | None) -> str | None:
        return compression_method(compression)

    # -- fetching

    def get_task_meta(self, task_id: str, cache: bool = True) -> Meta:
        if not (cache and task_id in self.known_metas):
            waited = checking()
            if waited is not None:
                return self._parents.meta(waited, task_id)
        meta: Meta = super().get_task_meta(task_id, cache=cache)
        return meta

    def fetch_meta(self, task_id: str) -> Meta:
        meta = self.reader.meta(task_id, self._key_of_task(task_id))
        if meta["status"] == states.SUCCESS and prefork_parent():
            self.chord_members.child_was_lost()
        return meta

    def meta_from_decoded(self, meta: Meta) -> Meta:
        # what has not been fetched yet goes through here when it is
        return meta if isinstance(meta, decoding.LazyMeta) else super().meta_from_decoded(meta)

    def task_result_exists(self, task_id: str) -> bool:
        """Whether anything is stored for the task; one request, whatever its size."""
        return self.reader.exists(task_id, self._key_of_task(task_id))

    def fetch_group(self, group_id: str) -> Meta | None:
        return self.reader.group(
            group_id,
            self._full(self.get_key_for_group(group_id)),
            lambda meta: {**meta, "result": result_from_tuple(meta["result"], self.app)},
        )

    def decode(self, payload: bytes | str) -> Any:
        return self._decoder.loads(_bytes(payload))

    # -- waiting

    def wait_for_pending(
        self, result: AsyncResult, *args: Any, on_interval: Callable[[], object] | None = None, **kwargs: Any
    ) -> Any:
        watching = self.mending.watching(result, on_interval)
        return super().wait_for_pending(result, *args, on_interval=watching, **kwargs)

    def wait_for(
        self,
        task_id: str,
        timeout: float | None = None,
        interval: float | None = 0.5,
        no_ack: bool = True,
        on_interval: Callable[[], object] | None = None,
    ) -> Meta:
        self.warn_if_eager()
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
                    meta = self.reader.meta(id, self._key_of_task(id))
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
            self.known_metas[id] = meta
            if on_message is not None:
                on_message(meta)
            yield id, meta

    def _cached(self, id: str, ready_states: frozenset[str]) -> Meta | None:
        try:
            return ready(self.known_metas[id], ready_states)
        except KeyError:  # asking first would not help: another thread may push it out in between
            return None

    def _fetch(
        self,
        ids: Iterable[str],
        ready_states: frozenset[str] = states.READY_STATES,
        read: Callable[[str], Meta] | None = None,
    ) -> Iterator[tuple[str, Meta | None]]:
        """Read metas in parallel, unready ones as ``None``."""
        for id, meta in self.pool.stream(read or self.fetch_meta, ids):
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
        self.warn_if_eager()
        return gather(
            result,
            lambda ids: self.get_many(
                ids, timeout=timeout, interval=interval, on_message=on_message, on_interval=on_interval
            ),
        )

    # -- chords

    def apply_chord(self, header_result_args: Any, body: Signature, **kwargs: Any) -> None:
        self.ensure_chords_allowed()
        self.files_of_tasks.sends()
        if not self.chord_producer.open(header_result_args[0], header_result_args[1], body):
            super().apply_chord(header_result_args, body, **kwargs)

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        """Nothing to do: the manifest has it."""

    def add_to_chord(self, chord_id: str, result: ResultBase) -> None:
        self.chord_members.add(result)

    def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> None:
        self.chord_members.returned(request, result, state)

    @property
    def repairs(self) -> Repair:
        """To see chords, and to mend them without one of their tasks."""
        return self.mending.repairs()

    # -- files

    @property
    def files(self) -> Files:
        """The files of this backend's tasks."""
        return self.files_of_tasks.files

    def on_task_call(self, producer: Any, task_id: str) -> Any:
        self.files_of_tasks.sends(task_id)
        return super().on_task_call(producer, task_id)

    def forget_result(self, task_id: str) -> None:
        self.files_of_tasks.delete(bytes_to_str(task_id))
        super().forget_result(task_id)

    # -- expiry

    @cached_property
    def expiry(self) -> Expiry:
        """Deletes what has expired, and knows the rules that do."""
        # Commands, beat and the daily cleanup use it: it would cost the start of every worker 20 ms.
        from celery_s3.expiry.service import Expiry

        repairs, native = self.mending.repairs, self.chord_producer.native
        return Expiry(self.settings, self.prefixes, self.terms, self._plain_store, self.pool, repairs, native)

    @cached_property
    def supports_autoexpire(self) -> bool:
        """Whether the bucket's lifecycle rules delete all results and files: then `celery beat` schedules no cleanup.

        Asked once in a process, in one request that only beat makes; ``False`` where that fails.
        """
        return self.expiry.left_to_rules()

    def lifecycle_rules(self, *, versioned: bool = False) -> list[Rule]:
        """The lifecycle rules that the bucket should have, for one that keeps versions or not."""
        return self.expiry.rules(versioned=versioned)

    def sweep(self, *, dry_run: bool = False, thorough: bool = False) -> Sweep:
        """A sweep, ready to run: see :meth:`celery_s3.expiry.service.Expiry.sweep`."""
        return self.expiry.sweep(dry_run=dry_run, thorough=thorough)

    def cleanup(self) -> None:
        """What Celery's daily task `celery.backend_cleanup` does: mend chords, delete what has expired."""
        self.expiry.cleanup()


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
