"""Chords on a bucket: deliver a part, go up the tree, decide once.

Whoever completes a node goes up; whoever completes the root claims the chord, sends the body and cleans up.
Every write is a create or replaces a known version, so each step may be done twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Literal
from uuid import uuid4

from celery_s3.errors import CeleryS3Error, Garbled, ObjectMissing, PreconditionFailed, Untrusted
from celery_s3.keys import chord_folder
from celery_s3.printable import get_logger
from celery_s3.processes import Remembered
from celery_s3.store.api import CREATE, Match, Object, Store
from celery_s3.store.parallel import Pool

from .claim import Claim, Held, is_of_process
from .delivery import Delivery
from .manifest import Manifest
from .parts import Leaves, pack_part
from .ticket import Ticket
from .tree import Memory, Shape, Tree

__all__ = ["ATTEMPTS", "Act", "Chords", "GiveUp", "Later", "Outcome"]

logger = get_logger(__name__)

#: How often a process goes after a chord that the store does not let it finish.
ATTEMPTS = 5

Outcome = Literal["sent", "failed"]
#: Sends the body, or reports the failure: per member its payload and those of the tasks that it added, the
#: manifest, and whether an owner before may have sent the body already. Returns what to mark.
Act = Callable[[list[list[bytes]], Manifest, bool], Outcome]
#: Told why nobody can decide a chord any more.
GiveUp = Callable[[Untrusted], None]
#: Runs a function after so many seconds, without blocking the caller.
Later = Callable[[float, Callable[[], None]], object]


class Chords:
    """The chords under a prefix.

    Arguments:
        prefix: before every key of a chord, as ``base/chords/``.
        lease: seconds after which an undecided claim may be taken over.
        later: looks again after the lease of another's claim.
        clock: seconds that pass here.
    """

    def __init__(
        self,
        store: Store,
        pool: Pool,
        prefix: str,
        *,
        lease: float,
        later: Later,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store
        self.pool = pool
        self.prefix = prefix
        self.lease = lease
        self.later = later
        self.clock = clock
        self._manifests: Remembered[tuple[str, int, str], Manifest] = Remembered(32)
        self._memory = Memory()

    # -- keys

    def folder(self, group: str) -> str:
        """The prefix of one chord's keys; a slash in its id is encoded, so that listings can be read back."""
        return f"{self.prefix}{chord_folder(group)}"

    def _run(self, group: str, run: int) -> str:
        return f"{self.folder(group)}{run}/"

    def tree(self, ticket: Ticket) -> Tree:
        """The tree of a chord's parts."""
        folder = self._run(ticket.group, ticket.run)
        return Tree(self.store, self.pool, Shape(ticket.size), folder, self._memory, nonce=ticket.nonce)

    def claim(self, group: str, run: int) -> Claim:
        """The claim of a chord's run, for this party."""
        return Claim(self.store, f"{self._run(group, run)}claim", self.lease, clock=self.clock)

    # -- opening

    def open(self, group: str, manifest: Manifest, *, numbered: bool = True) -> Ticket:
        """Write the manifest. A frozen chord that is applied again gets its next run once the last is decided.

        Arguments:
            numbered: Celery's group indexes can be relied upon, in a plain header.

        Raises:
            StoreError: nothing may be published then.
        """
        key = f"{self.folder(group)}manifest"
        try:
            self.store.put(key, manifest.dumps(), precondition=CREATE)
        except PreconditionFailed:
            manifest = self._reopen(group, key, manifest)
        return Ticket(group, manifest.run, len(manifest.ids), manifest.flat and numbered, manifest.nonce)

    def _reopen(self, group: str, key: str, manifest: Manifest) -> Manifest:
        while True:
            found = self.store.get(key)
            standing = _manifest(found)
            held = self.claim(group, standing.run).read()
            if standing.ids == manifest.ids and not (held and held.decided):
                return standing  # a redelivered applier: it joins the run in progress
            again = replace(manifest, run=standing.run + 1)
            try:
                self.store.put(key, again.dumps(), precondition=Match(found.etag))
            except PreconditionFailed:
                continue
            return again

    def manifest(self, group: str, run: int) -> Manifest | None:
        """The manifest of a run, ``None`` where it is gone or of another run."""
        try:
            found = _manifest(self.store.get(f"{self.folder(group)}manifest"))
        except ObjectMissing:
            return None
        return found if found.run == run else None

    # -- delivering

    def deliver(
        self, ticket: Ticket, task_id: str, index: int | None, payload: bytes, *, foresee: bool = True
    ) -> Delivery | None:
        """Make a task's part durable; ``None`` where the chord knows no such member.

        Arguments:
            index: Celery's group index of the task.
            foresee: read others' parts at the same time, where that is likely to spare a round trip.
        """
        slot = self.slot(ticket, task_id, index)
        if slot is None:
            return None
        tree = self.tree(ticket)
        part = pack_part(ticket.added_by(task_id), payload)
        if ticket.was_added(task_id):
            tree.put(tree.added_key(task_id), part)
            return Delivery(ticket, tree, slot, None)
        began = self.clock()
        created, foreseen = tree.add(0, slot, part) if foresee else (tree.put(tree.key(0, slot), part), None)
        if not created:
            # The first part written for a slot stands: where another did, it must be read.
            return Delivery(ticket, tree, slot, None, foreseen)
        return Delivery(ticket, tree, slot, part, foreseen, since=began)

    def delivered(self, ticket: Ticket, task_id: str, index: int | None, lost: int | None = None) -> Delivery | None:
        """A part that was delivered before, by a process that has died since; ``None`` where it has no slot.

        Arguments:
            lost: the pid of that process, where it was a child of this one.
        """
        slot = self.slot(ticket, task_id, index)
        return None if slot is None else Delivery(ticket, self.tree(ticket), slot, None, lost=lost)

    def slot(self, ticket: Ticket, task_id: str, index: int | None) -> int | None:
        """The slot that a task belongs under."""
        if ticket.slot is not None:
            return ticket.slot
        if ticket.flat and index is not None and 0 <= index < ticket.size:
            return index
        manifest = self._remembered(ticket)
        if manifest is None or task_id not in manifest.ids:
            logger.error(
                "Chord %s has no member %s, or no manifest: its part is not delivered.",
                ticket.group,
                task_id,
                extra={"s3_group": ticket.group, "s3_task": task_id},
            )
            return None
        return manifest.ids.index(task_id)

    def _remembered(self, ticket: Ticket) -> Manifest | None:
        name = (ticket.group, ticket.run, ticket.nonce)
        found = self._manifests.get(name)
        if found is None:
            found = self.manifest(ticket.group, ticket.run)
            if found is not None:
                self._manifests.put(name, found)
        return found

    # -- deciding

    def follow(self, ticket: Ticket, act: Act, give_up: GiveUp | None = None) -> None:
        """Decide if the root is complete, whoever completed it."""
        tree = self.tree(ticket)
        leaves = tree.climb(tree.shape.top, 0, None)
        if leaves is not None:
            self.decide(ticket, tree, leaves, act, give_up=give_up)

    def decide(
        self,
        ticket: Ticket,
        tree: Tree,
        leaves: Leaves,
        act: Act,
        *,
        since: float | None = None,
        lost: int | None = None,
        give_up: GiveUp | None = None,
    ) -> None:
        """Claim, then send or fail once, then clean up.

        Arguments:
            since: a time on ``clock`` at which the chord was not complete; ``None``: not known.
            lost: the pid of a child that has died: its claim need not expire to be taken over.
            give_up: what is done where a later look finds that nobody can decide any more.
        """
        claim = self.claim(ticket.group, ticket.run)
        held, manifest = self.pool.run_both(claim.take, lambda: self.manifest(ticket.group, ticket.run))
        if held is not None and not self._take_over(
            ticket, claim, held, partial(self._follow_again, ticket, act, give_up), since, lost
        ):
            return
        # Values that are too large to be carried along are read by the owner alone.
        parts = tree.payloads(leaves)
        if manifest is None or parts is None:
            # Parts go once the outcome is known: an owner before this one has sent, and lost its claim meanwhile.
            logger.warning(
                "Chord %s was cleaned up by somebody else: nothing is sent.",
                ticket.group,
                extra={"s3_group": ticket.group},
            )
            claim.mark("sent")
            return
        # Nothing stands between this, sending and mark.
        if not claim.holds():
            logger.warning(
                "Chord %s: the claim was lost before the body was sent; its new owner sends it.",
                ticket.group,
                extra={"s3_group": ticket.group},
            )
            return
        outcome = act(parts, manifest, held is not None)
        claim.mark(outcome)
        self.store.delete_many(list(tree.keys(leaves)))

    def _take_over(
        self,
        ticket: Ticket,
        claim: Claim,
        held: Held,
        again: Callable[[], None],
        since: float | None,
        lost: int | None,
    ) -> bool:
        if held.decided:
            return False
        if lost is not None and is_of_process(held, lost):
            # No timer: this process may not outlive the lease, 30 s or more.
            return claim.take_over(held)
        # A claim is younger than the last part: mostly, that spares asking the server for the time.
        young = since is not None and self.clock() - since < held.lease
        remaining = held.lease if young else claim.remaining(held, self._now(ticket))
        if remaining <= 0:
            return claim.take_over(held)
        # Its owner may have died: otherwise this would be the last party ever to look.
        self.later(remaining + 1, again)
        return False

    def _follow_again(self, ticket: Ticket, act: Act, give_up: GiveUp | None, attempts: int = ATTEMPTS) -> None:
        """Runs in a thread of its own, where nobody sees what is raised."""
        try:
            self.follow(ticket, act, give_up)
        except Untrusted as exc:
            # of the manifest or the claim: trying again would not help
            logger.exception("Chord %s cannot be decided", ticket.group, extra={"s3_group": ticket.group})
            if give_up is not None:
                give_up(exc)
        except CeleryS3Error:
            logger.exception(
                "Chord %s: its claim could not be followed", ticket.group, extra={"s3_group": ticket.group}
            )
            if attempts > 1:
                self.later(self.lease, lambda: self._follow_again(ticket, act, give_up, attempts - 1))

    def _now(self, ticket: Ticket) -> datetime:
        """The time on the server's clock."""
        key = f"{self._run(ticket.group, ticket.run)}now"
        self.store.put(key, uuid4().hex.encode())
        return self.store.get(key).modified


def _manifest(found: Object) -> Manifest:
    try:
        return Manifest.loads(found.body)
    except ValueError as exc:
        raise Garbled(str(exc), "get", key=found.key) from exc
