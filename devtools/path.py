"""The path of one small result: which of our own functions run when it is stored and fetched, and what that costs.

Run it with ``python -m devtools.path``; with ``--list`` it prints the path itself, call by call. Everything is real
but the network: obstore writes to its store in memory.
"""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from statistics import median
from types import FrameType
from typing import Any
from unittest.mock import patch

import obstore.store
from celery import Celery

__all__ = ["main"]

#: A small result, as most are.
RESULT = {"order": 4711, "state": "shipped", "lines": [1, 2, 3]}
#: Timed are so many batches of so many.
BATCHES, BATCH = 40, 250


def main() -> None:
    """Print calls, files and changes of file, and microseconds of CPU (the fastest batch, the median)."""
    backend = _backend()
    for name, work in (("store", _store(backend)), ("fetch", _fetch(backend))):
        work()  # what is made at the first use
        with _calls() as calls:
            work()
        files = [file for file, _ in calls]
        changes = sum(one != other for one, other in pairwise(files))
        times = sorted(_microseconds(work) for _ in range(BATCHES))
        print(f"{name}: {len(calls)} calls, {len(set(files))} files, {changes} changes of file", end="")
        print(f"; {times[0]:.1f} to {median(times):.1f} µs")
        if "--list" in sys.argv:
            print(*(f"    {file:32} {function}" for file, function in calls), sep="\n")


def _backend() -> Any:
    # before our modules import it: nothing of theirs is different
    patch.object(obstore.store, "S3Store", return_value=obstore.store.MemoryStore()).start()
    app = Celery("path", set_as_current=False, broker="memory://")
    app.conf.update(
        result_backend="celery_s3.backends.S3Backend",
        s3_bucket="bucket",
        s3_region="us-east-1",
        s3_access_key_id="key",
        s3_secret_access_key="secret",
    )
    return app.backend


def _store(backend: Any) -> Callable[[], object]:
    return lambda: backend.store_result(str(uuid.uuid4()), RESULT, "SUCCESS")


def _fetch(backend: Any) -> Callable[[], object]:
    backend.store_result("fetched", RESULT, "SUCCESS")
    return lambda: backend.get_task_meta("fetched", cache=False)["result"]


@contextmanager
def _calls() -> Iterator[list[tuple[str, str]]]:
    """The calls of our own functions inside: file and name of each, in their order."""
    found: list[tuple[str, str]] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        _, ours, file = frame.f_code.co_filename.rpartition("/celery_s3/")
        if event == "call" and ours:
            found.append((file, frame.f_code.co_qualname))

    sys.setprofile(note)
    try:
        yield found
    finally:
        sys.setprofile(None)


def _microseconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    for _ in range(BATCH):
        work()
    return (time.process_time() - began) / BATCH * 1e6


if __name__ == "__main__":
    main()
