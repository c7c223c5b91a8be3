"""Mending chords that nobody goes on with, and removing what decided ones leave behind.

A chord is mended from its keys alone: the parts of members that have only a result, the summaries of complete
nodes, and then the same claim by which workers decide. So it may be done beside running workers, and by several
parties at once: every write is a create, and one of them gets the claim.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from datetime import timedelta

from ..errors import BadSeal, CeleryS3Error, ObjectMissing
from ..store.api import Entry
from .manifest import Manifest
from .service import Act
from .survey import Chord, Folder, Run, Survey
from .tree import FAN_IN, Tree, frame

__all__ = ["KEPT", "Repair"]

logger = logging.getLogger(__name__)

#: How long a decided chord's claim and manifest stay: longer than any broker redelivers (SQS keeps 14 days).
KEPT = timedelta(days=15)
#: Tombstones that are removed at a time.
_BATCH = 500


class Repair:
    """Mends chords and cleans up after them.

    Arguments:
        owner: what an owner does who has none of the chord's tasks at hand. Asked before there is anything to
            own, so that who could not act does not claim.
    """

    def __init__(self, survey: Survey, owner: Callable[[Manifest], Act]) -> None:
        self.survey = survey
        self.service = survey.service
        self.owner = owner

    def repair(self, chord: Chord) -> Chord | None:
        """Do what is left to do; the chord as it is then, ``None`` where it is gone.

        Raises:
            CeleryS3Error: it is as far as it got; another attempt goes on from there.
        """
        if not chord.decided:
            act = self.owner(chord.manifest)
            tree = self.service.tree(chord.ticket)
            self.service.pool.map(lambda slot: self._deliver(tree, chord, slot), chord.lost)
            self._sum_up(tree, {*chord.parts, *((0, slot) for slot in chord.lost)})
            self.service.follow(chord.ticket, act)
        return next(self.survey.chords([chord.group], settled=True), None)

    def _deliver(self, tree: Tree, chord: Chord, slot: int) -> None:
        payload = self.survey.final(chord.manifest.ids[slot], chord.started)
        if payload is not None:
            # What such a member may have added to the chord is not known: only its part would tell.
            tree.put(tree.key(0, slot), frame((), payload))

    def _sum_up(self, tree: Tree, parts: set[tuple[int, int]]) -> None:
        """Go up from every complete node that has no summary."""
        for level in range(tree.shape.top):
            for above in range(tree.shape.counts[level + 1]):
                node = tree.shape.node(level, above * FAN_IN)
                if (level + 1, above) not in parts and all((level, slot) in parts for slot in node):
                    tree.climb(level, node.start, None)
                    parts.add((level + 1, above))

    def mend(self, groups: Iterable[str]) -> None:
        """Mend what needs it among these chords."""
        for chord in self.survey.chords(groups):
            self._mend(chord)

    def run(self) -> None:
        """Mend every chord that needs it and clean up, in one pass; what fails is logged and left to the next."""
        old: list[Folder] = []
        for folder in self.survey.folders():
            if (folder.settled or self._look_after(folder)) and self._outlived(folder):
                old.append(folder)
            if len(old) == _BATCH:
                self._remove(old)
                old = []
        self._remove(old)

    def _look_after(self, folder: Folder) -> bool:
        """Mend a chord that seems to be in flight; whether it turned out to be decided before."""
        try:
            chord = self.survey.read(folder)
            if chord is None:
                return False
            if not chord.decided:
                chord = self.survey.examined(chord)
            self._mend(chord)
            self._remove_leftovers(folder, chord)
        except CeleryS3Error:
            logger.exception("Chord %s could not be looked after", folder.group)
            return False
        return chord.decided

    def _mend(self, chord: Chord) -> None:
        if chord.state in ("stuck", "complete"):
            after = self.repair(chord)
            logger.info("Chord %s was %s: now %s", chord.group, chord.state, after.state if after else "gone")

    def _remove_leftovers(self, folder: Folder, chord: Chord) -> None:
        """Parts that outlived the claim, and earlier runs of the same frozen chord."""
        current = folder.runs.get(chord.manifest.run, Run())
        left = [*current.parts.values(), *current.others] if chord.decided else []
        left += self._old(entry for n, run in folder.runs.items() if n < chord.manifest.run for entry in run.entries())
        self.service.store.delete_many([entry.key for entry in left])

    def _remove(self, folders: list[Folder]) -> None:
        """Remove tombstones, and keys without a manifest."""
        flags = self.service.pool.map(self._abandoned, folders)
        gone = [folder for folder, abandoned in zip(folders, flags, strict=True) if abandoned]
        store = self.service.store
        # The manifest first: without it nobody ever sends, whatever else is still there.
        store.delete_many([folder.manifest.key for folder in gone if folder.manifest])
        store.delete_many([entry.key for folder in gone for entry in folder.entries() if entry != folder.manifest])

    def _abandoned(self, folder: Folder) -> bool:
        """Whether the run that was listed is still the current one: a frozen chord may be applied again just now."""
        if folder.manifest is None:
            return True
        try:
            current = Manifest.loads(self.service.store.get(folder.manifest.key).body).run
        except (BadSeal, ObjectMissing, ValueError, LookupError):
            return True
        return current in folder.runs and folder.runs[current].claim is not None

    def _outlived(self, folder: Folder) -> bool:
        entries = folder.entries()
        return bool(entries) and len(self._old(entries)) == len(entries)

    def _old(self, entries: Iterable[Entry]) -> list[Entry]:
        limit = self.survey.now() - KEPT
        return [entry for entry in entries if entry.modified < limit]
