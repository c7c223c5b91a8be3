"""Storing and fetching one object: written once, read in one request.

Writing a result::

    nothing known             PUT If-None-Match: *     → done
                              412 → GET; a SUCCESS stands there → it stays, done
                                    else PUT If-Match: <its etag>; 412 → again
    I wrote its state before  PUT If-Match: <my etag>  → done

so a stored SUCCESS is never replaced, whoever else is writing; one that has expired counts as none, by the server's
clock where this machine's might be wrong. A server without conditional writes gets a GET
before the PUT, which is what every other backend does; and so does every server before it gets a large result, which
goes up in parts: the precondition holds when they are put together.
"""

from __future__ import annotations

import enum
import io
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

from celery import states

from celery_s3.codec import raw
from celery_s3.codec.chunks import Chunks
from celery_s3.codec.decoding import Whole
from celery_s3.errors import Conflict, ObjectMissing, PreconditionFailed, StoreError
from celery_s3.metadata import expires_at, expiry_tags, state_of
from celery_s3.printable import get_logger
from celery_s3.processes import Remembered, prefork_parent
from celery_s3.store import ranges
from celery_s3.store.api import CREATE, Create, Match, Object, Precondition, Store, Writer
from celery_s3.store.deadline import remaining, retried_until
from celery_s3.store.parallel import Pool
from celery_s3.store.requests import Put

__all__ = ["Results", "WriteOutcome"]

logger = get_logger(__name__)

#: The bytes that the first GET asks for: small results come whole, large ones with their metadata.
HEAD_BYTES = 64 * 1024
#: The bytes of one request for the rest of a large result. Half as many as an upload's: a thread's memory allocator
#: keeps two of them.
PART_BYTES = 4 * 1024 * 1024
#: How many of them are under way at a time.
AT_ONCE = 8
#: How often one write may lose to another writer before it is an error.
LOST_RACES = 5
#: How many unfinished tasks' versions a process remembers: more than any pool runs at once.
VERSIONS = 4096
#: Seconds by which a clock may differ from the server's: S3 refuses what is signed by one that differs by more.
DRIFT = 15 * 60
#: Seconds after which the server has told its time, or this machine's clock has to do.
CLOCK_ANSWERS_IN = 5.0


#: States of a task that has not begun, or has to begin again.
NOT_BEGUN = frozenset({states.PENDING, states.RECEIVED, states.RETRY, states.REJECTED})


class WriteOutcome(enum.Enum):
    """What became of a write."""

    WRITTEN = "written"
    #: what stands there is final, or says the same
    KEPT = "kept"
    #: it was not stored, and need not be
    DROPPED = "dropped"


class _Draft(NamedTuple):
    """What is to be written; the arguments of :meth:`Results.write`."""

    key: str
    body: bytes | Chunks
    state: str
    metadata: Mapping[str, str]
    content_type: str
    unless_begun: bool = False


class Supported(Protocol):
    def supported(self) -> bool: ...


class Results:
    """The write-once and read protocol over a store.

    Arguments:
        store: where the objects are.
        writer: writes large ones there.
        conditional: whether the server honours preconditions.
        pool: reads the parts of a large object at the same time.
        state_in: the state that a whole object's body tells, ``None`` where it cannot be read.
        expires: seconds after which a result without a term of its own reads as missing; ``None`` never.
        tagged: each result gets the tag that lifecycle rules find it by.
        now: the time in seconds since the epoch, by this machine's clock.
        server_now: the same by the server's, at the price of a request; ``None``: it has this machine's.
    """

    def __init__(
        self,
        store: Store,
        writer: Writer,
        conditional: Supported,
        pool: Pool,
        *,
        state_in: Callable[[Whole], str | None],
        expires: float | None = None,
        tagged: bool = False,
        now: Callable[[], float] = time.time,
        server_now: Callable[[], float] | None = None,
    ) -> None:
        self.store = store
        self.writer = writer
        self.conditional = conditional
        self.pool = pool
        self.state_in = state_in
        self.expires = expires
        self.tagged = tagged
        self.now = now
        self._is_conditional = False
        self.server_now = server_now or now
        #: the etags of the unfinished states that this process wrote last, by key
        self._versions: Remembered[str, str] = Remembered(VERSIONS)

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
        unless_begun: bool = False,
    ) -> WriteOutcome:
        """Store a state; a SUCCESS that stands there is kept.

        Arguments:
            rerun: another run of the task has probably left a state here: looking first is cheaper.
            unless_begun: the state of a task that has begun, or ended, is kept too.

        Raises:
            StoreError: nothing was stored.
        """
        draft = _Draft(key, body, state, metadata, content_type, unless_begun)
        # once it is, it stays so
        self._is_conditional = self._is_conditional or self.conditional.supported()
        if not self._is_conditional:
            return self._write_after_reading(draft)
        etag = self._versions.get(key)
        precondition: Precondition = Match(etag) if etag else CREATE
        large, bucket = isinstance(body, Chunks), ""
        look = large or (rerun and not etag)
        for _ in range(1 + LOST_RACES):
            if look:
                stored = self._replaceable(draft)
                if stored is WriteOutcome.KEPT:
                    self._versions.pop(key, None)
                    return WriteOutcome.KEPT
                precondition = stored
            try:
                etag = self._put(draft, precondition)
            except PreconditionFailed as refusal:
                look, bucket = True, refusal.bucket
            except Conflict as exc:
                if not large:
                    raise  # the store has tried again
                bucket = exc.bucket
            else:
                if state in states.READY_STATES or not etag:
                    self._versions.pop(key, None)
                else:
                    self._versions.put(key, etag)
                return WriteOutcome.WRITTEN
        raise _always_refused(key, precondition, bucket)

    def _write_after_reading(self, draft: _Draft) -> WriteOutcome:
        if self._replaceable(draft) is WriteOutcome.KEPT:
            return WriteOutcome.KEPT
        self._put(draft, None)
        return WriteOutcome.WRITTEN

    def _put(self, draft: _Draft, precondition: Precondition) -> str:
        key, body, metadata, content_type = draft.key, draft.body, draft.metadata, draft.content_type
        tags = expiry_tags(metadata) if self.tagged else {}
        if not isinstance(body, Chunks):
            return self.store.send(Put(key, body, precondition, metadata, content_type, tags))
        how: dict[str, Any] = {"metadata": metadata, "content_type": content_type, "tags": tags}
        return self.writer.write(key, body, size=body.size, precondition=precondition, **how)

    def _read_stored(self, key: str) -> Object | None:
        try:
            return self.store.get(key, length=HEAD_BYTES)
        except ObjectMissing:
            return None

    def _replaceable(self, draft: _Draft) -> Match | Create | Literal[WriteOutcome.KEPT]:
        """Look at what is stored: the precondition that replaces it, ``KEPT`` where it must stay."""
        stored = self._read_stored(draft.key)
        try:
            if stored is not None and self._keeps_stored(stored, draft):
                return WriteOutcome.KEPT
        except ObjectMissing:  # forgotten while its state was read: that is no reason to drop the draft
            return CREATE
        return CREATE if stored is None else Match(stored.etag)

    def _keeps_stored(self, stored: Object, draft: _Draft) -> bool:
        """Whether what is stored stays, rather than the draft.

        Raises:
            ObjectMissing: it is gone by now.
        """
        if self._expired_for_sure(stored):
            return False
        if stored.body == draft.body:
            return True
        found = self._state_of(stored)
        if found is None:
            # It may be a SUCCESS in a form this process cannot read: only a SUCCESS may take its place.
            logger.warning(
                "The object %s is no result that this process can read.", stored.key, extra={"s3_key": stored.key}
            )
            return bool(draft.state != states.SUCCESS)
        if draft.unless_begun and found not in NOT_BEGUN:
            return True
        if draft.state in (states.RETRY, states.REVOKED) and found in states.READY_STATES:
            # Celery sends the next run before it stores RETRY: that run may have ended meanwhile. And each worker
            # stores REVOKED for each revoked id.
            return True
        return bool(found == states.SUCCESS)

    def _state_of(self, stored: Object) -> str | None:
        """The state as the metadata tells it, else the body; ``None`` where that cannot be read.

        The main process of a prefork worker reads no body, which may be of any size and anybody's. All that celery-s3
        writes since 2.0 has the metadata.
        """
        state = state_of(stored.metadata)
        if state is not None or prefork_parent():
            return state
        whole = self.whole(stored)
        if whole is None:
            raise ObjectMissing(operation="get", key=stored.key)
        return self.state_in(whole)

    # -- reading

    def read(self, key: str) -> Object | None:
        """The object in one request, large ones in part; ``None`` where there is none or it has expired."""
        found = self._read_stored(key)
        if found is None:
            return None
        end = expires_at(found, self.expires)
        return found if end is None or self.now() < end else None

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
            except PreconditionFailed as exc:
                # the rest outside of this handler, for the error still holds what was read of the old version
                bucket = exc.bucket
            again = self.read(found.key)
            if again is None:
                return None
            found = again
        why = f"its parts were refused {1 + LOST_RACES} times, each time as those of another version than its beginning"
        raise Conflict(why, "get", bucket, found.key)

    def _joined(self, found: Object) -> Whole:
        preamble = raw.preamble_of(found.body)
        # BytesIO hands out its bytes without a copy. Close it, lest a traceback that holds it keeps them alive.
        with io.BytesIO() as body:
            body.write(memoryview(found.body)[len(preamble) :])
            for start, read in ranges.behind(found, self.store, self.pool, PART_BYTES, at_once=AT_ONCE):
                body.seek(start - len(preamble))
                body.write(read)
            return Whole(found, body.getvalue(), preamble)

    def expires_at(self, found: Object) -> float | None:
        """When an object expires, in seconds since the epoch; ``None``: never."""
        return expires_at(found, self.expires)

    def _expired_for_sure(self, found: Object) -> bool:
        """Whether it has, whatever this machine's clock says: then a SUCCESS may be replaced."""
        end = expires_at(found, self.expires)
        if end is None or self.now() < end:
            return False
        if self.now() >= end + DRIFT:
            return True
        left = remaining()
        seconds = CLOCK_ANSWERS_IN if left is None else min(CLOCK_ANSWERS_IN, left)
        try:
            with retried_until(time.monotonic() + seconds):
                return self.server_now() >= end
        except StoreError:  # nothing must be lost because nobody tells the time: this machine's clock has to do
            return True

    # -- deleting

    def delete(self, key: str) -> None:
        """Delete an object, in one request."""
        self._versions.pop(key, None)
        self.store.delete(key)


def _always_refused(key: str, precondition: Precondition, bucket: str) -> Conflict:
    if precondition is CREATE:
        # SeaweedFS takes the directory of longer keys for an object.
        why = "a create is refused, yet there is no such object: does another id begin with this one and a slash?"
    else:
        why = f"{LOST_RACES} other writers came first"
    return Conflict(why, "put", bucket, key)
