"""The servers, and what an application needs to use each backend on them."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from signal import SIGKILL
from typing import Any, Self

from celery_s3.dev.process import S3Server, environment, free_ports, spawn, stop, tail, wait_until
from celery_s3.dev.seaweed import SeaweedFS
from celery_s3.dev.sqs import SQSServer
from devtools.proxy import Proxy, Record
from devtools.rabbitmq import installed, rabbitmq

from .rows import CONTENDERS

__all__ = ["Stage"]

_ROOT = Path(__file__).parent.parent

Conf = dict[str, Any]


class Stage:
    """SeaweedFS behind the proxy, Redis if there is one, and a broker: Redis again, else moto's SQS."""

    def __init__(self) -> None:
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        with self._exit:
            self.server = self._exit.enter_context(SeaweedFS())
            self.proxy = self._exit.enter_context(Proxy(self.server))
            self.folder = Path(self._exit.enter_context(tempfile.TemporaryDirectory()))
            self.redis_url = self._redis()
            self.broker = self._broker()
            #: the brokers by which notices are tried, by their names
            self.brokers = {
                "redis": {"broker_url": self.redis_url} if self.redis_url else {},
                "rabbitmq": self._rabbitmq(),
                "sqs": self.broker if not self.redis_url else self._exit.enter_context(SQSServer()).broker(),
            }
            self._exit = self._exit.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    @property
    def contenders(self) -> list[str]:
        """The keys of those that can run here."""
        return [key for key in CONTENDERS if key != "redis" or self.redis_url]

    # -- applications

    def conf(self, contender: str, *, straight: bool = False) -> Conf:
        """The configuration of an application; ``straight`` at the server, past the proxy.

        Redis is always asked directly: it stands for a store without S3's round trip.
        """
        server = self.server if straight else self.proxy
        match contender:
            case "ours":
                settings = server.settings() | {"base_path": "ours"}
                return {"result_backend": "celery_s3.backends.S3Backend", "s3_backend_settings": settings}
            case "celery":
                return {"result_backend": "s3"} | _celerys_own(server)
            case _:
                return {"result_backend": self.redis_url}

    def client(self, module: str, job: str, order: Conf) -> subprocess.Popen[str]:
        """Start a client process, as ``python -m benchmarks.MODULE JOB``.

        With bytecode, as an installed package has it: where this machine keeps none, the first client writes it.
        """
        env = environment(PYTHONPYCACHEPREFIX=str(self.folder / "bytecode"))
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.{module}", job],
            env=env,
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(order))
        process.stdin.close()
        process.stdin = None
        return process

    def worker(self, contender: str, times: Path, *, late: bool) -> subprocess.Popen[bytes]:
        """Start a prefork worker with two processes that notes in ``times`` when tasks begin and end.

        Arguments:
            late: tasks are acknowledged when they have run.
        """
        command = [sys.executable, "-m", "celery", "-A", "benchmarks.tasks", "worker", "--concurrency=2"]
        command += ["--pool=prefork", "--without-gossip", "--without-mingle", "--without-heartbeat"]
        conf = self.conf(contender) | self.broker | {"task_acks_late": late}
        env = environment(BENCHMARK_CONF=json.dumps(conf), BENCHMARK_TIMES=str(times))
        return spawn(command, times.with_suffix(".log"), env, _ROOT, SIGKILL)

    # -- what passed the proxy

    def requests(self, contender: str, windows: list[tuple[float, float]]) -> list[Counter[str]]:
        """A contender's requests in each span of time (seconds since the epoch), by operation."""
        if contender == "redis":
            return []
        own = [record for record in self.proxy.records() if f"/{contender}/" in record.target]
        return [_count(own, begin, end) for begin, end in windows]

    def stored(self, contender: str) -> list[float]:
        """When each write of a result came by since the last reset, in seconds since the epoch."""
        writes = (one for one in self.proxy.records() if one.method == "PUT" and "celery-task-meta-" in one.target)
        return sorted(one.time for one in writes if f"/{contender}/" in one.target)

    # -- servers

    def _redis(self) -> str:
        binary = shutil.which("redis-server")
        if binary is None:
            return ""
        (port,) = free_ports(1)
        log = self.folder / "redis.log"
        command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        process = spawn(command, log, environment(), self.folder, SIGKILL)
        self._exit.callback(stop, process, 0.0)
        if not wait_until(lambda: _listens(port), process, 10.0):
            raise RuntimeError(f"redis-server did not come up:\n{tail(log)}")
        return f"redis://127.0.0.1:{port}/0"

    def _rabbitmq(self) -> Conf:
        return {"broker_url": self._exit.enter_context(rabbitmq(self.folder))} if installed() else {}

    def _broker(self) -> Conf:
        if self.redis_url:
            return {"broker_url": self.redis_url.removesuffix("0") + "1"}
        return self._exit.enter_context(SQSServer()).broker()


def _celerys_own(server: S3Server) -> Conf:
    return {
        "s3_bucket": server.bucket,
        "s3_base_path": "celery/",
        "s3_region": server.region,
        "s3_endpoint_url": server.endpoint_url,
        "s3_access_key_id": server.access_key,
        "s3_secret_access_key": server.secret_key,
    }


def _count(records: list[Record], begin: float, end: float) -> Counter[str]:
    return Counter(record.kind for record in records if begin <= record.time <= end)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
