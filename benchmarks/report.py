"""A run as text: on the screen, in benchmarks/README.md, and what the README shows of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from .rows import CONTENDERS, ROWS, Goal, Row

__all__ = ["SHOWN", "cell_text", "into_page", "markdown", "notes", "number", "summary", "table", "title", "verdict"]

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
    text = f"{number(median(samples))} {unit}"
    if len(samples) == 1:
        return text
    last = f"P90 {number(_p90(samples))}, " if len(samples) >= _ENOUGH else ""
    return f"{text} ({last}{number(min(samples))}-{number(max(samples))})"


def _p90(samples: Sequence[float]) -> float:
    return sorted(samples)[round(0.9 * (len(samples) - 1))]


def number(value: float) -> str:
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
    alone = ", ".join(f"{verb} {number(median(floor[f'obstore {verb} cpu']))} ms" for verb in ("PUT", "GET"))
    bare = ", ".join(f"{verb} {number(median(floor[f'bytes {verb} cpu']))} ms" for verb in ("PUT", "GET"))
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
        f"{name} {number(median(cells[key]['samples']['private']))} MB"
        for key, name in CONTENDERS.items()
        if "private" in cells.get(key, {}).get("samples", {})
    ]
    if told:
        yield f"Of the memory added, private to the process (the rest is shared with its siblings): {', '.join(told)}."


#: What the README tells; the rest is behind a link.
SHOWN = ("store", "group", "chord-200")


def markdown(run: Run, name: str) -> str:
    """The block of benchmarks/README.md: the table without our own goals, notes and where the run is kept."""
    lines = [line[:-2] for line in table(run)]
    return "\n".join([*_table(lines), "", *notes(run), f"[The raw run](runs/{name}.json): `make bench`."])


def summary(run: Run, name: str) -> str:
    """The README's block: the medians of a few kinds of work, and their picture."""
    rows = [row for row in ROWS if row.key in SHOWN and row.key in run["cells"]]
    lines = [["Work", *CONTENDERS.values()], *([title(row, run), *_medians(row, run)] for row in rows)]
    picture = f"![The same as bars](benchmarks/runs/{name}.svg)"
    machine = f"{run['machine']['cpus']} CPUs, {run['date'][:10]}"
    told = f"Medians ({machine}). [All rows, their spread, and how it is measured](benchmarks/README.md#results)."
    return "\n".join([*_table(lines), "", told, "", picture])


def _medians(row: Row, run: Run) -> Iterator[str]:
    for key in CONTENDERS:
        cell = run["cells"][row.key].get(key)
        yield "-" if cell is None else f"{number(_median(row.goals[0], cell))} {row.goals[0].unit}"


def _table(lines: Sequence[Sequence[str]]) -> Iterator[str]:
    for number, line in enumerate(lines):
        yield f"| {' | '.join(text.replace('|', '&#124;') for text in line)} |"
        if number == 0:
            yield "|" + "---|" * len(line)


def into_page(readme: str, block: str) -> str:
    """A page with its block replaced.

    Raises:
        ValueError: it has no place for one.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page needs the lines {BEGIN} and {END}, between which the table goes")
    return f"{before}{BEGIN}\n{block}\n{END}{after}"
