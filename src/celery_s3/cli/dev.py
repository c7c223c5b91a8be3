"""``celery s3 dev``: an S3 server for development."""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from pprint import pformat

import click

from celery_s3.dev.seaweed import SeaweedFS
from celery_s3.settings.kinds import Text, Wrong

from .command import command as s3_command

__all__ = ["command"]


#: Stricter than the settings, which accept old buckets too: the server makes no such bucket any more.
_BUCKET = Text(
    "a bucket name: 3 to 63 lower-case letters, digits, `.` and `-`, the first and the last a letter or a digit",
    r"(?!.*\.\.)(?!(?:\d+\.){3}\d+$)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]",
)


def _bucket(text: str) -> str:
    """The name of a bucket that can be made; the type of an option."""
    try:
        return str(_BUCKET.check(text))
    except Wrong as exc:
        raise click.BadParameter(f"{exc}.") from exc


@s3_command("dev", example="--dir ./s3-data", needs_app=False)
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=8333,
    show_default=True,
    help="Where S3 answers, on 127.0.0.1; 0 takes a free one.",
)
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False),
    help="Where the data stays; without it, it goes with the server.",
)
@click.option(
    "--bucket", type=_bucket, metavar="TEXT", default="results", show_default=True, help="Created if it does not exist."
)
@click.option("--secret", default="development-only", show_default=True, help="The secret key that it accepts.")
def command(port: int, directory: str | None, bucket: str, secret: str) -> None:
    """Run an S3 server for development.

    It prints the settings to paste, and runs until Ctrl-C. It is SeaweedFS from the extra `celery-s3[demo]`, and
    answers to this machine alone. It needs no app.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with SeaweedFS(directory, port=port, bucket=bucket, secret_key=secret) as server:
        click.echo(f"S3 on {server.endpoint_url}, data in {directory or 'a temporary folder'}. Settings:\n")
        click.echo('app.conf.result_backend = "celery_s3.backends.S3Backend"')
        click.echo(f"app.conf.s3_backend_settings = {pformat(server.settings(), sort_dicts=False)}\n")
        with suppress(KeyboardInterrupt):
            server.wait()
            raise click.ClickException("the server has ended by itself")
