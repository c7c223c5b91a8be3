"""What users install."""

from __future__ import annotations

from hatchling.builders.wheel import WheelBuilder

from devtools import ROOT

SOURCE = ROOT / "src"


def test_the_wheel_is_the_package_alone() -> None:
    """The wheel holds everything under ``src/celery_s3`` and nothing else: no demo, no proxy, no generators."""
    files = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    package = (file for file in (SOURCE / "celery_s3").rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    assert files == {file.relative_to(SOURCE).as_posix() for file in package}
    assert {"celery_s3/py.typed", "celery_s3/dev/seaweed.py", "celery_s3/dev/sqs.py"} <= files
    assert not [name for name in files if {"demo", "proxy", "reference"} & set(name.removesuffix(".py").split("/"))]
