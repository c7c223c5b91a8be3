"""Write the reference of the commands from their help texts: ``python -m devtools.reference.commands FILE``."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from celery_s3.cli import GROUPS, s3
from celery_s3.cli.command import Command

__all__ = ["page"]

_HEAD = """\
<!-- made by python -m devtools.reference.commands, do not edit -->
# Commands

`celery -A proj s3 …` looks after the results that Celery keeps in S3. It comes with the package; with
`pip install 'celery-s3[cli]'` it shows progress, and values in colour. `-C` before the command, the variable NO_COLOR
and `TERM=dumb` switch colours off.

**Without an app**, for who has a bucket and nothing else, the same commands are `celery-s3 …`, also by `pipx run` or
`uvx`: `celery-s3 --url 'celery-s3://bucket/prefix?region=eu-central-1' doctor`, or with the variable
CELERY_RESULT_BACKEND. Credentials are found as by AWS' own tools. `--broker` names the broker where one is needed.

A **duration** is a number of seconds or has units: `90`, `90s`, `5m`, `2h`, `7d`, `1h30m`. What **deletes or sends**
something tells how many there are and asks; `--yes` answers beforehand, and is needed where there is no terminal. What
takes more than 1,000 **requests** says so first. The **exit code** is 0 only when all is well; an error is told in one
line and makes it 1, a wrong option 2, Ctrl-C 130. What `--json` prints stands in [json.md](json.md).
"""


def page() -> str:
    """Every command with its help and its options, as Markdown."""
    context = click.Context(s3, info_name="celery -A proj s3")
    found = {name: s3.get_command(context, name) for name in s3.list_commands(context)}
    commands = {name: command for name, command in found.items() if isinstance(command, Command)}
    groups = [line for title, names in GROUPS.items() for line in _group(title, [commands[name] for name in names])]
    return "\n".join([_HEAD, *groups, *(line for one in commands.values() for line in _section(one, context))])


def _group(title: str, commands: Iterable[Command]) -> list[str]:
    return [f"| {title} | |", "|---|---|", *map(_entry, commands), ""]


def _entry(command: click.Command) -> str:
    return f"| [`{command.name}`](#{command.name}) | {command.get_short_help_str(200)} |"


def _section(command: Command, parent: click.Context) -> Iterator[str]:
    context = click.Context(command, parent=parent, info_name=command.name)
    path = context.command_path if command.needs_app else f"celery s3 {command.name}"
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    yield f"## {command.name}\n\n```\n{usage}\n```\n"
    yield _help(command) + "\n"
    yield f"For example:\n\n```console\n$ {command.line(command.name)}\n```\n"
    yield "| Option | |\n|---|---|"
    options = (one for one in command.params if isinstance(one, click.Option) and not one.hidden)
    yield from (_option(option) for option in options)
    yield ""


def _help(command: click.Command) -> str:
    """The help text; what click must not wrap, after a line with a backspace, is code."""
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    return "\n\n".join(f"```\n{one[2:]}\n```" if one.startswith("\b\n") else one for one in paragraphs)


def _option(option: click.Option) -> str:
    names = ", ".join([*option.opts, *option.secondary_opts])
    value = "" if option.is_flag or option.count else f" {_value(option)}"
    default = f" Default: `{_number(option.default)}`." if option.show_default else ""
    return f"| `{names}{value}` | {option.help}{_range(option.type)}{default} |"


def _value(option: click.Option) -> str:
    if isinstance(option.type, click.Choice):
        return " or ".join(map(str, option.type.choices))
    return option.metavar or ("N" if isinstance(option.default, int | float) else option.type.name.upper())


def _range(kind: object) -> str:
    if not isinstance(kind, click.IntRange | click.FloatRange):
        return ""
    if kind.min is None or kind.max is None:
        return "" if kind.min is None else f" At least {_number(kind.min)}."
    return f" {_number(kind.min)} to {_number(kind.max)}."


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
