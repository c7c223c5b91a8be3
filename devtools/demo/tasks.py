"""The demo's tasks: what a user's ``tasks.py`` would hold."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import Task, shared_task

from celery_s3 import S3File

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    F = TypeVar("F", bound=Callable[..., Any])

    def task(**options: Any) -> Callable[[F], Any]:
        """Celery's ``shared_task``, which has no types."""
else:
    task = shared_task


class NotFound(Exception):
    """What the failing task raises, and the client gets back."""


@task(name="demo.add")
def add(x: int, y: int) -> int:
    """A result."""
    return x + y


@task(name="demo.find_order")
def find_order(number: int) -> None:
    """A failure, with an exception class of the application's own."""
    raise NotFound(number)


@task(name="demo.unsteady", bind=True, max_retries=1)
def unsteady(self: Task) -> str:
    """Fail the first time."""
    if self.request.retries == 0:
        raise self.retry(exc=ConnectionError("try again"), countdown=0.2)
    return f"attempt {self.request.retries + 1}"


@task(name="demo.notify", ignore_result=True)
def notify(name: str) -> str:
    """A task whose result is not stored."""
    return f"hello {name}"


@task(name="demo.report")
def report(size: int) -> str:
    """A result of ``size`` characters."""
    return "0123456789" * (size // 10)


@task(name="demo.work")
def work(number: int) -> int:
    """50 ms of work."""
    time.sleep(0.05)
    return number


@task(name="demo.total")
def total(numbers: Iterable[int]) -> int:
    """The body of a chord: the sum of its members' results."""
    return sum(numbers)


@task(name="demo.export")
def export(rows: int) -> S3File:
    """A file, which goes to S3 as it is and comes back as a handle."""
    path = Path(tempfile.gettempdir(), "orders.csv")
    path.write_text("number,total\n" + "".join(f"{number},{number * 7}\n" for number in range(rows)))
    return S3File(path)


@task(name="demo.fragile", bind=True, acks_late=True, reject_on_worker_lost=True)
def fragile(self: Task, number: int) -> int:
    """Work; of a chord's tasks the fourth has its process killed, the first time."""
    time.sleep(0.05)
    if number == 3:
        with suppress(FileExistsError):
            os.close(os.open(Path(tempfile.gettempdir(), self.request.id), os.O_CREAT | os.O_EXCL))
            os.kill(os.getpid(), signal.SIGKILL)
    return number
