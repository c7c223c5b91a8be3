"""The faults that the proxy can inject, and which request gets one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

import h11

__all__ = ["ANSWERS", "CARRIED_OUT", "FAULTS", "Fault", "Faults", "altered", "answer", "cut"]

#: Answers given in the server's place: status, S3 error code (none: without a body), extra headers.
ANSWERS: dict[str, tuple[int, str, dict[str, str]]] = {
    "slow_down": (503, "SlowDown", {}),
    "too_many_requests": (429, "TooManyRequests", {}),
    "internal_error": (500, "InternalError", {}),
    "bad_gateway": (502, "", {}),
    "gateway_timeout": (504, "", {}),
    "not_implemented": (501, "NotImplemented", {}),
    "conflict": (409, "ConditionalRequestConflict", {}),
    "precondition_failed": (412, "PreconditionFailed", {}),
    "access_denied": (403, "AccessDenied", {}),
    "forbidden": (403, "", {}),
    "invalid_access_key": (403, "InvalidAccessKeyId", {}),
    "signature_mismatch": (403, "SignatureDoesNotMatch", {}),
    "clock_skew": (403, "RequestTimeTooSkewed", {}),
    "expired_token": (400, "ExpiredToken", {}),
    "bad_request": (400, "InvalidRequest", {}),
    "not_found": (404, "", {}),
    "no_such_key": (404, "NoSuchKey", {}),
    "no_such_bucket": (404, "NoSuchBucket", {}),
    "wrong_region": (301, "PermanentRedirect", {"x-amz-bucket-region": "eu-central-1"}),
}

#: Instead of an answer: the connection is reset, or nothing comes for ``seconds``.
_SILENCES = ("reset", "hang")

#: What may befall the server's own answer: its body comes piece by piece over ``seconds``, or all of it, head included,
#: a byte every ``seconds``; or its second half is missing; or a byte in its middle is another one.
_MANGLED = ("slow_body", "dribble", "dribble_body", "truncate", "alter")

#: Added to an answer or a silence: the server carries the request out first, and its answer is lost.
CARRIED_OUT = "_after"

FAULTS = frozenset(_MANGLED) | {name + end for name in (*ANSWERS, *_SILENCES) for end in ("", CARRIED_OUT)}


@dataclass
class Fault:
    """One fault, for the requests that match and while it lasts.

    Attributes:
        match: ``"PUT"``, ``"LIST"``, ``"PUT some-key"``, ``"* some-key"``: a method or an operation (``*``: any),
            then a part of the path and query.
        how: one of :data:`FAULTS`.
        times: how many requests it hits, ``-1`` for all.
        after: how many matching requests it lets pass before.
        seconds: how long a silence or a slow body lasts.
    """

    match: str
    how: str
    times: int = 1
    after: int = 0
    seconds: float = 60.0

    def fits(self, method: str, kind: str, target: str) -> bool:
        """Whether a request of this method, operation and target (path and query) is meant; it is not counted."""
        verb, _, part = self.match.partition(" ")
        return verb in ("*", "", method, kind) and part in target

    @property
    def carried_out(self) -> bool:
        """Whether the server sees the request."""
        return self.how.endswith(CARRIED_OUT) or self.how in _MANGLED

    @property
    def name(self) -> str:
        """The fault without the mark that says that the request is carried out."""
        return self.how.removesuffix(CARRIED_OUT)


class Faults:
    """The faults in force, in the order in which they were asked for."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def add(self, fault: Fault) -> None:
        """Put a fault in force, behind those that are."""
        self._faults.append(fault)

    def clear(self) -> None:
        """Let every request pass."""
        self._faults.clear()

    def pick(self, method: str, kind: str, target: str) -> Fault | None:
        """The first fault that this request is due, which is thereby used."""
        for fault in self._faults:
            if fault.times and fault.fits(method, kind, target):
                if fault.after:
                    fault.after -= 1
                    continue
                fault.times -= 1
                return fault
        return None


def answer(name: str, method: str, resource: str) -> list[h11.Event]:
    """The whole response of that name, as S3 words it."""
    status, code, extra = ANSWERS[name]
    body = b""
    if code and method != "HEAD":
        body = (
            f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>injected: {name}</Message>'
            f"<Resource>{escape(resource)}</Resource><RequestId>0</RequestId></Error>"
        ).encode()
    headers = {"Content-Length": str(len(body)), **extra, **({"Content-Type": "application/xml"} if body else {})}
    head = h11.Response(status_code=status, reason=code or "Injected", headers=list(headers.items()))
    return [head, h11.Data(data=body), h11.EndOfMessage()]


def cut(answer: Sequence[Any], pieces: int) -> list[Any]:
    """The same answer with its body in at most so many pieces of one size: its head, the pieces, its end."""
    head, *parts, end = answer
    body = b"".join(part.data for part in parts)
    size = max(1, -(-len(body) // pieces))
    return [head, *(h11.Data(data=body[start : start + size]) for start in range(0, len(body), size)), end]


def altered(answer: Sequence[Any]) -> list[Any]:
    """The same answer with one bit in the middle of its body turned; one without a body as it is."""
    head, *parts, end = answer
    body = bytearray(b"".join(part.data for part in parts))
    if body:
        body[len(body) // 2] ^= 1
    return [head, h11.Data(data=bytes(body)), end]
