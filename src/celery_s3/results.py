"""Storing and fetching one object: written once, read in one request.

Writing a result::

    nothing known             PUT If-None-Match: *     → done
                              412 → GET; a SUCCESS stands there → it stays, done
                                    else PUT If-Match: <its etag>; 412 → again
    I wrote its state before  PUT If-Match: <my etag>  → done

so a stored SUCCESS is never replaced, whoever else is writing. A server without conditional writes gets a GET
before the PUT, which is what every other backend does.
"""

from __future__ import annotations

import enum
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Protocol

from celery import states

from . import codec, lifetime
from .errors import Conflict, ObjectMissing, PreconditionFailed
from .store.api import CREATE, Match, Object, Precondition, Store

__all__ = ["Outcome", "Results"]

logger = logging.getLogger(__name__)

#: The bytes that the first GET asks for: small results come whole, large ones with their metadata.
HEAD_BYTES = 64 * 1024
#: The bytes of one request for the rest of a large result.
PART_BYTES = 8 * 1024 * 1024
#: How often one write may lose to another writer before it is an error.
LOST_RACES = 5
#: How many tasks' own versions a process remembers: more than any pool runs at once.
VERSIONS = 4096


class Outcome(enum.Enum):
    """What became of a write."""

    WRITTEN = "written"
    #: what stands there is final, or says the same
    KEPT = "kept"


class Supported(Protocol):
    def supported(self) -> bool: ...


class Parallel(Protocol):
    def map(self, fn: Callable[[int], bytes], items: Iterable[int]) -> list[bytes]: ...


class Results:
    """The write-once and read protocol over a store.

    Arguments:
        store: where the objects are.
        conditional: whether the server honours preconditions.
        pool: reads the parts of a large object at the same time.
        state_in: the state that a whole object's body tells, ``None`` where it cannot be read.
        expires: seconds after which a result without a term of its own reads as missing; ``None`` never.
        now: the time in seconds since the epoch.
    """

    def __init__(
        self,
        store: Store,
        conditional: Supported,
        pool: Parallel,
        *,
        state_in: Callable[[Object], str | None],
        expires: float | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.store = store
        self.conditional = conditional
        self.pool = pool
        self.state_in = state_in
        self.expires = expires
        self.now = now
        self._versions = _Versions(VERSIONS)

    # -- writing

    def write(
        self, key: str, body: bytes, state: str, metadata: Mapping[str, str], content_type: str, *, rerun: bool = False
    ) -> Outcome:
        """Store a state; a SUCCESS that stands there is kept.

        Arguments:
            rerun: another run of the task has probably left a state here: looking first is cheaper.

        Raises:
            StoreError: nothing was stored.
        """
        if not self.conditional.supported():
            return self._write_after_reading(key, body, state, metadata, content_type)
        precondition: Precondition = self._versions.expected(key)
        stored: Object | None = None
        look = rerun and precondition is CREATE
        for _ in range(1 + LOST_RACES):
            if look:
                stored = self._stored(key)
                if stored is not None and self._stands(stored, body, state):
                    self._versions.drop(key)
                    return Outcome.KEPT
                precondition = Match(stored.etag) if stored is not None else CREATE
            try:
                etag = self.store.put(
                    key, body, precondition=precondition, metadata=metadata, content_type=content_type
                )
            except PreconditionFailed:
                look = True
            else:
                self._versions.wrote(key, etag, state)
                return Outcome.WRITTEN
        if stored is None:
            # SeaweedFS takes the directory of longer keys for an object.
            why = "a create is refused, yet there is no such object: does another id begin with this one and a slash?"
        else:
            why = f"{LOST_RACES} other writers came first"
        raise Conflict(why, operation="put", key=key)

    def _write_after_reading(
        self, key: str, body: bytes, state: str, metadata: Mapping[str, str], content_type: str
    ) -> Outcome:
        stored = self._stored(key)
        if stored is not None and self._stands(stored, body, state):
            return Outcome.KEPT
        self.store.put(key, body, metadata=metadata, content_type=content_type)
        return Outcome.WRITTEN

    def _stored(self, key: str) -> Object | None:
        try:
            return self.store.get(key, length=HEAD_BYTES)
        except ObjectMissing:
            return None

    def _stands(self, stored: Object, body: bytes, state: str) -> bool:
        """Whether what is stored stays, rather than ``body``."""
        if self._expired(stored):
            return False
        if stored.body == body:
            return True
        found = self._state_of(stored)
        if found is None:
            # It may be a SUCCESS in a form this process cannot read: only a SUCCESS may take its place.
            logger.warning(
                "The object %s is no result that this process can read.", stored.key, extra={"s3_key": stored.key}
            )
            return bool(state != states.SUCCESS)
        if state == states.RETRY and found in states.READY_STATES:
            # The next run is sent before this state is stored, and may have ended meanwhile.
            return True
        # Every worker reports a revoked task.
        return bool(found == states.SUCCESS or found == state == states.REVOKED)

    def _state_of(self, stored: Object) -> str | None:
        """The state as the metadata tells it, else the body."""
        state = codec.state_of(stored.metadata)
        if state is not None:
            return state
        whole = self.whole(stored)
        return None if whole is None else self.state_in(whole)

    # -- reading

    def read(self, key: str) -> Object | None:
        """The object in one request, large ones in part; ``None`` where there is none or it has expired."""
        found = self._stored(key)
        return None if found is None or self._expired(found) else found

    def whole(self, found: Object) -> Object | None:
        """The rest of an object that :meth:`read` found, in parallel parts of one version of it.

        ``None`` where it is gone by now.
        """
        while not found.complete:
            try:
                return self._joined(found)
            except ObjectMissing:
                return None
            except PreconditionFailed:
                again = self.read(found.key)
                if again is None:
                    return None
                found = again
        return found

    def _joined(self, found: Object) -> Object:
        def part(start: int) -> bytes:
            return self.store.get(found.key, start=start, length=PART_BYTES, if_match=found.etag).body

        parts = self.pool.map(part, range(len(found.body), found.size, PART_BYTES))
        return Object(
            found.key,
            b"".join([found.body, *parts]),
            found.size,
            found.etag,
            found.modified,
            found.metadata,
            found.content_type,
        )

    def ends(self, found: Object) -> float | None:
        """When an object expires, in seconds since the epoch; ``None``: never."""
        return lifetime.ends(found, self.expires)

    def _expired(self, found: Object) -> bool:
        end = self.ends(found)
        return end is not None and self.now() >= end

    # -- deleting

    def delete(self, key: str) -> None:
        """Delete an object, in one request."""
        self._versions.drop(key)
        self.store.delete(key)


class _Versions:
    """The etags of the unfinished states that this process wrote last, about ``limit`` of them.

    No lock: a child forked while another thread held one would wait for ever.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._etags: dict[str, str] = {}

    def expected(self, key: str) -> Precondition:
        etag = self._etags.get(key)
        return Match(etag) if etag else CREATE

    def wrote(self, key: str, etag: str, state: str) -> None:
        self.drop(key)
        if state in states.READY_STATES or not etag:
            return
        self._etags[key] = etag
        if len(self._etags) > self._limit:
            with suppress(RuntimeError, StopIteration):  # another thread changed the map: it makes room itself
                self.drop(next(iter(self._etags)))

    def drop(self, key: str) -> None:
        self._etags.pop(key, None)
