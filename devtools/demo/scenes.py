"""What the demo shows: each scene runs some tasks and tells how they ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from celery import chord, group
from celery.exceptions import TimeoutError
from celery.result import AsyncResult
from celery.signals import after_task_publish

from . import tasks

__all__ = ["ALONE", "GROUP", "SCENES", "Outcome", "Scene", "Unexpected", "Watcher", "perform", "warm_up"]

GROUP = 200
CHORD = 50
#: Lines of the file.
ROWS = 100_000
#: Characters of the larger result.
SIZE = 300_000
#: Seconds to wait for the results of one scene.
PATIENCE = 60.0
#: Seconds after which it is seen whether the worker still runs.
GLANCE = 5.0


class Unexpected(Exception):
    """A task ended otherwise than it should."""


class Watcher(Protocol):
    """Who looks on: is told how far the group is, and keeps an eye on the worker."""

    def check(self, *_: object) -> None:
        """Raise an error when the worker is gone."""
        ...

    def moved(self, sent: int, finished: int, of: int) -> None:
        """So many tasks of a group have gone to the broker, and so many results have come."""
        ...

    def looks_at(self, chord: str) -> None:
        """Say how far that chord is."""
        ...

    def runs(self, task_id: str) -> int:
        """How often the worker has said that the task succeeded."""
        ...

    def has_run(self, task_id: str, timeout: float) -> bool:
        """Wait until the worker has said that the task succeeded; False after ``timeout`` seconds."""
        ...


@dataclass(frozen=True)
class Ended:
    """How a scene's tasks ended; ``task_ids`` are all that belong to it."""

    state: str
    result: str
    task_ids: tuple[str, ...]


@dataclass(frozen=True)
class Scene:
    """One row of the demo; ``call`` is what a user would write for it."""

    title: str
    call: str
    run: Callable[[Watcher], Ended]


@dataclass(frozen=True)
class Outcome:
    """A scene that is over; ``seconds`` from sending the first task to having the last result."""

    scene: Scene
    ended: Ended
    seconds: float


def warm_up(check: Callable[..., None]) -> None:
    """One task, so that the first connections of client and worker do not count for the first scene."""
    tasks.add.delay(0, 0).get(timeout=PATIENCE, on_interval=check)


def perform(scene: Scene, watcher: Watcher) -> Outcome:
    """Run a scene with Celery's current app.

    Raises:
        Unexpected: a task ended otherwise than it should.
        celery.exceptions.TimeoutError: a result did not come within :data:`PATIENCE`.
    """
    start = time.monotonic()
    ended = scene.run(watcher)
    return Outcome(scene, ended, time.monotonic() - start)


def _value(sent: AsyncResult, watcher: Watcher) -> Any:
    """A result's value; Celery calls ``on_interval`` of a single result no more than once, so the worker is seen to."""
    for _ in range(int(PATIENCE / GLANCE)):
        with suppress(TimeoutError):
            return sent.get(timeout=GLANCE)
        watcher.check()
    return sent.get(timeout=GLANCE)


def _succeed(watcher: Watcher) -> Ended:
    return _one(tasks.add.delay(2, 3), watcher)


def _fail(watcher: Watcher) -> Ended:
    sent = tasks.find_order.delay(7)
    try:
        _value(sent, watcher)
    except tasks.NotFound as exc:
        return Ended(sent.state, repr(exc), (sent.id,))
    raise Unexpected("the failing task did not fail")


def _retry(watcher: Watcher) -> Ended:
    return _one(tasks.unsteady.delay(), watcher)


def _ignore(watcher: Watcher) -> Ended:
    sent = tasks.notify.delay("Ada")
    if not watcher.has_run(sent.id, PATIENCE):
        raise Unexpected("the task without a result did not run")
    return Ended("none", "not stored", (sent.id,))


def _large(watcher: Watcher) -> Ended:
    sent = tasks.report.delay(SIZE)
    _expect(len(sent.get(timeout=PATIENCE, on_interval=watcher.check)), SIZE)
    return Ended(sent.state, f"{SIZE // 1000} KB", (sent.id,))


def _group(watcher: Watcher) -> Ended:
    results: dict[str, int] = {}

    def finished(task_id: str, value: int) -> None:
        results[task_id] = value
        watcher.moved(GROUP, len(results), GROUP)

    with _counting_sent(watcher):
        sent = group(tasks.work.s(number) for number in range(GROUP)).apply_async()
    sent.get(timeout=PATIENCE, callback=finished, on_interval=watcher.check)
    _expect(sum(results.values()), sum(range(GROUP)))
    return Ended("SUCCESS", f"sum {sum(results.values()):,}", tuple(results))


def _chord(watcher: Watcher) -> Ended:
    sent = chord(tasks.work.s(number) for number in range(CHORD))(tasks.total.s())

    def look(*_: object) -> None:
        watcher.check()
        watcher.looks_at(sent.parent.id)

    _expect(sent.get(timeout=PATIENCE, on_interval=look), sum(range(CHORD)))
    header = tuple(member.id for member in sent.parent.results)
    return Ended(sent.state, f"sum {sent.get():,}", (*header, sent.id, sent.parent.id))


def _late(watcher: Watcher) -> Ended:
    sent = tasks.add.delay(2, 3)
    value = _value(sent, watcher)
    sent.backend.store_result(sent.id, RuntimeError("a second worker, too late"), "FAILURE")
    again = AsyncResult(sent.id, app=sent.app)
    _expect(again.state, "SUCCESS")
    return Ended(again.state, f"still {value}", (sent.id,))


def _file(watcher: Watcher) -> Ended:
    sent = tasks.export.delay(ROWS)
    file = _value(sent, watcher)
    _expect(sum(map(len, file.chunks())), file.size)
    return Ended(sent.state, file.name, (sent.id,))


def _killed(watcher: Watcher) -> Ended:
    sent = chord(tasks.fragile.s(number) for number in range(10))(tasks.total.s())
    _expect(sent.get(timeout=PATIENCE, on_interval=watcher.check), sum(range(10)))
    if watcher.has_run(sent.id, PATIENCE):
        _expect(watcher.runs(sent.id), 1)
    return Ended(sent.state, f"sum {sent.get()}, once", (sent.id,))


SCENES = (
    Scene("succeeds", "add.delay(2, 3).get()", _succeed),
    Scene("fails", "find_order.delay(7).get()", _fail),
    Scene("retries", "unsteady.delay().get()", _retry),
    Scene("no result", 'notify.delay("Ada")  # ignore_result', _ignore),
    Scene("large result", f"report.delay({SIZE:_}).get()", _large),
    Scene(f"group of {GROUP}", "group(work.s(n) for n in …)().get()", _group),
    Scene(f"chord of {CHORD}", "chord(work.s(n) for n in …)(total.s())", _chord),
)


#: What there is nothing to compare with.
ALONE = (
    Scene("late writer", 'store_result(id, …, "FAILURE")', _late),
    Scene("file", f"export.delay({ROWS:_}).get()", _file),
    Scene("killed worker", "chord(fragile.s(n) for n in …)(total.s())", _killed),
)


def _one(sent: AsyncResult, watcher: Watcher) -> Ended:
    value = _value(sent, watcher)
    return Ended(sent.state, str(value), (sent.id,))


def _expect(value: object, right: object) -> None:
    if value != right:
        raise Unexpected(f"the result should be {right!r}, it is {value!r}")


@contextmanager
def _counting_sent(watcher: Watcher) -> Iterator[None]:
    sent = 0

    def count(**_: Any) -> None:
        nonlocal sent
        sent += 1
        watcher.moved(sent, 0, GROUP)

    after_task_publish.connect(count, weak=False)
    try:
        yield
    finally:
        after_task_publish.disconnect(count)
