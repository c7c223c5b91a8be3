"""The policies of ``celery s3 policy`` against the calls that workers, clients and commands really make, both ways."""

from __future__ import annotations

import io
import re
import time
from datetime import timedelta
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest
from celery import chord, states
from celery.app.trace import trace_task_ret
from celery.bin.base import CLIContext
from celery.exceptions import ChordError
from click.testing import CliRunner
from kombu.utils.uuid import uuid

from celery_s3 import S3File, claimcheck
from celery_s3.chords import Ticket, claim
from celery_s3.cli import s3
from celery_s3.expiry.terms import Terms
from celery_s3.files import whose
from celery_s3.operate.policy import document
from celery_s3.store import uploads
from celery_s3.store.routing import Routing

BIG = "x" * 200_000
#: The least that S3 takes for a part that is not the last one.
LENGTH = 5 * 1024 * 1024
#: The name of a file, behind the prefix of all.
FILE = f"{uuid()}/{'0' * 32}"
#: With the module's setting, a lease of a moment.
CONF = {
    "broker_connection_timeout": 0.1,
    "task_publish_retry_policy": {},
    "task_publish_retry": False,
    "task_serializer": "s3+json",
    "accept_content": ["s3+json", "json"],
    "task_default_queue": "shared",
}
BUCKET_ACTIONS = {
    ("GET", "lifecycle"): "s3:GetLifecycleConfiguration",
    ("PUT", "lifecycle"): "s3:PutLifecycleConfiguration",
    ("GET", "publicAccessBlock"): "s3:GetBucketPublicAccessBlock",
    ("PUT", "publicAccessBlock"): "s3:PutBucketPublicAccessBlock",
    ("GET", "encryption"): "s3:GetEncryptionConfiguration",
    ("PUT", "encryption"): "s3:PutEncryptionConfiguration",
    ("GET", "versioning"): "s3:GetBucketVersioning",
    ("GET", "uploads"): "s3:ListBucketMultipartUploads",
    ("GET", "list-type"): "s3:ListBucket",
}


def calls(records):
    """What IAM is asked for these requests: action and resource, the latter without what makes two keys differ."""
    for record in records:
        url = urlsplit(record.target)
        _, bucket, *key = unquote(url.path).split("/", 2)
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        if not bucket:
            assert record.method == "POST"  # GetCallerIdentity, which needs no permission
        elif "".join(key):
            yield f"s3:{object_action(record.method, query)}", f"{bucket}/{key[0]}"
        elif "delete" in query:
            yield "s3:DeleteObject", None  # the keys are in the body: the next part of the test looks at them
        elif record.fault == "access_denied":
            pass  # whoever asked goes on without
        elif names := [name for name in query if (record.method, name) in BUCKET_ACTIONS]:
            yield BUCKET_ACTIONS[record.method, names[0]], bucket
        else:
            assert record.method == "PUT", record
            yield "s3:CreateBucket", bucket


def object_action(method, query):
    """S3 wants no more for an upload in parts than for a PUT, but for its abort."""
    if "uploads" in query or "uploadId" in query:
        return "AbortMultipartUpload" if method == "DELETE" else "PutObject"
    return f"{method.capitalize()}Object"


def grants(policy):
    """The policy's pairs of action and resource, the latter as an expression."""
    for one in policy["Statement"]:
        for action in one["Action"]:
            for arn in one["Resource"]:
                yield action, re.escape(arn.removeprefix("arn:aws:s3:::")).replace(r"\*", ".*")


def compare(allowed, asked):
    """What was asked and is not allowed, and what is allowed and was not asked."""
    used, forbidden = set(), []
    for action, resource in asked:
        fits = [grant for grant in allowed if grant[0] == action and re.fullmatch(grant[1], resource)]
        used.update(fits)
        if not fits:
            forbidden.append((action, resource))
    return sorted(set(forbidden)), sorted(set(allowed) - used)


class Party:
    """An app behind a proxy of its own, which sees what it asks; the keys of DeleteObjects are seen on the way."""

    def __init__(self, app, proxy, deleted):
        self.app, self.proxy, self.backend = app, proxy, app.backend
        self._deleted = deleted
        claimcheck.install(app)
        for name, fn in TASKS.items():
            app.task(name=name, bind=True)(fn)
        proxy.reset()

    def unlike_the_policy(self, role):
        """What was asked and is not allowed, and what is allowed and was not asked."""
        bucket, endpoint = self.backend.settings.bucket, self.proxy.endpoint_url
        asked = [call for call in calls(self.proxy.records()) if call[1] is not None]
        asked += [("s3:DeleteObject", f"{bucket}/{key}") for place, key in self._deleted if place == endpoint]
        policy = document(self.backend.settings, role, self.backend.layout, messages=True)
        return compare(list(grants(policy)), asked)

    def doctor(self):
        """`doctor` where IAM refuses what is asked of the bucket itself: nothing fails."""
        for name in ("lifecycle", "versioning"):
            self.proxy.fail(f"GET ?{name}", "access_denied", times=-1)
        obj = CLIContext(app=self.app, no_color=True, workdir=None)
        done = CliRunner().invoke(s3, ["doctor"], obj=obj, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        self.proxy.heal()

    def probe(self):
        """Ask for conditional writes; an answer gets lost, so that it is settled by reading."""
        self.proxy.fail("PUT celery-s3-probe", "reset_after", after=1)
        assert self.backend.results.conditional.supported()

    def work(self):
        """Run every message as a worker's child does."""
        whose.last_used.set(None)  # what this process has to do with other apps is not the worker's
        with self.app.connection_for_read() as connection:
            queue = self.app.amqp.queues["shared"](connection.default_channel)
            queue.declare()
            while (message := queue.get(no_ack=True, accept=CONF["accept_content"])) is not None:
                info = {"redelivered": False, "routing_key": "shared", "exchange": ""}
                headers = dict(message.headers)
                about = (message.content_type, message.content_encoding)
                request = headers | {"delivery_info": info}
                trace_task_ret(headers["task"], headers["id"], request, message.body, *about, app=self.app)

    def give_up(self, key):
        """An upload in parts that fails, and is aborted."""

        def chunks():
            yield bytes(2 * LENGTH)
            raise OSError("the disk")

        with pytest.raises(OSError, match="the disk"):
            self.backend.writer.write(key, chunks())

    def stuck(self):
        """A chord whose members have delivered their parts, a failure among them, and then died; its result."""
        header = [self.app.signature("measure", ("a",)), self.app.signature("measure", ("b",))]
        result = chord(header, self.app.signature("measure")).apply_async()
        ids = [member.id for member in result.parent.results]
        for index, state in enumerate((states.SUCCESS, states.FAILURE)):
            value = index if state == states.SUCCESS else self.backend.prepare_exception(KeyError("no"))
            payload = self.backend.encode([ids[index], state, value]).encode()
            self.backend.chords.deliver(Ticket(result.parent.id, 2, True), ids[index], index, payload)
        with self.app.connection_for_write() as connection:
            self.app.amqp.queues["shared"](connection.default_channel).purge()
        time.sleep(2.6)  # the lease
        return result


def measure(task, value):
    return len(str(value))


def everything(task, value):
    """What a task may ask of its app's backend."""
    other = task.app.signature("measure", (BIG,)).delay()
    assert other.state == states.PENDING
    saved = group_of(task.app, [other.id])
    task.app.GroupResult.restore(saved.id).delete()
    other.forget()
    return len(value)


def again(task, file):
    """Read a file, and return another one."""
    return S3File(io.BytesIO(b"".join(file)))


TASKS = {"measure": measure, "everything": everything, "again": again}


def a_file():
    return S3File(io.BytesIO(b"bytes"))


def group_of(app, ids):
    saved = app.GroupResult(uuid(), [app.AsyncResult(id) for id in ids])
    saved.save()
    return saved


@pytest.fixture
def party(make_app, monkeypatch):
    """``party(proxy, **conf)``"""
    monkeypatch.setattr(claim, "SHORTEST_LEASE", 0.3)
    monkeypatch.setattr(uploads, "part_bytes", lambda size: LENGTH)
    monkeypatch.setattr("celery_s3.expiry.stale_uploads.DAY", 0)
    deleted = []
    monkeypatch.setattr(Routing, "send", noting(Routing.send, deleted))
    return lambda proxy, **conf: Party(make_app(proxy, **(CONF | conf)), proxy, deleted)


def noting(send, deleted):
    def noted(self, request):
        keys = getattr(request, "keys", ()) or getattr(request, "versions", ())
        deleted.extend((self._settings.endpoint_url, key) for key in keys)
        return send(self, request)

    return noted


def soon_expired(backend, monkeypatch):
    """Let everything expire within a moment."""
    for module in ("sweep", "terms"):
        monkeypatch.setattr(f"celery_s3.expiry.{module}.SLACK", 0.0)
    backend.expiry._terms = Terms(0.1, 0.1, 0.1, 0.1, 0.1)
    backend.mending._kept = backend.mending._dead = timedelta(seconds=0.1)
    time.sleep(2.2)  # Last-Modified has whole seconds


def test_client(party, proxy_for, seaweed):
    """Who sends tasks, waits for results and forgets them asks for what the policy allows, and for nothing else.

    So does `doctor` there.
    """
    client, worker = party(proxy_for(seaweed)), party(proxy_for(seaweed))
    client.doctor()
    client.probe()
    result = client.app.signature("measure", (BIG,)).delay()
    members = chord([client.app.signature("measure", (BIG,))] * 2, client.app.signature("measure")).apply_async()
    copied = client.app.signature("again", (a_file(),)).delay()
    worker.work()
    assert list(copied.get(timeout=5)) == [b"bytes"]
    copied.forget()
    assert result.get(timeout=5) == len(BIG)
    assert members.get(timeout=5) == len("[200000, 200000]")
    saved = group_of(client.app, [result.id])
    client.app.GroupResult.restore(saved.id).delete()
    result.forget()
    client.give_up(client.backend.layout.files + FILE)
    stuck = client.stuck()
    worker.backend.repairs.run()
    with pytest.raises(ChordError):
        stuck.get(timeout=5)
    assert client.unlike_the_policy("client") == ([], [])


def test_worker(party, proxy_for, seaweed, monkeypatch):
    """Who runs tasks and chords, looks after them, is told to clean up by beat and runs `doctor`, likewise."""
    worker, client = party(proxy_for(seaweed)), party(proxy_for(seaweed))
    worker.doctor()
    worker.probe()
    client.app.signature("everything", (BIG,)).delay()
    client.app.signature("again", (a_file(),)).delay()
    chord([client.app.signature("measure", (BIG,))] * 2, client.app.signature("measure")).apply_async()
    worker.work()
    worker.backend.mending.turn()
    worker.backend.repairs.run()
    assert not worker.backend.supports_autoexpire
    group_of(client.app, ["some-id"])
    worker.give_up(worker.backend.layout.results + "large")
    client.backend._plain_store.create_upload(client.backend.layout.files + FILE)
    soon_expired(worker.backend, monkeypatch)
    worker.backend.cleanup()
    assert list(client.backend.store.list(client.backend.layout.messages)) == []
    assert worker.unlike_the_policy("worker") == ([], [])


def test_operator(party, proxy_for, moto_s3, monkeypatch):
    """Who runs the commands, likewise; and who sets the bucket up, by `init` alone."""
    bucket = f"bucket-{uuid()}"
    settings = {"bucket": bucket, "sse": "AES256"}
    proxy = proxy_for(moto_s3)
    operator = party(proxy, s3_backend_settings=settings, result_expires=86_400)
    administrator = party(proxy_for(moto_s3), s3_backend_settings=settings, result_expires=86_400)
    client = party(proxy_for(moto_s3), s3_backend_settings=settings)

    def celery(*arguments, code=0, by=operator):
        obj = CLIContext(app=by.app, no_color=True, workdir=None)
        done = CliRunner().invoke(s3, arguments, obj=obj, catch_exceptions=False)
        assert done.exit_code == code, done.output
        return done.output

    celery("init", "--yes", by=administrator)
    operator.probe()
    layout = operator.backend.layout
    for part in (f"{layout.results}part", f"{layout.files}{FILE}"):
        moto_s3.request("POST", f"/{bucket}/{part}?uploads")
    assert "part, begun" in celery("init", "--yes", by=administrator)
    moto_s3.request("POST", f"/{bucket}/{layout.results}part?uploads")
    moto_s3.request("POST", f"/{bucket}/{layout.files}{FILE}?uploads")
    celery("doctor")
    celery("bench", "--count", "2")
    client.stuck()
    celery("chords", "--repair", "--yes")
    client.backend.store_result("some-id", a_file(), states.SUCCESS)
    client.backend.store_result("other-id", a_file(), states.SUCCESS)
    celery("ls")
    celery("show", "some-id")
    celery("forget", "some-id", "--yes")
    group_of(client.app, ["some-id"])
    client.app.signature("measure", (BIG,)).delay()
    soon_expired(operator.backend, monkeypatch)
    assert "Aborted 2 unfinished uploads." in celery("sweep")
    assert list(client.backend.store.list(client.backend.layout.messages)) == []
    assert operator.unlike_the_policy("operator") == ([], [])
    assert administrator.unlike_the_policy("administrator") == ([], [])
