"""What every command has in common: its usage line, an example in its help, and the name that it is called by."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import click

__all__ = ["ALONE", "HELP", "Command", "command", "nearest", "program", "with_program"]

#: The program without an app, and what the context knows of how it was called.
ALONE = "celery-s3"
HELP = ["-h", "--help"]
#: How messages name this program, from wherever they come.
_NAMELESS = "celery -A … s3"


class Command(click.Command):
    """A command.

    Arguments:
        example: how it is called, behind the name of the program; shown at the end of its help.
        needs_app: whether an app must be named before it.
    """

    def __init__(self, *args: Any, example: str, needs_app: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.example = example
        self.needs_app = needs_app

    def get_help_option_names(self, ctx: click.Context) -> list[str]:
        """Both, in whatever context."""
        return HELP

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a line that can be pasted: with the app in it."""
        name = f"{program(needs_app=self.needs_app)} {ctx.info_name}"
        formatter.write_usage(name, " ".join(self.collect_usage_pieces(ctx)))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example."""
        with formatter.section("Example"):
            formatter.write(f"{' ' * formatter.current_indent}{self.line(ctx.info_name)}\n")

    def line(self, name: str | None) -> str:
        """The example as it is typed."""
        return f"{program(needs_app=self.needs_app)} {name} {self.example}".rstrip()


def command(name: str, *, example: str, needs_app: bool = True) -> Callable[[Callable[..., Any]], Command]:
    """Make a command of a function: see :class:`Command`."""
    return click.command(name, cls=Command, example=example, needs_app=needs_app)


def program(*, needs_app: bool = True) -> str:
    """What stands before a command's name, as whoever reads it would type it: ``celery -A proj s3``."""
    ctx = click.get_current_context(silent=True)
    root = ctx.find_root() if ctx else None
    if root is not None and root.info_name == ALONE:
        return str(root.meta.get(ALONE, ALONE))
    app = root.params.get("app") if root is not None else None
    named = getattr(app, "main", app) or "proj"
    return f"celery -A {named} s3" if needs_app else "celery s3"


def with_program(text: str) -> str:
    """A message in which this program is named as it would be typed."""
    return text.replace(_NAMELESS, program()) if _NAMELESS in text else text


def nearest(name: str, known: list[str]) -> str:
    """A question for who has mistyped a name, empty where none is like it."""
    found = difflib.get_close_matches(name, known, 1)
    return f" Did you mean {found[0]}?" if found else ""
