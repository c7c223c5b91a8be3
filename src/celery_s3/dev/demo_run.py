"""The demo from its first line to its last."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from celery_s3.cost import price_table
from celery_s3.dev import demo_bill as bill
from celery_s3.dev.demo_scenes import SCENES, Outcome, perform
from celery_s3.dev.demo_screen import Row, Screen, requests_text
from celery_s3.dev.demo_stage import DELAY, Stage, isolate, release
from celery_s3.dev.demo_worker import COMMAND
from celery_s3.dev.process import S3Server, ServerNotStarted

__all__ = ["run"]

_PRICES = price_table()["s3-standard"]
_PASTE = (
    'broker_url = "sqs://"  # or any other broker',
    'result_backend = "celery_s3.backends.S3Backend"',
    's3_backend_settings = {"bucket": "my-bucket", "aws_region": "eu-central-1"}',
)


@dataclass(frozen=True)
class Pass:
    """All scenes with one backend; ``requests`` by task id, ``others`` those that belong to no task."""

    outcomes: tuple[Outcome, ...]
    requests: Mapping[str, Counter[str]]
    others: Counter[str]

    def of(self, outcome: Outcome) -> tuple[Counter[str], float]:
        """The requests of a scene, and what a million of its tasks cost."""
        ids = outcome.ended.task_ids
        requests = bill.together(self.requests, ids)
        return requests, bill.million(requests, len(ids), _PRICES)


def run() -> int:
    """Show everything, end everything; the process's exit code."""
    isolate()
    screen = Screen()
    stage = Stage()
    code = 1
    try:
        code = _guarded(stage, screen)
    finally:
        # a second Ctrl-C must not leave half of it running
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        left = stage.close()
        _farewell(screen, code, left)
    return code or int(bool(left))


def _guarded(stage: Stage, screen: Screen) -> int:
    """The show; what goes wrong is told here."""
    try:
        _show(stage, screen)
    except KeyboardInterrupt:
        screen.failed("Interrupted.")
        return 130
    except SystemExit as exc:
        screen.failed("Terminated.")
        return int(exc.code or 1)
    except ServerNotStarted as exc:
        screen.failed(f"The demo could not start: {exc}")
        screen.heading("It works with a bucket of your own just as well: these three lines, and docs/quickstart.md")
        screen.listing(_PASTE)
    except BrokenPipeError:
        raise
    except Exception as exc:  # noqa: BLE001 (told, with the log, and the exit code)
        screen.failed(f"The demo failed: {type(exc).__name__}: {exc}", stage.log_tail())
    else:
        return 0
    return 1


def _show(stage: Stage, screen: Screen) -> None:
    start = time.monotonic()
    screen.say(f"celery-s3 {release('celery-s3')} with Celery {release('celery')}", "bold")
    screen.say("Real servers, a real worker, all on this machine, for less than a minute.")
    _start(stage, screen)
    ours = _play(stage, screen, "celery-s3", _our_settings(stage.proxy))
    theirs = _play(stage, screen, "Celery's own s3 backend", _their_settings(stage.proxy), brief=True)
    _account(screen, ours, theirs)
    screen.heading(f"Shown in {time.monotonic() - start:.0f} s. To go on, put this into your celeryconfig.py:")
    screen.listing(_PASTE)
    screen.say("docs/quickstart.md has the first task, docs/settings.md every setting.")


def _start(stage: Stage, screen: Screen) -> None:
    screen.heading("Starting")
    started = stage.start()
    for what in ("the S3 server", "the proxy", "the broker"):
        with screen.waiting(f"starting {what}"):
            one = next(started)
        screen.done(one.what, f"{one.detail:<34}", one.where)


def _play(stage: Stage, screen: Screen, name: str, settings: Mapping[str, Any], *, brief: bool = False) -> Pass:
    screen.heading(f"The same with {name}" if brief else f"Results in S3, by {name}")
    outcomes = []
    with screen.waiting("starting the worker"), stage.worker(settings) as worker:
        pass
    return Pass(tuple(outcomes), {}, Counter())
