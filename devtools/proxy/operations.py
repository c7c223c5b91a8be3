"""Which S3 operation a request is, and what it looks like to a server without conditional writes."""

from __future__ import annotations

from collections.abc import Mapping

import h11

__all__ = ["headers_of", "operation", "signed_anew", "without_preconditions"]

_UPLOADS = {
    "PUT": "UploadPart",
    "POST": "CompleteMultipartUpload",
    "DELETE": "AbortMultipartUpload",
    "GET": "ListParts",
}
_BUCKET = {"GET": "LIST", "PUT": "CreateBucket", "DELETE": "DeleteBucket", "HEAD": "HeadBucket", "POST": "PostObject"}
_PRECONDITIONS = ("if-none-match", "if-match")


def headers_of(request: h11.Request | h11.Response) -> dict[str, str]:
    """The headers of a request or an answer, names in lower case."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers}


def operation(method: str, target: str, headers: Mapping[str, str]) -> str:
    """The S3 operation of a path-style request: PUT, GET, HEAD, DELETE, LIST, DeleteObjects, CreateBucket …"""
    path, _, query = target.partition("?")
    names = {part.partition("=")[0] for part in query.split("&") if part}
    key = path.lstrip("/").partition("/")[2]
    if not key:
        return _bucket_operation(method, path, names)
    if "uploadId" in names:
        return _UPLOADS[method]
    if "uploads" in names:
        return "CreateMultipartUpload"
    if "tagging" in names:
        return f"{method.capitalize()}ObjectTagging"
    return "COPY" if "x-amz-copy-source" in headers else method


def _bucket_operation(method: str, path: str, names: set[str]) -> str:
    if path == "/":
        return "ListBuckets"
    if "delete" in names:
        return "DeleteObjects"
    for resource in ("lifecycle", "location", "policy", "versioning", "encryption", "tagging"):
        if resource in names:
            return f"{method.capitalize()}Bucket{resource.capitalize()}"
    return "ListMultipartUploads" if "uploads" in names else _BUCKET.get(method, method)


def without_preconditions(request: h11.Request, secret_key: str) -> h11.Request:
    """The request without If-Match and If-None-Match, signed anew where it was signed and the key is known.

    A server that knows nothing of conditional writes sees this: the headers are there, and ignored.
    """
    headers = {name: value for name, value in headers_of(request).items() if name not in _PRECONDITIONS}
    target = request.target.decode("latin-1")
    headers = signed_anew(request.method.decode(), target, headers, secret_key)
    return h11.Request(method=request.method, target=target, headers=list(headers.items()))


def signed_anew(method: str, target: str, headers: Mapping[str, str], secret_key: str) -> dict[str, str]:
    """The headers of a request that was changed, with a signature where there was one and the key is known."""
    if not secret_key or "authorization" not in headers:
        return dict(headers)
    return {**headers, **_signature(method, target, headers, secret_key)}


def _signature(method: str, target: str, headers: Mapping[str, str], secret_key: str) -> dict[str, str]:
    # botocore takes a tenth of a second to import; most proxies sign nothing
    from celery_s3.store.clients.signing import signed_headers

    fields = dict(part.strip().split("=", 1) for part in headers["authorization"].partition(" ")[2].split(","))
    access_key, _, region, *_ = fields["Credential"].split("/")
    signed = signed_headers(
        method,
        f"http://{headers['host']}{target}",
        {name: headers[name] for name in fields["SignedHeaders"].split(";") if name in headers},
        headers["x-amz-content-sha256"],
        access_key=access_key,
        secret_key=secret_key,
        region=region,
    )
    return {name.lower(): value for name, value in signed.items()}
