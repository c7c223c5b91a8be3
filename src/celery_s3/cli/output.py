"""How commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from importlib.util import find_spec
from typing import Any

import click

from celery_s3.printable import printable

__all__ = ["COLORS", "bar", "counted", "data_size", "duration", "print_json", "print_table", "printable", "progress"]

#: The color of a cell that begins with the state of a chord or of a result.
COLORS = {
    "stuck": "red",
    "failed": "red",
    "complete": "yellow",
    "claimed": "yellow",
    "sent": "green",
    "SUCCESS": "green",
    "FAILURE": "red",
    "REVOKED": "red",
    "RETRY": "yellow",
}


def print_json(value: Any) -> None:
    """Print a value as JSON; times as ISO 8601, and floats that JSON lacks as the texts NaN, Infinity, -Infinity."""
    try:
        text = json.dumps(value, indent=2, default=_as_text, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), indent=2, default=_as_text)
    click.echo(text)


def _finite(value: Any) -> Any:
    """A value whose every number is one in JSON too."""
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(value)
    if isinstance(value, dict):
        return {_finite(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _as_text(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: on a terminal by rich, if that is installed, so that it fits; elsewhere one line for each row."""
    safe = [[printable(cell) for cell in row] for row in rows]
    if sys.stdout.isatty() and find_spec("rich"):
        _rich_table(titles, safe)
    else:
        _text_table(titles, safe)


def _text_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    for row in (titles, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _rich_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*titles, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for row in rows:
        table.add_row(*(Text(cell, style=COLORS.get(cell.partition(" ")[0], "")) for cell in row))
    for column in table.columns:
        column.overflow = "fold"
    Console().print(table)


def bar(done: int, total: int, width: int = 10) -> str:
    """How much is done, as ``12/50 ██········``."""
    full = width * done // total if total else width
    return f"{done}/{total} {'█' * full}{'·' * (width - full)}"


def duration(seconds: float) -> str:
    """Seconds in the largest unit and the next one, as ``3 h 12 m``."""
    rest = round(seconds)
    amounts: list[tuple[int, str]] = []
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        amount, rest = divmod(rest, size)
        if amount or amounts:
            amounts.append((amount, unit))
    return " ".join(f"{amount} {unit}" for amount, unit in amounts[:2] if amount) or "0 s"


def counted(number: int, noun: str) -> str:
    """So many of something, as ``1 result`` or ``2,000 results``."""
    return f"1 {noun}" if number == 1 else f"{number:,} {noun}s"


def data_size(size: float) -> str:
    """Bytes in the largest unit, as ``1.2 MB`` (1 KB is 1,000 bytes)."""
    for unit in ("B", "KB", "MB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 99.95 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], object]]:
    """A progress bar on standard error while somebody looks at it; what is yielded moves it on by so many."""
    if not (sys.stderr.isatty() and find_spec("rich")):
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(title, total=total)
        yield lambda count: bars.advance(task, count)
