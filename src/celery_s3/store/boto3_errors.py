"""What botocore raises, as the classes of :mod:`celery_s3.errors`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from celery_s3.errors import BadCredentials, BadRequest, Interrupted, StoreError, TLSFailure, Unreachable
from celery_s3.settings import Settings

from .translate import Answer, Request

__all__ = ["FAILURES", "from_error", "translated"]

#: What a call of botocore may raise: its own errors, and what the system says of a socket or a file.
FAILURES = (BotoCoreError, ClientError, OSError, ValueError)

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
    "IncompleteReadError": Interrupted,
    "ResponseParserError": Interrupted,
    # nobody to sign as
    "ConfigNotFound": BadCredentials,
    "ConfigParseError": BadCredentials,
    "CredentialRetrievalError": BadCredentials,
    "InvalidConfigError": BadCredentials,
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


def translated(exc: BaseException, request: Request, settings: Settings) -> StoreError:
    """The error to raise, with ``exc`` as its cause."""
    if isinstance(exc, ClientError):
        error = _answer(exc.response).error(request, settings)
        error.__cause__ = _without_echo(exc)
    else:
        error = request.error(_kind(exc), settings, str(exc))
        error.__cause__ = exc if settings.redact(str(exc)) == str(exc) else Exception(settings.redact(repr(exc)))
    return error


def from_error(entry: Mapping[str, Any], request: Request, settings: Settings) -> StoreError:
    """The error for one entry of ``Errors`` in the answer to DeleteObjects."""
    return Answer(None, entry.get("Code", ""), entry.get("Message", "")).error(request, settings)


def _kind(exc: BaseException) -> type[StoreError]:
    return next(_KINDS[cls.__name__] for cls in type(exc).__mro__ if cls.__name__ in _KINDS)


def _answer(response: Mapping[str, Any]) -> Answer:
    error, metadata = response.get("Error", {}), response.get("ResponseMetadata", {})
    status, headers = metadata.get("HTTPStatusCode"), metadata.get("HTTPHeaders", {})
    code = str(error.get("Code", ""))
    region = error.get("Region") or headers.get("x-amz-bucket-region", "")
    if not code.isdigit():
        return Answer(status, code, error.get("Message", ""), region)
    # botocore puts the status where the code was not found; a body that has none is not S3's
    foreign = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    return Answer(status, region=region, foreign=foreign)


def _without_echo(exc: ClientError) -> ClientError:
    """The error without what S3 repeats of the request: its signed headers, among them a session token."""
    error = exc.response.get("Error", {})
    exc.response["Error"] = {name: error[name] for name in ("Code", "Message", "Region") if name in error}
    return exc
