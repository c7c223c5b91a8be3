"""Write the table of settings into the documentation: ``python -m devtools.reference.settings docs/settings.md``."""

from __future__ import annotations

import sys
from pathlib import Path

from celery_s3.settings.options import OPTIONS, Option

__all__ = ["table", "written"]

START = "<!-- the table: made by python -m devtools.reference.settings, do not edit -->\n"
END = "<!-- the end of the table -->\n"


def table() -> str:
    """Every setting, as a Markdown table."""
    lines = ["| Setting | What it may be | Default | What it does | Also |", "|---|---|---|---|---|"]
    lines += map(_row, OPTIONS.values())
    return "\n".join(lines) + "\n"


def _row(option: Option) -> str:
    # the long form of a kind is for messages; the table needs it all the same, to be complete
    also = [f"`{name}`" for name in (option.celery, *option.environment) if name]
    also += [] if option.in_url or option.name in ("bucket", "base_path") else ["not in a URL"]
    cells = (f"`{option.name}`", option.kind.description, _default(option.default), option.help, ", ".join(also))
    return f"| {' | '.join(cells)} |"


def _default(value: object) -> str:
    if value is None or value == "":
        return ""
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def written(text: str) -> str:
    """A page with its table brought up to date."""
    before, rest = text.split(START)
    _, after = rest.split(END)
    return before + START + table() + END + after


def main(path: Path) -> None:
    path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
