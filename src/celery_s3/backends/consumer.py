"""The thread of a worker that receives tasks: nothing is asked of S3 in it, and nothing is raised into it.

Celery stores states there too: of expired, revoked, unknown and lost tasks, and of those that ran into their time
limit. A request would hold up all consuming, and an error would end the worker. So writes are handed to an
:class:`~celery_s3.outbox.Outbox`; and where Celery asks there whether a task has a result, it is answered as if there
were none, but for the one question that decides something (:meth:`Consumer.lost_task`).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

from celery import states
from celery.signals import task_received, worker_ready, worker_shutdown

from celery_s3.celery_private import asks_before_writing, current_task
from celery_s3.chords.members import Members
from celery_s3.errors import CeleryS3Error
from celery_s3.outbox import Outbox
from celery_s3.printable import get_logger
from celery_s3.processes import prefork_parent
from celery_s3.results.reader import Meta, Reader, pending
from celery_s3.store.deadline import retried_until

__all__ = ["Consumer"]

logger = get_logger(__name__)

#: Seconds that a worker which shuts down writes what is left.
AT_SHUTDOWN = 10.0
#: Seconds after which a question that Celery asks here has its answer, whatever the server does: nothing is consumed
#: for so long. What is not known by then counts as not finished, and is run again or written as lost; neither takes the
#: place of a SUCCESS.
ANSWERED_IN = 0.8
#: What the names of our own threads begin with: they may wait for S3 in a worker's main process.
OWN = "celery-s3"


class Consumer:
    """What the thread that receives tasks does about results.

    Arguments:
        outbox: for what it has to write.
        reader: reads metas.
        members: goes on with the chord of a lost task.
    """

    def __init__(self, outbox: Outbox, reader: Reader, members: Members) -> None:
        self.outbox = outbox
        self._reader = reader
        self._members = members
        #: process and thread, where the worker's pool runs tasks in the same process
        self._thread: tuple[int, int] | None = None
        #: the requests that this process has received and still has
        self._at_work: WeakValueDictionary[str, Any] = WeakValueDictionary()
        # Celery before 5.7 tells bound methods apart by their function alone.
        name = f"celery-s3-consumer-{id(self)}"
        task_received.connect(self._received, dispatch_uid=name)
        worker_ready.connect(self._worker_is_ready, dispatch_uid=name)
        worker_shutdown.connect(self._worker_ends, dispatch_uid=name)

    def is_here(self) -> bool:
        """Whether the calling thread is it: any of a prefork worker's main process, or the one that runs no task."""
        if prefork_parent():
            return not threading.current_thread().name.startswith(OWN)
        here = self._thread is not None and self._thread == (os.getpid(), threading.get_ident())
        return here and current_task() is None

    def spared(self, write: Callable[[], Any], task_id: str, what: str, result: Any) -> Any:
        """Write: now, and what that returns; from the thread that receives tasks later, and ``result``."""
        if not self.is_here():
            return write()
        self._put(task_id, what, write)
        return result

    def meta(self, task_id: str) -> Meta:
        """The meta of a task, within a second whatever the server does.

        Raises:
            ResultNotRead: it could not be read in that time.
        """
        if asks_before_writing():  # where REVOKED and FAILURE may not be written, they are not: no need to look
            return pending()
        lost = self._at_work.get(task_id)
        with retried_until(time.monotonic() + ANSWERED_IN):
            return self._reader.meta(task_id) if lost is None else self._of_lost_task(task_id, lost)

    def _of_lost_task(self, task_id: str, request: Any) -> Meta:
        """Celery 5.7 asks whether a task had stored its SUCCESS before its child was lost.

        The value is not read: nobody wants it here, and it may be of any size, or a stranger's.
        """
        try:
            state = self._reader.state(task_id)
        except CeleryS3Error as exc:
            logger.warning("A lost task counts as not finished, for its result cannot be read: %s", exc)
            return pending()
        if state == states.SUCCESS:
            go_on = partial(self._members.lost, request)
            self._put(task_id, f"the chord part of task {task_id}", go_on)
        return {**pending(), "status": state or states.PENDING}

    def _put(self, task_id: str, what: str, write: Callable[[], Any]) -> None:
        if not self.outbox.put(task_id, what, write):
            waiting = len(self.outbox)
            logger.error("%s is lost: %s writes wait for S3 already", what, waiting, extra={"s3_task": task_id})

    def close(self) -> None:
        """Listen to the worker's signals no more."""
        task_received.disconnect(dispatch_uid=f"celery-s3-consumer-{id(self)}")
        worker_ready.disconnect(dispatch_uid=f"celery-s3-consumer-{id(self)}")
        worker_shutdown.disconnect(dispatch_uid=f"celery-s3-consumer-{id(self)}")

    def _received(self, request: Any = None, **_: Any) -> None:
        self._at_work[request.id] = request

    def _worker_is_ready(self, **_: Any) -> None:
        self._thread = os.getpid(), threading.get_ident()

    def _worker_ends(self, **_: Any) -> None:
        for what in self.outbox.flush(AT_SHUTDOWN):
            logger.error("%s is lost: S3 has not taken it before this worker ended", what)
