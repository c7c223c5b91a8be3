"""``celery -A proj s3 …``: one module for each command.

Celery imports this whenever its command line starts, for a worker too: it costs click, which is there anyway, and
a command's module is imported when that command is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from celery_s3.errors import CeleryS3Error

from .command import HELP, nearest, program, with_program
from .output import printable, wants_color

__all__ = ["COMMANDS", "GROUPS", "s3"]

#: Each is a module of this package, and its ``command`` in it; in the order and groups of the help.
GROUPS = {
    "Set up": ("init", "doctor", "policy", "migrate", "dev"),
    "Look": ("ls", "show", "wait", "url", "chords", "browse"),
    "Clean up": ("forget", "sweep"),
    "Measure": ("stats", "bench", "cost"),
}
COMMANDS = tuple(name for names in GROUPS.values() for name in names)
#: Ctrl-C, as shells have it.
INTERRUPTED = 130


class _Commands(click.Group):
    """Commands that are imported when they are used; our errors are told in a line, with exit code 1."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f".{cmd_name}", __name__).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as exc:
            message = exc.message.partition(" Did you mean")[0]
            raise click.UsageError(f"{message}{nearest(args[0], list(COMMANDS))}", exc.ctx) from exc

    def get_help_option_names(self, ctx: click.Context) -> list[str]:
        return HELP

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(program(), "COMMAND …")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, names in GROUPS.items():
            commands = [(name, command) for name in names if (command := self.get_command(ctx, name))]
            limit = formatter.width - 6 - max(map(len, COMMANDS))
            with formatter.section(title):
                formatter.write_dl(
                    [(name.ljust(max(map(len, COMMANDS))), one.get_short_help_str(limit)) for name, one in commands]
                )

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Example"):
            formatter.write(f"{' ' * formatter.current_indent}{program()} doctor\n")

    def invoke(self, ctx: click.Context) -> Any:
        if not wants_color(getattr(ctx.obj, "no_color", False)):
            ctx.color = False
        try:
            return super().invoke(ctx)
        except CeleryS3Error as exc:
            raise click.ClickException(printable(with_program(str(exc)), keep="\n")) from exc
        except KeyboardInterrupt:
            raise SystemExit(INTERRUPTED) from None
        except click.Abort as exc:
            # click makes one of Ctrl-C while it asks
            if isinstance(exc.__context__, KeyboardInterrupt):
                raise SystemExit(INTERRUPTED) from None
            raise


@click.group("s3", cls=_Commands)
@click.version_option(package_name="celery-s3", message="%(package)s %(version)s")
def s3() -> None:
    """Look after the results that Celery keeps in S3.

    The app stands before the command.
    """
