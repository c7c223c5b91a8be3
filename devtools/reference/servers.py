"""Write the tables of S3 servers: ``python -m devtools.reference.servers README.md docs/servers.md``.

They are made from the runs that were kept, one JSON file a server; ``make test-servers`` makes those.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["RUNS", "full_tables", "run", "short_table", "written"]

RUNS = Path(__file__).parents[2] / "benchmarks" / "runs" / "servers"
START = "<!-- servers: made by python -m devtools.reference.servers, do not edit -->\n"
END = "<!-- the end of the servers -->\n"
#: The servers that most people will look for come first.
_ORDER = ("ceph", "swift", "seaweed", "juicefs", "rclone", "moto", "ministack")
_SIGNS = {"works": "yes", "worked around": "around", "lacks": "**no**"}
_VERDICTS = {"yes": "yes", "worked around": "around", "no": "**no**", "not known": "?"}

Run = dict[str, Any]


def run(name: str) -> Run:
    """What was kept of a server."""
    told: Run = json.loads((RUNS / f"{name}.json").read_text("utf-8"))
    return told


def _runs() -> list[Run]:
    kept = {path.stem for path in RUNS.glob("*.json")}
    return [run(name) for name in (*_ORDER, *sorted(kept - set(_ORDER))) if name in kept]


def short_table() -> str:
    """Server by promise, for the README."""
    found = _runs()
    promises = list(found[0]["promises"])
    lines = [f"| | {' | '.join(promises)} |", f"|---|{'---|' * len(promises)}"]
    for run in found:
        cells = (_SIGNS[run["promises"][promise]["verdict"]] for promise in promises)
        lines.append(f"| {run['server']} {run['version']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def full_tables() -> str:
    """Server by capability, and for each server what was found, for docs/servers.md."""
    found = _runs()
    names = list(dict.fromkeys(one["name"] for run in found for one in run["capabilities"]))
    verdicts = [{one["name"]: one["verdict"] for one in run["capabilities"]} for run in found]
    lines = [f"| | {' | '.join(run['server'] for run in found)} |", f"|---|{'---|' * len(found)}"]
    for name in names:
        cells = (_VERDICTS[told.get(name, "not known")] for told in verdicts)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(line for run in found for line in _section(run))])


def _section(run: Run) -> Iterator[str]:
    yield f"### {run['server']} {run['version']}\n"
    advice = f" To be used with it: {run['advice']}." if run["advice"] else ""
    yield f"{run['date']}, celery-s3 {run['celery_s3']}; {run['install']}.{advice}\n"
    lacking = [one for one in run["capabilities"] if one["verdict"] != "yes"]
    if lacking:
        yield "| Lacks | It does | Instead |\n|---|---|---|"
        for one in lacking:
            reported = f" ([reported]({one['reported']}))" if one["reported"] else ""
            yield f"| {one['name']} | {_cell(one['found'])}{reported} | {_cell(one['instead']) or 'nothing'} |"
        yield ""
    broken = {name: told["how"] for name, told in run["promises"].items() if told["verdict"] == "lacks"}
    for name, how in broken.items():
        yield f"Not kept there: {name}: {how}.\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").rstrip(".")


def written(text: str, table: str) -> str:
    """A page with its tables brought up to date."""
    before, rest = text.split(START)
    _, after = rest.split(END)
    return before + START + table + END + after


def main(readme: Path, page: Path) -> None:
    """Bring both pages up to date."""
    tables: dict[Path, Callable[[], str]] = {readme: short_table, page: full_tables}
    for path, table in tables.items():
        path.write_text(written(path.read_text("utf-8"), table()), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
