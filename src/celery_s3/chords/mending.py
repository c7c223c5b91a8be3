"""Mending chords without their own tasks: what a message asks a worker for; the look at all of them once an hour."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from random import SystemRandom
from typing import Any
from uuid import uuid4

from celery import states
from celery.signals import worker_ready

from celery_s3.celery_private import current_task
from celery_s3.codec.decoding import Whole
from celery_s3.errors import CeleryS3Error, ObjectMissing, PreconditionFailed, Untrusted
from celery_s3.interruptions import INTERRUPTIONS
from celery_s3.printable import get_logger
from celery_s3.results.write_once import Results
from celery_s3.store.api import CREATE, Match, Precondition

from .decision import Act, GiveUp
from .mender import ALL, Left, Mender, mark_of
from .repair import Repair
from .sender import Sender
from .service import Chords
from .survey import Final, Survey
from .timer import Timer

__all__ = ["MemberResults", "Mending"]

logger = get_logger(__name__)

#: Seconds. Workers look at the chords once in that time, all together: the listing has every tombstone too.
HOUR = 3600.0
#: The states whose result stands in for a part that is missing. Not REVOKED: every worker that hears of a revoked id
#: stores it, while the task may still run, or come, and deliver its part by itself.
FINAL = frozenset({states.SUCCESS, states.FAILURE})


class Mending:
    """Mends chords without one of their tasks.

    Arguments:
        sender: sends their bodies.
        mender: hands on what cannot be done now, and what all workers are asked for.
        final: reads what a member would have delivered.
        native: whether chords are run by this package, and not by Celery's polling task.
        trusted: what is read from the bucket was written by who has the keys.
        mended: the key of the object that tells when chords were mended last.
        kept: seconds that a decided chord's claim and manifest stay.
        dead: seconds after which a chord that waits for members is given up; ``None``: never.
        later: calls a function after some seconds.
    """

    def __init__(
        self,
        chords: Chords,
        sender: Sender,
        mender: Mender,
        final: Final,
        native: Callable[[], bool],
        *,
        trusted: bool,
        mended: str,
        kept: float,
        dead: float | None,
        later: Timer | None = None,
    ) -> None:
        self._chords = chords
        self._sender = sender
        self._mender = mender
        self._final = final
        self._native = native
        self.trusted = trusted
        self._mended = mended
        self._kept = timedelta(seconds=kept)
        self._dead = None if dead is None else timedelta(seconds=dead)
        self._later = later or Timer()
        self._started = False
        # Celery before 5.7 takes the methods of two backends for the same receiver.
        self._uid = f"celery-s3-{id(self)}"
        worker_ready.connect(self.worker_started, dispatch_uid=self._uid)

    def close(self) -> None:
        """Do nothing any more when a worker starts, nor later."""
        worker_ready.disconnect(dispatch_uid=self._uid)
        self._later.close()

    def repairs(self, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Repair:
        """What finds the chords under the prefix, and mends them with the bodies of their manifests.

        Arguments:
            now: the time, by which chords are given up and tombstones removed.
        """
        survey = Survey(self._chords, self._final, now)
        owner = partial(self._sender.without_a_task, trusted=self.trusted)
        return Repair(survey, owner, kept=self._kept, dead=self._dead)

    # -- what the workers are asked for

    def asked(self) -> bool:
        """Do what the current task's message asks to mend; ``False`` where it asks for nothing of the kind."""
        task = current_task()
        mark = mark_of(task.request) if task is not None else None
        if mark == ALL:
            self.repairs().run(mend=self.trusted)
        elif isinstance(mark, dict):
            self.mend(Left.of(task.request, tries=mark["tries"], member=mark["member"]))
        return mark is not None

    def mend(self, left: Left) -> None:
        """Go on with one chord, whose body is at hand; what cannot be done now is handed on."""
        give_up = partial(self._sender.give_up, left.body)
        act = partial(self._sender.decide, left.body, look=True)
        self._mender.pursue(left, partial(self._go_on, left, act, give_up), give_up)

    def _go_on(self, left: Left, act: Act, give_up: GiveUp) -> bool:
        try:
            return self.repairs().go_on(left.ticket, act, give_up, member=left.member)
        except ObjectMissing as exc:  # of the manifest: nobody can tell what the body is to be given
            give_up(exc)
            return True

    # -- once an hour

    def worker_started(self, **_: object) -> None:
        """What Celery's signal calls, in the main process of a worker."""
        if not self._started:
            self._started = True
            # The claims of the dead must have expired, and a fleet does not start in step.
            self._later(self._chords.lease * SystemRandom().uniform(1.1, 2), self.look_at_all)

    def look_at_all(self) -> None:
        """Ask the workers to look at all chords, unless another one has done so lately; and again in an hour."""
        pause = HOUR
        try:
            if self._native() and not (pause := self.turn()):
                pause = HOUR
                self._mender.hand_on_all()
        except CeleryS3Error as exc:  # a worker that may not write, for one: the message says all there is
            logger.warning("Chords could not be looked after: %s", exc)
        except Exception:
            logger.warning("Chords could not be looked after", exc_info=True)
        self._later(pause + SystemRandom().uniform(1, 60), self.look_at_all)

    def turn(self) -> float:
        """Seconds until it is time to look again; 0: it is this worker's turn.

        One object tells when somebody looked last, and its conditional write decides.
        """
        store, key = self._chords.store, self._mended
        precondition: Precondition = CREATE
        try:
            found = store.get(key)
        except ObjectMissing:
            pass
        except Untrusted:  # the key that sealed it is not in `seal_keys` any more; only its age matters
            precondition = None
        else:
            age = (datetime.now(UTC) - found.modified).total_seconds()
            if age < HOUR:
                return min(HOUR, HOUR - age)
            precondition = Match(found.etag)
        try:
            store.put(key, uuid4().hex.encode(), precondition=precondition)
        except PreconditionFailed:
            return HOUR
        return 0.0


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
            since: an older result is that of an earlier run of the same frozen chord. In whole seconds: many servers
                list times in milliseconds, which is where this one comes from, and answer a GET in seconds.
        """
        found = self._results.read(self._key_of(task_id))
        newer = found is not None and found.modified >= since.replace(microsecond=0)
        whole = self._results.whole(found) if found is not None and newer else None
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
