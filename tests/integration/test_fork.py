"""Forks against a real server: nothing hangs, no socket is shared, and every child's answers are its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from typing import Any

import billiard
import pytest

from celery_s3.errors import PreconditionFailed
from celery_s3.settings import Secret, Settings
from celery_s3.store import Opened, open_store, situation
from celery_s3.store.api import CREATE

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

#: Seconds that a child may take; a hang is for ever.
DEADLINE = 30


@pytest.fixture
def ancestry(monkeypatch):
    """As if no process had used obstore before this test."""
    ancestry = situation._Ancestry()
    monkeypatch.setattr(situation, "_ancestry", ancestry)
    return ancestry


class Child:
    """A forked child that does its work and exits with 0 if it was right."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                work()
                status = 0
            except BaseException as exc:
                sys.__stderr__.write(f"child: {exc!r}\n")
                sys.__stderr__.flush()
            finally:
                os._exit(status)

    def end(self) -> int:
        """Its exit status; one that is late is killed."""
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        pytest.fail("the child hung")


def client_of(opened: Opened) -> str:
    """The kind of client that this process has used."""
    routing = opened.store._inner._inner
    made = (routing._obstore.peek(), routing._boto3.peek(), routing._brief.peek())
    return " ".join(type(client).__name__ for client in made if client is not None)


def round_trips(opened: Opened, name: str, count: int) -> None:
    """Write and read objects that only ``name`` writes; each answer must be its own."""
    for number in range(count):
        key, body = f"{name}/{number}", f"{name} {number} ".encode() * 20
        opened.store.put(key, body, precondition=CREATE)
        found = opened.store.get(key)
        assert (found.key, found.body) == (key, body)


@pytest.fixture
def opened(seaweed, settings_for, ancestry):
    made: list[Opened] = []

    def make(**overrides: Any) -> Opened:
        made.append(open_store(settings_for(seaweed, **overrides)))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_the_parent_used_obstore(opened, prefix):
    """A child whose parent made requests uses boto3 and does not hang; the parent goes on with obstore."""
    store = opened()
    round_trips(store, f"{prefix}parent", 2)

    def work() -> None:
        round_trips(store, f"{prefix}child", 5)
        assert client_of(store) == "Boto3Client"

    assert Child(work).end() == 0
    round_trips(store, f"{prefix}parent-again", 2)
    assert client_of(store) == "ObstoreClient"


def test_the_parent_made_no_request(opened, prefix):
    """A store that was only opened does not keep children from obstore, nor do their siblings."""
    store = opened()
    for name in ("a", "b"):

        def work(name: str = name) -> None:
            round_trips(store, f"{prefix}{name}", 5)
            assert client_of(store) == "ObstoreClient"

        assert Child(work).end() == 0


def test_grandchildren(opened, prefix):
    """A child used obstore and forks: its child must not, its sibling may."""
    store = opened()

    def work() -> None:
        round_trips(store, f"{prefix}child", 2)

        def grandchild() -> None:
            round_trips(store, f"{prefix}grandchild", 2)
            assert client_of(store) == "Boto3Client"

        assert Child(grandchild).end() == 0
        round_trips(store, f"{prefix}child-again", 2)
        assert client_of(store) == "ObstoreClient"

    assert Child(work).end() == 0
    round_trips(store, f"{prefix}parent", 2)
    assert client_of(store) == "ObstoreClient"


def test_fork_while_another_thread_is_inside_obstore(opened, proxy, prefix):
    """A fork in the middle of a request: the child works, and the request gets its answer."""
    proxy.configure(delay=0.5)
    store = opened(endpoint_url=proxy.endpoint_url)
    etags: list[str] = []
    thread = threading.Thread(target=lambda: etags.append(store.store.put(f"{prefix}slow", b"slow")))
    thread.start()
    time.sleep(0.2)
    child = Child(lambda: round_trips(store, f"{prefix}child", 1))
    thread.join(DEADLINE)
    assert child.end() == 0
    assert store.store.get(f"{prefix}slow").etag == etags[0]


def test_a_child_that_ends_like_any_program(opened, prefix):
    """A child that runs its finalisers, dropping its parent's clients, does not disturb the parent."""
    store = opened()
    round_trips(store, f"{prefix}parent", 5)
    list(store.store.list(prefix))
    program = os.fork()
    if program == 0:
        # leave pytest's handlers out: only the interpreter's own end is wanted
        import atexit

        atexit._clear()
        os.close(1)
        os.close(2)
        store.close()
        del store
        import ctypes

        ctypes.pythonapi.Py_FinalizeEx()
        os._exit(0)
    os.waitpid(program, 0)
    round_trips(store, f"{prefix}parent-again", 20)
    assert len(list(store.store.list(prefix))) == 25


@pytest.mark.parametrize("make", [multiprocessing.get_context("fork").Process, billiard.Process], ids=["mp", "billiard"])
def test_many_children_share_no_socket(opened, prefix, make):
    """Children of a parent with open boto3 connections write at the same time: each reads back its own."""
    store = opened(client="boto3")
    round_trips(store, f"{prefix}parent", 3)
    children = [make(target=round_trips, args=(store, f"{prefix}child-{number}", 200)) for number in range(4)]
    for child in children:
        child.start()
    round_trips(store, f"{prefix}parent-meanwhile", 20)
    for child in children:
        child.join(2 * DEADLINE)
    assert [child.exitcode for child in children] == [0] * 4


@pytest.mark.parametrize("client", ["obstore", "boto3"])
def test_a_killed_child(opened, proxy, prefix, client):
    """A child that is killed in the middle of a request leaves its parent's connections as they were."""
    store = opened(client=client, endpoint_url=proxy.endpoint_url)
    if client == "boto3":
        round_trips(store, f"{prefix}parent", 2)
    proxy.fail(f"PUT {prefix}victim", "hang", seconds=20)
    proxy.reset()
    child = Child(lambda: store.store.put(f"{prefix}victim", b"x"))
    deadline = time.monotonic() + DEADLINE
    while not proxy.records() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    assert child.end() == -signal.SIGKILL
    round_trips(store, f"{prefix}parent-again", 5)


@pytest.mark.parametrize("client", ["obstore", "boto3"])
def test_threads_share_one_client(opened, prefix, client):
    """Eight threads use one client, and none gets another's answer."""
    store = opened(client=client)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            round_trips(store, f"{prefix}thread-{number}", 50)
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * DEADLINE)
    assert failures == []
    assert client_of(store) == ("ObstoreClient" if client == "obstore" else "Boto3Client")
    assert store.tally.snapshot()["PUT"]["requests"] >= 400


def test_parallel_reads(opened, prefix):
    """The pool reads many objects through one client."""
    store = opened()
    keys = [f"{prefix}{number}" for number in range(60)]
    store.pool.map(lambda key: store.store.put(key, key.encode()), keys)
    assert [found.body.decode() for found in store.pool.map(store.store.get, keys)] == keys


def test_two_children_probe_at_once(opened, prefix):
    """Two processes that ask at the same moment both find out what is so."""
    store = opened(endpoint_url=f"{opened().store._inner._inner._settings.endpoint_url}/")
    gate = multiprocessing.get_context("fork").Event()

    def work() -> None:
        gate.wait(DEADLINE)
        assert store.conditional.supported()

    children = [Child(work) for _ in range(2)]
    gate.set()
    assert [child.end() for child in children] == [0, 0]
    assert store.conditional.supported()
    assert store.tally.snapshot() == {}
    with pytest.raises(PreconditionFailed):
        store.store.put(f"{prefix}celery-s3-probe", b"", precondition=CREATE)


def test_a_server_without_conditional_writes(opened, proxy, prefix, caplog):
    """Behind a proxy that hides the headers, the probe finds it out and one warning says so."""
    proxy.configure(strip_preconditions=True)
    store = opened(endpoint_url=proxy.endpoint_url, bucket=opened().store._inner._inner._settings.bucket)
    from celery_s3.store import probe

    probe._pages.clear()
    for conditional in (store.conditional, open_store(store.store._inner._inner._settings).conditional):
        assert conditional.supported() is False
    assert len([record for record in caplog.records if "conditional writes" in record.getMessage()]) == 1
