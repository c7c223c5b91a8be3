"""The settings, resolved once into one frozen value that is passed down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Secret", "Settings"]


class Secret:
    """A value that masks itself wherever it is printed."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "********"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    bucket: str
    #: put before every key; normalised from `base_path`, verbatim from `s3_base_path`
    base: str = ""
    region: str = "us-east-1"
    endpoint_url: str | None = None
    access_key_id: Secret | None = None
    secret_access_key: Secret | None = None
    session_token: Secret | None = None
    profile: str | None = None
    role_arn: str | None = None
    storage_class: str | None = None
    sse: str | None = None
    sse_kms_key_id: str | None = None
    bucket_key: bool | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    addressing_style: Literal["auto", "path", "virtual"] = "auto"
    #: True, False, or the path of a CA bundle (PEM)
    verify: bool | str = True
    connect_timeout: float = 2.0
    read_timeout: float = 5.0
    max_retries: int = 8
    concurrency: int = 32
    request_payer: bool = False
    expected_bucket_owner: str | None = None
    client: Literal["auto", "obstore", "boto3"] = "auto"
    conditional_writes: Literal["auto", "required", "off"] = "auto"
    missing_as_403: bool = False
