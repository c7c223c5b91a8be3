"""moto's S3, in one process with its SQS."""

from __future__ import annotations

from importlib.metadata import version

from celery_s3.dev.sqs import SQSServer

from .base import Kind

KIND = Kind(
    name="moto",
    title="moto",
    install="pip: moto[server]",
    make=SQSServer,
    version=lambda: version("moto"),
    lacks={"batch delete of versions": "", "conditional completion": ""},
)
