"""The files of one backend: ``<prefix><task id>/<random>``, each written once, with the lifetime of a result."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from datetime import datetime
from urllib.parse import quote
from uuid import uuid4

from celery_s3.errors import FileNotRead, ObjectMissing, PreconditionFailed, StoreError
from celery_s3.keys import file_folder
from celery_s3.metadata import FILE_NAME, expiry_tags, term_metadata
from celery_s3.processes import Remembered
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


class Files:
    """Writes, reads and deletes files.

    Arguments:
        store: reads, lists and deletes them.
        writer: writes objects of any size.
        pool: fetches the pieces of a file ahead.
        settings: `bucket`, `endpoint_url`, and whether files are sealed.
        prefix: what the keys of all files begin with.
        uploaded: the files that this process has uploaded, counted by the id of the task that they go with.

    Attributes:
        at: bucket and prefix as ``s3://bucket/prefix``, as pointers tell them.
        server: what tells two servers' buckets of the same name apart: 16 hexadecimal digits, empty for AWS.
    """

    def __init__(
        self,
        store: Store,
        writer: Writer,
        pool: Pool,
        settings: Settings,
        prefix: str,
        uploaded: Remembered[str, int],
    ) -> None:
        self.store = store
        self.writer = writer
        self.pool = pool
        self.settings = settings
        self.prefix = prefix
        self.at = printable(f"s3://{settings.bucket}/{prefix}")
        # A hash, since pointers go to brokers and browsers, which need not know the server's address.
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
            size: in bytes, ``None`` where that is not known.
            name: of the file, for who gets it; empty where it has none.
            content_type: as ``application/pdf``.
            term: the seconds that it lives, 0 for ever; ``None``: as any result.

        Returns:
            What stands for it in a result or a message.

        Raises:
            StoreError: it could not be stored.
            Whatever ``pieces`` raises.
        """
        key = f"{file_folder(owner or None)}{uuid4().hex}"
        sealed = bool(self.settings.seal_keys) and self.settings.seal != "off"
        measured = _Measured(pieces)
        metadata = {FILE_NAME: (not sealed and quote(name)) or "file", **term_metadata(term)}
        tags = expiry_tags(metadata) if self.settings.expiry_tags else None
        self.writer.write(
            self.prefix + key, measured, size=size, metadata=metadata, content_type=content_type, tags=tags
        )
        if owner:
            self._uploaded.put(owner, self._uploaded.get(owner, 0) + 1)
        return Pointer(
            key=key,
            at=self.at,
            size=measured.size,
            sha256=measured.digest.hexdigest(),
            name=name,
            content_type=content_type,
            sealed=sealed,
            server=self.server,
        )

    # -- reading

    def pieces(self, pointer: Pointer) -> Iterator[bytes]:
        """A file's content in pieces of 8 MiB, some of them fetched ahead, one request each.

        Raises:
            FileNotRead: it could not be fetched, or is not what was stored; before the last piece is given.
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
        from celery_s3.store.clients.control import Control  # it loads boto3

        try:
            return Control(self.settings).presign(
                self.prefix + pointer.key,
                expires,
                filename=_header_safe(pointer.name),
                content_type=pointer.content_type,
            )
        except StoreError as exc:
            raise FileNotRead(f"no link to {self.at}{pointer.key} could be made: {exc}") from exc

    # -- deleting

    def keys_of(self, owner: str, until: datetime | None = None) -> list[str]:
        """The keys of a task's files, of all its runs, in one LIST for each 1,000.

        Arguments:
            owner: the task's id.
            until: only those written by then, see :func:`written`.
        """
        return written(self.store.list(self.prefix + file_folder(owner)), until)

    def folder_of(self, entry: Entry) -> str:
        """Whose file a listed object is: a folder, as :func:`~celery_s3.keys.file_folder` names it."""
        return entry.key[len(self.prefix) :].rpartition("/")[0] + "/"


def written(entries: Iterable[Entry], until: datetime | None) -> list[str]:
    """The keys of the objects that were written by then, ``None``: of all.

    Both times have whole seconds, and the last one is included.
    """
    return [entry.key for entry in entries if until is None or entry.modified <= until]


class _Measured:
    """Pieces that are measured as they pass: ``size`` in bytes and SHA-256, right once the last one has passed."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces
        self.digest = hashlib.sha256()
        self.size = 0

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            self.digest.update(piece)
            self.size += len(piece)
            yield piece


def _header_safe(name: str) -> str:
    """The name as it may stand in a quoted text of a header, never empty.

    With a name the browser saves the file. Without one it might show it, and run what is in it.
    """
    return "".join(char if " " <= char <= "~" and char not in '"%' else "_" for char in name) or "file"
