"""How findings are printed: a line each, with the remedy under it."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable

import click

from celery_s3.operate.doctor import Finding, Level

from .command import with_program

__all__ = ["exit_code", "print_counts", "print_finding"]

_COLORS: dict[Level, str] = {"OK": "green", "WARN": "yellow", "FAIL": "red", "SKIP": "bright_black"}
#: Columns before the text: level and step.
_INDENT = 22


def print_finding(finding: Finding) -> Finding:
    """Print a finding, and give it back."""
    level = click.style(finding.level.ljust(6), fg=_COLORS[finding.level], bold=finding.level == "FAIL")
    lines = _wrapped(with_program(finding.text)) + [
        f"→ {line}" if not n else f"  {line}" for n, line in enumerate(_wrapped(with_program(finding.remedy)))
    ]
    click.echo(level + finding.step.ljust(_INDENT - 6) + lines[0])
    for line in lines[1:]:
        click.echo(" " * _INDENT + line)
    return finding


def print_counts(findings: Iterable[Finding]) -> None:
    """Print how many there are of each level."""
    counts = Counter(finding.level for finding in findings)
    click.echo(f"\n{counts['OK']} OK, {counts['WARN']} WARN, {counts['FAIL']} FAIL, {counts['SKIP']} SKIP.")


def exit_code(findings: Iterable[Finding]) -> int:
    """1 if something FAILs, else 0."""
    return int(any(finding.level == "FAIL" for finding in findings))


def _wrapped(text: str) -> list[str]:
    """Lines that fit the terminal; elsewhere one line, so that other programs can read it."""
    plain = "".join(char if char.isprintable() else " " for char in text)
    if not sys.stdout.isatty():
        return [plain] if plain else []
    width = max(30, shutil.get_terminal_size().columns - _INDENT - 2)
    return textwrap.wrap(plain, width, break_on_hyphens=False, break_long_words=False)
