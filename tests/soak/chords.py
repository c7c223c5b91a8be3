"""Workers are killed while chords run: is every body sent, and none twice but in the window that is documented?

``python tests/soak/chords.py --rounds 20`` (``make soak``). It prints a line per round, writes it to ``--output`` too,
and fails if a body was never sent, was sent twice without the death that explains it, had wrong values, or was failed;
or if a chord stood still that had all its messages.

Two workers with two processes each; every few seconds one of them is killed with all its children and replaced, or one
of its children alone. Messages come again after ``VISIBLE`` seconds (``acks_late``). After the last kill every chord
has to come to its end within the lease and a redelivery.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

from celery import Celery, Signature, chain, chord
from celery.result import AsyncResult

from celery_s3.dev.process import S3Server, environment, free_ports, spawn, stop, wait_until
from celery_s3.dev.seaweed import SeaweedFS

TASKS = Path(__file__).with_name("chaos_tasks.py")
#: Seconds.
LEASE = 6.0
#: As with any broker's default, longer than the lease.
VISIBLE = 8
#: Longer than a worker that is not killed needs to go on with a lost child's chord.
SOON = 3.0
#: Redis is looked through for messages to deliver again as often as that.
RESTORED = 2
#: A child is replaced after so many tasks.
RECYCLED = 40
#: Seconds for which the broker is cut off now and then.
CUT = 2.0


@dataclass
class Report:
    """What became of a round; times in seconds."""

    chords: int = 0
    members: int = 0
    kills: int = 0
    kills_of_children: int = 0
    #: the broker cut off for a moment
    cuts: int = 0
    #: chords whose applier came again, as a redelivered task's
    applied_again: int = 0
    #: chords whose header was generated while it was sent
    generated: int = 0
    #: bodies that were sent again by a process that had no answer from the broker when it was cut off
    unanswered: int = 0
    seconds: float = 0.0
    #: bodies that were published more than once, after their first sender died before it could note that
    twice: int = 0
    #: chords a message of which was lost: Redis hands a message out before the worker notes that it has it, and one
    #: that is killed in between takes the message with it (brokers that need an acknowledgement keep it)
    lost_by_redis: int = 0
    #: chords that were mended: a child that had claimed was killed, and its worker too, right after that had
    #: acknowledged the child's task for the SUCCESS that was stored, so that nobody was left to go on
    mended: int = 0
    #: the longest time from the last kill to the sending of a body
    latest: float = 0.0
    problems: list[str] = field(default_factory=list)


@contextmanager
def redis() -> Iterator[str]:
    """The URL of a Redis of one's own."""
    binary = shutil.which("redis-server")
    if binary is None:
        raise SystemExit("redis-server is not installed")
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="celery-s3-soak-") as folder:
        command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        process = spawn(command, Path(folder) / "log", environment(), Path(folder), signal.SIGKILL)
        try:
            if not wait_until(lambda: _listens(port), process, 10):
                raise SystemExit("redis-server did not come up")
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            stop(process, 0)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Round:
    """Some chords, two workers, and somebody who kills them.

    Arguments:
        folder: an empty one, for logs and events.
        pause: seconds between kills, on average.
    """

    def __init__(self, server: S3Server, broker_url: str, folder: Path, seed: int, pause: float = 2.5) -> None:
        self.random = random.Random(seed)
        self.folder = folder
        self.pause = pause
        self.events = folder / "events"
        self.events.touch()
        self.report = Report()
        self.conf = {
            "broker_url": broker_url,
            "broker_transport_options": {
                "visibility_timeout": VISIBLE,
                "unacked_restore_interval": RESTORED,
                "unacked_restore_throttle": 1,
                # a worker that is killed while it looks keeps the others from it for that time
                "unacked_mutex_expire": 5,
            },
            "broker_connection_timeout": 1,
            "result_backend": "celery_s3.backends.S3Backend",
            "s3_backend_settings": server.settings() | {"base_path": f"soak-{folder.name}/"},
            "task_publish_retry": False,
            "task_default_queue": f"soak-{folder.name}",
            "task_acks_late": True,
            "task_reject_on_worker_lost": True,
            "worker_prefetch_multiplier": 2,
            "worker_max_tasks_per_child": RECYCLED,
            "worker_enable_remote_control": False,
        }
        self.app = Celery("chaos", set_as_current=False)
        self.app.conf.update(self.conf)
        self.workers: dict[int, subprocess.Popen[bytes]] = {}
        self.started = 0
        #: more of the workers' environment
        self.given: dict[str, str] = {}
        self.killed: set[int] = set()
        #: when workers were killed
        self.ends: dict[int, float] = {}

    # -- workers

    def start(self) -> None:
        self.started += 1
        command = [sys.executable, "-m", "celery", "-A", TASKS.stem, "worker", "--loglevel=WARNING", "--concurrency=2"]
        command += [
            "--without-gossip",
            "--without-mingle",
            "--without-heartbeat",
            f"--hostname=w{self.started}@localhost",
        ]
        given = {"CHAOS_CONF": json.dumps(self.conf), "CHAOS_EVENTS": str(self.events), "CHAOS_LEASE": str(LEASE)}
        given |= self.given
        path = os.pathsep.join([str(TASKS.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        env = environment(**given, PYTHONPATH=path)
        self.workers[self.started] = spawn(command, self.log(self.started), env, self.folder, signal.SIGKILL)

    def owner_killed(self) -> dict[str, float]:
        """Seconds from the death of an owner, by the lease that a worker has by default, until its chord's body ran.

        It dies right before it sends: nothing but its claim is left of it.
        """
        del self.conf["broker_connection_timeout"]
        self.conf["worker_max_tasks_per_child"] = 4
        found = {}
        for name in ("main process lives", "worker dies too"):
            late = name == "worker dies too"  # else nobody would have the task, and the look once an hour would be left
            self.conf |= {"task_acks_late": late, "task_reject_on_worker_lost": late}
            self.given = {"CHAOS_LEASE": "30", "CHAOS_DIES": str(self.folder / f"died-{self.started}")}
            self.start()
            number = self.started
            header = [self.signature("member", number) for number in range(20)]
            body = self.app.signature("body", kwargs={"size": 20})
            result = chord(header, body, app=self.app).apply_async()
            assert wait_until(lambda: Path(self.given["CHAOS_DIES"]).exists(), self.workers[number], 60)
            died = time.time()
            if name == "worker dies too":
                self.end(number)
                self.given = {"CHAOS_LEASE": "30"}
                self.start()
            while result.id not in self.seen("ran") and time.time() < died + 200:
                time.sleep(0.1)
            found[name] = round(time.time() - died, 1)
            for worker in list(self.workers):
                self.end(worker)
        return found

    def log(self, number: int) -> Path:
        return self.folder / f"worker-{number}.log"

    def kill_one(self) -> None:
        victim = self.random.choice(list(self.workers))
        children = self.random.random() < 0.4 and _children(self.workers[victim].pid)
        if children:
            child = self.random.choice(children)
            self.killed.add(child)
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            self.report.kills_of_children += 1
            return
        self.end(victim)
        self.report.kills += 1
        self.start()

    def end(self, number: int) -> None:
        worker = self.workers.pop(number)
        self.killed |= {worker.pid, *_children(worker.pid)}
        self.ends[number] = time.time()
        with suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()

    # -- chords

    def run(self, chords: int, sizes: tuple[int, int]) -> Report:
        began = time.time()
        for _ in range(2):
            self.start()
        try:
            bodies = self.send(chords, sizes)
            self.torment(bodies)
            self.settle(bodies, time.time())
        finally:
            for worker in list(self.workers):
                self.end(worker)
            self.app.close()
        self.report.seconds = round(time.time() - began, 1)
        self.judge(bodies)
        return self.report

    def send(self, chords: int, sizes: tuple[int, int]) -> dict[str, str]:
        """Send the chords; the group of each by the id of its body."""
        bodies = {}
        for _ in range(chords):
            size = self.random.randint(*sizes)
            body = self.app.signature("body", kwargs={"size": size}, link_error=self.app.signature("error"))
            header = [self.signature("member", number) for number in range(size)]
            kind = self.random.random()
            if kind < 0.25:
                result = self.apply_twice(chain(self.signature("member", 0), chord(header, body, app=self.app)))
            elif kind < 0.5:
                result = chord(iter(header), body, app=self.app).apply_async()
                self.report.generated += 1
            else:
                result = chord(header, body, app=self.app).apply_async()
            bodies[result.id] = result.parent.id
            self.report.members += size
        self.report.chords = chords
        return bodies

    def apply_twice(self, canvas: Signature) -> AsyncResult:
        """Send a canvas whose first task applies a chord; its message is delivered twice, as that of a dead worker."""
        send = self.app.amqp.send_task_message

        def twice(*args: object, **options: object) -> None:
            for _ in range(2):
                send(*args, **options)

        self.app.amqp.send_task_message = twice
        try:
            return canvas.apply_async()
        finally:
            self.app.amqp.send_task_message = send
            self.report.applied_again += 1

    def signature(self, name: str, number: int) -> object:
        return self.app.signature(name, args=(number, self.random.uniform(0, 0.02)), immutable=True)

    def torment(self, bodies: dict[str, str]) -> None:
        """Kill until nine chords of ten are through, or nothing happens any more, and then once more.

        Of few chords one in ten may well have lost a message.
        """
        while len(self.seen("ran") & bodies.keys()) < 0.9 * len(bodies) and not self.stands_still():
            time.sleep(self.random.expovariate(1 / self.pause))
            if self.random.random() < 0.25:
                self.cut()
            else:
                self.kill_one()
        self.kill_one()

    def stands_still(self) -> bool:
        """Whether nothing has happened for longer than a lease, a redelivery and a worker's start take."""
        return time.time() - self.events.stat().st_mtime > LEASE + VISIBLE + RESTORED + 15

    def cut(self) -> None:
        """Cut everybody off the broker, which answers nobody for a moment."""
        with self.app.connection_for_read() as connection:
            client = connection.default_channel.client
            client.execute_command("CLIENT PAUSE", int(CUT * 1000), "ALL")
            client.execute_command("CLIENT KILL", "TYPE", "normal")
        self.report.cuts += 1

    def settle(self, bodies: dict[str, str], killed: float) -> None:
        """Wait for the rest; what a lease and a redelivery do not bring has lost a message, or is a problem."""
        for name in self.left_after(bodies, LEASE + VISIBLE + RESTORED + 15):
            self.explain(name, bodies[name])
        sent = [when - killed for when, kind, name, _ in self.lines() if kind == "publishing"]
        self.report.latest = round(max([0.0, *sent]), 1)

    def explain(self, body: str, group: str) -> None:
        """Why a chord stands still: a message of it that is neither done with nor at the broker was lost there."""
        found = next(self.app.backend.repairs.survey.chords([group], settled=True), None)
        if found is None and not self.messages():
            self.report.lost_by_redis += 1  # that of the task which applies it
            return
        acknowledged = self.acknowledged()
        unfinished = self.unfinished(found.manifest.ids)
        lived = [self.ends.get(n, time.time()) - when for id, (n, when) in acknowledged.items() if id in unfinished]
        if any(seconds < SOON for seconds in lived):
            self.report.mended += 1
            self.app.backend.repairs.repair(found)
            if not self.left_after({body: group}, VISIBLE + RESTORED + 15):
                return
        if not self.messages() and (found.state == "sent" or unfinished - acknowledged.keys()):
            self.report.lost_by_redis += 1
        else:
            about = f"{found.state}, {found.done} of {len(found.manifest.ids)} done {found.reason}"
            self.report.problems.append(f"chord {group} stands still: {about}; body {body}")

    def unfinished(self, ids: Sequence[str]) -> set[str]:
        """The members that nobody ran to the end."""
        last = {name: kind for _, kind, name, _ in self.lines() if kind in ("began", "ended")}
        return {id for id in ids if last.get(id) != "ended"}

    def acknowledged(self) -> dict[str, tuple[int, float]]:
        """The members that a worker acknowledged for their stored SUCCESS: its number, and when."""
        line = re.compile(r"\[([^:]+:[^:]+:[^:]+): WARNING/MainProcess\] Task member\[(.+?)\] succeeded before")
        found = {}
        for number in range(1, self.started + 1):
            for when, id in line.findall(self.log(number).read_text(errors="replace")):
                found[id] = number, datetime.strptime(when, "%Y-%m-%d %H:%M:%S,%f").astimezone().timestamp()
        return found

    def messages(self) -> int:
        """How many messages the broker has, handed out or not."""
        with self.app.connection_for_read() as connection:
            client = connection.default_channel.client
            return int(client.llen(self.app.conf.task_default_queue) + client.hlen("unacked"))

    def left_after(self, bodies: dict[str, str], seconds: float) -> set[str]:
        deadline = time.time() + seconds
        while (left := bodies.keys() - self.seen("ran")) and time.time() < deadline:
            time.sleep(0.2)
        return left

    # -- what happened

    def lines(self) -> list[tuple[float, str, str, int]]:
        return [tuple(json.loads(line)) for line in self.events.read_text().splitlines()]  # type: ignore[misc]

    def seen(self, kind: str) -> set[str]:
        return {name for _, what, name, _ in self.lines() if what == kind}

    def judge(self, bodies: dict[str, str]) -> None:
        """Compare what happened with what was promised."""
        publishings: dict[str, list[int]] = defaultdict(list)
        marked = {(key.split("/")[-3], pid) for _, kind, key, pid in self.lines() if kind == "marked"}
        for _, kind, name, pid in self.lines():
            if kind == "publishing":
                publishings[name].append(pid)
            elif kind in ("wrong", "error"):
                self.report.problems.append(f"{kind}: body {name}")
        for name, group in bodies.items():
            pids = publishings[name]
            for index, pid in enumerate(pids[:-1]):
                if pid in pids[index + 1 :]:  # it lived, and was told of an error
                    self.report.unanswered += 1
                    continue
                self.report.twice += 1
                if pid not in self.killed or (group, pid) in marked:
                    self.report.problems.append(f"chord {group} sent again, though {pid} lived or noted it: {pids}")


def _children(pid: int) -> list[int]:
    table = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = (map(int, line.split()) for line in table.splitlines())
    return [child for child, parent in pairs if parent == pid]


def main() -> int:
    parser = argparse.ArgumentParser("tests/soak/chords.py", description="Kill workers while chords run.")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--chords", type=int, default=200)
    parser.add_argument("--members", type=int, default=100, help="of the largest chord")
    parser.add_argument("--pause", type=float, default=2.5, help="seconds between kills; more on a busy machine")
    parser.add_argument("--owner", action="store_true", help="measure the recovery from a killed owner, by real leases")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--output", type=Path, help="a file for the reports, a line of JSON each")
    arguments = parser.parse_args()
    failed = False
    with SeaweedFS() as server, redis() as broker_url, tempfile.TemporaryDirectory(prefix="celery-s3-soak-") as scratch:
        if arguments.owner:
            folder = Path(scratch) / "owner"
            folder.mkdir()
            line = json.dumps({"owner_killed": Round(server, broker_url, folder, arguments.seed).owner_killed()})
            print(line, flush=True)
            if arguments.output:
                with arguments.output.open("a") as file:
                    file.write(f"{line}\n")
            return 0
        for number in range(arguments.rounds):
            folder = Path(scratch) / f"{number}"
            folder.mkdir()
            one = Round(server, broker_url, folder, arguments.seed + number, arguments.pause)
            report = one.run(arguments.chords, (10, arguments.members))
            line = json.dumps({"round": number, "seed": arguments.seed + number, **asdict(report)})
            print(line, flush=True)
            if arguments.output:
                with arguments.output.open("a") as file:
                    file.write(f"{line}\n")
            failed = failed or bool(report.problems)
            if report.problems and arguments.output:
                shutil.copytree(folder, arguments.output.parent / f"soak-failed-{arguments.seed + number}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
