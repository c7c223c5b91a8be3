"""What an S3 server can do, asked by hand: boto3 alone, one or a few requests a question, nothing tried again.

Every question answers yes or no; an error that no question expects is raised. The questions are the rows of the table
in ``docs/servers.md``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from uuid import uuid4

import boto3
from botocore.client import Config
from botocore.exceptions import ClientError

from celery_s3.dev.process import S3Server

__all__ = ["QUESTIONS", "ask"]

#: Not an answer to the question: the keys are wrong, or the server has trouble.
_TROUBLE = (401, 403, 503)
_NO_SUCH_VERSION = '"00000000000000000000000000000000"'
PART = 5 * 1024 * 1024

Question = Callable[["Bench"], bool]
QUESTIONS: dict[str, tuple[str, Question]] = {}


class Bench:
    """A server, a client, and keys that nobody else uses."""

    def __init__(self, server: S3Server, checksums: str = "when_required") -> None:
        self.bucket, self.server = server.bucket, server
        self.prefix = f"asked-{uuid4().hex[:12]}/"
        self.s3 = _client(server, checksums)

    def put(self, name: str, body: bytes = b"one", **more: Any) -> str:
        return self.s3.put_object(Bucket=self.bucket, Key=self.prefix + name, Body=body, **more).get("ETag", "")

    def body(self, name: str, **more: Any) -> bytes:
        return self.s3.get_object(Bucket=self.bucket, Key=self.prefix + name, **more)["Body"].read()

    def refused(self, action: Callable[[], object], *statuses: int) -> bool:
        """Whether the answer is one of those; a server without the header succeeds, or answers anything else."""
        try:
            action()
        except ClientError as exc:
            status = exc.response["ResponseMetadata"]["HTTPStatusCode"]
            if status in statuses:
                return True
            if status in _TROUBLE:
                raise
        return False

    def upload(self, name: str, **completion: Any) -> str:
        """An object in two parts; the etag that the completion answers."""
        where = {"Bucket": self.bucket, "Key": self.prefix + name}
        upload = where | {"UploadId": self.s3.create_multipart_upload(**where)["UploadId"]}
        bodies = (b"1" * PART, b"2")
        parts = [
            {"PartNumber": n, "ETag": self.s3.upload_part(**upload, PartNumber=n, Body=body)["ETag"]}
            for n, body in enumerate(bodies, 1)
        ]
        try:
            done = self.s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts}, **completion)
            return done.get("ETag", "")
        except ClientError:
            self.s3.abort_multipart_upload(**upload)
            raise

    def clear(self) -> None:
        for page in self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix):
            for entry in page.get("Contents", ()):
                self.s3.delete_object(Bucket=self.bucket, Key=entry["Key"])

    @contextmanager
    def new_bucket(self) -> Iterator[str]:
        name = f"asked-{uuid4().hex[:12]}"
        assert self.server.answers("PUT", f"/{name}")
        try:
            yield name
        finally:
            self.server.answers("DELETE", f"/{name}")

    def understood(self, action: Callable[[], object]) -> bool:
        """Whether a request is answered with success: a server that does not know it has many answers, up to 409 and 500."""
        try:
            action()
        except ClientError as exc:
            if exc.response["ResponseMetadata"]["HTTPStatusCode"] in _TROUBLE:
                raise
            return False
        return True


@cache  # a client takes a third of a second
def _client(server: S3Server, checksums: str) -> Any:
    config = Config(
        s3={"addressing_style": "path"},
        retries={"max_attempts": 0},
        read_timeout=20,
        request_checksum_calculation=checksums,
        response_checksum_validation=checksums,
    )
    return boto3.session.Session().client(
        "s3",
        endpoint_url=server.endpoint_url,
        region_name=server.region,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        config=config,
    )


def question(title: str) -> Callable[[Question], Question]:
    def note(function: Question) -> Question:
        QUESTIONS[function.__name__] = (title, function)
        return function

    return note


def ask(name: str, server: S3Server) -> bool:
    """The server's answer to one question, in a folder of its own that is empty again afterwards."""
    bench = Bench(server)
    try:
        return QUESTIONS[name][1](bench)
    finally:
        bench.clear()


@question("PUT, `If-None-Match: *`: refused where an object stands")
def create(bench: Bench) -> bool:
    bench.put("k")
    refused = bench.refused(lambda: bench.put("k", b"two", IfNoneMatch="*"), 412)
    return refused and bench.body("k") == b"one"


@question("25 races of two creates: one winner each")
def create_race(bench: Bench) -> bool:
    def race(number: int) -> bool:
        barrier, won = threading.Barrier(2), []

        def one(body: bytes) -> None:
            barrier.wait()
            if not bench.refused(lambda: bench.put(f"race-{number}", body, IfNoneMatch="*"), 412, 409):
                won.append(body)

        threads = [threading.Thread(target=one, args=(body,)) for body in (b"one", b"two")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(won) == 1 and bench.body(f"race-{number}") == won[0]

    return all(race(number) for number in range(25))


@question("PUT, `If-Match`: another version refused")
def replace_refused(bench: Bench) -> bool:
    bench.put("k")
    refused = bench.refused(lambda: bench.put("k", b"two", IfMatch=_NO_SUCH_VERSION), 412)
    return refused and bench.body("k") == b"one"


@question("PUT, `If-Match`: the right version, in quotes, written")
def replace_quoted(bench: Bench) -> bool:
    etag = bench.put("k")
    try:
        return not bench.refused(lambda: bench.put("k", b"two", IfMatch=etag), 412) and bench.body("k") == b"two"
    except ClientError:
        return False


@question("PUT, `If-Match`: the right version, without quotes, written")
def replace_bare(bench: Bench) -> bool:
    etag = bench.put("k").strip('"')
    return not bench.refused(lambda: bench.put("k", b"two", IfMatch=etag), 412) and bench.body("k") == b"two"


@question("GET, `If-Match`: another version refused")
def get_refused(bench: Bench) -> bool:
    bench.put("k")
    return bench.refused(lambda: bench.body("k", IfMatch=_NO_SUCH_VERSION), 412)


@question("DELETE, `If-Match`: another version refused, the right one deleted")
def delete_matched(bench: Bench) -> bool:
    etag = bench.put("k")
    where = {"Bucket": bench.bucket, "Key": f"{bench.prefix}k"}
    refused = bench.refused(lambda: bench.s3.delete_object(**where, IfMatch=_NO_SUCH_VERSION), 412)
    if not refused or bench.body("k") != b"one":
        return False
    return bench.understood(lambda: bench.s3.delete_object(**where, IfMatch=etag)) and bench.refused(
        lambda: bench.body("k"), 404
    )


@question("DeleteObjects")
def delete_many(bench: Bench) -> bool:
    names = ("one", "two & <three>")
    for name in names:
        bench.put(name)
    keys = [{"Key": bench.prefix + name} for name in names]
    if not bench.understood(lambda: bench.s3.delete_objects(Bucket=bench.bucket, Delete={"Objects": keys})):
        return False
    return all(bench.refused(lambda name=name: bench.body(name), 404) for name in names)


@question("DeleteObjects with an etag each: another version stays")
def delete_many_matched(bench: Bench) -> bool:
    etags = {name: bench.put(name) for name in ("gone", "stays")}
    keys = [{"Key": f"{bench.prefix}gone", "ETag": etags["gone"]}]
    keys += [{"Key": f"{bench.prefix}stays", "ETag": _NO_SUCH_VERSION}]
    if not bench.understood(lambda: bench.s3.delete_objects(Bucket=bench.bucket, Delete={"Objects": keys})):
        return False
    gone = bench.refused(lambda: bench.body("gone"), 404)
    return gone and not bench.refused(lambda: bench.body("stays"), 404)


@question("Completion of an upload, `If-None-Match: *`: refused where an object stands")
def completion_refused(bench: Bench) -> bool:
    bench.put("k")
    return bench.refused(lambda: bench.upload("k", IfNoneMatch="*"), 412) and bench.body("k") == b"one"


@question("Completion of an upload answers the etag that a GET shows")
def completion_etag(bench: Bench) -> bool:
    etag = bench.upload("k")
    found = bench.s3.head_object(Bucket=bench.bucket, Key=f"{bench.prefix}k")
    return bool(etag.strip('"')) and found["ETag"] == etag and found["ContentLength"] == PART + 1


@question("GET of the first 64 KiB of a smaller object")
def range_beyond(bench: Bench) -> bool:
    bench.put("k", b"small")
    return not bench.refused(lambda: bench.body("k", Range="bytes=0-65535"), 416) and (
        bench.body("k", Range="bytes=0-65535") == b"small"
    )


@question("Errors come with a message")
def error_message(bench: Bench) -> bool:
    _, body = bench.server.request("GET", f"/{bench.bucket}/{bench.prefix}nothing")
    return b"<Message>" in body and b"<Message></Message>" not in body


@question("LIST shows an object's time as GET does, in whole seconds")
def listed_time(bench: Bench) -> bool:
    bench.put("k")
    listed = bench.s3.list_objects_v2(Bucket=bench.bucket, Prefix=bench.prefix)["Contents"][0]["LastModified"]
    return listed == bench.s3.head_object(Bucket=bench.bucket, Key=f"{bench.prefix}k")["LastModified"]


@question("Keys of any characters are kept and listed as they are")
def odd_keys(bench: Bench) -> bool:
    names = ["a b", "a%2Fb", "a+b&c?d#e", "a'b(c)[d]{e}", "é", "e\u0301", "日本語", "😀", "a" * 200, "a\\b"]
    for name in names:
        bench.put(name, name.encode())
    found = bench.s3.list_objects_v2(Bucket=bench.bucket, Prefix=bench.prefix).get("Contents", [])
    listed = sorted(entry["Key"].removeprefix(bench.prefix) for entry in found)
    return listed == sorted(names) and all(bench.body(name) == name.encode() for name in names)


@question("Checksums as the SDKs send them by default")
def checksums(bench: Bench) -> bool:
    newer = Bench(bench.server, "when_supported")
    newer.prefix = bench.prefix
    return bench.understood(lambda: newer.put("k", b"summed")) and bench.body("k") == b"summed"


@question("Object tags")
def tags(bench: Bench) -> bool:
    if not bench.understood(lambda: bench.put("k", Tagging="team=a")):
        return False
    found: list[Any] = []
    where = {"Bucket": bench.bucket, "Key": f"{bench.prefix}k"}
    told = bench.understood(lambda: found.extend(bench.s3.get_object_tagging(**where)["TagSet"]))
    return told and found == [{"Key": "team", "Value": "a"}]


@question("Lifecycle rules can be set")
def lifecycle(bench: Bench) -> bool:
    rule = {"ID": "asked", "Status": "Enabled", "Filter": {"Prefix": "a/"}, "Expiration": {"Days": 3}}
    with bench.new_bucket() as bucket:
        rules = {"Rules": [rule]}
        put = bench.s3.put_bucket_lifecycle_configuration
        if not bench.understood(lambda: put(Bucket=bucket, LifecycleConfiguration=rules)):
            return False
        found = bench.s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
        return [one["Expiration"]["Days"] for one in found] == [3]


@question("Public access can be blocked, and objects are still written")
def public_access(bench: Bench) -> bool:
    flags = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    with bench.new_bucket() as bucket:
        block = dict.fromkeys(flags, True)
        put = bench.s3.put_public_access_block
        if not bench.understood(lambda: put(Bucket=bucket, PublicAccessBlockConfiguration=block)):
            return False
        written = not bench.refused(lambda: bench.s3.put_object(Bucket=bucket, Key="k", Body=b"x"), 403)
        bench.s3.delete_public_access_block(Bucket=bucket)
        bench.s3.delete_object(Bucket=bucket, Key="k")
        return written


@question("Default encryption of a bucket can be set")
def encryption(bench: Bench) -> bool:
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
    with bench.new_bucket() as bucket:
        put = bench.s3.put_bucket_encryption
        return bench.understood(
            lambda: put(Bucket=bucket, ServerSideEncryptionConfiguration={"Rules": [rule]})
        ) and bench.understood(lambda: bench.s3.get_bucket_encryption(Bucket=bucket))
