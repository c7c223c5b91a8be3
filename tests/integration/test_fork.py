"""Forks against a real server: nothing hangs, no socket is shared, and every child's answers are its own.

Each scenario runs in a process of its own: in one whose ancestor has imported obstore, none could use it. It is forked
from one that has imported the other libraries, and used none of them.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import billiard
import pytest

from celery_s3.bucket import Opened, open_store
from celery_s3.settings import Settings
from celery_s3.store.api import CREATE

#: Seconds that a child may take; a hang is for ever.
DEADLINE = 30

Scenario = Callable[[Settings], None]

multiprocessing.set_forkserver_preload(["billiard", "celery_s3.bucket", "celery_s3.store.clients.boto3_client"])


@pytest.fixture
def fresh(seaweed, settings_for) -> Callable[..., None]:
    """Runs a scenario in a process that has used nothing; with ``method="spawn"`` its output is the test's."""

    def run(scenario: Scenario, *arguments: Any, method: str = "forkserver", **overrides: Any) -> None:
        settings = settings_for(seaweed, **overrides)
        process = multiprocessing.get_context(method).Process(target=scenario, args=(settings, *arguments))
        process.start()
        process.join(3 * DEADLINE)
        if process.exitcode is None:
            process.kill()
            pytest.fail("the scenario hung")
        assert process.exitcode == 0, "see its traceback on standard error"

    return run


class Child:
    """A forked child that does its work and exits with 0 if it was right."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                work()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
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
        raise AssertionError("the child hung")


def used(opened: Opened) -> str:
    """The clients that this process has used."""
    routing = opened.store
    while hasattr(routing, "_inner"):
        routing = routing._inner
    made = (routing._obstore.peek(), routing._boto3.peek())
    return " ".join(type(client._client).__name__ for client in made if client is not None)


def round_trips(opened: Opened, key: str, count: int) -> None:
    """Write and read objects that only the caller writes; each answer must be its own."""
    for number in range(count):
        name, body = f"{key}/{number}", f"{key} {number} ".encode() * 20
        opened.store.put(name, body, precondition=CREATE)
        found = opened.store.get(name)
        assert (found.key, found.body) == (name, body)


# -- obstore does not survive a fork


def parent_used_obstore(settings: Settings) -> None:
    opened = open_store(settings)
    round_trips(opened, f"{settings.base}parent", 2)

    def work() -> None:
        round_trips(opened, f"{settings.base}child", 5)
        assert used(opened) == "Boto3Client"

    assert Child(work).end() == 0
    round_trips(opened, f"{settings.base}parent-again", 2)
    assert used(opened) == "ObstoreClient"


def test_the_parent_used_obstore(fresh):
    """A child whose parent made requests uses boto3 and does not hang; the parent goes on with obstore."""
    fresh(parent_used_obstore)


def application_used_obstore(settings: Settings) -> None:
    from obstore.store import MemoryStore

    MemoryStore().put("the application's own", b"")
    opened = open_store(settings)

    def work() -> None:
        round_trips(opened, f"{settings.base}child", 2)
        assert used(opened) == "Boto3Client"
        assert Child(lambda: round_trips(opened, f"{settings.base}grandchild", 2)).end() == 0

    assert Child(work).end() == 0
    round_trips(opened, f"{settings.base}parent", 2)
    assert used(opened) == "ObstoreClient"


def test_the_application_used_obstore(fresh, capfd):
    """By itself, before it forked: its children use boto3 and do not hang, which each says once."""
    fresh(application_used_obstore, method="spawn")
    assert capfd.readouterr().err.count("obstore was imported, before this process was forked") == 2


def parent_made_no_request(settings: Settings) -> None:
    opened = open_store(settings)

    def work(name: str) -> None:
        round_trips(opened, f"{settings.base}{name}", 5)
        assert used(opened) == "ObstoreClient"

    for name in ("a", "b"):
        assert Child(lambda name=name: work(name)).end() == 0


def test_the_parent_made_no_request(fresh):
    """A store that was only opened keeps neither children nor their siblings from obstore."""
    fresh(parent_made_no_request)


def grandchildren(settings: Settings) -> None:
    opened = open_store(settings)

    def grandchild() -> None:
        round_trips(opened, f"{settings.base}grandchild", 2)
        assert used(opened) == "Boto3Client"

    def child() -> None:
        round_trips(opened, f"{settings.base}child", 2)
        assert Child(grandchild).end() == 0
        round_trips(opened, f"{settings.base}child-again", 2)
        assert used(opened) == "ObstoreClient"

    assert Child(child).end() == 0
    round_trips(opened, f"{settings.base}parent", 2)
    assert used(opened) == "ObstoreClient"


def test_grandchildren(fresh):
    """A child used obstore and forks: its child must not use it, its parent may."""
    fresh(grandchildren)


def billiard_child_forks(settings: Settings) -> None:
    opened = open_store(settings)

    def child() -> None:
        round_trips(opened, f"{settings.base}child", 2)
        assert used(opened) == "ObstoreClient"
        assert Child(lambda: round_trips(opened, f"{settings.base}grandchild", 2)).end() == 0

    process = billiard.Process(target=child)
    process.start()
    process.join(DEADLINE)
    assert process.exitcode == 0


def test_a_task_that_forks(fresh):
    """os.fork() inside of billiard's child, as a task may do, does not hang either."""
    fresh(billiard_child_forks)


def fork_inside_a_request(settings: Settings) -> None:
    opened = open_store(settings)
    etags: list[str] = []
    thread = threading.Thread(target=lambda: etags.append(opened.store.put(f"{settings.base}slow", b"slow")))
    thread.start()
    time.sleep(0.2)
    child = Child(lambda: round_trips(opened, f"{settings.base}child", 1))
    thread.join(DEADLINE)
    assert child.end() == 0
    assert [opened.store.get(f"{settings.base}slow").etag] == etags


def test_a_fork_while_another_thread_is_inside_obstore(fresh, proxy):
    """The child works, and the request gets its answer."""
    proxy.configure(delay=0.5)
    fresh(fork_inside_a_request, endpoint_url=proxy.endpoint_url)


def finalising_child(settings: Settings) -> None:
    opened = open_store(settings)
    round_trips(opened, f"{settings.base}parent", 5)
    list(opened.store.list(settings.base))
    assert used(opened) == "ObstoreClient Boto3Client"

    pid = os.fork()
    if pid == 0:
        opened.close()
        del opened
        gc.collect()
        sys.exit(0)  # through every finaliser, to the interpreter's end
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    round_trips(opened, f"{settings.base}parent-again", 20)
    assert len(list(opened.store.list(settings.base))) == 25


def test_a_child_that_finalises_its_parents_clients(fresh):
    """A child that drops the store and ends as any program does leaves the parent's connections as they were."""
    fresh(finalising_child)


# -- no socket is shared


def many_children(settings: Settings, kind: str) -> None:
    make = billiard.Process if kind == "billiard" else multiprocessing.get_context("fork").Process
    opened = open_store(settings)
    round_trips(opened, f"{settings.base}parent", 3)
    children = [make(target=round_trips, args=(opened, f"{settings.base}child-{n}", 60)) for n in range(4)]
    for child in children:
        child.start()
    round_trips(opened, f"{settings.base}parent-meanwhile", 20)
    for child in children:
        child.join(2 * DEADLINE)
    assert [child.exitcode for child in children] == [0] * 4


@pytest.mark.parametrize("kind", ["multiprocessing", "billiard"])
def test_many_children_share_no_socket(fresh, kind):
    """Children of a parent with open boto3 connections write at the same time: each reads back its own."""
    fresh(many_children, kind, client="boto3")


def killed_child(settings: Settings, gate: Path) -> None:
    opened = open_store(settings)
    if settings.client == "boto3":
        round_trips(opened, f"{settings.base}parent", 2)
    child = Child(lambda: opened.store.put(f"{settings.base}victim", b"x"))
    while not gate.exists():
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    assert child.end() == -signal.SIGKILL
    round_trips(opened, f"{settings.base}parent-again", 5)
    assert Child(lambda: round_trips(opened, f"{settings.base}child", 2)).end() == 0


@pytest.mark.parametrize("client", ["auto", "boto3"])
def test_a_killed_child(fresh, proxy, prefix, client, tmp_path, eventually):
    """A child that is killed in the middle of a request disturbs neither its parent nor the next child."""
    proxy.fail(f"PUT {prefix}victim", "hang", seconds=20)
    with ThreadPoolExecutor(1) as pool:
        scenario = pool.submit(fresh, killed_child, tmp_path / "gate", client=client, endpoint_url=proxy.endpoint_url)
        eventually(lambda: scenario.done() or any(record.fault for record in proxy.records()), DEADLINE)
        (tmp_path / "gate").touch()
        scenario.result()
    assert [record.fault for record in proxy.records()].count("hang") == 1


def eight_threads(settings: Settings) -> None:
    opened = open_store(settings)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            round_trips(opened, f"{settings.base}thread-{number}", 25)
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * DEADLINE)
    assert failures == []
    assert used(opened) == ("Boto3Client" if settings.client == "boto3" else "ObstoreClient")
    assert opened.tally.snapshot()["PUT"]["requests"] == 200


@pytest.mark.parametrize("client", ["auto", "boto3"])
def test_threads_share_one_client(fresh, client):
    """Eight threads use one client, and none gets another's answer."""
    fresh(eight_threads, client=client)


def parallel_reads(settings: Settings) -> None:
    opened = open_store(settings)
    keys = [f"{settings.base}{number}" for number in range(60)]
    opened.pool.map(lambda key: opened.store.put(key, key.encode()), keys)

    def read() -> None:
        assert [found.body.decode() for found in opened.pool.map(opened.store.get, keys)] == keys

    read()
    assert Child(read).end() == 0


def test_parallel_reads(fresh):
    """The pool reads many objects through one client, and does so in a child too."""
    fresh(parallel_reads)


# -- the probe


def two_probes(settings: Settings) -> None:
    opened = open_store(settings)
    gate = multiprocessing.get_context("fork").Event()

    def work() -> None:
        gate.wait(DEADLINE)
        assert opened.conditional.supported()

    children = [Child(work) for _ in range(2)]
    gate.set()
    assert [child.end() for child in children] == [0, 0]
    assert opened.conditional.supported()
    assert opened.tally.snapshot() == {}
    assert opened.store.get(f"{settings.base}celery-s3-probe").size


def test_two_children_probe_at_once(fresh):
    """Two processes that ask at the same moment both find out what is so; their parent need not ask."""
    fresh(two_probes)


def no_conditional_writes(settings: Settings) -> None:
    opened = open_store(settings)
    for _ in range(2):
        assert not opened.conditional.supported()
        assert Child(lambda: (opened.conditional.supported(), opened.tally.snapshot()) == (False, {})).end() == 0


def test_a_server_without_conditional_writes(fresh, proxy, capfd):
    """Where the headers do nothing, the probe finds it out; one warning is printed for all processes."""
    proxy.configure(strip_preconditions=True)
    fresh(no_conditional_writes, method="spawn", endpoint_url=proxy.endpoint_url)
    assert capfd.readouterr().err.count("does not keep conditional writes") == 1
    assert proxy.counts() == {"PUT": 2}
