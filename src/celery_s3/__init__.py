"""A Celery result backend on S3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery_s3.files.file import S3File

__all__ = ["S3File"]

__version__ = "2.0.0.dev0"


def __getattr__(name: str) -> Any:
    if name == "S3File":  # imported where it is used
        from celery_s3.files.file import S3File

        return S3File
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
