"""Who mends chords, apart from their own tasks: the daily cleanup, who waits for a body, a worker that starts."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from random import SystemRandom
from typing import Any
from uuid import uuid4

from billiard import process
from celery import states
from celery.result import AsyncResult, GroupResult
from celery.signals import worker_process_init, worker_ready

from celery_s3.celery_private import parents_of
from celery_s3.codec.decoding import Whole
from celery_s3.errors import CeleryS3Error, ObjectMissing, PreconditionFailed, Untrusted
from celery_s3.interruptions import INTERRUPTIONS
from celery_s3.printable import get_logger
from celery_s3.processes import prefork_parent
from celery_s3.results.write_once import Results
from celery_s3.store.api import CREATE, Match, Precondition

from .repair import Repair
from .sender import Sender
from .service import Chords
from .survey import Final, Survey

__all__ = ["MemberResults", "Mending"]

logger = get_logger(__name__)

#: Seconds.
DAY = 86_400
#: Workers that start within this time of each other look at the chords once: the listing has every tombstone too.
ONCE_IN = timedelta(hours=1)
#: The states whose result stands in for a part that is missing. Not REVOKED: every worker that hears of a revoked id
#: stores it, while the task may still run, or come, and deliver its part by itself.
FINAL = frozenset({states.SUCCESS, states.FAILURE})


class Mending:
    """Mends chords without one of their tasks.

    Arguments:
        sender: sends their bodies.
        final: reads what a member would have delivered.
        native: whether chords are run by this package, and not by Celery's polling task.
        mended: the key of the object that tells when chords were mended last.
        kept: seconds that a decided chord's claim and manifest stay.
        dead: seconds after which a chord that waits for members is given up; ``None``: never.
    """

    def __init__(
        self,
        chords: Chords,
        sender: Sender,
        final: Final,
        native: Callable[[], bool],
        *,
        mended: str,
        kept: float,
        dead: float | None,
    ) -> None:
        self._chords = chords
        self._sender = sender
        self._final = final
        self._native = native
        self._mended = mended
        self._kept = timedelta(seconds=kept)
        self._dead = None if dead is None else timedelta(seconds=dead)
        self._started = False
        # Celery before 5.7 takes the methods of two backends for the same receiver.
        self._uid = f"celery-s3-{id(self)}"

    def repairs(self, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Repair:
        """What finds the chords under the prefix, and mends them.

        Arguments:
            now: the time, by which chords are given up and tombstones removed.
        """
        survey = Survey(self._chords, self._final, now)
        return Repair(survey, self._sender.without_a_task, kept=self._kept, dead=self._dead)

    # -- who waits for a body

    def watching(self, result: AsyncResult, on_interval: Callable[[], object] | None) -> Callable[[], object] | None:
        """What to call on each interval of a wait for ``result``: looks now and then whether its chord is stuck.

        The first look comes after a lease, the next after twice that time, and so on: a listing of the chord's
        keys each, in a thread of its own.

        Arguments:
            on_interval: what the caller wanted to be called, which is called as well.
        """
        groups = [node.id for node in parents_of(result) if isinstance(node, GroupResult)]
        if not groups:
            return on_interval
        return _Watch(self._chords.lease, partial(self._mend_in_background, groups), on_interval)

    def _mend_in_background(self, groups: list[str]) -> None:
        self._chords.later(0, partial(_logging_errors, lambda: self.repairs().mend(groups)))

    # -- a worker that starts

    def start_with_worker(self) -> None:
        """Once this worker is up, mend what those before it left behind.

        Not in the main process of a prefork worker, which has better things to do, nor in each of its children.
        """
        for signal in (worker_process_init, worker_ready):
            signal.connect(self.worker_started, dispatch_uid=self._uid)

    def close(self) -> None:
        """Do nothing any more when a worker starts."""
        for signal in (worker_process_init, worker_ready):
            signal.disconnect(dispatch_uid=self._uid)

    def worker_started(self, **_: object) -> None:
        """What Celery's signals call."""
        # Set before it returns: children that are forked later inherit it from the main process, and do nothing.
        started, self._started = self._started, True
        if started or prefork_parent() or getattr(process.current_process(), "index", None):
            return
        # The claims of the dead must have expired, and a fleet does not start in step.
        delay = self._chords.lease * SystemRandom().uniform(1.1, 2)
        self._chords.later(delay, partial(_logging_errors, self.mend_all))

    def mend_all(self) -> None:
        """Mend every chord, unless another worker has done so lately; and again in a day.

        Beat schedules no daily cleanup where lifecycle rules expire results.
        """
        self._chords.later(DAY * SystemRandom().uniform(0.9, 1.1), partial(_logging_errors, self.mend_all))
        if self._native() and self.first_to_look():
            self.repairs().run()

    def first_to_look(self) -> bool:
        """Whether no other worker has looked lately: one object tells, and its conditional write decides."""
        store, key = self._chords.store, self._mended
        precondition: Precondition = CREATE
        try:
            found = store.get(key)
        except ObjectMissing:
            pass
        except Untrusted:  # the key that sealed it is not in `seal_keys` any more; only its age matters
            precondition = None
        else:
            if datetime.now(UTC) - found.modified < ONCE_IN:
                return False
            precondition = Match(found.etag)
        try:
            store.put(key, uuid4().hex.encode(), precondition=precondition)
        except PreconditionFailed:
            return False
        return True


class MemberResults:
    """What a member of a chord would have delivered, from its stored result.

    Arguments:
        decode: an object's meta.
        encode: makes a payload.
        key_of: the key of a task's result.
    """

    def __init__(
        self,
        results: Results,
        decode: Callable[[Whole], Any],
        encode: Callable[[Any], bytes | str],
        key_of: Callable[[str], str],
    ) -> None:
        self._results = results
        self._decode = decode
        self._encode = encode
        self._key_of = key_of

    def __call__(self, task_id: str, since: datetime) -> bytes | None:
        """The payload; ``None`` where there is no final result.

        Arguments:
            since: an older result is that of an earlier run of the same frozen chord.
        """
        found = self._results.read(self._key_of(task_id))
        whole = self._results.whole(found) if found is not None and found.modified >= since else None
        state, value = ("", None) if whole is None else self._state_and_value(task_id, whole)
        if state not in FINAL:
            return None
        payload = self._encode([task_id, state, value])
        return payload.encode() if isinstance(payload, str) else payload

    def _state_and_value(self, task_id: str, whole: Whole) -> tuple[str, Any]:
        try:
            meta = self._decode(whole)
            return meta["status"], meta["result"]
        except INTERRUPTIONS:
            raise
        except Exception:
            key = whole.about.key
            extra = {"s3_key": key, "s3_task": task_id}
            logger.warning("%s is no result that can be delivered to its chord", key, exc_info=True, extra=extra)
            return "", None


class _Watch:
    """Called on each interval of a wait: mends after ever longer pauses, and calls what the caller wanted."""

    def __init__(self, pause: float, mend: Callable[[], object], on_interval: Callable[[], object] | None) -> None:
        self._mend = mend
        self._on_interval = on_interval
        self._pause = pause
        self._due = time.monotonic() + pause

    def __call__(self) -> None:
        if time.monotonic() >= self._due:
            self._pause *= 2
            self._due = time.monotonic() + self._pause
            self._mend()
        if self._on_interval is not None:
            self._on_interval()


def _logging_errors(mend: Callable[[], None]) -> None:
    """Call ``mend`` and log what it raises: it runs in a thread where nobody else would see that."""
    try:
        mend()
    except CeleryS3Error as exc:  # a worker that may not list, for one: the message says all there is
        logger.warning("Chords could not be looked after: %s", exc)
    except Exception:
        logger.warning("Chords could not be looked after", exc_info=True)
