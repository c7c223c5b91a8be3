"""Notices where processes fork, greenlets run and brokers die: a real Redis, a real bucket."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
from celery.app.task import Context
from kombu.utils.uuid import uuid

from celery_s3.dev.process import environment, free_ports, spawn, stop, wait_until

#: Begins each program: ``told(id)`` waits in this process and thread, ``put(id, value)`` stores, ``gets()`` counts.
PROGRAM = """
{patch}
import json, os, sys, threading, time, warnings
warnings.simplefilter("ignore")
from celery import Celery
from celery.app.task import Context
app = Celery()
app.conf.update(json.loads(sys.argv[1]))

def put(id, value):
    app.backend.store_result(id, value, "SUCCESS", request=Context({{"id": id, "task": "job"}}))

def gets():
    return app.backend.tally.snapshot().get("GET", {{}}).get("requests", 0)

def told(id, later, seconds=0.4):
    before = gets()
    begin(seconds, later)
    assert app.AsyncResult(id).get(timeout=20) == id
    return gets() - before

def begin(seconds, later):
    def run():
        time.sleep(seconds)
        later()
    threading.Thread(target=run).start()
{rest}
"""


def run(app, rest, patch=""):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(patch=patch, rest=rest), json.dumps(app.test_conf)],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().split()


def test_forked_child_listens_for_itself(seaweed, make_app):
    """A child of a process that listens has a line of its own, and so has its parent still."""
    rest = """
assert told("one", lambda: put("one", "one")) == 1
child = os.fork()
if not child:
    begin(0.1, lambda: None)
    print(told("two", lambda: put("two", "two")), flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print(told("three", lambda: put("three", "three")))
"""
    assert run(make_app(seaweed, broker="redis"), rest) == ["1", "1"]


@pytest.mark.parametrize("library", ["gevent", "eventlet"])
def test_greenlets_are_told(seaweed, make_app, library):
    """Under gevent and eventlet the listener is a greenlet: others run while somebody waits, and he is told."""
    patch = (
        "import gevent.monkey as m; m.patch_all()" if library == "gevent" else "import eventlet as m; m.monkey_patch()"
    )
    rest = """
told("zero", lambda: put("zero", "zero"))
ticks = []
def tick():
    while True:
        ticks.append(1)
        time.sleep(0.01)
threading.Thread(target=tick, daemon=True).start()
print(told("one", lambda: put("one", "one")), len(ticks) > 20)
os._exit(0)
"""
    assert run(make_app(seaweed, broker="redis"), rest, patch) == ["1", "True"]


@pytest.fixture
def redis_at(tmp_path):
    """``redis_at(port)`` starts a Redis that may be killed."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("redis-server is not installed")
    started = []

    def start(port):
        command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        one = spawn(command, tmp_path / "redis.log", environment(), tmp_path, signal.SIGKILL)
        started.append(one)
        import socket

        def listens():
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        assert wait_until(listens, one, 10.0)
        return one

    yield start
    for one in started:
        stop(one, 0.0)


def test_broker_killed(counted, server, redis_at, eventually):
    """When the broker is killed every waiter polls at once, and is told again when it is back."""
    (port,) = free_ports(1)
    redis = redis_at(port)
    app, id, outcome = counted(broker="redis", broker_url=f"redis://127.0.0.1:{port}/0"), uuid(), []
    waiter = threading.Thread(target=lambda: outcome.append(app.AsyncResult(id).get(timeout=30)))
    waiter.start()
    listener = app.backend.notices._listeners.get()
    eventually(lambda: listener._confirmed)
    time.sleep(1.2)  # it looks seldom by now
    server.reset()
    os.kill(redis.pid, signal.SIGKILL)
    eventually(lambda: server.counts()["GET"] >= 3)
    redis_at(port)
    eventually(lambda: listener._confirmed)
    app.backend.notices._outgoing.drop()  # it would be silent for a while
    server.reset()
    app.backend.store_result(id, "told", "SUCCESS", request=Context({"id": id, "task": "job"}))
    waiter.join(30)
    assert outcome == ["told"]
