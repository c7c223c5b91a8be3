"""What botocore raises, as the classes of :mod:`celery_s3.errors`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from celery_s3.errors import BadCredentials, BadRequest, Interrupted, StoreError, TLSFailure, Unreachable
from celery_s3.settings import Settings

from .translate import Answer, Subject, answered, error_of

__all__ = ["call", "from_error", "is_failure", "translated"]

T = TypeVar("T")

#: What a call of botocore may raise: its own errors, and what the system says of a socket or a file. Before 1.43
#: it lets urllib3's through where an error's body is cut off.
_FAILURES = (BotoCoreError, ClientError, HTTPError, OSError, ResponseParserError, ValueError)

#: By name, since older versions lack some; the class nearest to the error's own decides.
_KINDS: Mapping[str, type[StoreError]] = {
    "SSLError": TLSFailure,
    # no connection: the host is unknown, refuses, or does not answer; the same of a proxy
    "ConnectTimeoutError": Unreachable,
    "EndpointConnectionError": Unreachable,
    "ProxyConnectionError": Unreachable,
    "OSError": Unreachable,
    # the answer did not come, or not whole
    "AwsChunkedWrapperError": Interrupted,
    "ChecksumError": Interrupted,
    "ConnectionError": Interrupted,
    "FlexibleChecksumError": Interrupted,
    "HTTPClientError": Interrupted,
    "HTTPError": Interrupted,
    "IncompleteReadError": Interrupted,
    "ResponseParserError": Interrupted,
    # nobody to sign as
    "ConfigNotFound": BadCredentials,
    "ConfigParseError": BadCredentials,
    "CredentialRetrievalError": BadCredentials,
    # of a web identity's token
    "FileNotFoundError": BadCredentials,
    "InvalidConfigError": BadCredentials,
    "InvalidIMDSEndpointError": BadCredentials,
    "InvalidIMDSEndpointModeError": BadCredentials,
    "LoginError": BadCredentials,
    "MetadataRetrievalError": BadCredentials,
    "NoAuthTokenError": BadCredentials,
    "NoCredentialsError": BadCredentials,
    "PartialCredentialsError": BadCredentials,
    "ProfileNotFound": BadCredentials,
    "RefreshWithMFAUnsupportedError": BadCredentials,
    "SSOError": BadCredentials,
    "TokenRetrievalError": BadCredentials,
    "UnknownCredentialError": BadCredentials,
    "UnknownTokenProviderError": BadCredentials,
    # everything else is about parameters, regions and endpoints
    "BotoCoreError": BadRequest,
    "ClientError": BadRequest,
    "ValueError": BadRequest,
}


def is_failure(exc: BaseException) -> bool:
    """Whether it is about the request; a soft time limit is not."""
    return isinstance(exc, _FAILURES)


def call(action: Callable[[], T], request: Subject, settings: Settings) -> T:
    """What a call of botocore returns.

    Raises:
        StoreError: whatever botocore raises about the request.
    """
    return answered(action, is_failure, lambda exc: translated(exc, request, settings))


def translated(exc: BaseException, request: Subject, settings: Settings) -> StoreError:
    """The error to raise, with ``exc`` as its cause, freed of what S3 repeats of the request."""
    if isinstance(exc, ClientError):
        error = _of_answer(exc.response, request, settings)
        error.__cause__ = ClientError(_without_echo(exc.response, error.detail), exc.operation_name)
        return error
    if credentials := _told_by_credentials(exc):
        # without the cause: it holds what the command printed, or the header that cannot be sent
        return error_of(BadCredentials, request, settings, credentials)
    error = error_of(_kind(exc), request, settings, str(exc))
    error.__cause__ = exc if settings.redact(str(exc)) == str(exc) else Exception(settings.redact(repr(exc)))
    return error


def from_error(entry: Mapping[str, Any], request: Subject, settings: Settings) -> StoreError:
    """The error for one entry of ``Errors`` in the answer to DeleteObjects."""
    return Answer(None, entry.get("Code") or "", entry.get("Message") or "").error(request, settings)


def _told_by_credentials(exc: BaseException) -> str:
    """What is wrong with the credentials, where botocore's error does not say that it is about them."""
    if isinstance(exc, json.JSONDecodeError):  # nothing else here is JSON: S3 and STS answer XML
        return "what tells them, as the command of `credential_process`, prints no JSON"
    if isinstance(exc, FileNotFoundError):
        return f"there is no {exc.filename}, which tells them: a token's file, or the command of `credential_process`"
    if "Invalid header value" in str(exc):  # metadata and content types are looked at before they are sent
        return "the key id or the session token holds a line break, or another character that no header can carry"
    return ""


def _kind(exc: BaseException) -> type[StoreError]:
    return next(_KINDS[cls.__name__] for cls in type(exc).__mro__ if cls.__name__ in _KINDS)


def _of_answer(response: Mapping[str, Any], request: Subject, settings: Settings) -> StoreError:
    error, metadata = response.get("Error", {}), response.get("ResponseMetadata", {})
    status, headers = metadata.get("HTTPStatusCode"), metadata.get("HTTPHeaders", {})
    code = str(error.get("Code") or "")
    region = error.get("Region") or headers.get("x-amz-bucket-region", "")
    if code and not code.isdigit():
        return Answer(status, code, error.get("Message") or "", region).error(request, settings)
    # botocore found no code, and put the status in its place
    has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    if has_body and "xml" in headers.get("content-type", ""):
        return error_of(Interrupted, request, settings, "the answer is cut off", status)
    return Answer(status, region=region, foreign=has_body).error(request, settings)


def _without_echo(response: Mapping[str, Any], message: str) -> dict[str, Any]:
    """The answer without the signed headers that S3 repeats, among them a session token."""
    code = response.get("Error", {}).get("Code", "")
    return {**response, "Error": {"Code": code, "Message": message}}
