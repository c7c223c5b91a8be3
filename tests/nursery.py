"""Workers that are forked from an interpreter which has imported Celery: 0.1 s of CPU each, instead of 0.7.

``python -m celery …`` imports Celery, kombu, a transport and boto3 before it does anything: the same for
each of a hundred workers. Here one interpreter a test process does so, forks for each, and the fork runs ``celery`` as
``-m celery`` would, in a session, folder and environment of its own. What is imported makes no client, no connection
and no thread until it is used.

A pool of greenlets patches modules before others import them, and another Celery is found by ``PYTHONPATH``: these
take an interpreter of their own, by :func:`celery_s3.dev.process.spawn`.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

#: What workers of any broker import; not obstore, which is imported in the pool's children.
IMPORTED = (
    "celery.bin.celery",
    "celery.apps.worker",
    "celery.concurrency.prefork",
    "celery.worker.autoscale",
    "celery.worker.consumer",
    "celery_s3.backends.s3",
    "celery_s3.store.clients.boto3_client",
    "kombu.asynchronous.aws.sqs.connection",
    "kombu.transport.SQS",
    "kombu.transport.filesystem",
    "kombu.transport.redis",
)


class Nursery:
    """That interpreter, which ends with this process."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, __file__, str(theirs.fileno())]
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
            )
        self._line = ours.makefile("rw")
        ours.close()

    def start(self, arguments: Sequence[str], log: Path, env: Mapping[str, str], cwd: Path) -> Forked:
        """Run ``celery`` with these arguments; what it prints goes to ``log``."""
        log.touch()
        return Forked(self, self.ask(start=[*arguments], log=str(log), env=dict(env), cwd=str(cwd)))

    def ask(self, **question: Any) -> Any:
        self._line.write(f"{json.dumps(question)}\n")
        self._line.flush()
        return json.loads(self._line.readline())

    def close(self) -> None:
        self._line.close()
        self._process.wait()


class Forked:
    """A forked worker, with what the tests use of :class:`subprocess.Popen`."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._nursery = nursery

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._nursery.ask(poll=self.pid)
        return self.returncode

    def wait(self, timeout: float = float("inf")) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"worker {self.pid}", timeout)
            time.sleep(0.01)
        return code


# -- the interpreter


def serve(line: Any) -> dict[str, Any] | None:
    """Answer until the other end is closed; in a fork, return what it is to do."""
    for question in map(json.loads, line):
        if "start" in question:
            if (answer := os.fork()) == 0:
                return question
        else:
            pid, status = os.waitpid(question["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        line.write(f"{json.dumps(answer)}\n")
        line.flush()
    return None


def become(start: list[str], log: str, env: dict[str, str], cwd: str) -> None:
    """Be what an interpreter is that was started in this folder with this environment, and run ``celery``."""
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:1] = [cwd, *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.close(output)
    sys.stdout.reconfigure(line_buffering=True)
    sys.argv = ["celery", *start]
    runpy.run_module("celery", run_name="__main__", alter_sys=True)


def end_with(parent: int) -> None:
    """Have the kernel end this process when its parent does, on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def main() -> None:
    for module in IMPORTED:
        importlib.import_module(module)
    gc.freeze()
    nursery = os.getpid()
    with socket.socket(fileno=int(sys.argv[1])) as theirs, theirs.makefile("rw") as line:
        task = serve(line)
    if task:
        end_with(nursery)
        become(**task)


if __name__ == "__main__":
    main()
