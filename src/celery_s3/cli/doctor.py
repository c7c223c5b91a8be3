"""``celery s3 doctor``: is everything as it should be."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, replace

import click

from celery_s3.backends.s3 import S3Backend
from celery_s3.operate.capabilities import Tried, try_all
from celery_s3.operate.doctor import Case, Finding, examine
from celery_s3.store.clients.control import Control
from celery_s3.store.routing import Routing

from .command import command as s3_command
from .context import json_option, terminated_like_interrupted, with_backend
from .findings import exit_code, print_counts, print_finding
from .output import print_json, print_table

__all__ = ["command"]


@s3_command("doctor", example="")
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
            _redacted(backend, finding) if as_json else print_finding(_redacted(backend, finding)) for finding in found
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
        print_counts(findings)
    raise SystemExit(exit_code(findings))


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
