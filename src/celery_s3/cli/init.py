"""``celery s3 init``: the bucket as it should be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import click

from celery_s3.backends.s3 import S3Backend
from celery_s3.errors import CeleryS3Error
from celery_s3.keys import Layout
from celery_s3.operate.init import Change, Plan, default_encryption, plan, why
from celery_s3.operate.templates import FORMATS, Blueprint
from celery_s3.settings import Settings
from celery_s3.settings.kinds import Wrong
from celery_s3.settings.options import OPTIONS
from celery_s3.store.clients.control import Control

from .command import command as s3_command
from .command import with_program
from .context import dry_run_option, json_option, with_backend
from .output import counted, print_json, printable
from .query import confirm, yes_option

__all__ = ["command"]

_COLORS = {"+": "green", "-": "red", "=": "bright_black", "!": "yellow"}


@s3_command("init", example="--dry-run")
@yes_option
@click.option(
    "--delete",
    "agreed",
    metavar="N",
    type=click.IntRange(min=0),
    default=0,
    help="With --yes: new rules may delete up to N of the objects that stand there now.",
)
@click.option(
    "--print",
    "form",
    type=click.Choice(list(FORMATS)),
    help="Print the bucket as a document to keep in code, and do nothing; it makes no request.",
)
@click.option(
    "--moved-from",
    metavar="BASE_PATH",
    help="Remove the rules for a base_path that nothing uses any more, as it stood in the settings.",
)
@dry_run_option
@json_option
@with_backend
def command(
    backend: S3Backend,
    yes: bool,
    agreed: int,
    form: str | None,
    moved_from: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Create the bucket or bring it up to date.

    Public access is blocked, expired results and stale uploads are removed by lifecycle rules, and the encryption of
    the settings becomes the bucket's. Rules of others stay as they are, in their order. The difference is shown
    before it is made; running it again changes nothing.

    What a new rule would delete now is counted, results of an earlier backend too, and that number is asked for; where
    nobody is asked, --delete must allow it. Objects that celery-s3 has not written are named; then only a person can
    say yes. To count takes a request for each 1,000 objects.

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
        backend.store.list,
        None if moved_from is None else _former(backend, moved_from),
    )
    ask = bool(found.changes) and not (dry_run or yes)
    # Whoever is asked must see the changes; with --json on standard error, since standard output is for a program.
    if ask or not as_json:
        _print(backend, found, err=as_json)
    if ask:
        doomed = sum(change.deletes for change in found.changes)
        gone = f" They delete {counted(doomed, 'object')} that {'stand' if doomed > 1 else 'stands'} there now."
        confirm(f"Make these changes?{gone if doomed else ''}", number=doomed)
    made = [] if dry_run else _make(found, backend.settings, agreed=agreed if yes else None, quiet=as_json)
    if as_json:
        print_json(_record(found, made))
    if found.troubles or any(change not in made and change.what not in found.lacking for change in found.changes):
        raise SystemExit(1)


def _former(backend: S3Backend, base_path: str) -> Layout:
    """Where everything was by an earlier `base_path`."""
    try:
        base = str(OPTIONS["base_path"].kind.check(base_path))
    except Wrong as exc:
        raise click.UsageError(f"--moved-from {exc}") from exc
    former = replace(backend.layout, base=base)
    if former == backend.layout:
        raise click.UsageError("--moved-from names the base_path of the settings: its rules are needed.")
    return former


def _make(found: Plan, settings: Settings, *, agreed: int | None, quiet: bool) -> list[Change]:
    """Make the changes; those that were made. Without a bucket there is nothing to go on with.

    Arguments:
        agreed: how many objects they may delete where nobody was asked; ``None``: somebody has seen all of it.
    """
    made = []
    for change in found.changes:
        if agreed is not None and (change.doubtful or change.deletes > agreed):
            found.troubles[change.what] = "--yes is not enough for it: " + (
                "look at the lines with `!`, and run it without"
                if change.doubtful
                else f"it deletes {counted(change.deletes, 'object')}; say --delete {change.deletes}, or run it without"
            )
            click.echo(f"{change.what}: not done: {found.troubles[change.what]}.", err=True)
            continue
        try:
            remark = change.make()
        except CeleryS3Error as exc:
            found.note(change.what, exc, settings)
            reason = printable(why(exc, settings, change.what))
            click.echo(with_program(f"{change.what}: not done: {reason}."), err=True)
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
        click.echo(with_program(printable(f"{what}: not known: {trouble}.")), err=True)
    for warning in (*(f"{what}: {lack}." for what, lack in found.lacking.items()), *found.warnings):
        click.echo(click.style(with_program(printable(f"warning: {warning}")), fg="yellow"), err=True)
    if not found.changes:
        click.echo("Nothing to change.", err=err)


def _print_lines(what: str, lines: Sequence[str], *, err: bool) -> None:
    for number, line in enumerate(lines):
        click.echo(("" if number else what).ljust(15) + click.style(printable(line), fg=_COLORS[line[0]]), err=err)


def _record(found: Plan, made: Sequence[Change]) -> dict[str, Any]:
    return {
        "changes": [
            {"what": one.what, "lines": one.lines, "deletes": one.deletes, "made": one in made} for one in found.changes
        ],
        "troubles": found.troubles,
        "lacking": found.lacking,
        "warnings": found.warnings,
    }
