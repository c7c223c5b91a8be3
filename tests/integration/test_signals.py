"""SIGTERM is for the main thread: no thread that we start, or make obstore start, takes it."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from celery_s3.processes import without_sigterm

PROGRAM = """
import os, sys, threading, time
from pathlib import Path
from celery import Celery

app = Celery(set_as_current=False)
app.conf.update(result_backend="celery_s3.backends.S3Backend", s3_backend_settings=eval(sys.argv[1]))
backend = app.backend
backend.store_result("some-id", 1, "SUCCESS")
for found in backend.pool.map(backend.get_task_meta, ["some-id"] * 8):
    assert found["result"] == 1
backend.chords.later(60, lambda: None)
for thread in os.listdir("/proc/self/task"):
    if int(thread) != os.getpid():
        text = Path(f"/proc/self/task/{thread}/status").read_text()
        blocked = int(text.partition("SigBlk:")[2].split()[0], 16)
        print(text.split()[1], bool(blocked >> 14 & 1))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_no_thread_takes_sigterm(seaweed, prefix, host):
    """obstore's runtime, the threads that look up names, the pool for parallel reads, and the chords' timer."""
    url = seaweed.endpoint_url.replace("127.0.0.1", host)
    settings = seaweed.settings() | {"endpoint_url": url, "base_path": prefix}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, repr(settings)], capture_output=True, text=True, timeout=60, check=True
    )
    threads = [line.split() for line in done.stdout.splitlines()]
    assert len({name for name, _ in threads}) == 2  # obstore's and Python's
    assert {blocked for _, blocked in threads} == {"True"}


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="no signal masks")
def test_the_mask_is_as_before():
    """Also after an error, and where the caller has blocked the signal itself."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        with pytest.raises(ValueError, match="inside"), without_sigterm():
            assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())
            raise ValueError("inside")
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before | {signal.SIGUSR2}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
