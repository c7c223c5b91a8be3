"""A bucket in this process's memory, for tests that need no server."""

from __future__ import annotations

from typing import Any, Self

from celery_s3 import bucket
from celery_s3.settings import Settings
from celery_s3.store.memory import MemoryStore

from .process import ACCESS_KEY

__all__ = ["MemoryBucket"]


class MemoryBucket:
    """Results in memory: no process is started, and no request leaves this one::

        with MemoryBucket() as s3:
            app.conf.update(result_backend="celery-s3://", s3_backend_settings=s3.settings())

    It keeps the conditions that S3 keeps, so a stored SUCCESS stays. It is for backends that are made within the block,
    in this process: a worker in a thread, or eager tasks. Links, lifecycle rules and the commands need a server.

    Attributes:
        store: what holds the objects.
    """

    bucket = "memory"
    #: of no server; what asks for it gets the objects in memory
    endpoint_url = "http://memory.invalid"

    def __init__(self) -> None:
        self.store = MemoryStore()
        self._before: Any = None

    def settings(self) -> dict[str, str]:
        """A value for Celery's ``s3_backend_settings``."""
        return {
            "bucket": self.bucket,
            "endpoint_url": self.endpoint_url,
            "aws_access_key_id": ACCESS_KEY,
            "aws_secret_access_key": "not-verified",
        }

    def __enter__(self) -> Self:
        before = self._before = getattr(bucket, "Routing")  # noqa: B009 (of another module: mypy minds)

        def routed(settings: Settings) -> Any:
            return self.store if settings.endpoint_url == self.endpoint_url else before(settings)

        setattr(bucket, "Routing", routed)  # noqa: B010
        return self

    def __exit__(self, *_: object) -> None:
        setattr(bucket, "Routing", self._before)  # noqa: B010
