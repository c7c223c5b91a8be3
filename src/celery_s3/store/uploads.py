"""Objects of any size, in parts that go up in parallel; never more than a few parts are in memory.

::

    all fits into one part   PUT                            1 request
    else                     create, parts …, complete      1 for each part and 2 more

The precondition holds at the completion: until then nobody sees anything. Whatever ends an upload before that aborts
it; a process that dies leaves its parts to the bucket's lifecycle rule, or to the sweep.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from celery_s3.errors import Ambiguous, ObjectMissing, PreconditionFailed, StoreError, UploadMissing
from celery_s3.metadata import UPLOAD
from celery_s3.printable import get_logger

from .api import Bucket, Chunk, Create, Match, Precondition
from .deadline import retried_until, retried_while
from .parallel import Pool
from .pieces import cut, measured
from .requests import Put

__all__ = ["PART", "MultipartWriter", "new_mark", "part_bytes"]

logger = get_logger(__name__)

_MIB = 1024 * 1024
#: The bytes of a part, and of what goes up in one request.
PART = 8 * _MIB
#: The bytes of a part where nobody knows how many there will be.
UNKNOWN_PART = 16 * _MIB
#: S3's limit on the parts of an object.
PARTS = 10_000
#: The parts under way at a time.
AT_ONCE = 8
#: Seconds that an abort waits for parts under way, and that it is tried for.
_PATIENCE, _ABORTING = 5.0, 5.0


class MultipartWriter:
    """A :class:`~celery_s3.store.api.Writer` over the requests of an upload.

    Arguments:
        look_before: look what stands there right before a completion (one GET): for servers that ignore its condition,
            or check it and complete in two steps. What is written in between may be lost, and nothing from before.
    """

    def __init__(self, bucket: Bucket, pool: Pool, *, look_before: bool = False) -> None:
        self._bucket = bucket
        self._pool = pool
        self._look_before = look_before

    def write(
        self,
        key: str,
        chunks: Iterable[Chunk],
        *,
        size: int | None = None,
        precondition: Precondition = None,
        metadata: Mapping[str, str] | None = None,
        content_type: str = "",
        tags: Mapping[str, str] | None = None,
    ) -> str:
        """Write an object; the parts of a large one have 8 MiB or more, eight of them under way at a time."""
        if size is not None:
            chunks = measured(key, chunks, size)
        bodies = map(_as_bytes, cut(chunks, part_bytes(size)))
        first = deque(islice(bodies, 2))
        if len(first) < 2:
            body = first.pop() if first else b""
            return self._bucket.send(Put(key, body, precondition, metadata or {}, content_type, tags or {}))
        marked = {UPLOAD: new_mark(), **(metadata or {})}
        upload_id = self._bucket.create_upload(key, metadata=marked, content_type=content_type, tags=tags)
        upload = _Upload(self._bucket, key, upload_id)
        try:
            etags = upload.send(self._pool, _numbered(key, first, bodies))
            if self._look_before and precondition is not None:
                upload.check(precondition)
            return upload.complete(etags, precondition, marked[UPLOAD])
        except BaseException:
            upload.abort()
            raise


def part_bytes(size: int | None) -> int:
    """The bytes of each part but the last one, for a body of ``size`` bytes."""
    if size is None:
        return UNKNOWN_PART
    least = -(-size // PARTS)
    return max(PART, -(-least // _MIB) * _MIB)


def new_mark() -> str:
    """A value of :data:`UPLOAD` that no other upload has."""
    return os.urandom(8).hex()


def _as_bytes(piece: Chunk) -> bytes:
    """The piece as the clients take it; one that is a whole ``bytes`` is not copied."""
    if isinstance(piece, bytes):
        return piece
    whole = piece.obj
    return whole if isinstance(whole, bytes) and len(whole) == len(piece) else bytes(piece)


@dataclass(slots=True)
class _Part:
    number: int
    body: bytes


def _numbered(key: str, first: deque[bytes], rest: Iterator[bytes]) -> Iterator[_Part]:
    number = 0
    while first:  # popleft: nobody here keeps a part (8 MiB) alive while the next one is read
        number += 1
        yield _Part(number, first.popleft())
    for body in rest:
        number += 1
        if number > PARTS:
            raise ValueError(
                f"{key}: more than {PARTS:,} parts of {UNKNOWN_PART // _MIB} MiB: tell the `size`, for larger parts"
            )
        yield _Part(number, body)
        del body


class _Upload:
    """One upload, from its first part to its completion or its abort."""

    def __init__(self, bucket: Bucket, key: str, upload_id: str) -> None:
        self._bucket = bucket
        self._key = key
        self._id = upload_id
        self._change = threading.Condition()
        self._under_way: set[int] = set()
        self._stopped = False

    def send(self, pool: Pool, parts: Iterator[_Part]) -> list[str]:
        """Write the parts; their etags in order."""
        etags: dict[int, str] = {}
        for part, outcome in pool.stream(self._put, parts, at_once=AT_ONCE):
            if isinstance(outcome, BaseException):
                raise outcome
            etags[part.number] = outcome
        return [etags[number] for number in sorted(etags)]

    def _put(self, part: _Part) -> str:
        try:
            with self._change:
                if self._stopped:  # the upload was given up while this part waited for a thread
                    return ""
                self._under_way.add(part.number)
            with retried_while(lambda: not self._stopped):
                etag = self._bucket.put_part(self._key, self._id, part.number, part.body)
            part.body = b""  # free it now: the part lives until somebody takes its outcome
            return etag
        finally:
            with self._change:
                self._under_way.discard(part.number)
                self._change.notify_all()

    def check(self, precondition: Create | Match) -> None:
        """Raise what a completion that keeps its condition would.

        Raises:
            PreconditionFailed: something else stands there.
        """
        try:
            stored = self._bucket.get(self._key, length=1).etag
        except ObjectMissing as exc:
            stored, bucket = "", exc.bucket
        else:
            bucket = ""
        if stored != (precondition.etag if isinstance(precondition, Match) else ""):
            raise PreconditionFailed("", "complete_upload", bucket, self._key)

    def complete(self, etags: list[str], precondition: Precondition, mark: str) -> str:
        try:
            completed = self._bucket.complete_upload(self._key, self._id, etags, precondition=precondition)
        except (PreconditionFailed, UploadMissing):
            # perhaps an earlier try has landed, and its answer was lost
            if etag := self._etag_if_ours(mark):
                return etag
            raise
        except Ambiguous:
            with suppress(StoreError):  # the error of the completion is the one to raise
                if etag := self._etag_if_ours(mark):
                    return etag
            raise
        # Ceph answers a completion without the ETag. Empty where the object was replaced by now: no version is ours.
        return completed or self._etag_if_ours(mark) or ""

    def _etag_if_ours(self, mark: str) -> str | None:
        try:
            stored = self._bucket.get(self._key, length=1)
        except ObjectMissing:
            return None
        return stored.etag if stored.metadata.get(UPLOAD) == mark else None

    def abort(self) -> None:
        """Delete the parts, once none is under way: one that landed after that would stay."""
        with self._change:
            self._stopped = True
            self._change.wait_for(lambda: not self._under_way, _PATIENCE)
        try:
            with retried_until(time.monotonic() + _ABORTING):
                self._bucket.abort_upload(self._key, self._id)
        except StoreError as exc:
            logger.warning(
                "The parts of an upload that failed stay until a lifecycle rule or `celery s3 sweep` aborts it: %s",
                exc,
                extra={"s3_key": self._key},
            )
