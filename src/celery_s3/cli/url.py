"""``celery s3 url``: a link to a result."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click

from celery_s3.backends.s3 import S3Backend
from celery_s3.files.objects import LONGEST_LINK
from celery_s3.store.clients.control import Control

from .context import json_option, with_backend
from .lookup import stored
from .output import data_size, print_json
from .query import duration

__all__ = ["command"]


def _checked(ctx: click.Context, option: click.Parameter, seconds: float) -> int:
    if not 1 <= seconds <= LONGEST_LINK:
        raise click.BadParameter("a link lives from 1s to 7d.", ctx, option)
    return int(seconds)


@click.command("url")
@click.argument("id")
@click.option(
    "--expires", type=duration, default="1h", show_default=True, callback=_checked, help="How long it works, up to 7d."
)
@json_option
@with_backend
def command(backend: S3Backend, id: str, expires: int, as_json: bool) -> None:
    """Print a URL that anybody can read a result with.

    It answers the body as it is stored: the serialised meta with state and result, compressed or encrypted if it
    is. It cannot be taken back: whoever has it can read the result until it expires, or until the result or the
    credentials that signed it are gone.

    Standard output has the URL and nothing else.
    """
    found, _ = stored(backend, id)
    url = Control(backend.settings).presign(found.key, expires)
    until = datetime.now(UTC) + timedelta(seconds=expires)
    if as_json:
        print_json({"id": id, "url": url, "expires": until, "size": found.size})
    else:
        click.echo(url)
    warning = f"Whoever has this URL can read the result ({data_size(found.size)}) until {until:%Y-%m-%d %H:%M:%S} UTC."
    click.echo(warning, err=True)
