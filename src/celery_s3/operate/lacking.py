"""What a server that is not Amazon's has no API for, and what to do without it."""

from __future__ import annotations

from celery_s3.errors import BadRequest, CeleryS3Error, Conflict
from celery_s3.settings import Settings

__all__ = ["SCHEDULE", "lacks"]

#: What deletes expired results where no lifecycle rule can.
SCHEDULE = (
    "schedule the cleanup: `celery beat` runs the daily `celery.backend_cleanup`, or run `celery -A … s3 sweep` by cron"
)


def lacks(error: CeleryS3Error, settings: Settings) -> bool:
    """Whether it says that the server lacks a part of S3's API.

    Swift says so by a 400, as for any bad request; rclone takes what configures a bucket for what creates it.
    """
    if isinstance(error, Conflict):
        taken = error.code == "BucketAlreadyExists" and error.operation != "create_bucket"
        return taken and not settings.on_aws
    unknown = (405, 501) if settings.on_aws else (400, 405, 501)
    return isinstance(error, BadRequest) and (error.status in unknown or error.code == "NotImplemented")
