"""Children store while they work on: is anything lost, or acknowledged before it is written, whoever is killed?

``python tests/soak/overlap.py`` (``make overlap``) runs 20 rounds in which children, main processes and whole workers
are killed at random, then one with the ends that a child may come to by itself, and one without S3 for 40 s. It prints
a line for each, which goes to ``--output`` too, and fails where something went wrong.
``tests/acceptance/test_overlap_worker.py`` runs a small one.

A real server and a real Redis; each write of a worker waits for 800 ms before it is sent, so that some are always
under way. Tasks are acknowledged late.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from celery import Celery, chord, states
from chords import _children as children_of
from chords import redis

from celery_s3.dev.process import S3Server, environment, spawn, wait_until
from celery_s3.dev.seaweed import SeaweedFS
from devtools.proxy import Proxy

TASKS = Path(__file__).with_name("overlap_tasks.py")
DELAY = 0.8
#: Seconds after which Redis hands a message out again that nobody has acknowledged.
VISIBLE = 8


@dataclass
class Report:
    """What became of a round; times in seconds."""

    round: str
    sent: int = 0
    kills: dict[str, int] = field(default_factory=dict)
    #: tasks without a final state, but for those that Redis has lost
    lost: list[str] = field(default_factory=list)
    #: of those, or of those that were looked for when all workers were dead, whose message a worker let go
    acknowledged_unwritten: list[str] = field(default_factory=list)
    #: tasks that ran more than once, where nobody was killed
    twice: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    #: Redis hands a message out before the worker notes that it has it: who is killed in between takes it along
    lost_by_redis: int = 0
    #: how many tasks began again
    again: int = 0
    seconds: float = 0.0

    @property
    def problems(self) -> list[str]:
        found = {"lost": self.lost, "acknowledged": self.acknowledged_unwritten, "twice": self.twice}
        return [f"{what}: {ids}" for what, ids in (found | {"wrong": self.wrong}).items() if ids]


class Round:
    """Two workers with two processes each, tasks of all kinds, and somebody who kills.

    Arguments:
        folder: an empty one, for logs and events.
    """

    def __init__(self, name: str, server: S3Server, broker: str, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.folder = folder
        self.events = folder / "events"
        self.events.touch()
        self.report = Report(name)
        self.conf = {
            "broker_url": broker,
            "broker_transport_options": {
                "visibility_timeout": VISIBLE,
                "unacked_restore_interval": 2,
                "unacked_restore_throttle": 1,
                "unacked_mutex_expire": 5,
            },
            "result_backend": "celery_s3.backends.S3Backend",
            "s3_backend_settings": server.settings() | {"base_path": f"{folder.name}/"},
            "task_default_queue": f"overlap-{folder.name}",
            "task_acks_late": True,
            "task_reject_on_worker_lost": True,
            "worker_prefetch_multiplier": 4,
        }
        self.app = Celery("overlap-client", set_as_current=False)
        self.app.conf.update(self.conf)
        self.workers: list[subprocess.Popen[bytes]] = []
        self.results: dict[str, str] = {}
        self.delay = DELAY

    # -- workers

    def start(self, **conf: object) -> None:
        number = sum(1 for _ in self.folder.glob("worker-*.log")) + 1
        command = [sys.executable, "-m", "celery", "-A", TASKS.stem, "worker", "--loglevel=INFO", "--concurrency=2"]
        command += ["--without-gossip", "--without-mingle", "--without-heartbeat", f"--hostname=w{number}@localhost"]
        path = os.pathsep.join([str(TASKS.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        env = environment(
            OVERLAP_CONF=json.dumps(self.conf | conf),
            OVERLAP_EVENTS=str(self.events),
            OVERLAP_DELAY=str(self.delay),
            PYTHONPATH=path,
        )
        log = self.folder / f"worker-{number}.log"
        worker = spawn(command, log, env, self.folder, signal.SIGKILL)
        if not wait_until(lambda: " ready." in log.read_text(errors="replace"), worker, 60):
            raise SystemExit(f"a worker did not come up:\n{log.read_text()[-2000:]}")
        self.workers.append(worker)

    def kill(self) -> None:
        """A child, the main process alone, or a worker with all its processes."""
        worker = self.random.choice(self.workers)
        whom = self.random.choice(["child", "child", "main", "worker"])
        self.report.kills[whom] = self.report.kills.get(whom, 0) + 1
        with suppress(ProcessLookupError):
            if whom == "child" and (children := children_of(worker.pid)):
                os.kill(self.random.choice(children), signal.SIGKILL)
                return
            if whom == "main":
                os.kill(worker.pid, signal.SIGKILL)
                time.sleep(0.2)
        self.end(worker)
        self.start()

    def end(self, worker: subprocess.Popen[bytes]) -> None:
        self.workers.remove(worker)
        with suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()

    def end_all(self) -> None:
        for worker in list(self.workers):
            self.end(worker)

    # -- work

    def send(self, plain: int, chords: int, members: int) -> None:
        sign = lambda name, *args, **how: self.app.signature(name, args=args, immutable=True, options=how)  # noqa: E731
        for number in range(plain):
            task = sign("fails", number) if number % 10 == 9 else sign("plain", number, self.random.uniform(0, 0.1))
            self.results[task.apply_async().id] = task.task
        for _ in range(chords):
            header = [sign("plain", number, 0.02) for number in range(members)]
            sent = chord(header, self.app.signature("body", kwargs={"size": members}), app=self.app).apply_async()
            self.results[sent.id] = "body"
            self.results |= dict.fromkeys((child.id for child in sent.parent), "plain")
        self.report.sent = len(self.results)

    def unfinished(self) -> set[str]:
        asked = list(self.results)
        found = self.app.backend.pool.map(lambda id: self.app.backend.reader.state(id), asked)
        return {id for id, state in zip(asked, found, strict=True) if state not in states.READY_STATES}

    def settle(self, seconds: float) -> set[str]:
        """What has no final state after so many seconds in which nothing more became final."""
        left, since = self.unfinished(), time.monotonic()
        while left and time.monotonic() - since < seconds:
            time.sleep(0.3)
            now = self.unfinished()
            left, since = now, time.monotonic() if now != left else since
        return left

    def at_broker(self) -> str:
        """All messages that Redis has, handed out or not."""
        with self.app.connection_for_read() as connection:
            client = connection.default_channel.client
            waiting = client.lrange(self.conf["task_default_queue"], 0, -1)
            return b"\n".join([*waiting, *client.hvals("unacked")]).decode()

    def lines(self) -> list[tuple[float, str, str, int]]:
        return [tuple(json.loads(line)) for line in self.events.read_text().splitlines()]  # type: ignore[misc]

    def seen(self, kind: str) -> list[str]:
        return [name for _, what, name, _ in self.lines() if what == kind]

    def look(self) -> None:
        """While nobody works: of what has no final state no message was let go."""
        time.sleep(0.5)  # what was sent to the server lands
        self.report.acknowledged_unwritten += sorted(self.unfinished() & set(self.seen("settled")))

    def judge(self, left: set[str]) -> None:
        ended, settled, messages = set(self.seen("ended")), set(self.seen("settled")), self.at_broker()
        for id in left:
            if id in settled or id in messages:
                self.report.lost.append(f"{self.results[id]} {id}{' has ended' if id in ended else ''}")
            else:
                self.report.lost_by_redis += 1
        self.report.acknowledged_unwritten += sorted(left & settled)
        began = self.seen("began")
        self.report.again = len(began) - len(set(began))
        self.report.wrong += self.seen("wrong")

    # -- rounds

    def killed(self, kills: int, plain: int = 120, chords: int = 3, members: int = 15) -> None:
        """Somebody is killed now and then, at last everybody."""
        for _ in range(2):
            self.start()
        self.send(plain, chords, members)
        for _ in range(kills):
            time.sleep(self.random.uniform(0.3, 1.5))
            self.kill()
        self.end_all()
        self.look()
        self.start()
        self.judge(self.settle(VISIBLE + 15))

    def children(self, kills: int = 3, plain: int = 40, chords: int = 1, members: int = 10) -> None:
        """Children are killed, and at last the worker is shut down warmly."""
        self.delay = 0.3
        self.start()
        self.send(plain, chords, members)
        for count in range(kills):
            before = len(self.seen("ended"))
            wait_until(lambda before=before: len(self.seen("ended")) > before + 3, self.workers[0], 20)
            self.report.kills["child"] = count + 1
            with suppress(ProcessLookupError):
                os.kill(self.random.choice(children_of(self.workers[0].pid)), signal.SIGKILL)
        left = self.settle(VISIBLE + 15)
        self.workers[0].terminate()
        self.workers.pop().wait(60)
        self.judge(left)
        messages = self.at_broker()  # all are acknowledged by now
        self.report.wrong += [f"{id} is still at the broker" for id in self.results if id in messages]

    def ends(self) -> None:
        """Ends that are no accident: time limits, revoked tasks, children that have done enough, warm shutdowns."""
        self.conf["broker_transport_options"] = {"visibility_timeout": 3600}  # else it would tell what comes twice
        for _ in range(2):
            self.start(worker_max_tasks_per_child=7)
        overruns = [self.app.signature("overruns").apply_async() for _ in range(3)]
        stays = [self.app.signature("stays").apply_async() for _ in range(2)]
        self.results |= {result.id: "ends" for result in overruns + stays}
        self.send(120, 3, 15)
        wait = [result.id for result in stays]
        until = time.monotonic() + 60
        while not set(wait) <= set(self.seen("began")) and time.monotonic() < until:
            time.sleep(0.1)
        self.app.control.revoke(wait, terminate=True)
        for worker in list(self.workers):
            time.sleep(1.0)
            self.workers.remove(worker)
            worker.terminate()
            self.start(worker_max_tasks_per_child=7)
            worker.wait(120)
        self.judge(self.settle(VISIBLE + 15))
        pids = {
            id: {pid for _, kind, name, pid in self.lines() if kind == "began" and name == id} for id in self.results
        }
        # a child that is killed by a time limit takes along what it had under way
        broken = {pid for result in overruns + stays for pid in pids[result.id]}
        self.report.twice += [id for id, ran in pids.items() if len(ran) > 1 and not ran & broken]
        self.report.lost += [result.id for result in overruns if result.state != states.FAILURE]
        self.report.lost += [result.id for result in stays if result.state != states.REVOKED]

    def away(self, proxy: Proxy, seconds: float = 40) -> None:
        """S3 goes in the middle of it, and comes back; the workers' messages are theirs for longer."""
        self.conf["broker_transport_options"] = {"visibility_timeout": 3600}
        for _ in range(2):
            self.start()
        self.send(120, 3, 15)
        time.sleep(2.0)
        with proxy.down():
            time.sleep(seconds)
        self.judge(self.settle(30))
        began = self.seen("began")
        self.report.twice += sorted({id for id in began if began.count(id) > 1})


def trial(name: str, seed: int, keep: Path | None = None, **how: int) -> Report:
    """Run one round: ``killed``, ``ends`` or ``away``; where it fails, logs and events are kept in ``keep``."""
    began = time.monotonic()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="celery-s3-overlap-")))
        server: S3Server = stack.enter_context(SeaweedFS())
        proxy = stack.enter_context(Proxy(server)) if name == "away" else None
        broker = stack.enter_context(redis())
        one = Round(name, proxy or server, broker, scratch, seed)
        stack.callback(one.app.close)
        stack.callback(one.end_all)
        one.away(proxy, **how) if proxy else getattr(one, name)(**how)
        one.report.seconds = round(time.monotonic() - began, 1)
        if one.report.problems and keep is not None:
            shutil.copytree(scratch, keep)
        return one.report


def main() -> int:
    parser = argparse.ArgumentParser("tests/soak/overlap.py", description="Kill those who store while they work on.")
    parser.add_argument("--rounds", type=int, default=20, help="rounds in which somebody is killed (20)")
    parser.add_argument("--seed", type=int, default=0, help="of the first of them")
    parser.add_argument("--only", default="", help="killed, ends or away")
    parser.add_argument("--output", type=Path, help="a file for the reports, a line of JSON each")
    arguments = parser.parse_args()
    rounds = [("killed", arguments.seed + number, {"kills": 8}) for number in range(arguments.rounds)]
    rounds += [("ends", arguments.seed, {}), ("away", arguments.seed, {})]
    failed = False
    for name, seed, how in rounds:
        if not name.startswith(arguments.only):
            continue
        keep = arguments.output.parent / f"overlap-failed-{int(time.time())}" if arguments.output else None
        report = trial(name, seed, keep, **how)
        line = json.dumps(asdict(report) | {"seed": seed, "problems": report.problems})
        print(line, flush=True)
        if arguments.output:
            with arguments.output.open("a") as file:
                file.write(f"{line}\n")
        failed = failed or bool(report.problems)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
