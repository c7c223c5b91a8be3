"""What is in a sealed object: pure arithmetic and bytes.

The body is cut into frames of 16 KiB, the last one shorter; each is sealed by itself and 16 bytes longer for it, so
that a range can be read and checked alone. An empty body is one empty frame. How to open them stands in the user
metadata, which comes with every range::

    celery-seal: 1.A256GCM.<id of the ring's key>.<the object's key, wrapped>.<the ring's key, wrapped by KMS>

Every frame is bound to its number, to being the last one, and to the context: the SHA-256 of this JSON (ASCII,
without spaces), so that nothing of it can be changed or exchanged::

    [header, bucket, key, content type, [[name, value], …]]    the user metadata sorted by lower-case name
"""

from __future__ import annotations

import binascii
import hashlib
import io
import json
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from celery_s3.store.api import Chunk
from celery_s3.store.pieces import cut

from .ciphers import TAG_BYTES, Broken, Cipher

__all__ = [
    "FRAME",
    "STORED_FRAME",
    "Header",
    "Span",
    "context",
    "opened",
    "plain_size",
    "sealed",
    "sealed_chunks",
    "stored_size",
]

#: The name in the user metadata.

VERSION = "1"
FRAME = 16 * 1024
STORED_FRAME = FRAME + TAG_BYTES

_NONCE = struct.Struct(">3xQ?")
_to_json = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Header:
    """How an object was sealed; nothing in it is secret.

    Attributes:
        said: what the algorithm needs, with a key of the ring, to know the object's key.
        token: what the ring's key needs to be known; empty where it is in the settings.
    """

    algorithm: str
    key_id: str
    said: bytes
    token: bytes

    def dumps(self) -> str:
        return ".".join((VERSION, self.algorithm, self.key_id, _text(self.said), _text(self.token)))

    @classmethod
    def loads(cls, text: str) -> Header:
        """The header in its metadata.

        Raises:
            Broken: it is none.
        """
        version, *fields = text.split(".")
        if version != VERSION or len(fields) != 4:
            raise Broken("its header is none that this release can read")
        algorithm, key_id, said, token = fields
        return cls(algorithm, key_id, _bytes(said), _bytes(token))


def _text(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    try:
        return urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError) as exc:
        raise Broken("its header is not in base64") from exc


def context(header: str, bucket: str, key: str, content_type: str, metadata: Mapping[str, str]) -> bytes:
    """What every frame is bound to, 32 bytes; ``metadata`` without the header."""
    pairs = sorted((name.lower(), value) for name, value in metadata.items())
    text = _to_json([header, bucket, key, content_type, pairs])
    return hashlib.sha256(text.encode()).digest()


def sealed(cipher: Cipher, context: bytes, body: bytes) -> bytes:
    """The body as it is stored."""
    if len(body) <= FRAME:
        return cipher.seal(_NONCE.pack(0, True), body, context)
    last = (len(body) - 1) // FRAME
    view = memoryview(body)
    return _joined(
        cipher.seal(_NONCE.pack(number, number == last), view[number * FRAME : (number + 1) * FRAME], context)
        for number in range(last + 1)
    )


def sealed_chunks(cipher: Cipher, context: bytes, chunks: Iterable[Chunk]) -> Iterator[bytes]:
    """The same of a body that comes in chunks of any length, frame by frame."""
    frames = cut(chunks, FRAME)
    frame = next(frames, b"")
    number = 0
    for following in frames:
        yield cipher.seal(_NONCE.pack(number, False), frame, context)
        frame = following
        number += 1
    yield cipher.seal(_NONCE.pack(number, True), frame, context)


def opened(cipher: Cipher, context: bytes, stored: bytes, first: int, size: int) -> bytes:
    """The plain bytes of some frames.

    Arguments:
        stored: whole frames, one after the other.
        first: the number of the first one.
        size: of the whole stored object, in bytes.

    Raises:
        Broken: they are not what was sealed.
    """
    last = (size - 1) // STORED_FRAME
    if len(stored) <= STORED_FRAME:
        return cipher.open(_NONCE.pack(first, first == last), stored, context)
    view = memoryview(stored)
    return _joined(
        cipher.open(_NONCE.pack(number, number == last), view[start : start + STORED_FRAME], context)
        for number, start in enumerate(range(0, len(stored), STORED_FRAME), first)
    )


def _joined(pieces: Iterable[bytes]) -> bytes:
    """The pieces as one; unlike with ``join``, each is let go of once it is copied."""
    whole = io.BytesIO()
    whole.writelines(pieces)
    return whole.getvalue()


def stored_size(size: int) -> int:
    """The bytes in which a body of ``size`` bytes is stored."""
    return size + TAG_BYTES * max(1, -(-size // FRAME))


def plain_size(size: int) -> int:
    """The size of a body that is stored in so many bytes.

    Raises:
        Broken: nothing is.
    """
    frames, rest = divmod(size, STORED_FRAME)
    # only an empty body has an empty frame
    if (0 < rest < TAG_BYTES) or (rest == TAG_BYTES and frames) or not size:
        raise Broken("it has a size that no sealed object has")
    return size - TAG_BYTES * (frames + bool(rest))


@dataclass(frozen=True, slots=True)
class Span:
    """The frames that hold ``length`` plain bytes from ``start``; ``None``: to the end."""

    start: int
    length: int | None

    @property
    def first(self) -> int:
        """The number of the first frame."""
        return self.start // FRAME

    @property
    def low(self) -> int:
        """Where the first frame begins in the stored object."""
        return self.first * STORED_FRAME

    @property
    def high(self) -> int | None:
        """Where the last frame ends in the stored object, if that has so many bytes."""
        if self.length is None:
            return None
        return ((self.start + max(self.length, 1) - 1) // FRAME + 1) * STORED_FRAME

    def of(self, plain: bytes) -> bytes:
        """The bytes of the span in those of its frames."""
        skipped = self.start - self.first * FRAME
        stop = None if self.length is None else skipped + self.length
        return plain if not skipped and (stop is None or stop >= len(plain)) else plain[skipped:stop]
