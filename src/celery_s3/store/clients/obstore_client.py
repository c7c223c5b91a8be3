"""The store on obstore: the data plane wherever it may run, at a tenth of botocore's cost.

A request takes 0.2 ms of CPU. obstore does not survive a fork and blocks green threads; keys with empty segments
and exact listings are beyond it: ``routing`` knows when to use botocore instead.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from operator import methodcaller
from typing import TYPE_CHECKING, TypeVar

from obstore.exceptions import GenericError, UnauthenticatedError

from celery_s3.errors import BadRequest, ObjectMissing, StoreError
from celery_s3.processes import without_sigterm
from celery_s3.settings import Settings
from celery_s3.store.api import Create, Entry, Match, Object, Precondition, Store, batches

from .obstore_errors import FAILURES, Failure, is_panic
from .obstore_options import Use, credential_provider, new_store
from .translate import Request, check_headers, cut, object_tags

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult, PutMode
    from obstore.store import S3Credential, S3Store

__all__ = ["ObstoreClient"]

T = TypeVar("T")

#: Bytes above which a body may take longer to send than ``read_timeout``, which obstore counts from the start.
_BIG = 1024 * 1024
#: No segment may be empty or dots, no character a control or half of one.
_UNADDRESSABLE = re.compile(r"^/|//|/$|^$|(?:^|/)\.{1,2}(?:/|$)|[\x00-\x1f\x7f\ud800-\udfff]")


class ObstoreClient:
    """A :class:`~celery_s3.store.api.Store`; its connections are made at the first request and shared by all threads.

    A key that begins or ends with ``/``, or has a segment that is empty, ``.`` or ``..``, is a
    :class:`~celery_s3.errors.BadRequest`: obstore would make another key of it, or none.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._attributes = {"Storage-Class": settings.storage_class} if settings.storage_class else {}
        self._stores: dict[Use, S3Store] = {}
        self._credentials: Callable[[], S3Credential] | None = None
        self._worked = False
        self._lister: Store | None = None
        self._lock = threading.Lock()

    def put(
        self,
        key: str,
        body: bytes,
        *,
        precondition: Precondition = None,
        metadata: Mapping[str, str] | None = None,
        content_type: str = "",
    ) -> str:
        request = Request("put", key, isinstance(precondition, Match))
        self._check(request, check_headers(metadata or {}, content_type))
        attributes = {**self._attributes, **(metadata or {})}
        if content_type:
            attributes["Content-Type"] = content_type

        def write(store: S3Store) -> str:
            mode, tags = _mode(precondition), object_tags(self._settings, metadata or {}) or None
            answer = store.put(key, body, attributes=attributes, tags=tags, mode=mode, use_multipart=False)
            return answer["e_tag"] or ""

        return self._call(request, write, "patient" if len(body) > _BIG else "quick")

    def get(self, key: str, *, start: int = 0, length: int | None = None, if_match: str | None = None) -> Object:
        request = Request("get", key)
        self._check(request)
        whole: GetOptions = {"if_match": if_match} if if_match else {}
        if not start and length is None:
            return self._call(request, lambda store: _object(key, store.get(key, options=whole)))
        asked: GetOptions = {**whole, "range": {"offset": start} if length is None else (start, start + length)}

        def read(store: S3Store) -> Object:
            try:
                return _object(key, store.get(key, options=asked))
            except GenericError as exc:
                failure = Failure.of(exc)
                # an empty object has no first byte to begin a range with
                if not failure.range_ignored and (start or failure.status != 416):
                    raise
            return cut(_object(key, store.get(key, options=whole)), start, length)

        return self._call(request, read)

    def delete(self, key: str) -> None:
        request = Request("delete", key)
        self._check(request)
        with suppress(ObjectMissing):
            self._call(request, lambda store: store.delete(key))

    def delete_many(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._check(Request("delete_many", key))
        for batch in batches(keys):
            self._call(Request("delete_many"), methodcaller("delete", batch), "bulk")

    def delete_unchanged(self, versions: Mapping[str, str]) -> list[str]:
        """Delete by botocore: obstore knows no condition for it."""
        return self._botocore().delete_unchanged(versions)

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[Entry]:
        """The entries under a prefix, by botocore: obstore lists whole segments only, and ``a//b`` as ``a/b``."""
        return self._botocore().list(prefix, start_after=start_after)

    def _botocore(self) -> Store:
        if self._lister is None:
            from .boto3_client import Boto3Client

            self._lister = Boto3Client(self._settings)
        return self._lister

    def close(self) -> None:
        with self._lock:
            self._stores = {}
            lister, self._lister = self._lister, None
        if lister is not None:
            lister.close()

    def _check(self, request: Request, refused: str = "") -> None:
        if _UNADDRESSABLE.search(request.key):
            refused = "obstore cannot address this key"
        if refused:
            raise request.error(BadRequest, self._settings, refused)

    def _call(self, request: Request, action: Callable[[S3Store], T], use: Use = "quick") -> T:
        try:
            # a thread may be started at any call, as to look up a host's name
            with without_sigterm():
                answer = action(self._stores.get(use) or self._open(use))
        except FAILURES as exc:
            error = self._translated(exc, request)
        except BaseException as exc:
            if not is_panic(exc):
                raise
            error = self._translated(exc, request)
        else:
            self._worked = True
            return answer
        try:
            # outside of the handler: the original, which may hold a secret, does not become the context
            raise error
        finally:
            # no circle of error, traceback and frame on the path that polls for results
            del error

    def _translated(self, exc: BaseException, request: Request) -> StoreError:
        failure = getattr(self._credentials, "failure", None)
        if failure is not None and isinstance(exc, UnauthenticatedError) and "External AWS cred" in str(exc):
            from .boto3_errors import translated

            return translated(failure, request, self._settings)
        return Failure.of(exc).error(request, self._settings, worked=self._worked)

    def _open(self, use: Use) -> S3Store:
        with self._lock:
            if self._credentials is None:
                self._credentials = credential_provider(self._settings)
            if use not in self._stores:
                self._stores[use] = new_store(self._settings, self._credentials, use)
            return self._stores[use]


def _mode(precondition: Precondition) -> PutMode:
    if isinstance(precondition, Create):
        return "create"
    return {"e_tag": precondition.etag} if precondition else "overwrite"


def _object(key: str, answer: GetResult) -> Object:
    meta, attributes = answer.meta, answer.attributes
    # names of user metadata come in lower case, those of HTTP headers as Content-Type
    metadata = {str(name): value for name, value in attributes.items() if name == name.lower()}
    body, content_type = answer.bytes().to_bytes(), attributes.get("Content-Type", "")
    return Object(key, body, meta["size"], meta["e_tag"] or "", meta["last_modified"], metadata, content_type)
