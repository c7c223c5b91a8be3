"""Celery's hooks, each a few lines that hand over to a room."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from celery import states
from celery.canvas import Signature
from celery.result import AsyncResult, ResultBase, ResultSet, result_from_tuple
from kombu.utils.encoding import bytes_to_str, str_to_bytes

from celery_s3 import keys
from celery_s3.bucket import open_store
from celery_s3.celery_private import ResultBackend, checked_parents_of
from celery_s3.chords import Chords, Timer
from celery_s3.chords.claim import lease_for
from celery_s3.chords.members import Members
from celery_s3.chords.mending import MemberResults, Mending
from celery_s3.chords.producer import Producer
from celery_s3.chords.repair import Repair
from celery_s3.chords.sender import Sender
from celery_s3.codec.compression import compression_method
from celery_s3.codec.decoding import Decoder
from celery_s3.codec.encoding import Encoder
from celery_s3.codec.lazy import LazyMeta
from celery_s3.costs.workers import Reporter
from celery_s3.expiry.terms import Terms
from celery_s3.files.of_tasks import FilesOfTasks, transient
from celery_s3.processes import prefork_parent
from celery_s3.results.groups import gather
from celery_s3.results.reader import Meta, Reader
from celery_s3.results.recorder import Recorder, is_eager, is_rerun
from celery_s3.results.waiter import Waiter
from celery_s3.results.write_once import Results
from celery_s3.settings import resolve
from celery_s3.store.deadline import remaining

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
        self.layout = keys.Layout(self.settings.base, self.task_keyprefix.removesuffix(keys.RESULTS.start))
        self.terms = Terms.of(self.app.conf, self.expires)
        self._opened = opened = open_store(self.settings)
        self.store, self.tally, self.pool = opened.store, opened.tally, opened.pool
        self._plain_store, self.uploads = opened.plain, opened.uploads
        self._reporter = Reporter(self.tally, self.settings)
        self.files_of_tasks = FilesOfTasks(
            opened, self.settings, prefix=self.layout.files, serializer=self.serializer, key_of=self.task_key
        )
        self._open_results()
        self._open_chords()

    def _open_results(self) -> None:
        self._encoder = Encoder(
            self.serialize, self.content_type, self.compression, self.settings.compression_threshold
        )
        self._decoder = Decoder(self.content_type, self.accept)
        self.results = Results(
            self.store,
            self.uploads,
            self._opened.conditional,
            self.pool,
            state_in=self._decoder.state_in,
            expires=self.terms.results,
            tagged=self.settings.expiry_tags,
        )
        self.recorder = Recorder(
            self.results, self._encoder, self.task_key, self.files_of_tasks.count, self.settings.outage_patience
        )
        self.reader = Reader(
            self.results,
            self._decoder,
            self.settings.bucket,
            self.task_key,
            self.meta_from_decoded,
            partial(result_from_tuple, app=self.app),
            self._changed,
            self.files_of_tasks.noticed,
        )
        self.waiter = Waiter(self.reader, self.pool, self.known_metas, self.get_task_meta, self.settings.concurrency)

    def _open_chords(self) -> None:
        self._timer = Timer()
        lease = lease_for(self.app.conf)
        self.chords = Chords(self.store, self.pool, self.layout.chords, lease=lease, later=self._timer)
        self.chord_producer = Producer(self.app, self.chords, self.results.conditional.supported)
        self.chord_sender = Sender(self, resend=self.settings.chord_resend)
        self.chord_members = Members(self, self.chords, self.chord_sender)
        self.mending = Mending(
            self.chords,
            self.chord_sender,
            MemberResults(self.results, self._decoder.decode, self.encode, self.task_key),
            self.chord_producer.native,
            mended=self.layout.mended,
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
        """Whether ``result_backend_always_retry`` may try again; never in the event loop of a prefork worker.

        And not once a caller's ``timeout`` is over.
        """
        left = remaining()
        return transient(exc) and not prefork_parent() and (left is None or left > 0)

    def pause(self, seconds: float) -> None:
        left = remaining()
        super().pause(seconds if left is None else max(0.0, min(seconds, left)))

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

    def store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **kwargs: Any
    ) -> Any:
        store = partial(super().store_result, task_id, result, state, traceback=traceback, request=request, **kwargs)
        return self.chord_members.store(store, task_id, result, state, request)

    def store_meta(self, meta: Meta, request: Any) -> None:
        rerun, expires, eager = is_rerun(request), self.terms.own(meta["status"], request), is_eager(request)
        self.recorder.record(meta, getattr(request, "task", None), expires=expires, rerun=rerun, eager=eager)

    def serialize(self, data: Any) -> bytes | str:
        return self.files_of_tasks.encoded(data, super().serialize)

    def encode(self, data: Any) -> bytes | str:
        return self._encoder.payload(data)

    def prepare_compression(self, compression: str | None) -> str | None:
        return compression_method(compression)

    # -- fetching

    def get_task_meta(self, task_id: str, cache: bool = True) -> Meta:
        check = None if cache and task_id in self.known_metas else checked_parents_of()
        if check is not None:
            return self.waiter.parents.meta(*check, task_id)
        meta: Meta = super().get_task_meta(task_id, cache=cache)
        return meta

    def fetch_meta(self, task_id: str) -> Meta:
        meta = self.reader.meta(task_id)
        if meta["status"] == states.SUCCESS and prefork_parent():
            self.chord_members.child_was_lost()
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
        return Expiry(self._opened, self.settings, self.layout, self.terms, repairs, native)

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
