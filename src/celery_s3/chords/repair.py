"""Mending chords that nobody goes on with, and removing what decided ones leave behind.

A chord is mended from its keys alone: the parts of members that have only a result, the summaries of complete
nodes, and then the same claim by which workers decide. So it may be done beside running workers, and by several
parties at once: every write is a create, and one of them gets the claim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta

from celery_s3.errors import CeleryS3Error
from celery_s3.printable import get_logger
from celery_s3.store.api import Entry

from .decision import Act, GiveUp, follow
from .manifest import Manifest
from .parts import pack_part
from .survey import Chord, Folder, Survey
from .ticket import Ticket
from .tree import FAN_IN, Tree

__all__ = ["KEPT", "Repair"]

logger = get_logger(__name__)

#: How long a decided chord's claim and manifest stay: longer than any broker redelivers (SQS keeps 14 days).
KEPT = timedelta(days=15)
#: Tombstones that are removed at a time.
_BATCH = 500


class Repair:
    """Mends chords and cleans up after them.

    Arguments:
        owner: makes of a manifest the function that sends the body without one of the chord's tasks. It is called
            before the chord is claimed, and raises where this process could not send.
        kept: how long a decided chord's claim and manifest stay.
        dead: how long after its last sign of life a chord that waits for members is given up; ``None``: never.
    """

    def __init__(
        self,
        survey: Survey,
        owner: Callable[[Manifest], Act],
        *,
        kept: timedelta = KEPT,
        dead: timedelta | None = None,
    ) -> None:
        self.survey = survey
        self.service = survey.service
        self.owner = owner
        self.kept = kept
        self.dead = dead
        self._needy = 0

    def repair(self, chord: Chord) -> Chord | None:
        """Do what is left to do; the chord as it is then, ``None`` where it is gone.

        Raises:
            CeleryS3Error: it is as far as it got; another attempt goes on from there.
        """
        if not chord.decided and not chord.manifest.open:
            self._finish(chord, chord.ticket, self.owner(chord.manifest))
        return next(self.survey.chords([chord.group], settled=True), None)

    def go_on(self, ticket: Ticket, act: Act, give_up: GiveUp, *, member: str = "") -> bool:
        """Go on with the chord of a ticket, for who has its body.

        Arguments:
            member: a task that may have a result and no part.

        Returns:
            Whether nothing is left to do but by other members.

        Raises:
            ObjectMissing: there is no manifest.
        """
        self.service.manifest(ticket)
        folder = next(self.survey.folders([ticket.group]), Folder(ticket.group))
        chord = self.survey.read(folder)
        if chord is None or chord.decided:
            return True
        if chord.manifest.open:
            return False  # whoever generates it is at it, or has died: the header's last task was not sent
        ticket = replace(ticket, size=len(chord.manifest.ids))
        watched = [slot for slot, id in enumerate(chord.manifest.ids) if id == member and (0, slot) not in chord.parts]
        lost = self.survey.lost(chord, watched)
        return self._finish(replace(chord, lost=lost), ticket, act, give_up) and len(lost) == len(watched)

    def _finish(self, chord: Chord, ticket: Ticket, act: Act, give_up: GiveUp | None = None) -> bool:
        tree = self.service.tree(ticket)
        self.service.pool.map(lambda slot: self._deliver(tree, chord, slot), chord.lost)
        self._sum_up(tree, {*chord.parts, *((0, slot) for slot in chord.lost)})
        return follow(self.service, ticket, act, give_up)

    def _deliver(self, tree: Tree, chord: Chord, slot: int) -> None:
        payload = self.survey.final(chord.manifest.ids[slot], chord.started)
        if payload is not None:
            # What such a member may have added to the chord is not known: only its part would tell.
            tree.put(tree.key(0, slot), pack_part((), payload))

    def _sum_up(self, tree: Tree, parts: set[tuple[int, int]]) -> None:
        """Write the summary of every complete node that has none, and of those above that become complete by it."""
        for level in range(tree.shape.top):
            for above in range(tree.shape.counts[level + 1]):
                node = tree.shape.node(level, above * FAN_IN)
                if (level + 1, above) not in parts and all((level, slot) in parts for slot in node):
                    tree.climb(level, node.start, None)
                    parts.add((level + 1, above))

    def run(self, *, mend: bool = True) -> None:
        """Look at every chord and clean up, in one pass; what fails is logged and left to the next.

        Arguments:
            mend: mend each chord that needs it; else the log says how many do.
        """
        self._needy = 0
        for entries in self.remains(mend=mend):
            # a frozen chord may be applied again between the listing and this: its new manifest stays
            self.service.store.delete_unchanged({entry.key: entry.etag for entry in entries})
        if self._needy and not mend:
            logger.warning(
                "%s chords are stuck. Their bodies stand in the bucket alone, which nobody trusts without `seal_keys`:"
                " see and mend them with `celery s3 chords --repair`.",
                self._needy,
            )

    def remains(self, *, mend: bool = False) -> Iterator[list[Entry]]:
        """What nobody needs any more: tombstones, parts left over, chords that will never end.

        In lists that are to be deleted one after the other, each as it comes.

        Arguments:
            mend: mend each chord that needs it on the way.
        """
        old: list[Folder] = []
        for folder in self.survey.folders():
            chord = None if folder.settled else self._look_after(folder, mend=mend)
            if chord is not None and chord.decided and (left := [*folder.parts.values(), *folder.others]):
                yield left  # parts that outlived the claim
            if self._has_ended(folder, chord):
                old.append(folder)
            if len(old) == _BATCH:
                yield from self._removable(old)
                old = []
        yield from self._removable(old)

    def _look_after(self, folder: Folder, *, mend: bool) -> Chord | None:
        """The chord in a folder that seems to be in flight, ``None`` where it could not be read."""
        try:
            chord = self.survey.read(folder)
            if chord is not None and not chord.decided:
                chord = self.survey.examined(chord)
            if chord is not None and chord.state in ("stuck", "complete"):
                self._needy += chord.state == "stuck"
                if mend:
                    self._mend(chord)
        except CeleryS3Error:
            logger.exception("Chord %s could not be looked after", folder.group, extra={"s3_group": folder.group})
            return None
        return chord

    def _mend(self, chord: Chord) -> None:
        after = self.repair(chord)
        now = after.state if after else "gone"
        logger.info("Chord %s was %s: now %s", chord.group, chord.state, now, extra={"s3_group": chord.group})

    def _has_ended(self, folder: Folder, chord: Chord | None) -> bool:
        """Whether a folder's time is over: ``chord`` is what was found in it, where it is not settled."""
        if folder.manifest is None and folder.shared:
            return False  # nothing proves that any of it is a chord's
        if folder.settled or (chord is not None and chord.decided):
            return self._outlived(folder, self.kept)
        return chord is not None and chord.state == "running" and self._outlived(folder, self.dead)

    def _removable(self, folders: list[Folder]) -> Iterator[list[Entry]]:
        """The keys of tombstones, of chords that will never end, and those without a manifest."""
        flags = self.service.pool.map(self._abandoned, folders)
        gone = [folder for folder, abandoned in zip(folders, flags, strict=True) if abandoned]
        # The manifest first: without it nobody ever sends, whatever else is still there.
        for entries in (
            [folder.manifest for folder in gone if folder.manifest],
            [entry for folder in gone for entry in folder.entries() if entry != folder.manifest],
        ):
            if entries:
                yield entries

    def _abandoned(self, folder: Folder) -> bool:
        """Whether nothing has come since it was listed: the same frozen chord may be applied again just now."""
        if folder.manifest is None or folder.claim is not None:
            return True
        again = next(self.survey.folders([folder.group]), Folder(folder.group))
        return self._outlived(again, self.dead)

    def _outlived(self, folder: Folder, limit: timedelta | None) -> bool:
        entries = folder.entries()
        return bool(entries) and all(self._is_old(entry, limit) for entry in entries)

    def _is_old(self, entry: Entry, limit: timedelta | None) -> bool:
        return limit is not None and entry.modified < self.survey.now() - limit
