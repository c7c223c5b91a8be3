"""Credentials by botocore: static keys, profiles, SSO, credential processes and assumed roles.

Importing botocore takes 0.2 s and 20 MB: import this module only where it is needed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import botocore.session
from botocore import loaders
from botocore.config import Config
from botocore.credentials import AssumeRoleCredentialFetcher, CredentialResolver, DeferredRefreshableCredentials
from botocore.exceptions import NoCredentialsError

from celery_s3.interruptions import INTERRUPTIONS_OF_LARGE, forget_locals, reraise_interruption
from celery_s3.settings import Settings

from .network import proxies_to, sts_url

if TYPE_CHECKING:
    from obstore.store import S3Credential

__all__ = ["SessionCredentials", "client_factory", "open_session"]

#: How long obstore may keep what botocore gave it: botocore renews a token 10 to 15 minutes before it ends.
_TTL = timedelta(minutes=10)


def open_session(settings: Settings) -> Any:
    """A botocore session with the credentials that the settings describe."""
    session = _session(settings)
    if settings.access_key_id is not None and settings.secret_access_key is not None:
        session.set_credentials(
            settings.access_key_id.reveal(),
            settings.secret_access_key.reveal(),
            settings.session_token.reveal() if settings.session_token is not None else None,
        )
    if not settings.role_arn:
        return session
    assumed = _session(settings)
    assumed.register_component("credential_provider", CredentialResolver([_AssumedRole(session, settings)]))
    return assumed


def _session(settings: Settings) -> Any:
    session = botocore.session.Session(profile=settings.profile)
    session.register_component("data_loader", _loader(session.get_config_variable("data_path")))
    # for the clients that botocore makes by itself, to ask for credentials, if it ever does
    proxy = settings.proxies.to(sts_url(settings))
    if proxy is None or not proxy.wrong:
        session.set_default_client_config(Config(proxies=proxies_to(sts_url(settings), settings)))
    if settings.on_aws and isinstance(settings.verify, str):
        session.set_config_variable("ca_bundle", settings.verify)
    return session


@lru_cache(maxsize=8)
def _loader(data_path: str | None) -> Any:
    """What parses service models, once a process: a session's own takes 60 to 200 ms of CPU a client instead of 10."""
    return loaders.create_loader(data_path)


def client_factory(settings: Settings) -> Callable[..., Any]:
    """What makes botocore clients with the credentials that the settings describe."""
    create: Callable[..., Any] = (
        settings.session.client if settings.session is not None else open_session(settings).create_client
    )

    def factory(*args: Any, **kwargs: Any) -> Any:
        client = create(*args, **kwargs)
        client.meta.events.register_first("needs-retry", _let_pass)
        return client

    return factory


def _let_pass(caught_exception: BaseException | None = None, **_: Any) -> None:
    """What happened to a request and has nothing to do with it: botocore takes a soft time limit for a bad network."""
    if caught_exception is not None:
        reraise_interruption(caught_exception, sys.exception(), INTERRUPTIONS_OF_LARGE)


class _AssumedRole:
    """A credential provider for botocore: the role's, asked for with those of another session."""

    METHOD = "assume-role"
    CANONICAL_NAME = "celery-s3-assume-role"

    def __init__(self, source: Any, settings: Settings) -> None:
        self._source = source
        self._settings = settings

    def load(self) -> Any:
        credentials = self._source.get_credentials()
        if credentials is None:
            raise NoCredentialsError
        timeouts = Config(connect_timeout=self._settings.connect_timeout, read_timeout=self._settings.read_timeout)
        fetcher = AssumeRoleCredentialFetcher(
            client_creator=partial(self._source.create_client, region_name=self._settings.region, config=timeouts),
            source_credentials=credentials,
            role_arn=self._settings.role_arn,
            extra_args={"RoleSessionName": "celery-s3"},
        )
        return DeferredRefreshableCredentials(method=self.METHOD, refresh_using=fetcher.fetch_credentials)


class SessionCredentials:
    """obstore's credential provider that asks botocore.

    Attributes:
        failure: what the last call raised; obstore hands on no more than its text.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._credentials: Any = None
        self.failure: BaseException | None = None

    def __call__(self) -> S3Credential:
        """The credentials as obstore wants them, to be asked for again after ten minutes."""
        self.failure = None
        try:
            return self._fetch()
        except BaseException as exc:
            forget_locals(exc)
            self.failure = exc
            raise

    def _fetch(self) -> S3Credential:
        if self._credentials is None:
            self._credentials = open_session(self._settings).get_credentials()
        if self._credentials is None:
            raise NoCredentialsError
        frozen = self._credentials.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + _TTL,
        }
