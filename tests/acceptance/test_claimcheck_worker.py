"""The claim check with a real worker on SQS, whose messages may have 256 KiB; its objects in SeaweedFS."""

from __future__ import annotations

from pathlib import Path

import pytest
from celery import chord, group
from celery.exceptions import TimeLimitExceeded
from logs import complaints

from celery_s3 import claimcheck
from celery_s3.errors import MessageNotRead

TASKS = Path(__file__).with_name("claimcheck_tasks.py")
#: Seconds that an answer may take; only a hang takes them.
SOON = 30
BIG = "x" * 5_000_000


@pytest.fixture
def work(seaweed, proxy, make_app, worker):
    """``app, one = work(**conf)``: an app on SQS, and its worker with two processes; ``proxy`` sees the requests."""

    def start(pool="prefork", **conf):
        conf["s3_backend_settings"] = {"endpoint_url": proxy.endpoint_url} | conf.get("s3_backend_settings", {})
        app = make_app(seaweed, broker="sqs", task_serializer="s3+json", accept_content=["s3+json", "json"], **conf)
        claimcheck.install(app)
        return app, worker(app, TASKS, pool=pool)

    return start


def messages(proxy):
    """The requests for what messages point to: the verb, and whether boto3 made them."""
    found = [record for record in proxy.records() if "/celery-messages/" in record.target]
    return [(record.method, "Boto3" in record.headers.get("user-agent", "")) for record in found]


def test_5_mb(work, proxy, eventually):
    """5 MB of arguments pass through SQS, once or in a retry, at once or later; and 5 MB of values to a chord's body.

    The worker's children fetch them, by obstore; its main process, which has boto3, makes no request for them.
    """
    app, one = work()
    header = group(app.signature("many", (1_000_000,)) for _ in range(5))
    results = {
        app.send_task("length", (BIG, BIG)): 10_000_000,
        app.send_task("length", (BIG,), countdown=1): 5_000_000,
        app.send_task("again", (BIG,)): 5_000_000,
        chord(header, app=app)(app.signature("lengths")): [1_000_000] * 5,
    }
    for result, wanted in results.items():
        assert result.get(timeout=SOON) == wanted
    assert complaints(one.log) == []
    made = messages(proxy)
    assert made.count(("GET", False)) == 6  # 10 MB take two
    assert made.count(("PUT", False)) >= 3  # two by this process; the children's, to retry and to send the body
    assert {by_boto3 for _, by_boto3 in made} == {False}


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_other_pools(work, pool):
    """Solo and threads fetch in the task too."""
    app, one = work(pool=pool)
    assert app.send_task("length", (BIG,)).get(timeout=SOON) == 5_000_000
    assert complaints(one.log) == []


def test_lost_arguments(work, seaweed, eventually, tmp_path):
    """A message whose arguments are gone fails its task, calls its errback and is not delivered again."""
    app, one = work(task_acks_late=True)
    told = tmp_path / "told"
    errback = app.signature("note", kwargs={"path": str(told)})
    later = app.send_task("length", (BIG,), countdown=3, link_error=errback)
    for entry in list(app.backend.store.list(app.backend.settings.base + "celery-messages/")):
        app.backend.store.delete(entry.key)
    with pytest.raises(MessageNotRead, match="older than the lifecycle rule keeps them"):
        later.get(timeout=SOON)
    assert eventually(lambda: told.exists() and told.read_text(), SOON) == later.id
    assert app.send_task("length", ("after",)).get(timeout=SOON) == 5
    assert one.log.count(f"[{later.id}] raised") == 1


def test_killed_children(work, eventually, tmp_path):
    """A process that dies with a task loses nothing, even where success removes the arguments; a time limit ends it."""
    app, one = work(s3_backend_settings={"message_cleanup": "success"})
    again = app.send_task("die_once", (str(tmp_path / "mark"), BIG))
    ended = app.send_task("too_long", (BIG,))
    assert again.get(timeout=SOON) == 5_000_000
    with pytest.raises(TimeLimitExceeded):
        ended.get(timeout=SOON)
    assert one.running
    prefix = app.backend.settings.base + "celery-messages/"
    eventually(lambda: len(list(app.backend.store.list(prefix))) == 1)
