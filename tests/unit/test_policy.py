"""IAM policies: what they allow, and nothing else; whether that is what the code does is tested with real calls."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_s3.keys import Layout
from celery_s3.operate.policy import ROLES, document
from celery_s3.settings import Secret, Settings


def allowed(policy, action, resource, **context):
    """Whether the policy allows a call, as IAM decides it."""
    return any(
        action in one["Action"]
        and any(matches(pattern, resource) for pattern in one["Resource"])
        and all(holds(operator, keys, context) for operator, keys in one.get("Condition", {}).items())
        for one in policy["Statement"]
    )


def matches(pattern, resource):
    """``*`` and ``?`` are wildcards, ``${*}``, ``${?}`` and ``${$}`` the characters themselves."""
    wildcards = {"*": ".*", "?": "."}
    parts = re.split(r"(\$\{[*?$]\}|[*?])", pattern)
    texts = [part[2] if re.fullmatch(r"\$\{.\}", part) else part for part in parts]
    expression = "".join(wildcards.get(part) or re.escape(text) for part, text in zip(parts, texts, strict=True))
    return re.fullmatch(expression, resource, re.DOTALL) is not None


def holds(operator, keys, context):
    return all(key in context and matches(wanted, context[key]) for key, wanted in keys.items())


def statement(policy, sid):
    found = [one for one in policy["Statement"] if one["Sid"] == sid]
    return found[0] if found else None


@pytest.mark.parametrize("role", ROLES)
def test_form(role):
    """The document has what IAM asks for: the version, ids of letters and digits that differ, lists without repeats."""
    policy = json.loads(json.dumps(document(Settings(bucket="results", base="celery/"), role)))
    assert policy["Version"] == "2012-10-17"
    sids = [one["Sid"] for one in policy["Statement"]]
    assert len(set(sids)) == len(sids)
    for one in policy["Statement"]:
        assert set(one) <= {"Sid", "Effect", "Action", "Resource", "Condition"}
        assert re.fullmatch("[A-Za-z0-9]+", one["Sid"])
        assert one["Effect"] == "Allow"
        assert all(re.fullmatch(r"[a-z0-9]+:[A-Z][A-Za-z]+", action) for action in one["Action"])
        assert all(resource.startswith("arn:aws:s3:::results") for resource in one["Resource"])
        for name in ("Action", "Resource"):
            assert len(set(one[name])) == len(one[name]) > 0
    assert len(json.dumps(policy, separators=(",", ":"))) < 6_144  # a managed policy's limit


def test_nobody_may_do_everything():
    """No role has a wildcard for actions, or may touch versions, ACLs, locks, policies or the bucket's existence."""
    for role in ROLES:
        actions = {action for one in document(Settings(bucket="b"), role)["Statement"] for action in one["Action"]}
        assert not [
            action
            for action in actions
            if re.search(r"\*|Version$|Acl|Retention|LegalHold|Policy|DeleteBucket", action)
        ]
        usual = {"GetObject", "PutObject", "DeleteObject", "ListBucket", "AbortMultipartUpload"}
        beat = {"GetLifecycleConfiguration", "ListBucketMultipartUploads"} if role == "worker" else set()
        if role not in ("operator", "administrator"):
            assert actions == {f"s3:{name}" for name in usual | beat}


@given(st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=20))
def test_only_our_keys(base):
    """Whatever the base holds, wildcards too: its results may be written and listed, those of another base not."""
    policy = document(Settings(bucket="results", base=base), "worker")
    assert allowed(policy, "s3:PutObject", f"arn:aws:s3:::results/{base}celery-task-meta-some/id")
    assert allowed(policy, "s3:ListBucket", "arn:aws:s3:::results", **{"s3:prefix": f"{base}celery-chords/"})
    for key in (f"other/{base}celery-task-meta-id", f"{base}else", "celery-task-meta-id" if base else "x"):
        assert not allowed(policy, "s3:PutObject", f"arn:aws:s3:::results/{key}")
        assert not allowed(policy, "s3:GetObject", f"arn:aws:s3:::others/{base}celery-task-meta-id")


def test_prefix():
    """Celery's `global_keyprefix` stands between base and name; the probe's key knows nothing of it."""
    settings = Settings(bucket="b", base="base/", endpoint_url="http://localhost:9000")
    policy = document(settings, "worker", Layout("base/", "prod_"))
    assert "arn:aws:s3:::b/base/prod_celery-task-meta-*" in statement(policy, "GetPutDelete")["Resource"]
    assert statement(policy, "GetPut")["Resource"] == [
        "arn:aws:s3:::b/base/prod_celery-chords-repaired",
        "arn:aws:s3:::b/base/celery-s3-probe",
    ]


def test_roles():
    """Clients do not look when chords were mended last; only operators use `bench`, and only the administrator may
    change the bucket itself, by whose rules anything in it can be deleted."""
    policies = {role: document(Settings(bucket="b"), role) for role in ROLES}
    mended, scratch = "arn:aws:s3:::b/celery-chords-repaired", "arn:aws:s3:::b/celery-s3-bench/x"
    assert {role: allowed(policy, "s3:PutObject", mended) for role, policy in policies.items()} == {
        "worker": True,
        "client": False,
        "operator": False,
        "administrator": False,
    }
    assert [role for role in ROLES if allowed(policies[role], "s3:PutObject", scratch)] == ["operator"]
    changes = {
        role: re.findall("Put[A-Za-z]+(?:Configuration|Block)|CreateBucket", json.dumps(policy))
        for role, policy in policies.items()
    }
    assert [role for role in ROLES if changes[role]] == ["administrator"]
    assert not allowed(policies["administrator"], "s3:GetObject", "arn:aws:s3:::b/celery-task-meta-id")
    assert not allowed(policies["administrator"], "s3:DeleteObject", "arn:aws:s3:::b/celery-task-meta-id")


@pytest.mark.parametrize("messages", [True, False])
def test_messages(messages):
    """Large messages are allowed only where they travel through the bucket."""
    policy = document(Settings(bucket="b", base="c/"), "worker", messages=messages)
    assert allowed(policy, "s3:DeleteObject", "arn:aws:s3:::b/c/celery-messages/0a1b") is messages


def test_queues():
    """Where notices go by SQS: who waits has a queue, a worker tells it, an operator finds what was left."""
    queue = "arn:aws:sqs:eu-west-1:1:celery-s3-notices-x"
    expected = {"client": "wait", "worker": "wait tell", "operator": "wait tell look"}
    calls = {"sqs:CreateQueue": "wait", "sqs:ReceiveMessage": "wait", "sqs:SendMessage": "tell"}
    calls |= {"sqs:ListQueueTags": "look", "sqs:PurgeQueue": "never"}
    for role in expected:
        policy = document(Settings(bucket="b", expected_bucket_owner="123456789012"), role, queues=True)
        assert {action: allowed(policy, action, queue) for action in calls} == {
            action: what in expected[role].split() for action, what in calls.items()
        }
        assert not allowed(policy, "sqs:DeleteQueue", "arn:aws:sqs:eu-west-1:1:celery")
        assert allowed(policy, "sqs:ListQueues", "*")
        assert "sqs:" not in json.dumps(document(Settings(bucket="b"), role))
    assert "sqs:" not in json.dumps(document(Settings(bucket="b"), "administrator", queues=True))


@pytest.mark.parametrize("given", [{"tags": {"team": "a"}}, {"expiry_tags": True}])
def test_tags(given):
    """Tagging is allowed only where objects get tags."""
    key = "arn:aws:s3:::b/celery-task-meta-id"
    assert allowed(document(Settings(bucket="b", **given), "worker"), "s3:PutObjectTagging", key)
    assert not allowed(document(Settings(bucket="b"), "worker"), "s3:PutObjectTagging", key)


@pytest.mark.parametrize(
    ("key", "resource", "alias"),
    [
        (None, "arn:aws:kms:eu-west-1:*:key/*", None),
        ("1234-ab", "arn:aws:kms:eu-west-1:*:key/1234-ab", None),
        ("arn:aws:kms:eu-west-1:111122223333:key/1", "arn:aws:kms:eu-west-1:111122223333:key/1", None),
        ("alias/results", "arn:aws:kms:eu-west-1:*:key/*", "alias/results"),
        ("arn:aws:kms:eu-west-1:111122223333:alias/results", "arn:aws:kms:eu-west-1:*:key/*", "alias/results"),
    ],
)
def test_kms(key, resource, alias):
    """With KMS the key may be used for storing and fetching, through S3 alone; an alias is a condition."""
    settings = Settings(bucket="b", region="eu-west-1", sse="aws:kms", sse_kms_key_id=key)
    found = statement(document(settings, "client"), "Key")
    assert found["Action"] == ["kms:Decrypt", "kms:GenerateDataKey"]
    assert found["Resource"] == [resource]
    conditions = {"StringEquals": {"kms:ViaService": "s3.eu-west-1.amazonaws.com"}}
    assert found["Condition"] == conditions | (
        {"ForAnyValue:StringEquals": {"kms:ResourceAliases": alias}} if alias else {}
    )
    assert statement(document(Settings(bucket="b", sse="AES256"), "client"), "Key") is None


def test_keys_that_seal():
    """A KMS key that seals is used directly, for data keys of this bucket alone; a secret key is in no policy."""
    settings = Settings(bucket="b", seal_keys=(Secret("kms://1234-ab"), Secret("c2VjcmV0")))
    policy = document(settings, "worker")
    assert statement(policy, "SealKey1")["Resource"] == ["arn:aws:kms:us-east-1:*:key/1234-ab"]
    assert statement(policy, "SealKey1")["Condition"] == {"StringEquals": {"kms:EncryptionContext:celery-s3": "b"}}
    assert statement(policy, "SealKey2") is None
    assert "c2VjcmV0" not in json.dumps(policy)


@pytest.mark.parametrize(
    ("region", "partition"), [("eu-west-1", "aws"), ("cn-north-1", "aws-cn"), ("us-gov-west-1", "aws-us-gov")]
)
def test_partitions(region, partition):
    """ARNs are those of the region's partition."""
    policy = document(Settings(bucket="b", region=region, sse="aws:kms"), "operator")
    assert all(one.startswith(f"arn:{partition}:") for each in policy["Statement"] for one in each["Resource"])


def test_expected_owner():
    """Where an owner is expected, only that account's bucket may be used; conditions that stand already stay."""
    policy = document(Settings(bucket="b", base="c/", expected_bucket_owner="111122223333"), "operator")
    owner = {"StringEquals": {"aws:ResourceAccount": "111122223333"}}
    assert all(one["Condition"].items() >= owner.items() for one in policy["Statement"])
    assert statement(policy, "List")["Condition"] == {"StringLike": {"s3:prefix": "c/*"}, **owner}


def test_directory_bucket():
    """A bucket of S3 Express is used by sessions."""
    settings = Settings(bucket="results--use1-az4--x-s3", expected_bucket_owner="111122223333")
    session, *_ = document(settings, "worker")["Statement"]
    assert session["Action"] == ["s3express:CreateSession"]
    assert session["Resource"] == ["arn:aws:s3express:us-east-1:111122223333:bucket/results--use1-az4--x-s3"]
