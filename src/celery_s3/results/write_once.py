"""Storing and fetching one object: written once, read in one request.

Writing a result::

    nothing known             PUT If-None-Match: *     → done
                              412 → GET; a SUCCESS stands there → it stays, done
                                    else PUT If-Match: <its etag>; 412 → again
    I wrote its state before  PUT If-Match: <my etag>  → done

so a stored SUCCESS is never replaced, whoever else is writing. A server without conditional writes gets a GET
before the PUT, which is what every other backend does; and so does every server before it gets a large result, which
goes up in parts: the precondition holds when they are put together.
"""

from __future__ import annotations

import enum
import io
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from celery import states

from celery_s3.codec import raw
from celery_s3.codec.chunks import Chunks
from celery_s3.errors import Conflict, ObjectMissing, PreconditionFailed
from celery_s3.metadata import expires_at, expiry_tags, state_of
from celery_s3.store import ranges
from celery_s3.store.api import CREATE, Match, Object, Precondition, Store, Writer
from celery_s3.store.parallel import Pool

__all__ = ["Outcome", "Results", "Whole"]

logger = logging.getLogger(__name__)

#: The bytes that the first GET asks for: small results come whole, large ones with their metadata.
HEAD_BYTES = 64 * 1024
#: The bytes of one request for the rest of a large result. Half as many as an upload's: a thread's memory allocator
#: keeps two of them.
PART_BYTES = 4 * 1024 * 1024
#: How many of them are under way at a time.
AT_ONCE = 8
#: How often one write may lose to another writer before it is an error.
LOST_RACES = 5
#: How many tasks' own versions a process remembers: more than any pool runs at once.
VERSIONS = 4096


class Outcome(enum.Enum):
    """What became of a write."""

    WRITTEN = "written"
    #: what stands there is final, or says the same
    KEPT = "kept"


@dataclass(slots=True)
class Whole:
    """All of an object that was read.

    Attributes:
        about: its first bytes, and all that came with them.
        body: its bytes, or those behind the frame.
        frame: what stands before a value that was stored as raw bytes: apart, for a large one is not copied.
    """

    about: Object
    body: bytes = field(repr=False)
    frame: bytes = field(default=b"", repr=False)

    def take(self) -> bytes:
        """The body, which is not kept here any longer: its value needs the room."""
        body, self.body = self.body, b""
        return body


class Supported(Protocol):
    def supported(self) -> bool: ...


class Results:
    """The write-once and read protocol over a store.

    Arguments:
        store: where the objects are.
        uploads: writes large ones there.
        conditional: whether the server honours preconditions.
        pool: reads the parts of a large object at the same time.
        state_in: the state that a whole object's body tells, ``None`` where it cannot be read.
        expires: seconds after which a result without a term of its own reads as missing; ``None`` never.
        tagged: each result gets the tag that lifecycle rules find it by.
        now: the time in seconds since the epoch.
    """

    def __init__(
        self,
        store: Store,
        uploads: Writer,
        conditional: Supported,
        pool: Pool,
        *,
        state_in: Callable[[Whole], str | None],
        expires: float | None = None,
        tagged: bool = False,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.store = store
        self.uploads = uploads
        self.conditional = conditional
        self.pool = pool
        self.state_in = state_in
        self.expires = expires
        self.tagged = tagged
        self.now = now
        self._versions = _Versions(VERSIONS)

    # -- writing

    def write(
        self,
        key: str,
        body: bytes | Chunks,
        state: str,
        metadata: Mapping[str, str],
        content_type: str,
        *,
        rerun: bool = False,
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
        large = isinstance(body, Chunks)
        look = large or (rerun and precondition is CREATE)
        for _ in range(1 + LOST_RACES):
            if look:
                stored, stands = self._look(key, body, state)
                if stands:
                    self._versions.drop(key)
                    return Outcome.KEPT
                precondition = Match(stored.etag) if stored is not None else CREATE
            try:
                etag = self._put(key, body, precondition, metadata, content_type)
            except PreconditionFailed:
                look = True
            except Conflict:
                if not large:
                    raise  # it has been tried again
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
        self, key: str, body: bytes | Chunks, state: str, metadata: Mapping[str, str], content_type: str
    ) -> Outcome:
        if self._look(key, body, state)[1]:
            return Outcome.KEPT
        self._put(key, body, None, metadata, content_type)
        return Outcome.WRITTEN

    def _put(
        self,
        key: str,
        body: bytes | Chunks,
        precondition: Precondition,
        metadata: Mapping[str, str],
        content_type: str,
    ) -> str:
        tags = expiry_tags(metadata) if self.tagged else None
        if isinstance(body, bytes):
            return self.store.put(
                key, body, precondition=precondition, metadata=metadata, content_type=content_type, tags=tags
            )
        return self.uploads.write(
            key,
            body,
            size=body.size,
            precondition=precondition,
            metadata=metadata,
            content_type=content_type,
            tags=tags,
        )

    def _stored(self, key: str) -> Object | None:
        try:
            return self.store.get(key, length=HEAD_BYTES)
        except ObjectMissing:
            return None

    def _look(self, key: str, body: bytes | Chunks, state: str) -> tuple[Object | None, bool]:
        """What is stored, and whether it stays rather than ``body``."""
        stored = self._stored(key)
        try:
            return stored, stored is not None and self._stands(stored, body, state)
        except ObjectMissing:  # forgotten while its state was read: no reason to drop anything
            return None, False

    def _stands(self, stored: Object, body: bytes | Chunks, state: str) -> bool:
        """Whether what is stored stays, rather than ``body``.

        Raises:
            ObjectMissing: it is gone by now.
        """
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
        """The state as the metadata tells it, else the body; ``None`` where that cannot be read."""
        state = state_of(stored.metadata)
        if state is not None:
            return state
        whole = self.whole(stored)
        if whole is None:
            raise ObjectMissing(operation="get", key=stored.key)
        return self.state_in(whole)

    # -- reading

    def read(self, key: str) -> Object | None:
        """The object in one request, large ones in part; ``None`` where there is none or it has expired."""
        found = self._stored(key)
        return None if found is None or self._expired(found) else found

    def whole(self, found: Object) -> Whole | None:
        """The rest of an object that :meth:`read` found, in parallel parts of one version of it.

        ``None`` where it is gone by now.

        Raises:
            Conflict: it was another version each time.
        """
        for _ in range(1 + LOST_RACES):
            if found.complete:
                return Whole(found, found.body)
            try:
                return self._joined(found)
            except ObjectMissing:
                return None
            except PreconditionFailed:
                pass  # not here, where what was read of the other version is not let go of yet
            again = self.read(found.key)
            if again is None:
                return None
            found = again
        why = f"its parts were refused {1 + LOST_RACES} times, each time as those of another version than its beginning"
        raise Conflict(why, operation="get", key=found.key)

    def _joined(self, found: Object) -> Whole:
        frame = raw.frame_of(found.body)
        # A buffer whose bytes are not copied once more to be handed out; closed, it lets go of them whoever has it.
        with io.BytesIO() as body:
            body.write(memoryview(found.body)[len(frame) :])
            for start, read in ranges.behind(found, self.store, self.pool, PART_BYTES, at_once=AT_ONCE):
                body.seek(start - len(frame))
                body.write(read)
            return Whole(found, body.getvalue(), frame)

    def ends(self, found: Object) -> float | None:
        """When an object expires, in seconds since the epoch; ``None``: never."""
        return expires_at(found, self.expires)

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
