"""``celery -A proj s3 …``: one module for each command.

Celery imports this whenever its command line starts, for a worker too: it costs click, which is there anyway, and
a command's module is imported when that command is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from celery_s3.errors import CeleryS3Error

from .output import printable

__all__ = ["COMMANDS", "s3"]

#: Each is a module of this package, and its ``command`` in it.
COMMANDS = (
    "bench",
    "chords",
    "cost",
    "dev",
    "doctor",
    "forget",
    "init",
    "ls",
    "migrate",
    "policy",
    "show",
    "sweep",
    "url",
    "wait",
)


class _Commands(click.Group):
    """Commands that are imported when they are used; our errors are told in a line, with exit code 1."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f".{cmd_name}", __name__).command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CeleryS3Error as exc:
            raise click.ClickException(printable(str(exc), keep="\n")) from exc


@click.group("s3", cls=_Commands)
def s3() -> None:
    """Look after the results that Celery keeps in S3.

    Name the app before the command, as in `celery -A proj s3 chords`.
    """
