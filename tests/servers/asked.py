"""Conditional requests, made by hand with boto3 alone: what the probe and the thorough doctor say is held against it.

Each question has the name of a capability of ``celery s3 doctor --thorough``, and is answered with yes or no.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier
from typing import Any
from uuid import uuid4

import boto3
from botocore.client import Config
from botocore.exceptions import ClientError

from celery_s3.dev.process import S3Server

__all__ = ["QUESTIONS", "Bench"]

#: Not an answer to the question: the keys are wrong, or the server has trouble.
_TROUBLE = (401, 403, 503)
_NO_SUCH_VERSION = '"00000000000000000000000000000000"'


class Bench:
    """A server, a client that tries nothing again, and keys that nobody else uses."""

    def __init__(self, server: S3Server) -> None:
        self.bucket = server.bucket
        self.prefix = f"asked-{uuid4().hex[:12]}/"
        self.s3 = _client(server)

    def where(self, name: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self.prefix + name}

    def put(self, name: str, body: bytes = b"one", **more: Any) -> str:
        return self.s3.put_object(**self.where(name), Body=body, **more)["ETag"]

    def body(self, name: str, **more: Any) -> bytes:
        return self.s3.get_object(**self.where(name), **more)["Body"].read()

    def refused(self, action: Callable[[], object], *statuses: int) -> bool:
        """Whether the answer is one of those; a server without the header succeeds, or answers anything else."""
        try:
            action()
        except ClientError as exc:
            status = exc.response["ResponseMetadata"]["HTTPStatusCode"]
            if status in _TROUBLE:
                raise
            return status in statuses
        return False

    def succeeds(self, action: Callable[[], object]) -> bool:
        return not self.refused(action, *range(300, 600))


@cache  # a client takes a third of a second
def _client(server: S3Server) -> Any:
    return boto3.session.Session().client(
        "s3",
        endpoint_url=server.endpoint_url,
        region_name=server.region,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        config=Config(
            s3={"addressing_style": "path"},
            retries={"max_attempts": 0},
            read_timeout=20,
            request_checksum_calculation="when_required",
        ),
    )


def create(bench: Bench) -> bool:
    bench.put("k")
    refused = bench.refused(lambda: bench.put("k", b"two", IfNoneMatch="*"), 412)
    return refused and bench.body("k") == b"one"


def atomic_create(bench: Bench) -> bool:
    """25 times two creates at one moment: one is written, the other refused."""

    def race(number: int) -> bool:
        barrier = Barrier(2)

        def one(body: bytes) -> bool:
            barrier.wait()
            return bench.succeeds(lambda: bench.put(f"race-{number}", body, IfNoneMatch="*"))

        bodies = (b"one", b"two")
        won = [body for body, written in zip(bodies, threads.map(one, bodies), strict=True) if written]
        return len(won) == 1 and bench.body(f"race-{number}") == won[0]

    with ThreadPoolExecutor(2) as threads:
        return all(map(race, range(25)))


def replace(bench: Bench) -> bool:
    """Of another version refused, of the right one written: with its etag as it was told, in quotes."""
    etag = bench.put("k")
    refused = bench.refused(lambda: bench.put("k", b"two", IfMatch=_NO_SUCH_VERSION), 412)
    return refused and bench.succeeds(lambda: bench.put("k", b"three", IfMatch=etag)) and bench.body("k") == b"three"


def replace_bare(bench: Bench) -> bool:
    """The same with the etag out of its quotes, which some servers want."""
    etag = bench.put("k").strip('"')
    refused = bench.refused(lambda: bench.put("k", b"two", IfMatch=_NO_SUCH_VERSION.strip('"')), 412)
    return refused and bench.succeeds(lambda: bench.put("k", b"three", IfMatch=etag)) and bench.body("k") == b"three"


def read_of_a_version(bench: Bench) -> bool:
    bench.put("k")
    return bench.refused(lambda: bench.body("k", IfMatch=_NO_SUCH_VERSION), 412)


def delete_of_a_version(bench: Bench) -> bool:
    etag = bench.put("k")
    refused = bench.refused(lambda: bench.s3.delete_object(**bench.where("k"), IfMatch=_NO_SUCH_VERSION), 412)
    if not refused or bench.body("k") != b"one":
        return False
    deleted = bench.succeeds(lambda: bench.s3.delete_object(**bench.where("k"), IfMatch=etag))
    return deleted and bench.refused(lambda: bench.body("k"), 404)


def batch_delete_of_versions(bench: Bench) -> bool:
    keys = [{"Key": f"{bench.prefix}gone", "ETag": bench.put("gone")}]
    bench.put("stays")
    keys += [{"Key": f"{bench.prefix}stays", "ETag": _NO_SUCH_VERSION}]
    if not bench.succeeds(lambda: bench.s3.delete_objects(Bucket=bench.bucket, Delete={"Objects": keys})):
        return False
    return bench.refused(lambda: bench.body("gone"), 404) and bench.succeeds(lambda: bench.body("stays"))


def conditional_completion(bench: Bench) -> bool:
    bench.put("k")

    def refused(**condition: str) -> bool:
        upload = bench.where("k") | {"UploadId": bench.s3.create_multipart_upload(**bench.where("k"))["UploadId"]}
        part = {"PartNumber": 1, "ETag": bench.s3.upload_part(**upload, PartNumber=1, Body=b"late")["ETag"]}
        complete = bench.s3.complete_multipart_upload
        if bench.refused(lambda: complete(**upload, MultipartUpload={"Parts": [part]}, **condition), 412):
            bench.s3.abort_multipart_upload(**upload)
            return True
        return False

    return refused(IfNoneMatch="*") and refused(IfMatch=_NO_SUCH_VERSION) and bench.body("k") == b"one"


QUESTIONS: dict[str, Callable[[Bench], bool]] = {
    "create": create,
    "atomic create": atomic_create,
    "replace": replace,
    "read of a version": read_of_a_version,
    "delete of a version": delete_of_a_version,
    "batch delete of versions": batch_delete_of_versions,
    "conditional completion": conditional_completion,
}
