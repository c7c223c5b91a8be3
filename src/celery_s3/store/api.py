"""What a store can do: five verbs, preconditions as values, versions as answers.

Every client and every wrapper is a :class:`Store`. The wrappers stand in this order, outermost first::

    Sealing (with `seal_keys`) → Retrying → Counting → Routing → ObstoreClient | Boto3Client

so that what is tried again has the same bytes, each attempt is counted and each is routed to the client that is
right at that moment.
All methods raise :class:`celery_s3.errors.StoreError` and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, TypeVar

__all__ = ["CREATE", "Create", "Entry", "Match", "Object", "Precondition", "Store"]


@dataclass(frozen=True, slots=True)
class Create:
    """``If-None-Match: *``: write only where there is no object yet."""


@dataclass(frozen=True, slots=True)
class Match:
    """``If-Match``: write only over the version with this etag (quoted, as the server gave it)."""

    etag: str


T = TypeVar("T")

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
