"""How values are shown: results, errors, tracebacks, and what is known of them."""

from __future__ import annotations

import json
import shutil
import sys
from base64 import b64encode
from collections.abc import Mapping
from datetime import date, time
from decimal import Decimal
from importlib.util import find_spec
from pprint import pformat
from typing import Any
from uuid import UUID

import click

from celery_s3.files.file import S3File

from .files import file_record
from .output import COLORS, console, printable

__all__ = ["jsonable", "one_line", "print_fields", "print_traceback", "print_value"]

#: What a value may do while it becomes JSON: hold another type, itself, or too much.
_NOT_JSON = (TypeError, ValueError, RecursionError)


def jsonable(value: Any) -> Any:
    """A value as JSON can hold it, with an object in place of what JSON has not.

    Each has its ``type``: an exception a ``message``, bytes ``base64``, a file what is known of it, any other value a
    ``text``; times are texts in ISO 8601.
    """
    try:
        return json.loads(json.dumps(value, default=_instead))
    except _NOT_JSON:
        return _as_text(value)


def _instead(value: Any) -> Any:
    if isinstance(value, BaseException):
        return {"type": type(value).__name__, "message": str(value)}
    if isinstance(value, bytes | bytearray | memoryview):
        return {"type": "bytes", "base64": b64encode(value).decode()}
    if isinstance(value, S3File):
        return file_record(value)
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal | UUID):
        return str(value)
    if isinstance(value, set | frozenset):
        return list(value)
    return _as_text(value)


def _as_text(value: Any) -> dict[str, str]:
    return {"type": type(value).__name__, "text": repr(value)}


def one_line(value: Any) -> str:
    """A value in one line, without control characters."""
    return printable(value if isinstance(value, str) else json.dumps(jsonable(value), default=str, ensure_ascii=False))


def print_fields(fields: Mapping[str, str]) -> None:
    """Print a line for each field that has a value."""
    width = max(map(len, fields))
    for name, value in fields.items():
        if value:
            shown = click.style(printable(value), fg=COLORS.get(value))
            click.echo(f"{click.style(name.ljust(width), dim=True)}  {shown}")


def print_value(value: Any) -> None:
    """Print a result: as JSON where it can be, in colour on a terminal."""
    if isinstance(value, BaseException):
        click.secho(printable(f"{type(value).__name__}: {value}", keep="\n\t"), fg="red")
        return
    try:
        _print_code(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=_file), "json")
    except _NOT_JSON:
        _print_code(pformat(value, width=shutil.get_terminal_size().columns), "python")


def _file(value: Any) -> Any:
    if isinstance(value, S3File):
        return file_record(value)
    raise TypeError


def print_traceback(text: str) -> None:
    """Print a traceback, in colour on a terminal."""
    _print_code(text.rstrip(), "pytb")


def _print_code(text: str, language: str) -> None:
    safe = printable(text, keep="\n\t")
    if not (sys.stdout.isatty() and find_spec("rich")):
        click.echo(safe)
        return
    from rich.syntax import Syntax

    console().print(Syntax(safe, language, theme="ansi_dark", background_color="default", word_wrap=True))
