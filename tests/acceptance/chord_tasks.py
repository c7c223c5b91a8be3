"""The tasks of the tests of chords; ``register(app)`` gives them to any app, a worker's or a test's."""

from __future__ import annotations

import json
import os
import signal
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from celery import Celery, Task, group
from celery.exceptions import Ignore, Reject


class Unlucky(Exception):
    """What the failing tasks raise."""


def register(app: Celery) -> SimpleNamespace:
    """The tasks, by name."""

    task = partial(app.task, shared=False)

    @task(name="add")
    def add(x: Any, y: Any = 1) -> Any:
        return x + y

    @task(name="echo")
    def echo(value: Any) -> Any:
        return value

    @task(name="quiet", ignore_result=True)
    def quiet(value: Any) -> Any:
        return value

    @task(name="nap")
    def nap(value: Any, seconds: float) -> Any:
        time.sleep(seconds)
        return value

    @task(name="big")
    def big(size: int) -> str:
        return "x" * size

    @task(name="total")
    def total(values: list[Any]) -> Any:
        return sum(values) if all(isinstance(value, int) for value in values) else values

    @task(name="count")
    def count(values: list[Any]) -> int:
        return len(values)

    @task(name="fail")
    def fail(*_: Any) -> None:
        raise Unlucky("no luck")

    @task(name="fail_key")
    def fail_key(*_: Any) -> None:
        raise KeyError("no key")

    @task(name="flaky", bind=True, max_retries=3)
    def flaky(self: Task, value: Any) -> Any:
        if self.request.retries < 2:
            raise self.retry(countdown=0)
        return value

    @task(name="ignore")
    def ignore() -> None:
        raise Ignore

    @task(name="reject", acks_late=True)
    def reject() -> None:
        raise Reject("not this one", requeue=False)

    @task(name="die")
    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    @task(name="forever")
    def forever() -> None:
        while True:
            time.sleep(0.1)

    @task(name="adds", bind=True)
    def adds(self: Task, value: int, more: list[int]) -> int:
        """Add a task for each of ``more`` to its chord."""
        for one in more:
            self.add_to_chord(add.si(value, one))
        return value

    @task(name="adds_twice", bind=True)
    def adds_twice(self: Task, value: int) -> int:
        self.add_to_chord(adds.si(value * 10, [1, 2]))
        return value

    @task(name="becomes", bind=True)
    def becomes(self: Task, value: int) -> None:
        raise self.replace(add.si(value, 100))

    @task(name="becomes_group", bind=True)
    def becomes_group(self: Task, value: int) -> None:
        raise self.replace(group(add.si(value, 100), add.si(value, 200)))

    @task(name="becomes_chord", bind=True)
    def becomes_chord(self: Task, value: int) -> None:
        raise self.replace(group(add.si(value, 100), add.si(value, 200)) | total.s())

    @task(name="note")
    def note(path: str, text: str) -> str:
        """Write a line into a file, whole even when others write too."""
        with Path(path).open("ab", buffering=0) as file:
            file.write(f"{text}\n".encode())
        return text

    @task(name="note_value")
    def note_value(value: Any, path: str) -> Any:
        note(path, json.dumps(value, default=repr))
        return value

    @task(name="note_error")
    def note_error(request: Any, exc: BaseException, traceback: Any, path: str) -> None:
        """An errback of the new style."""
        note(path, f"{type(exc).__name__}: {type(exc.__cause__).__name__}")

    @task(name="note_failure")
    def note_failure(task_id: str, **options: str) -> None:
        """An errback of the old style: Celery tells them by the number of their arguments."""
        note(options["path"], f"failed {task_id}")

    @task(name="once")
    def once(mark: str, value: Any) -> Any:
        """Fail wherever the mark is."""
        try:
            Path(mark).touch(exist_ok=False)
        except FileExistsError:
            raise Unlucky("not again") from None
        return value

    @task(name="stamps", bind=True)
    def stamps(self: Task, *_: Any) -> Any:
        return {name: getattr(self.request, name, None) for name in self.request.stamped_headers or ()}

    return SimpleNamespace(app=app, **{name: one for name, one in locals().items() if hasattr(one, "apply_async")})


if CONF := os.environ.get("CELERY_S3_TEST_CONF"):
    app = Celery("chord_tasks")
    app.conf.update(json.loads(CONF))
    register(app)
