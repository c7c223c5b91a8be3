"""A file's content in pieces: in order, checked, as a stream, and into a file; nobody gets the end of a wrong one."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar
from uuid import uuid4

from celery_s3.errors import FileNotRead
from celery_s3.store.parallel import Pool

__all__ = ["PieceReader", "Progress", "checked", "in_order", "replaced", "save"]

T = TypeVar("T")
R = TypeVar("R")

#: Told the bytes done and the bytes in all, ``None`` where that is not known.
Progress = Callable[[int, int | None], object]


def in_order(pool: Pool, fn: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """The results in the order of the items, at most ``ahead`` of them under way or waiting for their turn.

    Raises:
        Whatever ``fn`` raises, when it is that item's turn.
    """
    numbered = enumerate(items)
    waiting: dict[int, Any] = {}
    started = turn = 0

    def next_item() -> tuple[int, T] | None:
        nonlocal started
        item = next(numbered, None) if started - turn < ahead else None
        started += item is not None
        return item

    for (number, _), outcome in pool.stream_from(lambda pair: fn(pair[1]), next_item):
        waiting[number] = outcome
        del outcome  # no local keeps a piece of 8 MiB alive while the next one is waited for
        while turn in waiting:
            turn += 1
            if isinstance(waiting[turn - 1], BaseException):
                raise waiting[turn - 1]
            yield waiting.pop(turn - 1)


def checked(pieces: Iterable[bytes], size: int, sha256: str, where: str) -> Iterator[bytes]:
    """The same pieces; the last one only once all of them together are right.

    Arguments:
        size: bytes that they must have in all.
        sha256: that they must have in all, in hexadecimal digits.
        where: the file's place, for the error's text.

    Raises:
        FileNotRead: they have another size or SHA-256; before the last piece is given.
    """
    digest, done = hashlib.sha256(), 0
    held: bytes | None = None
    for piece in pieces:
        if held is not None:
            yield held
        held = piece
        digest.update(piece)
        done += len(piece)
    if done != size or digest.hexdigest() != sha256:
        what = f"it has {done:,} bytes in place of {size:,}" if done != size else "its SHA-256 is another"
        raise FileNotRead(f"{where} is not the file that was stored there: {what}. Find out who else writes there")
    if held:
        yield held


class PieceReader(io.RawIOBase):
    """A binary stream over pieces, from the first to the last; an error is raised again by each later read."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")
        self._error: Exception | None = None

    def readable(self) -> bool:
        """True: it is for nothing else."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer from the current piece; the number of bytes, 0 at the end."""
        while not self._rest:
            piece = self._next()
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        taken = min(len(buffer), len(self._rest))
        buffer[:taken] = self._rest[:taken]
        self._rest = self._rest[taken:]
        return taken

    def _next(self) -> bytes | None:
        if self._error is not None:
            raise self._error
        try:
            return next(self._pieces, None)
        except Exception as exc:
            self._error = exc
            raise

    def close(self) -> None:
        """Close the stream and the iterator, which stops fetching ahead."""
        close = getattr(self._pieces, "close", None)
        if close is not None and not self.closed:
            close()
        self._rest = memoryview(b"")
        super().close()


def save(pieces: Callable[[], Iterable[bytes]], path: Path, size: int | None, progress: Progress | None) -> None:
    """Write pieces to a file that appears, or is replaced, when all of them are there; else nothing changes.

    A file that is replaced gives its mode on; of a symbolic link, it is the file that the link names.

    Arguments:
        pieces: asked for once the file can be written.
        size: bytes in all, for ``progress``.

    Raises:
        OSError: the file cannot be written, or is a directory, a device or a pipe.
    """
    target = Path(os.path.realpath(path))
    with replaced(target, _mode_of(target)) as file:
        done = 0
        for piece in pieces():
            done += file.write(piece)
            if progress is not None:
                progress(done, size)


@contextmanager
def replaced(path: Path, mode: int | None) -> Iterator[IO[bytes]]:
    """A file to write to, which takes the place of the one at ``path`` when the block has ended without an error.

    Arguments:
        mode: of the new file; ``None``: what any new file gets.
    """
    beside = path.with_name(f".{uuid4().hex}.part")  # in the same folder: os.replace works within one file system
    try:
        with open(beside, "xb", opener=partial(os.open, mode=0o666 if mode is None else mode)) as file:
            if mode is not None:
                os.chmod(beside, mode)  # the umask has removed bits of it when the file was opened
            yield file
        os.replace(beside, path)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise


def _mode_of(target: Path) -> int | None:
    """The mode of the file that is to be replaced, ``None`` where there is none."""
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "a file is downloaded to a file, and this is a directory", str(target))
    if not stat.S_ISREG(mode):
        why = "this is a device or a pipe, which cannot be replaced: write the file's chunks into it"
        raise OSError(errno.EINVAL, why, str(target))
    return stat.S_IMODE(mode)
