"""The bucket as a document for those who keep their buckets in code: JSON, Terraform, CloudFormation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from celery_s3.expiry.rules import Rule
from celery_s3.store.clients.control import BLOCK

__all__ = ["FORMATS", "Blueprint"]

#: What Terraform calls the parts of a lifecycle rule, whose values are blocks.
_ACTIONS = {
    "Expiration": ("expiration", {"Days": "days"}),
    "NoncurrentVersionExpiration": ("noncurrent_version_expiration", {"NoncurrentDays": "noncurrent_days"}),
    "AbortIncompleteMultipartUpload": (
        "abort_incomplete_multipart_upload",
        {"DaysAfterInitiation": "days_after_initiation"},
    ),
}


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A bucket as it should be.

    Attributes:
        encryption: its default encryption as S3's API has it, empty for the server's.
        rules: its lifecycle rules as S3's API has them.
    """

    bucket: str
    encryption: Mapping[str, Any]
    rules: Sequence[Rule]


def to_json(blueprint: Blueprint) -> str:
    """The configurations in the form of S3's API and of `aws s3api put-…`."""
    encryption = blueprint.encryption
    parts = {
        "Bucket": blueprint.bucket,
        "PublicAccessBlockConfiguration": dict.fromkeys(BLOCK, True),
        **({"ServerSideEncryptionConfiguration": {"Rules": [encryption]}} if encryption else {}),
        "LifecycleConfiguration": {"Rules": list(blueprint.rules)},
    }
    return json.dumps(parts, indent=2)


# -- CloudFormation


def to_cloudformation(blueprint: Blueprint) -> str:
    """A template with the bucket, which outlives its stack."""
    properties: dict[str, Any] = {
        "BucketName": blueprint.bucket,
        "PublicAccessBlockConfiguration": dict.fromkeys(BLOCK, True),
        "LifecycleConfiguration": {"Rules": [_formation_rule(rule) for rule in blueprint.rules]},
    }
    if blueprint.encryption:
        rule = dict(blueprint.encryption)
        rule["ServerSideEncryptionByDefault"] = rule.pop("ApplyServerSideEncryptionByDefault")
        properties["BucketEncryption"] = {"ServerSideEncryptionConfiguration": [rule]}
    keep = {"DeletionPolicy": "Retain", "UpdateReplacePolicy": "Retain"}
    resource = {"Type": "AWS::S3::Bucket", **keep, "Properties": properties}
    return json.dumps({"AWSTemplateFormatVersion": "2010-09-09", "Resources": {"Results": resource}}, indent=2)


def _formation_rule(rule: Rule) -> dict[str, Any]:
    prefix, tags = _filter(rule)
    found: dict[str, Any] = {"Id": rule["ID"], "Status": rule["Status"], "Prefix": prefix}
    if tags:
        found["TagFilters"] = [{"Key": key, "Value": value} for key, value in tags.items()]
    if "Expiration" in rule:
        found["ExpirationInDays"] = rule["Expiration"]["Days"]
    return found | {name: rule[name] for name in _ACTIONS if name in rule and name != "Expiration"}


def _filter(rule: Rule) -> tuple[str, dict[str, str]]:
    where = rule["Filter"].get("And", rule["Filter"])
    return where["Prefix"], {tag["Key"]: tag["Value"] for tag in where.get("Tags", ())}


# -- Terraform


def to_terraform(blueprint: Blueprint) -> str:
    """Resources of the provider hashicorp/aws, version 4 and newer."""
    bucket = _Reference("aws_s3_bucket.results.id")
    block = ("block_public_acls", "ignore_public_acls", "block_public_policy", "restrict_public_buckets")
    resources: dict[str, dict[str, Any]] = {
        "aws_s3_bucket": {"bucket": blueprint.bucket},
        "aws_s3_bucket_public_access_block": {"bucket": bucket, **dict.fromkeys(block, True)},
    }
    if blueprint.encryption:
        resources["aws_s3_bucket_server_side_encryption_configuration"] = {
            "bucket": bucket,
            "rule": _terraform_encryption(blueprint.encryption),
        }
    resources["aws_s3_bucket_lifecycle_configuration"] = {
        "bucket": bucket,
        "rule": [_terraform_rule(rule) for rule in blueprint.rules],
    }
    note = "# A bucket has one lifecycle configuration: put rules for other objects into this one.\n"
    return note + "\n".join(
        "\n".join([f'resource "{kind}" "results" {{', *_lines(body), "}", ""]) for kind, body in resources.items()
    )


def _terraform_encryption(rule: Mapping[str, Any]) -> dict[str, Any]:
    default = rule["ApplyServerSideEncryptionByDefault"]
    names = {"SSEAlgorithm": "sse_algorithm", "KMSMasterKeyID": "kms_master_key_id"}
    found: dict[str, Any] = {
        "apply_server_side_encryption_by_default": {names[name]: value for name, value in default.items()}
    }
    if "BucketKeyEnabled" in rule:
        found["bucket_key_enabled"] = rule["BucketKeyEnabled"]
    return found


def _terraform_rule(rule: Rule) -> dict[str, Any]:
    prefix, tags = _filter(rule)
    where: dict[str, Any] = {"prefix": prefix}
    if tags:
        where = {"and": {"prefix": prefix, "tags": _Map({_quoted(key): value for key, value in tags.items()})}}
    found: dict[str, Any] = {"id": rule["ID"], "status": rule["Status"], "filter": where}
    for name, (block, fields) in _ACTIONS.items():
        if name in rule:
            found[block] = {fields[field]: value for field, value in rule[name].items()}
    return found


class _Reference(str):
    """An expression in place of a text."""

    __slots__ = ()


class _Map(dict[str, str]):
    """A value in place of a block."""


def _lines(body: Mapping[str, Any], indent: str = "  ") -> Iterator[str]:
    """The inside of a block of HCL, laid out as `terraform fmt` does."""
    pairs = [(name, one) for name, value in body.items() for one in (value if isinstance(value, list) else [value])]
    for nested, group in groupby(pairs, key=lambda pair: isinstance(pair[1], dict)):
        run = list(group)
        width = max(len(name) for name, _ in run)
        for name, value in run:
            if nested:
                yield f"{indent}{name}{' =' if isinstance(value, _Map) else ''} {{"
                yield from _lines(value, indent + "  ")
                yield f"{indent}}}"
            else:
                yield f"{indent}{name.ljust(width)} = {_value(value)}"


def _value(value: object) -> str:
    if isinstance(value, _Reference):
        return str(value)
    return _quoted(value) if isinstance(value, str) else json.dumps(value)


def _quoted(text: str) -> str:
    """A text of HCL, in which ``${`` and ``%{`` begin expressions."""
    return json.dumps(text, ensure_ascii=False).replace("${", "$${").replace("%{", "%%{")


FORMATS: Mapping[str, Callable[[Blueprint], str]] = {
    "json": to_json,
    "terraform": to_terraform,
    "cloudformation": to_cloudformation,
}
