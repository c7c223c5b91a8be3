"""A Celery result backend on S3."""

__version__ = "2.0.0.dev0"
