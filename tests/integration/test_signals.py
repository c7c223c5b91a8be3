"""SIGTERM is for the main thread: no thread that we start, or make obstore start, takes it."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from celery_s3.bucket import open_store
from celery_s3.processes import without_sigterm


@pytest.fixture
def fresh_store(proxy, seaweed, settings_for):
    """A store over one of the clients, which retries."""
    return lambda client: open_store(settings_for(seaweed, endpoint_url=proxy.endpoint_url, client=client)).store


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
backend.mender._later(60, lambda: None)
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


MASKS = pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="no signal masks")


@MASKS
def test_the_mask_is_as_before():
    """Also after an error, and where the caller has blocked the signal itself."""

    def start():
        assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        raise ValueError("inside")

    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        with pytest.raises(ValueError, match="inside"):
            without_sigterm(start)
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before | {signal.SIGUSR2}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Limit(Exception):
    """What a soft time limit raises."""


def interrupted_at(number: int, fn) -> bool:
    """Call ``fn``, and raise at its so many-th instruction; whether it has so many."""
    left = number

    def trace(frame, event, arg):
        nonlocal left
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left < 0:
                sys.settrace(None)
                raise Limit
        return trace

    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # Python 3.12 asks when tracing begins
    sys.settrace(trace)
    try:
        fn()
    except Limit:
        return True
    except ValueError:
        return False
    finally:
        sys.settrace(before)
    return False


@MASKS
@pytest.mark.parametrize("fails", [False, True])
def test_an_interruption_anywhere_leaves_the_mask_as_it_was(fails):
    """Whatever instruction a signal's handler raises at: SIGTERM is not blocked afterwards."""

    def start():
        if fails:
            raise ValueError("inside")

    def every_instruction():
        before, number = signal.pthread_sigmask(signal.SIG_BLOCK, ()), 0
        while interrupted_at(number, lambda: without_sigterm(start)):
            assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before, f"instruction {number}"
            number += 1
        return number

    # in a thread of its own: what Python notes of handled errors may be left in disorder
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(every_instruction).result() > 20


@MASKS
def test_a_real_signal_leaves_the_mask_as_it_was():
    """Pending when threads are about to start, while they start, and when the mask is set back."""

    def limit(number, frame):
        raise Limit

    def send():
        signal.raise_signal(signal.SIGALRM)  # this thread, for others may take it

    def let_come():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})

    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    handler = signal.signal(signal.SIGALRM, limit)
    try:
        for held, start in ((False, send), (True, let_come), (True, lambda: None)):
            with pytest.raises(Limit):
                if held:
                    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
                    send()
                without_sigterm(start)
                assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
                let_come()
            let_come()
            assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    finally:
        signal.signal(signal.SIGALRM, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.mark.parametrize("client", ["boto3", "obstore"])
def test_an_alarm_of_the_applications_own_is_no_time_out_of_the_network(fresh_store, proxy, client):
    """Its handler's TimeoutError ends the call as itself, and nothing is asked again."""

    def limit(number, frame):
        raise TimeoutError("the application's own")

    proxy.configure(delay=1.5)
    store = fresh_store(client)
    handler = signal.signal(signal.SIGALRM, limit)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(TimeoutError, match="the application's own"):
            store.put("key", b"body")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert proxy.counts() == {"PUT": 1}
