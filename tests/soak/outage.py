"""S3 goes away while a worker works: is any final state lost, does a chord hang, does the worker end or stand still?

``python tests/soak/outage.py`` (``make outage``) runs every row of :data:`ROWS` and prints a line for each, which goes
to ``--output`` too; it fails where anything was lost. ``tests/acceptance/test_outage.py`` runs a small one of 40 s.

A real server that is killed with -9 and started again on the same port and data, or a proxy that hangs, dribbles,
refuses or resets; a real broker, which is cut in one row; a real worker, which gets tasks of every kind meanwhile:
plain ones, some that report progress, chords, a group that is awaited, hard time limits, killed children, revoked,
expired and unknown ones. The worker and a client of its own tell how long they stood still (``outage_watch.py``).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from celery import Celery, chord, group, states
from celery.result import AsyncResult, GroupResult
from outage_watch import Events

from celery_s3.dev.process import S3Server, environment, free_ports, spawn, stop, wait_until
from celery_s3.dev.seaweed import SeaweedFS
from celery_s3.errors import CeleryS3Error
from devtools.proxy import Proxy

TASKS = Path(__file__).with_name("outage_tasks.py")
WATCH = Path(__file__).with_name("outage_watch.py")
#: Seconds after the outage in which no final state comes any more and no task ends: then what is not there is lost. A
#: lost child's lease is the longest that may pass so.
NOTHING_COMES = 90.0


@dataclass(frozen=True)
class Load:
    """How many of each kind are sent, a third of them before the outage and the rest while it lasts.

    Of the chords half are sent before: one that is sent during it can be refused, which its sender is told.
    """

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


#: For rows that differ in the fault alone: prefork workers replace a child after every fourth task, which takes long.
SOME = Load(plain=200, chords=5, group=200)
#: What ``make test`` can afford.
SMALL = Load(plain=21, reports=3, chords=2, members=12, group=20, overruns=1, dies=1, revoked=100, expired=3, unknown=3)


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

    @property
    def name(self) -> str:
        return f"{self.kind} {self.seconds:g} s, {self.pool}, acks {'late' if self.acks_late else 'early'}"


ROWS = (
    Row("killed", 5),
    Row("killed", 5, pool="threads"),
    Row("killed", 40),
    Row("killed", 40, pool="threads"),
    Row("killed", 40, acks_late=True, load=SOME),
    Row("slow_down", 40, load=SOME),
    Row("hang", 40, load=SOME),
    Row("hang", 40, pool="threads"),
    Row("slow_body", 40, load=SOME),
    Row("dribble", 40, load=SOME),
    Row("reset", 40, load=SOME),
    Row("broker", 30, load=SOME),
    Row("broker", 30, pool="threads"),
    Row("killed", 300),
    Row("killed", 300, pool="threads"),
)


@dataclass
class Report:
    """What became of a row; times in seconds."""

    row: str
    load: Load
    sent: int = 0
    #: chords whose sender was told during the outage that they cannot begin
    refused: int = 0
    finals_lost: int = 0
    #: the first ten of them
    lost: list[str] = field(default_factory=list)
    chords_hung: int = 0
    #: tasks and chords of which a message never reached the worker: Redis hands one out before the worker has noted
    #: that it has it, and when the connection is cut in between it is nowhere
    lost_by_broker: int = 0
    bodies_twice: int = 0
    bodies_wrong: int = 0
    worker_ended: bool = False
    #: its log has a line for the beginning of the outage, and one for its end
    told: bool = False
    #: the group that somebody waits for came whole
    group_came: bool = False
    #: the longest time in which the worker's event loop, which receives tasks, did not come round; by the wall's clock
    #: and by the process's own. None while the broker is away: Celery's consumer waits for it
    longest_silence: tuple[float, float] | None = (0.0, 0.0)
    #: where it stood then, the innermost call last, where it stood for long
    stood: list[str] = field(default_factory=list)
    #: the longest ``get(timeout=1)`` of a result that was not there; by both clocks
    longest_get: tuple[float, float] = (0.0, 0.0)
    #: from the end of the outage until the last final state was there
    caught_up: float = 0.0
    seconds: float = 0.0
    #: nobody else uses the machine: what the wall's clock says is the worker's doing
    quiet: bool = True

    @property
    def problems(self) -> list[str]:
        clock = 0 if self.quiet else 1
        silence, get = (self.longest_silence or (0.0, 0.0))[clock], self.longest_get[clock]
        checks = {
            f"{self.finals_lost} final states lost: {self.lost}": bool(self.finals_lost),
            f"{self.chords_hung} chords hung": bool(self.chords_hung),
            f"{self.bodies_twice} bodies ran twice": bool(self.bodies_twice),
            f"{self.bodies_wrong} bodies had wrong values": bool(self.bodies_wrong),
            "the worker ended": self.worker_ended,
            "the log does not tell of the outage": not self.told,
            "the group that was awaited did not come": not self.group_came,
            f"nothing consumed for {silence} s": silence > 1.0,
            f"get(timeout=1) took {get} s": get > 1.6,  # 1 s, half a second for a request, and the machine
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
        self._command += ["--appendfsync", "no", "--dir", str(folder)]
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
        self.events = Events(folder / "events")
        (folder / "events").touch()
        self.report = Report(row.name, row.load)
        self.results: dict[str, str] = {}
        #: the group id and the members of each
        self.bodies: dict[str, tuple[str, set[str]]] = {}

    def run(self) -> Report:
        began = time.monotonic()
        with self.servers() as server:
            self.app = Celery("outage-client", set_as_current=False)
            conf = self.conf(server)
            self.app.conf.update(conf)
            self.worker = self.start_worker(conf)
            client = spawn(
                [sys.executable, str(WATCH)], self.folder / "client.log", self.env, self.folder, signal.SIGKILL
            )
            try:
                self.send(0, 2 if self.row.kind == "broker" else 3)
                self.wait_for(lambda: self.done() > 5, 60)
                self.outage()
                self.settle()
            finally:
                for process in (client, self.worker):
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                self.app.close()
        self.judge()
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
            # What a worker had fetched when the broker went away, it has again only after this time: kombu cannot give
            # it back then.
            "broker_transport_options": {"visibility_timeout": 30 if self.row.kind == "broker" else 3600},
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
        about = {"OUTAGE_CONF": json.dumps(conf), "OUTAGE_EVENTS": str(self.folder / "events"), "PYTHONPATH": path}
        self.env = environment(**about)
        self.log = self.folder / "worker.log"
        worker = spawn(command, self.log, self.env, self.folder, signal.SIGKILL)
        if not wait_until(lambda: " ready." in self.log.read_text(errors="replace"), worker, 60):
            raise SystemExit(f"the worker did not come up:\n{self.log.read_text()[-2000:]}")
        return worker

    def outage(self) -> None:
        """The server goes, two thirds of the work come, the server comes back."""
        if self.row.kind == "broker":  # there would be nobody to send to
            self.send(1, 2)
        began = time.monotonic()
        end = self.begin_outage()
        # who sends a chord waits for S3: the outage must not wait for him
        sender = threading.Thread(target=self.send_the_rest, daemon=True)
        if self.row.kind != "broker":
            sender.start()
        time.sleep(max(0.0, self.row.seconds - (time.monotonic() - began)))
        end()
        self.returned = time.monotonic()
        if sender.ident:
            sender.join()

    def send_the_rest(self) -> None:
        self.send(1, 3)
        self.send(2, 3)

    def begin_outage(self) -> Callable[[], object]:
        if self.row.kind == "killed":
            os.killpg(self.s3._process.pid, signal.SIGKILL)  # type: ignore[union-attr]
            self.s3._process.wait()  # type: ignore[union-attr]
            return self.s3.start
        if self.row.kind == "broker":
            self.redis.stop()
            return self.redis.start
        for verb in ("PUT", "GET"):
            # of a dribbling server that is the time for each byte
            self.proxy.fail(verb, self.row.kind, times=-1, seconds=1 if self.row.kind == "dribble" else 3600)
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
        if part == 1:
            ids = [f"revoked-{number}" for number in range(load.revoked)]
            self.app.control.revoke(ids)
            self.results |= dict.fromkeys(ids, "revoked")
            members = [sign("plain", number) for number in range(load.group)]
            awaited = group(members, app=self.app).apply_async()
            for member in awaited:
                self.expect("group", member)
            self.waiting = threading.Thread(target=self.wait_for_group, args=(awaited,), daemon=True)
            self.waiting.start()
        half = load.chords // 2
        for _ in range(half) if part == 0 else range(half, load.chords) if part == 1 else ():
            header = [sign("plain", number) for number in range(load.members)]
            body = self.app.signature("body", kwargs={"size": load.members})
            try:
                sent = chord(header, body, app=self.app).apply_async()
            except CeleryS3Error:
                self.report.refused += 1
                continue
            self.bodies[sent.id] = sent.parent.id, {member.id for member in sent.parent}
            self.expect("body", sent)

    def wait_for_group(self, awaited: GroupResult) -> None:
        while True:
            try:
                values = awaited.get(timeout=3600)
            except CeleryS3Error:  # who waits without a worker's patience is told, and asks again
                continue
            self.report.group_came = values == list(range(self.row.load.group))
            return

    def expect(self, kind: str, result: AsyncResult) -> None:
        self.results[result.id] = kind
        self.report.sent += 1

    # -- the end

    def settle(self) -> None:
        """Everything has to come to its end now: wait as long as tasks end."""
        left, done = dict(self.results), 0
        last = moved = self.returned
        while left and time.monotonic() - max(last, moved) < NOTHING_COMES and self.worker.poll() is None:
            if self.done() > done:
                done, moved = self.done(), time.monotonic()
            for id in list(left):
                with suppress(CeleryS3Error):
                    if self.app.AsyncResult(id).state in states.READY_STATES:
                        del left[id]
                        last = time.monotonic()
            time.sleep(0.2)
        self.report.caught_up = round(last - self.returned, 1)
        self.waiting.join(30)
        self.report.worker_ended = self.worker.poll() is not None
        if self.row.kind == "broker":
            lost = {id for id in left if self.never_came(id)}
            self.report.lost_by_broker = len(lost)
            left = {id: kind for id, kind in left.items() if id not in lost}
        self.report.chords_hung = len(self.bodies.keys() & left.keys())
        lost = [f"{kind} {id}" for id, kind in left.items() if id not in self.bodies]
        self.report.finals_lost, self.report.lost = len(lost), lost[:10]

    def never_came(self, id: str) -> bool:
        """Whether a message of it did not reach the worker: its own, or that of a member of its chord."""
        received = set(re.findall(r"\[([^\]]+)\] received", self.log.read_text(errors="replace")))
        if id not in self.bodies:
            return id not in received
        group, members = self.bodies[id]
        (found,) = self.app.backend.repairs.survey.chords([group], settled=True)
        return bool(members - received) or (found.state == "sent" and id not in received)

    def judge(self) -> None:
        """What was written down meanwhile."""
        events = self.events.read()
        self.report.bodies_wrong = sum(kind == "wrong" for kind, _ in events)
        ran = [about[0] for kind, about in events if kind == "ran"]
        self.report.bodies_twice = len(ran) - len(set(ran))
        longest: dict[str, tuple[float, float]] = {}
        for kind, about in events:
            if kind in ("silence", "get"):
                longest[kind] = round(about[0], 2), round(about[1], 2)
            if kind == "where" and self.row.kind != "broker":
                self.report.stood = about[0]
        log = self.log.read_text(errors="replace")
        self.report.told = self.row.kind == "broker" or all(
            line in log for line in ("it is kept, and", "S3 answers again")
        )
        self.report.longest_silence = longest.get("silence", (0.0, 0.0)) if self.row.kind != "broker" else None
        self.report.longest_get = longest.get("get", (0.0, 0.0))

    def done(self) -> int:
        return self.log.read_text(errors="replace").count(" succeeded in ")

    def wait_for(self, condition: Callable[[], bool], seconds: float) -> None:
        until = time.monotonic() + seconds
        while not condition() and time.monotonic() < until:
            time.sleep(0.1)


def trial(row: Row, keep: Path | None = None, *, quiet: bool = True) -> Report:
    """Run one row; where it fails, logs and events are kept in ``keep``.

    Arguments:
        quiet: nobody else uses the machine.
    """
    with tempfile.TemporaryDirectory(prefix="celery-s3-outage-") as scratch:
        trial = Trial(row, Path(scratch))
        trial.report.quiet = quiet
        report = trial.run()
        if report.problems and keep is not None:
            shutil.rmtree(keep, ignore_errors=True)
            shutil.copytree(scratch, keep, ignore=shutil.ignore_patterns("s3", "*.aof", "appendonlydir"))
        return report


def main() -> int:
    parser = argparse.ArgumentParser("tests/soak/outage.py", description="Take S3 away while a worker works.")
    parser.add_argument("--only", default="", help="rows whose name begins so, as 'killed 40 s, threads'")
    parser.add_argument(
        "--busy", action="store_true", help="others use the machine: judge by the processes' own clocks"
    )
    parser.add_argument("--small", action="store_true", help="little work, for a look")
    parser.add_argument("--output", type=Path, help="a file for the reports, a line of JSON each")
    arguments = parser.parse_args()
    failed = False
    for row in ROWS:
        if not row.name.startswith(arguments.only):
            continue
        if arguments.small:
            row = replace(row, load=SMALL)
        keep = (
            arguments.output.parent / f"outage-failed-{row.name.replace(', ', '-').replace(' ', '-')}"
            if arguments.output
            else None
        )
        report = trial(row, keep, quiet=not arguments.busy)
        line = json.dumps(asdict(report) | {"problems": report.problems})
        print(line, flush=True)
        if arguments.output:
            with arguments.output.open("a") as file:
                file.write(f"{line}\n")
        failed = failed or bool(report.problems)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
