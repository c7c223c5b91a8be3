"""Who asks, where, and by which client."""

from __future__ import annotations

from collections import defaultdict

from celery_s3.errors import AccessDenied, BadCredentials, BucketMissing, StoreError
from celery_s3.settings import CredentialSource, Settings
from celery_s3.settings.kinds import Session
from celery_s3.settings.options import OPTIONS

from .case import Case
from .findings import Finding, denied, fail, ok, warn

__all__ = ["bucket", "client", "credentials", "settings"]

_SOURCES = {
    CredentialSource.STATIC: "the settings' own keys",
    CredentialSource.BOTO3: "found by boto3",
    CredentialSource.SDK: "found in the AWS environment",
}


def settings(case: Case) -> Finding:
    """What was given, by the place that said it; secrets are masked."""
    given: dict[str, list[str]] = defaultdict(list)
    for name, where in case.settings.where.items():
        place = where.rpartition(" in ")[2] or where
        given[place.removeprefix("the ")].append(_name_and_value(case.settings, name))
    return ok("; ".join(f"from {place}: {', '.join(names)}" for place, names in given.items()) or "all by default")


def _name_and_value(settings: Settings, name: str) -> str:
    option = OPTIONS[name]
    if not option.target or isinstance(option.kind, Session):
        return name
    return f"{name}={getattr(settings, option.target)}"


def client(case: Case) -> Finding:
    """Which S3 client is used, and why."""
    if case.settings.client == "boto3":
        return ok("boto3, as `client` says")
    if case.settings.boto3_reason:
        return ok(f"boto3: {case.settings.boto3_reason}")
    return ok("obstore; boto3 in the main process of a prefork worker, for listings, and under gevent and eventlet")


def credentials(case: Case) -> Finding:
    """Which credentials there are, and whose."""
    source = _SOURCES[case.settings.credential_source]
    try:
        found = case.control.credentials_found
    except StoreError as exc:
        return fail(exc.reason, exc.remedy)
    try:
        case.control.region()
    except BadCredentials as exc:
        return fail(f"{source}, and the server refuses them: {exc.reason}", denied(exc, case.settings, ()).remedy)
    except StoreError:
        pass  # the next step tells
    source += f" ({found})" if case.settings.credential_source is not CredentialSource.STATIC else ""
    try:
        identity = case.control.identity()
    except BadCredentials as exc:
        if case.settings.on_aws:
            return denied(exc, case.settings, ())
        return ok(f"{source}; the server does not tell whose they are")
    except StoreError as exc:
        text = f"{source}; the server does not tell whose they are"
        return warn(f"{text}: {exc.reason}", "Let this machine reach STS.") if case.settings.on_aws else ok(text)
    if identity.arn.endswith(":root"):
        return warn(f"{source}: {identity.arn}", "Use a role or a user with the least that it needs, not root.")
    return ok(f"{source}: {identity.arn}")


def bucket(case: Case) -> Finding:
    """Whether the bucket can be reached at all: without it nothing else can be tried."""
    try:
        region = case.control.region()
    except BucketMissing as exc:
        return fail(exc.reason, "Create it with `celery -A … s3 init`, or correct `bucket`.")
    except AccessDenied as exc:
        return warn(f"it cannot be told whether it exists: {exc.reason}", "Allow s3:ListBucket on the bucket.")
    except StoreError as exc:
        return denied(exc, case.settings, ())
    if region and region != case.settings.region and case.settings.on_aws:
        return warn(f"is in {region}, and `aws_region` says {case.settings.region}", f"Set `aws_region` to {region}.")
    # Amazon would have redirected a request for another region
    found = region or (case.settings.region if case.settings.on_aws else "")
    return ok(f"exists, in {found}" if found else "exists")
