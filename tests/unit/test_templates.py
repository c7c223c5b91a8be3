"""The bucket as code: each document parses, and says what S3's API would be told."""

from __future__ import annotations

import json
import re

import pytest

from celery_s3.operate.templates import FORMATS, Blueprint

RULES = [
    {
        "ID": "celery-s3-0-uploads",
        "Status": "Enabled",
        "Filter": {"Prefix": 'odd "${base}/%{x}'},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1},
    },
    {
        "ID": "celery-s3-0-results",
        "Status": "Enabled",
        "Filter": {"And": {"Prefix": "c/celery-task-meta-", "Tags": [{"Key": "celery-s3-expires", "Value": "7"}]}},
        "Expiration": {"Days": 7},
        "NoncurrentVersionExpiration": {"NoncurrentDays": 1},
    },
]
ENCRYPTION = {
    "ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": "alias/results"},
    "BucketKeyEnabled": True,
}
WHOLE = Blueprint("results", ENCRYPTION, RULES)
PLAIN = Blueprint("results", {}, RULES[:1])


def test_json():
    """The parts are those of S3's API, under its names."""
    told = json.loads(FORMATS["json"](WHOLE))
    assert told["LifecycleConfiguration"] == {"Rules": RULES}
    assert told["ServerSideEncryptionConfiguration"] == {"Rules": [ENCRYPTION]}
    assert set(told["PublicAccessBlockConfiguration"].values()) == {True}
    assert "ServerSideEncryptionConfiguration" not in json.loads(FORMATS["json"](PLAIN))


def test_cloudformation():
    """The template has the bucket, which outlives its stack, with CloudFormation's own names."""
    bucket = json.loads(FORMATS["cloudformation"](WHOLE))["Resources"]["Results"]
    assert (bucket["Type"], bucket["DeletionPolicy"]) == ("AWS::S3::Bucket", "Retain")
    assert bucket["Properties"]["LifecycleConfiguration"]["Rules"] == [
        {
            "Id": "celery-s3-0-uploads",
            "Status": "Enabled",
            "Prefix": 'odd "${base}/%{x}',
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1},
        },
        {
            "Id": "celery-s3-0-results",
            "Status": "Enabled",
            "Prefix": "c/celery-task-meta-",
            "TagFilters": [{"Key": "celery-s3-expires", "Value": "7"}],
            "ExpirationInDays": 7,
            "NoncurrentVersionExpiration": {"NoncurrentDays": 1},
        },
    ]
    (rule,) = bucket["Properties"]["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    assert rule["ServerSideEncryptionByDefault"]["KMSMasterKeyID"] == "alias/results"
    assert rule["BucketKeyEnabled"] is True


def test_terraform_text():
    """Texts in which HCL would see an expression are escaped; references are not texts."""
    told = FORMATS["terraform"](PLAIN)
    assert r'prefix = "odd \"$${base}/%%{x}"' in told
    assert re.search(r"bucket += aws_s3_bucket.results.id", told)
    assert "server_side_encryption" not in told


def test_terraform_parses():
    """The document is HCL with the resources and blocks of the provider."""
    hcl2 = pytest.importorskip("hcl2")
    resources = {}
    for one in plain(hcl2.loads(FORMATS["terraform"](WHOLE)))["resource"]:
        resources |= {kind: named["results"] for kind, named in one.items()}
    assert set(resources) == {
        "aws_s3_bucket",
        "aws_s3_bucket_public_access_block",
        "aws_s3_bucket_server_side_encryption_configuration",
        "aws_s3_bucket_lifecycle_configuration",
    }
    uploads, results = resources["aws_s3_bucket_lifecycle_configuration"]["rule"]
    assert uploads["abort_incomplete_multipart_upload"] == [{"days_after_initiation": 1}]
    assert results["filter"][0]["and"][0]["tags"] == {"celery-s3-expires": "7"}
    assert results["expiration"] == [{"days": 7}]
    assert results["noncurrent_version_expiration"] == [{"noncurrent_days": 1}]
    (rule,) = resources["aws_s3_bucket_server_side_encryption_configuration"]["rule"]
    assert rule["apply_server_side_encryption_by_default"][0]["sse_algorithm"] == "aws:kms"
    assert rule["bucket_key_enabled"] is True


def plain(value):
    """What the parser found, without the quotes that its newer versions leave on texts, and without its own marks."""
    if isinstance(value, dict):
        return {key.strip('"'): plain(one) for key, one in value.items() if key != "__is_block__"}
    if isinstance(value, list):
        return [plain(one) for one in value]
    return value.strip('"') if isinstance(value, str) else value
