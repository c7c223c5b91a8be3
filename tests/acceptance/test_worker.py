"""A real worker on SQS, its results in SeaweedFS: what every deployment does all day."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from celery import chain, chord, group, states
from celery.exceptions import NotRegistered, TaskRevokedError
from logs import complaints

TASKS = Path(__file__).with_name("tasks.py")
#: Seconds that an answer may take; only a hang takes them.
SOON = 30


@pytest.fixture
def work(seaweed, proxy, make_app, worker):
    """``app, one = work(**conf)``: an app on SQS, and its worker with two processes; ``proxy`` sees the requests."""

    def start(pool="prefork", args=(), **conf):
        conf["s3_backend_settings"] = {"endpoint_url": proxy.endpoint_url} | conf.get("s3_backend_settings", {})
        app = make_app(seaweed, broker="sqs", **conf)
        return app, worker(app, TASKS, pool=pool, args=args)

    return start


def spent(proxy, task_id):
    """The requests for one result, and their answers."""
    return [(record.method, record.status) for record in proxy.records() if record.target.endswith(task_id)]


def test_results(work, proxy, seaweed, eventually, tmp_path):
    """Success, failure and retry come back as they were; each final state cost one PUT, an ignored one none."""
    app, one = work()
    done = app.send_task("add", (1, 2))
    failed = app.send_task("fail", ("no luck",))
    retried = app.send_task("flaky", (2,))
    # older Celery sends `ignore_result` along, and knows only what it is told about a task by its name
    ignored = app.send_task("silent", (str(tmp_path / "ran"),), ignore_result=True)

    ends = [f"[{done.id}] succ", f"[{failed.id}] raised", f"[{retried.id}] succ", f"[{ignored.id}] succ"]
    eventually(lambda: all(end in one.log for end in ends), SOON)
    assert spent(proxy, done.id) == [("PUT", 200)]
    assert spent(proxy, failed.id) == [("PUT", 200)]
    assert spent(proxy, ignored.id) == []
    # Celery publishes the next run before it stores RETRY: that may come after the SUCCESS, and is refused then
    assert [status for method, status in spent(proxy, retried.id) if method == "PUT"].count(200) in (2, 3)

    assert done.get(timeout=SOON) == 3
    assert spent(proxy, done.id) == [("PUT", 200), ("GET", 206)]
    with pytest.raises(Exception, match="no luck") as caught:
        failed.get(timeout=SOON)
    assert type(caught.value).__name__ == "Unlucky"
    assert failed.state == states.FAILURE
    assert "raise Unlucky(text)" in failed.traceback
    assert retried.get(timeout=SOON) == 2
    assert ignored.state == states.PENDING
    assert complaints(one.log, "Task fail[", "Traceback", "TaskPool") == []
    assert one.log.count("Traceback (most recent call last)") == 1


def test_custom_states(work, eventually, tmp_path):
    """STARTED, states of the task's own with their meta, and the result: each is seen, in its order."""
    app, one = work(task_track_started=True)
    gates = [tmp_path / "first", tmp_path / "second"]
    plain = app.send_task("wait_for", (str(gates[0]),))
    staged = app.send_task("staged", (["UPLOADING", "PROGRESS"], str(gates[1])))

    eventually(lambda: plain.state == states.STARTED, SOON)
    assert plain.info["pid"] in one.children()
    eventually(lambda: staged.state == "PROGRESS", SOON)
    assert staged.info == {"number": 1}
    for gate in gates:
        gate.touch()
    assert plain.get(timeout=SOON) == "opened"
    assert staged.get(timeout=SOON) == "staged"
    assert complaints(one.log) == []


def test_own_states_cost_one_put_each(work, proxy, tmp_path):
    """STARTED, two states and the result of one task are four PUTs: each replaces the version that is known."""
    app, _ = work(task_track_started=True)
    (tmp_path / "gate").touch()
    staged = app.send_task("staged", (["UPLOADING", "PROGRESS"], str(tmp_path / "gate")))
    assert staged.get(timeout=SOON, interval=0.2) == "staged"
    assert [entry for entry in spent(proxy, staged.id) if entry[0] == "PUT"] == [("PUT", 200)] * 4


def test_result_extended(work):
    """`result_extended` stores what the task was called with."""
    app, one = work(result_extended=True)
    done = app.send_task("add", (1,), {"y": 2})
    assert done.get(timeout=SOON) == 3
    assert (done.name, done.args, done.kwargs) == ("add", [1], {"y": 2})
    assert f"-------------- {done.worker} v" in one.log
    assert done.queue == app.conf.task_default_queue
    assert complaints(one.log) == []


def test_canvas(work, proxy):
    """A group of 50, a chain of three, and a chord."""
    app, one = work()

    def add(*args):
        return app.signature("add", args)

    members = group([add(n, n) for n in range(50)], app=app).apply_async()
    assert members.get(timeout=SOON) == [2 * n for n in range(50)]
    line = chain(add(1, 2), add(3), add(4)).apply_async()
    assert line.get(timeout=SOON) == 10
    assert [line.parent.get(timeout=SOON), line.parent.parent.get(timeout=SOON)] == [6, 3]
    joined = chord([add(n, n) for n in range(5)], app=app)(app.signature("total"))
    assert joined.get(timeout=SOON) == 20
    assert complaints(one.log) == []
    assert set(spent(proxy, members[7].id)) <= {("PUT", 200), ("GET", 206), ("GET", 404)}


def test_what_the_main_process_stores(work, proxy):
    """A task that nobody registered, and one that came too late: stored by the main process, through boto3."""
    app, one = work()
    unknown = app.send_task("nobody.knows")
    with pytest.raises(NotRegistered):
        unknown.get(timeout=SOON)
    expired = app.send_task("add", (1, 2), expires=datetime.now(UTC) - timedelta(minutes=1))
    with pytest.raises(TaskRevokedError, match="expired"):
        expired.get(timeout=SOON)
    assert app.send_task("add", (1, 2)).get(timeout=SOON) == 3
    for result in (unknown, expired):
        agents = [
            r.headers["user-agent"] for r in proxy.records() if r.method == "PUT" and r.target.endswith(result.id)
        ]
        assert [agent.partition("/")[0] for agent in agents] == ["Botocore"]
    assert "celery_s3" not in one.log


def test_a_task_sent_twice(work, eventually):
    """Two messages with one id: the result that came first stays."""
    app, one = work()
    first = app.send_task("add", (1, 1))
    assert first.get(timeout=SOON) == 2
    second = app.send_task("add", (20, 20), task_id=first.id)
    eventually(lambda: one.log.count(f"[{first.id}] succeeded") == 2, SOON)
    assert app.AsyncResult(second.id).get(timeout=SOON) == 2
    assert complaints(one.log) == []


def test_large_results(work):
    """Results of 1 MB and of 20 MB arrive whole; the larger one goes through the other client."""
    app, one = work()
    sizes = [1_000_000, 20_000_000]
    results = [app.send_task("big", (size,)) for size in sizes]
    assert [len(result.get(timeout=SOON)) for result in results] == sizes
    assert complaints(one.log) == []


def test_two_workers(seaweed, make_app, worker, eventually):
    """Two workers share queue and bucket; every result is there, and each worker made some of them."""
    app = make_app(seaweed, broker="sqs")
    both = [worker(app, TASKS) for _ in range(2)]
    results = [app.send_task("nap", (0.05, n)) for n in range(40)]
    assert [result.get(timeout=SOON) for result in results] == list(range(40))
    assert all("succeeded" in one.log for one in both)
    assert all(complaints(one.log) == [] for one in both)
