"""The command group: what it costs, what it looks like, and how it prints."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import click
import pytest
from celery import Celery, chain, chord, group
from celery.bin.base import CLIContext
from click.testing import CliRunner

from celery_s3 import __version__
from celery_s3.cli import COMMANDS, dev, output, query, s3
from celery_s3.cli.alone import main
from celery_s3.cli.chords import _names
from devtools.reference import commands

DOCS = Path(__file__).parents[2] / "docs" / "commands.md"


def run(*arguments, app=None):
    obj = CLIContext(app=app or Celery("other", set_as_current=False), no_color=True, workdir=None)
    return CliRunner().invoke(s3, arguments, obj=obj, terminal_width=80)


def test_it_costs_a_worker_nothing():
    """Celery imports the group at every start of its command line: no S3 client and no rich come with it."""
    code = (
        "import sys, celery.bin.celery; from celery_s3.cli import s3;"
        "names = ('obstore', 'boto3', 'botocore', 'rich', 'celery_s3.backends');"
        "print([name for name in names if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_celery_knows_it():
    """The group is a command of `celery`."""
    done = subprocess.run([sys.executable, "-m", "celery", "s3", "--help"], capture_output=True, text=True, check=True)
    assert "Look after the results" in done.stdout


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_80_columns(command):
    """Every help text fits a terminal of 80 columns, the list of commands is not cut, every option has a text."""
    told = run(*filter(None, [command]), "--help")
    assert told.exit_code == 0
    assert all(len(line) <= 80 and not re.search(r"\w\.\.\.$", line) for line in told.output.splitlines()), told.output
    one = s3.get_command(click.Context(s3), command) if command else s3
    assert all(option.help for option in one.params if isinstance(option, click.Option))


def test_documentation_is_up_to_date():
    """docs/commands.md has what `python -m devtools.reference.commands` writes."""
    assert DOCS.read_text(encoding="utf-8") == commands.page()


def test_unknown_command():
    """A command that does not exist is a usage error, with a suggestion where one is like it."""
    assert run("what-else-is-there").exit_code == 2
    told = run("doctr")
    assert told.exit_code == 2
    assert "No such command 'doctr'. Did you mean doctor?" in told.output


def test_help_can_be_pasted():
    """Usage and example name the app before the command; -h is --help; --version tells this package's."""
    told = run("ls", "-h").output
    assert told.startswith("Usage: celery -A proj s3 ls [OPTIONS]\n")
    assert told.endswith("Example:\n  celery -A proj s3 ls --state FAILURE --since 1d\n")
    assert run("cost", "-h").output.startswith("Usage: celery s3 cost [OPTIONS]\n")
    assert run("--version").output == f"celery-s3 {__version__}\n"
    headings = re.findall(r"^(\w[\w ]+):$", run("-h").output, re.M)
    assert headings == ["Options", "Set up", "Look", "Clean up", "Measure", "Example"]


def test_without_an_app():
    """`celery-s3 --url …` is the same commands for who has a bucket alone; lines to paste name it as it was called."""
    url = "celery-s3://some-bucket/base?region=eu-west-1"

    def alone(*arguments, **variables):
        return CliRunner(env={"CELERY_RESULT_BACKEND": None, **variables}).invoke(
            main, arguments, prog_name="celery-s3"
        )

    for told in (alone("--url", url, "policy"), alone("policy", CELERY_RESULT_BACKEND=url)):
        assert told.exit_code == 0, told.output
        assert "arn:aws:s3:::some-bucket/base/celery-task-meta-*" in told.stdout
    assert alone("ls", "-h").output.startswith("Usage: celery-s3 ls [OPTIONS]\n")
    assert alone("--url", url, "ls", "-h").output.startswith(f"Usage: celery-s3 --url '{url}' ls ")
    assert "`bucket`: is missing" in alone("policy").output
    told = alone("--url", "celery-s3://key:secret@bucket", "policy")
    assert told.exit_code == 1
    assert "secret@" not in told.output


@pytest.mark.parametrize("raised", [KeyboardInterrupt, "asked"])
def test_ctrl_c_is_130(monkeypatch, raised):
    """Ctrl-C ends any command with 130, as shells have it, also while it asks; a no ends it with 1."""

    def end(**_):
        if raised is KeyboardInterrupt:
            raise KeyboardInterrupt
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise click.Abort from None

    command = s3.get_command(click.Context(s3), "cost")
    monkeypatch.setattr(command, "callback", end)
    assert run("cost").exit_code == 130
    monkeypatch.setattr(command, "callback", lambda **_: (_ for _ in ()).throw(click.Abort()))
    assert run("cost").exit_code == 1


@pytest.mark.parametrize(
    ("no_color", "variables", "colored"),
    [
        (False, {"TERM": "xterm"}, True),
        (True, {"TERM": "xterm"}, False),
        (False, {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (False, {"TERM": "dumb"}, False),
    ],
)
def test_colors(no_color, variables, colored):
    """`celery --no-color`, NO_COLOR and TERM=dumb switch all colours off, whatever the terminal can do."""
    command = s3.get_command(click.Context(s3), "cost")

    def show(**_):
        output.print_table(("ID", "STATE"), [("a", "FAILURE")])
        with output.console().capture() as captured:
            output.console().print("[red]x[/]")
        click.echo(captured.get() + click.style("y", fg="red"))

    obj = CLIContext(app=Celery("other", set_as_current=False), no_color=no_color, workdir=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("NO_COLOR", raising=False)
        patch.setattr(command, "callback", show)
        told = CliRunner(env=variables).invoke(s3, ["cost"], obj=obj, color=True)
    assert told.exit_code == 0, told.output
    assert ("\x1b[" in told.output) is colored


@pytest.mark.parametrize(
    ("text", "seconds"), [("1", 1), ("1.5", 1.5), ("90s", 90), ("5m", 300), ("1h30m", 5400), ("7d", 604_800)]
)
def test_durations(text, seconds):
    """A duration is written the same way for every option: a number of seconds, or with units."""
    assert query.duration(text) == seconds
    for wrong in (f"-{text}", f"{text} ", "", "nan", "5 m", "soon"):
        with pytest.raises(click.BadParameter, match="is no duration"):
            query.duration(wrong)


@pytest.mark.parametrize("columns", [120, 60, 40])
def test_tables_break_no_word(monkeypatch, capsys, columns):
    """On a terminal of any width ids and words stay whole, and lines fit where their words do."""
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((columns, 24)))
    monkeypatch.setattr(output.sys.stdout, "isatty", lambda: True, raising=False)
    id, task, text = (
        "5b0ac9f6-0e0a-4a0e-9a35-0d4c6f2f9a11",
        "proj.reports.tasks.monthly",
        "some words to be wrapped " * 4,
    )
    output.print_table(("ID", "STATE", "TASK"), [(id, "FAILURE", task), ("short", "", "")])
    output.print_table(("NAME", "TEXT"), [("a", text)])
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert all(any(word in line for line in lines) for word in (id, "FAILURE", task, "wrapped"))
    assert max(map(len, lines)) <= columns


def test_another_backend():
    """An app whose result backend is another one: one line says so, and what to do; no traceback."""
    told = run("chords", app=Celery("proj", backend="cache+memory://", set_as_current=False))
    assert told.exit_code == 1
    assert "The result backend of app 'proj' is CacheBackend, not celery-s3's" in told.output
    assert "-A proj" in told.output


def test_wrong_settings():
    """Wrong settings are told as everywhere else, without a traceback or a secret."""
    app = Celery("proj", set_as_current=False)
    app.conf.update(
        result_backend="celery_s3.backends.S3Backend", s3_backend_settings={"aws_secret_access_key": "hush-hush"}
    )
    told = run("chords", app=app)
    assert told.exit_code == 1
    assert "`bucket`" in told.output
    assert "hush" not in told.output


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.6, "1 m"),
        (61, "1 m 1 s"),
        (3_600, "1 h"),
        (11_520, "3 h 12 m"),
        (86_401, "1 d"),
        (1e6, "11 d 13 h"),
    ],
)
def test_duration(seconds, text):
    """An age is told in its largest unit and the one after it."""
    assert output.duration(seconds) == text


def test_bar():
    """A bar is full only when everything is done."""
    assert output.bar(0, 5, 5) == "0/5 ·····"
    assert output.bar(999, 1000, 4) == "999/1000 ███·"
    assert output.bar(3, 3, 2) == "3/3 ██"
    assert output.bar(0, 0, 2) == "0/0 ██"


def test_table_is_one_line_a_row_where_nobody_looks(capsys):
    """Outside of a terminal nothing is wrapped or cut, so that other programs can read it."""
    output.print_table(("ID", "STATE"), [("x" * 200, "stuck"), ("y", "sent")])
    assert capsys.readouterr().out.splitlines() == [
        "ID" + 200 * " " + "STATE",
        "x" * 200 + "  stuck",
        "y" + 201 * " " + "sent",
    ]


def test_ids_cannot_play_with_the_terminal(capsys):
    """Control characters in ids are shown, not sent."""
    output.print_table(("ID",), [("\x1b[2Jboo\n",)])
    assert capsys.readouterr().out == "ID\n\\x1b[2Jboo\\x0a\n"


def test_json_tells_times(capsys):
    """Times are ISO 8601."""
    output.print_json([{"at": datetime(2030, 1, 2, tzinfo=UTC)}])
    assert json.loads(capsys.readouterr().out) == [{"at": "2030-01-02T00:00:00+00:00"}]


def test_names_of_a_body():
    """A body is told by its tasks' names: arguments may be secret."""
    app = Celery("names", set_as_current=False)
    a, b = app.signature("proj.a", ("secret",)), app.signature("proj.b")
    assert _names(a) == "proj.a"
    assert _names(chain(a, b)) == "chain(proj.a, proj.b)"
    assert _names(group([a, b, a, b, a])) == "group(proj.a, proj.b, proj.a, …)"
    assert _names(chord([a, a], b)) == "chord(proj.a, proj.a)"


def test_dev_overwrites_no_file_of_others(tmp_path):
    """`celery s3 dev --write` leaves a configuration alone that somebody else has written, and starts nothing."""
    file = tmp_path / "celeryconfig.py"
    file.write_text("broker_url = 'sqs://'\n")
    done = run("dev", "--write", str(file))
    assert done.exit_code == 1
    assert f"{file} is there already" in done.stderr
    assert file.read_text() == "broker_url = 'sqs://'\n"


@pytest.mark.parametrize(
    ("django", "line"), [(False, "s3_backend_settings = {"), (True, "CELERY_S3_BACKEND_SETTINGS = {")]
)
def test_dev_writes_settings(tmp_path, django, line):
    """What it writes is Python with the names that Celery reads, over what it has written before."""
    file = tmp_path / "settings.py"
    for bucket in ("first", "second"):
        dev._may_write(file)
        dev._tell("S3.", {"result_backend": "celery-s3://", "s3_backend_settings": {"bucket": bucket}}, django, file)
    names = {}
    exec(file.read_text(), names)
    assert line in file.read_text()
    assert {"bucket": "second"} in names.values()
