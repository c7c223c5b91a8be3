"""As much of HTTP/1.1 as the proxy needs: heads, the ends of bodies, and which S3 operation a request is."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Protocol
from urllib.parse import parse_qsl, quote, urlsplit

__all__ = ["Body", "Head", "operation", "request_body", "response_body", "without_preconditions"]

_UPLOADS = {
    "PUT": "UploadPart",
    "POST": "CompleteMultipartUpload",
    "DELETE": "AbortMultipartUpload",
    "GET": "ListParts",
}
_BUCKET = {"GET": "LIST", "PUT": "CreateBucket", "DELETE": "DeleteBucket", "HEAD": "HeadBucket", "POST": "PostObject"}
_PRECONDITIONS = ("if-none-match", "if-match")


class Head:
    """The first line and the headers of a message; names in lower case."""

    __slots__ = ("first", "headers", "raw")

    def __init__(self, raw: bytes) -> None:
        lines = raw.decode("latin-1").split("\r\n")
        self.raw = raw
        self.first = lines[0].split(" ", 2)
        self.headers: dict[str, str] = {}
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if colon:
                self.headers[name.lower()] = value.strip()

    @property
    def status(self) -> int:
        """A response's status code."""
        return int(self.first[1])

    @property
    def closes(self) -> bool:
        """Whether the sender ends the connection after this message."""
        return self.headers.get("connection", "").lower() == "close"


class Body(Protocol):
    """Finds the end of a message's body in a stream."""

    done: bool

    def feed(self, data: bytes) -> int:
        """How many of these bytes belong to the body."""
        ...


class _Length:
    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0

    def feed(self, data: bytes) -> int:
        taken = min(len(data), self._left)
        self._left -= taken
        self.done = self._left == 0
        return taken


class _UntilClose:
    done = False

    def feed(self, data: bytes) -> int:
        return len(data)


class _Chunked:
    def __init__(self) -> None:
        self.done = False
        self._left = 0  # of the current chunk, with its line end
        self._line = b""
        self._trailers = False

    def feed(self, data: bytes) -> int:
        position = 0
        while position < len(data) and not self.done:
            position += self._skip(len(data) - position) if self._left else self._read_line(data, position)
        return position

    def _skip(self, available: int) -> int:
        step = min(self._left, available)
        self._left -= step
        return step

    def _read_line(self, data: bytes, start: int) -> int:
        end = data.find(b"\n", start)
        if end < 0:
            self._line += data[start:]
            return len(data) - start
        line, self._line = (self._line + data[start:end]).strip(), b""
        self._take(line)
        return end + 1 - start

    def _take(self, line: bytes) -> None:
        if self._trailers:
            self.done = not line
        elif size := int(line.split(b";")[0], 16):
            self._left = size + 2
        else:
            self._trailers = True


def request_body(head: Head) -> Body:
    if head.headers.get("transfer-encoding", "").lower() == "chunked":
        return _Chunked()
    return _Length(int(head.headers.get("content-length", 0)))


def response_body(head: Head, method: str) -> Body:
    if method == "HEAD" or head.status in (204, 304):
        return _Length(0)
    if head.headers.get("transfer-encoding", "").lower() == "chunked":
        return _Chunked()
    if "content-length" in head.headers:
        return _Length(int(head.headers["content-length"]))
    return _UntilClose()


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


def without_preconditions(head: Head, secret_key: str) -> bytes:
    """The head of a request without If-Match and If-None-Match, signed anew where they were signed.

    A server that knows nothing of conditional writes sees this: the headers are there, and ignored.
    """
    lines = head.raw[:-4].split(b"\r\n")
    kept = [line for line in lines if line.partition(b":")[0].lower().decode("latin-1") not in _PRECONDITIONS]
    old = head.headers.get("authorization", "")
    if old and secret_key:
        new = _signed_anew(head, old, secret_key)
        kept = [line.replace(old.encode(), new.encode()) for line in kept]
    return b"\r\n".join(kept) + b"\r\n\r\n"


def _signed_anew(head: Head, authorization: str, secret_key: str) -> str:
    scheme, _, rest = authorization.partition(" ")
    fields = dict(part.strip().split("=", 1) for part in rest.split(","))
    access_key, *scope = fields["Credential"].split("/")
    signed = [name for name in fields["SignedHeaders"].split(";") if name not in _PRECONDITIONS]
    stamp = head.headers["x-amz-date"]
    digest = hashlib.sha256(_canonical(head, signed).encode()).hexdigest()
    key = f"AWS4{secret_key}".encode()
    for part in scope:
        key = hmac.digest(key, part.encode(), "sha256")
    text = "\n".join(("AWS4-HMAC-SHA256", stamp, "/".join(scope), digest))
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    credential = "/".join((access_key, *scope))
    return f"{scheme} Credential={credential}, SignedHeaders={';'.join(signed)}, Signature={signature}"


def _canonical(head: Head, signed: list[str]) -> str:
    url = urlsplit(head.first[1])
    pairs = sorted((quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in parse_qsl(url.query, True))
    headers = [f"{name}:{' '.join(head.headers[name].split())}\n" for name in signed]
    return "\n".join(
        (
            head.first[0],
            url.path,
            "&".join(f"{name}={value}" for name, value in pairs),
            "".join(headers),
            ";".join(signed),
            head.headers["x-amz-content-sha256"],
        )
    )
