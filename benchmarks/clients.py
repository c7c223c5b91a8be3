"""What runs in a client process: one job, told on standard input, answered in JSON on standard output.

Times are samples in the unit of the row; windows are the spans (seconds since the epoch) in which the proxy's
requests belong to the work.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from celery import Celery
from celery.app.task import Context
from celery.result import AsyncResult, GroupResult

Answer = dict[str, Any]

#: A small result, as most are.
RESULT = {"order": 4711, "state": "shipped", "lines": [1, 2, 3]}


def make_app(conf: Answer) -> Celery:
    app = Celery("client", set_as_current=False)
    app.conf.update(conf)
    return app


def new_ids(count: int) -> list[str]:
    return [str(uuid.uuid4()) for _ in range(count)]


# -- one result


def store(order: Answer) -> Answer:
    backend = make_app(order["conf"]).backend

    def work(id: str) -> None:
        backend.store_result(id, RESULT, "SUCCESS")

    return _in_batches(work, order)


def fetch(order: Answer) -> Answer:
    stored = new_ids(order["batch"])
    writer, backend = make_app(order["straight"]).backend, make_app(order["conf"]).backend
    for id in stored:
        writer.store_result(id, RESULT, "SUCCESS")

    def work(id: str) -> None:
        assert backend.get_task_meta(id, cache=False)["result"] == RESULT

    return _in_batches(work, order, stored)


def _in_batches(work: Callable[[str], object], order: Answer, ids: list[str] | None = None) -> Answer:
    cpu, wall, windows = [], [], []
    for number in range(order["batches"] + 1):
        batch = ids or new_ids(order["batch"])
        began, clock, used = time.time(), time.perf_counter(), time.process_time()
        for id in batch:
            work(id)
        used, clock = time.process_time() - used, time.perf_counter() - clock
        if number:  # the first one warms up
            cpu.append(1000 * used / len(batch))
            wall.append(1000 * clock / len(batch))
            windows.append((began, time.time()))
    return {"samples": {"cpu": cpu, "wall": wall}, "windows": windows}


# -- the floor: the client library alone, and the bytes alone


def floor(order: Answer) -> Answer:
    samples: dict[str, list[float]] = {}
    for name, work in (_obstore(order["server"]) | _bytes(order["server"])).items():
        measured = _in_batches(work, order)["samples"]
        samples |= {f"{name} {metric}": values for metric, values in measured.items()}
    return {"samples": samples}


def _obstore(server: Answer) -> dict[str, Callable[[str], object]]:
    import obstore
    from obstore.store import S3Store

    bucket = S3Store(
        server["bucket"],
        endpoint=server["endpoint_url"],
        region=server["aws_region"],
        access_key_id=server["aws_access_key_id"],
        secret_access_key=server["aws_secret_access_key"],
        client_options={"allow_http": True},
    )
    body = json.dumps(RESULT).encode()
    return {
        "obstore PUT": lambda _: obstore.put(bucket, "floor/object", body),
        "obstore GET": lambda _: bytes(obstore.get(bucket, "floor/object").bytes()),
    }


def _bytes(server: Answer) -> dict[str, Callable[[str], object]]:
    """Requests that were signed beforehand, on a bare socket: what the kernel alone takes."""
    address = urlsplit(server["endpoint_url"])
    connection = socket.create_connection((address.hostname, address.port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def exchange(request: bytes, expected: int) -> None:
        connection.sendall(request)
        answer = b""
        while len(answer.partition(b"\r\n\r\n")[2]) < expected or b"\r\n\r\n" not in answer:
            answer += connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200"), answer[:200]

    put, get = (_signed(server, method) for method in ("PUT", "GET"))
    size = len(json.dumps(RESULT))
    return {"bytes PUT": lambda _: exchange(put, 0), "bytes GET": lambda _: exchange(get, size)}


def _signed(server: Answer, method: str) -> bytes:
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    path, body = f"/{server['bucket']}/floor/object", json.dumps(RESULT).encode() if method == "PUT" else b""
    request = AWSRequest(method=method, url=server["endpoint_url"] + path, data=body)
    credentials = Credentials(server["aws_access_key_id"], server["aws_secret_access_key"])
    S3SigV4Auth(credentials, "s3", server["aws_region"]).add_auth(request)
    headers = dict(request.headers) | {"Host": urlsplit(server["endpoint_url"]).netloc, "Content-Length": len(body)}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


# -- a group


def group(order: Answer) -> Answer:
    ids = new_ids(order["size"])
    writer = make_app(order["straight"]).backend
    for id in ids:
        writer.store_result(id, RESULT, "SUCCESS")
    app = make_app(order["conf"])
    AsyncResult(ids[0], app=app).get(timeout=30)
    cpu, wall, windows = [], [], []
    for _ in range(order["times"]):
        app.backend._cache.clear()  # noqa: SLF001 (what it remembers is not fetched)
        members = GroupResult("group", [AsyncResult(id, app=app) for id in ids], app=app)
        began, clock, used = time.time(), time.perf_counter(), time.process_time()
        assert len(members.get(timeout=120)) == len(ids)
        wall.append(time.perf_counter() - clock)
        cpu.append(time.process_time() - used)
        windows.append((began, time.time()))
    return {"samples": {"wall": wall, "cpu": cpu}, "windows": windows}


# -- waiting


def wait(order: Answer) -> Answer:
    app, writer = make_app(order["conf"]), make_app(order["straight"]).backend
    if notices := getattr(app.backend, "notices", None):
        notices.round_trip(*new_ids(1), 10.0)  # else the first waits have none
    _late(app, writer, 0.05)
    late, windows = [], []
    for length in order["lengths"]:
        seconds, window = _late(app, writer, length)
        late.append(1000 * seconds)
        windows.append(window)
    return {"samples": {"late": late}, "windows": windows}


def _late(app: Celery, writer: Any, length: float) -> tuple[float, tuple[float, float]]:
    """Seconds from the moment at which the result was stored until ``get()`` returns it."""
    (id,) = new_ids(1)
    result, stored = AsyncResult(id, app=app), []
    request = None
    if str(app.conf.broker_url).startswith(("amqp", "sqs")):  # a task's message says where its notice is wanted
        app.send_task("nobody", task_id=id)
        request = Context({"id": id, "reply_to": app.thread_oid})

    def task(ends: float) -> None:
        time.sleep(max(0.0, ends - time.perf_counter()))
        writer.store_result(id, RESULT, "SUCCESS", request=request)
        stored.append(time.perf_counter())

    began = time.time()
    worker = threading.Thread(target=task, args=(time.perf_counter() + length,))
    worker.start()
    result.get(timeout=60)
    returned, window = time.perf_counter(), (began, time.time())
    worker.join()
    result.forget()
    return returned - stored[0], window


JOBS = {job.__name__: job for job in (store, fetch, floor, group, wait)}

if __name__ == "__main__":
    print(json.dumps(JOBS[sys.argv[1]](json.load(sys.stdin))))
