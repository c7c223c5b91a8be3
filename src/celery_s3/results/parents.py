"""What a result's parents are asked while somebody waits for it.

``AsyncResult.get()`` looks at every parent before it waits and again on every interval, one after the other:
for the body of a chord that is every member of the header, each time. A chord's failure reaches its body and
a chain's reaches its end, so little of that is needed:

* the members of a header are not asked at all;
* before the wait, the chain's unfinished parents are read at the same time, and the answers are remembered
  for the second in which Celery asks for them;
* during the wait, only the earliest unfinished one is asked.

Celery gives a backend no word that it is checking parents, and of which result:
:func:`celery_s3.celery_private.checked_parents_of` finds out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from celery import states
from celery.result import AsyncResult, ResultSet

from celery_s3.celery_private import known_meta, parents_of
from celery_s3.codec.lazy import LazyMeta

__all__ = ["Parents"]

Meta = dict[str, Any]

#: Seconds for which the answers that were read before a wait are good: Celery asks for all of them at once.
_REMEMBERED = 1.0


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
    def waiting(self, task_id: str) -> Iterator[None]:
        """In the block, this thread waits for ``task_id``; waits may be nested, by a caller's ``on_interval``."""
        outer = getattr(self._local, "wait", None)
        self._local.wait = _Wait(task_id)
        self._local.glimpse = None
        try:
            yield
        finally:
            self._local.wait = outer

    def meta(self, waited: AsyncResult, task_id: str) -> Meta:
        """The meta of one parent of ``waited``; PENDING where it need not be known."""
        wait: _Wait | None = getattr(self._local, "wait", None)
        if wait is None or wait.id != waited.id:
            known = self._glimpse(waited)
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
        return meta or {"status": states.PENDING, "result": None}

    def _glimpse(self, waited: AsyncResult) -> dict[str, Meta | None]:
        glimpse: _Glimpse | None = getattr(self._local, "glimpse", None)
        if glimpse is None or glimpse.id != waited.id or self._now() > glimpse.good_until:
            known = dict(self._fetch(list(islice(_unfinished(waited), self._limit))))
            self._local.glimpse = glimpse = _Glimpse(waited.id, self._now() + _REMEMBERED, known)
        return glimpse.known


@dataclass
class _Glimpse:
    id: str
    good_until: float
    known: dict[str, Meta | None]


@dataclass
class _Wait:
    id: str
    #: parents that have succeeded, without Celery being told
    passed: set[str] = field(default_factory=set)


def _unfinished(waited: AsyncResult, passed: Collection[str] = ()) -> Iterator[str]:
    """The ids of the chain's unfinished parents, earliest first, without the headers of chords."""
    parents = [node for node in parents_of(waited) if not isinstance(node, ResultSet)]
    return (node.id for node in reversed(parents) if known_meta(node) is None and node.id not in passed)
