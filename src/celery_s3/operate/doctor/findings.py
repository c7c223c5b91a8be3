"""What a step found, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from celery_s3.errors import AccessDenied, BadCredentials, StoreError
from celery_s3.settings import Settings

__all__ = ["Finding", "Level", "denied", "fail", "ok", "skip", "warn"]

Level = Literal["OK", "WARN", "FAIL", "SKIP"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One step's outcome.

    Attributes:
        level: ``FAIL``: results are not stored, fetched or deleted as they should be; ``WARN``: they are, and
            something costs money, time or safety; ``SKIP``: it could not be tried.
        remedy: what to do, empty where nothing is to be done.
    """

    level: Level
    text: str
    remedy: str = ""
    step: str = ""


def ok(text: str) -> Finding:
    """All is well; ``text`` says what was found."""
    return Finding("OK", text)


def warn(text: str, remedy: str = "") -> Finding:
    """Results are stored and fetched, and something costs money, time or safety."""
    return Finding("WARN", text, remedy)


def fail(text: str, remedy: str = "") -> Finding:
    """Results are not stored, fetched or deleted as they should be."""
    return Finding("FAIL", text, remedy)


def skip(text: str) -> Finding:
    """It could not be tried; ``text`` says why."""
    return Finding("SKIP", text)


def denied(error: StoreError, settings: Settings, actions: Sequence[str]) -> Finding:
    """A refused request as a finding; ``actions``: what IAM must allow for it."""
    if isinstance(error, AccessDenied):
        named = " and ".join([*actions, *_of_kms(settings, actions)])
        return fail(error.reason, f"Allow {named}; `celery -A … s3 policy` prints the whole policy.")
    if isinstance(error, BadCredentials) and error.code == "RequestTimeTooSkewed":
        return fail(error.reason, "Set this machine's clock: S3 refuses a request that is 15 minutes off.")
    return fail(error.reason, error.remedy)


def _of_kms(settings: Settings, actions: Sequence[str]) -> list[str]:
    if not (settings.sse or "").startswith("aws:kms"):
        return []
    needs = {"s3:PutObject": "kms:GenerateDataKey", "s3:GetObject": "kms:Decrypt"}
    return [f"{needs[action]} on the KMS key" for action in actions if action in needs]
