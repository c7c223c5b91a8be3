"""One thread a process that waits for any number of results, for callers that do not block: ``then()`` and ``await``.

It looks when a notice comes, and by the schedules of :mod:`.waiting` all the same. Whoever asks hands over a function,
which that thread calls; requests are made by threads of their own, so that a slow one holds up nobody else.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import count

from celery_s3.notices import Subscription
from celery_s3.printable import get_logger
from celery_s3.processes import PerProcess, without_sigterm
from celery_s3.store.parallel import Threads

from . import waiting
from .reader import Meta, ready
from .waiter import READY_IN, in_notice, with_value

__all__ = ["Watch", "Watcher"]

logger = get_logger(__name__)

#: Seconds after which the thread ends when nobody wants to know anything.
IDLE = 5.0
#: Seconds after a fault of ours.
LATER = 1.0

#: Told the final meta of a task with its value, or why it cannot be had.
Done = Callable[[Meta | BaseException], object]


class Watch:
    """Somebody's wish to know when a task has ended."""

    __slots__ = ("began", "cancelled", "check", "done", "due", "id", "looks", "parents")

    def __init__(self, id: str, done: Done, parents: Iterable[str], check: Callable[[], object] | None) -> None:
        self.id = id
        self.done = done
        self.parents = tuple(parents)
        self.check = check
        self.began = self.due = time.monotonic()
        self.looks = 0
        self.cancelled = False


class Watcher:
    """Watches tasks.

    Arguments:
        get_meta: the meta of one task as Celery gets it, from memory or by its own retries.
        concurrency: requests at the same time.
        subscribe: makes what is told of tasks by the broker.
    """

    def __init__(
        self, get_meta: Callable[[str], Meta], concurrency: int, subscribe: Callable[[], Subscription]
    ) -> None:
        self._own = PerProcess(lambda: _Process(get_meta, concurrency, subscribe))

    def watch(
        self,
        task_id: str,
        done: Done,
        parents: Iterable[str] = (),
        check: Callable[[], object] | None = None,
    ) -> Callable[[], None]:
        """Call ``done`` once, in another thread, when a task has ended.

        Arguments:
            parents: the ids of tasks that have to end before it.
            check: called after a look in vain; what it raises ends the watch.

        Returns:
            A function that forgets about it; then ``done`` may be called once more, if it is about to be.
        """
        process, watch = self._own.get(), Watch(task_id, done, parents, check)
        process.begin(watch)
        return lambda: process.cancel(watch)

    def __len__(self) -> int:
        """How many are watched, but for those that have just begun."""
        process = self._own.peek()
        return process.count if process is not None else 0

    def close(self) -> None:
        """End the thread; nobody is told anything any more."""
        process = self._own.peek()
        if process is not None:
            process.close()
            self._own.drop()


class _Process:
    """The thread of one process; all but what :meth:`begin` and :meth:`cancel` touch is its own."""

    def __init__(
        self, get_meta: Callable[[str], Meta], concurrency: int, subscribe: Callable[[], Subscription]
    ) -> None:
        self._get_meta = get_meta
        self._subscribe = subscribe
        self._readers = Threads(concurrency)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._told = Subscription()
        self._new: deque[Watch] = deque()
        self._gone: deque[Watch] = deque()
        self._answers: deque[tuple[str, Meta | BaseException | None]] = deque()
        self._failed: deque[tuple[Watch, BaseException]] = deque()
        self._watches: dict[str, list[Watch]] = {}
        #: the tasks that come after one, by its id
        self._behind: dict[str, list[Watch]] = {}
        self._reading: set[str] = set()
        self._agenda: list[tuple[float, int, Watch]] = []
        self._numbers = count()
        self._breaks = 0
        self._polled = waiting.adaptive()

    # -- for everybody

    @property
    def count(self) -> int:
        return sum(map(len, self._watches.values()))

    def begin(self, watch: Watch) -> None:
        self._new.append(watch)
        with self._lock:
            if self._thread is None and not self._closed:
                self._told, self._breaks = self._subscribe(), 0
                self._thread = threading.Thread(target=self._run, name="celery-s3-watcher", daemon=True)
                without_sigterm(self._thread.start)
        self._told.wake()

    def cancel(self, watch: Watch) -> None:
        watch.cancelled = True
        self._gone.append(watch)
        self._told.wake()

    def close(self) -> None:
        self._closed = True
        self._told.wake()

    # -- in the thread

    def _run(self) -> None:
        idle_since = time.monotonic()
        while not self._closed:
            try:
                self._turn()
            except Exception:
                logger.exception("Results are looked at later")
                time.sleep(LATER)
            now = time.monotonic()
            if self._watches or self._new:
                idle_since = now
            elif now - idle_since >= IDLE and self._end():
                return
            self._told.wait(max(0.0, min(self._agenda[0][0] - now, IDLE) if self._agenda else IDLE))
        self._told.close()

    def _turn(self) -> None:
        self._take_new()
        self._take_gone()
        self._take_news()
        self._take_answers()
        self._look()

    def _end(self) -> bool:
        with self._lock:
            if self._new:
                return False
            self._thread = None
            self._told.close()
            return True

    def _take_new(self) -> None:
        new = [self._new.popleft() for _ in range(len(self._new))]
        if not new:
            return
        for watch in new:
            self._watches.setdefault(watch.id, []).append(watch)
            for id in watch.parents:
                self._behind.setdefault(id, []).append(watch)
        self._told.add(watch.id for watch in new)
        self._told.add((id for watch in new for id in watch.parents), expected=False)
        patience = READY_IN if self._told.may_be_sure else 0.0
        for watch in new:
            sure = self._told.sure_of(watch.id)
            self._plan(watch, watch.began if sure else watch.began + patience)

    def _take_gone(self) -> None:
        while self._gone:
            self._forget(self._gone.popleft())

    def _forget(self, watch: Watch) -> None:
        watch.cancelled = True
        _remove(self._watches, watch.id, watch)
        for id in watch.parents:
            _remove(self._behind, id, watch)
        for id in (watch.id, *watch.parents):
            if id not in self._watches and id not in self._behind:
                self._told.discard(id)

    def _plan(self, watch: Watch, due: float) -> None:
        watch.due = due
        heapq.heappush(self._agenda, (due, next(self._numbers), watch))

    def _take_news(self) -> None:
        now = time.monotonic()
        if self._told.breaks != self._breaks:
            self._breaks = self._told.breaks
            for some in self._watches.values():
                for watch in some:
                    self._plan(watch, min(watch.due, now + self._polled(now - watch.began)))
        for id in self._told.sure_now():
            self._hurry(id, now)
        for id in self._told.news():
            found = in_notice(id, self._get_meta, self._told.take(id))
            if found is not None:
                self._answers.append((id, found))
            else:
                self._hurry(id, now)

    def _hurry(self, id: str, now: float) -> None:
        for watch in (*self._watches.get(id, ()), *self._behind.get(id, ())):
            self._plan(watch, now)

    def _look(self) -> None:
        now = time.monotonic()
        while self._agenda and self._agenda[0][0] <= now:
            due, _, watch = heapq.heappop(self._agenda)
            if watch.due == due and not watch.cancelled and watch.id not in self._reading:
                self._reading.add(watch.id)
                self._readers.submit(lambda id=watch.id: self._read(id))  # type: ignore[misc]

    def _read(self, id: str) -> None:
        """Read a task's meta, in a reader's thread."""
        outcome: Meta | BaseException | None
        try:
            outcome = with_value(ready(self._get_meta(id)))
        except BaseException as exc:  # noqa: BLE001 - whoever watches is told
            outcome = exc
        if outcome is None:
            for watch in tuple(self._watches.get(id, ())):
                try:
                    if watch.check is not None:
                        watch.check()
                except BaseException as exc:  # noqa: BLE001 - this is what it asked for
                    self._failed.append((watch, exc))
        self._answers.append((id, outcome))
        self._told.wake()

    def _take_answers(self) -> None:
        while self._failed:
            watch, why = self._failed.popleft()
            if not watch.cancelled:
                self._forget(watch)
                _tell(watch, why)
        while self._answers:
            id, outcome = self._answers.popleft()
            self._reading.discard(id)
            for watch in tuple(self._watches.get(id, ())):
                watch.looks += 1
                if outcome is None:
                    self._plan_next(watch)
                else:
                    self._forget(watch)
                    _tell(watch, outcome)

    def _plan_next(self, watch: Watch) -> None:
        now = time.monotonic()
        waited = now - watch.began
        delay = waiting.seldom if self._told.sure_of(watch.id) else self._polled
        self._plan(watch, now + delay(waited))


def _remove(lists: dict[str, list[Watch]], id: str, watch: Watch) -> None:
    with suppress(KeyError, ValueError):
        lists[id].remove(watch)
        if not lists[id]:
            del lists[id]


def _tell(watch: Watch, outcome: Meta | BaseException) -> None:
    try:
        watch.done(outcome)
    except Exception:
        logger.exception("What was to be done when task %s had ended has failed", watch.id)
