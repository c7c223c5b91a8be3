"""Counting every request that is made, by verb."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from celery_s3.errors import StoreError, Unreachable

from .api import Entry, Object, Precondition, Store
from .situation import PerProcess

__all__ = ["PAGE", "Counting", "Snapshot", "Tally", "difference"]

_R = TypeVar("_R")

#: The entries of one LIST answer, and the keys of one DeleteObjects request.
PAGE = 1000

#: By verb (PUT, GET, LIST, DELETE, DELETE_OBJECTS): ``requests``, ``retries``, ``bytes_up``, ``bytes_down``, and
#: one number for each class of :mod:`celery_s3.errors` that a request ended with, as ``Throttled``.
Snapshot = dict[str, dict[str, int]]


class Tally:
    """What this process asked of the server; a forked child starts at zero."""

    def __init__(self) -> None:
        self._counts = PerProcess(_Counts)

    def count(
        self, verb: str, *, requests: int = 1, up: int = 0, down: int = 0, error: StoreError | None = None
    ) -> None:
        """Count requests that were made, ``up`` and ``down`` in bytes of bodies."""
        counts = self._counts.get()
        with counts.lock:
            line = counts.line(verb)
            line["requests"] += requests
            line["bytes_up"] += up
            line["bytes_down"] += down
            if error is not None:
                name = type(error).__name__
                line[name] = line.get(name, 0) + 1

    def retried(self, verb: str) -> None:
        """Count one decision to try again; the request itself is counted when it is made."""
        counts = self._counts.get()
        with counts.lock:
            counts.line(verb)["retries"] += 1

    def snapshot(self) -> Snapshot:
        """The numbers as they stand."""
        counts = self._counts.get()
        with counts.lock:
            return {verb: dict(line) for verb, line in counts.lines.items()}


class _Counts:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.lines: Snapshot = {}

    def line(self, verb: str) -> dict[str, int]:
        line = self.lines.get(verb)
        if line is None:
            line = self.lines[verb] = {"requests": 0, "retries": 0, "bytes_up": 0, "bytes_down": 0}
        return line


def difference(later: Snapshot, earlier: Snapshot) -> Snapshot:
    """What was counted between two snapshots of one process; verbs that were not used are left out."""
    spent: Snapshot = {}
    for verb, line in later.items():
        before = earlier.get(verb, {})
        changed = {name: number - before.get(name, 0) for name, number in line.items()}
        if any(changed.values()):
            spent[verb] = changed
    return spent


class Counting:
    """A store that tallies each request of the store inside it."""

    def __init__(self, inner: Store, tally: Tally) -> None:
        self._inner = inner
        self._tally = tally

    def put(
        self,
        key: str,
        body: bytes,
        *,
        precondition: Precondition = None,
        metadata: Mapping[str, str] | None = None,
        content_type: str = "",
    ) -> str:
        def request() -> str:
            return self._inner.put(key, body, precondition=precondition, metadata=metadata, content_type=content_type)

        etag = self._attempt("PUT", request, up=len(body))
        self._tally.count("PUT", up=len(body))
        return etag

    def get(self, key: str, *, start: int = 0, length: int | None = None, if_match: str | None = None) -> Object:
        found = self._attempt("GET", lambda: self._inner.get(key, start=start, length=length, if_match=if_match))
        self._tally.count("GET", down=len(found.body))
        return found

    def delete(self, key: str) -> None:
        self._attempt("DELETE", lambda: self._inner.delete(key))
        self._tally.count("DELETE")

    def delete_many(self, keys: Sequence[str]) -> None:
        requests = -(-len(keys) // PAGE)
        self._attempt("DELETE_OBJECTS", lambda: self._inner.delete_many(keys), requests=requests)
        self._tally.count("DELETE_OBJECTS", requests=requests)

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[Entry]:
        # A page is one request, made when its first entry is asked for; the last page may be empty.
        entries = self._inner.list(prefix, start_after=start_after)
        for number in itertools.count():
            entry = self._attempt("LIST", lambda: next(entries, None))
            if number % PAGE == 0 and (entry is not None or number == 0):
                self._tally.count("LIST")
            if entry is None:
                return
            yield entry

    def close(self) -> None:
        self._inner.close()

    def _attempt(self, verb: str, request: Callable[[], _R], *, requests: int = 1, up: int = 0) -> _R:
        try:
            return request()
        except StoreError as exc:
            # What reached no server was no request.
            sent = 0 if isinstance(exc, Unreachable) else requests
            self._tally.count(verb, requests=sent, up=up if sent else 0, error=exc)
            raise
