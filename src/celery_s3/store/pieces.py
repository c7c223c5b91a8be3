"""Bodies that come in chunks of any length: measured, and cut into pieces of one length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .api import Chunk

__all__ = ["cut", "measured"]


def measured(key: str, chunks: Iterable[Chunk], size: int) -> Iterator[Chunk]:
    """The chunks, which must have ``size`` bytes in all.

    Raises:
        ValueError: they have more or fewer.
    """
    come = 0
    for chunk in chunks:
        come += memoryview(chunk).nbytes
        if come > size:
            break
        yield chunk
    if come != size:
        told = f"more than {size:,} bytes" if come > size else f"{come:,} bytes in place of {size:,}"
        raise ValueError(f"{key}: {told} came: did the file change while it was read? `size` must be exact, or None")


def cut(chunks: Iterable[Chunk], length: int) -> Iterator[Chunk]:
    """Pieces of ``length`` bytes, the last one perhaps shorter, none empty; copied only where chunks meet in one."""
    held: list[Chunk] = []
    room = length
    for chunk in chunks:
        view = memoryview(chunk).cast("B")
        while len(view) >= room:
            held.append(view[:room])
            view = view[room:]
            room = length
            yield _joined(held)
        if view:
            held.append(view)
            room -= len(view)
    if held:
        yield _joined(held)


def _joined(held: list[Chunk]) -> Chunk:
    """What was held, as one piece; the list lets go of it."""
    whole = held[0] if len(held) == 1 else b"".join(held)
    held.clear()
    return whole
