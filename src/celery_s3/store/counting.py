"""Counting every request that is made, by verb.

The numbers of a prefork worker lie in memory that its main process shares with its children: each of them counts
in a row of its own, and the main process can tell what all have asked, those included that were killed.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TypeVar

from billiard import process

from celery_s3.errors import StoreError, Unreachable
from celery_s3.processes import PerProcess

from .api import PAGE, Bucket, Store
from .requests import Object, Request

__all__ = ["NUMBERS", "VERBS", "Counting", "Snapshot", "Tally", "difference", "pages", "requests_in"]

A = TypeVar("A")

#: By verb: ``requests``, ``retries``, ``bytes_up``, ``bytes_down``, and one number for each class of
#: :mod:`celery_s3.errors` that a request ended with, as ``Throttled``. Verbs that were not used are left out.
Snapshot = dict[str, dict[str, int]]

VERBS = ("PUT", "GET", "HEAD", "LIST", "DELETE", "DELETE_OBJECTS")


def _kinds(error: type[StoreError]) -> Iterator[type[StoreError]]:
    yield error
    for kind in error.__subclasses__():
        yield from _kinds(kind)


NUMBERS = ("requests", "retries", "bytes_up", "bytes_down")
_ERRORS = {kind: index for index, kind in enumerate(dict.fromkeys(_kinds(StoreError)), len(NUMBERS))}
_NAMES = (*NUMBERS, *(kind.__name__ for kind in _ERRORS))
_WIDTH = len(_NAMES)
#: Where a verb's numbers begin in a row; a row begins with the pid of who counts in it.
_AT = {verb: 1 + index * _WIDTH for index, verb in enumerate(VERBS)}
_ROW = 1 + len(VERBS) * _WIDTH
_RETRIES, _UP, _DOWN = 1, 2, 3

#: The children of one worker that are seen by its main process; any more count for themselves alone.
CHILDREN = 256


class Tally:
    """What this process asked of the server; a forked child starts at zero."""

    def __init__(self) -> None:
        self._shared = _Shared()
        self._own = PerProcess(lambda: _Row(self._shared.row()))

    def count(
        self, verb: str, *, requests: int = 1, up: int = 0, down: int = 0, error: StoreError | None = None
    ) -> None:
        """Count requests that were made, ``up`` and ``down`` in bytes of bodies."""
        row, at = self._own.get(), _AT[verb]
        cells = row.cells
        with row.lock:
            cells[at] += requests
            if up:
                cells[at + _UP] += up
            if down:
                cells[at + _DOWN] += down
            if error is not None:
                cells[at + _ERRORS.get(type(error), len(NUMBERS))] += 1

    def retried(self, verb: str) -> None:
        """Count one decision to try again; the request itself is counted when it is made."""
        row = self._own.get()
        with row.lock:
            row.cells[_AT[verb] + _RETRIES] += 1

    def snapshot(self) -> Snapshot:
        """The numbers as they stand."""
        row = self._own.get()
        with row.lock:
            now = list(row.cells)
        return _lines(map(int.__sub__, now, row.start))

    def worker_snapshot(self) -> Snapshot:
        """The numbers of a worker's main process and of all children of its pool, ended ones too.

        Called in a child, or in a process that is no worker: the numbers of that process alone.
        """
        self._own.get()
        return _lines(map(sum, zip(*self._shared.rows(), strict=True))) if self._shared.mine() else self.snapshot()

    def processes(self) -> set[int]:
        """The pids of the processes that :meth:`worker_snapshot` includes; some may have ended since."""
        self._own.get()
        return {row[0] for row in self._shared.rows() if row[0]} if self._shared.mine() else {os.getpid()}

    def join(self) -> bool:
        """Begin to count in the memory that is shared with the main process, before the first request.

        Returns:
            Whether :meth:`worker_snapshot` of the main process includes this one. It does not include a child that
            made this object itself, as one started by spawn.
        """
        return self._shared.holds(self._own.get().cells) and not self._shared.mine()


class _Row:
    """The cells that one process counts in, under a lock of its own: a child's never waits for its parent's."""

    def __init__(self, cells: memoryview[int]) -> None:
        self.lock = threading.Lock()
        self.cells = cells
        cells[0] = os.getpid()
        # A child that takes the place of another goes on from its numbers.
        self.start = list(cells)


class _Shared:
    """One row for the process that makes this, and one for each child of its pool.

    Processes that are not the pool's have a row for themselves: two must never count in the same.
    """

    def __init__(self) -> None:
        self._maker = os.getpid()
        self._cells = memoryview(mmap.mmap(-1, (1 + CHILDREN) * _ROW * 8)).cast("q")

    def mine(self) -> bool:
        return os.getpid() == self._maker

    def row(self) -> memoryview[int]:
        """The row of the calling process."""
        number = 0 if self.mine() else self._child()
        if number is None:
            return memoryview(bytearray(_ROW * 8)).cast("q")
        return self._cells[number * _ROW : (number + 1) * _ROW]

    def _child(self) -> int | None:
        index: int | None = getattr(process.current_process(), "index", None)
        if index is None or index >= CHILDREN or os.getppid() != self._maker:
            return None
        return index + 1

    def rows(self) -> list[list[int]]:
        cells = self._cells
        return [list(cells[at : at + _ROW]) for at in range(0, len(cells), _ROW) if cells[at]]

    def holds(self, cells: memoryview[int]) -> bool:
        return cells.obj is self._cells.obj


def _lines(row: Iterable[int]) -> Snapshot:
    cells = list(row)
    found: Snapshot = {}
    for verb, at in _AT.items():
        numbers = cells[at : at + _WIDTH]
        if any(numbers):
            pairs = zip(_NAMES, numbers, strict=True)
            found[verb] = {name: number for name, number in pairs if number or name in NUMBERS}
    return found


def difference(later: Snapshot, earlier: Snapshot) -> Snapshot:
    """What was counted between two snapshots of one process; verbs that were not used are left out."""
    spent: Snapshot = {}
    for verb, line in later.items():
        before = earlier.get(verb, {})
        changed = {name: number - before.get(name, 0) for name, number in line.items()}
        if any(changed.values()):
            spent[verb] = changed
    return spent


def pages(count: int) -> int:
    """The requests that list or delete so many objects."""
    return -(-count // PAGE)


def requests_in(counted: Snapshot) -> Counter[str]:
    """The requests of a snapshot, or of a difference of two, by verb."""
    return Counter({verb: line["requests"] for verb, line in counted.items() if line["requests"]})


class Counting(Bucket):
    """A store that tallies each request of the store inside it."""

    def __init__(self, inner: Store, tally: Tally) -> None:
        self._inner = inner
        self._tally = tally

    def send(self, request: Request[A]) -> A:
        """Pass the request on, and count it when it was sent: its bytes, and its error if it has one."""
        try:
            answer = self._inner.send(request)
        except StoreError as exc:
            # what reached no server was no request
            sent = not isinstance(exc, Unreachable)
            self._tally.count(request.verb, requests=int(sent), up=len(request.body) if sent else 0, error=exc)
            raise
        down = len(answer.body) if isinstance(answer, Object) else 0
        self._tally.count(request.verb, up=len(request.body), down=down)
        return answer

    def close(self) -> None:
        """Close the store inside; the counts stay."""
        self._inner.close()
