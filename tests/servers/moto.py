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
    lacks={"atomic create": "", "batch delete of versions": "", "conditional completion": ""},
    failing={
        "test_a_race_of_creates_has_one_winner": "it looks first and then writes: both may win, on a busy machine"
    },
    unsteady=frozenset({"atomic create", "test_a_race_of_creates_has_one_winner"}),
)
