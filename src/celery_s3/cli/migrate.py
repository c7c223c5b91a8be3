"""``celery s3 migrate``: what the change from another backend would do."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from typing import Any

import click

from celery_s3.backends.s3 import S3Backend
from celery_s3.expiry.terms import Terms
from celery_s3.operate.migration import Migration

from .command import command as s3_command
from .context import json_option
from .findings import exit_code, print_counts, print_finding
from .output import print_json
from .query import inventory_of, yes_option

__all__ = ["command"]

#: How an application names Celery's own backend.
_CELERYS = ("s3", "celery.backends.s3:S3Backend", "celery.backends.s3.S3Backend")


@s3_command("migrate", example="")
@yes_option
@json_option
@click.pass_context
def command(ctx: click.Context, yes: bool, as_json: bool) -> None:
    """Check a configuration before results move to celery-s3.

    For an app that uses Celery's own `s3` backend or celery-s3 1.0.1, with its settings as they are: which settings
    are taken over, which results would read as PENDING, whether results can be read, what lifecycle rules would
    delete, and what the earlier backend cannot read when you go back. Nothing is written.

    Costs a request for each 1,000 objects, and 20 more. Needs s3:ListBucket and s3:GetObject.

    The exit code is 0 only when nothing FAILs.
    """
    with closing(_backend_of(ctx.obj.app)) as backend:
        app = ctx.obj.app
        check = Migration(
            backend.settings,
            backend.reader,
            backend.layout,
            Terms.of(app.conf, app.conf.result_expires),
            app.conf,
            inventory_of(backend, yes=yes).pages,
        )
        if not as_json:
            click.echo(f"{backend.settings.uri}\n")
        findings = [one if as_json else print_finding(one) for one in check.findings()]
    if as_json:
        standing = check.standing
        told: dict[str, Any] = {"count": standing.count, "bytes": standing.size}
        told |= {"expired": standing.expired, "rules_would_delete": standing.ruled}
        print_json({"findings": [asdict(one) for one in findings], "stored": told})
    else:
        print_counts(findings)
    raise SystemExit(exit_code(findings))


def _backend_of(app: Any) -> S3Backend:
    """Our backend with the app's settings, whichever of the two it names; to it nothing has expired."""
    named = str(app.backend_cls or app.conf.result_backend or "")
    if named in _CELERYS:
        return S3Backend(app, expires=0)
    backend = app.backend
    if not isinstance(backend, S3Backend):
        raise click.ClickException(
            f"The result backend of app {app.main or 'default'!r} is {type(backend).__name__}: what it stores is not in"
            " S3, and is not taken over. docs/migration.md tells how both run out side by side."
        )
    return S3Backend(app, url=backend.url, expires=0)
