"""The settings: where they come from, what is refused, and that no secret is printed."""

from __future__ import annotations

import copy
import inspect
import itertools
import os
import pickle
import re
import subprocess
import sys
import traceback
from dataclasses import fields
from pathlib import Path

import pytest
from celery import Celery
from celery.exceptions import ImproperlyConfigured
from hypothesis import given
from hypothesis import strategies as st

from celery_s3.errors import ConfigurationError
from celery_s3.settings import CredentialSource, Secret, Settings, resolve
from celery_s3.settings.kinds import BasePath, Wrong
from celery_s3.settings.network import CA_VARIABLES
from celery_s3.settings.options import OPTIONS
from devtools.reference.settings import written

KEY_ID, SECRET, TOKEN = "AKIDLEAK", "SeKr/LEAK+x=", "ToKLEAK=="
KEYS = {"aws_access_key_id": KEY_ID, "aws_secret_access_key": SECRET}
DOCS = Path(__file__).parents[2] / "docs" / "settings.md"


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    """No AWS environment, no bundle of certificates for all programs, and an empty home directory."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "CELERY_")) or name in CA_VARIABLES]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    # botocore would ask a metadata service
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return tmp_path


def make_app(config=None, namespace=None, **kwargs):
    app = Celery("tests", set_as_current=False, **kwargs)
    if config is not None:
        app.config_from_object(config, namespace=namespace)
    return app


def from_dict(**given):
    return resolve(make_app({"s3_backend_settings": {"bucket": "results"} | given}))


def from_url(url):
    return resolve(make_app({}), url)


def mistakes(call, *args, **kwargs):
    with pytest.raises(ConfigurationError) as info:
        call(*args, **kwargs)
    assert "LEAK" not in "".join(traceback.format_exception(info.value))
    return str(info.value).splitlines()[1:]


def aws_file(home, name, text):
    path = home / ".aws" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


# -- where settings come from

FORMS = {
    "1.0.1": lambda d: make_app({"CELERY_RESULT_BACKEND": "disabled", "CELERY_S3_BACKEND_SETTINGS": d}),
    "1.0.1's dict in a new-style configuration": lambda d: make_app(
        {"result_backend": "disabled", "CELERY_S3_BACKEND_SETTINGS": d}
    ),
    "lower case": lambda d: make_app({"result_backend": "disabled", "s3_backend_settings": d}),
    "Django": lambda d: make_app(
        {"CELERY_RESULT_BACKEND": "disabled", "CELERY_S3_BACKEND_SETTINGS": d}, namespace="CELERY"
    ),
    "a namespace of one's own": lambda d: make_app({"JOBS_S3_BACKEND_SETTINGS": d}, namespace="JOBS"),
    "upper case without namespace": lambda d: make_app({"S3_BACKEND_SETTINGS": d}),
    "argument of the app": lambda d: make_app(s3_backend_settings=d),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_dict_is_found_under_each_of_its_names(form):
    """1.0.1's, Django's and the lower-case name all lead to the same dict."""
    given = KEYS | {"bucket": "results", "base_path": "/celery/", "aws_region": "eu-west-1"}
    settings = resolve(FORMS[form](given))
    assert (settings.bucket, settings.base, settings.region) == ("results", "celery/", "eu-west-1")
    assert settings.secret_access_key == Secret(SECRET)


def test_the_dict_is_found_after_an_update_of_the_configuration():
    """Settings made by assignment count as those made by a configuration object."""
    app = make_app({"task_always_eager": True})
    app.conf.s3_backend_settings = {"bucket": "results"}
    assert resolve(app).bucket == "results"


def test_two_different_dicts_are_a_mistake():
    """Nobody has to know which of two dicts is taken: having two is refused."""
    app = make_app({"s3_backend_settings": {"bucket": "one"}, "CELERY_S3_BACKEND_SETTINGS": {"bucket": "two"}})
    assert "given twice" in mistakes(resolve, app)[0]


def test_1_0_1_settings_keep_their_meaning():
    """All seven settings of 1.0.1 have the effect they had."""
    given = KEYS | {"bucket": "b_1", "base_path": "/a/", "reduced_redundancy": True, "encrypt_key": True}
    settings = from_dict(**given)
    assert (settings.storage_class, settings.sse) == ("REDUCED_REDUNDANCY", "AES256")
    assert (settings.bucket, settings.base, settings.region) == ("b_1", "a/", "us-east-1")
    assert settings.access_key_id == Secret(KEY_ID)


def test_celerys_own_settings_work():
    """A configuration of Celery's `s3` backend needs no change."""
    config = {
        "s3_bucket": "results",
        "s3_base_path": "prefix",
        "s3_region": "eu-west-1",
        "s3_endpoint_url": "http://localhost:9000",
        "s3_access_key_id": KEY_ID,
        "s3_secret_access_key": SECRET,
    }
    settings = resolve(make_app(config))
    assert (settings.base, settings.region, settings.endpoint_url) == ("prefix", "eu-west-1", "http://localhost:9000")
    assert (settings.access_key_id, settings.secret_access_key) == (Secret(KEY_ID), Secret(SECRET))


def test_celerys_empty_settings_count_as_none():
    """Celery's backend takes an empty value for none, and so do we."""
    settings = resolve(make_app({"s3_bucket": "results", "s3_region": "", "s3_access_key_id": ""}))
    assert (settings.region, settings.access_key_id) == ("us-east-1", None)


def test_none_in_the_dict_counts_as_no_entry():
    """`os.environ.get(…)` in a configuration may give None."""
    assert from_dict(aws_region=None, base_path=None, aws_access_key_id=None) == Settings(bucket="results")


def test_each_setting_comes_from_the_strongest_source_that_says_it(monkeypatch):
    """URL before dict before Celery's names before the environment, setting by setting."""
    monkeypatch.setenv("AWS_REGION", "env-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://env")
    celery = {"s3_bucket": "celery", "s3_region": "celery-1", "s3_endpoint_url": "http://celery", "s3_base_path": "c"}
    mine = {"bucket": "dict", "aws_region": "dict-1", "max_retries": 1}
    assert resolve(make_app({"s3_bucket": "celery"})).endpoint_url == "http://env"
    settings = resolve(make_app(celery | {"s3_backend_settings": mine}), "celery-s3://url?region=url-1")
    assert (settings.bucket, settings.region) == ("url", "url-1")
    assert (settings.max_retries, settings.endpoint_url, settings.base) == (1, "http://celery", "c")


def test_a_url_says_everything_but_secrets():
    """Path and query are decoded, numbers and booleans understood, `region` is `aws_region`."""
    settings = from_url(
        "celery-s3://results/a%20b//c/?region=eu-west-1&endpoint_url=http://localhost:9000/&max_retries=0"
        "&read_timeout=1.5&verify=false&request_payer=1&tags=team%3Dops%26env%3D&sse=aws:kms&bucket_key=true"
    )
    assert (settings.bucket, settings.base, settings.region) == ("results", "a b/c/", "eu-west-1")
    assert (settings.endpoint_url, settings.max_retries, settings.read_timeout) == ("http://localhost:9000", 0, 1.5)
    assert (settings.verify, settings.request_payer, settings.bucket_key) == (False, True, True)
    assert settings.tags == {"team": "ops", "env": ""}


def test_a_url_may_leave_the_bucket_to_the_other_sources():
    """`celery-s3://` alone names the backend and nothing else."""
    assert resolve(make_app({"s3_bucket": "results"}), "celery-s3://").bucket == "results"


# -- what is refused


@pytest.mark.parametrize(
    "url",
    [
        f"celery-s3://{KEY_ID}:{SECRET}@results/p",
        f"celery-s3://{KEY_ID}@results",
        f"celery-s3://{KEY_ID}:a/LEAK@results/p",
        f"celery-s3://{KEY_ID}:a?LEAK@results/p",
        f"celery-s3://{KEY_ID}:a#LEAK@results/p",
        f"celery-s3://{KEY_ID}%3ALEAK%40results",
        f"celery-s3://results?aws_secret_access_key={SECRET}",
        f"celery-s3://results?aws_access_key_id={KEY_ID}",
        f"celery-s3://results?session_token={TOKEN}",
        f"celery-s3://results?secret_key={TOKEN}",
        f"celery-s3://results?endpoint_url=http://user:{SECRET}@localhost",
    ],
)
def test_credentials_in_a_url_are_refused_without_being_printed(url):
    """`celery report` prints the URL, so a secret in it has leaked already; the error does not print it again."""
    (line,) = mistakes(from_url, url)
    assert "seems to hold credentials" in line


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("celery-s3:///prefix", "`bucket`: is missing"),
        ("celery-s3://[results", "cannot be read"),
        ("celery-s3://results/%ff", "cannot be read"),
        ("celery-s3://results?region", "cannot be read"),
        ("celery-s3://results/a\nb", "cannot be read"),
        ("celery-s3://results/#a", "cannot be read"),
        ("redis://results", "cannot be read"),
        ("celery_s3://results", "begins with celery-s3://, with a hyphen"),
        ("celery-s3://results?region=a1&region=b1", "`aws_region` is given 2 times"),
        ("celery-s3://results?region=a1&aws_region=b1", "`aws_region` is given 2 times"),
        ("celery-s3://results?regoin=a1", "'regoin' in the URL is unknown: did you mean `aws_region`?"),
        ("celery-s3://results?bucket=a", "'bucket' in the URL is unknown"),
        ("celery-s3://results?max_retries=many", "`max_retries` in the URL: 'many' is not a whole number from 0 to 50"),
        ("celery-s3://results?request_payer=yes", "`request_payer` in the URL: 'yes' is not true or false"),
        ("celery-s3://results?tags=a", "`tags` in the URL: 'a' is not of the form"),
        ("celery-s3://results?read_timeout=nan", "`read_timeout` in the URL"),
        ("celery-s3://results/%0a", "the path in the URL: holds a control character"),
        ("celery-s3://a,b/p", "the bucket in the URL: 'a,b' is not a bucket name"),
    ],
)
def test_a_wrong_url_is_refused_with_the_reason(url, reason):
    """A URL that cannot be understood completely is not used at all."""
    (line,) = mistakes(from_url, url)
    assert reason in line


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"bucket": "a/b"}, "is not a bucket name"),
        ({"bucket": "ab"}, "is not a bucket name"),
        ({"bucket": "a..b"}, "is not a bucket name"),
        ({"bucket": ""}, "is empty"),
        ({"bucket": 7}, "must be text, not int"),
        ({"bucket": b"results"}, "must be text, not bytes"),
        ({"aws_region": "eu west"}, "is not the name of a region"),
        ({"aws_region": "x.evil/"}, "is not the name of a region"),
        ({"endpoint_url": "localhost:9000"}, "is not an endpoint"),
        ({"endpoint_url": "http://"}, "is not an endpoint"),
        ({"endpoint_url": "http://h:port"}, "is not an endpoint"),
        ({"endpoint_url": "http://[::1"}, "is not an endpoint"),
        ({"endpoint_url": "ftp://host"}, "is not an endpoint"),
        ({"endpoint_url": f"http://u:{SECRET}@host"}, "must not hold credentials"),
        ({"endpoint_url": f"http://host?token={SECRET}"}, "must not hold credentials"),
        ({"aws_access_key_id": KEY_ID + "\n", "aws_secret_access_key": SECRET}, "line break"),
        ({"aws_access_key_id": KEY_ID, "aws_secret_access_key": SECRET + " "}, "white space"),
        ({"aws_access_key_id": KEY_ID, "aws_secret_access_key": 7}, "must be text, not int"),
        ({"role_arn": "results"}, "is not the ARN of a role"),
        ({"reduced_redundancy": "false"}, "is not true or false"),
        ({"encrypt_key": 1}, "is not true or false"),
        ({"storage_class": "standard"}, "is not a storage class"),
        ({"storage_class": "GLACIER"}, "cannot be read"),
        ({"sse": "kms"}, "is not `AES256`, `aws:kms` or `aws:kms:dsse`"),
        ({"sse": "aws:kms", "sse_kms_key_id": "a\r\nb"}, "line break"),
        ({"sse": "aws:kms", "sse_kms_key_id": "ключ"}, "is not a KMS key"),
        ({"tags": "a=b"}, "is not a dict"),
        ({"tags": {"a": 1}}, "must be text"),
        ({"tags": {"a\n": "b"}}, "line break"),
        ({"tags": {"": "b"}}, "is empty"),
        ({"tags": {"aws:x": "b"}}, "not starting with aws:"),
        ({"tags": {"a": "b" * 257}}, "at most 256"),
        ({"tags": {str(n): "" for n in range(11)}}, "at most 10"),
        ({"addressing_style": "host"}, "is not `auto`, `path` or `virtual`"),
        ({"verify": "false"}, "there is no file 'false'"),
        ({"verify": None, "read_timeout": 0}, "is not a number of seconds"),
        ({"connect_timeout": "2"}, "is not a number of seconds"),
        ({"connect_timeout": float("inf")}, "is not a number of seconds"),
        ({"connect_timeout": True}, "is not a number of seconds"),
        ({"max_retries": 51}, "from 0 to 50"),
        ({"max_retries": 1.5}, "whole number"),
        ({"concurrency": 0}, "from 1 to 256"),
        ({"concurrency": 10**400}, "from 1 to 256"),
        ({"expected_bucket_owner": 123456789012}, "must be text"),
        ({"expected_bucket_owner": "1\n"}, "line break"),
        ({"client": "boto"}, "is not `auto`, `obstore` or `boto3`"),
        ({"conditional_writes": True}, "must be text"),
        ({"session": "default"}, "must be a `boto3.Session`"),
        ({"base_path": "a/../b"}, "has a segment `.` or `..`"),
        ({"base_path": "./"}, "has a segment `.` or `..`"),
        ({"base_path": "a\tb"}, "control character"),
        ({"base_path": "a\ud800"}, "control character"),
        ({"base_path": "é" * 351}, "longer than 700 bytes"),
        ({"colour": "red"}, "'colour' in s3_backend_settings is unknown: valid are bucket,"),
        ({"use_ssl": False}, "say it by `endpoint_url`"),
        ({"BUCKET": "red"}, "did you mean `bucket`?"),
        ({"secret_access_key": SECRET}, "did you mean `aws_secret_access_key`?"),
        ({7: "red"}, "7 in s3_backend_settings is unknown"),
        ({"region": "a1", "aws_region": "b1"}, "another name for `aws_region`"),
    ],
)
def test_a_wrong_value_is_named_with_the_reason(given, reason):
    """A wrong value is one line: setting, source, what is wrong and what would be right."""
    app = make_app({"s3_backend_settings": {"bucket": "results"} | given})
    (line,) = mistakes(resolve, app)
    assert reason in line
    assert "s3_backend_settings" in line


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"aws_access_key_id": KEY_ID}, "only one is given"),
        ({"aws_secret_access_key": SECRET}, "only one is given"),
        ({"session_token": TOKEN}, "belongs to temporary keys"),
        (KEYS | {"profile": "other"}, "each names other credentials"),
        ({"reduced_redundancy": True, "storage_class": "STANDARD_IA"}, "two storage classes"),
        ({"encrypt_key": True, "sse": "aws:kms"}, "two encryptions"),
        ({"sse_kms_key_id": "alias/a"}, "needs `sse` to be `aws:kms`"),
        ({"sse": "AES256", "sse_kms_key_id": "alias/a"}, "needs `sse` to be `aws:kms`"),
        ({"sse": "aws:kms:dsse", "bucket_key": True}, "needs `sse` to be `aws:kms`"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(given, reason, home):
    """Two settings that cannot both be meant are named together."""
    aws_file(home, "config", "[profile other]\nregion = a1\n")
    (line,) = mistakes(from_dict, **given)
    assert reason in line


def test_a_pair_of_keys_comes_from_one_place():
    """Half a pair from the dict and half from Celery's names would be no pair."""
    config = {"s3_access_key_id": KEY_ID, "s3_backend_settings": {"bucket": "results", "aws_secret_access_key": SECRET}}
    assert "the pair comes from two places" in mistakes(resolve, make_app(config))[0]


def test_obstore_is_refused_where_it_cannot_serve():
    """`client` = `obstore` with keys that only boto3 can address is a contradiction, not a surprise later."""
    config = {"s3_bucket": "results", "s3_base_path": "/a", "s3_backend_settings": {"client": "obstore"}}
    assert "leading slash" in mistakes(resolve, make_app(config))[0]


def test_every_mistake_is_told_at_once():
    """One error, of Celery's own kind, with one line per mistake of every source."""
    app = make_app(
        {"s3_region": "a b", "s3_backend_settings": {"buckett": "x", "max_retries": "5", "sse": "none"}},
    )
    lines = mistakes(resolve, app, "celery-s3://?colour=red&concurrency=0")
    assert [line.split()[1].strip("`':") for line in lines] == [
        "colour",
        "concurrency",
        "buckett",
        "max_retries",
        "sse",
        "s3_region",
        "bucket",
    ]
    assert issubclass(ConfigurationError, ImproperlyConfigured)


def test_settings_that_are_no_dict_are_refused():
    """As 1.0.1 did; the values are not printed."""
    app = make_app({"s3_bucket": "results", "s3_backend_settings": [("aws_secret_access_key", SECRET)]})
    assert mistakes(resolve, app) == ["  - s3_backend_settings must be a dict, not list"]


# -- base


@pytest.mark.parametrize(
    ("given", "base"),
    [("", ""), ("/", ""), ("celery", "celery/"), ("/celery/", "celery/"), ("//a//b//", "a/b/"), ("hellø", "hellø/")],
)
def test_base_path_is_normalised(given, base):
    """No leading slash, no empty segment, one trailing slash, as boto 2 made it."""
    settings = from_dict(base_path=given)
    assert settings.base == base
    assert not settings.boto3_only_base


@given(st.text(alphabet="ab./ é", max_size=12))
def test_a_normalised_base_can_be_addressed_by_every_client(text):
    """Whatever is accepted has no empty and no dot segment, and normalising it again changes nothing."""
    try:
        base = BasePath().check(text)
    except Wrong:
        return
    assert base == BasePath().check(base)
    assert not {"", ".", ".."} & set(base.split("/")[:-1])
    assert base == "" or base.endswith("/")


@pytest.mark.parametrize(
    ("base", "boto3_only"), [("prefix", False), ("a/b/", False), ("a/..", False), ("/a/", True), ("a//b", True)]
)
def test_celerys_base_path_stays_as_it_is(base, boto3_only):
    """Celery concatenates it, so no slash is added or taken; what obstore cannot address is known."""
    settings = resolve(make_app({"s3_bucket": "results", "s3_base_path": base}))
    assert (settings.base, settings.boto3_only_base) == (base, boto3_only)
    assert bool(settings.boto3_reason) == boto3_only


def test_an_empty_base_path_hides_a_weaker_one():
    """`base_path: ''` means the bucket's root, also where Celery's setting says otherwise."""
    config = {"s3_base_path": "prefix", "s3_backend_settings": {"bucket": "results", "base_path": ""}}
    assert resolve(make_app(config)).base == ""


# -- the AWS environment


def test_the_scheme_of_an_endpoint_is_written_in_any_case():
    """As URLs have it; obstore takes it in lower case alone."""
    assert from_dict(endpoint_url="HTTP://Host:9000/path/").endpoint_url == "http://Host:9000/path"


def test_regions_and_endpoints_of_the_environment_have_an_order(monkeypatch, home):
    """AWS_REGION, AWS_DEFAULT_REGION, profile; AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, services section, profile."""
    aws_file(
        home,
        "config",
        "[default]\nregion = file-1\nendpoint_url = http://file\nservices = local\n"
        "[services local]\ns3 =\n  endpoint_url = http://service\n",
    )
    seen = [(settings := from_dict()).region, settings.endpoint_url]
    monkeypatch.setenv("AWS_DEFAULT_REGION", "default-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://global")
    seen += [(settings := from_dict()).region, settings.endpoint_url]
    monkeypatch.setenv("AWS_REGION", "env-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3")
    seen += [(settings := from_dict()).region, settings.endpoint_url]
    monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    seen += [from_dict().endpoint_url]
    assert seen == ["file-1", "http://service", "default-1", "http://global", "env-1", "http://s3", None]


@pytest.mark.parametrize("profile", [None, "local", "other name"])
@pytest.mark.parametrize("ignore", ["", "ignore_configured_endpoint_urls = true\n"])
def test_the_files_are_read_as_botocore_reads_them(monkeypatch, home, profile, ignore):
    """Region and endpoint of a profile are those that a boto3 client would use."""
    import boto3

    aws_file(
        home,
        "config",
        f"[default]\nregion = us-west-2\n{ignore}"
        f"[profile local]\nregion=eu-west-1\nservices = mine\nendpoint_url = http://all\n{ignore}"
        "[services mine]\nec2 =\n  endpoint_url = http://ec2\ns3 =\n  addressing_style = path\n"
        "  endpoint_url = http://s3.local:9000\n"
        f"[profile 'other name']\nendpoint_url = http://other\n{ignore}"
        "[local]\nregion = never\n",
    )
    aws_file(home, "credentials", f"[local]\naws_access_key_id = {KEY_ID}\naws_secret_access_key = {SECRET}\n")
    if profile:
        monkeypatch.setenv("AWS_PROFILE", profile)
    settings, session = from_dict(), boto3.Session()
    assert settings.region == (session.region_name or "us-east-1")
    theirs = session.client("s3", region_name=settings.region).meta.endpoint_url
    assert (settings.endpoint_url or theirs) == theirs
    assert bool(settings.endpoint_url) == ("amazonaws" not in theirs)


@pytest.mark.parametrize(
    ("config", "environ", "source"),
    [
        ("", {}, CredentialSource.SDK),
        ("[default]\nregion = eu-west-1\n", {}, CredentialSource.SDK),
        ("[default]\naws_access_key_id = a\naws_secret_access_key = b\n", {}, CredentialSource.BOTO3),
        ("[default]\ncredential_process = false\n", {}, CredentialSource.BOTO3),
        ("[default]\nsso_session = a\n", {}, CredentialSource.BOTO3),
        ("[default]\nrole_arn = a\nsource_profile = default\n", {}, CredentialSource.BOTO3),
        ("[profile p]\ncredential_process = false\n", {}, CredentialSource.SDK),
        ("[profile p]\ncredential_process = false\n", {"AWS_PROFILE": "p"}, CredentialSource.BOTO3),
        (
            "[default]\ncredential_process = false\n",
            {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"},
            CredentialSource.SDK,
        ),
        (
            "[default]\ncredential_process = false\n",
            {"AWS_WEB_IDENTITY_TOKEN_FILE": "a", "AWS_ROLE_ARN": "b"},
            CredentialSource.SDK,
        ),
        (
            "[default]\nrole_arn = a\ncredential_source = Environment\n",
            {"AWS_WEB_IDENTITY_TOKEN_FILE": "a", "AWS_ROLE_ARN": "b"},
            CredentialSource.BOTO3,
        ),
    ],
)
def test_the_environments_credentials_are_left_to_who_can_read_them(monkeypatch, home, config, environ, source):
    """obstore's chain knows environment, web identity, container and instance; the files need boto3."""
    aws_file(home, "config", config)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert from_dict().credential_source is source


def test_the_credentials_file_needs_boto3(home):
    """Keys in ~/.aws/credentials are not lost on a client that does not read them."""
    aws_file(home, "credentials", "[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    assert from_dict().credential_source is CredentialSource.BOTO3


def test_settings_decide_on_credentials_before_the_environment(monkeypatch, home):
    """Explicit keys are taken as they are; profile, role and session need boto3."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    aws_file(home, "config", "[profile p]\nregion = eu-west-1\n")
    role = "arn:aws:iam::123456789012:role/results"
    assert from_dict(**KEYS).credential_source is CredentialSource.STATIC
    assert from_dict(profile="p").credential_source is CredentialSource.BOTO3
    assert from_dict(profile="p").region == "eu-west-1"
    assert from_dict(role_arn=role).credential_source is CredentialSource.BOTO3
    assert from_dict(role_arn=role, **KEYS).credential_source is CredentialSource.BOTO3


def test_a_session_brings_credentials_and_region(monkeypatch, home):
    """An injected session forces boto3, its region counts, and other credentials beside it are refused."""
    import boto3

    session = boto3.Session(aws_access_key_id=KEY_ID, aws_secret_access_key=SECRET, region_name="eu-west-3")
    settings = from_dict(session=session)
    assert (settings.session, settings.region, settings.boto3_reason) == (
        session,
        "eu-west-3",
        "a boto3 session is given",
    )
    assert settings.credential_source is CredentialSource.BOTO3
    assert len(mistakes(from_dict, session=session, **KEYS)) == 1
    assert len(mistakes(from_dict, session=session, client="obstore")) == 1


@pytest.mark.parametrize("where", ["setting", "AWS_PROFILE"])
def test_a_profile_that_does_not_exist_is_a_mistake(monkeypatch, where):
    """A mistyped profile does not fall back to other credentials."""
    if where == "AWS_PROFILE":
        monkeypatch.setenv(where, "nobody")
    (line,) = mistakes(from_dict, **({"profile": "nobody"} if where == "setting" else {}))
    assert "'nobody'" in line


def test_half_a_pair_of_keys_in_the_environment_is_a_mistake(monkeypatch):
    """boto3 would fail and obstore go on to the instance's credentials: neither is left to happen."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    (line,) = mistakes(from_dict)
    assert "AWS_SECRET_ACCESS_KEY is not" in line
    assert from_dict(**KEYS).credential_source is CredentialSource.STATIC


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"])
def test_a_line_break_in_a_key_of_the_environment_is_a_mistake(monkeypatch, name):
    """No request could carry it, and the clients would tell it as their own trouble; its value is not shown."""
    for each in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(each, f"{SECRET}\n" if each == name else SECRET)
    (line,) = mistakes(from_dict)
    assert f"{name} in the environment holds a control character or a line break" in line
    assert SECRET not in line


def test_an_unreadable_file_is_a_mistake_that_quotes_nothing(home):
    """A parser's error quotes the line; a line of the credentials file is not ours to print."""
    aws_file(home, "credentials", f"aws_secret_access_key = {SECRET}\n")
    (line,) = mistakes(from_dict)
    assert "~/.aws/credentials cannot be read (MissingSectionHeaderError)" in line


def test_the_environments_ca_bundle_stands_for_verify(monkeypatch, tmp_path):
    """AWS_CA_BUNDLE is given to both clients; a setting is stronger; a file that is not there is a mistake."""
    bundle = tmp_path / "ca.pem"
    bundle.touch()
    monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
    assert from_dict().verify == str(bundle)
    assert from_dict(verify=False).verify is False
    assert from_dict(verify=bundle).verify == str(bundle)
    bundle.unlink()
    assert mistakes(from_dict)[0].startswith("  - AWS_CA_BUNDLE: there is no file")


def test_hosts_that_obstore_does_not_know_are_left_to_boto3(monkeypatch):
    """FIPS, dual stack and China: obstore would ask a host that is not meant, or does not exist."""
    assert "cn-north-1" in from_dict(aws_region="cn-north-1").boto3_reason
    assert from_dict(aws_region="cn-north-1", endpoint_url="https://s3.cn-north-1.amazonaws.com.cn").boto3_reason == ""
    monkeypatch.setenv("AWS_USE_FIPS_ENDPOINT", "true")
    assert "FIPS" in from_dict().boto3_reason


def test_resolving_imports_no_boto3(home):
    """boto3 costs half a second and 24 MB; settings, a profile's too, are had without it."""
    aws_file(home, "config", "[profile p]\nregion = eu-west-1\ncredential_process = false\n")
    code = (
        "import sys; from celery import Celery; from celery_s3.settings import resolve;"
        "print(resolve(Celery(set_as_current=False), 'celery-s3://results?profile=p').region,"
        " {'boto3', 'botocore', 'obstore'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["eu-west-1", "set()"]


# -- secrets


def test_settings_print_what_helps_and_no_secret():
    """A repr shows bucket, base, region and endpoint; secrets are masked wherever they are printed."""
    settings = from_dict(base_path="a", endpoint_url="http://localhost:9000", session_token=TOKEN, **KEYS)
    for text in (repr(settings), str(settings), f"{settings.secret_access_key} {settings.access_key_id!r}"):
        assert not any(part in text for part in (KEY_ID, SECRET, TOKEN))
        assert "********" in text
    assert all(part in repr(settings) for part in ("results", "a/", "us-east-1", "http://localhost:9000"))


def test_redact_masks_every_secret_however_it_is_spelled(monkeypatch):
    """Error texts of servers and libraries repeat keys, also percent-encoded and in XML."""
    monkeypatch.setenv("AWS_SESSION_TOKEN", "EnVLEAK/1")
    settings = from_dict(aws_access_key_id=KEY_ID, aws_secret_access_key='a"<LEAK\\', session_token=f"{KEY_ID}/{TOKEN}")
    text = settings.redact(
        f'<AWSAccessKeyId>{KEY_ID}</AWSAccessKeyId> a"<LEAK\\ a&quot;&lt;LEAK\\ a\\"<LEAK\\\\ {KEY_ID}/{TOKEN}'
        f" {KEY_ID}%2FToKLEAK%3D%3D EnVLEAK/1 EnVLEAK%2F1 no such bucket"
    )
    assert "LEAK" not in text
    assert text.endswith("no such bucket")


@pytest.mark.parametrize("resolved", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_celery_report_prints_no_secret_of_the_dict(form, resolved):
    """`celery report` masks the values by their names, before and after the settings were resolved."""
    app = FORMS[form](KEYS | {"bucket": "results", "session_token": TOKEN})
    if resolved:
        resolve(app)
    report = app.bugreport()
    assert not any(part in report for part in (KEY_ID, SECRET, TOKEN))
    assert "results" in report


def test_celery_report_prints_no_secret_of_celerys_own_settings():
    """Their names have the words that Celery masks by."""
    report = make_app({"s3_bucket": "results", "s3_access_key_id": KEY_ID, "s3_secret_access_key": SECRET}).bugreport()
    assert not any(part in report for part in (KEY_ID, SECRET))


def test_a_secret_object_is_masked_even_where_celery_masks_nothing():
    """`Secret` may be given in the dict: then the uncensored configuration shows no key either."""
    given = {"bucket": "results", "aws_access_key_id": Secret(KEY_ID), "aws_secret_access_key": Secret(SECRET)}
    app = make_app({"s3_backend_settings": given})
    assert resolve(app).secret_access_key == Secret(SECRET)
    assert not any(part in app.conf.humanize(censored=False) for part in (KEY_ID, SECRET))


def test_settings_can_be_copied_and_pickled():
    """A frozen value that goes wherever the backend goes."""
    settings = from_dict(tags={"a": "b"}, **KEYS)
    assert pickle.loads(pickle.dumps(settings)) == copy.deepcopy(settings) == settings


@pytest.mark.parametrize("base", ["", "a b/ø", "x%2F"])
def test_uri_tells_the_place_and_can_be_read_back(base):
    """The URL form of the settings says where the results are, never a secret."""
    settings = from_dict(base_path=base, endpoint_url="http://localhost:9000", **KEYS)
    uri = settings.uri
    assert not any(part in uri for part in (KEY_ID, SECRET))
    again = from_url(uri)
    assert [getattr(again, name) for name in ("bucket", "base", "region", "endpoint_url")] == [
        getattr(settings, name) for name in ("bucket", "base", "region", "endpoint_url")
    ]


def test_whether_the_server_is_amazons():
    """What AWS does is known; of another server it has to be found out."""
    assert from_dict().on_aws
    assert from_dict(endpoint_url="https://vpce-1.s3.eu-west-1.vpce.amazonaws.com").on_aws
    assert not from_dict(endpoint_url="https://amazonaws.com.example.org").on_aws


# -- the documentation


def test_the_documented_table_is_the_generated_one():
    """docs/settings.md has what `python -m devtools.reference.settings` writes."""
    text = DOCS.read_text(encoding="utf-8")
    assert written(text) == text


def test_every_field_is_documented():
    """Each field of Settings has a comment of its own, which says what stands there where nobody says anything."""
    lines = inspect.getsource(Settings).splitlines()
    at = {line.split(":")[0].strip(): number for number, line in enumerate(lines) if re.match(r" {4}\w+: ", line)}
    for field in fields(Settings):
        above = itertools.takewhile(lambda line: line.startswith("    #:"), reversed(lines[: at[field.name]]))
        assert re.search("default: |required|no setting: ", " ".join(above)), field.name


def test_the_documented_error_is_a_real_one():
    """The example in docs/settings.md is what a user sees."""
    app = make_app({"s3_backend_settings": {"buckett": "results", "max_retries": "5"}})
    with pytest.raises(ConfigurationError) as info:
        resolve(app)
    assert f"```\n{info.value}\n```" in DOCS.read_text(encoding="utf-8")


def test_every_setting_has_an_effect():
    """An option becomes a field, or is one of 1.0.1's two that become another's value; every field has an option."""
    targets = {option.target for option in OPTIONS.values() if option.target}
    assert targets | {"profile_credentials", "special_endpoints", "where"} == {field.name for field in fields(Settings)}
    assert {option.name for option in OPTIONS.values() if not option.target} == {"reduced_redundancy", "encrypt_key"}
