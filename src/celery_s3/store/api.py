"""What a store can do: six verbs, four more for uploads, preconditions as values, versions as answers.

Every client and every wrapper is a :class:`Store`. The wrappers stand in this order, outermost first::

    Sealing (with `seal_keys`) → Retrying → Counting → Routing → ObstoreClient | Boto3Client

so that what is tried again has the same bytes, each attempt is counted and each is routed to the client that is
right at that moment. All of them below ``Sealing`` are a :class:`Bucket`, and beside it stands what writes large
objects::

    SealingWriter (with `seal_keys`) → Uploads → Retrying

All methods raise :class:`celery_s3.errors.StoreError` and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, TypeVar

__all__ = [
    "CREATE",
    "Bucket",
    "Chunk",
    "Create",
    "Entry",
    "Match",
    "Multipart",
    "Object",
    "Precondition",
    "Store",
    "Writer",
]


@dataclass(frozen=True, slots=True)
class Create:
    """``If-None-Match: *``: write only where there is no object yet."""


@dataclass(frozen=True, slots=True)
class Match:
    """``If-Match``: write only over the version with this etag (quoted, as the server gave it)."""

    etag: str


T = TypeVar("T")

#: A piece of a body, which nobody changes any more: neither who gets it, nor who has given it.
Chunk = bytes | memoryview

#: The one value of :class:`Create`.
CREATE = Create()

#: ``None`` overwrites whatever stands there.
Precondition = Create | Match | None


@dataclass(frozen=True, slots=True)
class Object:
    """One answer to a GET: an object, or its first bytes.

    ``size`` is that of the whole object, in bytes; ``etag`` is quoted; ``modified`` is the server's
    Last-Modified (UTC, whole seconds); ``metadata`` is the user metadata with lower-case names and
    without ``x-amz-meta-``.
    """

    key: str
    body: bytes
    size: int
    etag: str
    modified: datetime
    metadata: Mapping[str, str] = field(default_factory=dict)
    content_type: str = ""

    @property
    def complete(self) -> bool:
        """Whether ``body`` is the whole object."""
        return len(self.body) == self.size


@dataclass(frozen=True, slots=True)
class Entry:
    """One key of a listing; ``size`` in bytes, ``modified`` in UTC, ``storage_class`` where the server tells it."""

    key: str
    size: int
    modified: datetime
    etag: str = ""
    storage_class: str = ""


class Store(Protocol):
    """An S3 bucket."""

    def put(
        self,
        key: str,
        body: bytes,
        *,
        precondition: Precondition = None,
        metadata: Mapping[str, str] | None = None,
        content_type: str = "",
    ) -> str:
        """Write an object in one request and return its etag.

        Raises:
            PreconditionFailed: the precondition does not hold; also where :class:`Match` meets no object.
            Conflict: 409, the write may be tried again.
        """
        ...

    def get(self, key: str, *, start: int = 0, length: int | None = None, if_match: str | None = None) -> Object:
        """Read ``length`` bytes from ``start`` (``None``: to the end) in one request.

        A range that reaches past the end answers what there is; an empty object answers an empty body.

        Raises:
            ObjectMissing: there is no such object.
            PreconditionFailed: ``if_match`` was given and the object has another etag by now.
        """
        ...

    def delete(self, key: str) -> None:
        """Delete an object; one that does not exist counts as deleted."""
        ...

    def delete_many(self, keys: Sequence[str]) -> None:
        """Delete any number of objects, 1,000 a request (DeleteObjects)."""
        ...

    def delete_unchanged(self, versions: Mapping[str, str]) -> list[str]:
        """Delete objects that still have these etags (key → etag), 1,000 a request.

        A server that ignores the etags deletes whatever stands there.

        Returns:
            The keys where another version stands; one that is gone already counts as deleted.
        """
        ...

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[Entry]:
        """The entries under a prefix, in the server's order, 1,000 a request."""
        ...

    def close(self) -> None:
        """Let go of connections; the store may be used again."""
        ...


class Multipart(Protocol):
    """Writing an object in parts: a request each to begin, for a part, to complete, to abort."""

    def create_upload(self, key: str, *, metadata: Mapping[str, str] | None = None, content_type: str = "") -> str:
        """Begin an upload and return its id; until it is completed there is no object, and its parts are billed."""
        ...

    def put_part(self, key: str, upload_id: str, number: int, body: bytes) -> str:
        """Write part ``number`` (1 to 10,000; all but the last one 5 MiB or more) and return its etag.

        Raises:
            UploadMissing: the upload was completed or aborted.
        """
        ...

    def complete_upload(
        self, key: str, upload_id: str, etags: Sequence[str], *, precondition: Precondition = None
    ) -> str:
        """Make one object of the parts (their etags in order) and return its etag.

        Raises:
            PreconditionFailed: the precondition does not hold; the parts are still there.
            Conflict: 409, the upload has to be made anew.
            UploadMissing: the upload was completed or aborted.
        """
        ...

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Delete the parts; an upload that is completed or aborted counts as aborted."""
        ...


class Bucket(Store, Multipart, Protocol):
    """A bucket whose objects can be written in parts too."""


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
    ) -> str:
        """Write an object from chunks of any length, as they come, and return its etag.

        It takes one request if all fits into one part, else one per part and two more. Nothing of an upload that
        fails stays. A refusal may be that of an earlier try whose answer was lost: whoever cares looks what stands.

        Arguments:
            size: bytes in all, where they are known.

        Raises:
            PreconditionFailed: the precondition does not hold, or another upload came first.
            Whatever ``chunks`` raises.
        """
        ...


def batches(items: Iterable[T], size: int = 1000) -> Iterator[list[T]]:
    """Cut keys, or what has one, into the lists that one DeleteObjects request takes."""
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
