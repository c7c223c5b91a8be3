"""The sweep: deletes what has expired, aborts uploads that nobody completes, and nothing else.

The listing tells which objects are old enough to have expired. Right before one is deleted it is looked at: that tells
the term it may have of its own and the version that stands there now, and only this version is deleted. So a sweep may
run beside workers and beside another sweep, and what is written while it runs stays. It keeps no record: one that died
is simply run again.

Celery's own ``s3`` backend and celery-s3 1.0.1 store under the same keys, and delete nothing. What they have written
has none of our user metadata, and stays until a sweep is told to adopt it: whoever changes the backend of an old
bucket has not asked for the end of what is in it.

Where a server ignores the versions in DeleteObjects, and for objects that may be written again with the very same
bytes (saved groups, messages), what is written between the look and the deletion is lost: the time of one or two
requests, so few are looked at at a time there.
"""

from __future__ import annotations

import itertools
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple
from uuid import uuid4

from celery_s3.errors import ObjectMissing, Refused
from celery_s3.keys import FILES, GROUPS, MESSAGES, RESULTS, Layout
from celery_s3.metadata import expires_at, is_ours
from celery_s3.store.api import PAGE, Entry, Store, batches
from celery_s3.store.counting import pages
from celery_s3.store.extent import Extent
from celery_s3.store.parallel import Pool

from .stale_uploads import StaleUploads
from .terms import SLACK, Terms

__all__ = ["CAREFUL", "Area", "Sweep", "Swept", "areas"]

#: Objects that are looked at at a time where another write may go unnoticed.
CAREFUL = 20
#: The name of a file in the folder of those that no task owns.
_SENT = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Area:
    """Objects that expire alike.

    Arguments:
        kind: as reports call them.
        prefix: what their keys begin with.
        expires: the seconds that those live that say nothing else; ``None``: for ever.
        suspect: the age, in seconds, from which on one is looked at; ``None``: none is.
        batch: how many are looked at and deleted at a time.
        name: what the rest of their keys is like; whatever else stands there is not ours.
        slack: seconds that all of them live beyond their term.
        ours: whether only those go that this package has written, as other backends use the same keys.
    """

    kind: str
    prefix: str
    expires: float | None
    suspect: float | None
    name: re.Pattern[str]
    batch: int = CAREFUL
    slack: float = 0.0
    ours: bool = False

    def has(self, entry: Entry) -> bool:
        """Whether it is one of them, by its key."""
        return self.name.fullmatch(entry.key, len(self.prefix)) is not None


def areas(
    layout: Layout, terms: Terms, *, batch: int = CAREFUL, thorough: bool = False, adopt: bool = False
) -> list[Area]:
    """What a sweep goes through.

    Arguments:
        batch: how many results are deleted at a time.
        thorough: look at every result, however young: it may have a shorter term of its own.
        adopt: also what another backend has written.
    """
    ours = not adopt
    suspect = 0.0 if thorough else terms.shortest
    return [
        Area(RESULTS.name, layout.results, terms.results, suspect, RESULTS.rest, batch, ours=ours),
        Area(FILES.name, layout.files, terms.results, Terms.of_file(suspect), FILES.rest, batch, SLACK),
        # Files of no task. Only where results live for ever do they have a term of their own (`terms.sent`); where they
        # do not, they expire with the files above.
        Area(FILES.name, layout.sent, terms.sent, terms.sent, _SENT, batch),
        Area(GROUPS.name, layout.groups, terms.results, terms.results, GROUPS.rest, ours=ours),
        Area(MESSAGES.name, layout.messages, terms.messages, terms.messages, MESSAGES.rest),
    ]


@dataclass(slots=True)
class Swept:
    """What a sweep has done.

    Attributes:
        deleted: by kind.
        looked: how many objects it has looked at.
        foreign: what would have gone, and stays because another backend has written it.
        aborted: how many uploads in parts.
        unseen: why uploads could not be looked at, empty where they were.
        complete: whether it came to its end, rather than to the limit it was given.
    """

    deleted: dict[str, Extent] = field(default_factory=dict)
    looked: int = 0
    foreign: Extent = field(default_factory=Extent)
    aborted: int = 0
    unseen: str = ""
    complete: bool = True

    @property
    def count(self) -> int:
        """How many objects were deleted."""
        return sum(extent.count for extent in self.deleted.values())

    @property
    def size(self) -> int:
        """The bytes of what was deleted."""
        return sum(extent.size for extent in self.deleted.values())

    def add(self, kind: str, entry: Entry) -> None:
        """Note that an object was deleted."""
        self.deleted.setdefault(kind, Extent()).add(entry)


class _Expired(NamedTuple):
    """An object that has expired, and whether it is ours to delete."""

    entry: Entry
    mine: bool


class Sweep:
    """Deletes what has expired.

    Arguments:
        store: need not open seals: what is looked at is readable without.
        areas: what to go through.
        remains: what chords have left, in lists to be deleted one after the other.
        uploads: what is to be aborted.
        now: the server's time in seconds since the epoch; rather too early than too late.
        dry_run: everything but deleting and aborting.
        clock: seconds that pass here.

    All methods raise :class:`~celery_s3.errors.StoreError` where the store fails; what was done until then stays done.
    """

    def __init__(
        self,
        store: Store,
        pool: Pool,
        areas: list[Area],
        remains: Callable[[], Iterator[list[Entry]]],
        uploads: StaleUploads,
        *,
        now: Callable[[], float],
        dry_run: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store
        self.pool = pool
        self.areas = areas
        self.remains = remains
        self.uploads = uploads
        self.now = now
        self.dry_run = dry_run
        self.clock = clock
        self.done = Swept()

    def forecast(self) -> tuple[int, Counter[str]]:
        """How many objects are to be looked at, and the requests that will take, apart from chords; only lists."""
        requests = Counter[str]()
        for area in self._wanted():
            listed = suspects = 0
            for entry in self.store.list(area.prefix):
                listed += 1
                suspects += self._is_suspect(area, entry)
            requests["LIST"] += max(1, pages(listed))
            requests["GET"] += suspects
            requests["DELETE_OBJECTS"] += 0 if self.dry_run else -(-suspects // area.batch)
        return requests["GET"], requests

    def run(
        self,
        *,
        limit: int | None = None,
        seconds: float | None = None,
        looked: Callable[[int], object] = lambda _: None,
    ) -> Swept:
        """Sweep.

        Arguments:
            limit: stop once so many objects are deleted.
            seconds: stop after that time. The sweep begins at a random place then, and goes round: what it does not
                come to is another one's beginning.
            looked: told how many more objects have been looked at.
        """
        until = None if seconds is None else self.clock() + seconds
        for kind, entries in itertools.chain(self._chords(), self._expired(until, looked)):
            room = None if limit is None else max(0, limit - self.done.count)
            self._delete(kind, entries[:room])
            if limit is not None and self.done.count >= limit:
                self.done.complete = False
                break
        self._abort_uploads()
        return self.done

    def _abort_uploads(self) -> None:
        try:
            for upload in self.uploads.stale(self.now()):
                if not self.dry_run:
                    self.uploads.abort(upload)
                self.done.aborted += 1
        except Refused as exc:  # listing uploads needs another permission than the rest, and a server that can do it
            self.done.unseen = exc.reason

    def _wanted(self) -> list[Area]:
        return [area for area in self.areas if area.suspect is not None]

    def _chords(self) -> Iterator[tuple[str, list[Entry]]]:
        for entries in self.remains():
            yield "chords", entries

    def _expired(self, until: float | None, looked: Callable[[int], object]) -> Iterator[tuple[str, list[Entry]]]:
        for area in self._wanted():
            for batch in batches(self._suspects(area, until), area.batch):
                seen = self.pool.map(partial(self._if_expired, area), batch)
                self.done.looked += len(batch)
                looked(len(batch))
                expired = [found for found in seen if found is not None]
                for found in expired:
                    if not found.mine:
                        self.done.foreign.add(found.entry)
                yield area.kind, [found.entry for found in expired if found.mine]

    def _suspects(self, area: Area, until: float | None) -> Iterator[Entry]:
        """The objects that may have expired, as the listing tells."""
        for number, entry in enumerate(self._listing(area.prefix, round_trip=until is not None)):
            if until is not None and number % PAGE == 0 and self.clock() >= until:
                self.done.complete = False
                return
            if self._is_suspect(area, entry):
                yield entry

    def _listing(self, prefix: str, *, round_trip: bool) -> Iterator[Entry]:
        if not round_trip:
            yield from self.store.list(prefix)
            return
        # A random place: Celery's ids are random hexadecimal numbers, so keys are spread evenly over them.
        middle = prefix + uuid4().hex
        yield from self.store.list(prefix, start_after=middle)
        yield from itertools.takewhile(lambda entry: entry.key <= middle, self.store.list(prefix))

    def _is_suspect(self, area: Area, entry: Entry) -> bool:
        age = self.now() - entry.modified.timestamp()
        return area.suspect is not None and age >= area.suspect and area.has(entry)

    def _if_expired(self, area: Area, entry: Entry) -> _Expired | None:
        """The version that stands there now, if it has expired."""
        try:
            found = self.store.get(entry.key, length=1)
        except ObjectMissing:
            return None
        end = expires_at(found, area.expires)
        gone = end is not None and self.now() >= end + area.slack
        if not gone:
            return None
        version = Entry(found.key, found.size, found.modified, found.etag)
        return _Expired(version, mine=not area.ours or is_ours(found.metadata))

    def _delete(self, kind: str, entries: list[Entry]) -> None:
        kept: set[str] = set()
        if entries and not self.dry_run:
            kept = set(self.store.delete_unchanged(_versions(entries)))
        for entry in entries:
            if entry.key not in kept:
                self.done.add(kind, entry)


def _versions(entries: list[Entry]) -> Mapping[str, str]:
    return {entry.key: entry.etag for entry in entries}
