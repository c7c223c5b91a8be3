"""The snippets of docs/asyncio.md run as they are printed."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from pathlib import Path
from textwrap import indent

import pytest
from celery.app.task import Context
from celery.result import GroupResult
from kombu.utils.uuid import uuid

PAGE = Path(__file__).parents[2] / "docs" / "asyncio.md"
AWAIT, MANY, FASTAPI, THEN = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


class Job:
    """A task that a worker has done by the time somebody waits for it."""

    def __init__(self, app):
        self.app = app

    def delay(self, x, y):
        id = uuid()
        self.app.backend.store_result(id, x + y, "SUCCESS", request=Context({"id": id}))
        return self.app.AsyncResult(id)


def test_await(counted, capsys):
    """One result, and many as they come."""
    app = counted()
    add = Job(app)
    group = GroupResult(uuid(), [add.delay(1, n) for n in range(3)], app=app)
    names = {"add": add, "group_result": group}
    body = AWAIT + MANY + "return value\n"
    exec("async def main():\n" + indent(body, "    "), names)
    assert asyncio.run(names["main"]()) == 4
    assert sorted(line.split()[1:] for line in capsys.readouterr().out.splitlines()) == [
        ["SUCCESS", "1"],
        ["SUCCESS", "2"],
        ["SUCCESS", "3"],
    ]


def test_then(counted, eventually):
    """A callback gets the result."""
    said = []
    exec(THEN, {"add": Job(counted()), "print": said.append})
    assert eventually(lambda: said) == [4]


def test_fastapi(counted):
    """A request is answered when the task has ended."""
    pytest.importorskip("fastapi")
    names = {}
    exec(FASTAPI, names)
    app = counted()
    names["tasks"].conf.update(app.test_conf)
    store = Job(app)

    async def get(path):
        sent = []

        async def receive():
            return {"type": "http.request"}

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http",
            "method": "GET",
            "path": path,
            "headers": [],
            "query_string": b"",
            "http_version": "1.1",
        }
        await names["api"](scope, receive, send)
        return sent[0]["status"], json.loads(sent[1]["body"])

    id = uuid()
    threading.Timer(0.2, app.backend.store_result, (id, 5, "SUCCESS"), {"request": Context({"id": id})}).start()
    names["tasks"]._get_backend = lambda: app.backend
    assert asyncio.run(get(f"/orders/{id}")) == (200, {"value": 5})
    assert asyncio.run(get(f"/orders/{store.delay(2, 3).id}")) == (200, {"value": 5})
