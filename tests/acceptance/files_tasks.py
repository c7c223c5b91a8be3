"""The tasks of the files' acceptance test; a test calls them by name."""

from __future__ import annotations

import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from celery import Celery

from celery_s3 import S3File

app = Celery("files_tasks")
app.conf.update(json.loads(os.environ["CELERY_S3_TEST_CONF"]))


@app.task(name="make")
def make(text: str, times: int = 1) -> S3File:
    """Written to a path, which is gone when the task is: what is returned is read after that."""
    path = Path(tempfile.mkdtemp()) / "made.txt"
    path.write_text(text * times)
    return S3File(path)


@app.task(name="upper")
def upper(file: S3File) -> dict[str, Any]:
    with file.open() as stream:
        changed = stream.read().upper()
    return {"before": file, "after": [S3File(io.BytesIO(changed), name="upper.txt")]}


@app.task(name="joined")
def joined(files: list[S3File], last: S3File) -> S3File:
    """Every file after the other, without holding one of them."""
    with tempfile.TemporaryFile() as whole:
        for file in (*files, last):
            whole.writelines(file)
        whole.seek(0)
        return S3File(os.fdopen(os.dup(whole.fileno()), "rb"), name="joined.txt")


@app.task(name="told")
def told(file: S3File, path: str) -> None:
    """A callback."""
    file.download_to(path)


@app.task(name="broken")
def broken() -> S3File:
    path = Path(tempfile.mkdtemp()) / "gone.txt"
    path.touch()
    file = S3File(path)
    path.unlink()
    return file


@app.task(name="size")
def size(file: S3File) -> int | None:
    return file.size
