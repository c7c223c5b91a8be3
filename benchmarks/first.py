"""A fresh process that stores its first result: what that adds to a process that has Celery.

The base is what every worker and every client has anyway: an application, its configuration read, and the
modules of Celery that all backends share.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import celery.app.trace
import celery.backends.base
import celery.result  # noqa: F401
from celery import Celery


def memory() -> dict[str, float]:
    """What is resident, in MB; of that, what is private to this process, where the kernel tells (Linux)."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    except OSError:
        import resource

        return {"memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}  # the peak, in bytes on macOS
    names = {"memory": "VmRSS", "private": "RssAnon"}
    return {name: int(lines[line].split()[0]) * 1024 / 1e6 for name, line in names.items()}


def main() -> None:
    app = Celery("first", set_as_current=False)
    app.conf.update(json.load(sys.stdin)["conf"])
    app.finalize()
    before, began = memory(), time.perf_counter()
    app.backend.store_result("the-first", 42, "SUCCESS")
    wall = time.perf_counter() - began
    added = {name: [after - before[name]] for name, after in memory().items()}
    print(json.dumps({"samples": {"wall": [wall], **added}}))


if __name__ == "__main__":
    main()
