"""S3 goes away while a worker works: is any final state lost, does a chord hang, does the worker end or stand still?

``python tests/soak/outage.py`` (``make outage``) runs every row of :data:`ROWS` and prints a line for each, which goes
to ``--output`` too; it fails where anything was lost. ``tests/acceptance/test_outage.py`` runs a small one of 40 s.

A real server that is killed with -9 and started again on the same port and data, or a proxy that hangs, dribbles,
refuses or resets; a real broker, which is cut in one row; a real worker, which gets tasks of every kind meanwhile:
plain ones, some that report progress, chords, a group that is awaited, hard time limits, killed children, revoked,
expired and unknown ones.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from celery import Celery, chord, group, states
from celery.exceptions import TimeoutError as NotThere
from celery.result import AsyncResult

from celery_s3.dev.process import S3Server, environment, free_ports, spawn, stop, wait_until
from celery_s3.dev.seaweed import SeaweedFS
from devtools.proxy import Proxy

TASKS = Path(__file__).with_name("outage_tasks.py")


@dataclass(frozen=True)
class Load:
    """How many of each kind are sent, a third of them before the outage and the rest while it lasts."""

    plain: int = 500
    reports: int = 20
    chords: int = 20
    members: int = 100
    group: int = 500
    overruns: int = 4
    dies: int = 4
    revoked: int = 500
    expired: int = 10
    unknown: int = 10


#: What ``make test`` can afford.
SMALL = Load(plain=60, reports=4, chords=3, members=20, group=60, overruns=1, dies=1, revoked=100, expired=3, unknown=3)


@dataclass(frozen=True)
class Row:
    """One outage.

    Attributes:
        kind: ``killed`` (the server, with -9), ``broker`` (cut), or a fault of the proxy.
        seconds: that it lasts.
    """

    kind: str
    seconds: float
    pool: str = "prefork"
    acks_late: bool = False
    load: Load = Load()


ROWS = (
    Row("killed", 5),
    Row("killed", 40),
    Row("killed", 40, acks_late=True),
    Row("killed", 40, pool="threads"),
    Row("killed", 300),
    Row("slow_down", 40),
    Row("hang", 40),
    Row("slow_body", 40),
    Row("reset", 40),
    Row("broker", 30),
)


@dataclass
class Report:
    """What became of a row; times in seconds."""

    row: str
    sent: int = 0
    finals_lost: int = 0
    #: the first ten of them
    lost: list[str] = field(default_factory=list)
    chords_hung: int = 0
    bodies_twice: int = 0
    bodies_wrong: int = 0
    worker_ended: bool = False
    #: the longest time in which the worker's main process answered no ping
    longest_silence: float = 0.0
    #: the longest ``get(timeout=1)`` of a result that was not there
    longest_get: float = 0.0
    #: from the end of the outage until the last final state was there
    caught_up: float = 0.0
    seconds: float = 0.0
    #: nobody else uses the machine, so that the two longest times are those of the worker
    quiet: bool = True

    @property
    def problems(self) -> list[str]:
        silence, get = (1.0, 1.5) if self.quiet else (5.0, 5.0)
        checks = {
            f"{self.finals_lost} final states lost: {self.lost}": bool(self.finals_lost),
            f"{self.chords_hung} chords hung": bool(self.chords_hung),
            f"{self.bodies_twice} bodies ran twice": bool(self.bodies_twice),
            f"{self.bodies_wrong} bodies had wrong values": bool(self.bodies_wrong),
            "the worker ended": self.worker_ended,
            f"nothing consumed for {self.longest_silence} s": self.longest_silence > silence,
            f"get(timeout=1) took {self.longest_get} s": self.longest_get > get,
        }
        return [problem for problem, is_one in checks.items() if is_one]


class Redis:
    """A broker that keeps what it has while it is away."""

    def __init__(self, folder: Path) -> None:
        binary = shutil.which("redis-server")
        if binary is None:
            raise SystemExit("redis-server is not installed")
        (port,) = free_ports(1)
        self.url = f"redis://127.0.0.1:{port}/0"
        self._folder = folder
        self._command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes"]
        self._command += ["--appendfsync", "always", "--dir", str(folder)]
        self.start()

    def start(self) -> None:
        self._process = spawn(self._command, self._folder / "redis.log", environment(), self._folder, signal.SIGKILL)
        host_up = "import redis,sys; redis.Redis.from_url(sys.argv[1]).ping()"
        ready = lambda: not subprocess.run([sys.executable, "-c", host_up, self.url], capture_output=True).returncode  # noqa: E731
        if not wait_until(ready, self._process, 15):
            raise SystemExit("redis-server did not come up")

    def stop(self) -> None:
        stop(self._process, 0)


class Trial:
    """One row, from the start of its servers to its report.

    Arguments:
        folder: an empty one, for data, logs and events.
    """

    def __init__(self, row: Row, folder: Path) -> None:
        self.row = row
        self.folder = folder
        self.events = folder / "events"
        self.events.touch()
        self.report = Report(f"{row.kind} {row.seconds:g} s, {row.pool}, acks {'late' if row.acks_late else 'early'}")
        self.results: dict[str, str] = {}
        self.bodies: dict[str, int] = {}
        self.stopped = threading.Event()

    def run(self) -> Report:
        began = time.monotonic()
        with self.servers() as server:
            self.app = Celery("outage-client", set_as_current=False)
            conf = self.conf(server)
            self.app.conf.update(conf)
            self.worker = self.start_worker(conf)
            watchers = [threading.Thread(target=watch, daemon=True) for watch in (self.ping, self.ask)]
            try:
                self.send(0, 2 if self.row.kind == "broker" else 3)
                self.wait_for(lambda: self.done() > 5, 60)
                for watcher in watchers:
                    watcher.start()
                self.outage()
                self.settle()
            finally:
                self.stopped.set()
                with suppress(ProcessLookupError):
                    os.killpg(self.worker.pid, signal.SIGKILL)
                self.worker.wait()
                self.app.close()
        self.report.seconds = round(time.monotonic() - began, 1)
        return self.report

    # -- the parts

    @contextmanager
    def servers(self) -> Iterator[S3Server]:
        (port,) = free_ports(1)
        self.redis = Redis(self.folder)
        data = self.folder / "s3"
        data.mkdir()
        self.s3 = SeaweedFS(data, port=port)
        with self.s3:
            try:
                with Proxy(self.s3) as self.proxy:
                    yield self.proxy
            finally:
                self.redis.stop()

    def conf(self, server: S3Server) -> dict[str, object]:
        return {
            "broker_url": self.redis.url,
            "broker_connection_retry_on_startup": True,
            "broker_transport_options": {"visibility_timeout": 3600},
            "result_backend": "celery_s3.backends.S3Backend",
            "s3_backend_settings": server.settings() | {"read_timeout": 2, "connect_timeout": 1},
            "task_track_started": True,
            "task_acks_late": self.row.acks_late,
            "worker_max_tasks_per_child": 4,
            "worker_prefetch_multiplier": 4,
        }

    def start_worker(self, conf: dict[str, object]) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "celery", "-A", TASKS.stem, "worker", "--loglevel=INFO", "--without-gossip"]
        command += ["--without-mingle", "--without-heartbeat", f"--pool={self.row.pool}", "--concurrency=4"]
        path = os.pathsep.join([str(TASKS.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        env = environment(OUTAGE_CONF=json.dumps(conf), OUTAGE_EVENTS=str(self.events), PYTHONPATH=path)
        self.log = self.folder / "worker.log"
        worker = spawn(command, self.log, env, self.folder, signal.SIGKILL)
        if not wait_until(lambda: " ready." in self.log.read_text(errors="replace"), worker, 60):
            raise SystemExit(f"the worker did not come up:\n{self.log.read_text()[-2000:]}")
        return worker

    def outage(self) -> None:
        """The server goes, two thirds of the work come, the server comes back."""
        if self.row.kind == "broker":  # there would be nobody to send to
            self.send(1, 2)
        began = time.monotonic()
        end = self.begin_outage()
        if self.row.kind != "broker":
            self.send(1, 3)
            self.send(2, 3)
        time.sleep(max(0.0, self.row.seconds - (time.monotonic() - began)))
        end()
        self.returned = time.monotonic()

    def begin_outage(self) -> Callable[[], object]:
        if self.row.kind == "killed":
            os.killpg(self.s3._process.pid, signal.SIGKILL)  # type: ignore[union-attr]
            self.s3._process.wait()  # type: ignore[union-attr]
            return self.s3.start
        if self.row.kind == "broker":
            self.redis.stop()
            return self.redis.start
        for verb in ("PUT", "GET"):
            self.proxy.fail(verb, self.row.kind, times=-1, seconds=3600)
        return self.proxy.restore

    # -- the work

    def send(self, part: int, of: int) -> None:
        """A share of everything that the load has."""
        load = self.row.load
        share = lambda count: range(part * count // of, (part + 1) * count // of)  # noqa: E731
        sign = lambda name, *args, **options: self.app.signature(name, args=args, immutable=True, options=options)  # noqa: E731
        for number in share(load.plain):
            self.expect("plain", sign("plain", number).apply_async())
        for number in share(load.reports):
            self.expect("reports", sign("reports", number).apply_async())
        prefork = self.row.pool == "prefork"
        for _ in share(load.overruns if prefork else 0):
            self.expect("overruns", sign("overruns").apply_async())
        for _ in share(load.dies if prefork else 0):
            self.expect("dies", sign("dies").apply_async())
        for _ in share(load.expired):
            self.expect("expired", sign("plain", 0).apply_async(expires=-60))
        for _ in share(load.unknown):
            self.expect("unknown", self.app.send_task("nobody.knows"))
        for _ in share(load.chords):
            header = [sign("plain", number) for number in range(load.members)]
            body = self.app.signature("body", kwargs={"size": load.members})
            result = chord(header, body, app=self.app)
            try:
                sent = result.apply_async()
            except Exception:
                continue
            self.bodies[sent.id] = load.members
            self.expect("body", sent)
        if part == 1:
            ids = [f"revoked-{number}" for number in range(load.revoked)]
            self.app.control.revoke(ids)
            for id in ids:
                self.results[id] = "revoked"
            members = [sign("plain", number) for number in range(load.group)]
            for member in group(members, app=self.app).apply_async():
                self.expect("group", member)

    def expect(self, kind: str, result: AsyncResult) -> None:
        self.results[result.id] = kind
        self.report.sent += 1

    # -- what is seen meanwhile

    def ping(self) -> None:
        """How long the worker's main process is silent; not measured while the broker is away."""
        last = time.monotonic()
        while not self.stopped.is_set():
            with suppress(Exception):
                if self.app.control.ping(timeout=0.5, limit=1):
                    now = time.monotonic()
                    if self.row.kind != "broker":
                        self.report.longest_silence = max(self.report.longest_silence, round(now - last, 2))
                    last = now
            self.stopped.wait(0.1)
        if self.row.kind != "broker":
            self.report.longest_silence = max(self.report.longest_silence, round(time.monotonic() - last, 2))

    def ask(self) -> None:
        """How long ``get(timeout=1)`` takes for what is not there."""
        while not self.stopped.is_set():
            began = time.monotonic()
            with suppress(NotThere, Exception):
                self.app.AsyncResult("never-sent").get(timeout=1)
            self.report.longest_get = max(self.report.longest_get, round(time.monotonic() - began, 2))
            self.stopped.wait(0.5)

    # -- the end

    def settle(self) -> None:
        """Everything has to come to its end now; a killed child's lease is the longest that may pass."""
        left = dict(self.results)
        until = self.returned + 180
        while left and time.monotonic() < until and self.worker.poll() is None:
            for id in list(left):
                with suppress(Exception):
                    if self.app.AsyncResult(id).state in states.READY_STATES:
                        del left[id]
                        self.report.caught_up = round(time.monotonic() - self.returned, 1)
            time.sleep(0.2)
        self.report.worker_ended = self.worker.poll() is not None
        self.report.chords_hung = sum(id in self.bodies for id in left)
        lost = [f"{kind} {id}" for id, kind in left.items() if id not in self.bodies]
        self.report.finals_lost, self.report.lost = len(lost), lost[:10]
        ran = [(kind, name) for _, kind, name in map(json.loads, self.events.read_text().splitlines())]
        self.report.bodies_wrong = sum(kind == "wrong" for kind, _ in ran)
        names = [name for kind, name in ran if kind == "ran"]
        self.report.bodies_twice = len(names) - len(set(names))

    def done(self) -> int:
        return self.log.read_text(errors="replace").count(" succeeded in ")

    def wait_for(self, condition: Callable[[], bool], seconds: float) -> None:
        until = time.monotonic() + seconds
        while not condition() and time.monotonic() < until:
            time.sleep(0.1)


def trial(row: Row, keep: Path | None = None) -> Report:
    """Run one row; where it fails, logs and events are kept in ``keep``."""
    with tempfile.TemporaryDirectory(prefix="celery-s3-outage-") as scratch:
        report = Trial(row, Path(scratch)).run()
        if report.problems and keep is not None:
            shutil.copytree(scratch, keep, ignore=shutil.ignore_patterns("s3", "*.aof", "appendonlydir"))
        return report


def main() -> int:
    parser = argparse.ArgumentParser("tests/soak/outage.py", description="Take S3 away while a worker works.")
    parser.add_argument("--only", default="", help="rows whose name begins so, as 'killed 40'")
    parser.add_argument("--small", action="store_true", help="little work, for a look")
    parser.add_argument("--output", type=Path, help="a file for the reports, a line of JSON each")
    arguments = parser.parse_args()
    failed = False
    for row in ROWS:
        if not f"{row.kind} {row.seconds:g}".startswith(arguments.only):
            continue
        if arguments.small:
            row = Row(row.kind, row.seconds, row.pool, row.acks_late, SMALL)
        keep = arguments.output.parent / f"outage-failed-{int(time.time())}" if arguments.output else None
        report = trial(row, keep)
        line = json.dumps(asdict(report) | {"problems": report.problems})
        print(line, flush=True)
        if arguments.output:
            with arguments.output.open("a") as file:
                file.write(f"{line}\n")
        failed = failed or bool(report.problems)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
