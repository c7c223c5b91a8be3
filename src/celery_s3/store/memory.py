"""A bucket in memory, with S3's semantics: for unit tests and for checking protocols step by step."""

from __future__ import annotations

import hashlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

from celery_s3.errors import BadRequest, ObjectMissing, PreconditionFailed, StoreError, UploadMissing

from .api import Create, Entry, Match, Object, Precondition, batches

__all__ = ["Fault", "MemoryStore"]

_R = TypeVar("_R")

_BUCKET = "memory"
_PAGE = 1000


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


class MemoryStore:
    """A :class:`~celery_s3.store.api.Bucket` that any number of threads may share.

    Arguments:
        clock: the server's time, in seconds since the epoch.
        before: called with verb and key before each request, outside of any lock: where a test lets others run.
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

    def put(
        self,
        key: str,
        body: bytes,
        *,
        precondition: Precondition = None,
        metadata: Mapping[str, str] | None = None,
        content_type: str = "",
    ) -> str:
        etag = _etag(body)

        def store() -> str:
            self._check(key, precondition)
            return self._keep(key, bytes(body), etag, metadata or {}, content_type)

        return self._request("PUT", key, store)

    def _keep(self, key: str, body: bytes, etag: str, metadata: Mapping[str, str], content_type: str) -> str:
        names = {name.lower(): value for name, value in metadata.items()}
        now = datetime.fromtimestamp(int(self._clock()), UTC)
        self._objects[key] = Object(key, body, len(body), etag, now, names, content_type)
        return etag

    def create_upload(self, key: str, *, metadata: Mapping[str, str] | None = None, content_type: str = "") -> str:
        def begin() -> str:
            upload_id = uuid.uuid4().hex
            self.uploads[upload_id] = _Upload(key, dict(metadata or {}), content_type)
            return upload_id

        return self._request("CREATE", key, begin)

    def put_part(self, key: str, upload_id: str, number: int, body: bytes) -> str:
        def store() -> str:
            self._upload(key, upload_id).parts[number] = bytes(body)
            return _etag(body)

        return self._request("PART", key, store)

    def complete_upload(
        self, key: str, upload_id: str, etags: Sequence[str], *, precondition: Precondition = None
    ) -> str:
        def complete() -> str:
            upload = self._upload(key, upload_id)
            parts = [upload.parts.get(number, b"") for number in range(1, len(etags) + 1)]
            if list(etags) != list(map(_etag, parts)):
                raise BadRequest("", "complete_upload", _BUCKET, key, 400, "InvalidPart")
            self._check(key, precondition)
            del self.uploads[upload_id]
            etag = f'{_etag("".join(etags).encode())[:-1]}-{len(etags)}"'
            return self._keep(key, b"".join(parts), etag, upload.metadata, upload.content_type)

        return self._request("COMPLETE", key, complete)

    def abort_upload(self, key: str, upload_id: str) -> None:
        self._request("ABORT", key, lambda: self.uploads.pop(upload_id, None))

    def _upload(self, key: str, upload_id: str) -> _Upload:
        upload = self.uploads.get(upload_id)
        if upload is None or upload.key != key:
            raise UploadMissing("", "upload", _BUCKET, key, 404, "NoSuchUpload")
        return upload

    def get(self, key: str, *, start: int = 0, length: int | None = None, if_match: str | None = None) -> Object:
        def read() -> Object:
            found = self._objects.get(key)
            if found is None:
                raise ObjectMissing("", "get", _BUCKET, key, 404, "NoSuchKey")
            if if_match is not None and found.etag != if_match:
                raise PreconditionFailed("", "get", _BUCKET, key, 412, "PreconditionFailed")
            if start and start >= found.size:
                raise BadRequest("", "get", _BUCKET, key, 416, "InvalidRange")
            stop = None if length is None else start + length
            part = found.body[start:stop]
            return Object(key, part, found.size, found.etag, found.modified, found.metadata, found.content_type)

        return self._request("GET", key, read)

    def delete(self, key: str) -> None:
        self._request("DELETE", key, lambda: self._remove([key]))

    def delete_many(self, keys: Sequence[str]) -> None:
        for batch in batches(keys, _PAGE):
            self._request("DELETE_OBJECTS", batch[0], lambda batch=batch: self._remove(batch))  # type: ignore[misc]

    def delete_unchanged(self, versions: Mapping[str, str]) -> list[str]:
        kept: list[str] = []
        for batch in batches(versions, _PAGE):

            def remove(batch: Sequence[str] = batch) -> None:
                changed = [key for key in batch if self._conditional and self._changed(key, versions[key])]
                self._remove([key for key in batch if key not in changed])
                kept.extend(changed)

            self._request("DELETE_OBJECTS", batch[0], remove)
        return kept

    def _changed(self, key: str, etag: str) -> bool:
        stored = self._objects.get(key)
        return stored is not None and stored.etag != etag

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[Entry]:
        while True:
            page = self._request("LIST", prefix, lambda after=start_after: self._page(prefix, after))  # type: ignore[misc]
            yield from page
            if len(page) < _PAGE or not self._page(prefix, page[-1].key):
                return
            start_after = page[-1].key

    def close(self) -> None:
        pass

    def _request(self, verb: str, key: str, carry_out: Callable[[], _R]) -> _R:
        if self._before is not None:
            self._before(verb, key)
        with self._lock:
            self.requests.append((verb, key))
            fault = next((fault for fault in self.faults if fault.due(verb, key)), None)
            if fault is not None and not fault.landed:
                raise fault.error
            answer = carry_out()
            if fault is not None:
                raise fault.error
            return answer

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

    def _remove(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._objects.pop(key, None)

    def _page(self, prefix: str, start_after: str) -> Sequence[Entry]:
        keys = sorted(key for key in self._objects if key.startswith(prefix) and key > start_after)
        found = (self._objects[key] for key in keys[:_PAGE])
        return [Entry(each.key, each.size, each.modified, each.etag) for each in found]


def _etag(body: bytes) -> str:
    return f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'
