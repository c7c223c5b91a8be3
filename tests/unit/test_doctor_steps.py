"""Each step of ``celery s3 doctor`` on a server that misbehaves in one way: the finding, its level and its remedy."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import pytest

from celery_s3.errors import AccessDenied, BadCredentials, BadRequest, BucketMissing, Unreachable, WrongRegion
from celery_s3.expiry.rules import merge, wanted
from celery_s3.expiry.terms import Terms
from celery_s3.keys import Layout
from celery_s3.operate.capabilities import try_all
from celery_s3.operate.doctor import Case, access, bucket, examine, verbs
from celery_s3.settings import Secret, Settings
from celery_s3.store.clients.control import Control, Identity
from celery_s3.store.memory import Fault, MemoryStore

SECRET = "hush-hush-hush"
SETTINGS = Settings(
    bucket="results",
    base="c/",
    access_key_id=Secret("AKIDENTITY"),
    secret_access_key=Secret(SECRET),
    where={
        "bucket": "the bucket in the URL",
        "aws_secret_access_key": "`aws_secret_access_key` in s3_backend_settings",
        "aws_region": "AWS_REGION",
    },
)
LAYOUT = Layout("c/")
TERMS = Terms.of({}, 86_400)


def rules(versioned=False):
    return wanted(LAYOUT, TERMS, versioned=versioned)


class Bucket(Control):
    """A control plane that tells what it was given; an error is raised."""

    def __init__(self, settings, **told):
        super().__init__(settings)
        self._told = {"region": "us-east-1", "versioning": "", "lifecycle": rules(), "stored": {}} | told
        self._told.setdefault("identity", Identity("1", "arn:aws:iam::1:role/worker"))

    @property
    def skew(self):
        return self._told.get("skew", 0.1)

    def _tell(self, name):
        if isinstance(self._told.get(name), Exception):
            raise self._told[name]
        return self._told.get(name)

    @property
    def credentials_found(self):
        return self._tell("credentials") or "explicit"

    def identity(self):
        return self._tell("identity")

    def region(self):
        return self._tell("region")

    def versioning(self):
        return self._tell("versioning")

    def lifecycle(self):
        return self._tell("lifecycle")

    def stored(self, key):
        return self._tell("stored")

    def put_with_checksum(self, key, body):
        return self._tell("checksum")


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture
def case(store):
    """``case(versioning="Enabled", sse="AES256")``: what the bucket tells, and settings that differ; PUT has been."""

    def make(stored_before=True, settings=SETTINGS, **told):
        names = {name: told.pop(name) for name in list(told) if hasattr(settings, name) and name != "region"}
        settings = replace(settings, **names)
        one = Case(settings, store, Bucket(settings, **told), LAYOUT, TERMS, rules)
        if stored_before:
            assert verbs.write(one).level == "OK"
        return one

    return make


def denied(verb, key=""):
    return Fault(AccessDenied("", status=403, code="AccessDenied"), verb, key, times=-1)


# -- who asks, and where


def test_all_is_well(case):
    """Where nothing is wrong each step is OK, the bucket is left as it was, and no secret is told."""
    found = list(examine(case(stored_before=False)))
    assert {one.level for one in found} == {"OK"}, found
    assert [one.step for one in found][:5] == ["settings", "client", "credentials", "bucket", "PUT"]
    assert found[-1].step == "cleanup"
    assert SECRET not in str(found)


def test_nothing_is_left(case, store):
    """Every scratch object is gone in the end."""
    list(examine(case(stored_before=False)))
    assert list(store.list("")) == []


def test_nothing_is_left_of_a_thorough_look(case, store):
    """Whoever stops in the middle of trying each capability leaves nothing behind."""
    with closing(try_all(case(stored_before=False))) as tried:
        assert [next(tried).verdict for _ in range(3)] == ["yes"] * 3
        assert list(store.list(""))
    assert list(store.list("")) == []


@pytest.mark.parametrize("steps", [5, 10, 14])
def test_nothing_is_left_after_an_interrupt(case, store, steps):
    """Whoever stops in the middle, as by Ctrl-C, leaves nothing behind."""
    with closing(examine(case(stored_before=False))) as found:
        for _ in range(steps):
            next(found)
    assert list(store.list("")) == []


def test_nothing_is_left_after_a_crash(case, store):
    """So it is when a request does not come back."""
    store._before = lambda verb, key: stop(verb, key)

    def stop(verb, key):
        if verb == "DELETE_OBJECTS":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), closing(examine(case(stored_before=False))) as found:
        list(found)
    store._before = None
    assert list(store.list("")) == []


def test_leftovers_of_the_dead(case, store):
    """What an examination that was killed has left is deleted by a later one; a running one's is not."""
    now = store._clock
    store._clock = lambda: now() - 7_200
    store.put("c/celery-s3-doctor/old", b"")
    store._clock = now
    store.put("c/celery-s3-doctor/new", b"")
    list(examine(case(stored_before=False)))
    assert [entry.key for entry in store.list("")] == ["c/celery-s3-doctor/new"]


def test_what_cannot_be_deleted_is_named(case, store):
    """Where deleting is denied, the report ends with a key to delete."""
    store.faults += [denied("DELETE"), denied("DELETE_OBJECTS")]
    found = {one.step: one for one in examine(case(stored_before=False))}
    assert "s3:DeleteObject" in found["DELETE"].remedy
    assert "s3:DeleteObject" in found["DeleteObjects"].remedy
    assert found["cleanup"].level == "FAIL"
    assert "c/celery-s3-doctor/" in found["cleanup"].text


def test_settings(case):
    """What was given stands with its source, and secrets are masked."""
    text = access.settings(case()).text
    assert "from URL: bucket=results" in text
    assert "from s3_backend_settings: aws_secret_access_key=********" in text
    assert "from AWS_REGION: aws_region=us-east-1" in text


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, "obstore; boto3 in"),
        ({"client": "boto3"}, "boto3, as `client` says"),
        ({"session": object()}, "boto3: a boto3 session is given"),
    ],
)
def test_client(case, given, text):
    """Which client is used, and why."""
    assert access.client(case(**given)).text.startswith(text)


@pytest.mark.parametrize(
    ("told", "level", "text"),
    [
        ({"credentials": BadCredentials("none")}, "FAIL", "none"),
        ({"identity": Identity("1", "arn:aws:iam::1:root")}, "WARN", "root"),
        ({"identity": BadCredentials("", status=403, code="InvalidClientTokenId")}, "FAIL", "InvalidClientTokenId"),
        ({"identity": Unreachable("no route")}, "WARN", "no route"),
        ({"identity": BadRequest("what?"), "endpoint_url": "http://localhost:1"}, "OK", "the settings' own keys"),
        ({}, "OK", "arn:aws:iam::1:role/worker"),
    ],
)
def test_credentials(case, told, level, text):
    """Whose the credentials are; a server that knows nothing of STS is no trouble, AWS's is."""
    found = access.credentials(case(**told))
    assert found.level == level
    assert text in found.text


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (BucketMissing("", status=404, code="NoSuchBucket"), "s3 init"),
        (WrongRegion("it is in eu-west-1", status=301), "`aws_region`"),
        (BadCredentials("", status=403, code="RequestTimeTooSkewed"), "clock"),
        (Unreachable("refused"), "`endpoint_url`"),
    ],
)
def test_no_bucket(case, store, error, remedy):
    """Without a bucket nothing else is tried, and the remedy is told."""
    found = list(examine(case(stored_before=False, region=error)))
    assert [one.step for one in found] == ["settings", "client", "credentials", "bucket", "clock", "the rest"]
    assert [one.level for one in found[3:]] == ["FAIL", "OK", "SKIP"]
    assert remedy in found[3].remedy
    assert store.requests == []


def test_listing_denied_says_nothing_of_the_bucket(case):
    """A 403 may be of a bucket that exists: the steps after it are tried."""
    found = {one.step: one for one in examine(case(stored_before=False, region=AccessDenied("", status=403)))}
    assert found["bucket"].level == "WARN"
    assert found["PUT"].level == "OK"


def test_another_region_without_a_redirect(case):
    """A server that answers for another region's bucket tells so."""
    assert access.bucket(case(region="eu-west-1")).level == "WARN"


# -- the verbs


def test_put_denied(case, store):
    """Without PUT what needs an object is not tried, and the rest is."""
    store.faults.append(denied("PUT"))
    found = {one.step: one for one in examine(case(stored_before=False))}
    assert "Allow s3:PutObject;" in found["PUT"].remedy
    assert {one.step for one in found.values() if one.level == "SKIP"} >= {"GET", "conditional", "latency"}
    assert found["LIST"].level == found["missing key"].level == "OK"
    assert "DELETE" not in [verb for verb, *_ in store.requests]


@pytest.mark.parametrize(("verb", "step"), [("PUT", verbs.write), ("GET", verbs.read)])
def test_kms_denied(case, store, verb, step):
    """With KMS, a 403 may be the key's: both permissions are named."""
    one = case(stored_before=verb != "PUT", sse="aws:kms", tags={"a": "b"})
    store.faults.append(denied(verb))
    remedy = step(one).remedy
    assert {"PUT": "kms:GenerateDataKey", "GET": "kms:Decrypt"}[verb] in remedy
    assert ("s3:PutObjectTagging" in remedy) is (verb == "PUT")


def test_get_tells_other_bytes(case, store):
    """A cache that answers with something else is found."""
    one = case()
    store.put(one.object, b"old", metadata={"state": "DOCTOR"})
    assert "cache" in verbs.read(one).remedy
    assert verbs.read_range(one).level == "FAIL"


def test_get_without_metadata(case, store):
    """A proxy that removes headers is found."""
    one = case()
    store.put(one.object, one.body)
    assert "x-amz-meta" in verbs.read(one).remedy


def test_listing(case, store):
    """Denied, or behind the times."""
    one = case()
    store.delete(one.object)
    assert "not listed" in verbs.listing(one).text
    store.faults.append(denied("LIST"))
    assert "s3:ListBucket" in verbs.listing(one).remedy


@pytest.mark.parametrize(("accepted", "level"), [(False, "WARN"), (True, "OK")])
def test_missing_is_403(case, store, accepted, level):
    """403 for a key that does not exist is told with both remedies, unless the settings expect it."""
    one = case(missing_as_403=accepted)
    store.faults.append(denied("GET"))
    found = verbs.missing(one)
    assert found.level == level
    assert accepted or ("s3:ListBucket" in found.remedy and "`missing_as_403`" in found.remedy)


@pytest.mark.parametrize(("mode", "level"), [("auto", "WARN"), ("required", "FAIL"), ("off", "OK")])
def test_conditions_ignored(case, store, mode, level):
    """A server without conditional writes is as bad as the settings say."""
    one = case(conditional_writes=mode)
    store._conditional = False
    assert verbs.conditional(one).level == level


def test_conditions_not_understood(case, store):
    """A server that stumbles over the header has no conditional writes; another refusal is an error."""
    one = case()
    unknown = BadRequest("", status=501, code="NotImplemented")
    store.faults += [Fault(unknown, "PUT"), Fault(unknown, "PUT", after=1)]
    assert verbs.conditional(one).level == "WARN"
    store.faults.append(Fault(BadRequest("", status=413), "PUT"))
    assert verbs.conditional(one).level == "FAIL"


def test_deleted_is_still_there(case, store, monkeypatch):
    """A cache before the server shows what was deleted."""
    one = case()
    monkeypatch.setattr(store, "delete", lambda key: None)
    assert "cache" in verbs.delete(one).remedy


# -- the bucket


@pytest.mark.parametrize(
    ("skew", "level"), [(None, "SKIP"), (-0.6, "OK"), (90.0, "WARN"), (-90.0, "WARN"), (1_000.0, "FAIL")]
)
def test_clock(case, skew, level):
    """A clock that is off by more than a few seconds is told, by more than S3 bears fails."""
    found = bucket.clock(case(skew=skew))
    assert found.level == level
    assert skew is None or abs(skew) < 5 or ("ahead" if skew > 0 else "behind") in found.text


@pytest.mark.parametrize(
    ("given", "stored", "level"),
    [
        ({}, {}, "OK"),
        ({}, {"ServerSideEncryption": "AES256"}, "OK"),
        ({"sse": "AES256"}, {"ServerSideEncryption": "AES256"}, "OK"),
        ({"sse": "AES256"}, {}, "FAIL"),
        ({"sse": "aws:kms"}, {"ServerSideEncryption": "AES256"}, "FAIL"),
        (
            {"sse": "aws:kms", "sse_kms_key_id": "k"},
            {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "a:key/k"},
            "OK",
        ),
        (
            {"sse": "aws:kms", "sse_kms_key_id": "k"},
            {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "a:key/j"},
            "FAIL",
        ),
        (
            {"sse": "aws:kms", "sse_kms_key_id": "alias/x"},
            {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "j"},
            "OK",
        ),
        ({"sse": "aws:kms", "bucket_key": True}, {"ServerSideEncryption": "aws:kms"}, "WARN"),
        ({"sse": "aws:kms", "bucket_key": True}, {"ServerSideEncryption": "aws:kms", "BucketKeyEnabled": True}, "OK"),
    ],
)
def test_encryption(case, given, stored, level):
    """What the stored object says against what the settings say."""
    assert bucket.encryption(case(**given, stored=stored)).level == level


@pytest.mark.parametrize(
    ("status", "standing", "level"),
    [
        ("", [], "OK"),
        ("Suspended", [], "WARN"),
        ("Suspended", rules(versioned=True), "OK"),
        ("Enabled", rules(), "WARN"),
        ("Enabled", rules(versioned=True), "OK"),
    ],
)
def test_versioning(case, status, standing, level):
    """Versions are billed, unless rules remove them; a bucket where they are suspended has those from before."""
    assert bucket.versioning(case(versioning=status, lifecycle=standing)).level == level


OTHERS = {"ID": "theirs", "Status": "Enabled", "Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 1}}
EARLY = {"ID": "early", "Status": "Enabled", "Filter": {"Prefix": "c/celery-chords/"}, "Expiration": {"Days": 1}}


@pytest.mark.parametrize(
    ("standing", "level", "text"),
    [
        (rules(), "OK", "live 1 day"),
        (merge([OTHERS], rules()), "OK", ""),
        ([], "WARN", "no rule"),
        ([OTHERS], "WARN", "no rule"),
        ([{**rule, "Status": "Disabled"} for rule in rules()], "WARN", "no rule"),
        (merge([EARLY], rules()), "WARN", "'early' deletes chords after 1 day, before they expire"),
        (merge([EARLY], rules()), "WARN", "live 1 day. "),
        ([EARLY], "WARN", "no rule deletes all that expires: it stays, and is billed. The lifecycle rule 'early'"),
        (BadRequest("", status=501, code="NotImplemented"), "WARN", "no lifecycle API"),
        (AccessDenied("", status=403), "SKIP", "s3:GetLifecycleConfiguration"),
    ],
)
def test_lifecycle(case, standing, level, text):
    """Whether rules delete all that expires, and nothing before: the one is told beside the other."""
    found = bucket.lifecycle(case(lifecycle=standing))
    assert found.level == level
    assert text in found.text


def test_an_older_rule_of_ours(case):
    """Where `result_expires` has grown since `init`, its rule deletes too early: to be told, with `init` for it."""
    one = case(lifecycle=rules())
    one.rules = lambda versioned: wanted(LAYOUT, Terms.of({}, 30 * 86_400), versioned=versioned)
    found = bucket.lifecycle(one)
    assert (found.level, "it should be after 30 days" in found.text) == ("WARN", True)
    assert "s3 init" in found.remedy


@pytest.mark.parametrize(
    ("given", "error", "level"),
    [
        ({}, None, "OK"),
        ({}, BadRequest("", status=400), "FAIL"),
        ({"endpoint_url": "http://localhost:1"}, BadRequest("", status=400), "OK"),
    ],
)
def test_checksums(case, given, error, level):
    """Amazon must accept what boto3 sends to it; other servers get none."""
    assert bucket.checksums(case(**given, checksum=error)).level == level


def test_latency(case, store, monkeypatch):
    """Twenty of each; a bucket that is far away is told."""
    one = case()
    before = len(store.requests)
    assert bucket.latency(one).level == "OK"
    assert len(store.requests) - before == 40
    monkeypatch.setattr("celery_s3.operate.doctor.bucket._FAR", -1.0)
    assert "region" in bucket.latency(one).remedy


def test_every_trouble_has_a_remedy(case, store):
    """No FAIL of the steps above leaves the reader alone."""
    store.faults += [denied(verb) for verb in ("PUT", "GET", "LIST", "DELETE", "DELETE_OBJECTS")]
    found = list(examine(case(stored_before=False, lifecycle=[], versioning="Enabled")))
    assert [one.step for one in found if one.level in ("FAIL", "WARN") and not one.remedy] == []
