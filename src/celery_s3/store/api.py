"""What a store is: one way for every request, and the verbs that callers use.

Every client and every wrapper is a :class:`Store`, and does one thing with a :class:`~.requests.Request`: ``send`` it.
The wrappers stand in this order, outermost first::

    Sealing       with `seal_keys`: encrypts what goes, decrypts what comes
    Noticing      sees what is stored, and answers what a notice has told
    Retrying      sends again what is worth it
    Tracing       with `opentelemetry`: a span for each request
    Counting      one line for each verb
    Routing       the client that is right for this process, this key and this moment
    Bounded       no longer than the request may take
    ObstoreClient | Boto3Client

so that what is tried again has the same bytes, and each attempt is traced, counted and routed. All of them below
``Noticing`` are a :class:`Bucket`, and beside it stands what writes large objects::

    SealingWriter (with `seal_keys`) → MultipartWriter → Retrying

All methods raise :class:`celery_s3.errors.StoreError` and nothing else. ``docs/decisions/requests.md`` says why
requests are values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Protocol, TypeVar

from celery_s3.errors import BadRequest, ObjectMissing, PreconditionFailed

from .requests import (
    CREATE,
    AbortUpload,
    CompleteUpload,
    Create,
    CreateUpload,
    Delete,
    DeleteMany,
    DeleteUnchanged,
    Entry,
    Get,
    ListPage,
    Match,
    Object,
    Precondition,
    Put,
    PutPart,
    Request,
)

__all__ = [
    "CREATE",
    "PAGE",
    "Bucket",
    "Chunk",
    "Create",
    "Entry",
    "Match",
    "Object",
    "Precondition",
    "Store",
    "Writer",
    "batches",
]

A = TypeVar("A")
T = TypeVar("T")

#: A piece of a body, which nobody changes any more: neither who gets it, nor who has given it.
Chunk = bytes | memoryview

#: S3's limits: the entries of one LIST answer, the keys of one DeleteObjects request.
PAGE = 1000


class Store(ABC):
    """An S3 bucket."""

    @abstractmethod
    def send(self, request: Request[A]) -> A:
        """Make one request and return its answer."""

    @abstractmethod
    def close(self) -> None:
        """Let go of connections; the store may be used again."""

    def put(
        self,
        key: str,
        body: bytes,
        *,
        precondition: Precondition = None,
        metadata: Mapping[str, str] | None = None,
        content_type: str = "",
        tags: Mapping[str, str] | None = None,
    ) -> str:
        """Write an object in one request and return its etag.

        Arguments:
            tags: the object's own, beside those that the settings give to all.

        Raises:
            PreconditionFailed: the precondition does not hold; also where :class:`Match` meets no object.
            Conflict: 409, the write may be tried again.
        """
        return self.send(Put(key, body, precondition, metadata or {}, content_type, tags or {}))

    def get(self, key: str, *, start: int = 0, length: int | None = None, if_match: str | None = None) -> Object:
        """Read ``length`` bytes from ``start`` (``None``: to the end) in one request.

        A range that reaches past the end answers what there is; an empty object answers an empty body.

        Raises:
            ObjectMissing: there is no such object.
            PreconditionFailed: ``if_match`` was given and the object has another etag by now.
        """
        return self.send(Get(key, start, length, if_match))

    def delete(self, key: str) -> None:
        """Delete an object; one that does not exist counts as deleted."""
        self.send(Delete(key))

    def delete_many(self, keys: Sequence[str]) -> None:
        """Delete any number of objects, 1,000 a request (DeleteObjects); one by one where the server refuses that."""
        for batch in batches(keys):
            try:
                self.send(DeleteMany(batch))
            except BadRequest:
                # Not every server has DeleteObjects, or answers it in a form that is understood. Where something else
                # was wrong, the first one says so.
                for key in batch:
                    self.delete(key)

    def delete_unchanged(self, versions: Mapping[str, str]) -> list[str]:
        """Delete objects that still have these etags (key → etag), 1,000 a request.

        Where the server refuses that, one by one; where it refuses a condition there too, each is looked at right
        before it is deleted. A server that ignores the etags deletes whatever stands there.

        Returns:
            The keys where another version stands; one that is gone already counts as deleted.
        """
        kept: list[str] = []
        for batch in batches(versions.items()):
            try:
                changed: list[str] = self.send(DeleteUnchanged(dict(batch)))
                kept += changed
            except BadRequest:
                kept += [key for key, etag in batch if not self._deleted_unchanged(key, etag)]
        return kept

    def _deleted_unchanged(self, key: str, etag: str) -> bool:
        try:
            self.send(Delete(key, etag))
        except PreconditionFailed:
            return False
        except BadRequest:
            try:
                if self.get(key, length=1).etag != etag:
                    return False
            except ObjectMissing:
                return True
            self.delete(key)
        return True

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[Entry]:
        """The entries under a prefix, in the server's order, 1,000 a request, made when its first one is asked for."""
        token = ""
        while True:
            page = self.send(ListPage(prefix, start_after, token))
            yield from page.entries
            token = page.token
            if not token:
                return


class Bucket(Store):
    """A bucket whose objects can be written in parts too: one request to begin, for each part, to end."""

    def create_upload(
        self,
        key: str,
        *,
        metadata: Mapping[str, str] | None = None,
        content_type: str = "",
        tags: Mapping[str, str] | None = None,
    ) -> str:
        """Begin an upload and return its id; until it is completed there is no object, and its parts are billed.

        One whose answer is lost stays without parts until a lifecycle rule or a sweep aborts it.
        """
        return self.send(CreateUpload(key, metadata or {}, content_type, tags or {}))

    def put_part(self, key: str, upload_id: str, number: int, body: bytes) -> str:
        """Write part ``number`` (1 to 10,000; all but the last one 5 MiB or more) and return its etag.

        Raises:
            UploadMissing: the upload was completed or aborted.
        """
        return self.send(PutPart(key, upload_id, number, body))

    def complete_upload(
        self, key: str, upload_id: str, etags: Sequence[str], *, precondition: Precondition = None
    ) -> str:
        """Make one object of the parts (their etags in order) and return its etag.

        Raises:
            PreconditionFailed: the precondition does not hold, or an earlier try landed and its answer was lost; the
                parts are still there.
            Conflict: 409, the upload has to be made anew.
            UploadMissing: the upload was completed or aborted.
        """
        return self.send(CompleteUpload(key, upload_id, etags, precondition))

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Delete the parts; an upload that is completed or aborted counts as aborted."""
        self.send(AbortUpload(key, upload_id))


class Writer(Protocol):
    """Writes objects of any size without holding them."""

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
        """Write an object from chunks of any length, as they come, and return its etag.

        It takes one request if all fits into one part, else one per part and two more. Nothing of an upload that
        fails stays. A refusal may be that of an earlier try whose answer was lost: whoever cares looks what stands.

        Arguments:
            size: bytes in all, where they are known.
            tags: the object's own, beside those that the settings give to all.

        Raises:
            PreconditionFailed: the precondition does not hold, or another upload came first.
            Whatever ``chunks`` raises.
        """
        ...


def batches(items: Iterable[T], size: int = PAGE) -> Iterator[list[T]]:
    """Cut keys, or what has one, into the lists that one DeleteObjects request takes."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
