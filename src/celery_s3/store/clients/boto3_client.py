"""The store on botocore: for prefork parents, forked children, green threads, odd keys and listings.

Importing botocore takes 0.2 s and 20 MB: import this module only where it is needed.
"""

from __future__ import annotations

import threading
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime
from hashlib import md5
from operator import methodcaller
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlencode

from botocore.config import Config
from botocore.handlers import add_expect_header

from celery_s3.errors import BadRequest, Conflict, Interrupted, ObjectMissing, PreconditionFailed, UploadMissing
from celery_s3.settings import Settings
from celery_s3.store.api import Bucket
from celery_s3.store.requests import (
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
    Object,
    Page,
    Precondition,
    Put,
    PutPart,
    Request,
)

from .boto3_errors import call, from_error
from .session import client_factory
from .stuck import break_connection
from .timeouts import by_size, long
from .translate import Operation, check_headers, checked, cut, error_of, path_style, quoted, unsatisfied

__all__ = ["Boto3Client", "connect", "storage_parameters"]

A = TypeVar("A")
T = TypeVar("T")
#: Connections that are kept open at most; each is opened when it is needed. urllib3 warns of each one beyond that, and
#: closes it after one request: there may be as many callers at once as there are green threads.
_CONNECTIONS = 1000
#: Bytes a second that a body has time for at first: no more than what an uplink leaves to one of eight parts.
_RATE = 128 * 1024
#: Seconds in which S3 puts together an upload of many parts; it may send blanks meanwhile.
_COMPLETING = 600.0
#: Bytes of what concerns 1,000 objects.
_OF_A_PAGE = 512 * 1024
_EPOCH = datetime.fromtimestamp(0, UTC)


class Boto3Client(Bucket):
    """Answers every request; one botocore client, made at the first request, for all threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._common = _common_parameters(settings)
        self._storage = storage_parameters(settings)
        self._client: Any = None
        self._lock = threading.Lock()

    def send(self, request: Request[A]) -> A:
        """Make the request by botocore; the client connects at the first one."""
        answer: A = self._HOW[type(request)](self, request)
        return answer

    def seconds(self, request: Request[Any]) -> tuple[float, bool]:
        """What a request may take in all, and whether it ends by itself: botocore's time-outs are those of a socket."""
        settings, size = self._settings, len(request.body)
        match request:
            case CompleteUpload():
                return max(_COMPLETING, long(settings)), False
            case Get(length=None):
                return long(settings), False
            case Get(length=int(length)):
                size = length
            case ListPage() | DeleteMany() | DeleteUnchanged():
                size = _OF_A_PAGE
        return by_size(settings, size, _RATE), False

    def cut(self, thread: int) -> None:
        """Break the connection that a thread waits for: who sends a byte a second would hold it for hours."""
        break_connection(thread)

    def _put(self, put: Put) -> str:
        parameters = {**self._stored_as(put), **_condition(put.precondition)}
        action = methodcaller("put_object", **self._common, Key=put.key, Body=put.body, **parameters)
        return quoted(self._required(put, "ETag", action))

    def _stored_as(self, request: Put | CreateUpload) -> dict[str, Any]:
        """How an object is stored, as parameters of its PUT or its upload."""
        if refused := check_headers(request.metadata, request.content_type):
            raise error_of(BadRequest, request, self._settings, refused)
        parameters = {**self._storage, "Metadata": dict(request.metadata)}
        if request.content_type:
            parameters["ContentType"] = request.content_type
        if request.tags:
            parameters["Tagging"] = urlencode({**self._settings.tags, **request.tags})
        return parameters

    def _required(self, request: Request[str], name: str, action: Callable[[Any], Mapping[str, Any]]) -> str:
        """One value that the answer must have."""
        answer = self._call(request, action)
        if not answer.get(name):
            raise error_of(Interrupted, request, self._settings, f"the answer has no {name}")
        return str(answer[name])

    def _create_upload(self, begun: CreateUpload) -> str:
        parameters = {**self._common, "Key": begun.key, **self._stored_as(begun)}
        return self._required(begun, "UploadId", methodcaller("create_multipart_upload", **parameters))

    def _put_part(self, part: PutPart) -> str:
        parameters = {**self._of_upload(part), "PartNumber": part.number, "Body": part.body}
        # as the server gave it; a proxy that has marked it as weak has not told the server
        return self._required(part, "ETag", methodcaller("upload_part", **parameters)).removeprefix("W/")

    def _complete_upload(self, complete: CompleteUpload) -> str:
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(complete.etags, 1)]
        parameters = {**self._of_upload(complete), **_condition(complete.precondition)}
        action = methodcaller("complete_multipart_upload", MultipartUpload={"Parts": parts}, **parameters)
        answer = self._call(complete, action)
        if not answer.get("ETag") and not answer.get("Key"):
            raise error_of(Interrupted, complete, self._settings, "the answer has no ETag")
        return quoted(answer.get("ETag", ""))

    def _abort_upload(self, abort: AbortUpload) -> None:
        with suppress(UploadMissing):
            self._call(abort, methodcaller("abort_multipart_upload", **self._of_upload(abort)))

    def _of_upload(self, request: PutPart | CompleteUpload | AbortUpload) -> dict[str, Any]:
        return {**self._common, "Key": request.key, "UploadId": request.upload_id}

    def _get(self, get: Get) -> Object:
        return checked(self._found(get), get, self._settings)

    def _found(self, get: Get) -> Object:
        condition = {"IfMatch": get.if_match} if get.if_match else {}
        if not get.start and get.length is None:
            return self._read(get, condition)
        stop = "" if get.length is None else get.start + get.length - 1
        try:
            found = self._read(get, {**condition, "Range": f"bytes={get.start}-{stop}"})
        except BadRequest as exc:
            if not unsatisfied(get, exc):
                raise
        else:
            return cut(found, get.start, get.length)
        return self._read(get, condition)

    def _read(self, get: Get, parameters: Mapping[str, str]) -> Object:
        def read(s3: Any) -> Object:
            answer = s3.get_object(**self._common, Key=get.key, **parameters)
            with closing(answer["Body"]) as stream:
                return _object(get.key, answer, stream.read())

        return self._call(get, read)

    def _delete(self, delete: Delete) -> None:
        condition = {"IfMatch": delete.if_match} if delete.if_match else {}
        with suppress(ObjectMissing):
            self._call(delete, methodcaller("delete_object", **self._common, Key=delete.key, **condition))

    def _delete_many(self, delete: DeleteMany) -> None:
        for entry in self._delete_objects(delete, [{"Key": key} for key in delete.keys]):
            raise from_error(entry, Operation(delete.operation, entry.get("Key", "")), self._settings)

    def _delete_unchanged(self, delete: DeleteUnchanged) -> Sequence[str]:
        kept = []
        for entry in self._delete_objects(
            delete, [{"Key": key, "ETag": etag} for key, etag in delete.versions.items()]
        ):
            error = from_error(entry, Operation("delete", entry.get("Key", "")), self._settings)
            if isinstance(error, PreconditionFailed | Conflict):
                kept.append(str(entry["Key"]))
            elif not isinstance(error, ObjectMissing):
                raise error
        return kept

    def _delete_objects(
        self, request: DeleteMany | DeleteUnchanged, objects: Sequence[Mapping[str, str]]
    ) -> Sequence[Mapping[str, Any]]:
        """What could not be deleted, as S3 answers it."""
        parameters = {**self._common, "Delete": {"Objects": objects, "Quiet": True}}
        answer = self._call(request, methodcaller("delete_objects", **parameters))
        return answer.get("Errors", ())  # type: ignore[no-any-return]

    def _list(self, listing: ListPage) -> Page:
        parameters = {**self._common, "Prefix": listing.key, "StartAfter": listing.start_after}
        if listing.token:
            parameters["ContinuationToken"] = listing.token
        page = self._call(listing, methodcaller("list_objects_v2", **parameters))
        token = page.get("NextContinuationToken", "") if page.get("IsTruncated") else ""
        if token and token == listing.token:
            raise error_of(BadRequest, listing, self._settings, "the listing goes round in circles")
        try:
            return Page([_entry(found) for found in page.get("Contents", ())], token)
        except KeyError as exc:
            why = f"the answer is not S3's, for an entry has no {exc.args[0]}: is `endpoint_url` right?"
        raise error_of(BadRequest, listing, self._settings, why, 200)

    _HOW: ClassVar[Mapping[type[Request[Any]], Callable[[Boto3Client, Any], Any]]] = {
        Put: _put,
        Get: _get,
        Delete: _delete,
        DeleteMany: _delete_many,
        DeleteUnchanged: _delete_unchanged,
        ListPage: _list,
        CreateUpload: _create_upload,
        PutPart: _put_part,
        CompleteUpload: _complete_upload,
        AbortUpload: _abort_upload,
    }

    def close(self) -> None:
        """Close the connections; the next request makes a new client."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _call(self, request: Request[Any], action: Callable[[Any], T]) -> T:
        return call(lambda: action(self._client or self._connect()), request, self._settings)

    def _connect(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = connect(self._settings)
            return self._client


def connect(settings: Settings, **config: Any) -> Any:
    """A botocore client for S3 as the settings describe it; ``config`` is put over its configuration."""
    client = client_factory(settings)(
        "s3",
        region_name=settings.region,
        endpoint_url=settings.endpoint_url,
        # None, not True: True would overrule a bundle that the AWS configuration names
        verify=None if settings.verify is True else settings.verify,
        config=Config(**(_config(settings) | config)),
    )
    events = client.meta.events
    # waiting for "100 Continue" costs a round trip, a second where the server knows nothing of it
    events.unregister("before-call.s3", add_expect_header)
    events.register_last("before-parameter-build.s3", _stay_in_region)
    events.register("before-call.s3.DeleteObjects", _add_md5)
    return client


def _config(settings: Settings) -> dict[str, Any]:
    return {
        # retries are the business of celery_s3.store.retrying
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        "connect_timeout": settings.connect_timeout,
        "read_timeout": settings.read_timeout,
        "max_pool_connections": _CONNECTIONS,
        "tcp_keepalive": True,
        # the settings have read the AWS environment already
        "ignore_configured_endpoint_urls": True,
        "s3": {"addressing_style": "path" if path_style(settings) else "virtual"},
        **_checksums(settings),
    }


def _checksums(settings: Settings) -> dict[str, Any]:
    """Servers other than AWS refuse the checksums that botocore adds since 1.36."""
    if settings.on_aws:
        return {}
    return {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}


def _common_parameters(settings: Settings) -> dict[str, Any]:
    given = {
        "Bucket": settings.bucket,
        "RequestPayer": "requester" if settings.request_payer else None,
        "ExpectedBucketOwner": settings.expected_bucket_owner,
    }
    return {name: value for name, value in given.items() if value}


def storage_parameters(settings: Settings) -> dict[str, Any]:
    """How every object is stored, as parameters of PutObject."""
    given = {
        "StorageClass": settings.storage_class,
        "ServerSideEncryption": settings.sse,
        "SSEKMSKeyId": settings.sse_kms_key_id,
        "BucketKeyEnabled": settings.bucket_key,
        "Tagging": urlencode(settings.tags) or None,
    }
    return {name: value for name, value in given.items() if value is not None}


def _condition(precondition: Precondition) -> dict[str, str]:
    if isinstance(precondition, Create):
        return {"IfNoneMatch": "*"}
    return {"IfMatch": precondition.etag} if precondition else {}


def _object(key: str, answer: Mapping[str, Any], body: bytes) -> Object:
    # Content-Range: bytes 0-65535/1048576
    size = answer.get("ContentRange", "").rpartition("/")[2] or answer.get("ContentLength", len(body))
    metadata = {name.lower(): value for name, value in answer["Metadata"].items()}
    etag, modified = quoted(answer.get("ETag", "")), answer.get("LastModified", _EPOCH)
    return Object(key, body, int(size), etag, modified, metadata, answer.get("ContentType", ""))


def _entry(found: Mapping[str, Any]) -> Entry:
    return Entry(
        found["Key"],
        found["Size"],
        # some servers tell milliseconds here and whole seconds with a GET: the same object must have one time
        found["LastModified"].replace(microsecond=0),
        quoted(found.get("ETag", "")),
        found.get("StorageClass", ""),
    )


def _stay_in_region(context: dict[str, Any], **_: Any) -> None:
    """Let botocore believe that it has followed S3's redirect to another region already, so that it raises.

    A wrong region is a setting to correct: followed, the redirect would cost one request more each time.
    """
    context.setdefault("s3_redirect", {})["redirected"] = True


def _add_md5(params: dict[str, Any], **_: Any) -> None:
    """botocore replaced Content-MD5 by CRC32, which servers older than that do not accept for DeleteObjects."""
    digest = md5(params["body"], usedforsecurity=False).digest()
    params["headers"]["Content-MD5"] = b64encode(digest).decode()
