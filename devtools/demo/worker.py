"""The demo's worker: a real ``celery worker``, configured by a ``celeryconfig.py`` as a user would write it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from celery_s3.dev.process import environment, spawn, stop, wait_until
from devtools import ROOT

__all__ = ["COMMAND", "Worker", "WorkerEnded"]

#: As a user would type it.
COMMAND = "celery worker --concurrency=2"


class WorkerEnded(Exception):
    """The worker is gone before its time."""


class Worker:
    """A worker with two processes in a process group of its own.

    Arguments:
        conf: Celery's settings.
        folder: an empty directory for its configuration and log.

    Attributes:
        pid: of its main process, which is also the process group's id.
    """

    def __init__(self, conf: Mapping[str, Any], folder: Path) -> None:
        lines = [f"{name} = {value!r}\n" for name, value in conf.items()]
        (folder / "celeryconfig.py").write_text("".join(lines), encoding="utf-8")
        self.log = folder / "worker.log"
        command = [sys.executable, "-m", *COMMAND.split(), "--loglevel=INFO"]
        command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        # a pool that is killed leaves temporary directories behind: they go with the folder
        env = environment(**aws, TMPDIR=str(folder), PYTHONPATH=str(ROOT))
        self._folder, self._env = folder, env
        self._process: subprocess.Popen[bytes] = spawn(command, self.log, env, folder, signal.SIGTERM)
        self.pid = self._process.pid

    def ready(self, timeout: float = 40.0) -> None:
        """Wait until it takes tasks.

        Raises:
            WorkerEnded: it ended, or did not come up in time.
        """
        if not wait_until(lambda: self.has_logged(r" ready\.$"), self._process, timeout):
            self.check()
            raise WorkerEnded(f"the worker did not come up in {timeout:.0f} seconds")

    def check(self, *_: object) -> None:
        """See that it is there; ``get()`` calls this while it waits, for some results with an argument.

        Raises:
            WorkerEnded: it is not.
        """
        if self._process.poll() is not None:
            raise WorkerEnded(f"the worker ended by itself, with exit code {self._process.returncode}")

    def has_run(self, task_id: str, timeout: float) -> bool:
        """Wait until its log says that the task succeeded; False after ``timeout`` seconds."""
        done = wait_until(lambda: self.has_logged(re.escape(f"[{task_id}] succeeded")), self._process, timeout)
        self.check()
        return done

    def runs(self, task_id: str) -> int:
        """How often its log says that the task succeeded."""
        return self.log.read_text(errors="replace").count(f"[{task_id}] succeeded")

    def told(self, *arguments: str) -> str:
        """What a command says with the worker's configuration, as ``told("s3", "show", id)``.

        Raises:
            subprocess.CalledProcessError: it failed.
        """
        command = [sys.executable, "-m", "celery", *arguments]
        done = subprocess.run(command, cwd=self._folder, env=self._env, capture_output=True, text=True, check=True)
        return done.stdout

    def has_logged(self, pattern: str) -> bool:
        """Whether a regular expression is found in the worker's log, as far as it is written."""
        return re.search(pattern, self.log.read_text(errors="replace"), re.MULTILINE) is not None

    def stop(self, patience: float = 0.0) -> None:
        """End it as a deployment does, by SIGTERM; by force where that takes longer than ``patience`` seconds."""
        stop(self._process, patience)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
