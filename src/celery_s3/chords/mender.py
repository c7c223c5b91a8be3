"""Chords that nobody goes on with: a message to the workers, by which a child of some pool goes on.

A process that leaves a chord undecided (another party holds the claim, the store or the broker failed) looks at its
claim after a lease, and where nothing was decided it sends that message; a process that ends looks before it does. The
message is one of Celery's own task `celery.backend_cleanup`, which every worker has, with the chord's body beside it as
each task of the header has it: what is sent in the end was told by the broker, and not by the bucket.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from celery.signals import task_postrun, worker_process_shutdown, worker_shutdown

from celery_s3.celery_private import current_task
from celery_s3.errors import BodyNotSent, StoreError, Untrusted
from celery_s3.interruptions import INTERRUPTIONS
from celery_s3.printable import get_logger
from celery_s3.store.deadline import patient

from .claim import PUBLISHING
from .decision import GiveUp
from .service import Chords
from .ticket import Ticket
from .timer import Timer

__all__ = ["ALL", "Left", "Mender", "mark_of", "route_of"]

logger = get_logger(__name__)

#: The message header by which `celery.backend_cleanup` is asked to mend.
MARK = "celery_s3_mend"
#: What the mark says where all chords are meant, and none by name.
ALL = "all"
TASK = "celery.backend_cleanup"
#: How often a chord is handed on, after ever longer pauses: about three hours with the shortest lease.
TRIES = 10
#: The longest pause, in seconds.
LONGEST = 3600.0
#: Seconds between two looks at a member that has ended without telling what it has come to, and how many there are.
BY_HAND, LOOKS = 30.0, 120
#: The states that Celery tells no backend of.
UNTOLD = frozenset({"IGNORED", "REJECTED"})


@dataclass(frozen=True, slots=True)
class Left:
    """A chord that is left undecided.

    Attributes:
        body: its body's signature with the ticket, as a task of its header has it.
        route: exchange and routing key of a queue that its header's tasks came from; empty: the default queue.
        tries: how often it was handed on.
        member: a task that may be finished by hand, from anywhere; empty: none.
    """

    body: Mapping[str, Any]
    route: Mapping[str, str] = field(default_factory=dict)
    tries: int = 0
    member: str = ""

    @classmethod
    def of(cls, request: Any, **more: Any) -> Left:
        """The chord of a request that has a ticket."""
        return cls(request.chord, route_of(request), **more)

    @property
    def ticket(self) -> Ticket:
        """The ticket of the chord."""
        return Ticket.in_body(self.body)


def mark_of(request: Any) -> Any:
    """What a request asks to mend: ``{"tries", "member"}`` of the chord beside it, :data:`ALL`, or ``None``."""
    return (getattr(request, "headers", None) or {}).get(MARK)


def route_of(request: Any) -> dict[str, str]:
    """Where the request's message came from."""
    info = getattr(request, "delivery_info", None)
    if not info and (task := current_task()) is not None:
        info = task.request.delivery_info
    found = {name: info[name] for name in ("exchange", "routing_key") if info.get(name) is not None} if info else {}
    return found if "routing_key" in found else {}


class Mender:
    """What one process has left undecided.

    Arguments:
        app: the Celery app.
        state: reads the state of a task.
        later: calls a function after some seconds.
    """

    def __init__(
        self, app: Any, chords: Chords, state: Callable[[str], str | None], later: Timer | None = None
    ) -> None:
        self._app = app
        self._chords = chords
        self._state = state
        self._later = later or Timer()
        # Celery before 5.7 takes the methods of two backends for the same receiver.
        self._uid = f"celery-s3-mender-{id(self)}"

    def listen(self) -> None:
        """Listen to the worker's signals; after all who may leave a chord when the process ends."""
        task_postrun.connect(self._task_ended, dispatch_uid=self._uid)
        for signal in (worker_process_shutdown, worker_shutdown):
            signal.connect(self._process_ends, dispatch_uid=self._uid)

    def close(self) -> None:
        """Look at nothing any more."""
        for signal in (task_postrun, worker_process_shutdown, worker_shutdown):
            signal.disconnect(dispatch_uid=self._uid)
        self._later.close()

    # -- going on

    def pursue(self, left: Left, step: Callable[[], bool], give_up: GiveUp, *, struck: bool = False) -> None:
        """Go on with a chord whose parts are durable; what cannot be done now is done later, perhaps by others.

        Raises no :class:`Exception`: it runs where nobody sees one, or where Celery would take it for the task's own.

        Arguments:
            step: what is to be done, and whether nothing is left then; called again, it goes on from where it was.
            give_up: what is done where nobody can decide any more.
            struck: a time limit has struck before.
        """
        group = left.ticket.group
        extra = {"s3_group": group}
        try:
            with patient(self._chords.patience):
                if not step():
                    self.leave(left)
        except Untrusted as exc:
            # of the manifest or the claim: trying again would not help
            logger.exception("Chord %s cannot be decided", group, extra=extra)
            give_up(exc)
        except INTERRUPTIONS:
            # The time limit of the task that came last is no reason to fail the others' chord. It strikes once.
            logger.warning("Chord %s: a time limit struck while it was gone on with", group, extra=extra)
            if struck:
                self.leave(left)
            else:
                self.pursue(left, step, give_up, struck=True)
        except BodyNotSent as exc:
            logger.warning("Chord %s: %s. It is tried again.", group, exc, extra=extra)
            self.leave(left)
        except Exception:
            logger.exception("Chord %s could not be gone on with", group, extra=extra)
            self.leave(left)

    def leave(self, left: Left) -> None:
        """Remember a chord that is undecided, and look at it after a lease, or after a longer pause by and by."""
        if left.tries >= (LOOKS if left.member else TRIES):
            logger.error(
                "Chord %s is left undecided: see it with `celery s3 chords`.",
                left.ticket.group,
                extra={"s3_group": left.ticket.group},
            )
            return
        # A lease twice: what is handed on at once meets a claim that lives.
        pause = (self._chords.lease + 1) * 2 ** max(0, left.tries - 1)
        seconds = BY_HAND if left.member else min(LONGEST, pause)
        self._later(seconds, partial(self._look, left, time.monotonic() + seconds))

    def _look(self, left: Left, due: float) -> None:
        """Hand the chord on, unless it was decided meanwhile; before it is due where this process ends."""
        seconds = max(0.0, due - time.monotonic())
        try:
            held = self._chords.claim(left.ticket.group).read()
            if held is not None and held.decided:
                return
            if left.member and not seconds and self._state(left.member) not in ("SUCCESS", "FAILURE"):
                self.leave(replace(left, tries=left.tries + 1))
                return
        except Untrusted:
            pass  # who takes it up will say so
        except StoreError as exc:
            logger.info("Chord %s could not be looked at: %s", left.ticket.group, exc)
        self.hand_on(left, seconds)

    def hand_on(self, left: Left, seconds: float = 0.0) -> None:
        """Let a child of some worker's pool go on with a chord, after so many seconds."""
        about = {"tries": left.tries + 1, "member": left.member}
        try:
            self._send(about, seconds, chord=dict(left.body), **left.route)
        except Exception as exc:  # noqa: BLE001 (whatever a broker's client raises)
            logger.error(  # noqa: TRY400 (the broker is away: that is all there is to say)
                "Chord %s is left undecided, and no worker could be told: %r. See it with `celery s3 chords`.",
                left.ticket.group,
                exc,
                extra={"s3_group": left.ticket.group},
            )

    def hand_on_all(self) -> None:
        """Let a child of some worker's pool look at all chords.

        Raises:
            Whatever the broker's client does.
        """
        queues = self._app.amqp.queues.consume_from
        default = self._app.conf.task_default_queue
        self._send(ALL, 0.0, queue=default if default in queues else next(iter(queues), default))

    def _send(self, mark: Any, seconds: float, **options: Any) -> None:
        self._app.tasks[TASK].apply_async(
            headers={MARK: mark},
            countdown=seconds or None,
            ignore_result=True,
            add_to_parent=False,
            retry_policy=PUBLISHING,
            **options,
        )

    # -- what Celery's signals tell

    def _task_ended(self, task: Any = None, state: Any = None, **_: Any) -> None:
        """Watch a member that tells its backend nothing: it may be finished by hand, as celery-batches does."""
        if state in UNTOLD and Ticket.of(task.request) is not None and mark_of(task.request) is None:
            self.leave(Left.of(task.request, member=task.request.id))

    def _process_ends(self, **_: Any) -> None:
        self._later.flush()
