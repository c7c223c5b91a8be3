"""From everything that was said to one :class:`Settings`, or to every mistake at once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from celery_s3.errors import ConfigurationError

from .aws import AwsEnvironment
from .kinds import CABundle, Wrong, proxy_url, seconds_of
from .model import Settings
from .network import CA_VARIABLES, Proxies, Proxy, no_proxy_of, proxy_variables
from .options import OPTIONS
from .secret import Secret
from .sources import Given, from_celery, from_dict, from_url

__all__ = ["resolve"]


class Resolution:
    """What is known so far: the checked values by setting, where each came from, and the mistakes."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.where: dict[str, str] = {}
        self.mistakes: list[str] = []
        #: settings that have a mistake of their own, which says enough
        self.wrong: set[str] = set()

    def add(self, given: Iterable[Given]) -> None:
        """Check the values of one source, and add those that no stronger source has given already."""
        for item in given:
            try:
                value = item.checked()
            except Wrong as exc:
                self.mistakes.append(f"{item.where}: {exc}")
                self.wrong.add(item.name)
                continue
            if item.name not in self.where:
                self.values[item.name] = value
                self.where[item.name] = item.where

    def has(self, *names: str) -> bool:
        """Whether one of these settings was given, and is not False."""
        return any(self.values.get(name) not in (None, False) for name in names)

    def refuse_if(self, wrong: bool, names: str, reason: str) -> None:
        """Where ``wrong``, note a mistake that several settings make together.

        Arguments:
            names: of these settings, with spaces between them. One that has a mistake of its own is not told again.
            reason: the rest of the sentence, with the remedy.
        """
        if wrong and self.wrong.isdisjoint(names.split()):
            named = [self.where.get(name, f"`{name}`") for name in names.split()]
            self.mistakes.append(f"{' and '.join(named)}: {reason}")

    def raise_mistakes(self) -> None:
        """Raise all mistakes so far as one error; nothing where there is none.

        Raises:
            ConfigurationError: with a line for every mistake.
        """
        if self.mistakes:
            lines = "".join(f"\n  - {mistake}" for mistake in dict.fromkeys(self.mistakes))
            raise ConfigurationError(f"the settings of celery-s3 are wrong:{lines}")


def resolve(app: Any, url: str | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """The settings of an application.

    Strongest first: the URL, ``s3_backend_settings``, Celery's own ``s3_*`` settings, the AWS environment.

    Arguments:
        app: the Celery application.
        url: the result backend's URL; ``None`` where the backend was named by its class.
        environ: the environment's variables; by default those of the process.

    Raises:
        ConfigurationError: with a line for every mistake. It holds no secret.
    """
    found = Resolution()
    _add_url(found, url)
    found.add(from_dict(app.conf, found.mistakes))
    found.add(from_celery(app.conf))
    _check_terms(found, app.conf)
    _check_credentials(found)
    _check_storage(found)
    environ = os.environ if environ is None else environ
    environment = _add_environment(found, environ)
    _add_network(found, environ)
    missing = not found.has("bucket")
    found.refuse_if(missing, "bucket", "is missing: name it in s3_backend_settings, in the URL or as `s3_bucket`")
    found.raise_mistakes()
    settings = _build(found.values, environment | {"where": found.where})
    wrong = settings.client == "obstore" and bool(settings.boto3_reason)
    found.refuse_if(wrong, "client", f"obstore cannot serve this, {settings.boto3_reason}: set `auto` or `boto3`")
    proxy = settings.proxies.to(settings.bucket_url)
    if proxy is not None and proxy.wrong:
        found.mistakes.append(f"{proxy.where}: {proxy.wrong}")
    found.raise_mistakes()
    return settings


def _add_network(found: Resolution, environ: Mapping[str, str]) -> None:
    """What the environment says to every program, where neither a setting nor AWS' part of it has spoken."""
    variable = next((name for name in CA_VARIABLES if environ.get(name)), None)
    if variable and "verify" not in found.where and "verify" not in found.wrong:
        found.add([Given("verify", environ[variable], variable, CABundle())])
    if "proxies" in found.where or "proxies" in found.wrong:
        return
    named = {scheme: _proxy(variable, value) for scheme, variable, value in proxy_variables(environ)}
    found.values["proxies"] = Proxies(named, no_proxy_of(environ))


def _proxy(variable: str, value: str) -> Proxy:
    try:
        return Proxy(proxy_url(value), variable)
    except Wrong as exc:
        # perhaps no request of ours would go through it
        return Proxy(Secret(""), variable, str(exc))


def _add_url(found: Resolution, url: str | None) -> None:
    try:
        found.add(from_url(url, found.mistakes))
    except Wrong as exc:
        found.mistakes.append(str(exc))
        found.wrong.add("bucket")


def _add_environment(found: Resolution, environ: Mapping[str, str]) -> dict[str, Any]:
    session = found.values.get("session")
    if region := getattr(session, "region_name", None):
        found.add([Given("aws_region", region, "the session's region", OPTIONS["aws_region"].kind)])
    profile = found.values.get("profile") or getattr(session, "profile_name", None)
    aws = AwsEnvironment(environ, profile, found.mistakes)
    found.add(aws.given())
    if not found.has("session", "profile", "aws_access_key_id", "aws_secret_access_key"):
        aws.check_keys()
    return {"profile_credentials": aws.profile_credentials, "special_endpoints": aws.special_endpoints}


def _check_terms(found: Resolution, conf: Mapping[str, Any]) -> None:
    """Celery's own settings that :mod:`celery_s3.expiry.terms` reads: whatever is wrong is told at once."""
    for name in ("result_expires", "result_failure_expires", "result_chord_expires"):
        value = conf.get(name)
        try:
            None if value is None else seconds_of(value)
        except Wrong as exc:
            found.mistakes.append(f"`{name}` {exc}")


def _check_credentials(found: Resolution) -> None:
    key, secret = "aws_access_key_id", "aws_secret_access_key"
    keys = f"{key} {secret}"
    found.refuse_if(found.has(key) != found.has(secret), keys, "only one is given: give both or neither")
    if found.has(key) and found.has(secret):
        same = _source(found, key) == _source(found, secret)
        found.refuse_if(not same, keys, "the pair comes from two places: give both in one")
    alone = found.has("session_token") and not found.has(key, secret)
    found.refuse_if(alone, "session_token", f"belongs to temporary keys: give {key} and {secret} too")
    both = found.has("profile") and found.has(key)
    found.refuse_if(both, f"profile {key}", "each names other credentials: keep one")
    for name in ("profile", "role_arn", key):
        both = found.has("session") and found.has(name)
        found.refuse_if(both, f"session {name}", "the session has its credentials: keep one")


def _source(found: Resolution, name: str) -> str:
    return "s3_*" if found.where[name] == f"`{OPTIONS[name].celery}`" else "dict"


def _check_storage(found: Resolution) -> None:
    other = found.values.get("storage_class", "REDUCED_REDUNDANCY") != "REDUCED_REDUNDANCY"
    wrong = found.has("reduced_redundancy") and other
    found.refuse_if(wrong, "reduced_redundancy storage_class", "they name two storage classes: keep one")
    sse = found.values.get("sse")
    wrong = found.has("encrypt_key") and sse not in (None, "AES256")
    found.refuse_if(wrong, "encrypt_key sse", "they name two encryptions: keep one")
    wrong = found.has("sse_kms_key_id") and sse not in ("aws:kms", "aws:kms:dsse")
    found.refuse_if(wrong, "sse_kms_key_id", "needs `sse` to be `aws:kms` or `aws:kms:dsse`")
    wrong = found.has("bucket_key") and sse != "aws:kms"
    found.refuse_if(wrong, "bucket_key", "needs `sse` to be `aws:kms`")
    wrong = found.has("expiry_tags") and len(found.values.get("tags", ())) == 10
    found.refuse_if(wrong, "expiry_tags tags", "S3 allows 10 tags, and one is needed: remove one of `tags`")
    for name in ("seal", "accept_unsealed"):
        wrong = found.has(name) and not found.has("seal_keys")
        found.refuse_if(wrong, f"{name} seal_keys", "the first needs the second")


def _build(values: dict[str, Any], environment: dict[str, Any]) -> Settings:
    named = {OPTIONS[name].target: value for name, value in values.items() if OPTIONS[name].target}
    if values.get("reduced_redundancy"):
        named["storage_class"] = "REDUCED_REDUNDANCY"
    if values.get("encrypt_key"):
        named["sse"] = "AES256"
    return Settings(**named, **environment)
