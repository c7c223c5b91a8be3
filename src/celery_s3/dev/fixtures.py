"""Fixtures for pytest, by ``pytest_plugins = ["celery_s3.dev.fixtures"]``; see ``docs/testing.md``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .memory import MemoryBucket
from .process import ServerNotStarted
from .seaweed import SeaweedFS
from .sqs import SQSServer

__all__ = ["celery_s3_memory", "celery_s3_server", "celery_s3_sqs"]


@pytest.fixture(scope="session")
def celery_s3_server() -> Iterator[SeaweedFS]:
    """A real S3 server for the whole run; where it cannot run, the test is skipped with what to install."""
    try:
        with SeaweedFS() as server:
            yield server
    except ServerNotStarted as exc:
        pytest.skip(str(exc))


@pytest.fixture(scope="session")
def celery_s3_sqs() -> Iterator[SQSServer]:
    """A stand-in for SQS for the whole run; likewise."""
    try:
        with SQSServer() as server:
            yield server
    except ServerNotStarted as exc:
        pytest.skip(str(exc))


@pytest.fixture
def celery_s3_memory() -> Iterator[MemoryBucket]:
    """A bucket in memory, empty at the beginning of each test."""
    with MemoryBucket() as bucket:
        yield bucket
