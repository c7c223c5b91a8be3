"""Each process knows what it is, however it came into being."""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import weakref

import billiard
import pytest

from celery_s3 import processes
from celery_s3.processes import PerProcess, Remembered

#: Python 3.12 warns of what is tried here.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

CELERY_POOL = "celery.concurrency."


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# -- the prefork parent


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        ([], False),
        (["prefork"], True),
        (["thread"], False),
        # Celery 5.7 with `-c auto`
        (["thread", "prefork"], False),
        (["solo", "prefork"], False),
    ],
)
def test_prefork_parent_by_the_pool_that_is_used(modules, expected):
    """The main process of a prefork worker, and not that of a pool which runs its tasks itself."""
    imports = "".join(f"import {CELERY_POOL}{name};" for name in modules)
    code = f"{imports}from celery_s3 import processes; print(processes.prefork_parent())"
    assert run(code) == str(expected)


def test_children_of_a_prefork_parent_are_none():
    """What billiard forked is no parent; the answer changes in the moment of the fork."""
    code = f"""
import billiard, {CELERY_POOL}prefork
from celery_s3 import processes
def child(queue): queue.put(processes.prefork_parent())
queue = billiard.Queue()
assert processes.prefork_parent()
process = billiard.Process(target=child, args=(queue,))
process.start(); print(queue.get()); process.join()
"""
    assert run(code) == "False"


# -- greenlets


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("", False),
        ("import gevent.monkey", False),
        ("import gevent.monkey; gevent.monkey.patch_all(socket=False)", False),
        ("import gevent.monkey; gevent.monkey.patch_all()", True),
        ("import eventlet.patcher", False),
        ("import eventlet; eventlet.monkey_patch()", True),
    ],
)
def test_greenlets_by_the_patched_socket(code, expected):
    """Not the library's import but the patched socket decides."""
    ignored = "import warnings; warnings.simplefilter('ignore')\n"
    assert run(f"{ignored}{code}\nfrom celery_s3 import processes\nprint(processes.greenlets())") == str(expected)


def test_greenlet_libraries_are_not_imported():
    """Asking costs no import."""
    code = "from celery_s3 import processes; processes.greenlets(); import sys; print('gevent' in sys.modules)"
    assert run(code) == "False"


# -- ancestry of obstore

CHILD = """
import os, sys, threading, time
from celery_s3 import processes
used, forbidden = processes.obstore_used, processes.obstore_forbidden
def forked(question):
    pid = os.fork()
    if pid == 0:
        os._exit(int(bool(question())))
    return bool(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        # nobody used it
        ("print(processes.obstore_forbidden(), forked(processes.obstore_forbidden))", "False False"),
        # the parent did: it may go on, its child may not
        (
            "processes.obstore_used(); print(processes.obstore_forbidden(), forked(processes.obstore_forbidden))",
            "False True",
        ),
        # a grandparent did
        ("processes.obstore_used(); print(forked(lambda: forked(processes.obstore_forbidden)))", "True"),
        # a child did, after the fork: its sibling and its parent may
        (
            "forked(processes.obstore_used);print(processes.obstore_forbidden(), forked(processes.obstore_forbidden))",
            "False False",
        ),
        # a child did, and forked
        (
            "print(forked(lambda: processes.obstore_used() or forked(processes.obstore_forbidden)))",
            "True",
        ),
        # a thread did
        (
            "t = threading.Thread(target=used); t.start(); t.join(); print(forked(forbidden))",
            "True",
        ),
        # the application imported it, and may have used it
        (
            "import obstore; print(processes.obstore_forbidden(), forked(processes.obstore_forbidden))",
            "False True",
        ),
        # … and its child did
        (
            "print(forked(lambda: __import__('obstore') and False), forked(processes.obstore_forbidden))",
            "False False",
        ),
        # the forbidden child says that it uses it: forbidden it remains
        (
            "processes.obstore_used();print(forked(lambda: processes.obstore_used() or processes.obstore_forbidden()))",
            "True",
        ),
    ],
)
def test_ancestry(code, expected):
    """Whoever descends from a process that used obstore may not, whoever does not may."""
    assert run(CHILD + code) == expected


def test_a_fork_without_hooks_is_found_by_its_pid(monkeypatch):
    """A process that differs from the one that used obstore is a fork of it, whatever Python was told."""
    monkeypatch.setattr(processes, "_ancestry", processes._Ancestry())
    processes.obstore_used()
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    assert processes.obstore_forbidden()
    # … for good, also when a grandchild gets the old pid
    monkeypatch.setattr(os, "getpid", lambda: pid)
    assert processes.obstore_forbidden()


def test_a_pid_that_was_reused_is_found_by_the_hook(monkeypatch):
    """A child that got the pid of the user of obstore is still its descendant."""
    ancestry = processes._Ancestry()
    monkeypatch.setattr(processes, "_ancestry", ancestry)
    processes.obstore_used()
    processes._after_in_child()
    assert ancestry.used_by == os.getpid()
    assert processes.obstore_forbidden()


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing(method, tmp_path):
    """Only a fork inherits; fresh interpreters start anew. The same with billiard's fork."""
    script = tmp_path / "script.py"
    script.write_text(f"""
import billiard, multiprocessing
from celery_s3 import processes
def child(queue): queue.put(processes.obstore_forbidden())
if __name__ == "__main__":
    processes.obstore_used()
    for context in (multiprocessing.get_context("{method}"), billiard.get_context("{method}")):
        queue = context.Queue()
        process = context.Process(target=child, args=(queue,))
        process.start(); print(queue.get()); process.join()
""")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [str(method == "fork")] * 2, done.stderr


# -- values of a process


def in_child(question) -> None:
    pid = os.fork()
    if pid == 0:
        status = 2
        try:
            status = 0 if question() else 1
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_value_is_made_once_for_all_threads():
    """Threads that ask at the same time get the same value."""
    made = []
    barrier = threading.Barrier(8)
    values = PerProcess(lambda: made.append(1) or object())

    def ask() -> None:
        barrier.wait()
        seen.append(values.get())

    seen: list[object] = []
    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert set(seen) == {values.get()}


def test_a_child_makes_its_own():
    """A child never gets its parent's value, and the parent keeps it."""
    values = PerProcess(os.getpid)
    assert values.peek() is None
    assert values.get() == os.getpid()
    in_child(lambda: values.peek() is None and values.get() == os.getpid())
    assert values.get() == os.getpid()


def test_a_child_keeps_its_parents_value_alive():
    """No finaliser of the parent's value runs in the child, even when nobody holds it any more."""

    class Connection:
        pass

    values = PerProcess(Connection)
    gone = []
    reference = weakref.ref(values.get(), gone.append)

    def question() -> bool:
        nonlocal values
        values.get()
        del values
        gc.collect()
        return not gone and reference() is not None

    in_child(question)


def test_what_is_dropped_is_made_again():
    """`drop` forgets this process's value alone."""
    values = PerProcess(object)
    first = values.get()
    values.drop()
    values.drop()
    assert values.get() is not first


def test_a_fork_waits_for_a_value_that_is_being_made():
    """A child is never born in the middle of an import that a thread of its parent has begun."""
    begun, finished = threading.Event(), []

    def make() -> bool:
        begun.set()
        threading.Event().wait(0.3)
        finished.append(True)
        return True

    values = PerProcess(make)
    thread = threading.Thread(target=values.get)
    thread.start()
    begun.wait()
    in_child(lambda: bool(finished) and values.get())
    thread.join()


def test_making_a_value_may_fork():
    """Whoever makes a value may start a process for it (a credential process)."""

    def make() -> int:
        in_child(lambda: True)
        return 1

    assert PerProcess(make).get() == 1


def test_locks_are_free_in_a_child(monkeypatch):
    """When the fork has waited long enough for another thread, the child can make its values nevertheless."""
    monkeypatch.setattr(processes, "_FORK_WAIT", 0.05)
    begun, release = threading.Event(), threading.Event()
    slow = PerProcess(lambda: begun.set() or release.wait(10))
    thread = threading.Thread(target=slow.get)
    thread.start()
    begun.wait()
    in_child(lambda: bool(PerProcess(object).get()))
    release.set()
    thread.join()


def test_what_was_put_longest_ago_makes_room():
    """A map stays small, and what is put again is as good as new; what is not known is ``None``."""
    known = Remembered[str, int](2)
    for name, value in (("a", 1), ("b", 2), ("a", 3), ("c", 4)):
        known.put(name, value)
    assert dict(known) == {"a": 3, "c": 4}
    assert known.get("b") is None


def test_billiard_is_what_celery_forks_with():
    """The name that tells the main process is billiard's."""
    assert billiard.current_process().name == "MainProcess"
    assert multiprocessing.current_process().name == "MainProcess"
