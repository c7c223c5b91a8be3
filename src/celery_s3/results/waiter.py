"""Who waits for results: for one, for many at the same time, and for those before them in a chain."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, MutableMapping
from contextlib import suppress
from functools import partial
from math import inf
from typing import Any

from celery import states
from celery.result import ResultSet
from kombu.utils.encoding import bytes_to_str

from celery_s3.celery_private import AskingGroup, Joined, ParentCheck
from celery_s3.codec.chunks import LARGE
from celery_s3.codec.lazy import is_partial
from celery_s3.errors import CeleryS3Error
from celery_s3.notices import Subscription
from celery_s3.notices.notice import answered_by
from celery_s3.store.api import Object
from celery_s3.store.deadline import retried_until
from celery_s3.store.parallel import Pool

from . import waiting
from .groups import gather
from .members import Members
from .parents import OnInterval, Parents, before_groups
from .reader import Meta, Reader, Replaced, ready

__all__ = ["READY_IN", "Waiter", "in_notice", "with_value"]

#: Seconds that the first look waits at most for the broker to confirm that notices will come.
READY_IN = 0.25
#: Bytes of objects that are fetched in parallel and not taken by the caller yet; what is beyond waits until it is asked
#: for by the caller's thread.
AHEAD = 128 * 1024 * 1024


class Waiter:
    """Waits for results.

    Arguments:
        reader: reads metas.
        pool: reads several at the same time.
        known: the metas that this process remembers, by id.
        get_meta: the meta of one task as Celery gets it, from memory or by its own retries.
        concurrency: how many parents are read at the same time before a wait.
        subscribe: makes what is told of tasks by the broker.

    Attributes:
        parents: answers what Celery asks about the tasks before one that is waited for.
        members: answers what it asks about the members of a group.
    """

    def __init__(
        self,
        reader: Reader,
        pool: Pool,
        known: MutableMapping[str, Meta],
        get_meta: Callable[[str], Meta],
        concurrency: int,
        subscribe: Callable[[], Subscription] = Subscription,
    ) -> None:
        self.subscribe = subscribe
        self.reader = reader
        self.pool = pool
        self.known = known
        self.get_meta = get_meta
        self.parents = Parents(self._read_parents, concurrency)
        self.members = Members(get_meta, pool)

    def one(
        self,
        task_id: str,
        *,
        timeout: float | None,
        interval: float | None,
        on_interval: OnInterval,
    ) -> Meta:
        """The meta of a task once it is finished, with its value.

        Raises:
            celery.exceptions.TimeoutError: it was not after ``timeout`` seconds.
            ResultNotRead: the store failed, or what is stored is no result.
        """
        with (
            self.parents.waiting(task_id, timeout) as left,
            retried_until(_deadline(left)),
            self._told((task_id,), left, self.parents.unfinished_before(task_id)) as told,
        ):
            meta = waiting.until(
                _LookForOne(task_id, self.get_meta, told),
                delay=waiting.schedule(interval, lambda: told.listening),
                timeout=left,
                on_interval=on_interval,
                news=told if told.hears else None,
            )
            if meta["status"] in states.PROPAGATE_STATES:
                self.parents.failed(meta, on_interval)
            return meta

    def many(
        self,
        task_ids: Iterable[str | bytes],
        *,
        timeout: float | None = None,
        interval: float | None = None,
        on_message: Callable[[Meta], object] | None = None,
        on_interval: OnInterval = None,
        passes: int | None = None,
        ready_states: Collection[str] = states.READY_STATES,
        before: Collection[str] = (),
    ) -> Iterator[tuple[str, Meta]]:
        """Yield ``(id, meta)`` of each task as it becomes ready, with its value.

        Arguments:
            on_message: called with each meta that this process did not know before.
            passes: give up quietly after so many looks at every task.
            before: tasks of which ``on_interval`` wants to know.

        Raises:
            celery.exceptions.TimeoutError: some were not ready after ``timeout`` seconds.
            ResultNotRead: as in :meth:`one`.
        """
        ids = [bytes_to_str(id) for id in task_ids]
        look = _Look(self, ready_states, _deadline(timeout))
        known = {id: meta for id in ids if (meta := look.remembered(id)) and not is_partial(meta)}
        yield from known.items()
        unknown = [id for id in ids if id not in known]
        with self._told(unknown, 0 if passes is not None else timeout, before) as told:
            look.told = told
            for id, meta in waiting.each(
                unknown,
                look.answers,
                delay=waiting.schedule(interval, lambda: told.listening),
                timeout=timeout,
                on_interval=on_interval,
                passes=passes,
                news=told if told.hears else None,
            ):
                self.known[id] = meta
                if on_message is not None:
                    on_message(meta)
                yield id, meta

    def group(
        self, result: ResultSet, how: Joined, *, on_interval: OnInterval, **waiting: Any
    ) -> Iterator[tuple[str, Any]]:
        """Yield ``(id, meta)`` of each member as it becomes ready, ``(id, results)`` of a group in the group.

        Arguments:
            how: the values are wanted.
            waiting: as for :meth:`many`.

        Raises:
            As :meth:`many`.
        """
        before: list[str] = []
        if how.propagate:
            on_interval, before = self.parents.watching(result, on_interval), before_groups(result)
        fetch = partial(self.many, on_interval=on_interval, before=before, **waiting)
        return gather(result, fetch, self.reader.without_value if how.callback else None)

    def _told(self, ids: Collection[str], timeout: float | None, before: Collection[str]) -> Subscription:
        """Be told of these tasks: what is stored from now on, which is why it comes before the first look.

        Arguments:
            timeout: that of the caller, in seconds; who does not wait need not be told.
            before: tasks of which to be told, too, while others are looked for.
        """
        if not ids or (timeout is not None and timeout <= 0):
            return Subscription()
        told = self.subscribe()
        try:
            told.add(ids)
            told.add(before, expected=False)
            told.get_ready(READY_IN if timeout is None else min(READY_IN, timeout))
        except BaseException:
            told.close()
            raise
        return told

    def answer(self, asking: ParentCheck | AskingGroup, task_id: str) -> Meta:
        """The meta of a task that Celery asks for only because of other results, see :func:`who_asks`."""
        if isinstance(asking, AskingGroup):
            return self.members.meta(asking, task_id)
        return self.parents.meta(*asking, task_id)

    def _read_parents(self, ids: Iterable[str]) -> Iterator[tuple[str, Meta | None]]:
        for id, meta in self.pool.stream(self.reader.meta, ids):
            if isinstance(meta, BaseException):
                raise meta
            yield id, ready(meta)


class _LookForOne:
    """What one call of :meth:`Waiter.one` asks for."""

    def __init__(self, task_id: str, get_meta: Callable[[str], Meta], told: Subscription) -> None:
        self._id = task_id
        self._get_meta = get_meta
        self._told = told
        self._looks = 0

    def __call__(self) -> Meta | None:
        heard = self._id in self._told.news()
        # with its value: the timeout bounds the time that a large one takes, too
        found = in_notice(self._id, self._get_meta, self._told.take(self._id))
        found = with_value(found or ready(self._get_meta(self._id)))
        if found is not None and self._looks and not heard:
            self._told.missed()
        self._looks += 1
        return found


class _Look:
    """What one call of :meth:`Waiter.many` asks for.

    Arguments:
        ready_states: the states that it waits for.
        deadline: until when it reads, of ``time.monotonic``.
    """

    def __init__(self, waiter: Waiter, ready_states: Collection[str], deadline: float | None) -> None:
        self._waiter = waiter
        self._ready_states = ready_states
        self._deadline = deadline
        self._lock = threading.Lock()
        #: bytes that came with notices
        self.told = Subscription()
        #: the bytes of large objects that were fetched ahead, by id
        self._ahead: dict[str, int] = {}

    def remembered(self, id: str) -> Meta | None:
        try:
            return ready(self._waiter.known[id], self._ready_states)
        except KeyError:  # asking first would not help: another thread may push it out in between
            return None

    def answers(self, next_id: Callable[[], str | None]) -> Iterator[tuple[str, Meta | None]]:
        """Read the metas that are asked for, in parallel, those of unfinished tasks as ``None``."""
        for id, meta in self._waiter.pool.stream_from(self._read, next_id, until=self._deadline):
            if isinstance(meta, BaseException):
                raise meta
            # A large value is fetched in this thread: in one of the pool's, its parts would come one after the other.
            yield id, self._finished(meta, inf)
            del meta
            self._ahead.pop(id, None)

    def _read(self, id: str) -> Meta | None:
        meta = self.remembered(id)
        if meta is None:
            with retried_until(self._deadline):
                read = self._waiter.reader.meta
                meta = in_notice(id, read, self.told.take(id)) or read(id)
        return self._finished(meta, self._room_for(id, meta))

    def _room_for(self, id: str, meta: Meta) -> float:
        """The bytes of the largest object that may be fetched now, for one that is large."""
        if not is_partial(meta):
            return inf
        with self._lock:
            room = min(LARGE, AHEAD - sum(self._ahead.values()))
            if meta.size <= room:
                self._ahead[id] = meta.size
        return room

    def _finished(self, meta: Meta | None, up_to: float) -> Meta | None:
        """The meta if it is ready, with its value if its object has no more than ``up_to`` bytes."""
        with retried_until(self._deadline):
            found = with_value(meta and ready(meta, self._ready_states), up_to)
        return found and ready(found, self._ready_states)


def in_notice(id: str, read: Callable[[str], Meta], stored: Object | None) -> Meta | None:
    """The final meta that a notice has brought, ``None`` where none did: then the bucket has to tell."""
    if stored is not None:
        with suppress(CeleryS3Error), answered_by(stored):
            return ready(read(id))
    return None


def with_value(meta: Meta | None, up_to: float = inf) -> Meta | None:
    """A meta with its value, if its object has no more than so many bytes; ``None`` where it is another one by now."""
    if is_partial(meta) and meta.size <= up_to:
        with suppress(Replaced):
            return meta.whole()
        return None
    return meta


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout
