"""Who mends chords, apart from their own tasks: the daily cleanup, who waits for a body, a worker that starts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from random import SystemRandom
from typing import Any
from uuid import uuid4

from billiard import process
from celery import states
from celery._state import _task_stack
from celery.canvas import Signature
from celery.result import AsyncResult, GroupResult
from celery.signals import worker_process_init, worker_ready

from celery_s3.errors import CeleryS3Error, NotRepaired, ObjectMissing, PreconditionFailed, Untrusted
from celery_s3.expiry.terms import DAY, Terms
from celery_s3.interruptions import INTRUDERS
from celery_s3.keys import Layout
from celery_s3.processes import prefork_parent
from celery_s3.results.reader import Decoder
from celery_s3.results.write_once import Results
from celery_s3.store.api import CREATE, Match, Precondition, Store

from . import Chords, Manifest
from .repair import Repair
from .service import Act, Outcome
from .survey import Survey

__all__ = ["RepairHooks"]

logger = logging.getLogger(__name__)

#: Workers that start within this time of each other look at the chords once: the listing has every tombstone too.
ONCE_IN = timedelta(hours=1)
#: What a member without a part may deliver from its result. REVOKED is written by every worker that hears of it,
#: while the task may be running or yet to come, and delivers its part by itself.
FINAL = frozenset({states.SUCCESS, states.FAILURE})


class RepairHooks:
    """The part of the backend that mends chords; what it needs of the rest is declared here."""

    app: Any
    store: Store
    results: Results
    chords: Chords
    terms: Terms
    _decoder: Decoder
    encode: Callable[[Any], bytes | str]
    get_key_for_task: Callable[[str], str]
    body_of: Callable[[Manifest], Signature]
    _full: Callable[[str], str]
    layout: Layout
    _decide: Callable[..., Outcome]
    _native_chords: Callable[[], bool]
    _started = False

    @property
    def repairs(self) -> Repair:
        """To see chords, and to mend them without one of their tasks."""
        return self._repairs(lambda: datetime.now(UTC))

    def _repairs(self, now: Callable[[], datetime]) -> Repair:
        dead = None if self.terms.chords is None else timedelta(seconds=self.terms.chords)
        kept = timedelta(seconds=self.terms.decided)
        return Repair(Survey(self.chords, self._final, now), self._owner, kept=kept, dead=dead)

    # -- who waits for a body

    def wait_for_pending(
        self, result: AsyncResult, *args: Any, on_interval: Callable[[], object] | None = None, **kwargs: Any
    ) -> Any:
        """Wait; look now and then whether a chord that the result depends on is stuck.

        The first look comes after a lease, the next after twice that time, and so on: a listing of the chord's
        keys each, in a thread of its own.
        """
        groups = [node.id for node in result._parents() if isinstance(node, GroupResult)]
        if groups:
            on_interval = _Watch(self.chords.lease, partial(self._in_background, groups), on_interval)
        return super().wait_for_pending(result, *args, on_interval=on_interval, **kwargs)  # type: ignore[misc]

    def _in_background(self, groups: list[str]) -> None:
        self.chords.later(0, lambda: _harmless(lambda: self.repairs.mend(groups)))

    # -- a worker that starts

    def _mend_at_start(self) -> None:
        """Once this worker is up, mend what those before it left behind.

        Not in the main process of a prefork worker, which has better things to do, nor in each of its children.
        """
        # Celery before 5.7 takes the methods of two backends for the same receiver.
        for signal in (worker_process_init, worker_ready):
            signal.connect(self._worker_started, dispatch_uid=f"celery-s3-{id(self)}")

    def _worker_started(self, **kwargs: Any) -> None:
        # Children that are forked after this inherit it from the main process.
        started, self._started = self._started, True
        if started or prefork_parent() or getattr(process.current_process(), "index", None):
            return
        # The claims of the dead must have expired, and a fleet does not start in step.
        delay = self.chords.lease * SystemRandom().uniform(1.1, 2)
        self.chords.later(delay, lambda: _harmless(self._mend_after_start))

    def _mend_after_start(self) -> None:
        # Once a day from then on: beat schedules no cleanup where lifecycle rules expire results.
        self.chords.later(DAY * SystemRandom().uniform(0.9, 1.1), lambda: _harmless(self._mend_after_start))
        if self._native_chords() and self._first_to_look():
            self.repairs.run()

    def _first_to_look(self) -> bool:
        """Whether no other worker has looked lately: one object tells, and its conditional write decides."""
        key = self.layout.mended
        precondition: Precondition = CREATE
        try:
            found = self.store.get(key)
        except ObjectMissing:
            pass
        except Untrusted:  # its key was taken out of the ring since; only its age matters
            precondition = None
        else:
            if datetime.now(UTC) - found.modified < ONCE_IN:
                return False
            precondition = Match(found.etag)
        try:
            self.store.put(key, uuid4().hex.encode(), precondition=precondition)
        except PreconditionFailed:
            return False
        return True

    # -- without one of the chord's tasks

    def _final(self, task_id: str, since: datetime) -> bytes | None:
        """What a member would have delivered, from its stored result.

        An older result than the chord is that of an earlier run of the same frozen chord.
        """
        found = self.results.read(self._full(self.get_key_for_task(task_id)))
        whole = self.results.whole(found) if found is not None and found.modified >= since else None
        if whole is None:
            return None
        try:
            meta = self._decoder.take(whole)
            state, value = meta["status"], meta["result"]
        except INTRUDERS:
            raise
        except Exception:
            logger.warning(
                "%s is no result that can be delivered to its chord",
                whole.about.key,
                exc_info=True,
                extra={"s3_key": whole.about.key, "s3_task": task_id},
            )
            return None
        if state not in FINAL:
            return None
        payload = self.encode([task_id, state, value])
        return payload.encode() if isinstance(payload, str) else payload

    def _owner(self, manifest: Manifest) -> Act:
        """What the owner of the claim does, with the body from the manifest.

        Raises:
            NotRepaired: this process cannot send it; the chord must not fail for that.
        """
        try:
            body = self.body_of(manifest)
            with self.app.connection_for_write() as connection:
                connection.ensure_connection(max_retries=1, interval_start=0)
        except Exception as exc:
            raise NotRepaired(f"the body cannot be read or sent from here: {exc!r}") from exc

        def act(*found: Any) -> Outcome:
            with _as_member(self.app, manifest):
                return self._decide(body, *found)

        return act


class _Watch:
    """Called on each interval of a wait: now and then does something, then what the caller wanted."""

    def __init__(self, after: float, act: Callable[[], object], then: Callable[[], object] | None) -> None:
        self._act = act
        self._then = then
        self._pause = after
        self._due = time.monotonic() + after

    def __call__(self) -> None:
        if time.monotonic() >= self._due:
            self._pause *= 2
            self._due = time.monotonic() + self._pause
            self._act()
        if self._then is not None:
            self._then()


@contextmanager
def _as_member(app: Any, manifest: Manifest) -> Iterator[None]:
    """What is sent in here has the chord's last member for its parent, as if that one sent it."""
    member = manifest.ids[-1]
    task = app.tasks["celery.backend_cleanup"]
    task.push_request(id=member, root_id=manifest.root or member, called_directly=False, delivery_info={})
    _task_stack.push(task)
    try:
        yield
    finally:
        _task_stack.pop()
        task.pop_request()


def _harmless(mend: Callable[[], None]) -> None:
    """In a thread that nobody waits for."""
    try:
        mend()
    except CeleryS3Error as exc:  # a worker that may not list, for one: the message says all there is
        logger.warning("Chords could not be looked after: %s", exc)
    except Exception:
        logger.warning("Chords could not be looked after", exc_info=True)
