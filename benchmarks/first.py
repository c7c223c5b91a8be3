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


def resident() -> float:
    """The memory of this process, in MB."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * 4096 / 1e6
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # the peak, in bytes on macOS


def main() -> None:
    app = Celery("first", set_as_current=False)
    app.conf.update(json.load(sys.stdin)["conf"])
    app.finalize()
    memory, began = resident(), time.perf_counter()
    app.backend.store_result("the-first", 42, "SUCCESS")
    ended = time.perf_counter()
    print(json.dumps({"samples": {"wall": [ended - began], "memory": [resident() - memory]}}))


if __name__ == "__main__":
    main()
