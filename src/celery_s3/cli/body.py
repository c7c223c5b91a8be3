"""The bytes of a stored body: to standard output, or into a file that is complete or not there."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import click

from ..errors import ObjectMissing, PreconditionFailed
from ..results import PART_BYTES
from ..store.api import Object, Store
from .output import printable, progress

__all__ = ["print_raw", "write_file"]


def print_raw(store: Store, found: Object) -> None:
    """Write a body to standard output.

    Raises:
        click.ClickException: it would send control characters to a terminal, or was replaced while it was read.
    """
    stdout = sys.stdout.buffer
    looked_at = sys.stdout.isatty()
    for part in _parts(store, found):
        if looked_at and not _harmless(part):
            raise click.ClickException("This is not plain text: send it into a pipe, or into a file with --output.")
        stdout.write(part)
    stdout.flush()


def _harmless(part: bytes) -> bool:
    # a character may be cut in two at the end of a part
    text = part.decode(errors="replace")
    return printable(text, keep="\n\t") == text


def write_file(store: Store, found: Object, path: Path) -> None:
    """Write a body to a file, which is put in its place when it is complete; others cannot read it.

    Raises:
        click.ClickException: the file cannot be written, or the object was replaced while it was read.
    """
    try:
        descriptor, name = tempfile.mkstemp(prefix=".celery-s3-", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file, progress("Fetching", found.size) as advance:
                for part in _parts(store, found):
                    advance(file.write(part))
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise
    except OSError as exc:
        raise click.ClickException(f"{path} was not written: {exc.strerror}.") from exc


def _parts(store: Store, found: Object) -> Iterator[bytes]:
    """The body of one version, part by part: whatever its size, it need not fit the memory."""
    yield found.body
    try:
        for start in range(len(found.body), found.size, PART_BYTES):
            yield store.get(found.key, start=start, length=PART_BYTES, if_match=found.etag).body
    except (PreconditionFailed, ObjectMissing) as exc:
        raise click.ClickException("The result was replaced or forgotten while it was read: try again.") from exc
