"""A run as text: on the screen, and as the README's table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from .rows import CONTENDERS, ROWS, Goal, Row

__all__ = ["cell_text", "into_readme", "markdown", "notes", "table", "title", "verdict"]

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"

#: From so many samples on, their 90th percentile is told.
_ENOUGH = 8

Run = dict[str, Any]

MEANING = (
    "Medians; in parentheses the 90th percentile where there are samples enough, the smallest and the largest."
    " 20 ms is what the proxy adds to each of the S3 server's answers; Redis is asked directly, without it."
)


def title(row: Row, run: Run) -> str:
    return row.title.format(**run["effort"])


# -- one cell


def cell_text(row: Row, cell: Run) -> str:
    """Median and spread of each metric, and the requests of one unit of work."""
    values = [_spread(cell["samples"][goal.metric], goal.unit) for goal in row.goals]
    requests = _requests(cell) if row.key != "first" else ""
    return "; ".join(filter(None, [*values, requests]))


def _spread(samples: Sequence[float], unit: str) -> str:
    text = f"{_number(median(samples))} {unit}"
    if len(samples) == 1:
        return text
    last = f"P90 {_number(_p90(samples))}, " if len(samples) >= _ENOUGH else ""
    return f"{text} ({last}{_number(min(samples))}-{_number(max(samples))})"


def _p90(samples: Sequence[float]) -> float:
    return sorted(samples)[round(0.9 * (len(samples) - 1))]


def _number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _requests(cell: Run) -> str:
    kinds = dict.fromkeys(kind for count in cell["requests"] for kind in count)
    return " + ".join(f"{_rounded(_per_unit(cell, kind))} {kind}" for kind in kinds)


def _per_unit(cell: Run, kind: str) -> float:
    return float(median(count.get(kind, 0) for count in cell["requests"])) / int(cell["units"])


def _rounded(value: float) -> str:
    return f"{round(value, 1):,g}"


def _total(cell: Run) -> float:
    return float(median(sum(count.values()) for count in cell["requests"])) / int(cell["units"])


# -- the goals


def goal_text(row: Row) -> str:
    texts = [f"{'≥' if goal.larger_is_better else '≤'} {goal.limit:g} {goal.unit}" for goal in row.goals]
    if row.requests is not None:
        texts.append(f"≤ {row.requests:g} request{'s' * (row.requests != 1)}")
    if row.of_redis is not None:
        texts.append(f"≥ {row.of_redis:.0%} of Redis")
    return ", ".join(texts)


def verdict(row: Row, run: Run) -> bool | None:
    """Whether our medians reach the goals; ``None`` for a quick run, which has too few samples to say."""
    cell = run["cells"].get(row.key, {}).get("ours")
    if cell is None or run["quick"]:
        return None
    reached = [goal.reached(_median(goal, cell)) for goal in row.goals]
    if row.requests is not None:
        reached.append(_total(cell) <= row.requests)
    redis = run["cells"][row.key].get("redis")
    if row.of_redis is not None and redis is not None:
        reached.append(_median(row.goals[0], cell) >= row.of_redis * _median(row.goals[0], redis))
    return all(reached)


def _median(goal: Goal, cell: Run) -> float:
    return float(median(cell["samples"][goal.metric]))


# -- the table


def table(run: Run) -> Iterator[list[str]]:
    """Header and lines: the work, each contender, the goal and whether it was reached."""
    yield ["Work", *CONTENDERS.values(), "Goal", "Reached"]
    for row in ROWS:
        cells = run["cells"].get(row.key, {})
        if not cells:
            continue
        texts = [cell_text(row, cells[key]) if key in cells else "-" for key in CONTENDERS]
        mark = {True: "yes", False: "no", None: "-"}[verdict(row, run)]
        yield [title(row, run), *texts, goal_text(row), mark]


def notes(run: Run) -> list[str]:
    """What the numbers rest on."""
    machine, versions, floor = run["machine"], run["versions"], run["cells"]["floor"]["obstore"]["samples"]
    alone = ", ".join(f"{verb} {_number(median(floor[f'obstore {verb} cpu']))} ms" for verb in ("PUT", "GET"))
    bare = ", ".join(f"{verb} {_number(median(floor[f'bytes {verb} cpu']))} ms" for verb in ("PUT", "GET"))
    return [
        MEANING,
        *_private(run),
        f"The floor, in CPU: obstore alone {alone}; requests signed beforehand, on a bare socket {bare}.",
        f"{run['date'][:10]}, {machine['cpus']} CPUs ({machine['cpu']}), load {machine['load']:.1f} before the run,"
        f" broker {run['broker']}; " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
    ]


def _private(run: Run) -> Iterator[str]:
    cells = run["cells"].get("first", {})
    told = [
        f"{name} {_number(median(cells[key]['samples']['private']))} MB"
        for key, name in CONTENDERS.items()
        if "private" in cells.get(key, {}).get("samples", {})
    ]
    if told:
        yield f"Of the memory added, private to the process (the rest is shared with its siblings): {', '.join(told)}."


def markdown(run: Run, name: str) -> str:
    """The README's block: the table without our own goals, notes and where the run is kept."""
    head, *lines = [" | ".join(text.replace("|", "\\|") for text in line[:-2]) for line in table(run)]
    body = [f"| {head} |", "|" + "---|" * (head.count(" | ") + 1), *(f"| {line} |" for line in lines)]
    link = f"[The raw run](benchmarks/runs/{name}.json), [its chart](benchmarks/runs/{name}.svg),"
    told = [*notes(run), f"{link} and [how it is measured](benchmarks/README.md): `make bench`."]
    return "\n".join([*body, "", *told])


def into_readme(readme: str, block: str) -> str:
    """The README with its block replaced.

    Raises:
        ValueError: it has no place for one.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md needs the lines {BEGIN} and {END}, between which the table goes")
    return f"{before}{BEGIN}\n{block}\n{END}{after}"
