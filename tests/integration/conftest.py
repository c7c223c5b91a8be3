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

from devtools.proxy import Proxy


@pytest.fixture
def counted(proxy: Proxy, make_app: Callable[..., Celery]) -> Callable[..., Celery]:
    """``counted(**conf)``: an app behind ``proxy`` that has asked what the server can do, so that it need not later."""

    def make(**conf: Any) -> Celery:
        app = make_app(proxy, **conf)
        app.backend.results.conditional.supported()
        return app

    return make


@pytest.fixture
def spends(proxy: Proxy) -> Callable[..., AbstractContextManager[None]]:
    """``with spends(PUT=1, GET=1):`` these requests pass the proxy meanwhile, and no others."""

    @contextmanager
    def exactly(**expected: int) -> Iterator[None]:
        proxy.reset()
        yield
        assert proxy.counts() == Counter(expected)

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
