"""Where a file's content is: here, in S3, or nowhere.

Each of these has ``name``, ``content_type``, ``size``, ``sha256``, ``pieces()`` (its chunks) and ``url()``, as
:class:`celery_s3.S3File` describes them.
"""

from __future__ import annotations

import hashlib
import mimetypes
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

from celery_s3.errors import FileNotRead

from . import whose
from .pointer import Pointer, check_content_type, check_name, clean_name
from .source import PathSource, Source, StreamSource, check_size

if TYPE_CHECKING:
    from .objects import Files

__all__ = ["Content", "Damaged", "Local", "Remote"]

#: The content type of a file whose name does not tell one.
UNTYPED = "application/octet-stream"


class Local:
    """A file that is not uploaded yet; arguments and errors as of :class:`~celery_s3.S3File`."""

    def __init__(
        self, source: str | os.PathLike[str] | IO[bytes], name: str | None, content_type: str | None, size: int | None
    ) -> None:
        self.source: Source
        if isinstance(source, bytes | bytearray | memoryview):
            kind = type(source).__name__
            raise TypeError(f"S3File takes a path or a binary file object, not {kind}: write S3File(io.BytesIO(…))")
        if isinstance(source, str | os.PathLike):
            # absolute: the current directory may be another one when it is uploaded
            self.source, found = PathSource(Path(source).absolute(), check_size(size)), Path(source).name
        else:
            self.source, found = StreamSource(source, check_size(size)), getattr(source, "name", "")
        self.name = clean_name(found) if name is None else check_name(name)
        self.content_type = _guessed(self.name) if content_type is None else check_content_type(content_type)

    @property
    def size(self) -> int | None:
        """Bytes; ``None`` where only reading tells."""
        return self.source.size()

    @property
    def spent(self) -> bool:
        """Whether it has been read, and cannot be read again."""
        return self.source.spent

    @property
    def sha256(self) -> str:
        """In hexadecimal digits; the file is read for it."""
        digest = hashlib.sha256()
        for piece in self.pieces():
            digest.update(piece)
        return digest.hexdigest()

    def pieces(self) -> Iterator[bytes]:
        """The content in pieces of up to 8 MiB, as its source gives it."""
        return self.source.pieces()

    def url(self, expires: int) -> NoReturn:  # noqa: ARG002 (as the others')
        """Raises :class:`FileNotRead`: there is no link to what is not uploaded."""
        raise FileNotRead(f"there is no link to the file {self!r}: it is uploaded when its task has returned it")

    def __repr__(self) -> str:
        return repr(self.source)


class Remote:
    """A file in S3.

    Arguments:
        read_by: the backend by which its pointer came here, if any.
    """

    def __init__(self, pointer: Pointer, read_by: Any) -> None:
        self._pointer = pointer
        self._read_by = read_by
        self.name, self.content_type = pointer.name, pointer.content_type
        self.size, self.sha256 = pointer.size, pointer.sha256

    @cached_property
    def _files(self) -> Files:
        files, nearest = whose.files_at(self._pointer.at, self._pointer.server, self._read_by)
        if files is None:
            here = f"this process has its files in {nearest}" if nearest else "the current app's results are not in S3"
            raise FileNotRead(
                f"the file {self!r} is another backend's: {here}. Give both the same bucket and base_path, or call"
                " `app.set_current()` where there are several apps"
            )
        return files

    def pieces(self) -> Iterator[bytes]:
        """The content in pieces of 8 MiB, verified; see :meth:`celery_s3.files.objects.Files.pieces`."""
        return self._files.pieces(self._pointer)

    def url(self, expires: int) -> str:
        """A link for ``expires`` seconds; see :meth:`celery_s3.files.objects.Files.url`."""
        return self._files.url(self._pointer, expires)

    def pointer(self) -> dict[str, Any]:
        """What travels in its place, as JSON has it."""
        return self._pointer.dumps()

    def __repr__(self) -> str:
        return f"{self.name!r}, {self.size:,} bytes, {self._pointer.at}{self._pointer.key}"


class Damaged:
    """Something in the place of a pointer that is none: every use of it raises :class:`FileNotRead`.

    Decoding must not raise: a worker's main process would lose the message. Sent on, as from there to a child, it is
    what it was.
    """

    def __init__(self, value: Any, why: str) -> None:
        self._value = value
        self._why = why

    def _raise(self, *_: object) -> NoReturn:
        raise FileNotRead(f"the pointer to a file is damaged: {self._why}. Who else writes results or messages?")

    name = content_type = size = sha256 = property(_raise)
    pieces = url = _raise

    def pointer(self) -> Any:
        """What came, as it came."""
        return self._value

    def __repr__(self) -> str:
        return "with a damaged pointer"


Content = Local | Remote | Damaged


def _guessed(name: str) -> str:
    kind, encoding = mimetypes.guess_type(name)
    if encoding == "gzip":
        return "application/gzip"
    return kind if kind and not encoding else UNTYPED
