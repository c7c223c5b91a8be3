"""docs/security.md: each cell names a test, and there is such a test."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "security.md"
NAMED = re.findall(r"`(\w+/\w+\.py)::(\w+)`", PAGE.read_text(encoding="utf-8"))


def test_every_test_that_it_names_is_there() -> None:
    """A test that is renamed or removed takes its claim with it."""
    assert len(NAMED) > 30
    for file, name in NAMED:
        tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"


def test_no_cell_says_the_four_words() -> None:
    """Nobody runs code, reads keys, deletes what is not ours or stops a worker: the page says so once, of all."""
    table = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    words = re.compile(r"\b(runs? code|reads? keys|deletes? (whatever|anything|others)|stops? a worker)\b")
    assert not [line for line in table if words.search(line)]
