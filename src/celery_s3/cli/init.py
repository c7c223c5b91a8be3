"""``celery s3 init``: the bucket as it should be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from celery_s3.backends.s3 import S3Backend
from celery_s3.errors import CeleryS3Error
from celery_s3.operate.init import Change, Plan, default_encryption, plan, why
from celery_s3.operate.templates import FORMATS, Blueprint
from celery_s3.settings import Settings
from celery_s3.store.clients.control import Control

from .context import dry_run_option, json_option, with_backend
from .output import print_json, printable

__all__ = ["command"]

_COLORS = {"+": "green", "-": "red", "=": "bright_black"}


@click.command("init")
@click.option("--yes", is_flag=True, help="Make the changes without asking.")
@click.option(
    "--print",
    "form",
    type=click.Choice(list(FORMATS)),
    help="Print the bucket as a document to keep in code, and do nothing; it makes no request.",
)
@dry_run_option
@json_option
@with_backend
def command(backend: S3Backend, yes: bool, form: str | None, dry_run: bool, as_json: bool) -> None:
    """Create the bucket or bring it up to date.

    Public access is blocked, expired results and stale uploads are removed by lifecycle rules, and the encryption of
    the settings becomes the bucket's. Rules of others stay as they are, in their order. The difference is shown
    before it is made; running it again changes nothing.

    The exit code is 0 only when the bucket is as it should be: with --dry-run, when nothing is to change. What the
    server has no API for is a warning.
    """
    if form:
        if as_json and form != "json":
            raise click.UsageError(f"--print {form} does not print JSON: leave out --json.")
        encryption = default_encryption(backend.settings)
        click.echo(
            FORMATS[form](Blueprint(backend.settings.bucket, encryption, backend.lifecycle_rules(versioned=False)))
        )
        return
    found = plan(
        Control(backend.settings),
        lambda versioned: backend.lifecycle_rules(versioned=versioned),
        backend.layout,
        backend.terms,
    )
    ask = bool(found.changes) and not (dry_run or yes)
    # Whoever is asked must see the changes; with --json on standard error, since standard output is for a program.
    if ask or not as_json:
        _print(backend, found, err=as_json)
    if ask:
        click.confirm("\nMake these changes?", abort=True, err=as_json)
    made = [] if dry_run else _make(found, backend.settings, quiet=as_json)
    if as_json:
        print_json(_record(found, made))
    if found.troubles or any(change not in made and change.what not in found.lacking for change in found.changes):
        raise SystemExit(1)


def _make(found: Plan, settings: Settings, *, quiet: bool) -> list[Change]:
    """Make the changes; those that were made. Without a bucket there is nothing to go on with."""
    made = []
    for change in found.changes:
        try:
            remark = change.make()
        except CeleryS3Error as exc:
            found.note(change.what, exc, settings)
            click.echo(f"{change.what}: not done: {why(exc, settings, change.what)}.", err=True)
            if change.what == "bucket":
                break
        else:
            made.append(change)
            if remark:
                found.lacking[change.what] = remark
            if not quiet:
                click.echo(f"{change.what}: done{f', {remark}' if remark else ''}.")
    return made


def _print(backend: S3Backend, found: Plan, *, err: bool) -> None:
    click.echo(f"{backend.settings.uri}\n", err=err)
    for change in found.changes:
        _print_lines(change.what, change.lines, err=err)
    for what, trouble in found.troubles.items():
        click.echo(f"{what}: not known: {trouble}.", err=True)
    for warning in (*(f"{what}: {lack}." for what, lack in found.lacking.items()), *found.warnings):
        click.echo(click.style(f"warning: {warning}", fg="yellow"), err=True)
    if not found.changes:
        click.echo("Nothing to change.", err=err)


def _print_lines(what: str, lines: Sequence[str], *, err: bool) -> None:
    for number, line in enumerate(lines):
        click.echo(("" if number else what).ljust(15) + click.style(printable(line), fg=_COLORS[line[0]]), err=err)


def _record(found: Plan, made: Sequence[Change]) -> dict[str, Any]:
    return {
        "changes": [{"what": one.what, "lines": one.lines, "made": one in made} for one in found.changes],
        "troubles": found.troubles,
        "lacking": found.lacking,
        "warnings": found.warnings,
    }
