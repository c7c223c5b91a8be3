"""The demo's table: what each row's tasks asked of S3, and what a million of them would cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from .scenes import Ended

__all__ = ["Asked", "Row", "money", "table"]

_STYLES = {"SUCCESS": "green", "FAILURE": "red"}


@dataclass(frozen=True)
class Asked:
    """Requests by verb, the dollars for a million tasks that ask as much, and the seconds that it took."""

    requests: Counter[str]
    million: float
    seconds: float


@dataclass(frozen=True)
class Row:
    """One scene; ``asked`` by each backend, in the order of the table's groups of columns."""

    title: str
    ended: Ended
    asked: Sequence[Asked]


def table(names: Sequence[str], rows: Sequence[Row], *, wide: bool) -> Text:
    """The table as text: at most 78 columns, or 99 with the seconds where it may be ``wide``."""
    verbs = _verbs(rows)
    gap = " " * (3 if wide else 2)
    heads = gap + _figures([*["s"][:wide], *verbs, money(wide=wide)], wide=wide)
    lines = [
        Text(" " * 35 + "".join(gap + f" {name} ".center(len(heads) - len(gap), "─") for name in names), "bold"),
        Text(f"  {'Task':<13}{'State':<8}{'Result':<12}" + heads * len(names), "bold"),
    ]
    lines += [_line(row, verbs, gap, wide=wide) for row in rows]
    return Text("\n").join(lines)


def money(*, wide: bool) -> str:
    """The head of the columns with the costs."""
    return "$/million" if wide else "$/M"


def _verbs(rows: Sequence[Row]) -> list[str]:
    """The three that are always shown, and whatever else was asked."""
    asked = {verb for row in rows for one in row.asked for verb in one.requests}
    return ["PUT", "GET", "HEAD", *sorted(asked - {"PUT", "GET", "HEAD"})]


def _line(row: Row, verbs: Sequence[str], gap: str, *, wide: bool) -> Text:
    line = Text(f"  {row.title:<13}")
    line.append(f"{row.ended.state:<8}", _STYLES.get(row.ended.state, ""))
    line.append(f"{row.ended.result:<12}")
    for number, one in enumerate(row.asked):
        figures = [*[f"{one.seconds:.1f}"][:wide], *(str(one.requests[verb]) for verb in verbs), f"{one.million:.2f}"]
        line.append(gap).append(_figures(figures, wide=wide), "dim" if number else "")
    return line


def _figures(cells: Sequence[str], *, wide: bool) -> str:
    *requests, cost = cells
    return " ".join(f"{cell:>4}" for cell in requests) + f" {cost:>{9 if wide else 5}}"
