"""The import path of 1.0.1."""

from .s3 import S3Backend

__all__ = ["S3Backend"]
