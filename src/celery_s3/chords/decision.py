"""One party's decision about a chord whose parts are all there: claim, send or fail once, mark, clean up."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Literal, Protocol

from celery_s3.errors import BodyNotSent, ObjectMissing, StoreError
from celery_s3.printable import get_logger
from celery_s3.store.api import Store
from celery_s3.store.deadline import patience, patient
from celery_s3.store.parallel import Pool

from .claim import Claim, Held, is_of_process
from .manifest import Manifest
from .parts import Leaves
from .ticket import Ticket
from .tree import Tree

__all__ = ["Act", "Decision", "GiveUp", "Outcome", "Ready", "Service"]

logger = get_logger(__name__)

#: The longest wait, in seconds, before a broker that is away is tried again.
PAUSE = 5.0

Outcome = Literal["sent", "failed"]
#: Sends the body, or reports the failure; may be called again where it raises. Returns what to mark.
Ready = Callable[[], Outcome]
#: Joins the values: per member its payload and those of the tasks that it added, the manifest, and whether an owner
#: before may have sent the body already.
Act = Callable[[list[list[bytes]], Manifest, bool], Ready]
#: Told why nobody can decide a chord any more.
GiveUp = Callable[[Exception], None]


class Service(Protocol):
    """What a decision needs of the chords under a prefix: see :class:`celery_s3.chords.service.Chords`."""

    store: Store
    pool: Pool
    expires: float | None
    clock: Callable[[], float]
    sleep: Callable[[float], None]

    def claim(self, group: str) -> Claim:
        """The claim of a chord, for this party."""

    def manifest(self, ticket: Ticket) -> Manifest:
        """The manifest of a chord; raises ObjectMissing."""

    def opened(self, ticket: Ticket) -> datetime:
        """When the chord was applied, on the server's clock."""

    def now(self, ticket: Ticket) -> datetime:
        """The time on the server's clock."""

    def look_again(self, seconds: float, ticket: Ticket, act: Act, give_up: GiveUp | None) -> None:
        """Decide later, if nobody has until then."""


class Decision:
    """A decision, which can be gone on with after any error: what this party has done it does not do again.

    Arguments:
        since: a time on the chords' clock at which the chord was not complete; ``None``: not known.
        lost: the pid of a child that has died: its claim need not expire to be taken over.
        give_up: fails the body where the chord cannot be decided; without it, it is left as it is.
    """

    def __init__(
        self,
        chords: Service,
        ticket: Ticket,
        tree: Tree,
        leaves: Leaves,
        act: Act,
        *,
        since: float | None = None,
        lost: int | None = None,
        give_up: GiveUp | None = None,
    ) -> None:
        self._chords = chords
        self._ticket = ticket
        self._tree = tree
        self._leaves = leaves
        self._act = act
        self._since = since
        self._lost = lost
        self._give_up = give_up
        self._claim = chords.claim(ticket.group)
        self._missing: ObjectMissing | None = None
        self._perhaps_sent = False
        self._outcome: Outcome | None = None

    def go(self) -> None:
        """Do what is left to do; nothing where that is somebody else's.

        Raises:
            BodyNotSent: the broker is away, and patience has come to its end; nothing was sent.
            StoreError: or whatever else keeps this process from deciding; the chord does not fail of it.
        """
        with self._tree.memory.alone(self._tree.name) as alone:  # another thread of this process has seen the same
            if alone and self._outcome is None:
                self._outcome = self._decide()
            if alone and self._outcome is not None:
                self._mark(self._outcome)

    # -- owning

    def _decide(self) -> Outcome | None:
        held, manifest = self._chords.pool.run_both(self._claim.acquire, self._manifest)
        if held is not None and not self._take_over(held):
            return None
        if self._missing is not None and self._give_up is not None:
            self._give_up(self._missing)
            return "failed"
        # Values that are too large to be carried along are read by the owner alone.
        parts = self._tree.payloads(self._leaves) if not self._perhaps_sent or self._tree.stands() else None
        if manifest is None or parts is None:
            # Parts go once the outcome is known: an owner before this one has sent, and lost its claim meanwhile.
            self._warn("was cleaned up by somebody else: nothing is sent")
            return "sent"
        ready = self._act(parts, manifest, self._perhaps_sent)
        del parts  # the values are joined
        return self._carry_out(ready)

    def _manifest(self) -> Manifest | None:
        try:
            return self._chords.manifest(self._ticket)
        except ObjectMissing as exc:
            self._missing = exc
            return None

    def _take_over(self, held: Held) -> bool:
        if held.decided:
            return False
        if not (self._lost is not None and is_of_process(held, self._lost)):
            # A claim is younger than the last part: mostly, that spares asking the server for the time.
            young = self._since is not None and self._chords.clock() - self._since < held.lease
            remaining = held.lease if young else self._claim.remaining(held, self._chords.now(self._ticket))
            if remaining > 0:
                # Its owner may have died: otherwise this would be the last party ever to look.
                self._chords.look_again(remaining + 1, self._ticket, self._act, self._give_up)
                return False
        self._perhaps_sent = True
        return self._claim.take_over(held)

    # -- sending

    def _carry_out(self, ready: Ready) -> Outcome | None:
        """Do what is to be done while the claim is ours; a broker that is away is tried again as patience allows."""
        pause = 0.0
        while self._claim.holds():
            # Nothing stands between this, sending and mark.
            perhaps_sent, self._perhaps_sent = self._perhaps_sent, True
            try:
                outcome = ready()
            except BodyNotSent as exc:
                self._perhaps_sent = perhaps_sent
                if not pause:
                    self._warn(f"waits for the broker: {exc}")
                pause = min(PAUSE, 2 * pause or 0.5)
                if (patience() or 0) < pause:
                    if self._give_up is None or not self._is_over():
                        raise
                    self._give_up(exc)
                    return "failed"
                self._chords.sleep(pause)
            else:
                if pause:
                    self._warn("waits no more: the broker is back")
                return outcome
        self._warn("lost its claim before the body was sent; the new owner sends it")
        return None

    def _is_over(self) -> bool:
        """Whether the chord's own time is over; two GETs and a PUT, for who has waited long."""
        expires = self._chords.expires
        if expires is None:
            return False
        return (self._chords.now(self._ticket) - self._chords.opened(self._ticket)).total_seconds() > expires

    # -- noting it

    def _mark(self, outcome: Outcome) -> None:
        try:
            with patient(0):
                self._claim.mark(outcome)
        except StoreError:
            # Who finds them gone sends nothing, whoever may take the claim over meanwhile.
            with suppress(StoreError), patient(0):
                self._clean()
            self._claim.mark(outcome)
        self._clean()

    def _clean(self) -> None:
        self._chords.store.delete_many(list(self._tree.keys(self._leaves)))

    def _warn(self, what: str) -> None:
        logger.warning("Chord %s %s.", self._ticket.group, what, extra={"s3_group": self._ticket.group})
