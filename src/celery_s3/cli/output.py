"""How commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click

from celery_s3.printable import printable

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "COLORS",
    "bar",
    "console",
    "counted",
    "data_size",
    "duration",
    "print_json",
    "print_table",
    "printable",
    "progress",
    "wants_color",
]

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


def wants_color(no_color: bool) -> bool:
    """Whether there may be colours: not with `--no-color`, the variable NO_COLOR, or a terminal without any."""
    return not (no_color or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb")


def console(*, err: bool = False) -> Console:
    """rich's console, with colours where :func:`click.echo` has them."""
    from rich.console import Console

    ctx = click.get_current_context(silent=True)
    plain = ctx is not None and ctx.color is False
    return Console(stderr=err, color_system=None if plain else "auto", highlight=False)


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, err: bool = False) -> None:
    """Print a table: one line for each row; on a terminal that is too narrow for it each row takes several.

    No word and no id is ever broken: what is copied from the screen is whole.

    Arguments:
        err: on standard error.
    """
    safe = [[printable(cell) for cell in row] for row in rows]
    looked_at = (sys.stderr if err else sys.stdout).isatty()
    width = shutil.get_terminal_size().columns if looked_at else sys.maxsize
    for line in _lines(titles, safe, width):
        click.echo(line, err=err)


def _lines(titles: Sequence[str], safe: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    if _width(titles, safe) <= width:
        widths = _widths(titles, safe)
        yield from (_joined(row, widths, bold=row is titles) for row in (titles, *safe))
        return
    # The first cell, an id most often, has a line of its own; below it stands the rest.
    below = [list(row[1:]) for row in (titles, *safe)]
    if _width(below[0], below[1:]) + 2 <= width:
        widths = _widths(below[0], below[1:])
        for row, rest in zip((titles, *safe), below, strict=True):
            yield _styled(row[0], bold=row is titles)
            yield "  " + _joined(rest, widths, bold=row is titles)
        return
    for row in safe:
        yield _styled(row[0], bold=True)
        for title, cell in zip(titles[1:], row[1:], strict=True):
            if cell:
                label = f"  {title}  " if title else "  "
                first, *more = textwrap.wrap(
                    cell,
                    max(20, width),
                    initial_indent=" " * len(label),
                    subsequent_indent="    ",
                    break_long_words=False,
                    break_on_hyphens=False,
                ) or [label]
                yield click.style(label, dim=True) + _styled(first[len(label) :])
                yield from more


def _widths(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(titles, *rows, strict=True)]


def _width(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    widths = _widths(titles, rows)
    return sum(widths) + 2 * (len(widths) - 1)


def _joined(row: Sequence[str], widths: Sequence[int], *, bold: bool = False) -> str:
    last = max((number for number, cell in enumerate(row) if cell), default=0)
    cells = [
        _styled(cell, bold=bold) + " " * (width - len(cell) + 2 if number < last else 0)
        for number, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "".join(cells[: last + 1])


def _styled(cell: str, *, bold: bool = False) -> str:
    """A cell as it is shown; :func:`click.echo` takes the colours out where nobody looks."""
    if bold:
        return click.style(cell, bold=True)
    color = COLORS.get(cell.partition(" ")[0])
    return click.style(cell, fg=color) if color else cell


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
    from rich.progress import Progress

    with Progress(console=console(err=True), transient=True) as bars:
        task = bars.add_task(title, total=total)
        yield lambda count: bars.advance(task, count)
