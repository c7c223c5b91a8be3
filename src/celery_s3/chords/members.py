"""The tasks of a header: each delivers its part before its final state is stored, then goes up the tree."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

from celery import states
from celery.backends.base import Backend
from celery.result import ResultBase

from celery_s3.celery_private import current_task
from celery_s3.codec.chunks import LARGE
from celery_s3.errors import ObjectMissing, ResultNotStored, StoreError, Untrusted
from celery_s3.processes import prefork_parent
from celery_s3.store.deadline import patient

from .decision import Act, Decision, GiveUp
from .delivery import Delivery
from .manifest import leaf_ids
from .mender import Left, Mender, mark_of
from .parts import CALLED
from .sender import Sender
from .service import Chords
from .ticket import TICKET, Ticket, redelivered
from .tree import FAN_IN

__all__ = ["Members"]


#: Set while Celery reports what a task has come to; whoever writes it in another thread takes this along.
_reporting: ContextVar[bool] = ContextVar("celery-s3-reporting", default=False)


class _Part(NamedTuple):
    """What a member has come to, encoded."""

    ticket: Ticket
    request: Any
    state: str
    payload: bytes


class _Together:
    """The parts that this process delivers at the same time, by the node that they belong to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count: Counter[object] = Counter()

    @contextmanager
    def of(self, part: _Part | None) -> Iterator[Callable[[], int]]:
        """Inside, a part is being delivered; how many others of its node are: when it began, afterwards when it ended.

        None of a part whose node only the manifest could tell.
        """
        index = None if part is None or not part.ticket.flat else _index(part.request)
        if part is None or index is None:
            yield lambda: 0
            return
        node = part.ticket.group, index // FAN_IN
        others = self._add(node, 1)
        try:
            yield lambda: others
        finally:
            others = self._add(node, -1)

    def _add(self, node: object, number: int) -> int:
        """Change how many there are of a node; how many others there are now."""
        with self._lock:
            self._count[node] += number
            left = self._count[node]
            if not left:
                del self._count[node]
            return left - (number > 0)


class Members:
    """What a worker does for the members of chords.

    Arguments:
        host: encodes their values.
        sender: decides, for the member that completes the tree.
        mender: takes what is left undecided.
    """

    def __init__(self, host: Backend, chords: Chords, sender: Sender, mender: Mender) -> None:
        self._host = host
        self._chords = chords
        self._sender = sender
        self._mender = mender
        # Celery stores a task's result and returns its part in one thread, one right after the other.
        self._latest = threading.local()
        self._together = _Together()

    def add(self, result: ResultBase) -> None:
        """Let the current task add others to its chord: its part will name them, and theirs are needed as well.

        Celery has put the task's own ``request.chord`` into the signature of what it adds: what is noted there
        reaches the added task, and this task's part.

        Raises:
            NotImplementedError: the task is no member of a chord that is run natively.
        """
        request = current_task().request
        ticket = Ticket.of(request)
        slot = self._chords.slot(ticket, request.id, _index(request)) if ticket else None
        if ticket is None or slot is None:
            raise NotImplementedError("add_to_chord needs a chord that this backend runs natively")
        request.chord["options"][TICKET] = ticket.adding(request.id, slot, leaf_ids([result])).dumps()

    # -- Celery's hooks of a task that ends

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """What is stored in here is what a task has come to, by the word of the worker that ran it."""
        token = _reporting.set(True)
        try:
            yield
        finally:
            _reporting.reset(token)

    def store(self, store: Callable[[], Any], task_id: str, result: Any, state: str, request: Any) -> Any:
        """Store a result by ``store``; its part is durable before it, where it is what a member has come to.

        Afterwards would be too late: Celery does not run a task again whose SUCCESS stands. What a task says of itself
        by `update_state`, in whatever state, is no part.

        Raises:
            ResultNotStored: the part was not delivered; nothing is stored then.
            Whatever ``store`` raises.
        """
        part = self._part(request, result, state) if self.reported(state) else None
        delivery = part and self._deliver(part)
        return store() if delivery is None else self._store(store, task_id, delivery, request)

    def reported(self, state: str) -> bool:
        """Whether a state that is being stored is what a task has come to, by the word of the worker that ran it."""
        return state in states.READY_STATES and _reporting.get()

    def deferred(self, task_id: str, result: Any, state: str, request: Any) -> Callable[[Callable[[], Any]], None]:
        """What :meth:`store` and :meth:`returned` do, for another thread: it is given ``store``.

        The part is encoded at once, and :meth:`returned` has nothing left to do in this thread. Of the members of a
        node that this process delivers at the same time, the last one goes up: it finds the others' parts.
        """
        part = self._part(request, result, state)
        self._latest.delivery = (task_id, None)

        def carry_out(store: Callable[[], Any]) -> None:
            with self._together.of(part) as others:
                delivery = part and self._deliver(part)
            if part is None or delivery is None or others():
                store()
            else:
                self._store(store, task_id, delivery, request)
                self.returned(request, result, state)

        return carry_out

    def _store(self, store: Callable[[], Any], task_id: str, delivery: Delivery, request: Any) -> Any:
        self._latest.delivery = (task_id, delivery)
        stored: list[Any] = []
        try:
            if delivery.size > LARGE:
                # A large result goes up in parts, which needs the pool's threads.
                return store()
            self._chords.pool.run_both(lambda: stored.append(store()), delivery.climb_quietly)
        except Exception:
            if not stored:
                # Celery will not call on_chord_part_return, and this may have been the last part.
                self._mender.leave(Left.of(request))
                raise
            # A time limit struck between the end of the task and this: too late to change what it has come to.
        return stored[0]

    def returned(self, request: Any, result: Any, state: str) -> None:
        """Go up from a member's part, and decide if it completed the chord; trouble with that is left to later tries.

        Raises:
            ResultNotStored: the part was not delivered before, as that of a task without a result, and cannot be now.
        """
        mark = mark_of(request)
        if isinstance(mark, dict) and state != states.SUCCESS:
            # a child that was lost, or ran out of time, while it mended
            self._mender.leave(Left.of(request, tries=mark["tries"], member=mark["member"]))
            return
        task_id, delivery = getattr(self._latest, "delivery", ("", None))
        if task_id != request.id:
            part = self._part(request, result, state)
            delivery = part and self._deliver(part)
        self._latest.delivery = ("", None)
        if delivery is None:
            return
        self._go_up(delivery, request)

    def lost(self, request: Any) -> None:
        """Go on with the chord of a member that was lost after it had stored its SUCCESS.

        Celery 5.7 acknowledges such a task without calling `on_chord_part_return`.
        """
        if Ticket.of(request) is not None:
            self._mender.hand_on(Left.of(request))

    # -- steps

    def _part(self, request: Any, result: Any, state: str) -> _Part | None:
        """A member's part; ``None`` for any other task."""
        ticket = Ticket.of(request)
        if ticket is None or not request.id or mark_of(request) is not None:
            return None
        called = getattr(request, CALLED, None)
        value = [request.id, state, self._host.encode_result(result, state)]
        payload = self._host.encode([*value, called] if called else value)
        return _Part(ticket, request, state, payload.encode() if isinstance(payload, str) else payload)

    def _deliver(self, part: _Part) -> Delivery | None:
        ticket, request, state, payload = part
        failed = state in states.PROPAGATE_STATES
        try:
            with patient(self._chords.patience):
                return self._chords.deliver(ticket, request.id, _index(request), payload, failed=failed)
        except (Untrusted, ObjectMissing) as exc:
            # of the manifest: nobody can tell this member's slot
            self._give_up(request.chord)(exc)
            return None
        except StoreError as exc:
            what = f"{state} of task {request.id} was not delivered to its chord {ticket.group}: {exc}"
            raise ResultNotStored(what, request.id, state) from exc

    def _go_up(self, delivery: Delivery, request: Any) -> None:
        give_up = self._give_up(request.chord)
        step: Callable[[], bool]
        if prefork_parent():  # what a join takes would be this process's for ever, and its children's
            step = partial(self._hand_on, delivery, request)
        else:
            look = delivery.ticket.again or redelivered(request)
            act = partial(self._sender.decide, request.chord, look=look)
            step = self._decided(delivery, act, give_up)
        self._mender.pursue(Left.of(request), step, give_up)

    def _decided(self, delivery: Delivery, act: Act, give_up: GiveUp) -> Callable[[], bool]:
        """What decides the chord if this part completes it; called again, it goes on from where it was."""
        decision: Decision | None = None

        def step() -> bool:
            nonlocal decision
            if decision is None and (complete := delivery.climb()) is not None:
                decision = Decision(self._chords, delivery.ticket, *complete, act, give_up=give_up)
            return decision is None or decision.go()

        return step

    def _hand_on(self, delivery: Delivery, request: Any) -> bool:
        if delivery.completes_its_node():
            self._mender.hand_on(Left.of(request))
        return True

    def _give_up(self, body: Any) -> GiveUp:
        return partial(self._sender.give_up, body)


def _index(request: Any) -> int | None:
    """Celery's number of a task in its group; absent from the requests of lost and foreign tasks."""
    return getattr(request, "group_index", None)
