"""Large values: this backend beside obstore alone, straight at the same server.

``python -m benchmarks --large`` runs each job in a fresh process, all in turn and several times: bytes a second,
peak memory beyond what the process had with the value in hand, and our requests. A job is ``python -m benchmarks.large
JOB``, told on standard input and answered on standard output.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from celery import Celery

from celery_s3.dev.process import environment
from celery_s3.dev.seaweed import SeaweedFS
from celery_s3.store.counting import difference

Order = dict[str, Any]

MIB = 1024 * 1024
#: In the order in which they take turns: each of ours beside obstore's.
JOBS = ("obstore put", "store bytes", "obstore get", "fetch bytes", "store text", "fetch text")
#: What it is that ours is compared with, and the least share of its speed.
AGAINST, SHARE = {"store bytes": "obstore put", "fetch bytes": "obstore get"}, 0.8

_ROOT = Path(__file__).parent.parent


# -- the run


def measure(mib: int, rounds: int) -> dict[str, list[Order]]:
    """The samples of each job."""
    samples: dict[str, list[Order]] = {job: [] for job in JOBS}
    with SeaweedFS() as server:
        settings = server.settings() | {"base_path": "ours"}
        conf = {"result_backend": "celery_s3.backends.S3Backend", "s3_backend_settings": settings}
        for _, job in product(range(rounds), JOBS):
            order = {"conf": conf, "server": server.settings(), "size": mib * MIB}
            samples[job].append(_sample(job, order))
            print(f"  {job:<12} {_text(samples[job][-1:])}", flush=True)
    return samples


def _sample(job: str, order: Order) -> Order:
    command = [sys.executable, "-m", "benchmarks.large", job]
    run = subprocess.run(
        command, input=json.dumps(order), capture_output=True, text=True, cwd=_ROOT, env=environment(), check=False
    )
    if run.returncode:
        raise ValueError(f"{job} failed:\n{run.stderr}")
    answer: Order = json.loads(run.stdout)
    return answer


def report(samples: dict[str, list[Order]]) -> list[str]:
    """A line for each job, and for ours what share of obstore's speed it has."""
    lines = []
    for job, own in samples.items():
        line = f"{job:<12} {_text(own)}"
        if job in AGAINST:
            share = _speed(own) / _speed(samples[AGAINST[job]])
            line += f"  {share:.0%} of {AGAINST[job]}: {'reached' if share >= SHARE else 'NOT reached'} ({SHARE:.0%})"
        lines.append(line)
    return lines


def _text(samples: list[Order]) -> str:
    speeds = sorted(sample["size"] / sample["seconds"] / 1e6 for sample in samples)
    spread = f" ({speeds[0]:,.0f}-{speeds[-1]:,.0f})" if len(speeds) > 1 else ""
    memory = max(sample["peak"] / sample["size"] for sample in samples)
    requests = " + ".join(f"{count:,} {verb}" for verb, count in samples[0]["requests"].items())
    return f"{median(speeds):6,.0f} MB/s{spread}, memory {memory:.2f} of the size{', ' if requests else ''}{requests}"


def _speed(samples: list[Order]) -> float:
    return median(sample["size"] / sample["seconds"] for sample in samples)


# -- a job, in its process


def main(job: str) -> None:
    order = json.load(sys.stdin)
    verb, what = job.split()
    work = _obstore(what, order) if verb == "obstore" else _ours(verb, what, order)
    print(json.dumps(work))


def _obstore(verb: str, order: Order) -> Order:
    import obstore
    from obstore.store import S3Store

    server = order["server"]
    bucket = S3Store(
        server["bucket"],
        endpoint=server["endpoint_url"],
        region=server["aws_region"],
        access_key_id=server["aws_access_key_id"],
        secret_access_key=server["aws_secret_access_key"],
        client_options={"allow_http": True},
    )
    if verb == "get":
        return _timed(order, lambda: bytes(obstore.get(bucket, "obstore").bytes()))
    value = _value("bytes", order["size"])
    obstore.put(bucket, "small", value[: 20 * MIB])
    return _timed(order, lambda: obstore.put(bucket, "obstore", value))


def _ours(verb: str, kind: str, order: Order) -> Order:
    app = Celery("large", set_as_current=False)
    app.conf.update(order["conf"])
    backend = app.backend
    backend.store_result("small", _value(kind, 20 * MIB), "SUCCESS")
    if verb == "fetch":
        backend.get_task_meta("small")["result"]
        return _timed(order, lambda: backend.get_task_meta(kind, cache=False)["result"], backend)
    value = _value(kind, order["size"])
    backend.forget(kind)
    return _timed(order, lambda: backend.store_result(kind, value, "SUCCESS"), backend)


def _value(kind: str, size: int) -> bytes | str:
    return os.urandom(MIB) * (size // MIB) if kind == "bytes" else "x" * size


def _timed(order: Order, work: Callable[[], object], backend: Any = None) -> Order:
    before = backend.tally.snapshot() if backend else {}
    base, began = _status("VmRSS"), time.perf_counter()
    Path("/proc/self/clear_refs").write_text("5")
    work()
    seconds, peak = time.perf_counter() - began, _status("VmHWM") - base
    made = difference(backend.tally.snapshot(), before) if backend else {}
    requests = {verb: numbers["requests"] for verb, numbers in made.items()}
    return {"seconds": seconds, "size": order["size"], "peak": peak, "requests": requests}


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main(sys.argv[1])
