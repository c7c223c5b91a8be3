"""Chords on a bucket: open one, deliver a part, go up the tree.

Whoever completes a node goes up; whoever completes the root claims the chord, sends the body and cleans up.
Every write is a create or replaces a known version, so each step may be done twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import partial
from uuid import uuid4

from celery_s3.errors import Garbled, ObjectMissing, PreconditionFailed
from celery_s3.keys import chord_folder
from celery_s3.printable import get_logger
from celery_s3.processes import PerProcess, Remembered
from celery_s3.store.api import CREATE, Match, Object, Store
from celery_s3.store.parallel import Pool

from .claim import Claim
from .delivery import Delivery
from .manifest import Manifest
from .parts import pack_part
from .ticket import Ticket
from .tree import OPEN, Memory, Shape, Tree

__all__ = ["Chords"]

logger = get_logger(__name__)


def _sleep(seconds: float) -> None:
    time.sleep(seconds)  # looked up now: gevent and eventlet may have replaced it since the import


class Chords:
    """The chords under a prefix.

    Arguments:
        prefix: before every key of a chord, as ``base/celery-chords/``.
        lease: seconds after which an undecided claim may be taken over.
        patience: seconds for which a step is tried again at once, store and broker being away; then it is done later.
        expires: seconds after which a chord fails whose body the broker does not take; ``None``: never.
        clock: seconds that pass here.
        sleep: lets seconds pass here.
    """

    def __init__(
        self,
        store: Store,
        pool: Pool,
        prefix: str,
        *,
        lease: float,
        patience: float = 0.0,
        expires: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = _sleep,
    ) -> None:
        self.store = store
        self.pool = pool
        self.prefix = prefix
        self.lease = lease
        self.patience = patience
        self.expires = expires
        self.clock = clock
        self.sleep = sleep
        self._manifests: Remembered[tuple[str, str], Manifest] = Remembered(32)
        self._memory = PerProcess(Memory)

    # -- keys

    def folder(self, group: str) -> str:
        """The prefix of one chord's keys; a slash in its id is encoded, so that listings can be read back."""
        return f"{self.prefix}{chord_folder(group)}"

    def now(self, ticket: Ticket) -> datetime:
        """The time on the server's clock; a PUT, a GET and a DELETE."""
        key = f"{self.folder(ticket.group)}now/{uuid4().hex}"
        self.store.put(key, b"?")
        now = self.store.get(key).modified
        self.store.delete(key)
        return now

    def tree(self, ticket: Ticket) -> Tree:
        """The tree of a chord's parts."""
        size, known = ticket.size, self._manifests.get((ticket.group, ticket.nonce))
        asks = None
        if not size:
            size = len(known.ids) if known else OPEN
            asks = None if known else partial(self.size, ticket)
        folder = self.folder(ticket.group)
        return Tree(self.store, self.pool, Shape(size), folder, self._memory.get(), nonce=ticket.nonce, size=asks)

    def size(self, ticket: Ticket) -> int:
        """How many members the header has; 0 while it is being generated."""
        return len(self._remembered(ticket).ids)

    def claim(self, group: str) -> Claim:
        """The claim of a chord, for this party."""
        return Claim(self.store, f"{self.folder(group)}claim", self.lease, clock=self.clock)

    # -- opening

    def open(self, group: str, manifest: Manifest, *, numbered: bool = True) -> Ticket | None:
        """Write the manifest; where the same frozen chord was applied before, the one that stands there counts.

        Arguments:
            numbered: Celery's group indexes can be relied upon, in a plain header.

        Returns:
            ``None``: the chord was applied before, and is decided. It stays so, whatever its tasks do again.

        Raises:
            PreconditionFailed: the group id is that of another chord.
            StoreError: nothing may be published then.
        """
        key = f"{self.folder(group)}manifest"
        try:
            self.store.put(key, manifest.dumps(), precondition=CREATE)
        except PreconditionFailed:
            standing = _manifest(self.store.get(key))
            if standing.ids != manifest.ids:
                raise
            held = self.claim(group).read()
            if held and held.decided:
                return None
            manifest = standing
        return Ticket(group, len(manifest.ids), manifest.flat and numbered, manifest.nonce, prefix=self.prefix)

    def begin(self, group: str, manifest: Manifest) -> Ticket | None:
        """Write the manifest of a header that is generated while its tasks are sent; :meth:`close` tells its ids.

        Returns:
            ``None``: the chord was applied before, to its end.

        Raises:
            StoreError: nothing may be published then.
        """
        key = f"{self.folder(group)}manifest"
        try:
            self.store.put(key, manifest.dumps(), precondition=CREATE)
        except PreconditionFailed:
            standing = _manifest(self.store.get(key))
            if not standing.open:
                return None
            manifest = standing
        return Ticket(group, 0, True, manifest.nonce, prefix=self.prefix)

    def close(self, ticket: Ticket, manifest: Manifest, *, numbered: bool) -> Ticket:
        """Tell what the header of :meth:`begin` has become, before its last task is sent; the ticket of that one.

        So the last node of each level is not complete before the size is known: whoever delivered before need not
        be waited for, and nobody has to look after them.

        Raises:
            PreconditionFailed: the same group id was given to another chord meanwhile.
        """
        key = f"{self.folder(ticket.group)}manifest"
        found = self.store.get(key)
        manifest, standing = replace(manifest, nonce=ticket.nonce), _manifest(found)
        try:
            self.store.put(key, manifest.dumps(), precondition=Match(found.etag) if standing.open else CREATE)
        except PreconditionFailed:
            if _manifest(self.store.get(key)).ids != manifest.ids:
                raise
        return replace(ticket, size=len(manifest.ids), flat=manifest.flat and numbered)

    def manifest(self, ticket: Ticket) -> Manifest:
        """The manifest of a chord.

        Raises:
            ObjectMissing: there is none; the message says where the chord was applied.
        """
        key = f"{self.folder(ticket.group)}manifest"
        try:
            return _manifest(self.store.get(key))
        except ObjectMissing as exc:
            what = f"chord {ticket.group} has no manifest under {self.prefix}"
            if ticket.prefix and ticket.prefix != self.prefix:
                what += f": it was applied under {ticket.prefix}; who applies it and who works need one `base_path`"
            else:
                what += ", where it was applied: in another bucket, or a lifecycle rule has removed it"
            raise ObjectMissing(what, "get", exc.bucket, key, exc.status, exc.code) from exc

    def opened(self, ticket: Ticket) -> datetime:
        """When the chord was applied, on the server's clock."""
        return self.store.get(f"{self.folder(ticket.group)}manifest", length=1).modified

    # -- delivering

    def deliver(
        self, ticket: Ticket, task_id: str, index: int | None, payload: bytes, *, failed: bool = False
    ) -> Delivery | None:
        """Make a task's part durable; ``None`` where the chord knows no such member.

        Arguments:
            index: Celery's group index of the task.
            failed: the chord fails with it.
        """
        slot = self.slot(ticket, task_id, index)
        if slot is None:
            return None
        tree = self.tree(ticket)
        part = pack_part(ticket.added_by(task_id), payload, failed=failed)
        if ticket.was_added(task_id):
            tree.put(tree.added_key(task_id), part)
            return Delivery(ticket, tree, slot, None)
        created, foreseen = tree.add(0, slot, part)
        if not created:
            # The first part written for a slot stands: where another did, it must be read.
            return Delivery(ticket, tree, slot, None, foreseen)
        return Delivery(ticket, tree, slot, part, foreseen)

    def slot(self, ticket: Ticket, task_id: str, index: int | None) -> int | None:
        """The slot that a task belongs under; ``None`` where the chord knows no such member.

        Raises:
            ObjectMissing: only the manifest could tell, and there is none.
        """
        if ticket.slot is not None:
            return ticket.slot
        if ticket.flat and index is not None and 0 <= index < (ticket.size or OPEN):
            return index
        manifest = self._remembered(ticket)
        if task_id not in manifest.ids:
            logger.error(
                "Chord %s has no member %s: its part is not delivered.",
                ticket.group,
                task_id,
                extra={"s3_group": ticket.group, "s3_task": task_id},
            )
            return None
        return manifest.ids.index(task_id)

    def _remembered(self, ticket: Ticket) -> Manifest:
        name = (ticket.group, ticket.nonce)
        found = self._manifests.get(name)
        if found is None:
            found = self.manifest(ticket)
            if not found.open:
                self._manifests.put(name, found)
        return found


def _manifest(found: Object) -> Manifest:
    try:
        return Manifest.loads(found.body)
    except ValueError as exc:
        raise Garbled(str(exc), "get", key=found.key) from exc
