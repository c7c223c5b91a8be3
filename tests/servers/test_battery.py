"""What this package promises, on each server; where a server lacks what that takes, by the way around."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from celery import chord, group, states
from celery.app.task import Context
from celery.bin.base import CLIContext
from celery.result import AsyncResult
from click.testing import CliRunner
from kombu.utils.uuid import uuid

import servers
from celery_s3 import S3File
from celery_s3.cli import s3
from celery_s3.expiry import clock

TASKS = Path(__file__).parents[1] / "acceptance" / "tasks.py"
MIB, DAY = 1024 * 1024, 86_400
#: Seconds that an answer may take; only a hang takes them.
SOON = 60
# what the short battery of `make test` does a few times
RACES = 25 if servers.IN_FULL else 3
GROUP, CHORD = (50, 40) if servers.IN_FULL else (6, 5)
LARGE = 40 * MIB if servers.IN_FULL else 12 * MIB

ODD = ["a b", "a%2Fb", "a+b&c?d#e", "a'b(c)[d]{e}", 'a"b<c>d^e`f', "é", "日本語", "😀", "...", "a/b", "a" * 200]


@pytest.fixture
def app(server: Any, make_app: Any) -> Any:
    return make_app(server)


@pytest.fixture
def run(app: Any) -> Any:
    """``run("ls", "--json")``: a command, which succeeds; what it prints."""

    def command(*arguments: str, app: Any = app, code: int = 0, input: str | None = None) -> Any:
        obj = CLIContext(app=app, no_color=True, workdir=None)
        done = CliRunner().invoke(s3, [*map(str, arguments)], obj=obj, input=input, catch_exceptions=False)
        assert done.exit_code == code, done.output
        return done.stdout

    return command


def store(app: Any, value: Any, state: str = states.SUCCESS, id: str = "", **request: Any) -> AsyncResult:
    id = id or uuid()
    app.backend.store_result(id, value, state, request=Context({"id": id, "task": "proj.tasks.job", **request}))
    return app.AsyncResult(id)


# -- results


def test_store_fetch_forget(app: Any) -> None:
    """A result comes back as it was stored, one that is not there is pending, one that is forgotten is gone."""
    result = store(app, {"a": [1, None, "é"]})
    assert result.get(timeout=SOON) == {"a": [1, None, "é"]}
    failed = store(app, ValueError("no good"), states.FAILURE)
    with pytest.raises(ValueError, match="no good"):
        failed.get(timeout=SOON)
    assert app.AsyncResult(uuid()).state == states.PENDING
    result.forget()
    assert app.AsyncResult(result.id).state == states.PENDING


def test_odd_ids(app: Any) -> None:
    """A task's id may be made of anything."""
    for id in ODD:
        store(app, id, id=id)
    assert [app.AsyncResult(id).get(timeout=SOON) for id in ODD] == ODD


def test_states(app: Any) -> None:
    """Started, progress, another try and the result: each replaces the one before."""
    id = uuid()
    for state, value in (("STARTED", {"pid": 1}), ("PROGRESS", {"done": 1}), ("PROGRESS", {"done": 2})):
        assert store(app, value, state, id).info == value
    assert store(app, ValueError("again"), states.RETRY, id).state == states.RETRY
    assert store(app, {"pid": 2}, "STARTED", id).state == "STARTED"
    assert store(app, "done", id=id).get(timeout=SOON) == "done"


@pytest.mark.parametrize("late", [states.FAILURE, states.RETRY, "PROGRESS"])
def test_a_success_is_final(app: Any, late: str) -> None:
    """Whatever is told after a SUCCESS is not stored."""
    result = store(app, "done")
    store(app, ValueError("too late") if late != "PROGRESS" else {"done": 1}, late, result.id)
    assert app.AsyncResult(result.id).get(timeout=SOON) == "done"


def test_races(app: Any, kind: Any) -> None:
    """Of a SUCCESS and a FAILURE at the same moment the SUCCESS stands, where the server tells who was first."""
    for _ in range(RACES):
        id, barrier = uuid(), threading.Barrier(2)

        def one(value: Any, state: str, id: str = id, barrier: Any = barrier) -> None:
            barrier.wait()
            store(app, value, state, id)

        threads = [
            threading.Thread(target=one, args=args)
            for args in (("done", states.SUCCESS), (ValueError("lost"), states.FAILURE))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        last_one_stands = {"create", "atomic create", "replace"} & set(kind.lacks)
        assert app.AsyncResult(id).state in (states.SUCCESS, states.FAILURE if last_one_stands else None)


@pytest.mark.skipif(not servers.IN_FULL, reason="600 reads")
def test_reads_are_whole(app: Any) -> None:
    """What is read while it is replaced is the one or the other, and no mixture."""
    key, bodies, over = app.backend.layout.result_key(uuid()), (b"a" * 150, b"b" * 400), threading.Event()
    put, get = app.backend.store.put, app.backend.store.get
    put(key, bodies[0])

    def replace() -> None:
        while not over.is_set():
            for body in reversed(bodies):
                put(key, body)

    writer = threading.Thread(target=replace)
    writer.start()
    try:
        for _ in range(600):
            assert get(key).body in bodies
    finally:
        over.set()
        writer.join()


# -- large ones


def test_large_result(app: Any) -> None:
    """A result of many parts comes back byte for byte, and its state is known without them."""
    value = "".join(f"{number:015}\n" for number in range(LARGE // 16))
    result = store(app, value)
    assert result.state == states.SUCCESS
    assert app.AsyncResult(result.id).get(timeout=SOON) == value


def test_late_large_result(app: Any) -> None:
    """Not even a large FAILURE, which is completed in the end, replaces a SUCCESS."""
    result = store(app, "done")
    store(app, ValueError("x" * 12 * MIB), states.FAILURE, result.id)
    assert app.AsyncResult(result.id).get(timeout=SOON) == "done"


def test_file(app: Any, tmp_path: Path) -> None:
    """A file is a result: uploaded, read in part and as a whole."""
    path, body = tmp_path / "a b.bin", os.urandom(64 * 1024) * 160
    path.write_bytes(body)
    found = store(app, S3File(str(path))).get(timeout=SOON)
    found.download_to(tmp_path / "back.bin")
    assert (tmp_path / "back.bin").read_bytes() == body
    with found.open() as file:
        assert file.read(6 * MIB) == body[: 6 * MIB]


# -- a worker


@pytest.mark.skipif(not servers.IN_FULL, reason="a worker more; the states are those of `test_states`")
def test_states_on_a_worker(server: Any, make_app: Any, worker: Any, tmp_path: Path) -> None:
    """A tracked task that retries, and one with progress, on a real worker."""
    app = make_app(server, broker="filesystem", task_track_started=True)
    one = worker(app, TASKS)
    (tmp_path / "gate").touch()
    retried = app.send_task("flaky", (2,))
    staged = app.send_task("staged", (["UPLOADING", "PROGRESS"], str(tmp_path / "gate")))
    assert retried.get(timeout=SOON) == 2
    assert staged.get(timeout=SOON) == "staged"
    assert "ResultNotStored" not in one.log


def test_groups_on_a_worker(server: Any, make_app: Any, worker: Any) -> None:
    """A group and a chord on a real worker."""
    app = make_app(server, broker="filesystem")
    one = worker(app, TASKS)
    tasks = [app.signature("add", (n, n)) for n in range(GROUP)]
    members = group(tasks, app=app).apply_async()
    joined = chord(tasks[:CHORD], app=app)(app.signature("total"))
    assert members.get(timeout=SOON) == [2 * n for n in range(GROUP)]
    assert joined.get(timeout=SOON) == sum(2 * n for n in range(CHORD))
    assert "ResultNotStored" not in one.log


# -- the commands


def test_commands(app: Any, run: Any) -> None:
    """ls, show, forget and sweep do what they say."""
    kept, forgotten = store(app, "kept"), store(app, "forgotten")
    listed = {one["id"] for one in json.loads(run("ls", "--json"))}
    assert listed == {kept.id, forgotten.id}
    assert "kept" in run("show", kept.id)
    run("forget", "--yes", forgotten.id)
    assert app.AsyncResult(forgotten.id).state == states.PENDING
    run("sweep")
    assert app.AsyncResult(kept.id).get(timeout=SOON) == "kept"


def test_expired_results_are_swept(server: Any, make_app: Any, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has expired is deleted, many at once, and nothing else is."""
    app = make_app(server)
    for number in range(12):
        store(app, number)
    stays = store(app, "stays", headers={"result_expires": 9 * DAY})
    monkeypatch.setattr(clock, "server_clock", lambda control: lambda: time.time() + 3 * DAY)
    run("sweep", app=app)
    left = [entry.key for entry in app.backend.store.list(f"{app.backend.settings.base}celery-task-meta-")]
    assert left == [app.backend._full(app.backend.get_key_for_task(stays.id))]


def test_forget_by_filter(app: Any, run: Any) -> None:
    """Many results are deleted by what they are."""
    failed = [store(app, ValueError(str(n)), states.FAILURE) for n in range(12)]
    stays = store(app, "stays")
    run("forget", "--yes", "--state", "FAILURE")
    assert {app.AsyncResult(one.id).state for one in failed} == {states.PENDING}
    assert app.AsyncResult(stays.id).get(timeout=SOON) == "stays"


def test_init_and_doctor(server: Any, make_app: Any, run: Any) -> None:
    """init makes a bucket in which results can be stored, and says what this server has no API for; doctor agrees."""
    app = make_app(server, s3_backend_settings={"bucket": f"bucket-{uuid()}"})
    try:
        run("init", "--yes", app=app)
        result = store(app, "stored")
        assert result.get(timeout=SOON) == "stored"
        run("doctor", app=app)
        result.forget()
    finally:
        server.answers("DELETE", f"/{app.backend.settings.bucket}")
