"""``celery s3 dev``: an S3 server for development."""

from __future__ import annotations

import signal
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from pprint import pformat
from typing import Any

import click

from celery_s3.dev.seaweed import SeaweedFS
from celery_s3.dev.sqs import SQSServer
from celery_s3.settings.kinds import Text, Wrong

from .command import command as s3_command

__all__ = ["command"]

#: The first line of a file that this command has written.
_MARK = "# By `celery s3 dev`: for servers of this machine that run as long as it does.\n"

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
@click.option("--sqs", is_flag=True, help="A broker, too: moto's SQS, which keeps nothing.")
@click.option("--django", is_flag=True, help="Settings for Django's `settings.py`, under the namespace CELERY.")
@click.option(
    "--write",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the settings to this file, as `celeryconfig.py`, instead of printing them.",
)
def command(
    port: int, directory: str | None, bucket: str, secret: str, sqs: bool, django: bool, file: Path | None
) -> None:
    """Run an S3 server for development, and with --sqs a broker.

    It prints the settings to paste, or writes them, and runs until Ctrl-C. It is SeaweedFS from the extra
    `celery-s3[demo]`, and answers to this machine alone. It needs no app.
    """
    if file:
        _may_write(file)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with ExitStack() as stack:
        server = stack.enter_context(SeaweedFS(directory, port=port, bucket=bucket, secret_key=secret))
        told = f"S3 on {server.endpoint_url}, data in {directory or 'a temporary folder'}."
        settings: dict[str, Any] = {}
        if sqs:
            broker = stack.enter_context(SQSServer())
            told += f" SQS on {broker.endpoint_url}."
            settings |= broker.broker()
        settings |= {"result_backend": "celery-s3://", "s3_backend_settings": server.settings()}
        _tell(told, settings, django, file)
        with suppress(KeyboardInterrupt):
            server.wait()
            raise click.ClickException("the server has ended by itself")


def _may_write(file: Path) -> None:
    """Only over what this command has written before."""
    if file.exists() and not file.read_text(encoding="utf-8", errors="replace").startswith(_MARK):
        raise click.ClickException(f"{file} is there already, and not by this command: name another file.")


def _tell(told: str, settings: dict[str, Any], django: bool, file: Path | None) -> None:
    def name(of: str) -> str:
        if django:
            return f"CELERY_{of.upper()}"
        return of if file else f"app.conf.{of}"

    lines = [f"{name(of)} = {pformat(value, sort_dicts=False)}\n" for of, value in settings.items()]
    if file:
        file.write_text("".join([_MARK, *lines]), encoding="utf-8")
        click.echo(f"{told}\nThe settings are in {file}. Ctrl-C ends the servers.")
    else:
        click.echo(f"{told} Settings:\n\n{''.join(lines)}")
