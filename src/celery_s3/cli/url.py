"""``celery s3 url``: a link to a result."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click

from celery_s3.backends.s3 import S3Backend
from celery_s3.files.objects import LONGEST_LINK
from celery_s3.store.clients.control import Control

from .command import command as s3_command
from .command import program
from .context import json_option, with_backend
from .files import file_record, files_of_result
from .lookup import stored
from .output import counted, data_size, print_json, printable
from .query import duration

__all__ = ["command"]


def _checked(ctx: click.Context, option: click.Parameter, seconds: float) -> int:
    if not 1 <= seconds <= LONGEST_LINK:
        raise click.BadParameter("a link lives from 1s to 7d.", ctx, option)
    return int(seconds)


@s3_command("url", example="6f1c0a52-3a0e-4c0e-9a35-0d4c6f2f9a11 --expires 1d")
@click.argument("id")
@click.option(
    "--expires", type=duration, default="1h", show_default=True, callback=_checked, help="How long it works, up to 7d."
)
@click.option("--raw", is_flag=True, help="Link to the stored body, also of a result with files or a sealed one.")
@json_option
@with_backend
def command(backend: S3Backend, id: str, expires: int, raw: bool, as_json: bool) -> None:
    """Print a URL that anybody can read a result with.

    Of a result that is or holds files (S3File) a link to each of them, a line each. Of any other, a link to the
    body as it is stored: the serialised meta with state and result, compressed if it is. What `seal_keys` have
    encrypted nobody can read by a link: it is refused, unless --raw asks for the sealed bytes. A link cannot be
    taken back: whoever has it can read the result until it expires, or until the result or the credentials that
    signed it are gone.

    Standard output has the URLs and nothing else.
    """
    found, _ = stored(backend, id)
    until = datetime.now(UTC) + timedelta(seconds=expires)
    files = [] if raw else files_of_result(backend, id, found)
    sealed = bool(backend.settings.seal_keys) and backend.settings.seal == "encrypt"
    if sealed and not (files or raw):
        raise click.ClickException(
            f"There is no link to the result of {printable(id)}: it is sealed by `seal_keys`, and nobody can read it by"
            f" one. `{program()} show` prints it; --raw links to the sealed bytes."
        )
    links = [{**file_record(file), "url": file.url(expires)} for file in files]
    # a browser saves all but JSON: it might show a page that somebody else has put there, and run what is in it
    shown = "" if found.content_type == "application/json" else "application/octet-stream"
    url = links[0]["url"] if links else Control(backend.settings).presign(found.key, expires, content_type=shown)
    if as_json:
        print_json({"id": id, "url": url, "expires": until, "size": found.size, "files": links})
    else:
        click.echo("\n".join(link["url"] for link in links) or url)
    size = data_size(sum(file.size or 0 for file in files) if files else found.size)
    what = counted(len(files), "file") if files else "sealed bytes" if sealed else "result"
    reads = f"get the {what} ({size}), and nothing more without `seal_keys`," if sealed else f"read the {what} ({size})"
    click.echo(f"Whoever has this URL can {reads} until {until:%Y-%m-%d %H:%M:%S} UTC.", err=True)
