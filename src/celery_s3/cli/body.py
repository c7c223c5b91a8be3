"""Bytes of a stored body, or of a result that is bytes: to standard output, or into a file, complete or not at all."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
from kombu.exceptions import DecodeError

from celery_s3.codec import raw
from celery_s3.codec.compression import COMPRESSED_PAYLOAD_MAGIC, decompress_payload
from celery_s3.errors import ObjectMissing, PreconditionFailed
from celery_s3.files.reading import replaced
from celery_s3.results.write_once import PART_BYTES, Results
from celery_s3.store.api import Object, Store

from .output import printable, progress

__all__ = ["print_bytes", "print_raw", "size_of_bytes", "write_file"]

_GONE = "The result was replaced or forgotten while it was read: try again."


def print_raw(store: Store, found: Object) -> None:
    """Write a body to standard output.

    Raises:
        click.ClickException: it would send control characters to a terminal, or was replaced while it was read.
    """
    print_bytes(_parts(store, found))


def print_bytes(parts: Iterable[bytes]) -> None:
    """Write bytes to standard output.

    Raises:
        click.ClickException: it would send control characters to a terminal.
    """
    stdout = sys.stdout.buffer
    looked_at = sys.stdout.isatty()
    for part in parts:
        if looked_at and not _is_plain_text(part):
            raise click.ClickException("This is not plain text: send it into a pipe or a file.")
        stdout.write(part)
    stdout.flush()


def _is_plain_text(part: bytes) -> bool:
    # a character may be cut in two at the end of a part
    text = part.decode(errors="replace")
    return printable(text, keep="\n\t") == text


def write_file(results: Results, found: Object, path: Path) -> int:
    """Write a result that is bytes, of any other the body, to a file; how many bytes.

    It is put in its place when it is complete; others cannot read it.

    Raises:
        click.ClickException: the file cannot be written, or the object was replaced while it was read.
    """
    parts, size = _of_value(results, found)
    try:
        with replaced(path, 0o600) as file, progress("Fetching", size) as advance:
            for part in parts:
                advance(file.write(part))
            file.flush()
            os.fsync(file.fileno())
    except OSError as exc:
        raise click.ClickException(f"{path} was not written: {exc.strerror}.") from exc
    return size


def _of_value(results: Results, found: Object) -> tuple[Iterable[bytes], int]:
    """The value of a result that is bytes, else the bytes of the body, part by part; and how many they are."""
    if found.content_type == raw.CONTENT_TYPE and found.body.startswith(COMPRESSED_PAYLOAD_MAGIC):
        value = _decompressed(results, found)
        return [value], len(value)
    size = size_of_bytes(found)
    start = 0 if size is None else found.size - size
    return _parts(results.store, found, start), found.size - start


def size_of_bytes(found: Object) -> int | None:
    """How many bytes a result is that is stored as bytes, ``None`` for any other, and where they are compressed."""
    start = raw.value_start(found.body)
    return found.size - start if 0 < start <= found.size else None


def _decompressed(results: Results, found: Object) -> bytes:
    whole = results.whole(found)
    if whole is None:
        raise click.ClickException(_GONE)
    try:
        body = decompress_payload(whole.pop_body())
    except DecodeError as exc:
        raise click.ClickException(f"The result cannot be read: {exc}. --raw gives you its body.") from exc
    return body[len(raw.preamble_of(body)) :]


def _parts(store: Store, found: Object, start: int = 0) -> Iterator[bytes]:
    """The body of one version from a byte on, part by part: whatever its size, it need not fit the memory."""
    yield found.body[start:]
    try:
        for at in range(max(start, len(found.body)), found.size, PART_BYTES):
            yield store.get(found.key, start=at, length=PART_BYTES, if_match=found.etag).body
    except (PreconditionFailed, ObjectMissing) as exc:
        raise click.ClickException(_GONE) from exc
