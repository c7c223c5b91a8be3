"""The results in the bucket: which there are, what is known of them without decoding one, and deleting many.

S3 lists by key and tells no more than size and time; state and task name are in the user metadata, which costs a
GET of one byte. So a listing is read once, in pages of 1,000; metadata is read for what is shown, or filtered by,
and never for what could not be among the newest any more. Memory grows with what is shown, not with the bucket.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import chain

from celery.states import READY_STATES

from celery_s3.errors import AccessDenied, BadRequest, ObjectMissing, StoreError, Untrusted
from celery_s3.files.objects import Files, written
from celery_s3.keys import RESULTS, Layout, file_folder
from celery_s3.metadata import files_in, state_of, task_of
from celery_s3.store.api import PAGE, Entry, Object, Store, batches
from celery_s3.store.extent import Extent
from celery_s3.store.parallel import Pool

from .budget import Budget

__all__ = ["Filter", "Found", "Inventory", "time_of"]

_UNKNOWN = datetime.fromtimestamp(0, UTC)

#: Seconds for which what was seen of a result is good enough to delete it.
FRESH = 1.0


@dataclass(frozen=True, slots=True)
class Found:
    """A stored result.

    Attributes:
        seen: when it was looked at, by the inventory's clock.
        state, task: ``None`` where only the listing was looked at, or another writer left none.
        expires: when it reads as missing; ``None`` where only the listing was looked at, or never.
        files: how many its task has uploaded; ``None`` where that is not known.
    """

    id: str
    entry: Entry
    seen: float = 0.0
    state: str | None = None
    task: str | None = None
    expires: datetime | None = None
    files: int | None = None

    @property
    def age_key(self) -> tuple[datetime, str]:
        """Larger for newer ones, and never the same."""
        return self.entry.modified, self.entry.key


@dataclass(frozen=True, slots=True)
class Filter:
    """Which results are meant.

    Arguments:
        states: in lower case; empty: any.
        task: a task's name, or a pattern with ``*``, ``?`` and ``[…]``; empty: any.
        since: written then or later.
        before: written before then.
    """

    states: frozenset[str] = frozenset()
    task: str = ""
    since: datetime | None = None
    before: datetime | None = None

    @property
    def needs_metadata(self) -> bool:
        """Whether a listing is not enough to tell."""
        return bool(self.states or self.task)

    def in_time(self, modified: datetime) -> bool:
        """Whether what was written then may be meant."""
        return (self.since is None or modified >= self.since) and (self.before is None or modified < self.before)

    def until(self, moment: datetime) -> Filter:
        """The same, without what was written in a later second."""
        end = moment + timedelta(seconds=1)
        return replace(self, before=end if self.before is None else min(self.before, end))

    def fits(self, found: Found) -> bool:
        """Whether it is meant; one whose writer left no state or task fits no filter by these."""
        return (
            self.in_time(found.entry.modified)
            and (not self.states or (found.state or "").casefold() in self.states)
            and (not self.task or (found.task is not None and fnmatchcase(found.task, self.task)))
        )


class Inventory:
    """The results of one deployment.

    Arguments:
        layout: where they are.
        budget: asks before there are many requests.
        expires_at: when an object expires, in seconds since the epoch; ``None``: never.
        clock: seconds.
        files: the files that go with them.

    All methods raise :class:`~celery_s3.errors.StoreError` where the store fails.
    """

    def __init__(
        self,
        store: Store,
        pool: Pool,
        layout: Layout,
        budget: Budget,
        *,
        expires_at: Callable[[Object], float | None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        files: Files | None = None,
    ) -> None:
        self.files = files
        self.store = store
        self.pool = pool
        self.layout = layout
        self.budget = budget
        self.expires_at = expires_at
        self.clock = clock
        #: what the last listing has covered so far, whatever the filter
        self.listed = Extent()
        #: why :meth:`newest` could not read the metadata of some
        self.unreadable: list[StoreError] = []

    # -- looking

    def newest(self, wanted: Filter, limit: int) -> list[Found]:
        """The newest results that are wanted, at most ``limit`` of them, newest first, with state and task.

        One that cannot be read is among them without either, and :attr:`unreadable` says why.

        Raises:
            StoreError: none of them can be read.
        """
        self.unreadable, self._readable = [], False
        found = self._newest(wanted, limit)
        if self.unreadable and not self._readable:
            raise self.unreadable[0]
        return found

    def _newest(self, wanted: Filter, limit: int) -> list[Found]:
        newest = _Newest(limit)
        candidates = (found for found in self.listing(wanted) if newest.takes(found))
        if wanted.needs_metadata:
            # Candidates are checked as they are drawn: once enough newer ones fit, an older one costs no GET.
            for found in self._with_metadata(candidates, self._read_if_readable):
                if wanted.fits(found):
                    newest.add(found)
            return newest.sorted()
        for found in candidates:
            newest.add(found)
        read = self._with_metadata(newest.sorted(), self._read_if_readable)
        return sorted(read, key=lambda found: found.age_key, reverse=True)

    def extent(self, wanted: Filter) -> Extent:
        """How many results are of that time; for nothing but a listing, so state and task do not count."""
        extent = Extent()
        for found in self.listing(wanted):
            extent.add(found.entry)
        return extent

    def matching(self, wanted: Filter, looked: Callable[[int], object] = lambda _: None) -> Iterator[Found]:
        """Every result that is wanted, as they come.

        Arguments:
            looked: told how many more of that time have been looked at.
        """
        listing = self.listing(wanted)
        for found in self._with_metadata(listing) if wanted.needs_metadata else listing:
            looked(1)
            if wanted.fits(found):
                yield found

    def listing(self, wanted: Filter) -> Iterator[Found]:
        """The results of that time, in the order of their keys; a request for each 1,000 that are stored."""
        for entry in self._entries():
            found = self.layout.parse(entry.key)
            if found is not None and found.kind is RESULTS and wanted.in_time(entry.modified):
                yield Found(found.id, entry, self.clock())

    def _entries(self) -> Iterator[Entry]:
        listed, start = Extent(), len(self.layout.results)
        self.listed = listed
        for entry in self.pages(self.layout.results):
            self.budget.position = entry.key[start:]
            listed.add(entry)
            yield entry

    def pages(self, prefix: str) -> Iterator[Entry]:
        """What is listed under a prefix; each page is a request."""
        self.budget.reserve("LIST")
        for number, entry in enumerate(self.store.list(prefix), 1):
            yield entry
            if number % PAGE == 0:
                self.budget.reserve("LIST")

    def known(self, ids: Iterable[str]) -> list[Found]:
        """Those of these ids that have a result, with state and task; a request each."""
        return list(self._with_metadata(Found(id, Entry(self.layout.result_key(id), 0, _UNKNOWN)) for id in ids))

    def _with_metadata(
        self, results: Iterable[Found], read: Callable[[Found], Found | None] | None = None
    ) -> Iterator[Found]:
        """The same with what their metadata says, in order of completion, without those that are gone."""
        answers = self.pool.map_unordered(read or self._read_metadata, self._reserved(results))
        return (found for found in answers if found is not None)

    def _read_if_readable(self, found: Found) -> Found | None:
        """One archived object, or one whose KMS key is another's, is no reason to show no other."""
        try:
            read = self._read_metadata(found)
        except (AccessDenied, BadRequest) as exc:
            self.unreadable.append(exc)
            return replace(found, seen=self.clock())
        self._readable = True
        return read

    def _reserved(self, results: Iterable[Found], verb: str = "GET") -> Iterator[Found]:
        """The same, each of which takes a request."""
        for found in results:
            self.budget.reserve(verb)
            yield found

    def _read_metadata(self, found: Found) -> Found | None:
        try:
            seen = self.store.get(found.entry.key, length=1)
        except ObjectMissing:
            return None
        except Untrusted:
            # its metadata is not to be trusted either: nothing of it is shown
            return replace(found, seen=self.clock())
        # size, time and etag of this answer, for it may have been written again since it was listed
        entry = replace(found.entry, size=seen.size, modified=seen.modified, etag=seen.etag)
        state, task = state_of(seen.metadata), task_of(seen.metadata)
        expires, files = time_of(self.expires_at(seen)), files_in(seen.metadata)
        return Found(found.id, entry, self.clock(), state, task, expires, files)

    def files_of_each(self, results: Iterable[Found]) -> dict[str, Extent]:
        """How much the files of results are, by id, of those that are known to have some; a request each."""
        files = self.files
        owners = [found for found in results if found.files]
        if files is None:
            return {}

        def measured(one: Found) -> Extent:
            extent = Extent()
            for entry in self.store.list(files.prefix + file_folder(one.id)):
                if entry.modified <= one.entry.modified:
                    extent.add(entry)
            return extent

        return dict(
            zip((one.id for one in owners), self.pool.map(measured, self._reserved(owners, "LIST")), strict=True)
        )

    # -- deleting

    def forget(self, wanted: Filter, looked: Callable[[int], object] = lambda _: None) -> Iterator[Found]:
        """Delete every result that is wanted with its files, and yield it then.

        What is deleted was looked at a moment before, again if need be, and only if it is still the same: what has
        been written meanwhile stays. On a server that ignores conditions, that moment remains.

        Arguments:
            looked: told how many more of that time have been looked at.
        """
        for batch in batches(self.matching(wanted, looked), PAGE):
            doomed = {found.entry.key: found for found in self._still(wanted, batch)}
            if doomed:
                # Files first: the result tells that there are files, so whoever is interrupted can run it again.
                running = [found for found in doomed.values() if found.state and found.state not in READY_STATES]
                self._delete(self._listed_files(found for found in doomed.values() if found not in running))
                self.budget.reserve("DELETE_OBJECTS")
                kept = self.store.delete_unchanged({key: found.entry.etag for key, found in doomed.items()})
                gone = [found for key, found in doomed.items() if key not in kept]
                # Of a task that was running, only once its result is gone: one that has ended meanwhile keeps both.
                self._delete(self._listed_files(found for found in running if found in gone))
                yield from gone

    def _still(self, wanted: Filter, batch: Iterable[Found]) -> Iterator[Found]:
        """Those that are still wanted: what was looked at more than a second ago is looked at again.

        A batch of 1,000 that fit may take long to fill.
        """
        now, stale = self.clock(), []
        for found in batch:
            if now - found.seen <= FRESH:
                yield found
            else:
                stale.append(found)
        yield from (found for found in self._with_metadata(stale) if wanted.fits(found))

    # -- files

    def files_with(self, known: Iterable[Found]) -> list[str]:
        """The keys of the files that go with these results; a request for each that may have some."""
        files, results = self.files, (found for found in known if found.files != 0)
        if files is None:
            return []

        def keys_of(one: Found) -> list[str]:
            try:
                return files.keys_of(one.id, one.entry.modified)
            except AccessDenied:
                if one.files is None:  # most such results have no files: to forget them takes no further permission
                    return []
                raise

        return list(chain.from_iterable(self.pool.map(keys_of, self._reserved(results, "LIST"))))

    def _listed_files(self, results: Iterable[Found]) -> list[str]:
        """Those that are not newer than the result: a task that runs again may be uploading others."""
        owners = [found for found in results if found.files != 0]
        return [
            key
            for found in owners
            for key in written(self.folders.get(file_folder(found.id), ()), found.entry.modified)
        ]

    @cached_property
    def folders(self) -> dict[str, list[Entry]]:
        """All files, by whose they are: cheaper than a look at each of many results. A request for each 1,000."""
        folders: dict[str, list[Entry]] = {}
        files = self.files
        if files is None:
            return folders
        for entry in self.pages(files.prefix):
            folders.setdefault(files.folder_of(entry), []).append(entry)
        return folders

    def _delete(self, doomed: Sequence[str]) -> None:
        for batch in batches(doomed, PAGE):
            self.budget.reserve("DELETE_OBJECTS")
            self.store.delete_many(batch)


class _Newest:
    """The newest results seen so far, at most ``limit``."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._heap: list[tuple[tuple[datetime, str], Found]] = []

    def takes(self, found: Found) -> bool:
        return len(self._heap) < self._limit or found.age_key > self._heap[0][0]

    def add(self, found: Found) -> None:
        item = (found.age_key, found)
        if len(self._heap) < self._limit:
            heapq.heappush(self._heap, item)
        else:
            heapq.heappushpop(self._heap, item)

    def sorted(self) -> list[Found]:
        return [found for _, found in sorted(self._heap, key=lambda item: item[0], reverse=True)]


def time_of(seconds: float | None) -> datetime | None:
    """A time in seconds since the epoch as such; ``None`` for none, and for one that no calendar has."""
    try:
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return None
