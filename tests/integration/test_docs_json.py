"""docs/json.md names what `--json` prints."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from celery.bin.base import CLIContext
from click.testing import CliRunner

from celery_s3.cli import s3

PAGE = (Path(__file__).parents[2] / "docs" / "json.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "arguments", ["ls", "show one", "forget one --dry-run", "stats", "sweep --dry-run", "wait one"]
)
def test_names(seaweed, make_app, stored, arguments):
    """Every name that a command prints is on the page, in the row of that command."""
    app = make_app(seaweed)
    stored(app, 1, id="one")
    done = CliRunner().invoke(s3, [*arguments.split(), "--json"], obj=CLIContext(app=app, no_color=True, workdir=None))
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    (row,) = re.findall(rf"^\| `{arguments.split()[0]}` \| (.*) \|$", PAGE, re.M)
    for name in told[0] if isinstance(told, list) else told:
        assert re.search(rf"\b{name}\b", row), name
