"""The least that IAM must allow: for each role the calls that the code makes, on the keys that it makes them for.

A test compares this with the calls that real workers, clients and commands make, both ways.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

from celery_s3.keys import FILES, MESSAGES
from celery_s3.settings import Settings
from celery_s3.store.probe import PROBE

__all__ = ["ROLES", "Role", "document"]

#: ``worker`` runs tasks, ``client`` sends them and reads results, ``operator`` runs the commands.
Role = Literal["worker", "client", "operator"]
ROLES: tuple[Role, ...] = get_args(Role)

#: Behind the base and Celery's `global_keyprefix`: results, files, saved groups, chords, and when chords were mended
#: last.
_RESULTS, _FILES, _GROUPS = "celery-task-meta-*", f"{FILES}*", "celery-taskset-meta-*"
_CHORDS, _MENDED = "chords/*", "chords-repaired"
#: Behind the base: large messages, what `doctor` and `bench` try and remove, and the probe.
_LARGE, _DOCTOR, _BENCH = f"{MESSAGES}*", "celery-s3-doctor/*", "celery-s3-bench/*"

_ALL = ("Get", "Put", "Delete")
_GRANTS: dict[Role, dict[str, Sequence[str]]] = {
    "worker": {
        **dict.fromkeys((_RESULTS, _FILES, _GROUPS, _CHORDS, _LARGE, _DOCTOR), _ALL),
        **dict.fromkeys((_MENDED, PROBE), ("Get", "Put")),
    },
    "client": {
        **dict.fromkeys((_RESULTS, _FILES, _GROUPS, _CHORDS, _DOCTOR), _ALL),
        PROBE: ("Get", "Put"),
        _LARGE: ("Put",),
    },
    "operator": {
        **dict.fromkeys((_RESULTS, _CHORDS, _DOCTOR, _BENCH), _ALL),
        PROBE: ("Get", "Put"),
        **dict.fromkeys((_FILES, _GROUPS, _LARGE), ("Get", "Delete")),
    },
}
#: Uploads in parts need no more than PutObject, unless they fail; the daily cleanup aborts everybody's.
_ABORTS: dict[Role, Sequence[str]] = {"worker": (_RESULTS, _FILES), "client": (_FILES,), "operator": (_RESULTS, _FILES)}
#: What has Celery's `global_keyprefix` in front.
_PREFIXED = (_RESULTS, _FILES, _GROUPS, _CHORDS, _MENDED)
_KMS = "kms://"
#: What is asked of the bucket itself: by `celery beat`, which is a worker to IAM, and by `doctor` and `init`.
_BUCKET = {
    "worker": ["s3:GetLifecycleConfiguration", "s3:ListBucketMultipartUploads"],
    "operator": [
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

Statement = dict[str, Any]


def document(settings: Settings, role: Role, prefix: str | None = None, *, messages: bool = False) -> dict[str, Any]:
    """An identity policy for one role, as IAM takes it.

    Arguments:
        prefix: what results' keys begin with: the base, and Celery's `global_keyprefix` if it is set.
        messages: large messages travel through the bucket.
    """
    if settings.bucket.endswith("--x-s3"):
        statements = [_directory_bucket(settings)]
    else:
        prefix = settings.base if prefix is None else prefix
        statements = [*_objects(settings, role, prefix, messages), _listing(settings)]
    if role != "client":
        statements.append(_statement("Bucket", _BUCKET[role], [_arn(settings, settings.bucket)]))
    if settings.expected_bucket_owner:
        owner = {"StringEquals": {"aws:ResourceAccount": settings.expected_bucket_owner}}
        statements = [one | {"Condition": one.get("Condition", {}) | owner} for one in statements]
    return {"Version": "2012-10-17", "Statement": [*statements, *_keys_of_kms(settings)]}


def _objects(settings: Settings, role: Role, prefix: str, messages: bool) -> Iterator[Statement]:
    """A statement for all keys of which the same is allowed."""
    unused = {_LARGE: not messages, PROBE: settings.on_aws or settings.conditional_writes == "off"}
    keys: dict[Sequence[str], list[str]] = {}
    for name, verbs in _GRANTS[role].items():
        if not unused.get(name):
            keys.setdefault(verbs, []).append(_key(settings, prefix if name in _PREFIXED else settings.base, name))
    for verbs, arns in keys.items():
        actions = [f"s3:{verb}Object" for verb in verbs]
        if "Put" in verbs and (settings.tags or settings.expiry_tags):
            actions.append("s3:PutObjectTagging")
        yield _statement("".join(verbs), actions, arns)
    uploads = [_key(settings, prefix, name) for name in _ABORTS[role]]
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


def _keys_of_kms(settings: Settings) -> Iterator[Statement]:
    """The key that S3 encrypts with, through S3 alone; and those that seal."""
    if (settings.sse or "").startswith("aws:kms"):
        domain = "amazonaws.com.cn" if settings.region.startswith("cn-") else "amazonaws.com"
        through = {"StringEquals": {"kms:ViaService": f"s3.{settings.region}.{domain}"}}
        yield _key_of_kms("Key", settings, settings.sse_kms_key_id or "", through)
    names = [key.reveal() for key in settings.seal_keys if key.reveal().startswith(_KMS)]
    for number, name in enumerate(names, 1):
        yield _key_of_kms(f"SealKey{number}", settings, name.removeprefix(_KMS), {})


def _key_of_kms(sid: str, settings: Settings, key: str, condition: Mapping[str, Any]) -> Statement:
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
    return found | ({"Condition": dict(condition)} if condition else {})


def _statement(sid: str, actions: Iterable[str], resources: Sequence[str]) -> Statement:
    return {"Sid": sid, "Effect": "Allow", "Action": sorted(actions), "Resource": list(resources)}


def _key(settings: Settings, base: str, name: str) -> str:
    """The ARN of keys; a ``*`` at the end of the name stands for any rest."""
    return _arn(settings, f"{settings.bucket}/{_literal(base)}{name}")


def _arn(settings: Settings, resource: str) -> str:
    return f"arn:{_partition(settings)}:s3:::{resource}"


def _partition(settings: Settings) -> str:
    for start, partition in (("cn-", "aws-cn"), ("us-gov-", "aws-us-gov")):
        if settings.region.startswith(start):
            return partition
    return "aws"


def _literal(text: str) -> str:
    """The text with what has a meaning of its own in a policy escaped; IAM takes no more than Latin-1."""
    return "".join(f"${{{char}}}" if char in "*?$" else "?" if ord(char) > 0xFF else char for char in text)
