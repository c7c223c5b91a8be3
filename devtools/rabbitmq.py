"""A RabbitMQ for tests and benchmarks, where `rabbitmq-server` is installed; it takes ten seconds to start."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from celery_s3.dev.process import environment, free_ports, spawn, stop, tail, wait_until

__all__ = ["installed", "rabbitmq"]

#: The one on the path is a script for the user of the system's own server.
_BINARY = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


def installed() -> bool:
    """Whether there is one here."""
    return _BINARY.exists()


@contextmanager
def rabbitmq(folder: Path) -> Iterator[str]:
    """The URL of a RabbitMQ that keeps everything in ``folder``, and ends with the block.

    Raises:
        RuntimeError: it did not come up.
    """
    port, own, names = free_ports(3)
    variables = environment(
        HOME=str(folder),
        RABBITMQ_MNESIA_BASE=str(folder / "mnesia"),
        RABBITMQ_LOG_BASE=str(folder / "log"),
        RABBITMQ_NODENAME=f"celery-s3-{port}@localhost",
        RABBITMQ_NODE_PORT=str(port),
        RABBITMQ_NODE_IP_ADDRESS="127.0.0.1",
        RABBITMQ_DIST_PORT=str(own),
        ERL_EPMD_PORT=str(names),
        ERL_EPMD_ADDRESS="127.0.0.1",
    )
    log = folder / "rabbitmq.log"
    process = spawn([str(_BINARY)], log, variables, folder, signal.SIGTERM)
    try:
        if not wait_until(lambda: _listens(port), process, 60.0):
            raise RuntimeError(f"rabbitmq-server did not come up:\n{tail(log)}")
        yield f"amqp://guest:guest@127.0.0.1:{port}//"
    finally:
        stop(process, 10.0)
        epmd = shutil.which("epmd")
        if epmd is not None:  # the server's own daemon outlives it
            subprocess.run([epmd, "-kill"], env=variables, capture_output=True, check=False)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
