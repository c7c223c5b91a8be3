"""What the demo shows: each scene runs some tasks and tells how they ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from celery import chord, group
from celery.result import AsyncResult
from celery.signals import after_task_publish

from celery_s3.dev import demo_tasks as tasks
from celery_s3.dev.demo_worker import Worker

__all__ = ["CHORD", "GROUP", "SCENES", "SIZE", "Outcome", "Progress", "Scene", "Unexpected", "perform"]

GROUP = 200
CHORD = 20
#: Characters of the larger result.
SIZE = 300_000
#: Seconds to wait for one scene's results.
_PATIENCE = 60.0


class Unexpected(Exception):
    """A task ended otherwise than it should."""


class Progress(Protocol):
    """Told how far the group is."""

    def update(self, sent: int, finished: int) -> None: ...


@dataclass(frozen=True)
class Ended:
    """How a scene's tasks ended; ``task_ids`` are all that belong to it."""

    state: str
    result: str
    task_ids: tuple[str, ...]


@dataclass(frozen=True)
class Scene:
    """One row of the demo: ``title`` for the table, ``says`` for the line that is printed when it is over."""

    title: str
    says: str
    run: Callable[[Worker, Progress], Ended]


@dataclass(frozen=True)
class Outcome:
    """A scene that is over; ``seconds`` from sending the first task to having the last result."""

    scene: Scene
    ended: Ended
    seconds: float


def perform(scene: Scene, worker: Worker, progress: Progress) -> Outcome:
    """Run a scene with the current app.

    Raises:
        Unexpected: a task ended otherwise than it should.
        celery.exceptions.TimeoutError: a result did not come in a minute.
    """
    start = time.monotonic()
    ended = scene.run(worker, progress)
    return Outcome(scene, ended, time.monotonic() - start)


def _succeed(worker: Worker, progress: Progress) -> Ended:
    return _one(tasks.add.delay(2, 3))


def _fail(worker: Worker, progress: Progress) -> Ended:
    sent = tasks.find_order.delay(7)
    try:
        sent.get(timeout=_PATIENCE)
    except tasks.OrderNotFound as exc:
        return Ended(sent.state, f"{type(exc).__name__}: {exc}", (sent.id,))
    raise Unexpected("the failing task did not fail")


def _retry(worker: Worker, progress: Progress) -> Ended:
    return _one(tasks.unsteady.delay())


def _ignore(worker: Worker, progress: Progress) -> Ended:
    sent = tasks.notify.delay("Ada")
    if not worker.finished(sent.id, _PATIENCE):
        raise Unexpected("the task without a result did not run")
    return Ended("not stored", "not stored", (sent.id,))


def _large(worker: Worker, progress: Progress) -> Ended:
    sent = tasks.report.delay(SIZE)
    _expect(len(sent.get(timeout=_PATIENCE)), SIZE)
    return Ended(sent.state, f"{SIZE:,} characters", (sent.id,))


def _group(worker: Worker, progress: Progress) -> Ended:
    results: dict[str, int] = {}

    def finished(task_id: str, value: int) -> None:
        results[task_id] = value
        progress.update(GROUP, len(results))

    with _counting_sent(progress):
        sent = group(tasks.work.s(number) for number in range(GROUP)).apply_async()
    sent.get(timeout=_PATIENCE, callback=finished)
    _expect(sum(results.values()), sum(range(GROUP)))
    return Ended(f"{len(results)} SUCCESS", f"sum {sum(results.values()):,}", tuple(results))


def _chord(worker: Worker, progress: Progress) -> Ended:
    sent = chord(tasks.work.s(number) for number in range(CHORD))(tasks.total.s())
    _expect(sent.get(timeout=_PATIENCE), sum(range(CHORD)))
    header = tuple(member.id for member in sent.parent.results)
    return Ended(sent.state, f"sum {sent.get():,}", (*header, sent.id))


SCENES = (
    Scene("succeeds", "a task that succeeds", _succeed),
    Scene("fails", "a task that fails: its exception is raised here", _fail),
    Scene("retries", "a task that retries once, then succeeds", _retry),
    Scene("ignore_result", "a task with ignore_result", _ignore),
    Scene("large result", "a task with a result of 300 KB", _large),
    Scene(f"group of {GROUP}", f"a group of {GROUP} tasks of 50 ms", _group),
    Scene(f"chord of {CHORD}", f"a chord: {CHORD} tasks of 50 ms, then the sum of them (by chord_unlock)", _chord),
)


def _one(sent: AsyncResult) -> Ended:
    value = sent.get(timeout=_PATIENCE)
    return Ended(sent.state, str(value), (sent.id,))


def _expect(value: object, right: object) -> None:
    if value != right:
        raise Unexpected(f"the result should be {right!r}, it is {value!r}")


@contextmanager
def _counting_sent(progress: Progress) -> Iterator[None]:
    """Tell how many tasks have gone to the broker."""
    sent = 0

    def count(**_: Any) -> None:
        nonlocal sent
        sent += 1
        progress.update(sent, 0)

    after_task_publish.connect(count)
    try:
        yield
    finally:
        after_task_publish.disconnect(count)
