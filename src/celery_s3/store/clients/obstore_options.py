"""How obstore is set up: everything that it would look for in the environment, said in so many words."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Literal

from obstore.store import MemoryStore, S3Store

from celery_s3.settings import CredentialSource, Settings

from .network import environment_of_obstore, options_of_obstore, same_proxy, sts_url
from .timeouts import brief, long

if TYPE_CHECKING:
    from obstore.store import ClientConfig, S3Config, S3Credential

__all__ = ["Use", "credential_provider", "new_store"]

#: obstore has time-outs and the way of deleting per store, not per request.
Use = Literal["quick", "bulk", "reading", "sending"]

#: One thread waits for all sockets; more of them cost memory and gain nothing (measured with 32 callers).
_TOKIO_THREADS = "1"
#: What obstore would take from the environment and no parameter can take back; botocore knows none of it.
_STRAY = (
    "AWS_CHECKSUM_ALGORITHM",
    "AWS_COPY_IF_NOT_EXISTS",
    "AWS_SERVER_SIDE_ENCRYPTION",
    "AWS_SSE_BUCKET_KEY_ENABLED",
    "AWS_SSE_CUSTOMER_KEY_BASE64",
    "AWS_SSE_KMS_KEY_ID",
)
#: The variables with any of which obstore's own chain finds the same credentials as botocore's; each row is a set that
#: must be complete.
_CHAIN = (
    ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN"),
    ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",),
    ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"),
)
#: Variables that change where botocore looks for a container's or an instance's credentials, and that obstore ignores.
_ONLY_BOTOCORE = (
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_EC2_METADATA_DISABLED",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE",
)

_environment_lock = threading.Lock()
_runtime_started = False


def new_store(settings: Settings, credentials: Callable[[], S3Credential] | None, use: Use) -> S3Store:
    """A store that connects at its first request.

    Arguments:
        credentials: who tells them, ``None`` for obstore's own chain.
        use: a ``bulk`` store deletes many objects in one request instead of one; a ``reading`` one has time for an
            answer of any size, a ``sending`` one to send a large body before the answer begins.
    """
    _start_runtime()
    with _environment(dict.fromkeys(_STRAY) | environment_of_obstore(settings)):
        return S3Store(
            settings.bucket,
            config=_config(settings, use),
            client_options=_client_options(settings, use),
            # retries are the business of celery_s3.store.retrying
            retry_config={"max_retries": 0},
            credential_provider=credentials,
        )


def _config(settings: Settings, use: Use) -> S3Config:
    config: S3Config = {
        "region": settings.region,
        "virtual_hosted_style_request": not settings.path_style,
        "request_payer": settings.request_payer,
        "s3_express": settings.bucket.endswith("--x-s3"),
        "disable_bulk_delete": use != "bulk",
        "conditional_put": "etag",
        "disable_tagging": False,
        "skip_signature": False,
        "unsigned_payload": False,
    }
    # a directory bucket's host obstore knows by itself
    if settings.endpoint_url is not None or not settings.bucket.endswith("--x-s3"):
        config |= {"endpoint": settings.bucket_url, "aws_endpoint_url_s3": settings.bucket_url}
    if settings.sse:
        config["server_side_encryption"] = settings.sse
    if settings.sse_kms_key_id:
        config["sse_kms_key_id"] = settings.sse_kms_key_id
    if settings.bucket_key is not None:
        config["sse_bucket_key_enabled"] = settings.bucket_key
    return config


def _client_options(settings: Settings, use: Use) -> ClientConfig:
    options: ClientConfig = {
        **options_of_obstore(settings),
        "allow_http": (settings.endpoint_url or "").startswith("http://"),
        "connect_timeout": timedelta(seconds=settings.connect_timeout),
        # of a request as a whole
        "timeout": timedelta(seconds=brief(settings) if use in ("quick", "bulk") else long(settings)),
    }
    if use != "sending":
        options["read_timeout"] = timedelta(seconds=settings.read_timeout)
    if settings.expected_bucket_owner:
        # sent and signed with every request
        options["default_headers"] = {"x-amz-expected-bucket-owner": settings.expected_bucket_owner}
    return options


def credential_provider(settings: Settings) -> Callable[[], S3Credential] | None:
    """Who tells obstore the credentials; ``None`` where its own chain finds them."""
    if settings.credential_source is CredentialSource.STATIC:
        return partial(_static_credentials, settings)
    if settings.credential_source is CredentialSource.SDK and _chain_of_obstore(os.environ, settings):
        return None
    from .session import SessionCredentials

    return SessionCredentials(settings)


def _static_credentials(settings: Settings) -> S3Credential:
    # by a provider, since obstore adds the environment's AWS_SESSION_TOKEN to keys in its configuration
    key, secret, token = settings.access_key_id, settings.secret_access_key, settings.session_token
    return {
        "access_key_id": key.reveal() if key else "",
        "secret_access_key": secret.reveal() if secret else "",
        "token": token.reveal() if token else None,
        "expires_at": None,
    }


def _chain_of_obstore(environ: Mapping[str, str], settings: Settings) -> bool:
    """Whether obstore finds the credentials that botocore would find, without the cost of importing it."""
    if environ.get("AWS_WEB_IDENTITY_TOKEN_FILE") and not same_proxy(sts_url(settings), settings):
        return False
    for names in _CHAIN:
        if all(map(environ.get, names)):
            return True
    # the instance's, unless something is said that obstore does not understand
    return not any(map(environ.get, _ONLY_BOTOCORE))


def _start_runtime() -> None:
    """Start obstore's threads, which reads TOKIO_WORKER_THREADS once: by default there is one for every core."""
    global _runtime_started
    if not _runtime_started:
        with _environment({"TOKIO_WORKER_THREADS": os.environ.get("TOKIO_WORKER_THREADS", _TOKIO_THREADS)}):
            MemoryStore().put("start", b"")
        _runtime_started = True


@contextmanager
def _environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Environment variables as given (``None``: absent) for as long as a library reads them."""
    with _environment_lock:
        before = {name: os.environ.get(name) for name in values}
        _set_environment(values)
        try:
            yield
        finally:
            _set_environment(before)


def _set_environment(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if os.environ.get(name) == value:
            continue
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
