"""What can be asked of a bucket, and what it answers: each request is a value that passes through all wrappers.

A new verb is a class here and what the clients (and :class:`~celery_s3.store.memory.MemoryStore`) do with it; whoever
tries again, counts, traces or routes needs to know no more of it than :class:`Request` says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar, Generic, TypeVar

from celery_s3.errors import Conflict, StoreError

__all__ = [
    "CREATE",
    "AbortUpload",
    "CompleteUpload",
    "Create",
    "CreateUpload",
    "Delete",
    "DeleteMany",
    "DeleteUnchanged",
    "Entry",
    "Get",
    "ListPage",
    "Match",
    "Object",
    "Page",
    "Precondition",
    "Put",
    "PutPart",
    "Request",
]

A = TypeVar("A")


# -- preconditions


@dataclass(frozen=True, slots=True)
class Create:
    """``If-None-Match: *``: write only where there is no object yet."""


@dataclass(frozen=True, slots=True)
class Match:
    """``If-Match``: write only over the version with this etag (quoted, as :class:`Object` has it)."""

    etag: str


#: The one value of :class:`Create`.
CREATE = Create()

#: ``None`` overwrites whatever stands there.
Precondition = Create | Match | None


# -- answers


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
    """One key of a listing; ``size``, ``etag`` and ``modified`` as an :class:`Object` has them.

    ``storage_class`` is empty where the server does not tell it.
    """

    key: str
    size: int
    modified: datetime
    etag: str = ""
    storage_class: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """One answer to a LIST: up to 1,000 entries in the server's order.

    ``token`` is what the request for the next page says, empty where this is the last one.
    """

    entries: Sequence[Entry]
    token: str = ""


# -- requests


class Request(Generic[A]):
    """One HTTP request, whose answer is an ``A``.

    Attributes:
        verb: as which it is billed and counted, one of :data:`celery_s3.store.counting.VERBS`.
        operation: what our errors call it.
        action: what S3 calls it.
        final: errors after which the same request cannot succeed, though others may be tried again after them.
        key: the object's; of a listing the prefix; empty where it concerns many.
        body: what is sent.
    """

    __slots__ = ()
    verb: ClassVar[str]
    operation: ClassVar[str]
    action: ClassVar[str]
    final: ClassVar[tuple[type[StoreError], ...]] = ()
    key: str
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Put(Request[str]):
    """Write an object; the answer is its etag.

    ``tags`` are the object's own, beside those that the settings give to all.
    """

    verb, operation, action = "PUT", "put", "PutObject"
    key: str
    body: bytes = field(repr=False)
    precondition: Precondition = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    content_type: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Get(Request[Object]):
    """Read ``length`` bytes from ``start`` (``None``: to the end), of the version ``if_match`` where one is named."""

    verb, operation, action = "GET", "get", "GetObject"
    key: str
    start: int = 0
    length: int | None = None
    if_match: str | None = None


@dataclass(frozen=True, slots=True)
class Delete(Request[None]):
    """Delete an object; one that does not exist counts as deleted.

    With ``if_match`` another version than that stays, and is a :class:`~celery_s3.errors.PreconditionFailed`.
    """

    verb, operation, action = "DELETE", "delete", "DeleteObject"
    key: str
    if_match: str | None = None


@dataclass(frozen=True, slots=True)
class DeleteMany(Request[None]):
    """Delete up to 1,000 objects."""

    verb, operation, action = "DELETE_OBJECTS", "delete_many", "DeleteObjects"
    key: str = field(init=False, default="")
    keys: Sequence[str]


@dataclass(frozen=True, slots=True)
class DeleteUnchanged(Request[list[str]]):
    """Delete up to 1,000 objects that still have these etags (key → etag); the answer names the others."""

    verb, operation, action = "DELETE_OBJECTS", "delete_many", "DeleteObjects"
    key: str = field(init=False, default="")
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ListPage(Request[Page]):
    """The entries whose keys begin with ``key`` and come after ``start_after``; ``token``: one of a later page."""

    verb, operation, action = "LIST", "list", "ListObjectsV2"
    key: str
    start_after: str = ""
    token: str = ""


# S3 bills the beginning of an upload, each part and the completion as a PUT; an abort, like a DELETE, is free.


@dataclass(frozen=True, slots=True)
class CreateUpload(Request[str]):
    """Begin an upload; the answer is its id."""

    verb, operation, action = "PUT", "create_upload", "CreateMultipartUpload"
    key: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    content_type: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PutPart(Request[str]):
    """Write part ``number``; the answer is its etag."""

    verb, operation, action = "PUT", "put_part", "UploadPart"
    key: str
    upload_id: str
    number: int
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class CompleteUpload(Request[str]):
    """Make one object of the parts with these etags, in order; the answer is its etag.

    After a conflict the parts are lost: the upload has to be made anew.
    """

    verb, operation, action = "PUT", "complete_upload", "CompleteMultipartUpload"
    final = (Conflict,)
    key: str
    upload_id: str
    etags: Sequence[str]
    precondition: Precondition = None


@dataclass(frozen=True, slots=True)
class AbortUpload(Request[None]):
    """Delete the parts; an upload that is completed or aborted counts as aborted."""

    verb, operation, action = "DELETE", "abort_upload", "AbortMultipartUpload"
    key: str
    upload_id: str
