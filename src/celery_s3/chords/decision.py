"""One party's decision about a chord whose parts are all there: claim, send or fail once, mark, clean up."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Literal

from celery_s3.errors import BodyNotSent, ObjectMissing, StoreError
from celery_s3.printable import get_logger
from celery_s3.store.deadline import patience, patient

from .claim import Held
from .manifest import Manifest
from .parts import Leaves
from .service import Chords
from .ticket import Ticket
from .tree import Tree

__all__ = ["Act", "Decision", "GiveUp", "Outcome", "Ready", "follow"]

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


class Decision:
    """A decision, which can be gone on with after any error: what this party has done it does not do again.

    Arguments:
        mending: an expired claim is taken over, for which the server is asked for its time.
        give_up: fails the body where the chord cannot be decided; without it, it is left as it is.
    """

    def __init__(
        self,
        chords: Chords,
        ticket: Ticket,
        tree: Tree,
        leaves: Leaves,
        act: Act,
        *,
        mending: bool = False,
        give_up: GiveUp | None = None,
    ) -> None:
        self._chords = chords
        self._ticket = ticket
        self._tree = tree
        self._leaves = leaves
        self._act = act
        self._mending = mending
        self._give_up = give_up
        self._claim = chords.claim(ticket.group)
        self._missing: ObjectMissing | None = None
        self._perhaps_sent = False
        self._outcome: Outcome | None = None
        self._settled = False

    def go(self) -> bool:
        """Do what is left to do; nothing where that is somebody else's.

        Returns:
            Whether the chord is decided, or about to be in another thread; ``False``: it is another process's, which
            may have died.

        Raises:
            BodyNotSent: the broker is away, and patience has come to its end; nothing was sent.
            StoreError: or whatever else keeps this process from deciding; the chord does not fail of it.
        """
        with self._tree.memory.alone(self._tree.name) as alone:
            if not alone:  # another thread of this process has seen the same, and sees to it
                return True
            if self._outcome is None:
                self._outcome = self._decide()
            if self._outcome is not None:
                self._mark(self._outcome)
                self._settled = True
            return self._settled

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
        self._settled = held.decided
        if held.decided or not self._mending or self._claim.remaining(held, self._chords.now(self._ticket)) > 0:
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


def follow(chords: Chords, ticket: Ticket, act: Act, give_up: GiveUp | None = None) -> bool:
    """Mend: decide if the root is complete, whoever completed it, and take over a claim that has expired.

    Returns:
        Whether nothing is left to do but by members; ``False``: the chord is claimed by somebody else, or its
        header is still being generated.
    """
    size = ticket.size or chords.size(ticket)
    if not size:
        return False
    tree = chords.tree(replace(ticket, size=size))
    leaves = tree.climb(tree.shape.top, 0, None)
    return leaves is None or Decision(chords, ticket, tree, leaves, act, mending=True, give_up=give_up).go()
