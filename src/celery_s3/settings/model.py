"""The settings as one frozen value that is passed down."""

from __future__ import annotations

import enum
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote, urlencode, urlsplit

__all__ = ["CredentialSource", "Secret", "Settings"]

MASK = "********"

#: What S3 may repeat in an error although no setting holds it.
_ENVIRONMENT_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN")
_XML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"})
#: Regions whose hosts are not under amazonaws.com, the only domain that obstore builds names in.
_OTHER_PARTITIONS = ("cn-", "us-iso", "eu-iso", "eusc-")


class Secret:
    """A value that masks itself wherever it is printed."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return MASK

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)


class CredentialSource(enum.Enum):
    """Who finds the credentials."""

    #: nobody: `access_key_id`, `secret_access_key` and `session_token` are the credentials
    STATIC = "static"
    #: boto3: a session, a profile, an assumed role, SSO, a credential process, the shared credentials file
    BOTO3 = "boto3"
    #: the client's own chain: environment, web identity, container, instance
    SDK = "sdk"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    bucket: str
    #: put before every key; normalised from `base_path`, verbatim from `s3_base_path`
    base: str = ""
    region: str = "us-east-1"
    #: of a server other than the region's S3, without trailing slash
    endpoint_url: str | None = None
    access_key_id: Secret | None = None
    secret_access_key: Secret | None = None
    session_token: Secret | None = None
    #: as set; AWS_PROFILE stays in the environment, where boto3 reads it
    profile: str | None = None
    role_arn: str | None = None
    #: a boto3.Session that the application made
    session: Any = field(default=None, repr=False)
    storage_class: str | None = None
    sse: str | None = None
    sse_kms_key_id: str | None = None
    bucket_key: bool | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    addressing_style: Literal["auto", "path", "virtual"] = "auto"
    #: True, False, or the path of a CA bundle (PEM)
    verify: bool | str = True
    #: seconds
    connect_timeout: float = 2.0
    #: seconds
    read_timeout: float = 5.0
    max_retries: int = 8
    concurrency: int = 64
    request_payer: bool = False
    expected_bucket_owner: str | None = None
    client: Literal["auto", "obstore", "boto3"] = "auto"
    conditional_writes: Literal["auto", "required", "off"] = "auto"
    expiry_tags: bool = False
    missing_as_403: bool = False
    chord_resend: bool = True
    #: bytes below which nothing is compressed
    compression_threshold: int = 4096
    #: bytes of a message's body above which its arguments go to S3
    message_threshold: int = 128 * 1024
    message_cleanup: Literal["lifecycle", "success"] = "lifecycle"
    #: metrics and spans
    opentelemetry: bool = False
    #: each a key of 32 bytes in base64, or kms://…; the first one seals, all of them open
    seal_keys: tuple[Secret, ...] = ()
    seal: Literal["encrypt", "sign", "off"] = "encrypt"
    accept_unsealed: bool = False
    #: the AWS environment's profile holds credentials that only boto3 can use
    profile_credentials: bool = False
    #: the AWS environment asks for FIPS or dual-stack hosts, which only boto3 knows
    special_endpoints: bool = False
    #: where each setting that was given came from, by its name
    where: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def credential_source(self) -> CredentialSource:
        if self.session is not None or self.profile or self.role_arn:
            return CredentialSource.BOTO3
        if self.access_key_id is not None:
            return CredentialSource.STATIC
        return CredentialSource.BOTO3 if self.profile_credentials else CredentialSource.SDK

    @property
    def boto3_only_base(self) -> bool:
        """Whether only boto3 can address keys under `base`: obstore drops or refuses empty segments."""
        return self.base.startswith("/") or "//" in self.base

    @property
    def boto3_reason(self) -> str:
        """Why every request must go through boto3; empty where obstore can serve them too."""
        if self.session is not None:
            return "a boto3 session is given"
        if self.boto3_only_base:
            return "s3_base_path has a leading slash or an empty segment"
        if self.endpoint_url is None and self.special_endpoints:
            return "the AWS environment asks for FIPS or dual-stack endpoints"
        if self.endpoint_url is None and self.region.startswith(_OTHER_PARTITIONS):
            return f"the hosts of region {self.region} are not under amazonaws.com"
        return ""

    @property
    def on_aws(self) -> bool:
        """Whether the server is Amazon's own, whose behaviour is known without probing."""
        host = urlsplit(self.endpoint_url or "").hostname or "s3.amazonaws.com"
        return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))

    @property
    def uri(self) -> str:
        """The settings as a URL that says where the results are, and no secret."""
        query = {"region": self.region} | ({"endpoint_url": self.endpoint_url} if self.endpoint_url else {})
        return f"celery-s3://{self.bucket}/{quote(self.base)}?{urlencode(query, safe=':/')}"

    def redact(self, text: str) -> str:
        """The text with every secret of these settings and of the AWS environment replaced by ``********``."""
        for value in sorted(self._secret_values(), key=len, reverse=True):
            for spelling in _spellings(value):
                text = text.replace(spelling, MASK)
        return text

    def _secret_values(self) -> Iterator[str]:
        for secret in (self.access_key_id, self.secret_access_key, self.session_token, *self.seal_keys):
            if secret is not None:
                yield secret.reveal()
        yield from filter(None, map(os.environ.get, _ENVIRONMENT_SECRETS))


def _spellings(value: str) -> Iterator[str]:
    """A text as it stands in a request, in a URL, in XML and in a quoted string."""
    yield value
    yield quote(value, safe="")
    yield value.translate(_XML)
    yield value.replace("\\", "\\\\").replace('"', '\\"')
