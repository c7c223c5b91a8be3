"""What storing and fetching a large result takes in memory: measured in a process of its own, by the kernel.

All is told in units of the serialised size N. To the value, which its task has in hand, storing adds 2 N at most (JSON,
while it is made); fetching takes 2 N at most, the value included (a text and its value), or the value and N where its
objects are larger than their text. Beside that stand the parts on their way: :data:`PARTS`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from celery import Celery

MIB = 1024 * 1024
SIZE = 80 * MIB
#: With two requests at a time: of an upload three parts of 8 MiB, each once more in the client or as the sealed frames
#: that it is made of (48 MiB); of a download two of 4 MiB, in two libraries, and what the allocator keeps of as many;
#: modules and buffers that come with the first of them. It is less than one N.
PARTS = 72 * MIB
SEALED = {"seal_keys": ["AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="]}

KINDS = {
    "text": lambda: "x" * SIZE,
    "bytes": lambda: os.urandom(MIB) * (SIZE // MIB),
    "numbers": lambda: list(range(10**17, 10**17 + SIZE // 20)),
}


def has_peak():
    """Whether the kernel tells a process' largest resident memory, and begins anew when it is asked to."""
    return Path("/proc/self/clear_refs").exists()


@pytest.mark.skipif(not has_peak(), reason="only Linux tells a peak since a moment")
@pytest.mark.parametrize(
    ("kind", "serializer", "settings", "storing", "fetching"),
    [
        ("text", "json", {}, 2, 2),
        ("numbers", "json", {}, 2, 1),
        ("bytes", "json", {}, 0, 1),
        ("text", "pickle", {}, 1, 2),
        ("bytes", "json", SEALED, 0, 1),
    ],
    ids=["json text", "json numbers", "raw bytes", "pickled text", "sealed bytes"],
)
def test_peak(make_app, seaweed, kind, serializer, settings, storing, fetching):
    """Storing adds as many times N to the value, and fetching takes as many with it, as there must be: never over 2."""
    own = {"concurrency": 2, **settings}
    app = make_app(seaweed, result_serializer=serializer, accept_content=[serializer], s3_backend_settings=own)
    run = subprocess.run(
        [sys.executable, __file__, kind, json.dumps(app.test_conf)], capture_output=True, text=True, check=True
    )
    told = json.loads(run.stdout)
    size = told["size"]
    fetching = fetching * size + (told["value"] if kind == "numbers" else 0)
    assert told["stored"] <= storing * size + PARTS
    assert max(told["fetched"], told["replaced"]) <= fetching + PARTS


# -- the process that is measured


def main(kind, conf):
    from celery_s3.errors import PreconditionFailed

    app = Celery("measured", set_as_current=False)
    app.conf.update(json.loads(conf))
    backend = app.backend
    backend.store_result("small", 1, "SUCCESS")
    backend.get_task_meta("small")
    base, value = resident(), KINDS[kind]()
    told = {"value": resident() - base}
    told["stored"] = peak(partial(backend.store_result, "large", value, "SUCCESS"))
    told["size"] = backend.store.get(backend._full(backend.get_key_for_task("large")), length=1).size
    del value
    told["fetched"] = peak(lambda: backend.get_task_meta("large", cache=False)["result"])
    get, left = backend.results.store.get, [1]

    def replaced(key, **options):
        """Once, in the middle, another version stands there."""
        if options.get("start", 0) > SIZE // 2 and left:
            left.clear()
            raise PreconditionFailed("", "get", "bucket", key, 412)
        return get(key, **options)

    backend.results.store.get = replaced
    told["replaced"] = peak(lambda: backend.get_task_meta("large", cache=False)["result"])
    assert not left
    print(json.dumps(told))


def peak(work):
    """The bytes that the work needed at its height, beyond what the process had, what it returns included."""
    before = resident()
    Path("/proc/self/clear_refs").write_text("5")
    work()
    return status("VmHWM") - before


def resident():
    return status("VmRSS")


def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main(*sys.argv[1:])
