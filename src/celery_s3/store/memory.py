"""A bucket in memory, with S3's semantics: for unit tests and for checking protocols step by step."""

from __future__ import annotations

import hashlib
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, ClassVar, TypeVar

from celery_s3.errors import BadRequest, ObjectMissing, PreconditionFailed, StoreError, UploadMissing

from .api import PAGE, Bucket
from .requests import (
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
    Page,
    Precondition,
    Put,
    PutPart,
    Request,
)

__all__ = ["Fault", "MemoryStore"]

A = TypeVar("A")

_BUCKET = "memory"


@dataclass
class Fault:
    """An error for requests to come.

    Attributes:
        error: what is raised.
        verb: PUT, GET, LIST, DELETE, DELETE_OBJECTS; of an upload CREATE, PART, COMPLETE, ABORT; empty for any.
        key: the key, or the prefix of a LIST; empty for any.
        times: how many requests it hits; -1 for all.
        after: how many matching requests pass before.
        landed: the request is carried out before the error is raised.
    """

    error: StoreError
    verb: str = ""
    key: str = ""
    times: int = 1
    after: int = 0
    landed: bool = False

    def due(self, verb: str, key: str) -> bool:
        """Whether it hits this request, which is then counted."""
        if not self.times or self.verb not in ("", verb) or self.key not in ("", key):
            return False
        if self.after:
            self.after -= 1
            return False
        self.times -= 1
        return True


@dataclass
class _Upload:
    key: str
    metadata: Mapping[str, str]
    content_type: str
    parts: dict[int, bytes] = field(default_factory=dict)


class MemoryStore(Bucket):
    """A :class:`~celery_s3.store.api.Bucket` that any number of threads may share.

    Arguments:
        clock: the server's time, in seconds since the epoch.
        before: called with verb and key before each request, outside of the lock: there a test lets other threads run.
        conditional: False ignores preconditions on writes, as some servers do.

    Attributes:
        requests: verb and key of every request made, in order.
        faults: the errors to inject; the first that matches is raised.
        uploads: those that are neither completed nor aborted, by id.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.time,
        before: Callable[[str, str], None] | None = None,
        conditional: bool = True,
    ) -> None:
        self._clock = clock
        self._before = before
        self._conditional = conditional
        self._objects: dict[str, Object] = {}
        self._lock = threading.RLock()
        self.requests: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.uploads: dict[str, _Upload] = {}

    def send(self, request: Request[A]) -> A:
        """Note the request, raise the fault that is due for it, else carry it out under one lock."""
        verb = _VERBS.get(type(request), request.verb)
        key = next(iter(_keys(request)))
        if self._before is not None:
            self._before(verb, key)
        with self._lock:
            self.requests.append((verb, key))
            fault = next((fault for fault in self.faults if fault.due(verb, key)), None)
            if fault is not None and not fault.landed:
                raise fault.error
            answer: A = self._HOW[type(request)](self, request)
            if fault is not None:
                raise fault.error
            return answer

    def _put(self, put: Put) -> str:
        self._check(put.key, put.precondition)
        return self._keep(put.key, bytes(put.body), _etag(put.body), put.metadata, put.content_type)

    def _keep(self, key: str, body: bytes, etag: str, metadata: Mapping[str, str], content_type: str) -> str:
        # HTTP trims what a header begins and ends with
        names = {name.lower(): value.strip(" \t") for name, value in metadata.items()}
        now = datetime.fromtimestamp(int(self._clock()), UTC)
        self._objects[key] = Object(key, body, len(body), etag, now, names, content_type)
        return etag

    def _create_upload(self, begun: CreateUpload) -> str:
        upload_id = uuid.uuid4().hex
        self.uploads[upload_id] = _Upload(begun.key, dict(begun.metadata), begun.content_type)
        return upload_id

    def _put_part(self, part: PutPart) -> str:
        self._upload(part).parts[part.number] = bytes(part.body)
        return _etag(part.body)

    def _complete_upload(self, complete: CompleteUpload) -> str:
        upload, etags = self._upload(complete), list(complete.etags)
        parts = [upload.parts.get(number, b"") for number in range(1, len(etags) + 1)]
        if etags != list(map(_etag, parts)):
            raise BadRequest("", "complete_upload", _BUCKET, complete.key, 400, "InvalidPart")
        self._check(complete.key, complete.precondition)
        del self.uploads[complete.upload_id]
        etag = f'{_etag("".join(etags).encode())[:-1]}-{len(etags)}"'
        return self._keep(complete.key, b"".join(parts), etag, upload.metadata, upload.content_type)

    def _abort_upload(self, aborted: AbortUpload) -> None:
        self.uploads.pop(aborted.upload_id, None)

    def _upload(self, request: PutPart | CompleteUpload) -> _Upload:
        upload = self.uploads.get(request.upload_id)
        if upload is None or upload.key != request.key:
            raise UploadMissing("", "upload", _BUCKET, request.key, 404, "NoSuchUpload")
        return upload

    def _get(self, get: Get) -> Object:
        found = self._objects.get(get.key)
        if found is None:
            raise ObjectMissing("", "get", _BUCKET, get.key, 404, "NoSuchKey")
        if get.if_match is not None and found.etag != get.if_match:
            raise PreconditionFailed("", "get", _BUCKET, get.key, 412, "PreconditionFailed")
        if get.start and get.start >= found.size:
            raise BadRequest("", "get", _BUCKET, get.key, 416, "InvalidRange")
        stop = None if get.length is None else get.start + get.length
        return replace(found, body=found.body[get.start : stop])

    def _delete(self, request: Delete | DeleteMany) -> None:
        if isinstance(request, Delete):
            self._check_etag(request)
        for key in _keys(request):
            self._objects.pop(key, None)

    def _check_etag(self, delete: Delete) -> None:
        if delete.if_match and self._conditional and self._changed(delete.key, delete.if_match):
            raise PreconditionFailed("", "delete", _BUCKET, delete.key, 412, "PreconditionFailed")

    def _delete_unchanged(self, delete: DeleteUnchanged) -> list[str]:
        changed = [key for key, etag in delete.versions.items() if self._conditional and self._changed(key, etag)]
        for key in delete.versions.keys() - changed:
            self._objects.pop(key, None)
        return changed

    def _changed(self, key: str, etag: str) -> bool:
        stored = self._objects.get(key)
        return stored is not None and stored.etag != etag

    def _list(self, listing: ListPage) -> Page:
        after = listing.token or listing.start_after
        keys = sorted(key for key in self._objects if key.startswith(listing.key) and key > after)
        found = [self._objects[key] for key in keys[:PAGE]]
        entries = [Entry(each.key, each.size, each.modified, each.etag) for each in found]
        return Page(entries, keys[PAGE - 1] if len(keys) > PAGE else "")

    def close(self) -> None:
        """Nothing to do: the objects stay."""

    def _check(self, key: str, precondition: Precondition) -> None:
        if not self._conditional:
            return
        stored = self._objects.get(key)
        if isinstance(precondition, Create):
            holds = stored is None
        elif isinstance(precondition, Match):
            holds = stored is not None and stored.etag == precondition.etag
        else:
            holds = True
        if not holds:
            raise PreconditionFailed("", "put", _BUCKET, key, 412, "PreconditionFailed")

    _HOW: ClassVar[Mapping[type[Request[Any]], Callable[[MemoryStore, Any], Any]]] = {
        Put: _put,
        Get: _get,
        Delete: _delete,
        DeleteMany: _delete,
        DeleteUnchanged: _delete_unchanged,
        ListPage: _list,
        CreateUpload: _create_upload,
        PutPart: _put_part,
        CompleteUpload: _complete_upload,
        AbortUpload: _abort_upload,
    }


#: What stands for a request in ``requests`` and in a :class:`Fault`, where that is not its verb.
_VERBS: Mapping[type[Request[Any]], str] = {
    CreateUpload: "CREATE",
    PutPart: "PART",
    CompleteUpload: "COMPLETE",
    AbortUpload: "ABORT",
}


def _keys(request: Request[Any]) -> Iterable[str]:
    if isinstance(request, DeleteMany):
        return request.keys
    return request.versions if isinstance(request, DeleteUnchanged) else (request.key,)


def _etag(body: bytes) -> str:
    return f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'
