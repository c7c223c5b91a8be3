"""``celery s3 doctor``: is everything as it should be."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections import Counter
from contextlib import closing
from dataclasses import asdict, replace

import click

from celery_s3.backends.s3 import S3Backend
from celery_s3.operate.capabilities import Tried, try_all
from celery_s3.operate.doctor import Case, Finding, Level, examine
from celery_s3.store.clients.control import Control
from celery_s3.store.routing import Routing

from .context import json_option, terminated_like_interrupted, with_backend
from .output import print_json, print_table

__all__ = ["command"]

_COLORS: dict[Level, str] = {"OK": "green", "WARN": "yellow", "FAIL": "red", "SKIP": "bright_black"}
#: Columns before the text: level and step.
_INDENT = 22


@click.command("doctor")
@click.option(
    "--thorough",
    is_flag=True,
    help="Try everything that S3 can do and celery-s3 uses, and print a table: about 200 requests and 6 MB.",
)
@json_option
@with_backend
def command(backend: S3Backend, as_json: bool, thorough: bool) -> None:
    """Check that everything is as it should be.

    Settings, credentials, bucket, and every request that results need.

    Each step is a line, OK, WARN, FAIL or SKIP, with the remedy under it. It writes a few scratch objects of 1 KB under
    the configured base path and deletes them, also after Ctrl-C; it makes about 70 requests. No line holds a secret.

    With --thorough a table follows: whether the server does each thing as S3 does, what it does instead, and how that
    is worked around. The bucket's lifecycle rules are written as they stand; where there are none, one for a scratch
    object, which is taken back.

    The exit code is 0 only when nothing FAILs.
    """
    with (
        terminated_like_interrupted(),
        closing(Routing(backend.settings)) as store,
        closing(examine(_case(backend, store))) as found,
        closing(try_all(_case(backend, store))) as capabilities,
    ):
        if not as_json:
            click.echo(f"{backend.settings.uri}\n")
        findings = [
            _redacted(backend, finding) if as_json else _print(_redacted(backend, finding)) for finding in found
        ]
        reachable = all(one.level != "FAIL" for one in findings if one.step in ("bucket", "PUT"))
        tried = [_without_secrets(backend, one) for one in capabilities] if thorough and reachable else []
    if as_json:
        told = [asdict(finding) for finding in findings]
        print_json({"findings": told, "capabilities": [asdict(one) for one in tried]} if thorough else told)
    else:
        if tried:
            click.echo()
            print_table(("CAPABILITY", "VERDICT", "FOUND", "INSTEAD"), [_row(one) for one in tried])
        counts = Counter(finding.level for finding in findings)
        click.echo(f"\n{counts['OK']} OK, {counts['WARN']} WARN, {counts['FAIL']} FAIL, {counts['SKIP']} SKIP.")
    if any(finding.level == "FAIL" for finding in findings):
        raise SystemExit(1)


def _case(backend: S3Backend, store: Routing) -> Case:
    settings = backend.settings
    return Case(
        settings,
        store,
        Control(settings),
        backend.layout,
        backend.terms,
        lambda versioned: backend.lifecycle_rules(versioned=versioned),
        backend.notices,
    )


def _redacted(backend: S3Backend, finding: Finding) -> Finding:
    """Without secrets, whatever the server repeated of the request."""
    return Finding(finding.level, backend.settings.redact(finding.text), finding.remedy, finding.step)


def _without_secrets(backend: S3Backend, tried: Tried) -> Tried:
    return replace(tried, found=backend.settings.redact(tried.found))


def _row(tried: Tried) -> tuple[str, ...]:
    return tried.name, tried.verdict, tried.found, tried.instead


def _print(finding: Finding) -> Finding:
    level = click.style(finding.level.ljust(6), fg=_COLORS[finding.level], bold=finding.level == "FAIL")
    lines = _wrapped(finding.text) + [
        f"→ {line}" if not n else f"  {line}" for n, line in enumerate(_wrapped(finding.remedy))
    ]
    click.echo(level + finding.step.ljust(_INDENT - 6) + lines[0])
    for line in lines[1:]:
        click.echo(" " * _INDENT + line)
    return finding


def _wrapped(text: str) -> list[str]:
    """Lines that fit the terminal; elsewhere one line, so that other programs can read it."""
    plain = "".join(char if char.isprintable() else " " for char in text)
    if not sys.stdout.isatty():
        return [plain] if plain else []
    width = max(40, shutil.get_terminal_size().columns - _INDENT - 2)
    return textwrap.wrap(plain, width, break_on_hyphens=False)
