"""Celery's hooks, each a few lines that hand over to a room."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from celery import states
from celery.canvas import Signature
from celery.result import AsyncResult, ResultBase, ResultSet, result_from_tuple
from kombu.utils.encoding import bytes_to_str, str_to_bytes

from celery_s3.bucket import open_store
from celery_s3.celery_private import ResultBackend, called_by_then, how_joined, who_asks
from celery_s3.chords import Chords
from celery_s3.chords.claim import lease_for
from celery_s3.chords.members import Members
from celery_s3.chords.mender import Mender
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
from celery_s3.keys import RESULTS, Layout, full_key
from celery_s3.metadata import SAVED
from celery_s3.notices import Notices
from celery_s3.outbox import Outbox
from celery_s3.results.pending import Pending
from celery_s3.results.reader import Meta, Reader
from celery_s3.results.recorder import Recorder
from celery_s3.results.waiter import Waiter
from celery_s3.results.watcher import Watcher
from celery_s3.results.write_once import Results
from celery_s3.settings import resolve
from celery_s3.store.deadline import remaining

from .acknowledgements import Acknowledgements
from .consumer import Consumer
from .overlap import Overlap
from .pickled import pickled
from .storing import Storing

if TYPE_CHECKING:
    from celery_s3.expiry.rules import Rule
    from celery_s3.expiry.service import Expiry
    from celery_s3.expiry.sweep import Sweep
    from celery_s3.files.objects import Files

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
    #: so Celery says that results tell when they are ready: a group then calls who has subscribed to it
    is_async = True
    key_t = bytes_to_str

    def __init__(self, app: Any = None, url: str | None = None, **kwargs: Any) -> None:
        super().__init__(app, url=url, **kwargs)
        # The base constructor reads this from a setting of its own.
        self.thread_safe = True
        # Celery before 5.7 knows no `result_compression`.
        self.compression = self.prepare_compression(self.app.conf.get("result_compression"))
        self.settings = resolve(self.app, url)
        self.layout = Layout(self.settings.base, self.task_keyprefix.removesuffix(RESULTS.start))
        self.terms = Terms.of(self.app.conf, self.expires)
        self._opened = opened = open_store(self.settings)
        self.store, self.tally, self.pool = opened.store, opened.tally, opened.pool
        self._plain_store, self.writer = opened.plain, opened.writer
        self.files_of_tasks = FilesOfTasks(
            opened, self.settings, prefix=self.layout.files, serializer=self.serializer, key_of=self.layout.result_key
        )
        self.notices = Notices(self.app, self.settings, self.layout.result_key)
        self._open_results()
        self._open_chords()
        self.consumer = Consumer(Outbox(), self.reader, self.chord_members)
        self._acknowledgements = Acknowledgements(lambda task: task.backend is self, self.consumer.outbox)
        # Celery's own loop tries again what is raised into it: nothing is, of what is stored later.
        self.overlap = Overlap(0 if self.always_retry else self.settings.overlap, self._acknowledgements)
        self.storing = Storing(self.consumer, self.overlap, self.chord_members)
        # After those: what they write when the process ends may leave a chord, and is counted.
        self.mender.listen()
        self._reporter = Reporter(self.tally, self.settings)

    def _open_results(self) -> None:
        self._encoder = Encoder(
            self.files_of_tasks.encode, self.content_type, self.compression, self.settings.compression_threshold
        )
        self._decoder = Decoder(self.content_type, self.accept, self.settings.decompression_limit)
        self.results = Results(
            self.store,
            self.writer,
            self._opened.conditional,
            self.pool,
            state_in=self._decoder.state_in,
            expires=self.terms.results,
            tagged=self.settings.expiry_tags,
            server_now=self._server_now,
        )
        self.recorder = Recorder(
            self.results,
            self._encoder,
            self.layout.result_key,
            self.files_of_tasks.uploaded,
            self.terms.of_result,
            self.notices.telling,
            self.settings.outage_patience,
        )
        self.reader = Reader(
            self.results,
            self._decoder,
            self.settings.bucket,
            self.layout.result_key,
            self.meta_from_decoded,
            partial(result_from_tuple, app=self.app),
            self._changed,
            self.files_of_tasks.about_to_decode,
        )
        self.waiter = Waiter(
            self.reader,
            self.pool,
            self.known_metas,
            self.get_task_meta,
            self.settings.concurrency,
            self.notices.subscribe,
        )
        self.watcher = Watcher(self.get_task_meta, self.settings.concurrency, self.notices.subscribe)
        self.pending = Pending(self.watcher, self.notices.follows)

    def _server_now(self) -> float:
        # Hardly ever asked: imported above, they would cost the start of every process 5 ms.
        from celery_s3.expiry.clock import server_clock
        from celery_s3.store.clients.control import Control

        return server_clock(Control(self.settings))()

    def _open_chords(self) -> None:
        self.chords = Chords(
            self.store,
            self.pool,
            self.layout.chords,
            lease=lease_for(self.app.conf),
            patience=self.settings.outage_patience,
            expires=self.terms.chords,
        )
        self.chord_producer = Producer(
            self.app, self.chords, self.results.conditional.supported, self.files_of_tasks.about_to_send
        )
        self.chord_sender = Sender(self, resend=self.settings.chord_resend)
        self.mender = Mender(self.app, self.chords, self.reader.state)
        self.chord_members = Members(self, self.chords, self.chord_sender, self.mender)
        self.mending = Mending(
            self.chords,
            self.chord_sender,
            self.mender,
            MemberResults(self.results, self._decoder.decode, self.encode, self.layout.result_key),
            self.chord_producer.native,
            trusted=self.settings.authenticated,
            mended=self.layout.mended,
            kept=self.terms.decided,
            dead=self.terms.chords,
        )

    def close(self) -> None:
        """Let go of connections and threads; nothing is done about chords later any more. No backend to use then."""
        self.consumer.close()
        self._acknowledgements.close()
        self.overlap.close()
        self.watcher.close()
        self.notices.close()
        self.mending.close()
        self.mender.close()
        self._opened.close()

    def as_uri(self, include_password: bool = False) -> str:
        """Bucket and prefix; there is never a secret to include."""
        return self.settings.uri

    def __reduce__(self) -> Any:
        return pickled(self)

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        """Whether ``result_backend_always_retry`` may try again: not once a caller's ``timeout`` is over."""
        left = remaining()
        return transient(exc) and (left is None or left > 0)

    def pause(self, seconds: float) -> None:
        """Wait before ``result_backend_always_retry`` tries again, never longer than the caller's ``timeout``."""
        left = remaining()
        super().pause(seconds if left is None else max(0.0, min(seconds, left)))

    def _changed(self, task_id: str) -> None:
        self.known_metas.pop(task_id, None)

    # -- keys

    def _full(self, key: str | bytes) -> str:
        return full_key(self.settings.base, bytes_to_str(key))

    # -- the key/value verbs of Celery's base class

    def get(self, key: str | bytes) -> bytes | None:
        """The body of an object, decrypted and not decoded; ``None`` where there is none or it has expired.

        Arguments:
            key: without the base path.
        """
        found = self.results.read(self._full(key))
        whole = found and self.results.whole(found)
        return whole.preamble + whole.body if whole else None

    def mget(self, keys: Iterable[str | bytes]) -> list[bytes | None]:
        """As :meth:`get`, for many keys at a time and in their order."""
        return self.pool.map(self.get, keys)

    def set(self, key: str | bytes, value: bytes | str) -> None:
        """Write an object, whatever stands there."""
        self.store.put(self._full(key), str_to_bytes(value), content_type=self.content_type, metadata=SAVED)

    def delete(self, key: str | bytes) -> None:
        """Delete an object; one that does not exist counts as deleted."""
        self.results.delete(self._full(key))

    # -- storing

    def store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **kwargs: Any
    ) -> Any:
        """Store a task's state and value; of a chord's member, the part of its chord first.

        Returns:
            The value, as Celery's backends do.

        Raises:
            ResultNotStored: the store failed, or the part could not be delivered.
        """
        store = partial(super().store_result, task_id, result, state, traceback=traceback, request=request, **kwargs)
        return self.storing.store(store, task_id, result, state, request)

    def mark_as_done(self, *args: Any, **kwargs: Any) -> None:
        """Store a SUCCESS that the worker reports, and go on with chord and chain."""
        with self.chord_members.reporting():
            super().mark_as_done(*args, **kwargs)

    def mark_as_failure(self, *args: Any, **kwargs: Any) -> None:
        """Store a FAILURE that the worker reports, and go on with chord, chain and errbacks."""
        with self.chord_members.reporting():
            super().mark_as_failure(*args, **kwargs)

    def mark_as_revoked(self, *args: Any, **kwargs: Any) -> None:
        """Store a REVOKED that the worker reports, and go on with chord and chain."""
        with self.chord_members.reporting():
            super().mark_as_revoked(*args, **kwargs)

    def call_errbacks(self, request: Any, error: BaseException, traceback: Any) -> None:
        """Call a failed task's errbacks, after its state is stored; they may ask S3 themselves, as a chord does."""
        call = partial(super().call_errbacks, request, error, traceback)
        self.consumer.spared(call, request.id, f"the call of the errbacks of task {request.id}", None)

    def store_meta(self, meta: Meta, request: Any) -> None:
        """Store a meta by the write-once protocol: a SUCCESS that is stored stays.

        Raises:
            ResultNotStored: the store failed.
            kombu.exceptions.EncodeError: the serializer cannot hold the value.
        """
        self.overlap.carry_out(self.recorder.prepare(meta, request))

    def encode(self, data: Any) -> bytes | str:
        """Something in the result serializer, and compressed where ``result_compression`` is set and it helps."""
        return self._encoder.payload(data)

    def prepare_compression(self, compression: str | None) -> str | None:
        """The name of a compression method, checked.

        Raises:
            ConfigurationError: kombu does not know it here.
        """
        return compression_method(compression)

    # -- fetching

    def get_task_meta(self, task_id: str, cache: bool = True) -> Meta:
        """The meta of a task, PENDING where nothing is stored.

        Where Celery asks on behalf of a result that waits for its parents, or of a group, see :meth:`Waiter.answer`.

        Raises:
            ResultNotRead: the store failed.
            UnreadableResult: the object is no result that this process can read.
        """
        asking = None if cache and task_id in self.known_metas else who_asks()
        meta: Meta = self.waiter.answer(asking, task_id) if asking else super().get_task_meta(task_id, cache=cache)
        return meta

    def fetch_meta(self, task_id: str) -> Meta:
        """The stored meta of a task, PENDING where nothing is stored; in the thread that receives tasks, in time."""
        return self.consumer.meta(task_id) if self.consumer.is_here() else self.reader.meta(task_id)

    def meta_from_decoded(self, meta: Meta) -> Meta:
        """Make an exception of what stands for one; a :class:`LazyMeta` stays as it is.

        The value of a large result comes through here when it is fetched.
        """
        return meta if isinstance(meta, LazyMeta) else super().meta_from_decoded(meta)

    def task_result_exists(self, task_id: str) -> bool:
        """Whether anything is stored for the task; one request, whatever its size."""
        return self.reader.exists(task_id)

    def fetch_group(self, group_id: str) -> Meta | None:
        """``{"result": GroupResult}`` of a saved group, ``None`` where there is none."""
        return self.reader.group(
            group_id,
            self.layout.group_key(group_id),
            lambda meta: {**meta, "result": result_from_tuple(meta["result"], self.app)},
        )

    def decode(self, payload: bytes | str) -> Any:
        """What :meth:`encode` was given."""
        return self._decoder.loads(str_to_bytes(payload))

    # -- waiting

    def wait_for_pending(self, result: AsyncResult, *args: Any, **kwargs: Any) -> Any:
        """Wait for a result, of which :meth:`wait_for` is told the id alone."""
        self.notices.follows(result)
        with self.waiter.parents.known(result):
            return super().wait_for_pending(result, *args, **kwargs)

    def add_pending_result(self, result: AsyncResult, weak: bool = False) -> AsyncResult:
        """Let ``result.then()`` call who subscribes to it."""
        if called_by_then():
            self.pending.add(result, weak=weak)
        return result

    def remove_pending_result(self, result: AsyncResult) -> AsyncResult:
        """Nobody is called when this result's task ends."""
        self.pending.remove(result)
        return result

    def watch(
        self, result: AsyncResult, done: Callable[[Meta | BaseException], object], *, follow_parents: bool
    ) -> Callable[[], None]:
        """Call ``done`` in another thread when a task has ended: see :meth:`celery_s3.results.watcher.Watcher.watch`.

        Arguments:
            follow_parents: with its error, too, where a task before it has failed.
        """
        self.notices.follows(result)
        before, check = self.waiter.parents.check(result) if follow_parents else ((), None)
        return self.watcher.watch(bytes_to_str(result.id), done, before, check)

    def wait_for(
        self,
        task_id: str,
        timeout: float | None = None,
        interval: float | None = 0.5,
        no_ack: bool = True,
        on_interval: Callable[[], object] | None = None,
    ) -> Meta:
        """The meta of a task once it is finished.

        Arguments:
            timeout: seconds; ``None``: for ever.
            interval: seconds between two looks; Celery's default stands for 20 ms that grow to 2 s.

        Raises:
            celery.exceptions.TimeoutError: the time is over.
        """
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
        return self.waiter.group(
            result,
            how_joined(),
            timeout=timeout,
            interval=interval,
            on_message=on_message,
            on_interval=on_interval,
        )

    # -- chords

    def apply_chord(self, header_result_args: Any, body: Signature, **kwargs: Any) -> None:
        """Write the chord's manifest before its header is published, or let Celery's polling task join the chord."""
        self.ensure_chords_allowed()
        if not self.chord_producer.open(header_result_args[0], header_result_args[1], body):
            super().apply_chord(header_result_args, body, **kwargs)

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        """Write the manifest of a header that a generator makes; any other one has the size already."""
        self.chord_producer.sized(group_id)

    def add_to_chord(self, chord_id: str, result: ResultBase) -> None:
        """Let a chord wait for a task that one of its members has added (``Task.add_to_chord``)."""
        self.chord_members.add(result)

    def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> None:
        """Go on with the chord of a task that has ended; its part was delivered by :meth:`store_result`."""
        go_up = partial(self.chord_members.returned, request, result, state)
        self.consumer.spared(go_up, request.id, f"the chord part of task {request.id}", None)

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
        """Note that files among a task's arguments are uploaded to this backend's bucket."""
        self.files_of_tasks.about_to_send(task_id)
        return super().on_task_call(producer, task_id)

    def forget_result(self, task_id: str) -> None:
        """Delete a task's files, then its result."""
        self.files_of_tasks.delete(bytes_to_str(task_id))
        super().forget_result(task_id)

    # -- expiry

    @cached_property
    def expiry(self) -> Expiry:
        """Deletes what has expired, and knows the rules that do."""
        # Commands, beat and the daily cleanup use it: it would cost the start of every worker 20 ms.
        from celery_s3.expiry.service import Expiry

        return Expiry(self._opened, self.settings, self.layout, self.terms, self.mending.repairs)

    @cached_property
    def supports_autoexpire(self) -> bool:
        """Whether the bucket's lifecycle rules delete all results and files: then `celery beat` schedules no cleanup.

        Asked once in a process, in one request that only beat makes; ``False`` where that fails.
        """
        return self.expiry.left_to_rules()

    def lifecycle_rules(self, *, versioned: bool = False) -> list[Rule]:
        """The lifecycle rules that the bucket should have, for one that keeps versions or not."""
        return self.expiry.rules(versioned=versioned)

    def sweep(self, **options: bool) -> Sweep:
        """A sweep, ready to run: see :meth:`celery_s3.expiry.service.Expiry.sweep`."""
        return self.expiry.sweep(**options)

    def cleanup(self) -> None:
        """What Celery's daily task `celery.backend_cleanup` does: delete what has expired; or what its message asks."""
        if not self.mending.asked():
            self.expiry.cleanup()
