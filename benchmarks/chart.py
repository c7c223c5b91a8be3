"""The chart: for each kind of work one bar per backend, drawn by hand so that it needs no library."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from statistics import median

from .report import SHOWN, Run, number, title
from .rows import CONTENDERS, ROWS, Row

__all__ = ["svg"]

_WIDTH, _LEFT, _BAR, _STEP = 760, 120, 13, 17
_LONGEST = _WIDTH - _LEFT - 130

_STYLE = """text{font:12px system-ui,sans-serif;fill:#333}.t{font-weight:600}.n{text-anchor:end;fill:#666}
.celery{fill:#b9bec7}.redis{fill:#d98c7a}.ours{fill:#2f7d4f}
@media(prefers-color-scheme:dark){text{fill:#ddd}.n{fill:#aaa}.celery{fill:#767c88}.ours{fill:#4db07a}}"""


def svg(run: Run) -> str:
    """One picture, as text, of the work that the README shows."""
    parts: list[str] = []
    top = 10
    for row in ROWS:
        if row.key in SHOWN and row.key in run["cells"]:
            parts.extend(_block(row, run, top))
            top += 34 + _STEP * len(run["cells"][row.key])
    size = f'viewBox="0 0 {_WIDTH} {top}" width="{_WIDTH}" height="{top}"'
    return "\n".join(
        [f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', f"<style>{_STYLE}</style>", *parts, "</svg>\n"]
    )


def _block(row: Row, run: Run, top: int) -> Iterator[str]:
    goal, cells = row.goals[0], run["cells"][row.key]
    values = {key: float(median(cells[key]["samples"][goal.metric])) for key in CONTENDERS if key in cells}
    scale = _LONGEST / max(values.values())
    yield _text(_LEFT, top + 12, title(row, run).replace("`", ""), "t")
    for line, (key, value) in enumerate(values.items()):
        y = top + 19 + _STEP * line
        yield _text(_LEFT - 8, y + 11, CONTENDERS[key].replace("`", ""), "n")
        yield f'<rect class="{key}" x="{_LEFT}" y="{y}" width="{max(1.0, value * scale):.1f}" height="{_BAR}"/>'
        yield _text(_LEFT + 6 + round(max(1.0, value * scale)), y + 11, f"{number(value)} {goal.unit}")


def _text(x: int, y: int, text: str, kind: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text{style} x="{x}" y="{y}">{escape(text)}</text>'
