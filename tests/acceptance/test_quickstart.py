"""docs/quickstart.md, step by step: what it has one paste runs as it stands there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from celery import Celery

from celery_s3.dev.process import ServerNotStarted
from celery_s3.dev.seaweed import find_weed
from devtools import ROOT

PAGE = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")


def block(language: str, mark: str) -> str:
    """The one snippet of a language that holds ``mark``."""
    (found,) = (one for one in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if mark in one)
    return found


def started(line: str, folder: Path, **options: object) -> subprocess.Popen[str]:
    """A line of the shell that begins with `celery`, run by this interpreter."""
    command = [sys.executable, "-m", *line.removeprefix("$ ").split()]
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, text=True, **options)


def test_without_an_account(tmp_path: Path) -> None:
    """The command writes the settings for its servers, a worker takes tasks there, and the client gets five."""
    try:
        find_weed()
    except ServerNotStarted as exc:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(exc))
    (tmp_path / "tasks.py").write_text(block("python", "@app.task"))
    line, *printed = block("console", "s3 dev").splitlines()
    servers = started(f"{line} --port 0", tmp_path)
    worker = None
    try:
        assert servers.stdout is not None
        told = [servers.stdout.readline() for _ in printed]
        assert [re.sub(r"\d{4,}", "0000", each.strip()) for each in told] == [
            re.sub(r"\d{4,}", "0000", each) for each in printed
        ]
        with (tmp_path / "worker.log").open("w") as log:
            command = block("console", "worker").strip()
            worker = started(f"{command} --concurrency=1", tmp_path, stderr=log)
        typed = [each.removeprefix(">>> ") for each in block("console", ">>>").splitlines() if each.startswith(">>> ")]
        *first, last = typed
        client = "\n".join([*first, f"print({last.replace('timeout=10', 'timeout=60')})"])
        said = subprocess.run([sys.executable, "-c", client], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert said.stdout == "5\n", said.stderr + (tmp_path / "worker.log").read_text()
    finally:
        if worker:
            worker.terminate()
            worker.communicate(timeout=30)
        servers.send_signal(signal.SIGINT)
        servers.communicate(timeout=30)
    assert servers.returncode == 0


def test_the_settings_for_aws_are_read() -> None:
    """The other configuration of the page is one that Celery and this backend accept."""
    names: dict[str, object] = {}
    exec(block("python", "result_backend"), names)
    app = Celery("quickstart", set_as_current=False)
    app.conf.update({name: value for name, value in names.items() if not name.startswith("__")})
    assert app.backend.as_uri() == "celery-s3://my-bucket/results/?region=eu-central-1"
    app.close()
