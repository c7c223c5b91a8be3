"""Botocore sessions: what they share."""

from celery_s3.settings import Settings
from celery_s3.store.clients.session import open_session


def test_service_models_are_parsed_once_a_process() -> None:
    """A second client costs 10 ms of CPU, not the 60 to 200 that parsing its service model takes."""
    one, other = (open_session(Settings(bucket=name)) for name in ("first", "second"))
    assert one.get_component("data_loader") is other.get_component("data_loader")
