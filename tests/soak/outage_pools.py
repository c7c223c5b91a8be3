"""What an outage of S3 does with each pool, and with tasks that are acknowledged early and late: `docs/operations.md`.

``python tests/soak/outage_pools.py`` (``make outage-pools``) prints a line of JSON for each, and fails where a result
is lost that must not be. Each outage is one of a real server, killed with -9, under a worker of each kind at once;
meanwhile each gets a few tasks.

An hour is too long to be tried: in the last outage but one ``outage_patience`` and the broker's ``visibility_timeout``
are 30 s instead of an hour, and the outage lasts 45 s. In the last one all workers are killed with -9 in the middle of
it, and others started when it is over; ``visibility_timeout`` is 30 s there too.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from celery import Celery, states
from outage import TASKS, Redis
from outage_watch import Events

from celery_s3.dev.process import environment, free_ports, spawn, wait_until
from celery_s3.dev.seaweed import SeaweedFS
from celery_s3.errors import CeleryS3Error

POOLS = ("prefork", "threads", "gevent", "solo")
#: Tasks that a worker gets during the outage, and how many it runs at a time; the solo pool runs one.
TASKS_SENT, AT_ONCE = 6, 2
#: Seconds in which all has to come after an outage.
SOON = 90.0


@dataclass(frozen=True)
class Outage:
    """One outage; times in seconds."""

    name: str
    seconds: float
    patience: float = 3600.0
    visibility: float = 3600.0
    killed: bool = False


OUTAGES = (
    Outage("5 s", 5),
    Outage("1 min", 60),
    Outage("5 min", 300),
    Outage("longer than outage_patience", 45, patience=30, visibility=30),
    Outage("1 min, worker killed with -9", 60, visibility=30, killed=True),
)


@dataclass
class Row:
    """What became of one worker's tasks; times in seconds."""

    outage: str
    pool: str
    acks: str
    sent: int = TASKS_SENT
    #: began before the outage was over
    begun_meanwhile: int = 0
    #: still without a final state at the end
    lost: int = 0
    #: whose final state is not the task's own: the worker tells that its result could not be stored
    failed: int = 0
    #: runs beyond one for each task
    run_again: int = 0
    worker_ended: bool = False
    #: from the end of the outage to the last result
    caught_up: float = 0.0


class Kind:
    """A pool and a way to acknowledge: its app, and its worker."""

    def __init__(self, outage: Outage, pool: str, acks: str, conf: dict[str, Any], folder: Path) -> None:
        self.row = Row(outage.name, pool, acks)
        self._folder = folder / f"{pool}-{acks}"
        self._folder.mkdir()
        self._events = Events(self._folder / "events")
        (self._folder / "events").touch()
        self._conf = {
            **conf,
            "task_acks_late": acks == "late",
            "task_default_queue": f"{pool}-{acks}",
            "broker_transport_options": {"visibility_timeout": outage.visibility},
        }
        self.app = Celery("outage-pools", set_as_current=False)
        self.app.conf.update(self._conf)
        self._runs = 0
        self.results: list[Any] = []

    def start(self) -> None:
        self._runs += 1
        self.log = self._folder / f"worker-{self._runs}.log"
        pool = self.row.pool
        command = [sys.executable, "-m", "celery", "-A", TASKS.stem, "worker", "--loglevel=INFO", f"--pool={pool}"]
        command += [f"--concurrency={AT_ONCE}", "--without-gossip", "--without-mingle", "--without-heartbeat"]
        path = os.pathsep.join([str(TASKS.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        about = {"OUTAGE_CONF": json.dumps(self._conf), "OUTAGE_EVENTS": str(self._folder / "events")}
        env = environment(**about, PYTHONPATH=path)
        self.worker = spawn([*command, "-n", f"{pool}@%h"], self.log, env, self._folder, signal.SIGKILL)

    def ready(self) -> None:
        if not wait_until(lambda: " ready." in self.log.read_text(errors="replace"), self.worker, 120):
            raise SystemExit(f"the worker did not come up:\n{self.log.read_text()[-2000:]}")

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.worker.pid, signal.SIGKILL)
        self.worker.wait()

    def send(self) -> Any:
        return self.app.send_task("noted")

    def runs(self) -> list[str]:
        return [about[0] for kind, about in self._events.read() if kind == "began"]

    def is_done(self, result: Any) -> bool:
        try:
            return result.state in states.READY_STATES
        except CeleryS3Error:
            return False

    def end(self) -> None:
        self.kill()
        self.app.close()


def trial(outage: Outage) -> list[Row]:
    """One outage, under a worker of each kind."""
    with tempfile.TemporaryDirectory(prefix="celery-s3-outage-") as scratch, ExitStack() as stack:
        folder = Path(scratch)
        (port,) = free_ports(1)
        (folder / "s3").mkdir()
        redis = Redis(folder)
        stack.callback(redis.stop)
        server = stack.enter_context(SeaweedFS(folder / "s3", port=port))
        settings = server.settings() | {"read_timeout": 2, "connect_timeout": 1, "outage_patience": outage.patience}
        conf = {
            "broker_url": redis.url,
            "result_backend": "celery_s3.backends.S3Backend",
            "s3_backend_settings": settings,
            "worker_prefetch_multiplier": 4,
        }
        kinds = [Kind(outage, pool, acks, conf, folder) for pool in POOLS for acks in ("early", "late")]
        for kind in kinds:
            stack.callback(kind.end)
            kind.start()
        for kind in kinds:
            kind.ready()
            kind.send().get(timeout=60)
        os.killpg(server._process.pid, signal.SIGKILL)  # type: ignore[union-attr]
        server._process.wait()  # type: ignore[union-attr]
        began = time.monotonic()
        for kind in kinds:
            kind.results = [kind.send() for _ in range(TASKS_SENT)]
        if outage.killed:
            time.sleep(outage.seconds / 2)
            for kind in kinds:
                kind.kill()
        time.sleep(max(0.0, outage.seconds - (time.monotonic() - began)))
        for kind in kinds:
            kind.row.begun_meanwhile = len(set(kind.runs()) & {result.id for result in kind.results})
        server.start()
        back = time.monotonic()
        for kind in kinds if outage.killed else ():
            kind.start()
        settle(kinds, back)
        return [kind.row for kind in kinds]


def settle(kinds: list[Kind], back: float) -> None:
    left = {kind: list(kind.results) for kind in kinds}
    while any(left.values()) and time.monotonic() - back < SOON:
        for kind, results in left.items():
            waiting = [result for result in results if not kind.is_done(result)]
            if results and not waiting:
                kind.row.caught_up = round(time.monotonic() - back, 1)
            left[kind] = waiting
        time.sleep(0.2)
    for kind, results in left.items():
        kind.row.lost = len(results)
        kind.row.failed = sum(kind.app.AsyncResult(result.id).state == states.FAILURE for result in kind.results)
        ran = kind.runs()[1:]
        kind.row.run_again = len(ran) - len(set(ran))
        kind.row.worker_ended = kind.worker.poll() is not None


def main() -> int:
    parser = argparse.ArgumentParser("tests/soak/outage_pools.py", description="What an outage does with each pool.")
    parser.add_argument("--only", default="", help="outages whose name begins so, as '5 min'")
    parser.add_argument("--output", type=Path, help="a file for the rows, a line of JSON each")
    arguments = parser.parse_args()
    failed = False
    for outage in OUTAGES:
        if not outage.name.startswith(arguments.only):
            continue
        for row in trial(outage):
            line = json.dumps(asdict(row))
            print(line, flush=True)
            if arguments.output:
                with arguments.output.open("a") as file:
                    file.write(f"{line}\n")
            may_lose = outage.killed or outage.patience < outage.seconds
            failed = failed or row.worker_ended or (row.lost > 0 and not may_lose)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
