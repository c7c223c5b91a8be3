"""What the members of a group are asked while somebody asks the group.

``ready()``, ``successful()``, ``completed_count()`` and the like ask each member for its state, one after the other. So
the members behind the one that is asked are read with it, in parallel: all of them where all will be asked, else twice
as many each time, for the next one that is missing ends it.

Celery gives a backend no word that a group is asking: :func:`celery_s3.celery_private.who_asks` finds out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from weakref import ReferenceType, ref

from celery import states
from celery.exceptions import BackendGetMetaError
from celery.result import ResultBase, ResultSet
from kombu.utils.encoding import bytes_to_str

from celery_s3.celery_private import AskingGroup, keep_meta, known_meta
from celery_s3.store.parallel import Pool

__all__ = ["Members", "walk"]

Meta = dict[str, Any]


def walk(result: ResultBase) -> Iterator[Any]:
    """The results of single tasks in a result, in their order, those in groups in groups too."""
    if isinstance(result, ResultSet):
        for member in result.results:
            yield from walk(member)
    else:
        yield result


@dataclass(slots=True)
class _Ahead:
    """What was read for one call.

    Attributes:
        group, method: whose call.
        width: how many members were read at once.
        next: the id of the first one behind them.
        unfinished: metas that no result keeps, by id, until they are asked for.
    """

    group: ReferenceType[ResultSet]
    method: str
    width: int = 0
    next: str = ""
    unfinished: dict[str, Meta] = field(default_factory=dict)


class Members:
    """Answers the questions about members.

    Arguments:
        get_meta: the meta of one task as Celery gets it, from memory or by its own retries.
    """

    def __init__(self, get_meta: Callable[[str], Meta], pool: Pool) -> None:
        self._get_meta = get_meta
        self._pool = pool
        self._local = threading.local()

    def meta(self, asking: AskingGroup, task_id: str) -> Meta:
        """The meta of one member of a group whose method is asking for it.

        Raises:
            ResultNotRead: it was not read.
        """
        id = bytes_to_str(task_id)
        ahead: _Ahead | None = getattr(self._local, "ahead", None)
        if ahead is None or ahead.group() is not asking.group or ahead.method != asking.method:
            ahead = self._local.ahead = _Ahead(ref(asking.group), asking.method)
        meta = ahead.unfinished.pop(id, None) or self._read(asking, ahead, id)
        if not asking.everyone and meta["status"] not in states.READY_STATES:
            self._local.ahead = None  # the call ends with this
        return meta

    def _read(self, asking: AskingGroup, ahead: _Ahead, id: str) -> Meta:
        """Read a member, and those behind it that nothing is known of; what is final, its result keeps."""
        unknown: dict[str, list[Any]] = {}
        for leaf in walk(asking.group):
            if known_meta(leaf) is None:
                unknown.setdefault(bytes_to_str(leaf.id), []).append(leaf)
        ids = list(unknown)
        first = ids.index(id) if id in unknown else len(ids)
        # Another call begins anew; this one goes on where the last reading has ended.
        ahead.width = len(ids) if asking.everyone else 2 * ahead.width if ahead.next == id else 1
        last = first + ahead.width
        ahead.next = ids[last] if last < len(ids) else ""
        ahead.unfinished = {}
        metas: dict[str, Meta] = {}
        for one, meta in self._pool.stream(self._get_meta, ids[first:last] or [id]):
            if not isinstance(meta, BaseException):
                metas[one] = meta
            elif one == id or not isinstance(meta, BackendGetMetaError):
                raise meta  # who asks for another member, and cannot read it, gets an error of its own
        for one, meta in metas.items():
            if meta["status"] in states.READY_STATES:
                for leaf in unknown.get(one, ()):
                    keep_meta(leaf, meta)
            elif one != id:
                ahead.unfinished[one] = meta
        return metas[id]
