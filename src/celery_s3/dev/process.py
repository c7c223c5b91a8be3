"""What the embedded servers share: a child process that ends with its parent, free ports, a signed request."""

from __future__ import annotations

import atexit
import hashlib
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from celery_s3.errors import CeleryS3Error

__all__ = [
    "ACCESS_KEY",
    "EmbeddedServer",
    "S3Server",
    "ServerNotStarted",
    "environment",
    "free_ports",
    "spawn",
    "stop",
    "tail",
    "wait_until",
]

#: The embedded servers' access key id. It is no word of any text: messages are told without the credentials.
ACCESS_KEY = "AKIADEVELOPMENT"
#: Run before the server: the kernel ends the child when its parent dies, even of SIGKILL (Linux).
#: The parent may have died before the call, hence the look at its pid.
_LEASH = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, int(sys.argv[2]));"
    "os.getppid() == int(sys.argv[1]) or os._exit(1); os.execv(sys.argv[3], sys.argv[3:])"
)


class ServerNotStarted(CeleryS3Error, RuntimeError):
    """An embedded server did not come up; the message names the remedy and ends with the log's tail."""


class S3Server:
    """Where an S3 server answers, and what a client needs to use it.

    Attributes:
        endpoint_url: as ``http://127.0.0.1:8333``.
        access_key, secret_key: the credentials that it accepts.
        bucket: a bucket that exists.
        region: the region that requests are signed for.
    """

    endpoint_url = ""
    access_key = ""
    secret_key = ""
    bucket = ""
    region = "us-east-1"

    def settings(self) -> dict[str, str]:
        """A value for Celery's ``s3_backend_settings``."""
        return {
            "bucket": self.bucket,
            "endpoint_url": self.endpoint_url,
            "aws_region": self.region,
            "aws_access_key_id": self.access_key,
            "aws_secret_access_key": self.secret_key,
        }

    def request(self, method: str, path: str, body: bytes = b"", timeout: float = 10.0) -> tuple[int, bytes]:
        """Send one signed request, past every client under test, and return status and body.

        ``path`` begins with the bucket, as ``/results/key``; ``timeout`` is in seconds.

        Raises:
            OSError, http.client.HTTPException: no answer came.
        """
        # botocore takes a tenth of a second to import, which whoever only starts a server need not wait for
        from celery_s3.store.clients.signing import signed_headers

        headers = signed_headers(
            method,
            self.endpoint_url + path,
            {},
            hashlib.sha256(body).hexdigest(),
            access_key=self.access_key,
            secret_key=self.secret_key,
            region=self.region,
        )
        connection = http.client.HTTPConnection(urlsplit(self.endpoint_url).netloc, timeout=timeout)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def answers(self, method: str, path: str, body: bytes = b"", timeout: float = 10.0) -> bool:
        """Whether the request is answered within ``timeout`` seconds, and with success."""
        try:
            return self.request(method, path, body, timeout)[0] in (200, 204)
        except (OSError, http.client.HTTPException):
            return False


class EmbeddedServer(S3Server):
    """One in a child process: from ``start`` or ``with`` until ``stop``, the end of the block, or of this process."""

    _process: subprocess.Popen[Any] | None = None
    _owner = 0

    @property
    def pid(self) -> int:
        """The server's process id, 0 while it is not running."""
        return self._process.pid if self._process else 0

    def start(self) -> Self:
        """Start the server and wait until it is ready.

        Raises:
            ServerNotStarted: it did not come up.
        """
        self._owner = os.getpid()
        atexit.register(self.stop)
        try:
            self._launch()
        except BaseException:
            self.stop()
            raise
        return self

    def wait(self) -> None:
        """Wait until the server ends by itself."""
        if self._process is not None:
            self._process.wait()

    def stop(self) -> None:
        """End the server, with everything temporary; a forked copy of this process leaves it alone."""
        atexit.unregister(self.stop)
        if self._owner == os.getpid():
            self._end()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _launch(self) -> None:
        """Start the process and wait until it is ready."""
        raise NotImplementedError

    def _end(self) -> None:
        """End what there is of it; it may not have come up."""
        raise NotImplementedError


def environment(**variables: str) -> dict[str, str]:
    """This process's environment without its AWS and Python warning settings, plus ``variables``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PYTHONWARNINGS"))}
    return kept | variables


def free_ports(count: int) -> list[int]:
    """Ports on 127.0.0.1 that nobody uses at this moment, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def spawn(
    command: Sequence[str], log: Path, env: Mapping[str, str], cwd: Path, parting_signal: int
) -> subprocess.Popen[bytes]:
    """Start a server whose output goes to ``log``; on Linux it gets ``parting_signal`` when this process dies.

    It has a session of its own, so that Ctrl-C reaches the program alone, which then ends its servers in order.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            [*_leash(parting_signal), *command],
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _leash(parting_signal: int) -> list[str]:
    # The kernel takes the *thread* that started the child for its parent: elsewhere than in the main thread,
    # the child would end with the thread.
    if sys.platform != "linux" or threading.current_thread() is not threading.main_thread():
        return []
    return [sys.executable, "-I", "-S", "-c", _LEASH, str(os.getpid()), str(int(parting_signal))]


def stop(process: subprocess.Popen[bytes], patience: float) -> None:
    """End a child politely, by force after ``patience`` seconds, at once when it is 0."""
    if process.poll() is None and patience:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    if process.poll() is None:
        process.kill()
    process.wait()


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes], timeout: float) -> bool:
    """Wait for a server to be ready; False when it ended or ``timeout`` seconds have passed."""
    deadline = time.monotonic() + timeout
    while process.poll() is None and time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.03)
    return False


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log, for an error message."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return "(no log)"
