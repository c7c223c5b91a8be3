"""The chords under a prefix, read back from a listing of their keys.

The commands, the daily cleanup and the look that a worker asks for once an hour list all chords; who mends one lists
that. No task of a chord ever lists.

A decided chord leaves its manifest and its claim. As parts are deleted only once their chord is decided, and a
claim is made only when all of them are there, a claim without parts is a tombstone: it costs no GET.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import groupby
from typing import Literal, TypeAlias

from celery_s3.errors import ObjectMissing, Untrusted
from celery_s3.keys import decode_id
from celery_s3.printable import get_logger
from celery_s3.store.api import Entry

from .claim import Held
from .manifest import Manifest
from .service import Chords
from .ticket import Ticket
from .tree import FAN_IN

__all__ = ["Chord", "Final", "Folder", "Survey"]

logger = get_logger(__name__)

#: As chords write numbers into their keys.
_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")

ChordState = Literal["running", "complete", "claimed", "stuck", "sent", "failed"]


#: What a member would deliver, read from its final result; ``None`` where none stands since that time.
Final: TypeAlias = Callable[[str, datetime], "bytes | None"]


@dataclass(slots=True)
class Folder:
    """The keys of one group id.

    Attributes:
        parts: by level and slot.
        others: what else a chord puts there.
        shared: there are also keys that no chord makes.
    """

    group: str
    manifest: Entry | None = None
    claim: Entry | None = None
    parts: dict[tuple[int, int], Entry] = field(default_factory=dict)
    others: list[Entry] = field(default_factory=list)
    shared: bool = False

    def add(self, path: str, entry: Entry) -> None:
        """Take up a key by its path in the folder; one that no chord makes is left alone."""
        first, *names = path.split("/")
        if path == "manifest":
            self.manifest = entry
        elif path == "claim":
            self.claim = entry
        elif len(names) == 1 and _NUMBER.fullmatch(first) and _NUMBER.fullmatch(names[0]):
            self.parts[int(first), int(names[0])] = entry
        elif first in ("now", "added") and len(names) == 1 and names[0]:
            self.others.append(entry)
        else:
            self.shared = True

    @property
    def settled(self) -> bool:
        """Whether there is nothing to mend: no manifest, or a claim without parts, which is a tombstone."""
        return self.manifest is None or (self.claim is not None and not self.parts)

    def entries(self) -> list[Entry]:
        """All keys of the group id that a chord makes."""
        single = (entry for entry in (self.manifest, self.claim) if entry)
        return [*single, *self.parts.values(), *self.others]


@dataclass(frozen=True, slots=True)
class Chord:
    """One chord as it was found.

    Attributes:
        state: ``running``; ``complete``: all parts are there, somebody is about to claim it; ``claimed``: being
            sent; ``stuck``: see ``reason``; ``sent`` and ``failed``: decided, a tombstone.
        done: how many members have delivered their part.
        age: seconds since the header was published.
        quiet: seconds since anything of it was written.
        parts: level and slot of each part that is there.
        lost: the slots whose member has a final result, and no part.
    """

    group: str
    manifest: Manifest
    state: ChordState
    done: int
    started: datetime
    age: float
    quiet: float
    parts: frozenset[tuple[int, int]]
    lost: tuple[int, ...] = ()
    reason: str = ""

    @property
    def ticket(self) -> Ticket:
        """The ticket that its header's tasks have."""
        return Ticket(self.group, len(self.manifest.ids), self.manifest.flat, self.manifest.nonce)

    @property
    def decided(self) -> bool:
        """Whether its body was sent, or has failed."""
        return self.state in ("sent", "failed")


class Survey:
    """Finds chords.

    Arguments:
        final: reads the result of a member.
        now: the time. The local clock will do: what is judged by it is shown, or days old. Whether a claim may be
            taken over is decided on the server's.
    """

    def __init__(self, chords: Chords, final: Final, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.service = chords
        self.final = final
        self.now = now

    def folders(self, groups: Iterable[str] = ()) -> Iterator[Folder]:
        """The keys of each group id, or of these; one LIST per 1,000 keys."""
        start = len(self.service.prefix)
        for prefix in [self.service.folder(group) for group in groups] or [self.service.prefix]:
            listing = self.service.store.list(prefix)
            for name, entries in groupby(listing, lambda entry: entry.key[start:].partition("/")[0]):
                folder = Folder(decode_id(name))
                for entry in entries:
                    folder.add(entry.key[start + len(name) + 1 :], entry)
                yield folder

    def chords(self, groups: Iterable[str] = (), *, settled: bool = False) -> Iterator[Chord]:
        """The chords in flight, or those of these group ids; ``settled``: also tombstones."""
        wanted = (folder for folder in self.folders(groups) if settled or not folder.settled)
        for _, chord in self.service.pool.stream(self.read, wanted):
            if isinstance(chord, BaseException):
                raise chord
            if chord is not None and (settled or not chord.decided):
                yield self.examined(chord)

    def read(self, folder: Folder) -> Chord | None:
        """The chord in a folder; ``None`` where there is no manifest that can be read."""
        if folder.manifest is None:
            return None
        try:
            manifest = Manifest.loads(self.service.store.get(folder.manifest.key).body)
        except ObjectMissing:
            return None
        except (Untrusted, ValueError, LookupError) as exc:
            key = folder.manifest.key
            logger.warning("%s is no manifest of a chord: %r", key, exc, extra={"s3_key": key})
            return None
        size = len(manifest.ids)
        done = sum(level == 0 and slot < size for level, slot in folder.parts)
        now, started = self.now(), folder.manifest.modified
        touched = max(entry.modified for entry in folder.entries())
        chord = Chord(
            group=folder.group,
            manifest=manifest,
            state="complete" if done == size else "running",
            done=done,
            started=started,
            age=max(0.0, (now - started).total_seconds()),
            quiet=(now - touched).total_seconds(),
            parts=frozenset(folder.parts),
        )
        if manifest.open:
            return replace(chord, state="running", done=sum(level == 0 for level, _ in folder.parts))
        # A running chord has no claim; where all parts are there, one may have come since the listing.
        try:
            held = self.service.claim(folder.group).read() if folder.claim or done == size else None
        except Untrusted as exc:
            return replace(chord, state="stuck", reason=f"its claim cannot be trusted: {exc}")
        return chord if held is None else self._claimed(chord, held)

    def _claimed(self, chord: Chord, held: Held) -> Chord:
        if held.decided:
            state: ChordState = "sent" if held.state == "sent" else "failed"
            return replace(chord, state=state, done=len(chord.manifest.ids))
        if self.service.claim(chord.group).remaining(held, self.now()) > 0:
            return replace(chord, state="claimed")
        return replace(chord, state="stuck", reason="whoever claimed it has not sent it")

    def examined(self, chord: Chord) -> Chord:
        """The chord; ``stuck`` where a closer look shows that nobody will go on by itself.

        The look costs up to a GET per member; none where the chord was written to within the last lease.
        """
        if chord.quiet <= self.service.lease:
            return chord
        if chord.state == "complete":
            if self._awaits_added(chord):
                return replace(chord, state="running")
            return replace(chord, state="stuck", reason="all parts are there, and nobody went on")
        missing = [slot for slot in range(len(chord.manifest.ids)) if (0, slot) not in chord.parts]
        lost = self.lost(chord, missing) if chord.state == "running" else ()
        if not lost:
            return chord
        return replace(chord, state="stuck", lost=lost, reason=f"{len(lost)} members have a result and no part")

    def _awaits_added(self, chord: Chord) -> bool:
        """Whether a member has added a task that is not done; a node with a summary has none such."""
        tree = self.service.tree(chord.ticket)
        firsts = range(0, tree.shape.size, FAN_IN)
        return any(
            tree.read_node(0, first, None) is None for first in firsts if (1, first // FAN_IN) not in chord.parts
        )

    def lost(self, chord: Chord, slots: Iterable[int]) -> tuple[int, ...]:
        """Those of these slots whose member has a final result, and no part; up to two GETs each."""
        tree = self.service.tree(chord.ticket)

        def lost(slot: int) -> bool:
            # First the result, then the part: a member writes its part before its result, so where there is a result,
            # a part that is missing now will not come.
            stands = self.final(chord.manifest.ids[slot], chord.started) is not None
            return stands and tree.get(tree.key(0, slot)) is None

        looked = list(slots)
        flags = self.service.pool.map(lost, looked)
        return tuple(slot for slot, flag in zip(looked, flags, strict=True) if flag)
