"""Every setting: its name, what it may be, and what it does. The documentation's table is made from it."""

from __future__ import annotations

from dataclasses import dataclass, fields

from .kinds import (
    BasePath,
    CABundle,
    Choice,
    Endpoint,
    Flag,
    Number,
    ProxyMap,
    Session,
    StorageClass,
    Tags,
    Text,
    Token,
    ValueKind,
)
from .model import Settings
from .seal_keys import SealKeys

__all__ = ["ALIASES", "OPTIONS", "Option"]


@dataclass(frozen=True)
class Option:
    """One setting.

    Arguments:
        help: a sentence for the documentation.
        celery: the name by which Celery's own `s3` backend knows it.
        environment: where the AWS environment says it.
        field: its field in :class:`Settings`, where that has another name; empty where it has none of its own.
        in_url: whether a URL may say it.
    """

    name: str
    kind: ValueKind
    help: str
    celery: str = ""
    environment: tuple[str, ...] = ()
    field: str | None = None
    in_url: bool = True

    @property
    def target(self) -> str:
        """The field of :class:`Settings` that it sets; empty where it has none of its own."""
        return self.name if self.field is None else self.field

    @property
    def default(self) -> object:
        """The default, ``None`` where there is none."""
        found = [field.default for field in fields(Settings) if field.name == self.target]
        return found[0] if found and isinstance(found[0], str | int | float) else None


_ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_BUCKET = Text(
    "a bucket name: 3 to 63 letters, digits, `.`, `-` and `_`, the first a letter or a digit",
    r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{2,62}",
)
_REGION = Text("the name of a region, as `eu-central-1`", r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_PROFILE = Text("the name of a profile", r".+")
_ROLE = Text("the ARN of a role, as `arn:aws:iam::123456789012:role/results`", r"arn:[!-~]+:role/[!-~]+")
_OWNER = Text("an AWS account id: 12 digits in quotes", r"[0-9]{12}")

_ALL = [
    Option("bucket", _BUCKET, "The bucket that holds the results. Required.", "s3_bucket", in_url=False),
    Option(
        "base_path",
        BasePath(),
        "Put before every key. `/celery/`, `celery/` and `celery` are the same: `celery/`.",
        "s3_base_path",
        field="base",
        in_url=False,
    ),
    Option(
        "aws_region",
        _REGION,
        "The bucket's region; `region` is accepted too.",
        "s3_region",
        ("AWS_REGION", "AWS_DEFAULT_REGION"),
        field="region",
    ),
    Option(
        "endpoint_url",
        Endpoint(),
        "The server, where it is not Amazon's.",
        "s3_endpoint_url",
        _ENDPOINT_VARIABLES,
    ),
    Option(
        "aws_access_key_id",
        Token(),
        "The access key, together with `aws_secret_access_key`. Without them the AWS environment's credentials"
        " are used.",
        "s3_access_key_id",
        field="access_key_id",
        in_url=False,
    ),
    Option(
        "aws_secret_access_key",
        Token(),
        "The secret of `aws_access_key_id`.",
        "s3_secret_access_key",
        field="secret_access_key",
        in_url=False,
    ),
    Option("session_token", Token(), "The session token of temporary keys.", in_url=False),
    Option("profile", _PROFILE, "A profile of the shared AWS configuration (SSO, a credential process, a role, keys)."),
    Option("role_arn", _ROLE, "A role to assume, with the credentials found otherwise; renewed before it expires."),
    Option("session", Session(), "A session that the application made. Every request then uses boto3.", in_url=False),
    Option("reduced_redundancy", Flag(), "Storage class `REDUCED_REDUNDANCY`.", field=""),
    Option("storage_class", StorageClass(), "The storage class of every object; the bucket's default without it."),
    Option("encrypt_key", Flag(), "Encryption with the server's keys: `sse` `AES256`.", field=""),
    Option("sse", Choice("AES256", "aws:kms", "aws:kms:dsse"), "Server-side encryption; the bucket's without it."),
    Option("sse_kms_key_id", Text("a KMS key: id, alias or ARN"), "The key for `aws:kms` and `aws:kms:dsse`."),
    Option("bucket_key", Flag(), "An S3 Bucket Key for `aws:kms`: fewer requests to KMS."),
    Option("tags", Tags(), "Tags of every object. They are billed and need `s3:PutObjectTagging`."),
    Option("addressing_style", Choice("auto", "path", "virtual"), "Whether the bucket stands in the path or host."),
    Option(
        "verify",
        CABundle(),
        "Whether, and by what [CA](network.md#certificates), the server is verified.",
        "",
        ("AWS_CA_BUNDLE",),
    ),
    Option(
        "proxies",
        ProxyMap(),
        "The [proxies](network.md#proxies) that requests go through. Without it the environment's are used.",
        in_url=False,
    ),
    Option("connect_timeout", Number(0.001, 600, whole=False, unit="seconds"), "Time to connect."),
    Option(
        "read_timeout",
        Number(0.001, 600, whole=False, unit="seconds"),
        "Time between two pieces of an answer; with `connect_timeout`, that of a whole request but for large bodies.",
    ),
    Option("max_retries", Number(0, 50), "How often a request that failed for a while is tried again."),
    Option(
        "outage_patience",
        Number(0, 7 * 86400, whole=False, unit="seconds"),
        "How long a worker keeps and tries again [what must not be lost](operations.md#s3-is-away): a final state, a"
        " chord member's part.",
    ),
    Option(
        "overlap",
        Number(0, 256),
        "How many results [a child stores while it works on the next task](throughput.md). A number applies to tasks"
        " that are acknowledged early, too.",
    ),
    Option("concurrency", Number(1, 256), "Requests at the same time when many results are read."),
    Option("request_payer", Flag(), "The bucket is a Requester Pays bucket, and you accept the charge."),
    Option("expected_bucket_owner", _OWNER, "The account that must own the bucket, else requests are refused."),
    Option("client", Choice("auto", "obstore", "boto3"), "The S3 client; `auto` takes obstore where it can serve."),
    Option(
        "conditional_writes",
        Choice("auto", "required", "off"),
        "`auto` finds out whether the server has them, `required` refuses one without, `off` reads before writing.",
    ),
    Option(
        "expiry_tags",
        Flag(),
        "Tags each result with how long it lives, so that [lifecycle rules](expiry.md) can tell. Tags are billed and"
        " need `s3:PutObjectTagging`.",
    ),
    Option("missing_as_403", Flag(), "403 means that a result is not there yet: for keys without `s3:ListBucket`."),
    Option(
        "chord_resend",
        Flag(),
        "Where a worker died [while it sent a chord's body](chords.md#when-things-die): `True` sends it again unless"
        " its result is there, `False` reports a failure, so that no body ever runs twice.",
    ),
    Option(
        "compression_threshold",
        Number(0, 1024 * 1024 * 1024),
        "Bytes below which nothing is [compressed](compression.md), whatever `result_compression` says.",
    ),
    Option(
        "decompression_limit",
        Number(1024 * 1024, 1024 * 1024 * 1024 * 1024),
        "Bytes that may come out of anything [compressed](compression.md), or 100 times those stored if that is more:"
        " whoever may write to the bucket cannot fill the memory with a kilobyte.",
    ),
    Option(
        "message_threshold",
        Number(4096, 16 * 1024 * 1024),
        "Bytes of a [message](large-messages.md) above which its arguments go to S3, by a serializer `s3+…`.",
    ),
    Option(
        "message_cleanup",
        Choice("lifecycle", "success"),
        "What removes them: a lifecycle rule alone, or the task's success before that.",
    ),
    Option(
        "notices",
        Choice("auto", "ids", "on", "off"),
        "Redis and RabbitMQ [tell who waits](how-it-works.md#waiting) that a result is there. `auto` sends those up to"
        " 2 KB along, as they are stored; `ids` none; `off` tells nobody. `on` is `auto`, and"
        " [SQS](how-it-works.md#notices-by-sqs) tells, too.",
    ),
    Option(
        "opentelemetry",
        Flag(),
        "[Metrics, and a span for each request](operations.md#dashboards); needs the extra `celery-s3[otel]`.",
    ),
    Option("seal_keys", SealKeys(), "Keys for [encryption](encryption.md): the first seals, all open.", in_url=False),
    Option(
        "seal",
        Choice("encrypt", "sign", "off"),
        "What is done with `seal_keys`; `off` writes plain objects, and reads sealed ones too.",
    ),
    Option("accept_unsealed", Flag(), "With `seal_keys`: plain objects are read too, whoever wrote them."),
]

OPTIONS = {option.name: option for option in _ALL}
#: Other names that the URL and the dict accept.
ALIASES = {"region": "aws_region"}
