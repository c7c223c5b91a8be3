"""Files in results: found in a value, told as JSON, and fetched."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from celery_s3.backends.s3 import S3Backend
from celery_s3.errors import CeleryS3Error, FileNotRead, UnreadableResult
from celery_s3.files.file import S3File
from celery_s3.metadata import files_in
from celery_s3.store.api import Object

from .output import data_size, printable, progress

__all__ = ["fetch", "file_record", "files_of", "files_of_result", "told"]

#: How deep in a value files are looked for.
_DEEP = 50


def files_of(value: Any, deep: int = _DEEP) -> Iterator[S3File]:
    """The files in a value, in their order."""
    if isinstance(value, S3File):
        yield value
    elif deep and isinstance(value, Mapping):
        for item in value.values():
            yield from files_of(item, deep - 1)
    elif deep and isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from files_of(item, deep - 1)


def files_of_result(backend: S3Backend, id: str, found: Object) -> list[S3File]:
    """The files in a result whose metadata does not rule them out; none where the body cannot be decoded."""
    if files_in(found.metadata) == 0:
        return []
    try:
        return list(files_of(backend.reader.meta_in(id, found)["result"]))
    except UnreadableResult:
        return []


def file_record(file: S3File) -> dict[str, Any]:
    """What is known of a file, as JSON has it."""
    try:
        about = {"name": file.name, "size": file.size, "content_type": file.content_type, "sha256": file.sha256}
    except FileNotRead as exc:
        about = {"error": str(exc)}
    return {"type": "S3File", **about}


def fetch(files: Sequence[S3File], target: Path) -> list[tuple[Path, int]]:
    """Write one file to a path, or any number into a folder by their names; each path with its bytes.

    Raises:
        click.ClickException: there are several and no folder, or one cannot be fetched or written.
    """
    if len(files) > 1 and not target.is_dir():
        names = ", ".join(printable(file.name) or "without a name" for file in files)
        raise click.ClickException(f"There are {len(files)} files: {names}. Name a folder that exists.")
    written: list[tuple[Path, int]] = []
    try:
        for number, file in enumerate(files, 1):
            path = _free(target, file.name or f"file-{number}")
            with progress("Fetching", file.size or 0) as advance:
                done = 0

                def moved(now: int, _: int | None, advance: Any = advance) -> None:
                    nonlocal done
                    advance(now - done)
                    done = now

                file.download_to(path, moved)
            written.append((path, file.size or 0))
    except OSError as exc:  # FileNotRead is one too
        why = str(exc) if isinstance(exc, CeleryS3Error) else f"{target} was not written: {exc.strerror}."
        raise click.ClickException(printable(why)) from exc
    return written


def _free(target: Path, name: str) -> Path:
    """Where a file goes; in a folder under its name, but over nothing that is there, nor as a file that shells read.

    Names come from others, who may have chosen that of a file that somebody runs.
    """
    if not target.is_dir():
        return target
    plain = Path(name).name.lstrip(".") or "file"
    path, number = target / plain, 1
    while os.path.lexists(path):
        number += 1
        path = target / f"{number}-{plain}"
    return path


def told(written: Sequence[tuple[Path, int]]) -> str:
    """What was written where, in a line."""
    return "; ".join(f"{data_size(size)} to {printable(str(path))}" for path, size in written)
