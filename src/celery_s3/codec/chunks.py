"""A large body on its way to S3: cut into chunks while it is sent, so that there is no second copy of it."""

from __future__ import annotations

from collections.abc import Iterator

from kombu.utils.encoding import str_to_bytes

from celery_s3.store.api import Chunk

__all__ = ["LARGE", "Chunks", "one_body"]

#: Bytes up to which a body goes up in one request; also the size up to which a value counts as small elsewhere.
LARGE = 16 * 1024 * 1024
#: Characters of a text that are encoded at a time.
STEP = 8 * 1024 * 1024


class Chunks:
    """The chunks of a body, as often as somebody asks for them: a write that loses a race begins anew.

    Arguments:
        pieces: the body, one after the other; text must be ASCII.

    Attributes:
        size: bytes in all.
    """

    def __init__(self, *pieces: bytes | str) -> None:
        self._pieces = pieces
        self.size = sum(map(len, pieces))

    def __iter__(self) -> Iterator[Chunk]:
        for piece in self._pieces:
            if isinstance(piece, str):
                for start in range(0, len(piece), STEP):
                    yield piece[start : start + STEP].encode()
            else:
                yield piece


def one_body(*pieces: bytes | str) -> bytes | Chunks:
    """Pieces as one body: bytes, or chunks where it is large.

    Raises:
        UnicodeEncodeError: a text holds half a character.
    """
    if len(pieces) == 1 and len(pieces[0]) <= LARGE:
        body: bytes = str_to_bytes(pieces[0])
        return body
    # ASCII text is not encoded yet, since its bytes would be a copy; any other text must be, to know its size.
    chunks = Chunks(*(piece if isinstance(piece, str) and piece.isascii() else str_to_bytes(piece) for piece in pieces))
    return chunks if chunks.size > LARGE else b"".join(chunks)
