"""What is uploaded: a path, or a file object, read from its beginning or from where it stands."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol

from celery.exceptions import SoftTimeLimitExceeded

from celery_s3.errors import FileNotStored

__all__ = ["PIECE", "PathSource", "Source", "StreamSource", "check_size"]

#: Bytes that are read at a time: those of one part of an upload.
PIECE = 8 * 1024 * 1024


class Source(Protocol):
    """A file that is not uploaded yet."""

    @property
    def spent(self) -> bool:
        """Whether it has been read, and cannot be read again."""
        ...

    def size(self) -> int | None:
        """Bytes, ``None`` where that is not known before it is read."""
        ...

    def pieces(self) -> Iterator[bytes]:
        """Its content.

        Raises:
            FileNotStored: it cannot be read, or has another size than it should.
        """
        ...


class PathSource:
    """A :class:`Source` that is a file, by its path.

    Arguments:
        path: absolute.
        expected: the bytes that it must have, ``None`` for any number.

    Raises:
        OSError: it is not there, or is a directory.
    """

    spent = False

    def __init__(self, path: Path, expected: int | None) -> None:
        self.path = path
        self._expected = expected
        if stat.S_ISDIR(os.stat(path).st_mode):
            raise IsADirectoryError(f"S3File takes a file, and {str(path)!r} is a directory: make an archive of it")

    def __repr__(self) -> str:
        return repr(str(self.path))

    def size(self) -> int | None:
        """The expected size, else that of the file as it is now; ``None`` of a device or a pipe."""
        return self._expected if self._expected is not None else _size_of(os.stat(self.path))

    def pieces(self) -> Iterator[bytes]:
        """The content; FileNotStored also where the file was written while it was read."""
        try:
            with open(self.path, "rb", buffering=0) as stream:
                before = os.fstat(stream.fileno())
                yield from _pieces(stream, self._expected if self._expected is not None else _size_of(before), self)
                if _was_written(before, os.fstat(stream.fileno())):
                    raise FileNotStored(f"{self!r} was written while it was read. Return it when it is complete")
        except OSError as exc:
            raise FileNotStored(f"the file {self} could not be read: {exc.strerror or exc}") from exc


class StreamSource:
    """A :class:`Source` that is a file object, read from where it stands; it is not closed here.

    Arguments:
        expected: the bytes that it must give from there, ``None`` for any number.

    Raises:
        TypeError: it gives text.
        ValueError: it is closed, or stands at its end.
    """

    def __init__(self, stream: IO[bytes], expected: int | None) -> None:
        try:
            nothing = getattr(stream, "read", lambda _: "")(0)
        except (OSError, ValueError) as exc:
            raise ValueError(f"S3File takes a file object that is open for reading, not {stream!r}: {exc}") from exc
        if isinstance(nothing, str):
            raise TypeError(f"S3File takes a path or a binary file object, not {stream!r}: open it in mode 'rb'")
        self._stream = stream
        self._expected = expected
        self._start = stream.tell() if _is_seekable(stream) else None
        self._read = False
        if self._start and expected is None and self.size() == 0:
            raise ValueError(f"the file object {stream!r} stands at its end: call `seek(0)` when it is written")

    def __repr__(self) -> str:
        return f"<{type(self._stream).__name__}>"

    @property
    def spent(self) -> bool:
        """Whether it was read and cannot seek back."""
        return self._read and self._start is None

    def size(self) -> int | None:
        """The expected size, else what is left from where the stream stood; ``None`` where it cannot seek."""
        if self._expected is not None or self._start is None:
            return self._expected
        here = self._stream.tell()
        try:
            return max(0, self._stream.seek(0, os.SEEK_END) - self._start)
        finally:
            self._stream.seek(here)

    def pieces(self) -> Iterator[bytes]:
        """The content from where the stream stood; FileNotStored also where it was read and cannot seek back."""
        try:
            size = self.size()
            if self._start is not None:
                self._stream.seek(self._start)
            elif self._read:
                raise FileNotStored(
                    f"the stream {self} can be read once, and was: each task, and each call of a client an hour later,"
                    " uploads a file of its own. Give S3File a path, or a file object that can `seek`"
                )
            self._read = True
            yield from _pieces(self._stream, size, self)
        except (OSError, ValueError) as exc:  # ValueError: it is closed
            raise FileNotStored(f"the stream {self} could not be read: {exc}") from exc


def check_size(size: int | None) -> int | None:
    """A size in bytes, which must be one; ``None`` where it is not given.

    Raises:
        TypeError: it is no number of bytes.
        ValueError: it is a negative one.
    """
    if size is not None and type(size) is not int:
        raise TypeError(f"size is {size!r:.80}: give a number of bytes as an int")
    if size is not None and size < 0:
        raise ValueError(f"size is {size}: give a number of bytes")
    return size


def _is_seekable(stream: Any) -> bool:
    return bool(getattr(stream, "seekable", lambda: False)())


def _size_of(status: os.stat_result) -> int | None:
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _was_written(before: os.stat_result, after: os.stat_result) -> bool:
    """Whether somebody has written the file in between; a device or a pipe does not tell."""
    if not stat.S_ISREG(before.st_mode):
        return False
    return (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size)


def _pieces(stream: IO[bytes], size: int | None, source: Source) -> Iterator[bytes]:
    done = 0
    while piece := _read(stream, source):
        if not isinstance(piece, bytes | bytearray | memoryview):
            raise FileNotStored(f"reading {source!r} gives {type(piece).__name__} in place of bytes")
        done += len(piece)
        if size is not None and done > size:
            break
        yield bytes(piece)
    if piece is None:
        raise FileNotStored(f"reading {source!r} gives nothing for now: it must wait for its data")
    if size is not None and done != size:
        more = "more than" if done > size else f"{done:,} of"
        raise FileNotStored(
            f"{source!r} has {more} {size:,} bytes: it was written while it was read, or `size` is wrong."
            " Return it when it is complete"
        )


def _read(stream: IO[bytes], source: Source) -> Any:
    """What ``read`` gives, of whatever type: file objects are users' own, and raise anything."""
    try:
        return stream.read(PIECE)
    except (OSError, ValueError, SoftTimeLimitExceeded):  # the sources explain the first two; the last ends the task
        raise
    except Exception as exc:
        raise FileNotStored(f"{source!r} could not be read: {exc!r}") from exc
