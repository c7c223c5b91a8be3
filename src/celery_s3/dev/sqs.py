"""A stand-in for SQS, and a second S3 server: moto's, in a process of its own."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
from pathlib import Path
from signal import SIGKILL
from typing import Any

from .process import ACCESS_KEY, EmbeddedServer, ServerNotStarted, environment, spawn, stop, tail, wait_until

__all__ = ["SQSServer"]


class SQSServer(EmbeddedServer):
    """moto's server on a free port of 127.0.0.1: SQS for a broker, S3 without authentication::

        with SQSServer() as sqs:
            app.conf.update(sqs.broker())

    Everything is in its memory and gone when it ends: with the block, or with this process.
    A worker needs ``pycurl`` (``pip install 'kombu[sqs]'``) to consume from it.

    Arguments:
        bucket: created at the start.
        timeout: seconds to wait until it is ready.

    Raises:
        ServerNotStarted: on entering: moto is not installed, or it did not come up.
    """

    def __init__(self, *, bucket: str = "results", timeout: float = 60.0) -> None:
        self.bucket = bucket
        self.access_key = ACCESS_KEY
        self.secret_key = "not-verified"
        self._timeout = timeout
        self._scratch: Path | None = None

    @property
    def broker_url(self) -> str:
        """For Celery's ``broker_url``."""
        address = self.endpoint_url.removeprefix("http://")
        return f"sqs://{self.access_key}:{self.secret_key}@{address}//"

    @property
    def broker_transport_options(self) -> dict[str, Any]:
        """For Celery's ``broker_transport_options``."""
        return {
            "region": self.region,
            "is_secure": False,
            "wait_time_seconds": 1,
            "polling_interval": 0.05,
            "visibility_timeout": 3600,
        }

    def broker(self) -> dict[str, Any]:
        """The part of Celery's configuration that makes this server the broker."""
        return {
            "broker_url": self.broker_url,
            "broker_transport_options": self.broker_transport_options,
            "broker_connection_retry_on_startup": True,
            "worker_enable_remote_control": False,  # a fanout by SNS, which nobody needs here
        }

    def _launch(self) -> None:
        _require_moto()
        self._scratch = Path(tempfile.mkdtemp(prefix="celery-s3-moto-"))
        log, port = self._scratch / "moto.log", self._scratch / "port"
        command = [sys.executable, "-m", "celery_s3.dev.sqs", str(port)]
        self._process = spawn(command, log, environment(), Path.cwd(), SIGKILL)
        if not wait_until(port.exists, self._process, self._timeout):
            raise ServerNotStarted(f"moto's server did not come up; the end of its log:\n{tail(log)}")
        self.endpoint_url = f"http://127.0.0.1:{port.read_text()}"
        if not self.answers("PUT", f"/{self.bucket}"):
            raise ServerNotStarted(f"moto's server made no bucket; the end of its log:\n{tail(log)}")

    def _end(self) -> None:
        if self._process:
            stop(self._process, 0.0)
            self._process = None
        if self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None


def _require_moto() -> None:
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask") is None:
        raise ServerNotStarted("The SQS stand-in needs moto's server: `pip install 'celery-s3[demo]'`.")


def serve(port_file: Path) -> None:
    """Answer for ever on a free port, whose number is written to ``port_file`` once it is listening."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    app = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=MotoRequestHandler)
    partial = port_file.with_suffix(".part")
    partial.write_text(str(server.server_port))
    partial.rename(port_file)
    server.serve_forever()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
