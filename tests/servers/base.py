"""What a server's file says of it, and what starts it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL

from celery_s3.dev.process import (
    EmbeddedServer,
    ServerNotStarted,
    environment,
    free_ports,
    spawn,
    stop,
    tail,
    wait_until,
)

__all__ = ["SERVERS", "Kind", "RealServer", "find", "first_line"]

#: The virtualenv in which `make` puts the servers that pip installs: apart, since ministack pins an older botocore.
SERVERS = Path(sys.prefix) / "servers"


@dataclass(frozen=True, slots=True)
class Kind:
    """A server that the battery runs on.

    Attributes:
        title: its name in the tables.
        install: how it comes to a machine, in a few words.
        make: one that is not started yet.
        version: asks what is installed here.
        lacks: the capabilities of `doctor --thorough` that it lacks → where that is reported, a URL, if anywhere. They
            are expected: on the day when it has one, a test fails.
        unsteady: those of them, and of ``failing``, that only show now and then, as the outcome of a race: no test
            expects them, nor the opposite.
        failing: tests that are expected to fail, as ``test_a``, ``test_a[param]``, ``test_module::test_a`` → reason.
        advice: settings or precautions to use with it, for the table.
    """

    name: str
    title: str
    install: str
    make: Callable[[], EmbeddedServer]
    version: Callable[[], str]
    lacks: Mapping[str, str] = field(default_factory=dict)
    unsteady: frozenset[str] = frozenset()
    failing: Mapping[str, str] = field(default_factory=dict)
    advice: str = ""

    def expected(self, module: str, test: str, parameters: Mapping[str, object]) -> str:
        """Why a test is expected to fail here; empty where it is not."""
        names = [test, f"{module}::{test}"]
        names += [f"{name}[{value}]" for name in names for value in parameters.values()]
        return next((self.failing[name] for name in names if name in self.failing), "")


class RealServer(EmbeddedServer):
    """A server in one or more child processes, with everything that it writes in one temporary folder.

    What inherits says in ``_run`` what is started, by :meth:`_child`; the first port of :attr:`ports` is S3's.
    """

    bucket = "results"
    access_key = "AKIDOFTHESERVER1"
    secret_key = "secret-of-the-server-1"
    #: How many ports it listens on.
    port_count = 1
    #: Seconds that it may take to be ready.
    patience = 30.0

    def __init__(self) -> None:
        self.folder = Path()
        self.ports: list[int] = []
        self._children: list[subprocess.Popen[bytes]] = []

    def _run(self) -> None:
        raise NotImplementedError

    def _launch(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="celery-s3-server-"))
        self.ports = free_ports(self.port_count)
        self.endpoint_url = f"http://127.0.0.1:{self.ports[0]}"
        self._run()
        if not wait_until(lambda: self.answers("PUT", f"/{self.bucket}", timeout=5.0), self._children[-1], 30.0):
            raise ServerNotStarted(f"{type(self).__name__} made no bucket:\n{self._tails()}")

    def _child(
        self,
        command: Sequence[str],
        ready: Callable[[], bool] | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """Start a process and wait until it is ready, which is by itself when S3 answers anything at all."""
        log = self.folder / f"{len(self._children)}-{Path(command[0]).name}.log"
        env = environment(HOME=str(self.folder), **(variables or {}))
        process = spawn(command, log, env, self.folder, SIGKILL)
        self._process = process
        self._children.append(process)
        if not wait_until(ready or self._listens, process, self.patience):
            raise ServerNotStarted(f"{command[0]} did not come up; the end of its log:\n{tail(log)}")

    def _once(self, *command: str) -> None:
        """Run a command to its end."""
        env = environment(HOME=str(self.folder))
        done = subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ServerNotStarted(f"{' '.join(command)} failed:\n{done.stdout[-1000:]}{done.stderr[-1000:]}")

    def _listens(self) -> bool:
        try:
            return self.request("GET", "/", timeout=2.0)[0] < 500
        except OSError:
            return False

    def _tails(self) -> str:
        return "\n".join(f"{log.name}:\n{tail(log)}" for log in sorted(self.folder.glob("*.log")))

    def _end(self) -> None:
        for process in reversed(self._children):
            stop(process, 0.0)
        self._children, self._process = [], None
        if self.folder != Path():
            shutil.rmtree(self.folder, ignore_errors=True)


def find(binary: str, install: str) -> str:
    """The path of a server's program: where `make` has put it, else on PATH.

    Raises:
        ServerNotStarted: it is not installed.
    """
    found = shutil.which(binary, path=f"{SERVERS / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        raise ServerNotStarted(f"`{binary}` is not installed: {install}")
    return found


def first_line(*command: str) -> str:
    """The first line that a program says."""
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    return (told.stdout or told.stderr).splitlines()[0]
