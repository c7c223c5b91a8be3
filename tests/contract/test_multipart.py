"""What an upload in parts promises, kept on every server; and how it is asked for and answered on the wire."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit
from zlib import crc32

import pytest
from scripted import Answer, ScriptedServer, error, stored

from celery_s3.errors import (
    BadRequest,
    Conflict,
    Interrupted,
    ObjectMissing,
    PreconditionFailed,
    ServerFault,
    StoreError,
    Throttled,
    UploadMissing,
)
from celery_s3.settings import Settings
from celery_s3.store.api import CREATE, Bucket, Match
from celery_s3.store.clients.control import Control

#: The least that S3 takes for a part that is not the last one.
PART = 5 * 1024 * 1024
ABSENT = '"00000000000000000000000000000000"'
#: moto ignores If-Match at the completion, and fails where an upload is over.
strictly = pytest.mark.parametrize("server", ["seaweed"], indirect=True)


@pytest.fixture
def bucket(server: Any, settings_for: Callable[..., Settings], open_client: Any) -> Bucket:
    return open_client("boto3", settings_for(server))


@pytest.fixture
def begun(bucket: Bucket, prefix: str) -> Callable[..., tuple[str, str, list[str]]]:
    """``begun(b"last part", …)``: the key, id and etags of an upload whose parts are there."""

    def begin(*parts: bytes, name: str = "k") -> tuple[str, str, list[str]]:
        upload_id = bucket.create_upload(prefix + name)
        etags = [bucket.put_part(prefix + name, upload_id, number, body) for number, body in enumerate(parts, 1)]
        return prefix + name, upload_id, etags

    return begin


# -- every server


def test_an_object_of_parts(bucket: Bucket, prefix: str) -> None:
    """Parts sent in any order are one object once it is completed, with metadata and type; before, there is none."""
    key, first = f"{prefix}a b/é", b"1" * PART
    upload_id = bucket.create_upload(key, metadata={"celery-state": "SUCCESS"}, content_type="application/x-a")
    second_etag = bucket.put_part(key, upload_id, 2, b"two")
    first_etag = bucket.put_part(key, upload_id, 1, first)
    with pytest.raises(ObjectMissing):
        bucket.get(key)
    etag = bucket.complete_upload(key, upload_id, [first_etag, second_etag], precondition=CREATE)
    found = bucket.get(key)
    assert found.body == first + b"two"
    assert found.etag == etag
    assert (dict(found.metadata), found.content_type) == ({"celery-state": "SUCCESS"}, "application/x-a")


def test_a_part_that_is_sent_twice(bucket: Bucket, begun: Any) -> None:
    """The later one of two writes of a part is the part."""
    key, upload_id, _ = begun(b"one")
    etag = bucket.put_part(key, upload_id, 1, b"other")
    bucket.complete_upload(key, upload_id, [etag])
    assert bucket.get(key).body == b"other"


def test_create(bucket: Bucket, begun: Any) -> None:
    """A completion is refused where an object has come meanwhile; that stays, and so do the parts, until an abort."""
    key, upload_id, etags = begun(b"late")
    bucket.put(key, b"first")
    for _ in range(2):
        with pytest.raises(PreconditionFailed):
            bucket.complete_upload(key, upload_id, etags, precondition=CREATE)
    assert bucket.get(key).body == b"first"
    bucket.abort_upload(key, upload_id)


@strictly
def test_replace(bucket: Bucket, begun: Any) -> None:
    """A completion that replaces a version is made over this version alone; over none it is refused too."""
    key, upload_id, etags = begun(b"new")
    for precondition in (Match(ABSENT), Match('"other"')):
        with pytest.raises(PreconditionFailed):
            bucket.complete_upload(key, upload_id, etags, precondition=precondition)
    version = bucket.put(key, b"old")
    with pytest.raises(PreconditionFailed):
        bucket.complete_upload(key, upload_id, etags, precondition=Match(ABSENT))
    bucket.complete_upload(key, upload_id, etags, precondition=Match(version))
    assert bucket.get(key).body == b"new"


@strictly
def test_an_upload_that_is_over(bucket: Bucket, begun: Any) -> None:
    """Nothing can be done with an upload that is over but abort it, which leaves alone what was completed."""
    for end in ("complete", "abort"):
        key, upload_id, etags = begun(b"body", name=end)
        if end == "complete":
            bucket.complete_upload(key, upload_id, etags)
        else:
            bucket.abort_upload(key, upload_id)
        with pytest.raises(UploadMissing):
            bucket.put_part(key, upload_id, 1, b"late")
        if end == "abort":
            # some servers answer a second completion as they did the first
            with pytest.raises(UploadMissing):
                bucket.complete_upload(key, upload_id, etags)
        bucket.abort_upload(key, upload_id)
    assert [entry.size for entry in bucket.list(key.removesuffix("abort"))] == [4]


def test_a_part_that_is_missing(bucket: Bucket, begun: Any) -> None:
    """A completion that names a part which is not there is refused."""
    key, upload_id, etags = begun(b"one")
    with pytest.raises(StoreError):
        bucket.complete_upload(key, upload_id, [*etags, ABSENT])
    with pytest.raises(ObjectMissing):
        bucket.get(key)


def test_tags(server: Any, settings_for: Callable[..., Settings], open_client: Any, prefix: str) -> None:
    """The settings' tags are those of an object of parts too."""
    settings = settings_for(server, tags={"team": "a b"})
    bucket = open_client("boto3", settings)
    upload_id = bucket.create_upload(f"{prefix}k")
    bucket.complete_upload(f"{prefix}k", upload_id, [bucket.put_part(f"{prefix}k", upload_id, 1, b"body")])
    assert Control(settings).stored(f"{prefix}k")["TagCount"] == 1


def test_unfinished_uploads_are_listed(
    server: Any, settings_for: Callable[..., Settings], begun: Any, prefix: str
) -> None:
    """The control plane lists them under a prefix, and aborts them, twice if need be."""
    control = Control(settings_for(server))
    key, upload_id, _ = begun(b"body")
    begun(b"body", name="other/k")
    (found,) = control.uploads(key)
    assert (found.key, found.id) == (key, upload_id)
    control.abort(found)
    control.abort(found)
    assert list(control.uploads(key)) == []
    assert len(list(control.uploads(prefix))) == 1


# -- on the wire

CREATED = Answer(body=b"<InitiateMultipartUploadResult><UploadId>u+1/=</UploadId></InitiateMultipartUploadResult>")
PUT = Answer(headers={"ETag": '"p1"'})
COMPLETED = Answer(body=b"<CompleteMultipartUploadResult><ETag>&quot;e-1&quot;</ETag></CompleteMultipartUploadResult>")

VERBS: dict[str, Callable[[Bucket], object]] = {
    "create": lambda bucket: bucket.create_upload("k", metadata={"a": "b"}, content_type="x/y"),
    "part": lambda bucket: bucket.put_part("k", "u+1/=", 3, b"body"),
    "complete": lambda bucket: bucket.complete_upload("k", "u+1/=", ['"p1"', '"p2"'], precondition=CREATE),
    "replace": lambda bucket: bucket.complete_upload("k", "u+1/=", ['"p1"'], precondition=Match('"e1"')),
    "abort": lambda bucket: bucket.abort_upload("k", "u+1/="),
}
ANSWERS = {"create": CREATED, "part": PUT, "complete": COMPLETED, "replace": COMPLETED, "abort": Answer(204)}


@pytest.fixture
def boto3(scripted_settings: Callable[..., Settings], open_client: Any) -> Callable[..., Bucket]:
    return lambda **overrides: open_client("boto3", scripted_settings(**overrides))


def sent(script: ScriptedServer, bucket: Bucket, verb: str) -> Any:
    script.requests.clear()
    script.answer = ANSWERS[verb]
    VERBS[verb](bucket)
    (request,) = script.requests
    return request


def test_requests(script: ScriptedServer, boto3: Callable[..., Bucket]) -> None:
    """Each verb is one request; the id survives its quoting, the completion has the precondition and all parts."""
    bucket = boto3()
    requests = {verb: sent(script, bucket, verb) for verb in VERBS}
    queries = {verb: parse_qs(urlsplit(one.target).query, keep_blank_values=True) for verb, one in requests.items()}
    assert {verb: one.method for verb, one in requests.items()} == {
        "create": "POST",
        "part": "PUT",
        "complete": "POST",
        "replace": "POST",
        "abort": "DELETE",
    }
    assert queries["create"] == {"uploads": [""]}
    assert queries["part"] == {"partNumber": ["3"], "uploadId": ["u+1/="]}
    assert queries["complete"] == queries["abort"] == {"uploadId": ["u+1/="]}
    assert requests["part"].body == b"body"
    assert requests["complete"].headers["if-none-match"] == "*"
    assert requests["replace"].headers["if-match"] == '"e1"'
    assert requests["complete"].body.count(b"<Part>") == 2
    assert requests["create"].headers["x-amz-meta-a"] == "b"
    assert requests["create"].headers["content-type"] == "x/y"


STORED_AS: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({"storage_class": "STANDARD_IA"}, {"x-amz-storage-class": "STANDARD_IA"}),
    ({"sse": "AES256"}, {"x-amz-server-side-encryption": "AES256"}),
    (
        {"sse": "aws:kms", "sse_kms_key_id": "key-1", "bucket_key": True},
        {
            "x-amz-server-side-encryption": "aws:kms",
            "x-amz-server-side-encryption-aws-kms-key-id": "key-1",
            "x-amz-server-side-encryption-bucket-key-enabled": "true",
        },
    ),
    ({"tags": {"a": "b"}}, {"x-amz-tagging": "a=b"}),
    ({"tags": {"a": "b"}, "expiry_tags": True}, {"x-amz-tagging": "a=b"}),
]


@pytest.mark.parametrize(("given", "headers"), STORED_AS)
def test_how_it_is_stored(
    script: ScriptedServer, boto3: Callable[..., Bucket], given: dict[str, Any], headers: dict[str, str]
) -> None:
    """Class, encryption and tags are said when the upload begins, as with a PUT, and with nothing else."""
    bucket = boto3(**given)
    assert headers.items() <= sent(script, bucket, "create").headers.items()
    for verb in ("part", "complete", "abort"):
        assert not set(headers) & set(sent(script, bucket, verb).headers)


def test_settings_of_every_request(script: ScriptedServer, boto3: Callable[..., Bucket]) -> None:
    """Who pays, and whose bucket it must be, is said with every request of an upload."""
    bucket = boto3(request_payer=True, expected_bucket_owner="123456789012")
    wanted = {"x-amz-request-payer": "requester", "x-amz-expected-bucket-owner": "123456789012"}
    for verb in VERBS:
        assert wanted.items() <= sent(script, bucket, verb).headers.items()


def test_checksums(script: ScriptedServer, boto3: Callable[..., Bucket], monkeypatch: pytest.MonkeyPatch) -> None:
    """To Amazon a part goes with its CRC32, as a PUT does; other servers get none, and the upload itself has none."""
    names = ("x-amz-checksum-crc32", "x-amz-sdk-checksum-algorithm", "x-amz-checksum-algorithm")
    assert not set(names) & set(sent(script, boto3(), "part").headers)
    monkeypatch.setattr(Settings, "on_aws", True)
    bucket = boto3()
    part = sent(script, bucket, "part").headers
    assert part["x-amz-checksum-crc32"] == b64encode(crc32(b"body").to_bytes(4)).decode()
    # with one, the completion would have to name the checksum of each part
    assert not set(names) & set(sent(script, bucket, "create").headers)


#: answer, what each verb raises; those of a PUT mean the same here
FAILURES: dict[str, tuple[Answer, type[StoreError]]] = {
    "NoSuchUpload": (error(404, "NoSuchUpload"), UploadMissing),
    "409": (error(409, "ConditionalRequestConflict"), Conflict),
    "412": (error(412, "PreconditionFailed"), PreconditionFailed),
    "SlowDown": (error(503, "SlowDown"), Throttled),
    "500": (error(500, "InternalError"), ServerFault),
    "InvalidPart": (error(400, "InvalidPart"), BadRequest),
    "EntityTooSmall": (error(400, "EntityTooSmall"), BadRequest),
    "reset": (Answer(fault="reset"), Interrupted),
}


@pytest.mark.parametrize("case", FAILURES)
def test_failures(script: ScriptedServer, boto3: Callable[..., Bucket], case: str) -> None:
    """An answer means the same for every request of an upload, and is asked for once."""
    script.answer, kind = FAILURES[case]
    bucket = boto3()
    for name, verb in VERBS.items():
        if (name, case) == ("abort", "NoSuchUpload"):
            verb(bucket)  # counts as aborted
            continue
        script.requests.clear()
        with pytest.raises(StoreError) as caught:
            verb(bucket)
        assert (name, type(caught.value), len(script.requests)) == (name, kind, 1)
        assert caught.value.key == "k"


@pytest.mark.parametrize(
    ("code", "kind"), [("InternalError", ServerFault), ("SlowDown", Throttled), ("NoSuchUpload", UploadMissing)]
)
def test_an_error_in_a_success(
    script: ScriptedServer, boto3: Callable[..., Bucket], code: str, kind: type[StoreError]
) -> None:
    """S3 begins to answer a completion before it knows how it ends: an error that comes after a 200 is one."""
    head, body = error(200, code).body.split(b"\n", 1)
    # the blanks keep the connection open meanwhile
    script.answer = Answer(200, head + b" " * 50 + body, {"Content-Type": "application/xml"})
    with pytest.raises(kind):
        VERBS["complete"](boto3())


@pytest.mark.parametrize("body", [b"", b" " * 20, stored(b"x").body, COMPLETED.body.replace(b"e-1", b"")[:40]])
def test_a_completion_without_an_etag(script: ScriptedServer, boto3: Callable[..., Bucket], body: bytes) -> None:
    """A 200 that does not say what was made leaves open whether anything was."""
    script.answer = Answer(200, body, {"Content-Type": "application/xml"})
    with pytest.raises((Interrupted, ServerFault)):
        VERBS["complete"](boto3())


def test_answers_that_say_nothing(script: ScriptedServer, boto3: Callable[..., Bucket]) -> None:
    """A beginning without an id and a part without an etag are answers that were lost."""
    script.answer = Answer(body=b"<InitiateMultipartUploadResult/>")
    for verb in ("create", "part"):
        with pytest.raises(Interrupted):
            VERBS[verb](boto3())


def test_metadata_that_no_header_can_hold(script: ScriptedServer, boto3: Callable[..., Bucket]) -> None:
    """It is refused before anything is sent, as by a PUT."""
    bucket = boto3()
    for given in ({"metadata": {"a": "b\n"}}, {"content_type": "é"}):
        with pytest.raises(BadRequest, match="not printable ASCII"):
            bucket.create_upload("k", **given)
    assert script.requests == []
