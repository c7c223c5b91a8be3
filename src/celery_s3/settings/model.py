"""The settings as one frozen value that is passed down."""

from __future__ import annotations

import enum
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote, urlencode, urlsplit

from .network import Proxies
from .secret import MASK, Secret

__all__ = ["CredentialSource", "Settings"]

#: What S3 may repeat in an error although no setting holds it.
_ENVIRONMENT_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN")
_XML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"})
#: Regions whose hosts are not under amazonaws.com, the only domain that obstore builds names in.
_OTHER_PARTITIONS = ("cn-", "us-iso", "eu-iso", "eusc-")
#: Systems whose own verifier obstore asks, whatever bundle it is given.
_OWN_VERIFIER = ("darwin", "win32")


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
    """Everything that was said, checked. The names are those of the settings where nothing else is noted."""

    #: the bucket that holds the results; required
    bucket: str
    #: before every key: `base_path` with one slash at its end, Celery's `s3_base_path` as it is; default: nothing
    base: str = ""
    #: `aws_region`: the bucket's region; default: us-east-1
    region: str = "us-east-1"
    #: the URL of a server other than the region's S3, without a slash at its end; default: Amazon's
    endpoint_url: str | None = None
    #: `aws_access_key_id`; default: the AWS environment's credentials
    access_key_id: Secret | None = None
    #: `aws_secret_access_key`, given together with `access_key_id`; default: neither is
    secret_access_key: Secret | None = None
    #: goes with temporary keys; default: the two keys are not temporary
    session_token: Secret | None = None
    #: a profile of the AWS configuration files; default: none, and AWS_PROFILE stays where boto3 reads it
    profile: str | None = None
    #: the ARN of a role that boto3 assumes and renews; default: the credentials are used as they are
    role_arn: str | None = None
    #: a boto3.Session that the application made, through which every request goes then; default: none
    session: Any = field(default=None, repr=False)
    #: of every object, from `storage_class` or `reduced_redundancy`; default: the bucket's
    storage_class: str | None = None
    #: server-side encryption, AES256, aws:kms or aws:kms:dsse, from `sse` or `encrypt_key`; default: the bucket's
    sse: str | None = None
    #: id, alias or ARN of the key for aws:kms and aws:kms:dsse; default: the account's own
    sse_kms_key_id: str | None = None
    #: whether aws:kms takes an S3 Bucket Key, which means fewer requests to KMS; default: as the bucket has it
    bucket_key: bool | None = None
    #: object tags of every object, at most 10; default: none
    tags: Mapping[str, str] = field(default_factory=dict)
    #: whether the bucket stands in a URL's path or host; default: auto
    addressing_style: Literal["auto", "path", "virtual"] = "auto"
    #: whether the server's certificate is verified, or by what CA bundle (the path of a PEM file); default: it is
    verify: bool | str = True
    #: the proxies that requests go through; default: those of the environment, `HTTPS_PROXY` and its like
    proxies: Proxies = field(default_factory=Proxies)
    #: seconds to connect; default: 2
    connect_timeout: float = 2.0
    #: seconds between two pieces of an answer; default: 5
    read_timeout: float = 5.0
    #: how often a request that failed for a while is tried again; default: 8
    max_retries: int = 8
    #: seconds for which a final state, or a chord member's part, is tried to be stored; default: 3600, an hour
    outage_patience: float = 3600.0
    #: results that a child of a prefork pool stores while it goes on; default: 16 of tasks with acks_late, else none
    overlap: int | None = None
    #: requests at the same time where many results are read; default: 64
    concurrency: int = 64
    #: the bucket is a Requester Pays bucket and the charge is accepted; default: no
    request_payer: bool = False
    #: the AWS account id (12 digits) that must own the bucket, else requests are refused; default: any may
    expected_bucket_owner: str | None = None
    #: the S3 client; default: auto, which takes obstore where it can serve
    client: Literal["auto", "obstore", "boto3"] = "auto"
    #: whether the server is asked for conditional writes, must have them, or is read before it is written to
    #: default: auto, it is asked
    conditional_writes: Literal["auto", "required", "off"] = "auto"
    #: tag each result with how long it lives, for lifecycle rules to tell; default: no
    expiry_tags: bool = False
    #: 403 means that a result is not there yet, for who may not list; default: no, it is an error
    missing_as_403: bool = False
    #: whether a chord's body is sent again where a worker died while it sent it; default: yes
    chord_resend: bool = True
    #: bytes below which nothing is compressed; default: 4 KiB
    compression_threshold: int = 4096
    #: bytes that may come out of what is compressed, where they are more than 100 times those stored; default: 128 MiB
    decompression_limit: int = 128 * 1024 * 1024
    #: bytes of a message's body above which its arguments go to S3; default: 128 KiB
    message_threshold: int = 128 * 1024
    #: what removes such arguments, a lifecycle rule alone or the task's success before that; default: lifecycle
    message_cleanup: Literal["lifecycle", "success"] = "lifecycle"
    #: the broker tells who waits that a result is there, and what it is or its id alone; or nobody is told
    #: default: auto, where the broker is Redis or RabbitMQ small results go along; on: on SQS, too
    notices: Literal["auto", "ids", "on", "off"] = "auto"
    #: OpenTelemetry's metrics, and a span for each request; default: none
    opentelemetry: bool = False
    #: each a key of 32 bytes in base64, or kms://…; the first one seals, all of them open; default: nothing is sealed
    seal_keys: tuple[Secret, ...] = ()
    #: what is done with `seal_keys`; default: encrypt
    seal: Literal["encrypt", "sign", "off"] = "encrypt"
    #: with `seal_keys`, read plain objects too, whoever wrote them; default: no
    accept_unsealed: bool = False
    #: no setting: the AWS environment's profile holds credentials that only boto3 can use
    profile_credentials: bool = False
    #: no setting: the AWS environment asks for FIPS or dual-stack hosts, which only boto3 knows
    special_endpoints: bool = False
    #: no setting: where each setting that was given came from, by its name
    where: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def credential_source(self) -> CredentialSource:
        """Who finds the credentials that these settings and the AWS environment mean."""
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
        if isinstance(self.verify, str) and sys.platform in _OWN_VERIFIER:
            return "obstore adds the CA that `verify` names to those of this system, and does not replace them"
        if self.endpoint_url is None and self.region.startswith(_OTHER_PARTITIONS):
            return f"the hosts of region {self.region} are not under amazonaws.com"
        return ""

    @property
    def authenticated(self) -> bool:
        """Whether what is read from the bucket was written by who has the keys."""
        return bool(self.seal_keys) and self.seal != "off" and not self.accept_unsealed

    @property
    def on_aws(self) -> bool:
        """Whether the server is Amazon's own, whose behaviour is known without probing."""
        host = urlsplit(self.endpoint_url or "").hostname or "s3.amazonaws.com"
        return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))

    @property
    def path_style(self) -> bool:
        """Whether the bucket is the first segment of the path instead of the first label of the host.

        ``auto`` means the host on AWS and the path elsewhere, for both clients alike; the name of a bucket that has
        dots in it would not match AWS's certificate.
        """
        if self.addressing_style != "auto":
            return self.addressing_style == "path"
        return self.endpoint_url is not None or "." in self.bucket

    @property
    def bucket_url(self) -> str:
        """Scheme, host and port of requests to the bucket, with a path where the endpoint has one."""
        if self.endpoint_url is None and self.bucket.endswith("--x-s3"):
            zone = self.bucket.split("--")[-2]
            return f"https://{self.bucket}.s3express-{zone}.{self.region}.amazonaws.com"
        base = self.endpoint_url or f"https://s3.{self.region}.amazonaws.com"
        if self.path_style:
            return base
        url = urlsplit(base)
        return url._replace(netloc=f"{self.bucket}.{url.netloc}").geturl()

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
        yield from self.proxies.passwords()
        yield from filter(None, map(os.environ.get, _ENVIRONMENT_SECRETS))


def _spellings(value: str) -> Iterator[str]:
    """A text as it stands in a request, in a URL, in XML and in a quoted string."""
    yield value
    yield quote(value, safe="")
    yield value.translate(_XML)
    yield value.replace("\\", "\\\\").replace('"', '\\"')
