"""``celery-s3 …``: the commands without an app, for who has a bucket and nothing else.

What an app's configuration would say is said by options, by Celery's own settings in the environment, or by AWS'.
"""

from __future__ import annotations

from typing import Any

import click
from celery import Celery
from celery.bin.base import CLIContext

from . import _Commands
from .command import ALONE
from .output import wants_color

__all__ = ["main"]


@click.group("celery-s3", cls=_Commands)
@click.option(
    "--url",
    envvar="CELERY_RESULT_BACKEND",
    metavar="URL",
    help="The bucket, as celery-s3://bucket/prefix?region=…&endpoint_url=…; else CELERY_RESULT_BACKEND.",
)
@click.option("--broker", envvar="CELERY_BROKER_URL", metavar="URL", help="The broker, where a command needs one.")
@click.option("-A", "--app", "named", metavar="APP", help="An app after all, as `celery -A` has it.")
@click.option("-C", "--no-color", is_flag=True, help="No colours.")
@click.version_option(package_name="celery-s3", message="%(package)s %(version)s")
@click.pass_context
def main(ctx: click.Context, url: str | None, broker: str | None, named: str | None, no_color: bool) -> None:
    """Look after the results that Celery keeps in S3, without an app.

    Credentials are found as by AWS' own tools: in the environment, in ~/.aws, by a role. They cannot stand in the URL.
    """
    ctx.meta[ALONE] = f"celery-s3 -A {named}" if named else f"celery-s3 --url '{url}'" if url else "celery-s3"
    if not wants_color(no_color):
        ctx.color = False
    ctx.obj = CLIContext(app=_app(url, broker, named), no_color=no_color, workdir=None)


def _app(url: str | None, broker: str | None, named: str | None) -> Any:
    if named:
        from celery.app.utils import find_app

        return find_app(named)
    app = Celery("celery-s3", set_as_current=False)
    app.conf.update(result_backend=url or "celery-s3://", broker_url=broker or "memory://")
    return app
