"""``celery s3 init``: the bucket is brought up to date, and nobody else's rules are touched."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from celery.bin.base import CLIContext
from click.testing import CliRunner
from kombu.utils.uuid import uuid

from celery_s3.cli import s3
from celery_s3.errors import BadCredentials, BucketMissing, PreconditionFailed
from celery_s3.settings import Secret
from celery_s3.store.clients.control import Control

FOREIGN = [
    {"ID": "logs", "Status": "Enabled", "Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 3}},
    {
        "ID": "celery-s3-0a0a0a0a-results",
        "Status": "Enabled",
        "Filter": {"Prefix": "other/celery-task-meta-"},
        "Expiration": {"Days": 30},
    },
    {"ID": "off", "Status": "Disabled", "Filter": {"Prefix": "old/"}, "Expiration": {"Days": 9}},
]


class Bucket:
    """A bucket of an app's, the commands, and what stands there."""

    def __init__(self, app):
        self.app, self.backend = app, app.backend
        self.control = Control(app.backend.settings)

    def init(self, *arguments, input=None, code=0):
        obj = CLIContext(app=self.app, no_color=True, workdir=None)
        done = CliRunner().invoke(s3, ["init", *arguments], obj=obj, input=input, catch_exceptions=False)
        assert done.exit_code == code, done.output
        return done

    def changes(self):
        """What is to change, by what it is."""
        obj = CLIContext(app=self.app, no_color=True, workdir=None)
        told = json.loads(CliRunner().invoke(s3, ["init", "--dry-run", "--json"], obj=obj).stdout)
        return {one["what"]: one["lines"] for one in told["changes"]}


@pytest.fixture(autouse=True)
def _somebody_is_there(monkeypatch):
    monkeypatch.setattr("celery_s3.cli.query._somebody_is_there", lambda: True)


@pytest.fixture
def bucket(moto_s3, make_app):
    """A bucket that does not exist yet, on a server with the whole API."""
    return Bucket(make_app(moto_s3, s3_backend_settings={"bucket": f"bucket-{uuid()}", "sse": "AES256"}))


def test_from_nothing(bucket):
    """A bucket is made, closed, encrypted and given rules; once more, and nothing is to change."""
    told = bucket.init("--yes").stdout
    assert "+ create bucket-" in told
    assert bucket.control.public_access_blocked()
    assert bucket.control.encryption()["ApplyServerSideEncryptionByDefault"] == {"SSEAlgorithm": "AES256"}
    assert bucket.control.lifecycle() == bucket.backend.lifecycle_rules()
    assert bucket.init("--yes").stdout.splitlines()[-1] == "Nothing to change."
    assert bucket.init("--dry-run").stdout.splitlines()[-1] == "Nothing to change."


def test_another_region(moto_s3, make_app):
    """Outside of us-east-1 the place is named."""
    settings = {"bucket": f"bucket-{uuid()}", "aws_region": "eu-west-1"}
    one = Bucket(make_app(moto_s3, s3_backend_settings=settings))
    one.init("--yes")
    assert b">eu-west-1<" in moto_s3.request("GET", f"/{one.backend.settings.bucket}?location")[1]


def test_dry_run(bucket):
    """--dry-run shows the difference, changes nothing, and its exit code tells that there is one."""
    assert "+ create" in bucket.init("--dry-run", code=1).stdout
    with pytest.raises(BucketMissing):
        bucket.control.region()


@pytest.mark.parametrize("answer", ["n\n", ""])
def test_it_asks(bucket, answer):
    """Without --yes it asks, and who does not say yes changes nothing."""
    told = bucket.init(input=answer, code=1)
    assert "Make these changes? [y/N]" in told.output
    with pytest.raises(BucketMissing):
        bucket.control.region()
    bucket.init(input="y\n")
    assert bucket.control.lifecycle()


def test_foreign_rules(bucket):
    """Other rules, also another deployment's, stay what and where they are; ours are brought up to date in place."""
    bucket.control.create()
    ours = bucket.backend.lifecycle_rules()
    stale = {**ours[0], "Expiration": {"Days": 77}}
    gone = {**ours[0], "ID": ours[0]["ID"].replace("-results", "-results-7")}
    bucket.control.put_lifecycle([FOREIGN[0], stale, FOREIGN[1], gone, FOREIGN[2]])
    lines = bucket.changes()["lifecycle"]
    assert [line[0] for line in lines] == ["-", "-", *"+" * len(ours), "="]
    assert "after 77 days" in lines[0]
    assert lines[-1] == "= 3 other rules as before, 1 for another base_path (is it yours no more: --moved-from)"
    bucket.init("--yes")
    assert bucket.control.lifecycle() == [FOREIGN[0], ours[0], FOREIGN[1], FOREIGN[2], *ours[1:]]
    assert bucket.changes() == {}


@pytest.fixture
def moved(moto_s3, make_app):
    """Two deployments in one bucket, the second of which was the first until its base_path was changed."""
    name = f"bucket-{uuid()}"
    old, new = (
        Bucket(make_app(moto_s3, s3_backend_settings={"bucket": name, "base_path": base})) for base in ("old", "new/b")
    )
    old.init("--yes")
    return old, new


def test_foreign_objects(bucket):
    """What a new rule would delete and we have not written is named; --yes is not enough then, a person's yes is."""
    bucket.control.create()
    base, store = bucket.backend.settings.base, bucket.backend.store
    letter = f"{base}celery-files/2025/letter.pdf"
    store.put(letter, b"mine")
    store.put(f"{base}celery-files/some-task/{'0a' * 16}", b"ours")
    plan = f"{base}celery-chords/2025/plan.pdf"
    store.put(plan, b"mine")
    store.put(f"{base}celery-chords/some-group/manifest", b"ours")
    for number in range(3):
        store.put(f"{base}celery-files/note\x1b{number}", b"mine")
    done = bucket.init("--yes", code=1)
    assert f"! deletes what celery-s3 has not written: {letter}, " in done.stdout
    assert "and 1 more" in done.stdout
    assert f"! deletes what celery-s3 has not written: {plan}\n" in done.stdout
    assert "\x1b" not in done.stdout
    assert "lifecycle: not done: --yes is not enough" in done.stderr
    assert "public access: done." in done.stdout
    assert bucket.control.lifecycle() == []
    bucket.init(input="y\n")
    assert bucket.control.lifecycle() == bucket.backend.lifecycle_rules()
    assert bucket.changes() == {}  # asked once


@pytest.fixture
def old(bucket, monkeypatch):
    """A bucket with three results, and the time more than a year later."""
    bucket.control.create()
    for number in range(3):
        bucket.backend.store.put(bucket.backend.layout.result_key(f"old-{number}"), b"{}")
    later = SimpleNamespace(time=lambda: time.time() + 400 * 86_400)
    monkeypatch.setattr("celery_s3.operate.init.time", later)
    return bucket


def test_what_the_rules_delete_at_once(old):
    """Old results that a new rule deletes are counted, and their number is asked for; a yes is not enough."""
    for answer, code in (("y\n", 1), ("2\n", 1), ("3\n", 0)):
        assert old.control.lifecycle() == []
        told = old.init(input=answer, code=code)
        assert f"- 3 of the 3 objects that stand under {old.backend.layout.results} now" in told.output
        assert "They delete 3 objects that stand there now. Type 3 to go on" in told.output
    assert old.control.lifecycle() == old.backend.lifecycle_rules()


def test_what_the_rules_delete_where_nobody_is_asked(old):
    """With --yes, as many must have been allowed by number; the other changes are made meanwhile."""
    done = old.init("--yes", "--delete", "2", code=1)
    assert "lifecycle: not done: --yes is not enough for it: it deletes 3 objects; say --delete 3" in done.stderr
    assert old.control.lifecycle() == []
    told = json.loads(old.init("--yes", "--delete", "3", "--json").stdout)
    assert [(one["what"], one["deletes"], one["made"]) for one in told["changes"]] == [("lifecycle", 3, True)]


def test_nobody_to_ask(bucket, monkeypatch):
    """Elsewhere than on a terminal nothing is changed without --yes, which it says."""
    monkeypatch.setattr("celery_s3.cli.query._somebody_is_there", lambda: False)
    assert "say --yes" in bucket.init(code=1).stderr
    with pytest.raises(BucketMissing):
        bucket.control.region()


def test_the_rules_of_an_earlier_base_path(moved):
    """They stay, for they may be another deployment's, and are told; --moved-from shows them in the difference."""
    old, new = moved
    new.init("--yes")
    ours, theirs = new.backend.lifecycle_rules(), old.backend.lifecycle_rules()
    assert new.control.lifecycle() == [*theirs, *ours]
    lines = [line for line in new.init("--yes", "--moved-from", "/old/").stdout.splitlines() if " - " in line]
    assert all("old/celery-" in line for line in lines)
    assert new.control.lifecycle() == ours
    assert new.init("--yes", "--moved-from", "old").stdout.splitlines()[-1] == "Nothing to change."


def test_an_earlier_base_path_with_results(moved):
    """Where something stands that no rule would delete any more, a person is asked."""
    old, new = moved
    new.init("--yes")
    old.backend.store_result("x", 1, "SUCCESS")
    done = new.init("--yes", "--moved-from", "old", code=1)
    assert "! something stands under old/celery-task-meta-" in done.stdout
    assert len(new.control.lifecycle()) == len(new.backend.lifecycle_rules()) + len(old.backend.lifecycle_rules())


def test_moved_from_where_it_is(moved):
    """The rules of the settings' own base_path are never removed."""
    assert "its rules are needed" in moved[0].init("--moved-from", "old/", code=2).stderr
    assert ".." in moved[0].init("--moved-from", "../x", code=2).stderr


def test_versions(bucket, moto_s3):
    """In a bucket that keeps versions, old ones are removed too."""
    bucket.control.create()
    body = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
    assert moto_s3.answers("PUT", f"/{bucket.backend.settings.bucket}?versioning", body)
    bucket.init("--yes")
    assert bucket.control.lifecycle() == bucket.backend.lifecycle_rules(versioned=True)
    assert bucket.changes() == {}


def test_rules_change_meanwhile(bucket, monkeypatch):
    """Who changes the rules between the question and the answer does not lose them: it is told, and tried again."""
    bucket.control.create()
    read, reads = Control.lifecycle, []

    def raced(self):
        reads.append(1)
        found = read(self)
        if len(reads) == 1:
            self.put_lifecycle(FOREIGN[:1])
        return found

    monkeypatch.setattr(Control, "lifecycle", raced)
    done = bucket.init("--yes", code=1)
    assert "lifecycle: not done: " in done.stderr
    assert "changed meanwhile" in done.stderr
    assert bucket.control.lifecycle() == FOREIGN[:1]
    bucket.init("--yes")
    assert bucket.control.lifecycle() == [FOREIGN[0], *bucket.backend.lifecycle_rules()]


def test_put_lifecycle(bucket):
    """The rules that are replaced must be those that stand there; no rules at all delete the configuration."""
    bucket.control.create()
    bucket.control.put_lifecycle(FOREIGN[:1], replacing=[])
    with pytest.raises(PreconditionFailed):
        bucket.control.put_lifecycle(FOREIGN[1:2], replacing=[])
    bucket.control.put_lifecycle([], replacing=FOREIGN[:1])
    assert bucket.control.lifecycle() == []


@pytest.mark.parametrize("fault", ["PUT ?lifecycle", "PUT ?publicAccessBlock"])
def test_it_dies_in_between(moto_s3, proxy_for, make_app, fault):
    """Whatever is not done is told, the rest is done; run again, it is finished."""
    proxy = proxy_for(moto_s3)
    one = Bucket(make_app(proxy, s3_backend_settings={"bucket": f"bucket-{uuid()}", "sse": "AES256"}))
    proxy.fail(fault, "access_denied")
    assert "s3 policy --role administrator" in one.init("--yes", code=1).stderr
    assert len(one.changes()) == 1
    one.init("--yes")
    assert one.changes() == {}


def test_an_answer_gets_lost(moto_s3, proxy_for, make_app):
    """A bucket that was made although nobody heard of it is one's own."""
    proxy = proxy_for(moto_s3)
    one = Bucket(make_app(proxy, s3_backend_settings={"bucket": f"bucket-{uuid()}", "aws_region": "eu-west-1"}))
    proxy.fail("CreateBucket", "reset_after")
    one.init("--yes")
    assert one.changes() == {}


def test_a_server_without_the_api(seaweed, make_app, fresh_bucket):
    """What the server lacks is a warning; the rest is done, and the exit code is 0, also when nothing is to change."""
    one = Bucket(make_app(seaweed, s3_backend_settings={"bucket": fresh_bucket(seaweed)}))
    warning = ["warning: public access: the server has no such thing (501): it stays as it is."]
    assert one.init("--yes").stderr.splitlines() == warning
    assert one.control.lifecycle() == one.backend.lifecycle_rules()
    again = one.init("--dry-run")
    assert (again.stderr.splitlines(), again.stdout.splitlines()[-1]) == (warning, "Nothing to change.")
    assert json.loads(one.init("--yes", "--json").stdout)["lacking"].keys() == {"public access"}


@pytest.mark.parametrize(("how", "code"), [("not_implemented", 0), ("bad_request", 0), ("access_denied", 1)])
def test_a_server_without_lifecycle(moto_s3, proxy_for, make_app, how, code):
    """Likewise for rules, which were to be made (Swift answers 400 to them); one that denies them is a trouble."""
    proxy = proxy_for(moto_s3)
    one = Bucket(make_app(proxy, s3_backend_settings={"bucket": f"bucket-{uuid()}"}))
    proxy.fail("* ?lifecycle", how, times=-1)
    done = one.init("--yes", code=code)
    assert "lifecycle: not done: " in done.stderr
    assert one.control.public_access_blocked()


def test_somebody_elses_bucket(proxy, make_app):
    """A bucket that cannot be looked at ends it at once, in a line."""
    proxy.fail("*", "access_denied", times=-1)
    done = Bucket(make_app(proxy)).init("--yes", code=1)
    assert "access denied (403 AccessDenied)" in done.output
    assert proxy.methods().keys() == {"GET"}


@pytest.mark.parametrize("standing", ["aws:kms", "AES256"])
def test_stronger_encryption_stays(bucket, standing):
    """KMS is not replaced by AES256: objects say what they want themselves."""
    bucket.control.create()
    bucket.control.put_encryption({"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": standing}})
    assert "encryption" not in bucket.changes()


def test_kms(moto_s3, make_app):
    """The key and the bucket key are part of it."""
    settings = {"bucket": f"bucket-{uuid()}", "sse": "aws:kms", "sse_kms_key_id": "key", "bucket_key": True}
    one = Bucket(make_app(moto_s3, s3_backend_settings=settings))
    one.control.create()
    one.control.put_encryption({"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}})
    assert one.changes()["encryption"] == ["- AES256", "+ aws:kms with key, bucket key"]
    one.init("--yes")
    assert one.changes() == {}


@pytest.mark.parametrize(
    ("wanted", "standing", "then"),
    [
        ({"sse": "aws:kms"}, ("aws:kms", "theirs"), None),
        ({"sse": "aws:kms"}, ("aws:kms:dsse", "theirs"), None),
        ({"sse": "aws:kms", "sse_kms_key_id": "ours"}, ("aws:kms:dsse", "theirs"), None),
        ({"sse": "aws:kms", "sse_kms_key_id": "ours"}, ("aws:kms", "theirs"), ("aws:kms", "ours")),
        ({"sse": "aws:kms:dsse"}, ("aws:kms", "theirs"), ("aws:kms:dsse", "theirs")),
    ],
)
def test_encryption_is_never_weakened(moto_s3, make_app, wanted, standing, then):
    """A customer's key stays where the settings name none, and no algorithm is replaced by a weaker one."""
    one = Bucket(make_app(moto_s3, s3_backend_settings={"bucket": f"bucket-{uuid()}", **wanted}))
    one.control.create()
    names = ("SSEAlgorithm", "KMSMasterKeyID")
    one.control.put_encryption({"ApplyServerSideEncryptionByDefault": dict(zip(names, standing, strict=True))})
    assert ("encryption" in one.changes()) == bool(then)
    one.init("--yes")
    default = one.control.encryption()["ApplyServerSideEncryptionByDefault"]
    assert default == dict(zip(names, then or standing, strict=True))


def test_stale_uploads(bucket, moto_s3):
    """Uploads of ours that nobody completes are aborted; others are not looked at."""
    bucket.init("--yes")
    name = bucket.backend.settings.bucket
    for key in (f"{bucket.backend.layout.results}id", f"{bucket.backend.settings.base}else", "else"):
        moto_s3.request("POST", f"/{name}/{key}?uploads")
    (line,) = bucket.changes()["uploads"]
    assert line.startswith(f"- {bucket.backend.layout.results}id, begun ")
    bucket.init("--yes")
    assert [one.key for one in bucket.control.uploads("")] == [f"{bucket.backend.settings.base}else", "else"]
    assert bucket.changes() == {}


def test_hazards(bucket):
    """Rules of others that delete results too early are told; they are theirs."""
    bucket.control.create()
    base = bucket.backend.settings.base
    early = {
        "ID": "tidy",
        "Status": "Enabled",
        "Filter": {"Prefix": f"{base}celery-chords/"},
        "Expiration": {"Days": 1},
    }
    bucket.control.put_lifecycle([early])
    assert "warning: The lifecycle rule 'tidy' deletes chords after 1 day" in bucket.init("--yes").stderr
    assert bucket.control.lifecycle()[0] == early


def test_json(bucket):
    """What is to change, and what was done."""
    told = json.loads(bucket.init("--yes", "--json").stdout)
    assert [one["what"] for one in told["changes"]] == ["bucket", "public access", "encryption", "lifecycle"]
    assert all(one["made"] for one in told["changes"])
    assert (told["troubles"], told["lacking"], told["warnings"]) == ({}, {}, [])


def test_json_asks_with_the_difference(bucket):
    """Who is asked sees what about, on standard error: standard output has the JSON alone."""
    done = bucket.init("--json", input="y\n")
    asked, _, _ = done.stderr.partition("Make these changes?")
    assert "+ create bucket-" in asked
    assert "lifecycle" in asked
    assert json.loads(done.stdout)["changes"]


def test_print_as_another_form_is_not_json(bucket):
    """--print terraform with --json is a wrong use; --print json is JSON with or without it."""
    assert "--json" in bucket.init("--print", "terraform", "--json", code=2).stderr
    assert bucket.init("--print", "json", "--json").stdout == bucket.init("--print", "json").stdout


@pytest.mark.parametrize("form", ["json", "terraform", "cloudformation"])
def test_print(make_app, proxy, form):
    """The documents are made without a request, and hold no secret."""
    one = Bucket(make_app(proxy))
    told = one.init("--print", form).stdout
    assert one.backend.settings.bucket in told
    assert proxy.secret_key not in told
    assert proxy.records() == []


def test_an_expected_owner(settings_for, moto_s3, proxy_for):
    """Whoever else owns the bucket is refused; a presigned link works for everybody."""
    proxy = proxy_for(moto_s3)
    control = Control(settings_for(proxy, expected_bucket_owner="111122223333"))
    control.lifecycle()
    (record,) = proxy.records()
    assert record.headers["x-amz-expected-bucket-owner"] == "111122223333"
    assert "owner" not in control.presign("key", 60).lower()


def test_identity(settings_for, seaweed):
    """Whose the keys are, as the server tells it; wrong ones are an error without a secret."""
    settings = settings_for(seaweed)
    assert Control(settings).identity().arn.startswith("arn:aws:iam::")
    with pytest.raises(BadCredentials) as caught:
        Control(replace(settings, secret_access_key=Secret("hush-hush"))).lifecycle()
    assert "hush" not in f"{caught.value!r} {caught.value} {caught.value.__cause__!r}"
