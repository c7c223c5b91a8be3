"""The tasks of the acceptance tests; a test calls them by name."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

from celery import Celery, Task
from celery.exceptions import SoftTimeLimitExceeded
from celery.result import allow_join_result

app = Celery("tasks")
app.conf.update(json.loads(os.environ["CELERY_S3_TEST_CONF"]))


class Unlucky(Exception):
    """What the failing task raises."""


@app.task(name="add")
def add(x: int, y: int) -> int:
    return x + y


@app.task(name="total")
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task(name="fail")
def fail(text: str) -> None:
    raise Unlucky(text)


@app.task(name="flaky", bind=True, max_retries=3)
def flaky(self: Task, failures: int) -> int:
    """Ask for another run so many times; return the number of the run that succeeds."""
    if self.request.retries < failures:
        raise self.retry(countdown=0, exc=Unlucky("again"))
    return self.request.retries


@app.task(name="silent", ignore_result=True)
def silent(path: str) -> str:
    Path(path).touch()
    return "nobody sees this"


@app.task(name="staged", bind=True)
def staged(self: Task, states: list[str], gate: str) -> str:
    """Go through states of its own; go on when the file ``gate`` is there."""
    for number, state in enumerate(states):
        self.update_state(state=state, meta={"number": number})
    until(gate)
    return "staged"


@app.task(name="wait_for")
def wait_for(gate: str) -> str:
    until(gate)
    return "opened"


@app.task(name="nap")
def nap(seconds: float, result: str = "rested") -> str:
    time.sleep(seconds)
    return result


@app.task(name="big")
def big(size: int) -> str:
    return "x" * size


@app.task(name="forever")
def forever() -> None:
    while True:
        time.sleep(0.1)


@app.task(name="softly")
def softly() -> str:
    """Be told that the time is up, and say so."""
    try:
        forever()
    except SoftTimeLimitExceeded:
        return "told"
    return "never"


@app.task(name="die")
def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(name="die_once", acks_late=True, reject_on_worker_lost=True)
def die_once(mark: str) -> str:
    """Kill its process at the first run; the second finds the mark that the first left."""
    if not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "second run"


@app.task(name="die_stored", bind=True)
def die_stored(self: Task) -> None:
    """Die between the storing of SUCCESS and the message to the main process."""
    self.backend.store_result(self.request.id, "stored", "SUCCESS", request=self.request)
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(name="late", bind=True, acks_late=True)
def late(self: Task, log: str, gate: str) -> int:
    """Note each run in a file and wait for the gate; return how many runs there were."""
    with Path(log).open("a") as runs:
        runs.write(f"{os.getpid()}\n")
    until(gate)
    return len(Path(log).read_text().split())


@app.task(name="join", bind=True)
def join(self: Task, seconds: float) -> tuple[str, int]:
    """Wait for another task, told when it has ended; return its value, and how many GETs that took."""
    backend = self.backend
    assert backend.notices.round_trip(self.request.id, 20.0)

    def gets() -> int:
        return backend.tally.snapshot().get("GET", {}).get("requests", 0)

    before = gets()
    with allow_join_result():
        value = nap.delay(seconds, backend.notices._listeners.get().address).get(timeout=30)
    return value, gets() - before


@app.task(name="clients", bind=True)
def clients(self: Task) -> dict[str, object]:
    """Read something; tell this process and the S3 clients that it has made so far."""
    self.backend.get_task_meta("nobody", cache=False)
    routing = self.backend.store
    while hasattr(routing, "_inner"):
        routing = routing._inner
    made = (routing._obstore.peek(), routing._boto3.peek())
    return {"pid": os.getpid(), "clients": [type(client._client).__name__ for client in made if client is not None]}


def until(path: str, timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    while not Path(path).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(path)
        time.sleep(0.05)
