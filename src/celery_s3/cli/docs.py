"""Write the reference of the commands from their help texts: ``python -m celery_s3.cli.docs docs/commands.md``."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from . import s3

__all__ = ["page"]

_HEAD = """\
<!-- made by python -m celery_s3.cli.docs, do not edit -->
# Commands

`celery -A proj s3 …` looks after the results that Celery keeps in S3. It comes with the package; with
`pip install 'celery-s3[cli]'` its tables fit the terminal. The exit code is 0 only when all is well; an error is told
in one line and makes it 1, a wrong option 2.
"""


def page() -> str:
    """Every command with its help and its options, as Markdown."""
    context = click.Context(s3)
    commands = [command for name in s3.list_commands(context) if (command := s3.get_command(context, name))]
    return "\n".join([_HEAD, *(line for command in commands for line in _section(command))])


def _section(command: click.Command) -> Iterator[str]:
    usage = " ".join([f"celery -A proj s3 {command.name}", "[OPTIONS]", *map(_argument, command.params)]).rstrip()
    yield f"## {command.name}\n\n```\n{usage}\n```\n"
    yield inspect.cleandoc(command.help or "") + "\n"
    yield "| Option | |\n|---|---|"
    yield from (_option(option) for option in command.params if isinstance(option, click.Option))
    yield ""


def _argument(parameter: click.Parameter) -> str:
    return parameter.metavar or "" if isinstance(parameter, click.Argument) else ""


def _option(option: click.Option) -> str:
    value = "" if option.is_flag else f" {option.type.name.upper()}"
    default = f" Default: `{option.default}`." if option.show_default else ""
    return f"| `{', '.join(option.opts)}{value}` | {option.help}{default} |"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
