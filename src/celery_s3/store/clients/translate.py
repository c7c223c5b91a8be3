"""What an S3 answer means: status and code to the classes of :mod:`celery_s3.errors`, for both clients."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from celery_s3.errors import (
    AccessDenied,
    BadCredentials,
    BadRequest,
    BucketMissing,
    Conflict,
    Interrupted,
    ObjectMissing,
    PreconditionFailed,
    ServerFault,
    StoreError,
    Throttled,
    TLSFailure,
    Unreachable,
    UploadMissing,
    WrongRegion,
)
from celery_s3.interruptions import INTERRUPTIONS_OF_LARGE, forget_locals, reraise_interruption
from celery_s3.settings import Settings
from celery_s3.store.requests import CompleteUpload, Get, Match, Object, Put, Request

__all__ = [
    "ADDRESSABLE",
    "ROUTINE",
    "Answer",
    "Operation",
    "Subject",
    "answered",
    "bare",
    "check_headers",
    "checked",
    "cut",
    "error_of",
    "meaning",
    "quoted",
    "through",
    "unsatisfied",
]

T = TypeVar("T")

_CREDENTIAL_CODES = (
    "AuthFailure",
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidIdentityToken",
    "InvalidSecurity",
    "InvalidToken",
    "MissingAuthenticationToken",
    "NotSignedUp",
    "RequestExpired",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
    "UnrecognizedClientException",
)
_REGION_CODES = ("IllegalLocationConstraintException", "PermanentRedirect", "TemporaryRedirect")
_THROTTLE_CODES = (
    "RequestLimitExceeded",
    "SlowDown",
    "SlowDownRead",
    "SlowDownWrite",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
)

_BY_CODE: Mapping[str, type[StoreError]] = {
    "AccessDenied": AccessDenied,
    "ConditionalRequestConflict": Conflict,
    "InternalError": ServerFault,
    "NoSuchBucket": BucketMissing,
    "NoSuchKey": ObjectMissing,
    "NoSuchUpload": UploadMissing,
    "NotImplemented": BadRequest,
    "OperationAborted": Conflict,
    "PreconditionFailed": PreconditionFailed,
    # a 400: the server waited for the body in vain
    "RequestTimeout": Interrupted,
    **dict.fromkeys(_CREDENTIAL_CODES, BadCredentials),
    **dict.fromkeys(_REGION_CODES, WrongRegion),
    **dict.fromkeys(_THROTTLE_CODES, Throttled),
}

_BY_STATUS: Mapping[int, type[StoreError]] = {
    301: WrongRegion,
    302: WrongRegion,
    307: WrongRegion,
    308: WrongRegion,
    401: BadCredentials,
    403: AccessDenied,
    404: ObjectMissing,
    408: Interrupted,
    409: Conflict,
    412: PreconditionFailed,
    429: Throttled,
    501: BadRequest,
}

#: What a proxy may be the cause of.
_ON_THE_WAY = (Interrupted, TLSFailure, Unreachable)

#: What the protocols of results and chords expect to meet; the class says all that the server says.
ROUTINE = (ObjectMissing, PreconditionFailed)

# Neither empty nor ``.`` nor ``..``, without control characters and halves of characters.
_SEGMENT = r"(?!\.{0,2}(?:/|\Z))[^/\x00-\x1f\x7f\ud800-\udfff]+"
#: Keys (as full matches) that obstore takes as they are; it refuses or changes all others.
ADDRESSABLE = re.compile(f"{_SEGMENT}(?:/{_SEGMENT})*")

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


@dataclass(frozen=True, slots=True)
class Operation:
    """What an error names where there is no :class:`Request`: a call of the control plane, or one key of many.

    Attributes:
        operation: as our errors call it, for example ``create_bucket``.
        url: where it is sent, empty for the bucket's server.
    """

    operation: str
    key: str = ""
    url: str = ""


#: What an error is about: either has an ``operation`` and a ``key``.
Subject = Request[Any] | Operation


def error_of(
    kind: type[StoreError],
    request: Subject,
    settings: Settings,
    detail: str = "",
    status: int | None = None,
    code: str = "",
) -> StoreError:
    """The error to raise; whatever secret the detail holds is masked, and a proxy that may be the cause is named."""
    if issubclass(kind, _ON_THE_WAY):
        detail += through(request, settings)
    return kind(settings.redact(detail), request.operation, settings.bucket, request.key, status, code)


def through(request: Subject, settings: Settings) -> str:
    """By which proxy a request was sent, for the end of a message; empty for none."""
    url = request.url if isinstance(request, Operation) else ""
    proxy = settings.proxies.to(url or settings.bucket_url)
    return f" (through the proxy {proxy})" if proxy else ""


def answered(
    action: Callable[[], T],
    is_failure: Callable[[BaseException], bool],
    translated: Callable[[BaseException], Exception],
) -> T:
    """What ``action`` returns; a failure is raised as it was translated, an interruption as itself.

    Outside of the handler: the original, which may hold a secret, does not become the error's context. The frames of
    the client, which hold the session token, are left without their locals.
    """
    handled = sys.exception()
    try:
        return action()
    except BaseException as exc:
        forget_locals(exc, handled)
        if not is_failure(exc):
            raise
        reraise_interruption(exc, handled, INTERRUPTIONS_OF_LARGE)
        error = translated(exc)
    try:
        raise error
    finally:
        # The error's traceback holds this frame, whose local holds the error: without `del`, each look at a missing
        # result would leave such a circle to the garbage collector.
        del error


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that is not a success.

    ``status`` is ``None`` for an error inside a successful answer; ``foreign`` tells that the body is not S3's.
    """

    status: int | None
    code: str = ""
    message: str = ""
    region: str = ""
    foreign: bool = False

    def error(self, request: Subject, settings: Settings) -> StoreError:
        """The error to raise for this answer to ``request``: without detail where its class says all there is."""
        kind = meaning(self, request)
        if kind in ROUTINE:
            return kind("", request.operation, settings.bucket, request.key, self.status, self.code)
        foreign = f"the answer is not S3's: is `endpoint_url` right?{through(request, settings)}"
        detail = foreign if self.foreign else self.message
        if self.status == 407:
            detail = f"the proxy asks for user and password: http://user:password@host:port{through(request, settings)}"
        if kind is WrongRegion and self.region:
            detail = f"it is in {self.region}"
        return error_of(kind, request, settings, detail, self.status, self.code)


def meaning(answer: Answer, request: Subject) -> type[StoreError]:
    """The class that an answer to a request stands for."""
    if answer.region and answer.code in ("AuthorizationHeaderMalformed", ""):
        return WrongRegion
    kind = _BY_CODE.get(answer.code) or _of_status(answer.status)
    if kind is AccessDenied and answer.code not in ("", "AccessDenied"):
        # as InvalidObjectState of an archived object: it is there, and must never read as missing
        kind = BadRequest
    return _absent(answer, request) if kind is ObjectMissing else kind


def _of_status(status: int | None) -> type[StoreError]:
    # an error inside a 200 has no status that says whether the request was carried out
    if status is None or status < 300:
        return ServerFault
    return _BY_STATUS.get(status, ServerFault if status >= 500 else BadRequest)


def _absent(answer: Answer, request: Subject) -> type[StoreError]:
    """What a 404 says is missing; a web server's own page must not read as an absent result."""
    if answer.foreign:
        return BadRequest
    if isinstance(request, Put | CompleteUpload) and isinstance(request.precondition, Match):
        return PreconditionFailed  # there is nothing to replace
    # nothing else can be missing where a listing or a write finds nothing
    return ObjectMissing if request.operation in ("get", "delete") else BucketMissing


def check_headers(metadata: Mapping[str, str], content_type: str) -> str:
    """Why these cannot be sent as HTTP headers, empty if they can.

    Control characters would end a header (obstore panics on them), others arrive changed or unsigned.
    """
    for name, value in metadata.items():
        if not (_NAME.fullmatch(name) and value.isascii() and value.isprintable()):
            return f"the metadata {name!r} is not printable ASCII"
        if value != value.strip():
            return f"the metadata {name!r} begins or ends with white space, which would not arrive"
    return "" if content_type.isascii() and content_type.isprintable() else "the content type is not printable ASCII"


def cut(found: Object, start: int, length: int | None) -> Object:
    """The bytes that were asked for, of an object that a server without ranges sent whole."""
    if start and not found.complete:
        return found
    return replace(found, body=found.body[start : None if length is None else start + length])


def checked(found: Object, get: Get, settings: Settings) -> Object:
    """What was found, if it is what was asked for and S3 has answered it.

    Raises:
        PreconditionFailed: it is another version: not every server looks at If-Match.
        BadRequest: S3 always says when an object was written; without it, all would count as expired.
    """
    if get.if_match and found.etag and bare(found.etag) != bare(get.if_match):
        raise PreconditionFailed("", get.operation, settings.bucket, get.key)
    if not found.modified.timestamp():  # the clients' word for none
        why = "the answer is not S3's, for it has no Last-Modified: is `endpoint_url` right?"
        raise error_of(BadRequest, get, settings, why, 200)
    return found


def unsatisfied(get: Get, error: StoreError) -> bool:
    """Whether an error may mean that the object ends before the range does: then the whole is what there is.

    416 is S3's for an empty object, which has no first byte to begin a range with; some servers answer so, or 400,
    wherever the object is shorter than the range.
    """
    return not get.start and isinstance(error, BadRequest) and error.status in (400, 416)


def quoted(etag: str) -> str:
    """An etag as S3 has it: some servers leave the quotes out, some proxies mark it as weak; empty stays empty."""
    return etag if not etag or etag[0] == '"' else f'"{bare(etag)}"'


def bare(etag: str) -> str:
    """An etag without its quotes and without the mark of a weak one."""
    return etag.removeprefix("W/").strip('"')
