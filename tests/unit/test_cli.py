"""The command group: what it costs, what it looks like, and how it prints."""

from __future__ import annotations

import json
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

from celery_s3.cli import COMMANDS, dev, output, s3
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
    """A command that does not exist is a usage error."""
    assert run("what").exit_code == 2


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
