"""What a result's parents are asked while somebody waits for it.

``AsyncResult.get()`` looks at every parent before it waits and again on every interval, one after the other:
for the body of a chord that is every member of the header, each time. A chord's failure reaches its body and
a chain's reaches its end, so little of that is needed:

* the members of a header are not asked, until the body has failed: then the one that its ChordError names is read,
  and its own error is raised, as by Celery's other backends, which have read them all;
* before the wait, the chain's unfinished parents are read at the same time, and the answers are remembered
  for the second in which Celery asks for them;
* during the wait, only the earliest unfinished one is asked.

The caller's ``timeout`` runs from before the wait: what the parents took of it is not there any more for the rest.

Celery gives a backend no word that it is checking parents, and of which result:
:func:`celery_s3.celery_private.who_asks` finds out.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from celery import states
from celery.exceptions import ChordError
from celery.result import AsyncResult, ResultBase, ResultSet

from celery_s3.celery_private import keep_meta, known_meta, parents_of
from celery_s3.codec.lazy import LazyMeta
from celery_s3.store.deadline import remaining, retried_until

from .members import walk

__all__ = ["OnInterval", "Parents", "before_groups"]

Meta = dict[str, Any]
OnInterval = Callable[[], object] | None

#: Seconds for which the answers that were read before a wait are good: Celery asks for all of them at once.
_REMEMBERED = 1.0
#: Seconds between looks at a member whose result is a moment late.
_MOMENTS = (0.05, 0.2, 0.5)


class Parents:
    """Answers the questions about parents.

    Arguments:
        fetch: reads metas in parallel, unfinished ones as ``None``.
        limit: the most parents that are read before a wait.
    """

    def __init__(
        self,
        fetch: Callable[[Iterable[str]], Iterator[tuple[str, Meta | None]]],
        limit: int,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fetch = fetch
        self._limit = limit
        self._now = now
        self._local = threading.local()

    @contextmanager
    def waiting(self, task_id: str, timeout: float | None) -> Iterator[float | None]:
        """This thread waits for a result; inside, perhaps for another one (in a caller's ``on_interval``).

        Returns:
            The seconds that are left of ``timeout`` once the parents have been asked.
        """
        glimpse: _Glimpse | None = getattr(self._local, "glimpse", None)
        self._local.glimpse = None
        if timeout is not None and glimpse is not None and glimpse.id == task_id:
            timeout = max(0.0, timeout - (self._now() - glimpse.began))
        outer = getattr(self._local, "wait", None)
        self._local.wait = _Wait(task_id)
        try:
            yield timeout
        finally:
            self._local.wait = outer

    def failed(self, meta: Meta, on_interval: OnInterval) -> None:
        """The result that this thread waits for is a failure: let Celery ask for its parents once more.

        As its other backends do, which tell ``on_interval`` of what has come, too. Where the caller does not want
        parents to be followed, or nothing to be raised, Celery has put nothing of its own into ``on_interval``.

        Raises:
            Exception: the own error of the header's member that the failure names.
        """
        if on_interval is not None:
            self._local.wait.failure = meta
            on_interval()

    @contextmanager
    def known(self, result: AsyncResult) -> Iterator[None]:
        """This thread is about to wait for a result, of which :meth:`waiting` is told the id alone."""
        outer = getattr(self._local, "result", None)
        self._local.result = result
        try:
            yield
        finally:
            self._local.result = outer

    def unfinished_before(self, task_id: str) -> list[str]:
        """The ids of the tasks before the one that this thread waits for, those that have to end before it."""
        result: AsyncResult | None = getattr(self._local, "result", None)
        return list(_unfinished(result)) if result is not None and result.id == task_id else []

    def check(self, result: AsyncResult) -> tuple[list[str], OnInterval]:
        """For who waits elsewhere: the ids of the unfinished tasks before a result, and what raises their failure."""
        nodes = _before(result)
        unfinished = [str(node.id) for node in nodes if known_meta(node) is None]
        return unfinished, (lambda: self._one_is_unfinished(nodes, 1)) if unfinished else None

    def watching(self, group: ResultSet, on_interval: OnInterval) -> OnInterval:
        """``on_interval`` of who waits for a group, which also raises the failure of a task that must end before it.

        Celery does not look there: where such a task has failed, its members are never sent. So after each look in
        vain the earliest unfinished task before a group is asked, that of groups in groups in turn, until one of its
        members is there.
        """
        behind = deque((one, self._limit) for one in _groups(group) if one.parent is not None)
        if not behind:
            return on_interval

        def call() -> None:
            if on_interval is not None:
                on_interval()
            if behind:
                one, limit = behind.popleft()
                if not any(map(known_meta, walk(one))) and self._one_is_unfinished(_before(one), limit):
                    behind.append((one, 1))

        return call

    def _one_is_unfinished(self, nodes: list[AsyncResult], limit: int) -> bool:
        """Whether one of these is, when the earliest ones that were not known have been asked.

        Raises:
            Exception: the error of the earliest one that has failed.
        """
        unfinished = {node.id: node for node in nodes if known_meta(node) is None}
        for id, meta in self._fetch(islice(unfinished, limit)):
            if meta is not None:
                keep_meta(unfinished[id], meta)
        for node in nodes:
            meta = known_meta(node)
            if meta is None:
                return True
            if meta["status"] in states.PROPAGATE_STATES:
                _raise_own_error(node, meta)
                node.maybe_throw()
        return False

    def meta(self, waited: AsyncResult, timeout: float | None, task_id: str) -> Meta:
        """The meta of one parent of ``waited``; PENDING where it need not be known.

        Arguments:
            timeout: seconds that the caller waits in all, counted from the first question.

        Raises:
            Exception: the own error of a header's member, where that parent is a body that has failed by it.
        """
        wait: _Wait | None = getattr(self._local, "wait", None)
        if wait is not None and wait.id != waited.id:
            wait = None
        failure = known_meta(waited) or (wait.failure if wait else None)
        if failure is not None and _names(failure, task_id):
            known = self._named(task_id)
        elif wait is None:
            known = self._glimpse(waited, timeout)
        else:
            wanted = list(islice(_unfinished(waited, wait.passed), 1))
            known = dict(self._fetch(wanted)) if task_id in wanted else {}
        meta = known.get(task_id)
        if isinstance(meta, LazyMeta) and meta["status"] == states.SUCCESS:
            # Celery asks only whether a parent has failed, but would fetch the large value too, and throw it
            # away: so it is told PENDING.
            if wait is not None:
                wait.passed.add(task_id)
            meta = None
        if meta is not None:
            for node in _before(waited):
                if node.id == task_id:
                    _raise_own_error(node, meta)
        return meta or {"status": states.PENDING, "result": None}

    def _named(self, task_id: str) -> dict[str, Meta | None]:
        """A member that has failed its chord. Its part was stored before its result, which may be a moment late."""
        for pause in _MOMENTS:
            known = dict(self._fetch([task_id]))
            left = remaining()
            if known.get(task_id) is not None or (left is not None and left < pause):
                return known
            time.sleep(pause)
        return dict(self._fetch([task_id]))

    def _glimpse(self, waited: AsyncResult, timeout: float | None) -> dict[str, Meta | None]:
        glimpse: _Glimpse | None = getattr(self._local, "glimpse", None)
        if glimpse is None or glimpse.id != waited.id or self._now() > glimpse.good_until:
            began = self._now()
            with retried_until(None if timeout is None else began + timeout):
                known = dict(self._fetch(list(islice(_unfinished(waited), self._limit))))
            self._local.glimpse = glimpse = _Glimpse(waited.id, began, self._now() + _REMEMBERED, known)
        return glimpse.known


@dataclass
class _Glimpse:
    id: str
    began: float
    good_until: float
    known: dict[str, Meta | None]


@dataclass
class _Wait:
    id: str
    #: parents that have succeeded, without Celery being told
    passed: set[str] = field(default_factory=set)
    #: what the result is, where it is a failure
    failure: Meta | None = None


def _unfinished(waited: ResultBase, passed: Collection[str] = ()) -> Iterator[str]:
    """The ids of the chain's unfinished parents, earliest first, without the headers of chords."""
    return (node.id for node in _before(waited) if known_meta(node) is None and node.id not in passed)


def before_groups(group: ResultSet) -> list[str]:
    """The ids of the unfinished tasks before a group, and before the groups in it."""
    return [id for one in _groups(group) for id in _unfinished(one)]


def _before(result: ResultBase) -> list[AsyncResult]:
    """The single tasks before a result in its chain, earliest first, without the headers of chords."""
    return [node for node in parents_of(result) if not isinstance(node, ResultSet)][::-1]


def _raise_own_error(body: AsyncResult, meta: Meta) -> None:
    """Raise the error of the header's member by which the chord of a body has failed; nothing if it does not tell one.

    Arguments:
        meta: the body's, which is final.
    """
    if isinstance(body.parent, ResultSet):
        member = next((member for member in walk(body.parent) if _names(meta, member.id)), None)
        if member is not None:
            member.maybe_throw()


def _names(meta: Meta, task_id: str) -> bool:
    """Whether a final meta is a chord's failure by a task; what stands behind the body in its chain has it as well."""
    failed = meta["status"] in states.PROPAGATE_STATES
    error = meta["result"] if failed else None
    return isinstance(error, ChordError) and str(error).startswith(f"Dependency {task_id} raised ")


def _groups(group: ResultSet) -> Iterator[ResultSet]:
    """A group and the groups in it."""
    yield group
    for member in group.results:
        if isinstance(member, ResultSet):
            yield from _groups(member)
