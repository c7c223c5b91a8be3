"""Messages of tasks that have ended, held back until what they have come to is durable.

A child of a prefork pool goes on with the next task while the last one's result is being stored
(:mod:`celery_s3.backends.overlap`). With ``acks_late`` its main process acknowledges no message before that: what is
lost with a child, or with the worker, was never acknowledged and comes again. Children tell their main process by a
pipe::

    child    BEGINS delivery, pid → READY (Celery's) → DURABLE delivery, pid
    parent   READY: Celery acknowledges → held while the delivery has begun and is not durable
             DURABLE → acknowledged    the child has died → returned to the queue

A delivery is a number that the main process writes into the task's request, where the child finds it: without one
nobody holds the message back. Records are written whole, whoever is killed meanwhile, and each BEGINS is in the pipe
before its READY.
"""

from __future__ import annotations

import contextlib
import os
import select
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any, NamedTuple

from celery.signals import celeryd_after_setup, task_received, worker_shutdown

from celery_s3.celery_private import Settle, hold_back, run_what_is_due, settled_by_result
from celery_s3.outbox import Outbox
from celery_s3.printable import get_logger
from celery_s3.processes import PerProcess, prefork_parent, without_sigterm

__all__ = ["DELIVERY", "Acknowledgements"]

logger = get_logger(__name__)

#: What a delivery's number is called in a task's request.
DELIVERY = "celery_s3_delivery"
_BEGINS, _DURABLE = b"+", b"-"
#: which of them, the delivery, the child's pid
_RECORD = struct.Struct("=cQi")
#: Seconds between two looks whether the children live that have something to store.
BETWEEN_LOOKS = 1.0
#: Seconds after which the thread that waits for children ends where it has nothing to wait for.
IDLE = 5.0


class _Held(NamedTuple):
    """A message that Celery would have settled."""

    settle: Settle
    again: Settle


@dataclass(slots=True)
class _State:
    """What a worker's main process knows."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    #: the child that stores what a delivery has come to
    pending: dict[int, int] = field(default_factory=dict)
    held: dict[int, _Held] = field(default_factory=dict)
    #: what was read of the pipe and is no whole record yet
    rest: bytes = b""
    listening: bool = False
    consumer: Any = None
    #: by how many messages the consumer's prefetch count was raised, and which count that was
    raised: int = 0
    qos: Any = None


class Acknowledgements:
    """When a worker's main process settles the messages of tasks that are acknowledged late.

    Arguments:
        is_ours: whether a received task stores its result in this backend.
        outbox: of what the main process itself has to store for a task.
    """

    def __init__(self, is_ours: Callable[[Any], bool], outbox: Outbox) -> None:
        self._is_ours = is_ours
        self._outbox = outbox
        #: made before the first child is forked: to read and to write
        self._pipe: tuple[int, int] | None = None
        self._number = count(1)
        self._own = PerProcess(_State)
        name = f"celery-s3-acknowledgements-{id(self)}"
        self._signals = (
            (celeryd_after_setup, self._worker_starts),
            (task_received, self._received),
            (worker_shutdown, self._worker_ends),
        )
        for signal, receiver in self._signals:
            signal.connect(receiver, dispatch_uid=name)
        self._worker_starts()  # most often, this is first needed after that signal

    def close(self) -> None:
        """Listen to the worker's signals no more."""
        for signal, _ in self._signals:
            signal.disconnect(dispatch_uid=f"celery-s3-acknowledgements-{id(self)}")

    # -- in a child

    def begins(self, delivery: int) -> bool:
        """Say that this child begins to store what a delivery has come to; whether the main process was told."""
        return self._told(_BEGINS, delivery)

    def durable(self, delivery: int) -> None:
        """Say that this child has stored it, or cannot: its message need not be held any longer."""
        while not self._told(_DURABLE, delivery):  # a main process that stands still for thousands of tasks
            _, writer = self._pipe or (-1, -1)
            select.select([], [writer], [], BETWEEN_LOOKS)

    def _told(self, what: bytes, delivery: int) -> bool:
        if self._pipe is None:
            return False
        try:
            os.write(self._pipe[1], _RECORD.pack(what, delivery, os.getpid()))
        except BlockingIOError:
            return False
        return True

    # -- in the main process

    def _worker_starts(self, **_: Any) -> None:
        if self._pipe is None and prefork_parent():
            self._pipe = os.pipe()
            for end in self._pipe:
                os.set_blocking(end, False)

    def _received(self, sender: Any, request: Any, **_: Any) -> None:
        if self._pipe is None or not request.task.acks_late or not self._is_ours(request.task):
            return
        self._own.get().consumer = sender
        number = next(self._number)
        request.request_dict[DELIVERY] = number
        hold_back(request, partial(self._settle, number, request.id, sender))

    def _settle(self, number: int, task_id: str, consumer: Any, settle: Settle, again: Settle) -> None:
        """Celery would settle a message: now, or as soon as what it stands for is durable."""
        state = self._own.get()
        by_result = settled_by_result()
        with state.lock:
            released = self._read(state)
            holds = number in state.pending and by_result
            if holds:
                state.held[number] = _Held(settle, again)
                self._listen(state)
            else:
                state.pending.pop(number, None)
            self._adjust_prefetch(state)
        for each in released:
            each()
        if not by_result:
            # Celery stores what it has found out before it settles the message, or right after that. Then the write
            # is in the outbox, where those of one id keep their order.
            consumer.call_soon(self._after_writes, task_id, settle)
        elif not holds:
            settle()

    def _after_writes(self, task_id: str, settle: Settle) -> None:
        if not self._outbox.put(task_id, f"the acknowledgement of task {task_id}", settle):
            settle()

    def _read(self, state: _State) -> list[Settle]:
        """Read what children have said; the messages that need not be held any longer. The caller holds the lock."""
        released: list[Settle] = []
        reader, _ = self._pipe or (-1, -1)
        with contextlib.suppress(BlockingIOError):
            while read := os.read(reader, 1024 * _RECORD.size):
                whole = len(state.rest + read) // _RECORD.size * _RECORD.size
                records, state.rest = (state.rest + read)[:whole], (state.rest + read)[whole:]
                for what, number, pid in _RECORD.iter_unpack(records):
                    if what == _BEGINS:
                        state.pending[number] = pid
                    else:
                        state.pending.pop(number, None)
                        held = state.held.pop(number, None)
                        if held is not None:
                            released.append(held.settle)
        return released

    def _listen(self, state: _State) -> None:
        if not state.listening:
            state.listening = True
            listener = threading.Thread(
                target=self._work, args=(state,), name="celery-s3-acknowledgements", daemon=True
            )
            without_sigterm(listener.start)

    def _work(self, state: _State) -> None:
        """Wait for children as long as messages are held."""
        poller = select.poll()
        poller.register((self._pipe or (-1, -1))[0], select.POLLIN)
        looked = busy = time.monotonic()
        while True:
            poller.poll(BETWEEN_LOOKS * 1000)
            now = time.monotonic()
            with state.lock:
                released = self._read(state)
                if now - looked >= BETWEEN_LOOKS:
                    looked = now
                    released += self._of_the_dead(state)
                self._adjust_prefetch(state)
                busy = now if state.held else busy
                if now - busy > IDLE:
                    state.listening = False
                    return
            for settle in released:
                settle()

    def _of_the_dead(self, state: _State) -> list[Settle]:
        """What returns the messages to their queue whose results have died with a child."""
        dead = {pid for pid in set(state.pending.values()) if not _lives(pid)}
        if not dead:
            return []
        released = self._read(state)  # all that they have said
        lost = [number for number, pid in state.pending.items() if pid in dead and number in state.held]
        if lost:
            logger.warning("Tasks whose child was lost before their results were stored, and come again: %s", len(lost))
        for number in lost:
            del state.pending[number]
            released.append(state.held.pop(number).again)
        return released

    def _adjust_prefetch(self, state: _State) -> None:
        """Have the broker send as many more messages as are held: their tasks have ended.

        It is raised at once, and lowered late, for each change costs a round trip on AMQP; never to more than twice.
        """
        qos = getattr(state.consumer, "qos", None)
        if qos is not state.qos:  # another connection, which knows nothing of it
            state.qos, state.raised = qos, 0
        held = len(state.held)
        if qos is None:
            return
        if held > state.raised:
            qos.increment_eventually(held - state.raised)
        elif held < state.raised and held <= state.raised // 2:
            qos.decrement_eventually(state.raised - held)
        else:
            return
        state.raised = held

    def _worker_ends(self, **_: Any) -> None:
        """All children have ended: nothing is pending, and what is held is settled before the connection closes."""
        state = self._own.peek()
        if state is None or state.consumer is None:
            return
        with state.lock:
            released = self._read(state) + self._of_the_dead(state)
        for settle in released:
            settle()
        run_what_is_due(state.consumer)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
