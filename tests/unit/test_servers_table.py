"""The tables of S3 servers are those of the runs that were kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import servers

from devtools.reference import servers as reference

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("page", "table"), [("README.md", reference.short_table), ("docs/servers.md", reference.full_tables)]
)
def test_documentation_is_up_to_date(page, table):
    """Both pages have what `python -m devtools.reference.servers` writes."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert reference.written(text, table()) == text


def test_every_server_has_its_run():
    """No server stands in the tests without a run in the tables."""
    assert {path.stem for path in reference.RUNS.glob("*.json")} == set(servers.KNOWN)


@pytest.mark.parametrize("name", servers.KNOWN)
def test_known_lacks_are_those_of_the_run(name):
    """What a run found, the tests expect, and the other way round."""
    found = {one["name"] for one in reference.run(name)["capabilities"] if one["verdict"] != "yes"}
    kind = servers.kind(name)
    assert found - kind.unsteady == set(kind.lacks) - kind.unsteady
