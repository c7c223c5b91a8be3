"""Proxies and certificates, as each client wants to be told; what they are is :mod:`celery_s3.settings.network`'s.

A client that is not told looks into the environment by rules of its own.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from celery_s3.errors import ConfigurationError
from celery_s3.settings import Settings

if TYPE_CHECKING:
    from obstore.store import ClientConfig

__all__ = [
    "environment_of_obstore",
    "options_of_obstore",
    "proxies_to",
    "proxy_to",
    "same_proxy",
    "sts_url",
    "trusted",
]

#: Where a container or an instance is told its credentials: never through a proxy.
_METADATA = ("169.254.169.254", "169.254.170.2", "fd00:ec2::254")
#: What obstore takes for every host; without a proxy of ours it would look for one in the environment.
_NO_PROXY = "*,0.0.0.0/0,::/0"


def proxy_to(url: str, settings: Settings) -> str:
    """The proxy through which a URL is reached, with its password; empty for none.

    Raises:
        ConfigurationError: the environment names one that cannot be used.
    """
    proxy = settings.proxies.to(url)
    if proxy is None:
        return ""
    if proxy.wrong:
        raise ConfigurationError(f"{proxy.where}: {proxy.wrong}")
    return proxy.url.reveal()


def proxies_to(url: str, settings: Settings) -> dict[str, str]:
    """The same for botocore, which asks by a request's scheme; empty, not ``None``, means no proxy."""
    proxy = proxy_to(url, settings)
    return dict.fromkeys(("http", "https"), proxy) if proxy else {}


def same_proxy(url: str, settings: Settings) -> bool:
    """Whether a URL is reached as the bucket is: obstore knows one way for all."""
    return settings.proxies.to(url) == settings.proxies.to(settings.bucket_url)


def sts_url(settings: Settings) -> str:
    """Where AWS gives out the credentials of a role."""
    return f"https://sts.{settings.region}.amazonaws.com"


def trusted(settings: Settings) -> bool | str:
    """What botocore is to verify the server by: ``False``, or the path of a PEM file, in place of all others."""
    return _public_bundle() if settings.verify is True else settings.verify


def options_of_obstore(settings: Settings) -> ClientConfig:
    """How obstore reaches the bucket."""
    options: ClientConfig = {"allow_invalid_certificates": settings.verify is False}
    if proxy := proxy_to(settings.bucket_url, settings):
        full = urlsplit(os.environ.get("AWS_CONTAINER_CREDENTIALS_FULL_URI", "")).hostname or ""
        return options | {"proxy_url": proxy, "proxy_excludes": ",".join(filter(None, (*_METADATA, full)))}
    return options | {"proxy_url": "http://127.0.0.1", "proxy_excludes": _NO_PROXY}


def environment_of_obstore(settings: Settings) -> dict[str, str | None]:
    """The environment in which obstore makes a store, where a parameter could not say the same.

    The file that ``SSL_CERT_FILE`` names is trusted in place of the system's; its own parameter adds to them. Other
    threads may read the variable meanwhile: it is left alone where nothing is to be verified.
    """
    bundle = trusted(settings)
    if not isinstance(bundle, str) or sys.platform in ("darwin", "win32") or settings.bucket_url.startswith("http:"):
        return {}
    return {"SSL_CERT_DIR": None, "SSL_CERT_FILE": bundle}


@cache
def _public_bundle() -> str | bool:
    """Mozilla's certificates, as ``requests`` and boto3 bring them; without importing either."""
    for package in ("certifi", "botocore"):
        found = find_spec(package)
        bundle = Path(found.origin or "").with_name("cacert.pem") if found else None
        if bundle is not None and bundle.is_file():
            return str(bundle)
    return True
