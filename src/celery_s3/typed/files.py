"""Files, as pointers, for ``typed+json``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery_s3.files.file import S3File

__all__ = ["TYPES"]

#: Name, classes, encoder, decoder.
TYPES: tuple[tuple[str, tuple[type, ...], Callable[[Any], Any], Callable[[Any], Any]], ...] = (
    ("celery_s3.file", (S3File,), S3File.pointer, S3File.of),
)
