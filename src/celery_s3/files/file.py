"""A file that a task returns or gets: local until it is uploaded, then a handle to what is in S3."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from uuid import uuid4
from weakref import WeakValueDictionary

from kombu.utils.json import register_type

from celery_s3.celery_private import current_task
from celery_s3.errors import ConfigurationError, FileNotStored, StoreError
from celery_s3.metadata import term_asked
from celery_s3.processes import Remembered
from celery_s3.serializers import FILE

from . import whose
from .content import Content, Damaged, Local, Remote
from .pointer import Pointer

if TYPE_CHECKING:
    from .objects import Files
    from .reading import Progress

__all__ = ["S3File"]

#: Seconds for which one upload serves all that its task stores: files live a day longer than results, so this one
#: outlives even what is stored at the end of these 23 hours.
_OF_A_TASK = 82_800
#: Seconds for which one upload serves a client's calls, for example the members of a group; it lives for a day or more.
_OF_A_CALLER = 3600
#: How many uploads of one file are remembered, each for another task: more than any pool runs at once.
_REMEMBERED = 1024

#: Files that are arguments of a call in this very process (`task_always_eager`), by the token in their pointer.
_here: WeakValueDictionary[str, S3File] = WeakValueDictionary()


class S3File:
    """A file as a task's result, as a part of one, or as an argument.

    It is uploaded when it is first sent or stored, once for each task; what travels is a pointer, and who gets it has a
    handle::

        @app.task
        def report() -> S3File:
            ...
            return S3File("/tmp/report.pdf")

        file = report.delay().get()
        file.download_to("report.pdf")

    Arguments:
        source: a path, or a binary file object, which is read from where it stands.
        name: for who gets it; that of the path or file object if there is one.
        content_type: guessed from the name.
        size: in bytes, where a file object cannot tell it: an upload of a known size needs less memory.

    Raises:
        OSError: there is no such file, or it is a directory.
        TypeError: the file object gives text, or ``size`` is no number.
        ValueError: ``name``, ``content_type`` or ``size`` cannot be one, or the file object stands at its end.
    """

    __module__ = "celery_s3"  # where users import it from, and what a pickle names

    def __init__(
        self,
        source: str | os.PathLike[str] | IO[bytes],
        *,
        name: str | None = None,
        content_type: str | None = None,
        size: int | None = None,
    ) -> None:
        self._begin(Local(source, name, content_type, size))

    def _begin(self, content: Content) -> None:
        self._content = content
        self._uploading = threading.Lock()
        #: names it in a pointer that does not leave this process
        self._token = uuid4().hex
        #: what it was uploaded as, and when that began, in seconds since the epoch: by server, place, task and run
        self._sent: Remembered[tuple[object, ...], tuple[Remote, float]] = Remembered(_REMEMBERED)
        self._sent_last: Remote | None = None

    @classmethod
    def of(cls, pointer: object) -> S3File:
        """The file that a pointer stands for; no request.

        Never an error, since Celery loses a task whose message cannot be decoded. What is no pointer makes a file that
        raises when it is used.
        """
        token = pointer.get("here") if isinstance(pointer, dict) else None
        known = _here.get(token) if isinstance(token, str) else None
        return known or cls._with(_content_of(pointer))

    @classmethod
    def _with(cls, content: Content) -> S3File:
        file = cls.__new__(cls)  # not by __init__, which is for users and takes a local file
        file._begin(content)  # noqa: SLF001 (its own)
        return file

    @property
    def name(self) -> str:
        """Its name, without a folder; empty where it has none."""
        return self._content.name

    @property
    def content_type(self) -> str:
        """As ``application/pdf``; ``application/octet-stream`` where the name does not tell."""
        return self._content.content_type

    @property
    def size(self) -> int | None:
        """Bytes; ``None`` of a stream that tells it only when it is read."""
        return self._content.size

    @property
    def sha256(self) -> str:
        """The SHA-256 of its content in hexadecimal digits; a local file is read for it."""
        return self._content.sha256

    def chunks(self) -> Iterator[bytes]:
        """Its content in pieces of up to 8 MiB. The last one comes once all of them are verified.

        Raises:
            FileNotRead: it could not be fetched, or is not what was stored.
        """
        return self._content.pieces()

    __iter__ = chunks

    def open(self) -> io.BufferedReader:
        """A binary stream of its content, from beginning to end; errors as of :meth:`chunks`, while it is read."""
        from .reading import PieceReader

        return io.BufferedReader(PieceReader(self.chunks()))

    def download_to(self, path: str | os.PathLike[str], progress: Progress | None = None) -> Path:
        """Write its content to a file, which is replaced when all is there and verified; else nothing changes.

        A file that is there keeps its mode; a symbolic link stays, and the file that it names is replaced.

        Arguments:
            progress: called with the bytes done and the bytes in all (``None``: not known), after each piece.

        Raises:
            FileNotRead: it could not be fetched, or is not what was stored.
            OSError: the file could not be written, or is a directory, a device or a pipe.
        """
        from .reading import save

        target = Path(path)
        save(self.chunks, target, self.size, progress)
        return target

    def url(self, expires: int = 3600) -> str:
        """A link by which anybody can read it for ``expires`` seconds, up to 7 days; it cannot be taken back.

        Raises:
            FileNotRead: it is sealed, or not uploaded.
        """
        return (self._sent_last or self._content).url(expires)

    def __repr__(self) -> str:
        return f"<S3File {self._content!r}>"

    # -- travelling

    def pointer(self) -> Any:
        """What travels in its place, as JSON has it.

        It is uploaded now, unless it is already, or its reader is in this very process.

        Raises:
            FileNotStored: it could not be read, or not be uploaded.
            ConfigurationError: there is no backend of ours to upload it to.
        """
        if not isinstance(self._content, Local):
            return self._content.pointer()
        if whose.is_eager_call():
            _here[self._token] = self
            return {"here": self._token}
        with self._uploading:
            return self._uploaded(self._content).pointer()

    def _uploaded(self, local: Local) -> Remote:
        """What it was uploaded as: once for each task, since it is deleted with that task's result."""
        files, owner, now = _files_for(local), whose.owner_id(), time.time()
        purpose = (files.server, files.at, owner, whose.run_number())
        known, began = self._sent.get(purpose) or (None, 0.0)
        if known is not None and 0 <= now - began < (_OF_A_TASK if owner else _OF_A_CALLER):
            return known
        self._sent_last = remote = Remote(_upload(local, files, owner), whose.backend_in_use())
        self._sent.put(purpose, (remote, now))
        return remote

    def __reduce__(self) -> Any:
        return S3File.of, (self.pointer(),)

    def __copy__(self) -> S3File:
        return self

    def __deepcopy__(self, memo: object) -> S3File:
        return self


def _content_of(pointer: object) -> Content:
    try:
        return Remote(Pointer.loads(pointer), whose.backend_in_use())
    except ValueError as exc:
        return Damaged(pointer, str(exc))


def _files_for(local: Local) -> Files:
    files = whose.files_here()
    if files is None:
        raise ConfigurationError(
            f"{local!r} cannot be uploaded: the current app's results are not in S3 by celery-s3. Set `result_backend`"
            ' to "celery_s3.backends.S3Backend", and call `app.set_current()` where there are several apps'
        )
    return files


def _upload(local: Local, files: Files, owner: str | None) -> Pointer:
    task = current_task()
    try:
        return files.put(
            local.pieces(),
            owner=owner,
            size=local.size,
            name=local.name,
            content_type=local.content_type,
            term=term_asked(task and task.request),
        )
    except StoreError as exc:
        # With `result_backend_always_retry` Celery tries again where the cause is transient. A stream that is spent
        # cannot be read again: its error gets no cause, so that Celery does not try.
        raise FileNotStored(f"the file {local!r} was not stored: {exc}") from (None if local.spent else exc)
    except OSError as exc:
        raise FileNotStored(f"the file {local!r} was not stored: {exc.strerror or exc}") from exc
    except ValueError as exc:  # it has another size than was said
        raise FileNotStored(f"the file {local!r} was not stored: {exc}") from exc


register_type(S3File, FILE, S3File.pointer, S3File.of)
