"""Which process is this: what forks, threads and greenlets decide.

obstore's runtime does not survive ``fork``: a child hangs for ever at its first request once any ancestor has
made one. And it blocks the hub of gevent and eventlet. So each process asks here what it may use, at the
moment of use: modules are imported, sockets patched and workers forked at times nobody can foresee.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any, Generic, TypeVar
from weakref import WeakSet

from billiard import process

__all__ = [
    "PerProcess",
    "Remembered",
    "greenlets",
    "obstore_forbidden",
    "obstore_used",
    "prefork_child",
    "prefork_parent",
    "without_sigterm",
]

_T = TypeVar("_T")
_K = TypeVar("_K")

#: Pools that run tasks in the worker's main process.
_OTHER_POOLS = ("thread", "solo", "gevent", "eventlet")

#: What a pool's children are ended with, SIGQUIT with Celery's REMAP_SIGTERM.
_TERMINATING = {getattr(signal, name) for name in ("SIGTERM", "SIGQUIT") if hasattr(signal, name)}


def prefork_parent() -> bool:
    """Whether this is the main process of a prefork worker: it has an event loop to keep, and forks again and again.

    Asked anew each time, since no worker signal comes both early and late enough.
    """
    # With `-c auto`, Celery 5.7 imports the prefork module for every pool: the pool in use tells them apart.
    return (
        "celery.concurrency.prefork" in sys.modules
        and process.current_process().name == "MainProcess"
        and not any(f"celery.concurrency.{pool}" in sys.modules for pool in _OTHER_POOLS)
    )


def prefork_child() -> bool:
    """Whether this is a process of a prefork worker's pool, which runs one task after the other."""
    return "celery.concurrency.prefork" in sys.modules and process.current_process().name != "MainProcess"


def greenlets() -> bool:
    """Whether gevent or eventlet has patched this process's sockets."""
    gevent, eventlet = sys.modules.get("gevent.monkey"), sys.modules.get("eventlet.patcher")
    return bool((gevent and gevent.is_module_patched("socket")) or (eventlet and eventlet.is_monkey_patched("socket")))


#: CPython's own: that of :mod:`signal` is Python code, in which a signal handler may raise before the mask is set back.
_sigmask: Callable[[int, Iterable[int]], set[int]] | None = getattr(import_module("_signal"), "pthread_sigmask", None)


def without_sigterm(start: Callable[..., _T], *args: Any) -> _T:
    """What ``start(*args)`` returns; threads that it starts, by Python or by a library, leave SIGTERM to other threads.

    A child of a prefork worker blocks it in its main thread while it holds the lock of the queue to its parent
    (billiard's ``Worker._do_exit``). Taken by any other thread, it would end the process there and then: the lock
    would stay held, and where the children share it, as on brokers without an event loop, all stand still for ever.

    Whatever is raised in here, and wherever, the mask is afterwards what it was. Hence no context manager: a handler of
    another signal, as a soft time limit, may raise at the first instruction of its ``__exit__``.
    """
    if _sigmask is None or greenlets():  # greenlets share the mask of their thread
        return start(*args)
    before = _sigmask(signal.SIG_BLOCK, ())
    try:
        try:
            _sigmask(signal.SIG_BLOCK, _TERMINATING)  # handlers of other signals run in here, too
            return start(*args)
        finally:
            _sigmask(signal.SIG_SETMASK, before)
    except BaseException:  # raised by a debugger, perhaps, in front of the line above
        _sigmask(signal.SIG_SETMASK, before)
        raise


class _Ancestry:
    """Who used obstore: this process, or one that it was forked from, be it by its own hands.

    An ancestor that had imported it may have used it for itself, which nobody tells us.
    """

    def __init__(self) -> None:
        self.used_by: int | None = None
        self.inherited = False

    def forked(self) -> None:
        self.inherited = self.inherited or self.used_by is not None or "obstore" in sys.modules


_ancestry = _Ancestry()


def obstore_used() -> None:
    """Say that this process makes an obstore request; call it before the first one."""
    if _ancestry.used_by is None:
        _ancestry.used_by = os.getpid()


def obstore_forbidden() -> bool:
    """Whether an ancestor used obstore before it forked, or may have, so that any request here would hang."""
    # The pid finds the forks that ran no hook (a C extension's); the hook finds those whose pid was reused.
    if _ancestry.used_by is not None and _ancestry.used_by != os.getpid():
        _ancestry.inherited = True
    return _ancestry.inherited


class PerProcess(Generic[_T]):
    """A value that each process makes for itself at its first use, shared by its threads.

    A forked child never touches its parent's value, not even to let it be collected: a finaliser could act on
    a socket that both hold. It is kept for the life of the child.
    """

    def __init__(self, make: Callable[[], _T]) -> None:
        self._make = make
        self._values: dict[int, _T] = {}
        _everyone.add(self)

    def get(self) -> _T:
        """This process's value, made if need be."""
        pid = os.getpid()
        try:
            return self._values[pid]
        except KeyError:
            with _lock():
                if pid not in self._values:
                    self._values[pid] = self._make()
                return self._values[pid]

    def peek(self) -> _T | None:
        """This process's value, ``None`` where none was made yet."""
        return self._values.get(os.getpid())

    def drop(self) -> None:
        """Forget this process's value; the next use makes another."""
        self._values.pop(os.getpid(), None)

    def forked(self) -> None:
        """In the child: put the parent's values out of reach."""
        _kept.append(self._values)
        self._values = {}


class Remembered(dict[_K, _T]):
    """A map of at most ``limit`` entries (about: threads may overshoot) by :meth:`put`, the oldest making room.

    No lock: a child forked while another thread held one would wait for it for ever.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def put(self, key: _K, value: _T) -> None:
        """Remember a value, as the latest."""
        self.pop(key, None)
        self[key] = value
        if len(self) > self._limit:
            with contextlib.suppress(RuntimeError, StopIteration):  # another thread changed the map: it makes room
                self.pop(next(iter(self)), None)


_everyone: WeakSet[PerProcess[Any]] = WeakSet()
_kept: list[object] = []
# By pid, so that a child never waits for a lock that a thread of its parent held when it forked.
_locks: dict[int, threading.RLock] = {}
#: Seconds that a fork waits for a client that another thread is making; importing boto3 takes one at most.
_FORK_WAIT = 10.0


def _lock() -> threading.RLock:
    return _locks.setdefault(os.getpid(), threading.RLock())


def _before_fork() -> None:
    # A fork while another thread imports a client would leave the child with import locks that nobody frees.
    _lock().acquire(timeout=_FORK_WAIT)


def _after_in_parent() -> None:
    with contextlib.suppress(RuntimeError):  # the wait for it ran out
        _lock().release()


def _after_in_child() -> None:
    _locks.clear()
    _ancestry.forked()
    for each in list(_everyone):
        each.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
