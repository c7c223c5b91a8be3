"""The odd answers of S3-compatible servers, as their documentation and reports have them, before a server without them.

Each quirk has a name and up to three parts: what it answers in the server's place, what it makes of a request before
the server sees it, and of an answer before the client does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import h11

from .operations import signed_anew

__all__ = ["QUIRKS", "Asked", "Quirks", "Told", "as_events"]

_REFUSED = {400: "InvalidRequest", 403: "AccessDenied", 412: "PreconditionFailed", 416: "InvalidRange"}
_XML = {"content-type": "application/xml"}


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as a whole; ``kind`` is its S3 operation, the names of headers are in lower case."""

    method: str
    kind: str
    target: str
    headers: Mapping[str, str]
    body: bytes

    def without(self, *names: str) -> Asked:
        """The request without these headers."""
        return replace(self, headers={name: value for name, value in self.headers.items() if name not in names})

    def subresource(self, name: str) -> bool:
        """Whether it is about this part of the bucket's configuration."""
        return re.search(rf"[?&]{name}(=|&|$)", self.target) is not None


@dataclass(frozen=True, slots=True)
class Told:
    """An answer as a whole."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    def with_body(self, body: bytes) -> Told:
        """The same answer with another body."""
        return replace(self, body=body, headers={**self.headers, "content-length": str(len(body))})

    def without(self, name: str) -> Told:
        """The answer without a header."""
        return replace(self, headers={key: value for key, value in self.headers.items() if key != name})


def _error(status: int, code: str = "") -> Told:
    code = code or _REFUSED.get(status, "NotImplemented")
    text = f"<Error><Code>{code}</Code><Message>said the quirk</Message></Error>"
    return Told(status, _XML).with_body(f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'.encode())


# -- preconditions


def _writes(asked: Asked) -> bool:
    return asked.method in ("PUT", "POST", "DELETE") and "if-match" in asked.headers


def _quoted_refused(asked: Asked) -> Told | None:
    return _error(412) if _writes(asked) and asked.headers["if-match"].startswith('"') else None


def _with_quotes(asked: Asked) -> Asked:
    if not _writes(asked):
        return asked
    return replace(asked, headers={**asked.headers, "if-match": '"{}"'.format(asked.headers["if-match"].strip('"'))})


def _match_refused(asked: Asked) -> Told | None:
    return _error(412) if _writes(asked) else None


def _weak_refused(asked: Asked) -> Told | None:
    return _error(412) if asked.headers.get("if-match", "").startswith("W/") else None


def _weak(_: Asked, told: Told) -> Told:
    etag = told.headers.get("etag")
    return replace(told, headers={**told.headers, "etag": f"W/{etag}"}) if etag else told


def _unconditional_completion(asked: Asked) -> Asked:
    return asked.without("if-match", "if-none-match") if asked.kind == "CompleteMultipartUpload" else asked


def _no_etag_of_completion(asked: Asked, told: Told) -> Told:
    if asked.kind != "CompleteMultipartUpload":
        return told
    return told.with_body(re.sub(rb"<ETag>.*?</ETag>", b"<ETag></ETag>", told.body))


# -- deletes


def _is_conditional_delete(asked: Asked) -> bool:
    return (asked.kind == "DeleteObjects" and b"<ETag>" in asked.body) or (
        asked.kind == "DELETE" and "if-match" in asked.headers
    )


def _etags_refused(asked: Asked) -> Told | None:
    return _error(400, "MalformedXML") if asked.kind == "DeleteObjects" and b"<ETag>" in asked.body else None


def _conditional_delete_unknown(asked: Asked) -> Told | None:
    return _error(501) if _is_conditional_delete(asked) else None


def _batches_unknown(asked: Asked) -> Told | None:
    return _error(501) if asked.kind == "DeleteObjects" else None


def _no_keys(asked: Asked, told: Told) -> Told:
    if asked.kind != "DeleteObjects":
        return told
    return told.with_body(re.sub(rb"(<Deleted>.*?)<Key>.*?</Key>", rb"\1", told.body))


# -- the bucket's configuration


class _Block:
    """Ceph: with BlockPublicAcls set, every PUT is refused."""

    def __init__(self) -> None:
        self._set: str = ""

    def answer(self, asked: Asked) -> Told | None:
        """The configuration's own requests, and the refusals."""
        if asked.subresource("publicAccessBlock"):
            if asked.method == "GET":
                body = self._set.encode()
                return Told(200, _XML).with_body(body) if body else _error(404, "NoSuchPublicAccessBlockConfiguration")
            self._set = asked.body.decode() if asked.method == "PUT" else ""
            return Told(200 if asked.method == "PUT" else 204, {"content-length": "0"} if self._set else {})
        return _error(403) if asked.kind == "PUT" and "<BlockPublicAcls>true" in self._set else None


def _lifecycle_unknown(asked: Asked) -> Told | None:
    return _error(501) if asked.subresource("lifecycle") else None


def _lifecycle_refused(asked: Asked) -> Told | None:
    return _error(400) if asked.subresource("lifecycle") and asked.method == "PUT" else None


def _no_sts(asked: Asked) -> Told | None:
    if asked.method == "POST" and asked.target == "/":
        return Told(404, {"content-type": "text/plain"}).with_body(b"Not Found")
    return None


# -- the answers


def _no_message(_: Asked, told: Told) -> Told:
    return told.with_body(re.sub(rb"<Message>.*?</Message>", b"<Message></Message>", told.body, flags=re.DOTALL))


def _no_last_modified(_: Asked, told: Told) -> Told:
    return told.without("last-modified")


def _listing_without_times(asked: Asked, told: Told) -> Told:
    if asked.kind != "LIST":
        return told
    return told.with_body(re.sub(rb"<LastModified>.*?</LastModified>", b"", told.body))


def _other_namespace(_: Asked, told: Told) -> Told:
    if b"xmlns=" in told.body:
        return told.with_body(re.sub(rb' xmlns="[^"]*"', b' xmlns="urn:another:s3"', told.body))
    return told


def _milliseconds(asked: Asked, told: Told) -> Told:
    if asked.kind != "LIST":
        return told
    return told.with_body(re.sub(rb"<LastModified>(.{19})[^<]*<", rb"<LastModified>\g<1>.987Z<", told.body))


def _short_range(status: int) -> Callable[[Asked, Told], Told]:
    def refuse(asked: Asked, told: Told) -> Told:
        wanted = re.fullmatch(r"bytes=\d+-(\d+)", asked.headers.get("range", ""))
        if asked.kind != "GET" or wanted is None:
            return told
        size = told.headers.get("content-range", "").rpartition("/")[2]
        too_long = told.status == 416 or (size.isdigit() and int(wanted[1]) >= int(size))
        return _error(status) if too_long else told

    return refuse


@dataclass(frozen=True, slots=True)
class _Quirk:
    answer: Callable[[Asked], Told | None] = lambda _: None
    ask: Callable[[Asked], Asked] = lambda asked: asked
    tell: Callable[[Asked, Told], Told] = lambda _, told: told


#: By name, with the servers that are known for it.
QUIRKS: Mapping[str, Callable[[], _Quirk]] = {
    # Ceph
    "bare_if_match": lambda: _Quirk(_quoted_refused, ask=_with_quotes),
    "refused_if_match": lambda: _Quirk(_match_refused),
    "empty_message": lambda: _Quirk(tell=_no_message),
    "unconditional_completion": lambda: _Quirk(ask=_unconditional_completion, tell=_no_etag_of_completion),
    "public_access_block": lambda: _Quirk(_Block().answer),
    # a proxy that compresses
    "weak_etags": lambda: _Quirk(_weak_refused, tell=_weak),
    # Swift
    "delete_etag_400": lambda: _Quirk(_etags_refused),
    "lifecycle_put_400": lambda: _Quirk(_lifecycle_refused),
    "lifecycle_501": lambda: _Quirk(_lifecycle_unknown),
    # LocalStack
    "conditional_delete_501": lambda: _Quirk(_conditional_delete_unknown),
    "delete_objects_501": lambda: _Quirk(_batches_unknown),
    # JuiceFS
    "deleted_without_key": lambda: _Quirk(tell=_no_keys),
    # nanio, others
    "range_400": lambda: _Quirk(tell=_short_range(400)),
    "range_416": lambda: _Quirk(tell=_short_range(416)),
    # Ceph, ministack, rclone, JuiceFS
    "list_milliseconds": lambda: _Quirk(tell=_milliseconds),
    "no_last_modified": lambda: _Quirk(tell=_no_last_modified),
    "list_no_times": lambda: _Quirk(tell=_listing_without_times),
    "other_namespace": lambda: _Quirk(tell=_other_namespace),
    "no_sts": lambda: _Quirk(_no_sts),
}


class Quirks:
    """The quirks of one server, in the order of their names as given."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        self._quirks = [QUIRKS[name]() for name in names]

    def __bool__(self) -> bool:
        return bool(self._quirks)

    def answer(self, asked: Asked) -> Told | None:
        """The answer in the server's place, ``None`` where the server is asked."""
        answers = (quirk.answer(asked) for quirk in self._quirks)
        return next((self.tell(asked, told) for told in answers if told is not None), None)

    def ask(self, asked: Asked, secret_key: str) -> Asked:
        """The request as the server sees it, signed anew where it was changed."""
        changed = asked
        for quirk in self._quirks:
            changed = quirk.ask(changed)
        if changed is asked:
            return asked
        return replace(changed, headers=signed_anew(asked.method, asked.target, changed.headers, secret_key))

    def tell(self, asked: Asked, told: Told) -> Told:
        """The answer as the client sees it."""
        for quirk in self._quirks:
            told = quirk.tell(asked, told)
        return told


def as_events(told: Told) -> list[h11.Event]:
    """An answer as it goes over the connection."""
    head = h11.Response(status_code=told.status, headers=list(told.headers.items()), reason="Quirk")
    return [head, h11.Data(data=told.body), h11.EndOfMessage()]
