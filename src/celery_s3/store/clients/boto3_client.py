"""The store on botocore: for prefork parents, forked children, green threads, odd keys and listings.

Importing botocore takes 0.2 s and 20 MB: import this module only where it is needed.
"""

from __future__ import annotations

import threading
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime
from hashlib import md5
from operator import methodcaller
from typing import Any, TypeVar
from urllib.parse import urlencode

from botocore.config import Config
from botocore.handlers import add_expect_header

from celery_s3.errors import BadRequest, Conflict, Interrupted, ObjectMissing, PreconditionFailed, UploadMissing
from celery_s3.settings import Settings
from celery_s3.store.api import Create, Entry, Match, Object, Precondition, batches

from .boto3_errors import FAILURES, from_error, translated
from .session import client_factory
from .translate import Request, check_headers, cut, object_tags, path_style

__all__ = ["Boto3Client", "connect", "storage_parameters"]

T = TypeVar("T")
#: What is kept open at most; more callers at once than that (green threads) would each cost a warning and a
#: new connection. None of them is opened before it is needed.
_CONNECTIONS = 1000
_EPOCH = datetime.fromtimestamp(0, UTC)


class Boto3Client:
    """A :class:`~celery_s3.store.api.Bucket`; one botocore client, made at the first request, for all threads.

    Arguments:
        connect_timeout, read_timeout: seconds, in place of those of the settings.
    """

    def __init__(
        self, settings: Settings, *, connect_timeout: float | None = None, read_timeout: float | None = None
    ) -> None:
        self._settings = settings
        self._connect_timeout = settings.connect_timeout if connect_timeout is None else connect_timeout
        self._read_timeout = settings.read_timeout if read_timeout is None else read_timeout
        self._common = _common_parameters(settings)
        self._storage = storage_parameters(settings)
        self._client: Any = None
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
        parameters = {**self._stored_as(request, metadata or {}, content_type), **_condition(precondition)}
        return self._written(request, methodcaller("put_object", **self._common, Key=key, Body=body, **parameters))

    def _stored_as(self, request: Request, metadata: Mapping[str, str], content_type: str) -> dict[str, Any]:
        """How an object is stored, as parameters of its PUT or its upload."""
        if refused := check_headers(metadata, content_type):
            raise request.error(BadRequest, self._settings, refused)
        parameters = {**self._storage, "Metadata": dict(metadata)}
        if content_type:
            parameters["ContentType"] = content_type
        if self._settings.expiry_tags:
            parameters["Tagging"] = urlencode(object_tags(self._settings, metadata))
        return parameters

    def _written(self, request: Request, action: Callable[[Any], Mapping[str, Any]]) -> str:
        """The etag that a write is answered with."""
        answer = self._call(request, action)
        if not answer.get("ETag"):
            raise request.error(Interrupted, self._settings, "the answer has no ETag")
        return str(answer["ETag"])

    def create_upload(self, key: str, *, metadata: Mapping[str, str] | None = None, content_type: str = "") -> str:
        request = Request("create_upload", key)
        parameters = {**self._common, **self._stored_as(request, metadata or {}, content_type)}
        answer = self._call(request, methodcaller("create_multipart_upload", Key=key, **parameters))
        if not answer.get("UploadId"):
            raise request.error(Interrupted, self._settings, "the answer has no UploadId")
        return str(answer["UploadId"])

    def put_part(self, key: str, upload_id: str, number: int, body: bytes) -> str:
        parameters = {**self._common, "Key": key, "UploadId": upload_id, "PartNumber": number, "Body": body}
        return self._written(Request("put_part", key), methodcaller("upload_part", **parameters))

    def complete_upload(
        self, key: str, upload_id: str, etags: Sequence[str], *, precondition: Precondition = None
    ) -> str:
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, 1)]
        parameters = {**self._common, "Key": key, "UploadId": upload_id, **_condition(precondition)}
        action = methodcaller("complete_multipart_upload", MultipartUpload={"Parts": parts}, **parameters)
        return self._written(Request("complete_upload", key, isinstance(precondition, Match)), action)

    def abort_upload(self, key: str, upload_id: str) -> None:
        parameters = {**self._common, "Key": key, "UploadId": upload_id}
        with suppress(UploadMissing):
            self._call(Request("abort_upload", key), methodcaller("abort_multipart_upload", **parameters))

    def get(self, key: str, *, start: int = 0, length: int | None = None, if_match: str | None = None) -> Object:
        condition = {"IfMatch": if_match} if if_match else {}
        if not start and length is None:
            return self._get(key, condition)
        stop = "" if length is None else start + length - 1
        try:
            return cut(self._get(key, {**condition, "Range": f"bytes={start}-{stop}"}), start, length)
        except BadRequest as exc:
            # an empty object has no first byte to begin a range with
            if start or exc.status != 416:
                raise
        return self._get(key, condition)

    def _get(self, key: str, parameters: Mapping[str, str]) -> Object:
        def read(s3: Any) -> Object:
            answer = s3.get_object(**self._common, Key=key, **parameters)
            with closing(answer["Body"]) as stream:
                return _object(key, answer, stream.read())

        return self._call(Request("get", key), read)

    def delete(self, key: str) -> None:
        with suppress(ObjectMissing):
            self._call(Request("delete", key), lambda s3: s3.delete_object(**self._common, Key=key))

    def delete_many(self, keys: Sequence[str]) -> None:
        for batch in batches(keys):
            for entry in self._delete_objects([{"Key": key} for key in batch]):
                raise from_error(entry, Request("delete_many", entry.get("Key", "")), self._settings)

    def delete_unchanged(self, versions: Mapping[str, str]) -> list[str]:
        kept = []
        for batch in batches(versions.items()):
            objects = [{"Key": key, "ETag": etag} for key, etag in batch]
            for entry in self._delete_objects(objects):
                error = from_error(entry, Request("delete", entry.get("Key", "")), self._settings)
                if isinstance(error, PreconditionFailed | Conflict):
                    kept.append(str(entry["Key"]))
                elif not isinstance(error, ObjectMissing):
                    raise error
        return kept

    def _delete_objects(self, objects: Sequence[Mapping[str, str]]) -> Sequence[Mapping[str, Any]]:
        """What could not be deleted, as S3 answers it."""
        parameters = {**self._common, "Delete": {"Objects": objects, "Quiet": True}}
        answer = self._call(Request("delete_many"), methodcaller("delete_objects", **parameters))
        return answer.get("Errors", ())  # type: ignore[no-any-return]

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[Entry]:
        request = Request("list", prefix)
        parameters = {**self._common, "Prefix": prefix, "StartAfter": start_after}
        pages = self._call(request, lambda s3: iter(s3.get_paginator("list_objects_v2").paginate(**parameters)))
        while (page := self._call(request, lambda _: next(pages, None))) is not None:
            for found in page.get("Contents", ()):
                about = found["LastModified"], found.get("ETag", ""), found.get("StorageClass", "")
                yield Entry(found["Key"], found["Size"], *about)

    def close(self) -> None:
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _call(self, request: Request, action: Callable[[Any], T]) -> T:
        try:
            return action(self._client or self._connect())
        except FAILURES as exc:
            error = translated(exc, request, self._settings)
        # outside of the handler: the original, which may hold a secret, does not become the context
        raise error

    def _connect(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = self._new_client()
            return self._client

    def _new_client(self) -> Any:
        return connect(self._settings, connect_timeout=self._connect_timeout, read_timeout=self._read_timeout)


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
    size = answer.get("ContentRange", "").rpartition("/")[2] or answer["ContentLength"]
    metadata = {name.lower(): value for name, value in answer["Metadata"].items()}
    etag, modified = answer.get("ETag", ""), answer.get("LastModified", _EPOCH)
    return Object(key, body, int(size), etag, modified, metadata, answer.get("ContentType", ""))


def _stay_in_region(context: dict[str, Any], **_: Any) -> None:
    """A wrong region is a setting to correct, not a redirect to follow at the cost of a request each time."""
    context.setdefault("s3_redirect", {})["redirected"] = True


def _add_md5(params: dict[str, Any], **_: Any) -> None:
    """botocore replaced Content-MD5 by CRC32, which servers older than that do not accept for DeleteObjects."""
    digest = md5(params["body"], usedforsecurity=False).digest()
    params["headers"]["Content-MD5"] = b64encode(digest).decode()
