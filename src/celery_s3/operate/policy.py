"""The least that IAM must allow: for each role the calls that the code makes, on the keys that it makes them for.

A test compares this with the calls that real workers, clients and commands make, both ways.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args

from celery_s3.keys import KINDS, MESSAGES, PROBE, Kind, Layout, Role
from celery_s3.notices.notice import PREFIX
from celery_s3.settings import Settings

__all__ = ["ROLES", "Role", "document"]

ROLES: tuple[Role, ...] = get_args(Role)
_KMS = "kms://"
#: What is asked of the bucket itself: by `celery beat`, which is a worker to IAM, by `doctor`, and by `init`.
_BUCKET = {
    "worker": ["s3:GetLifecycleConfiguration", "s3:ListBucketMultipartUploads"],
    "operator": ["s3:GetBucketVersioning", "s3:GetLifecycleConfiguration", "s3:ListBucketMultipartUploads"],
    "administrator": [
        "s3:CreateBucket",
        "s3:GetBucketPublicAccessBlock",
        "s3:GetBucketVersioning",
        "s3:GetEncryptionConfiguration",
        "s3:GetLifecycleConfiguration",
        "s3:ListBucketMultipartUploads",
        "s3:PutBucketPublicAccessBlock",
        "s3:PutEncryptionConfiguration",
        "s3:PutLifecycleConfiguration",
    ],
}

#: What is asked of the queues of those who wait, where notices go by SQS: a worker tells, and its tasks may wait.
_WAITS = ["sqs:CreateQueue", "sqs:DeleteQueue", "sqs:ReceiveMessage", "sqs:TagQueue"]
_TELLS = ["sqs:GetQueueUrl", "sqs:SendMessage"]
_QUEUES = {
    "client": _WAITS,
    "worker": [*_TELLS, *_WAITS],
    "operator": [*_TELLS, *_WAITS, "sqs:ListQueueTags"],  # `doctor` does both, `sweep` deletes what was left
}

Statement = dict[str, Any]


def document(
    settings: Settings,
    role: Role,
    layout: Layout | None = None,
    *,
    messages: bool = False,
    queues: bool = False,
) -> dict[str, Any]:
    """An identity policy for one role, as IAM takes it.

    Arguments:
        layout: where everything is; by default right behind the base.
        messages: large messages travel through the bucket.
        queues: notices go by SQS.
    """
    if settings.bucket.endswith("--x-s3"):
        statements = [_directory_bucket(settings)]
    else:
        layout = layout or Layout(settings.base)
        statements = [*_objects(settings, role, layout, messages), _listing(settings)]
    if role != "client":
        statements.append(_statement("Bucket", _BUCKET[role], [_arn(settings, settings.bucket)]))
    if settings.expected_bucket_owner:
        owner = {"StringEquals": {"aws:ResourceAccount": settings.expected_bucket_owner}}
        statements = [one | {"Condition": one.get("Condition", {}) | owner} for one in statements]
    statements += _kms_keys(settings)
    if queues and role in _QUEUES:  # `init` asks nothing of queues
        partition = _partition(settings)
        # the broker may be in another region and account
        statements.append(_statement("Notices", _QUEUES[role], [f"arn:{partition}:sqs:*:*:{PREFIX}*"]))
        # as kombu does for each of its channels; IAM allows this for all queues or none
        statements.append(_statement("Queues", ["sqs:ListQueues"], ["*"]))
    return {"Version": "2012-10-17", "Statement": statements}


def _objects(settings: Settings, role: Role, layout: Layout, messages: bool) -> Iterator[Statement]:
    """A statement for all kinds of objects of which the same is allowed."""
    unused = {MESSAGES: not messages, PROBE: settings.on_aws or settings.conditional_writes == "off"}
    alike: dict[Sequence[str], list[str]] = {}
    for kind in KINDS:
        verbs: Sequence[str] = getattr(kind, role)
        if verbs and not unused.get(kind):
            alike.setdefault(verbs, []).append(_objects_of(settings, layout, kind))
    for verbs, arns in alike.items():
        actions = [f"s3:{verb}Object" for verb in verbs]
        if "Put" in verbs and (settings.tags or settings.expiry_tags):
            actions.append("s3:PutObjectTagging")
        yield _statement("".join(verbs), actions, arns)
    uploads = [_objects_of(settings, layout, kind) for kind in KINDS if role in kind.large]
    yield _statement("Uploads", ["s3:AbortMultipartUpload"], uploads)


def _listing(settings: Settings) -> Statement:
    # for a key that does not exist S3 answers 404 to who may list that prefix, and 403 to others
    condition = {"StringLike": {"s3:prefix": f"{_literal(settings.base)}*"}}
    bucket = [_arn(settings, settings.bucket)]
    return _statement("List", ["s3:ListBucket"], bucket) | ({"Condition": condition} if settings.base else {})


def _directory_bucket(settings: Settings) -> Statement:
    account = settings.expected_bucket_owner or "*"
    partition = _partition(settings)
    bucket = f"arn:{partition}:s3express:{settings.region}:{account}:bucket/{settings.bucket}"
    return _statement("Session", ["s3express:CreateSession"], [bucket])


def _kms_keys(settings: Settings) -> Iterator[Statement]:
    """The key that S3 encrypts with, through S3 alone; and those that seal."""
    if (settings.sse or "").startswith("aws:kms"):
        domain = "amazonaws.com.cn" if settings.region.startswith("cn-") else "amazonaws.com"
        through = {"StringEquals": {"kms:ViaService": f"s3.{settings.region}.{domain}"}}
        yield _kms_key("Key", settings, settings.sse_kms_key_id or "", through)
    # of this bucket's data keys alone, as `sealing.kms` asks for them
    context = {"StringEquals": {"kms:EncryptionContext:celery-s3": settings.bucket}}
    names = [key.reveal() for key in settings.seal_keys if key.reveal().startswith(_KMS)]
    for number, name in enumerate(names, 1):
        yield _kms_key(f"SealKey{number}", settings, name.removeprefix(_KMS), context)


def _kms_key(sid: str, settings: Settings, key: str, condition: Mapping[str, Any]) -> Statement:
    keys = f"arn:{_partition(settings)}:kms:{settings.region}:*:key/"
    if key.startswith("arn:") and ":key/" in key:
        resource = key
    elif key.startswith(("arn:", "alias/")):
        # IAM knows keys by their ids alone
        resource = f"{keys}*"
        alias = key[key.index("alias/") :]
        condition = {**condition, "ForAnyValue:StringEquals": {"kms:ResourceAliases": alias}}
    else:
        resource = keys + (key or "*")
    found = _statement(sid, ["kms:Decrypt", "kms:GenerateDataKey"], [resource])
    return found | {"Condition": dict(condition)}


def _statement(sid: str, actions: Iterable[str], resources: Sequence[str]) -> Statement:
    return {"Sid": sid, "Effect": "Allow", "Action": sorted(actions), "Resource": list(resources)}


def _objects_of(settings: Settings, layout: Layout, kind: Kind) -> str:
    """The ARN of all keys of a kind."""
    return _arn(settings, f"{settings.bucket}/{_literal(layout.prefix(kind))}{'' if kind.single else '*'}")


def _arn(settings: Settings, resource: str) -> str:
    return f"arn:{_partition(settings)}:s3:::{resource}"


def _partition(settings: Settings) -> str:
    for start, partition in (("cn-", "aws-cn"), ("us-gov-", "aws-us-gov")):
        if settings.region.startswith(start):
            return partition
    return "aws"


def _literal(text: str) -> str:
    """The text as a policy means it literally: ``*``, ``?`` and ``$`` escaped, and ``?`` (any character) for each one
    that is not in Latin-1, since IAM takes no other.
    """
    return "".join(f"${{{char}}}" if char in "*?$" else "?" if ord(char) > 0xFF else char for char in text)
