"""Bounded parallel execution on threads that wait for the store (on greenlets, where those are patched in)."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from itertools import islice
from typing import Generic, TypeVar
from weakref import finalize

from celery.exceptions import TimeoutError

from celery_s3.interruptions import INTERRUPTIONS
from celery_s3.processes import PerProcess, without_sigterm

from .deadline import GRACE, allowed, retried_while

__all__ = ["Pool", "Threads"]

_T = TypeVar("_T")
_R = TypeVar("_R")

#: Threads of a pool: what one caller waits for must not keep another one waiting.
THREADS = 512
_LATE = "The store has not answered in time."


class Pool:
    """Runs a function on many items, at most ``concurrency`` of a call's at a time.

    Each process gets threads of its own, at the first call with two items or more; what they do happens in a copy of
    the caller's :mod:`contextvars` context. A call from inside the pool runs its items one after another, so that a
    pool full of waiting callers cannot lock itself up.

    Nobody waits longer than his deadline says (:mod:`~celery_s3.store.deadline`), whatever becomes of the items: then
    celery's ``TimeoutError`` is raised, no other item is begun, and those under way end by themselves.
    """

    def __init__(self, concurrency: int) -> None:
        self._concurrency = concurrency
        self._threads = PerProcess(lambda: Threads(THREADS))

    def stream(
        self,
        fn: Callable[[_T], _R],
        items: Iterable[_T],
        *,
        at_once: int | None = None,
        until: float | None = None,
    ) -> Iterator[tuple[_T, _R | BaseException]]:
        """Each item with its result or with what ``fn`` raised, in order of completion.

        Items (none of them ``None``) are taken as threads get free; closing the iterator takes no more, and leaves
        those under way to end by themselves.

        Arguments:
            at_once: how many items are under way at most, where that is to be fewer than ``concurrency``.
            until: a deadline of ``time.monotonic`` where whoever takes the answers has none of his own.
        """
        iterator = iter(items)
        return self.stream_from(fn, lambda: next(iterator, None), at_once=at_once, until=until)

    def stream_from(
        self,
        fn: Callable[[_T], _R],
        next_item: Callable[[], _T | None],
        *,
        at_once: int | None = None,
        until: float | None = None,
    ) -> Iterator[tuple[_T, _R | BaseException]]:
        """As :meth:`stream`, of items that depend on the answers to earlier ones.

        Arguments:
            next_item: asked whenever another item may start. ``None`` says that there is none now: it is asked again
                after the next answer, and the stream ends once none is under way.
        """
        ahead = deque(islice(iter(next_item, None), 2))

        def take() -> _T | None:
            return ahead.popleft() if ahead else next_item()

        if len(ahead) < 2 or self._concurrency < 2 or self._inside():
            return _one_by_one(fn, take)
        limit = min(at_once or self._concurrency, self._concurrency)
        return _Abreast(self._threads.get(), fn, take).answers(limit, until)

    def map_unordered(self, fn: Callable[[_T], _R], items: Iterable[_T]) -> Iterator[_R]:
        """The results in order of completion; the first error is raised and ends it."""
        for _, outcome in self.stream(fn, items):
            yield _unwrap(outcome)

    def map(self, fn: Callable[[_T], _R], items: Iterable[_T]) -> list[_R]:
        """The results in the order of the items; the first error is raised and ends it."""
        numbered = self.stream(lambda pair: fn(pair[1]), enumerate(items))
        results = {number: _unwrap(outcome) for (number, _), outcome in numbered}
        return [results[number] for number in range(len(results))]

    def run_both(self, beside: Callable[[], _T], here: Callable[[], _R]) -> tuple[_T, _R]:
        """Run two functions at the same time, the second one in this thread; the results of both.

        Both have ended when this returns or raises, the first one's error before the second one's; but for the
        caller's deadline, and for an interruption, as by a soft time limit: the other function has half a second then,
        and its requests are not tried again, for they may wait for an outage to end.
        """
        if self._concurrency < 2 or self._inside():
            outcomes = _outcome(lambda _: beside(), None), _outcome(lambda _: here(), None)
        else:
            other: list[_T | BaseException] = []
            ended, given_up = threading.Event(), threading.Event()

            def run() -> None:
                with retried_while(lambda: not given_up.is_set()):
                    other.append(_outcome(lambda _: beside(), None))
                ended.set()

            self._threads.get().submit(run)
            own = _outcome(lambda _: here(), None)
            interrupted = isinstance(own, BaseException) and not isinstance(own, Exception)
            interrupted = interrupted or isinstance(own, INTERRUPTIONS)
            try:
                in_time = ended.wait(GRACE if interrupted else allowed())
            except BaseException:  # interrupted only now
                if not ended.wait(GRACE):
                    given_up.set()
                raise
            if not in_time:
                given_up.set()
                if isinstance(own, BaseException) and interrupted:
                    raise own
                raise TimeoutError(_LATE)
            outcomes = other[0], own
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, Exception):
                raise outcome  # the end of this process, or of its task, comes before all
        return _unwrap(outcomes[0]), _unwrap(outcomes[1])

    def close(self) -> None:
        """Let the threads end once they are idle; the pool may be used again."""
        self._threads.drop()

    def _inside(self) -> bool:
        threads = self._threads.peek()
        return threads is not None and threads.is_current()


def _unwrap(outcome: _R | BaseException) -> _R:
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def _outcome(fn: Callable[[_T], _R], item: _T) -> _R | BaseException:
    try:
        return fn(item)
    except BaseException as exc:  # noqa: BLE001 - a panic in a client must reach the caller, not kill the thread
        return exc


def _one_by_one(fn: Callable[[_T], _R], take: Callable[[], _T | None]) -> Iterator[tuple[_T, _R | BaseException]]:
    for item in iter(take, None):
        yield item, _outcome(fn, item)


class _Abreast(Generic[_T, _R]):
    """Items that are done at the same time for one caller."""

    def __init__(self, threads: Threads, fn: Callable[[_T], _R], take: Callable[[], _T | None]) -> None:
        self._threads = threads
        self._fn = fn
        self._take = take
        self._done: queue.SimpleQueue[tuple[_T, _R | BaseException]] = queue.SimpleQueue()
        self._over = False

    def answers(self, limit: int, until: float | None) -> Iterator[tuple[_T, _R | BaseException]]:
        """Each item with its outcome, as they are done, at most ``limit`` of them under way."""
        under_way = self._start(limit)
        try:
            while under_way:
                yield self._next(until)
                under_way += self._start(limit - under_way + 1) - 1
        finally:
            self._over = True

    def _start(self, most: int) -> int:
        """Start up to so many items, and hold none of them: they may be large."""
        started = 0
        for item in islice(iter(self._take, None), most):
            self._threads.submit(partial(self._report, item))
            started += 1
        return started

    def _report(self, item: _T) -> None:
        if not self._over:
            self._done.put((item, _outcome(self._fn, item)))

    def _next(self, until: float | None) -> tuple[_T, _R | BaseException]:
        try:
            return self._done.get(timeout=allowed() if until is None else max(GRACE, until - time.monotonic()))
        except queue.Empty:
            raise TimeoutError(_LATE) from None


class Threads:
    """Daemon threads, started one by one as the work needs them.

    Not :class:`concurrent.futures.ThreadPoolExecutor`: the interpreter's exit would wait for its threads, and
    one that retries against a dead server takes most of a minute.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._started = 0
        self._jobs: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._starting = threading.Lock()
        self._local = threading.local()
        # The threads know the queue and not this object, so that they end when nobody needs it any more.
        finalize(self, self._jobs.put, None).atexit = False

    def submit(self, job: Callable[[], object]) -> None:
        """Let a thread run it, in the caller's context: with its deadline and under its span."""
        self._jobs.put(partial(copy_context().run, job))
        if self._idle.acquire(blocking=False):
            return
        with self._starting:
            if self._started < self._limit:
                self._started += 1
                thread = threading.Thread(
                    target=_work,
                    args=(self._jobs, self._idle, self._local),
                    name=f"celery-s3-{self._started}",
                    daemon=True,
                )
                try:
                    without_sigterm(thread.start)
                except RuntimeError:  # no more threads: those there are do it, else this one
                    self._started -= 1
                    if not self._started:
                        self._do_one()

    def _do_one(self) -> None:
        with suppress(queue.Empty):
            one = self._jobs.get_nowait()
            if one is not None:
                one()

    def is_current(self) -> bool:
        """Whether the calling thread is one of them."""
        return getattr(self._local, "inside", False)


def _work(
    jobs: queue.SimpleQueue[Callable[[], object] | None], idle: threading.Semaphore, local: threading.local
) -> None:
    local.inside = True
    while (job := jobs.get()) is not None:
        job()
        del job  # it holds the caller's items
        idle.release()
    jobs.put(None)  # for the next one
