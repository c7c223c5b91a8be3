"""The store on obstore: the data plane wherever it may run, at a tenth of botocore's cost.

A request takes 0.2 ms of CPU. obstore does not survive a fork and blocks green threads; keys with empty segments,
exact listings, conditional deletes and uploads in parts are beyond it: ``routing`` sends those to botocore.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from obstore.exceptions import GenericError, UnauthenticatedError

from celery_s3.errors import BadRequest, ObjectMissing, StoreError
from celery_s3.processes import without_sigterm
from celery_s3.settings import Settings
from celery_s3.store.api import Store
from celery_s3.store.requests import Create, Delete, DeleteMany, Get, Match, Object, Put, Request

from .obstore_errors import Failure, is_failure
from .obstore_options import Use, credential_provider, new_store
from .timeouts import SMALL, brief, by_size, long
from .translate import (
    ADDRESSABLE,
    Operation,
    Subject,
    answered,
    check_headers,
    checked,
    cut,
    error_of,
    quoted,
    unsatisfied,
)

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult, PutMode
    from obstore.store import S3Credential, S3Store

__all__ = ["ObstoreClient"]

#: Bytes above which a body may take longer to send than ``read_timeout``, which obstore counts from the start.
_BIG = 1024 * 1024
#: Bytes a second that a large body has time for at first. Only its end shows that nobody takes it.
_RATE = 1024 * 1024


class ObstoreClient(Store):
    """Answers PUT, GET and deletes; its connections are made at the first request and shared by all threads.

    A key that begins or ends with ``/``, or has a segment that is empty, ``.`` or ``..``, is a
    :class:`~celery_s3.errors.BadRequest`: obstore would make another key of it, or none.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._attributes = {"Storage-Class": settings.storage_class} if settings.storage_class else {}
        self._stores: dict[Use, S3Store] = {}
        self._credentials: Callable[[], S3Credential] | None = None
        self._worked = False
        self._lock = threading.Lock()
        self._brief = brief(settings)

    def send(self, request: Request[Any]) -> Any:
        """Make one request and return its answer; what obstore raises comes out as a :class:`StoreError`."""
        self._check(request)
        # Its runtime starts with the first store, and a thread at any call, as to look up a host's name.
        act = partial(without_sigterm, self._act, request)
        try:
            answer = answered(act, is_failure, lambda exc: self._translated(exc, request))
        except ObjectMissing:
            if isinstance(request, Delete):
                return None
            raise
        self._worked = True
        return answer

    def _check(self, request: Request[Any]) -> None:
        for key in request.keys if isinstance(request, DeleteMany) else (request.key,):
            if not ADDRESSABLE.fullmatch(key):
                asked = Operation(request.operation, key)
                raise error_of(BadRequest, asked, self._settings, "obstore cannot address this key")
        if isinstance(request, Put) and (refused := check_headers(request.metadata, request.content_type)):
            raise error_of(BadRequest, request, self._settings, refused)

    def _act(self, request: Request[Any]) -> Any:
        use = _use(request)
        return self._HOW[type(request)](self, self._stores.get(use) or self._open(use), request)

    def seconds(self, request: Request[Any]) -> tuple[float, bool]:
        """What a request may take in all, and whether it ends by itself."""
        match _use(request):
            case "sending":
                return min(by_size(self._settings, len(request.body), _RATE), long(self._settings)), False
            case "reading":
                return long(self._settings), True
        return self._brief, True

    def cut(self, thread: int) -> None:
        """Nothing to do: every request ends by itself, if late."""

    def _put(self, store: S3Store, put: Put) -> str:
        attributes = {**self._attributes, **put.metadata}
        if put.content_type:
            attributes["Content-Type"] = put.content_type
        tags = {**self._settings.tags, **put.tags} or None
        expected = put.precondition
        mode: PutMode = "create" if isinstance(expected, Create) else "overwrite"
        if isinstance(expected, Match):
            mode = {"e_tag": expected.etag}
        answer = store.put(put.key, put.body, attributes=attributes, tags=tags, mode=mode, use_multipart=False)
        return quoted(answer["e_tag"] or "")

    def _get(self, store: S3Store, get: Get) -> Object:
        return checked(self._read(store, get), get, self._settings)

    def _read(self, store: S3Store, get: Get) -> Object:
        key, start, length = get.key, get.start, get.length
        whole: GetOptions = {"if_match": get.if_match} if get.if_match else {}
        if not start and length is None:
            return _object(key, store.get(key, options=whole))
        asked: GetOptions = {**whole, "range": {"offset": start} if length is None else (start, start + length)}
        try:
            return _object(key, store.get(key, options=asked))
        except GenericError as exc:
            failure = Failure.of(exc)
            if not (failure.range_ignored or unsatisfied(get, self._translated(exc, get))):
                raise
        return cut(_object(key, store.get(key, options=whole)), start, length)

    def _delete(self, store: S3Store, delete: Delete) -> None:
        store.delete(delete.key)

    def _delete_many(self, store: S3Store, delete: DeleteMany) -> None:
        store.delete(list(delete.keys))

    _HOW: ClassVar[Mapping[type[Request[Any]], Callable[[ObstoreClient, S3Store, Any], Any]]] = {
        Put: _put,
        Get: _get,
        Delete: _delete,
        DeleteMany: _delete_many,
    }

    def close(self) -> None:
        """Let go of the stores, whose connections end with them; the next request makes new ones."""
        with self._lock:
            self._stores = {}

    def _translated(self, exc: BaseException, asked: Subject) -> StoreError:
        failure = getattr(self._credentials, "failure", None)
        if failure is not None and isinstance(exc, UnauthenticatedError) and "External AWS cred" in str(exc):
            from .boto3_errors import translated

            return translated(failure, asked, self._settings)
        return Failure.of(exc).error(asked, self._settings, worked=self._worked)

    def _open(self, use: Use) -> S3Store:
        with self._lock:
            if self._credentials is None:
                self._credentials = credential_provider(self._settings)
            if use not in self._stores:
                self._stores[use] = new_store(self._settings, self._credentials, use)
            return self._stores[use]


def _use(request: Request[Any]) -> Use:
    """What kind of store a request needs."""
    if isinstance(request, Get):
        return "quick" if request.length is not None and request.length <= SMALL else "reading"
    if isinstance(request, DeleteMany):
        return "bulk"
    return "sending" if len(request.body) > _BIG else "quick"


def _object(key: str, answer: GetResult) -> Object:
    meta, attributes = answer.meta, answer.attributes
    # names of user metadata come in lower case, those of HTTP headers as Content-Type
    metadata = {str(name): value for name, value in attributes.items() if name == name.lower()}
    body, content_type = answer.bytes().to_bytes(), attributes.get("Content-Type", "")
    etag = quoted(meta["e_tag"] or "")
    return Object(key, body, meta["size"], etag, meta["last_modified"], metadata, content_type)
