"""The files of one backend: ``<prefix><task id>/<random>``, each written once, with the lifetime of a result."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from urllib.parse import quote
from uuid import uuid4

from celery_s3.errors import FileNotRead, ObjectMissing, PreconditionFailed, StoreError
from celery_s3.keys import file_folder
from celery_s3.metadata import FILE_NAME, term_metadata
from celery_s3.settings import Settings
from celery_s3.store.api import Entry, Object, Store, Writer
from celery_s3.store.parallel import Pool

from .pointer import Pointer, printable
from .reading import checked, in_order

__all__ = ["Files", "written"]

#: Bytes of one request for a part of a file.
PIECE = 8 * 1024 * 1024
#: Parts that are under way, or wait for their turn, while one is used: 8 MiB of memory each.
AHEAD = 4
#: Seconds that S3 lets a link live: 7 days.
LONGEST_LINK = 604_800
#: How many tasks' uploads a process remembers: more than any pool runs at once.
REMEMBERED = 4096


class Files:
    """Writes, reads and deletes files.

    Arguments:
        uploads: writes objects of any size.
        prefix: what the keys of all files begin with.
        uploaded: counts the files that this process has uploaded, by the task that they go with.

    Attributes:
        at: bucket and prefix, as pointers tell them.
        server: what tells two servers' buckets of the same name apart, empty for AWS.
    """

    def __init__(
        self,
        store: Store,
        uploads: Writer,
        pool: Pool,
        settings: Settings,
        prefix: str,
        uploaded: dict[str, int],
    ) -> None:
        self.store = store
        self.uploads = uploads
        self.pool = pool
        self.settings = settings
        self.prefix = prefix
        self.at = printable(f"s3://{settings.bucket}/{prefix}")
        # not the address itself: a pointer goes to brokers and browsers
        self.server = hashlib.sha256(settings.endpoint_url.encode()).hexdigest()[:16] if settings.endpoint_url else ""
        self._uploaded = uploaded

    # -- writing

    def put(
        self,
        pieces: Iterable[bytes],
        *,
        owner: str | None,
        size: int | None,
        name: str,
        content_type: str,
        term: float | None = None,
    ) -> Pointer:
        """Upload a file, as its pieces come. The key is new: trying again can meet no other object.

        Arguments:
            owner: the id of the task that it goes with; ``None``: it is the argument of a call from no task.
            size: in bytes, where that is known.
            term: the seconds that it lives, 0 for ever; ``None``: as any result.

        Raises:
            StoreError: it could not be stored.
            Whatever ``pieces`` raises.
        """
        key = f"{file_folder(owner or None)}{uuid4().hex}"
        sealed = bool(self.settings.seal_keys) and self.settings.seal != "off"
        passed = _Passed(pieces)
        metadata = {FILE_NAME: (not sealed and quote(name)) or "file", **term_metadata(term)}
        self.uploads.write(self.prefix + key, passed, size=size, metadata=metadata, content_type=content_type)
        if owner:
            self._count(owner)
        return Pointer(
            key=key,
            at=self.at,
            size=passed.size,
            sha256=passed.digest.hexdigest(),
            name=name,
            content_type=content_type,
            sealed=sealed,
            server=self.server,
        )

    def _count(self, owner: str) -> None:
        # no lock: a forked child might wait for it for ever
        self._uploaded[owner] = self._uploaded.pop(owner, 0) + 1
        if len(self._uploaded) > REMEMBERED:
            with suppress(RuntimeError, StopIteration):  # another thread makes room at the same time
                self._uploaded.pop(next(iter(self._uploaded)), None)

    # -- reading

    def pieces(self, pointer: Pointer) -> Iterator[bytes]:
        """A file's content in pieces of 8 MiB, some of them fetched ahead.

        Raises:
            FileNotRead: it could not be fetched, or is not what was stored.
        """
        return checked(self._fetched(pointer), pointer.size, pointer.sha256, self.at + pointer.key)

    def _fetched(self, pointer: Pointer) -> Iterator[bytes]:
        if pointer.sealed and not self.settings.seal_keys:
            why = "is sealed: this process needs the `seal_keys` of whoever stored it"
            raise FileNotRead(f"the file {self.at}{pointer.key} {why}")
        first = self._get(pointer, 0, None)
        if first.size != pointer.size:
            raise FileNotRead(
                f"{self.at}{pointer.key} is not the file that was stored there: it has {first.size:,} bytes in"
                f" place of {pointer.size:,}. Find out who else writes there"
            )
        starts = range(len(first.body), first.size, PIECE)
        yield first.body
        etag = first.etag
        del first
        yield from in_order(self.pool, lambda start: self._get(pointer, start, etag).body, starts, AHEAD)

    def _get(self, pointer: Pointer, start: int, etag: str | None) -> Object:
        where = self.at + pointer.key
        try:
            return self.store.get(self.prefix + pointer.key, start=start, length=PIECE, if_match=etag)
        except ObjectMissing as exc:
            elsewhere = (
                "" if pointer.server == self.server else ", or is on another server, with another `endpoint_url`"
            )
            raise FileNotRead(
                f"the file {where} is not there any more: it was forgotten with the result of its task, has expired"
                f" (`result_expires`), or may not be read with these credentials{elsewhere}"
            ) from exc
        except PreconditionFailed as exc:
            raise FileNotRead(f"the file {where} was replaced while it was read. Who else writes there?") from exc
        except StoreError as exc:
            raise FileNotRead(f"the file {where} could not be read: {exc}") from exc

    def url(self, pointer: Pointer, expires: int) -> str:
        """A link by which anybody can read a file for ``expires`` seconds; no request.

        Raises:
            FileNotRead: the file is sealed, or the link cannot be made.
            ValueError: ``expires`` is not from 1 to 604,800.
        """
        if type(expires) is not int or not 1 <= expires <= LONGEST_LINK:
            raise ValueError(
                f"expires is {expires!r}: a link lives from 1 to {LONGEST_LINK:,} seconds (7 days), an int"
            )
        if pointer.sealed:
            raise FileNotRead(
                f"there is no link to {self.at}{pointer.key}: it is sealed by `seal_keys`, and a link would give out"
                " what nobody can read. Let a program that has the keys hand out what `open()` gives"
            )
        from celery_s3.store.clients.control import Control  # imported where it is used

        try:
            return Control(self.settings).presign(
                self.prefix + pointer.key, expires, filename=_plain(pointer.name), content_type=pointer.content_type
            )
        except StoreError as exc:
            raise FileNotRead(f"no link to {self.at}{pointer.key} could be made: {exc}") from exc

    # -- deleting

    def keys_of(self, owner: str, until: datetime | None = None) -> list[str]:
        """The files of a task, and those of each of its runs, in one LIST.

        Arguments:
            until: only those written by then. Some servers list times in milliseconds and answer a GET in seconds, so
                those of that second belong to it.
        """
        return written(self.store.list(self.prefix + file_folder(owner)), until)

    def folder_of(self, entry: Entry) -> str:
        """Whose it is, as :func:`~celery_s3.keys.file_folder` names it."""
        return entry.key[len(self.prefix) :].rpartition("/")[0] + "/"


def written(entries: Iterable[Entry], until: datetime | None) -> list[str]:
    """The keys of those that were written by then."""
    end = until and until.replace(microsecond=0) + timedelta(seconds=1)
    return [entry.key for entry in entries if end is None or entry.modified < end]


class _Passed:
    """Pieces that are counted and hashed as they pass."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces
        self.digest = hashlib.sha256()
        self.size = 0

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            self.digest.update(piece)
            self.size += len(piece)
            yield piece


def _plain(name: str) -> str:
    """The name as it may stand in a quoted text of a header; without one a browser would open what it may run."""
    return "".join(char if " " <= char <= "~" and char not in '"%' else "_" for char in name) or "file"
