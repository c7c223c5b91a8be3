"""The control plane's own decisions, without a server: the rest is tested on real ones."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from celery_s3.errors import BadRequest, Conflict, UploadMissing
from celery_s3.settings import Settings
from celery_s3.store.clients.control import Control

RULE = {"ID": "a", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 1}}


class Recorded(Control):
    """Notes what would be asked, and answers what it was given: a dict, or an error."""

    def __init__(self, answer, **settings):
        super().__init__(Settings(bucket="results", **settings))
        self.asked = []
        self._answer = answer

    def _call(self, operation, **parameters):
        self.asked.append((operation, parameters))
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


def test_it_is_light():
    """The module is imported by every worker: boto3 comes with the first request only."""
    code = "import sys, celery_s3.store.clients.control; print('botocore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_what_was_chosen_for_small_objects_stays():
    """S3 puts its default in the place of a minimum size that is not repeated."""
    control = Recorded({"Rules": [], "TransitionDefaultMinimumObjectSize": "varies_by_storage_class"})
    control.put_lifecycle([RULE])
    operation, parameters = control.asked[-1]
    assert operation == "put_bucket_lifecycle_configuration"
    assert parameters["TransitionDefaultMinimumObjectSize"] == "varies_by_storage_class"


@pytest.mark.parametrize(
    ("region", "asked"),
    [("us-east-1", {}), ("eu-west-1", {"CreateBucketConfiguration": {"LocationConstraint": "eu-west-1"}})],
)
def test_create(region, asked):
    """us-east-1 has no name where a location is asked for."""
    control = Recorded({}, region=region)
    control.create()
    assert control.asked == [("create_bucket", asked)]


def test_a_bucket_of_ones_own():
    """It is as good as created; another account's is not."""
    Recorded(Conflict("", "create_bucket", "results", "", 409, "BucketAlreadyOwnedByYou")).create()
    with pytest.raises(BadRequest, match="choose another `bucket`"):
        Recorded(Conflict("", "create_bucket", "results", "", 409, "BucketAlreadyExists")).create()
    with pytest.raises(Conflict):
        Recorded(Conflict("", "create_bucket", "results", "", 409, "OperationAborted")).create()


def test_a_server_that_misses_what_is_not_there():
    """rclone answers NoSuchUpload where a bucket has had no upload in parts yet: there is none, and no error."""
    assert (
        list(Recorded(UploadMissing("", "list_multipart_uploads", "results", "", 404, "NoSuchUpload")).uploads(""))
        == []
    )


@pytest.mark.parametrize(("date", "skew"), [("Mon, 23 Nov 2026 10:00:00 GMT", 59.5), ("nonsense", None), (None, None)])
def test_skew(monkeypatch, date, skew):
    """How far the clocks are apart, as the last answer tells it; nothing where it tells nothing."""
    control = Control(Settings(bucket="results"))
    monkeypatch.setattr("celery_s3.store.clients.control.time.time", lambda: 1_795_428_060.0)
    control._client.note_date(http_response=SimpleNamespace(headers={"Date": date} if date else {}))
    assert control.skew == skew
