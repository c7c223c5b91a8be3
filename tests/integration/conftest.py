"""What the backend's tests share: counted requests, and tasks run as a worker's child runs them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
from celery import Celery, states
from celery.app.task import Context
from celery.app.trace import build_tracer
from kombu.utils.uuid import uuid

from celery_s3.store.memory import MemoryStore
from devtools.proxy import Proxy

#: The S3 operations by the verbs of the store in memory, where they differ.
OPERATIONS = {
    "DELETE_OBJECTS": "DeleteObjects",
    "CREATE": "CreateMultipartUpload",
    "PART": "UploadPart",
    "COMPLETE": "CompleteMultipartUpload",
    "ABORT": "AbortMultipartUpload",
}


class Memory:
    """A bucket in memory where an app expects a server, with the part of :class:`Proxy` that counts requests."""

    bucket, region = "memory", "us-east-1"
    access_key, secret_key = "some-access-key", "some-secret-key"
    endpoint_url = "http://memory.invalid"

    def __init__(self) -> None:
        self.store = MemoryStore()

    def settings(self) -> dict[str, Any]:
        return {
            "bucket": self.bucket,
            "aws_region": self.region,
            "endpoint_url": self.endpoint_url,
            "aws_access_key_id": self.access_key,
            "aws_secret_access_key": self.secret_key,
        }

    def counts(self) -> Counter[str]:
        """Requests since the last :meth:`reset`, by S3 operation."""
        return Counter(OPERATIONS.get(verb, verb) for verb, *_ in self.store.requests)

    def reset(self) -> None:
        """Forget what was counted."""
        self.store.requests.clear()


@pytest.fixture
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Memory | Proxy:
    """What counts requests: a bucket in memory, or a real server behind a proxy.

    The real one serves ``--store=seaweed``, and tests that ask for ``proxy`` too: they need its faults, bytes on the
    wire, or requests that do not go through a store (links, stale uploads, other processes).
    """
    if request.config.getoption("store") == "seaweed" or "proxy" in request.fixturenames:
        proxy: Proxy = request.getfixturevalue("proxy")
        return proxy
    memory = Memory()
    monkeypatch.setattr("celery_s3.bucket.Routing", lambda settings: memory.store)
    return memory


@pytest.fixture
def counted(server: Memory | Proxy, make_app: Callable[..., Celery]) -> Callable[..., Celery]:
    """``counted(**conf)``: an app on ``server`` that has asked what the server can do, so that it need not later.

    ``app.server`` is the server.
    """

    def make(**conf: Any) -> Celery:
        app = make_app(server, **conf)
        app.server = server
        app.backend.results.conditional.supported()
        return app

    return make


@pytest.fixture
def spends(server: Memory | Proxy) -> Callable[..., AbstractContextManager[None]]:
    """``with spends(PUT=1, GET=1):`` these requests reach ``server`` meanwhile, and no others."""

    @contextmanager
    def exactly(**expected: int) -> Iterator[None]:
        server.reset()
        yield
        assert server.counts() == Counter(expected)

    return exactly


@pytest.fixture
def run() -> Callable[..., Any]:
    """``run(task, *args, id=…, request={…})``: run a task as a worker's child does; the id of its result."""

    def traced(task: Any, *args: Any, id: str = "", request: dict[str, Any] | None = None) -> str:
        id = id or uuid()
        head = {"id": id, "task": task.name, "delivery_info": {"routing_key": "jobs"}, "hostname": "here", "retries": 0}
        build_tracer(task.name, task, app=task.app)(id, args, {}, head | (request or {}))
        return id

    return traced


@pytest.fixture
def stored() -> Callable[..., Any]:
    """``stored(app, value, state="SUCCESS", id=…)``: store a result; the AsyncResult that reads it, uncached."""

    def store(app: Celery, value: Any = None, state: str = states.SUCCESS, id: Any = None, **request: Any) -> Any:
        id = id or uuid()
        context = Context({"id": id, "task": "proj.tasks.job", **request})
        app.backend.store_result(id, value, state, request=context)
        return app.AsyncResult(id)

    return store
