"""The demo from its first line to its last."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from celery import Celery

from celery_s3.chords.survey import Survey
from celery_s3.costs.prices import price_table
from celery_s3.dev.process import S3Server

from . import bill
from .scenes import ALONE, SCENES, Outcome, Scene, perform, warm_up
from .screen import Bar, Screen
from .stage import Stage, release
from .table import Asked, Row, money, table
from .worker import COMMAND, Worker

__all__ = ["SETTINGS", "show"]

#: What to paste, to have this on AWS.
SETTINGS = (
    'broker_url = "sqs://"',
    'result_backend = "celery-s3://my-bucket/results?region=eu-central-1"',
)
_PRICES = price_table()["s3-standard"]


@dataclass(frozen=True)
class Pass:
    """All scenes with one backend: the ``requests`` by task id, the ``others`` by verb and object.

    ``shown`` is what a command says of the last result.
    """

    outcomes: tuple[Outcome, ...]
    requests: Mapping[str, Counter[str]]
    others: Counter[str]
    shown: str

    def asked(self, outcome: Outcome) -> Asked:
        ids = outcome.ended.task_ids
        requests = bill.together(self.requests, ids)
        return Asked(requests, bill.million(requests, len(ids), _PRICES), outcome.seconds)


class _Audience:
    """Passes on how far a group or chord is, and what the worker does."""

    def __init__(self, worker: Worker, bar: Bar, chords: Survey | None) -> None:
        self.check = worker.check
        self.has_run = worker.has_run
        self.runs = worker.runs
        self.moved = bar.moved
        self._chords = chords
        self._looked = 0.0

    def looks_at(self, chord: str) -> None:
        """Show what `celery s3 chords` shows: the parts in the chord's tree, ten times a second."""
        if self._chords is None or time.monotonic() < self._looked + 0.1:
            return
        self._looked = time.monotonic()
        for found in self._chords.chords([chord]):
            size = len(found.manifest.ids)
            self.moved(size, found.done, size)


def show(stage: Stage, screen: Screen) -> None:
    """Run everything and tell of it."""
    start = time.monotonic()
    screen.say(f"celery-s3 {release('celery-s3')} with Celery {release('celery')}", "bold")
    screen.say("Celery stores what tasks return in S3: no other server. All of it runs here, for this demo alone.")
    _start(stage, screen)
    screen.heading("Tasks, with their results stored by celery-s3")
    # Past the proxy: what looks at the chord is not counted.
    straight = Celery("demo-survey", set_as_current=False, **_our_settings(stage.seaweed))
    ours = _pass(stage, screen, _our_settings(stage.proxy), straight.backend.repairs.survey)
    screen.show()
    screen.say("$ celery s3 show", "bold")
    screen.listing(ours.shown.splitlines())
    theirs = _pass(stage, screen, _their_settings(stage.proxy))
    _compare(screen, ours, theirs)
    screen.heading(f"That took {time.monotonic() - start:.0f} s. The same on AWS, in your celeryconfig.py:")
    screen.listing(SETTINGS)
    screen.say("Step by step: docs/quickstart.md. Every setting: docs/settings.md.")


def _start(stage: Stage, screen: Screen) -> None:
    screen.heading("Starting")
    started = stage.start()
    for what in ("S3 server", "proxy", "broker"):
        with screen.waiting(f"{what} …"):
            one = next(started)
        screen.started(one.what, one.detail, one.where)


def _pass(stage: Stage, screen: Screen, settings: Mapping[str, Any], chords: Survey | None = None) -> Pass:
    """Every scene, with a worker that has these settings."""
    ours = chords is not None
    stage.proxy.reset()
    with screen.waiting("worker …"):
        worker = stage.start_worker(settings)
        warm_up(worker.check)
    if ours:
        screen.started("Worker", COMMAND, f"pid {worker.pid}, warmed up")
    outcomes = tuple(_perform(screen, worker, scene, chords) for scene in SCENES)
    alone = tuple(_perform(screen, worker, scene, chords) for scene in ALONE if ours)
    with screen.waiting("ending the worker …"):
        stage.stop_worker()
    records = stage.proxy.records()
    shown = _shown(worker, alone[-1]) if ours else ""
    if not ours:
        seconds = sum(one.seconds for one in outcomes)
        screen.started("Celery's s3", "the same with that backend, for comparison", f"{seconds:9.2f} s")
    return Pass(outcomes, bill.by_task(records), bill.elsewhere(records), shown)


def _shown(worker: Worker, outcome: Outcome) -> str:
    """The lines of `celery s3 show` that a glance takes in."""
    lines = worker.told("s3", "show", outcome.ended.task_ids[0]).splitlines()
    return "\n".join(line for line in lines if line.startswith(("state", "stored", "expires", "key")))


def _perform(screen: Screen, worker: Worker, scene: Scene, chords: Survey | None) -> Outcome:
    with screen.waiting(scene.title) as bar:
        outcome = perform(scene, _Audience(worker, bar, chords))
    if chords is not None:
        screen.ended(outcome)
    return outcome


def _compare(screen: Screen, ours: Pass, theirs: Pass) -> None:
    screen.heading("Seconds, S3 requests, and what they cost")
    pairs = zip(ours.outcomes, theirs.outcomes, strict=True)
    rows = [Row(mine.scene.title, mine.ended, (ours.asked(mine), theirs.asked(other))) for mine, other in pairs]
    screen.show(table(("celery-s3", "Celery's own s3"), rows, wide=screen.wide))
    screen.show()
    for line in _legend(ours, money(wide=screen.wide)):
        screen.note(line)


def _legend(ours: Pass, money: str) -> list[str]:
    put, get = (f"{price * 1000:.2f}" for price in (_PRICES.put, _PRICES.get))
    once = ", ".join(f"{count} {what}" for what, count in ours.others.items())
    return [
        (
            f"Requests of worker and client. {money}: dollars for those of a million such tasks at list price"
            f" ({_PRICES.title}, us-east-1, {_PRICES.date}: a million PUT {put}, GET or HEAD {get})."
        ),
        (
            "Why a chord costs more here than with Celery's polling task: each member hands its result on by a PUT of"
            " its own. So the body starts at once, and nothing polls meanwhile."
        ),
        f"In no row: warming up each worker; {once or 'nothing'}, once, to learn what the server can.",
    ]


def _our_settings(server: S3Server) -> dict[str, Any]:
    return {
        "result_backend": "celery_s3.backends.S3Backend",
        "s3_backend_settings": {**server.settings(), "base_path": "celery-s3"},
        "task_default_queue": "celery-s3",
    }


def _their_settings(server: S3Server) -> dict[str, Any]:
    return {
        "result_backend": "s3",
        "s3_bucket": server.bucket,
        "s3_base_path": "celery/",
        "s3_endpoint_url": server.endpoint_url,
        "s3_region": server.region,
        "s3_access_key_id": server.access_key,
        "s3_secret_access_key": server.secret_key,
        "task_default_queue": "celery-own",
    }
