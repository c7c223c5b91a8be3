"""What is in a sealed object: pure arithmetic and bytes.

The body is cut into segments of 16 KiB, the last one shorter; each is sealed by itself and 16 bytes longer for it, so
that a range can be read and checked alone. An empty body is one empty segment. (It is the STREAM construction of
Hoang, Reyhanitabar, Rogaway and Vizár, 2015.) How to open them stands in the user metadata, which comes with every
range::

    celery-seal: 1.A256GCM.<id of the ring's key>.<the object's key, wrapped>.<the ring's key, wrapped by KMS>

Every segment is bound to its number, to being the last one, and to the context: the SHA-256 of this JSON (ASCII,
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
    "SEGMENT",
    "STORED_SEGMENT",
    "Header",
    "Span",
    "context",
    "opened",
    "plain_size",
    "sealed",
    "sealed_chunks",
    "stored_size",
]

VERSION = "1"
#: Bytes of a segment before it is sealed.
SEGMENT = 16 * 1024
#: Bytes of it in the stored object.
STORED_SEGMENT = SEGMENT + TAG_BYTES

#: 12 bytes: the segment's number, and whether it is the last one.
_NONCE = struct.Struct(">3xQ?")
_to_json = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Header:
    """How an object was sealed; nothing in it is secret.

    Attributes:
        algorithm: one of the names in :mod:`.ciphers`.
        key_id: 16 hexadecimal digits, which name a key of the ring.
        key_info: from what that key of the ring gives the object's key: the key wrapped by it, or a salt.
        token: that key of the ring as AWS KMS has encrypted it; empty where the settings hold it.
    """

    algorithm: str
    key_id: str
    key_info: bytes
    token: bytes

    def dumps(self) -> str:
        """The header as it stands in the user metadata: ASCII without spaces."""
        return ".".join((VERSION, self.algorithm, self.key_id, _text(self.key_info), _text(self.token)))

    @classmethod
    def loads(cls, text: str) -> Header:
        """The header of a text in the user metadata.

        Raises:
            Broken: it is no header of this version.
        """
        version, *fields = text.split(".")
        if version != VERSION or len(fields) != 4:
            raise Broken("its header is none that this release can read")
        algorithm, key_id, key_info, token = fields
        return cls(algorithm, key_id, _bytes(key_info), _bytes(token))


def _text(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    try:
        return urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError) as exc:
        raise Broken("its header is not in base64") from exc


def context(header: str, bucket: str, key: str, content_type: str, metadata: Mapping[str, str]) -> bytes:
    """What every segment is bound to (the associated data): 32 bytes.

    Arguments:
        header: as :meth:`Header.dumps` has it.
        metadata: all other user metadata.
    """
    pairs = sorted((name.lower(), value) for name, value in metadata.items())
    text = _to_json([header, bucket, key, content_type, pairs])
    return hashlib.sha256(text.encode()).digest()


def sealed(cipher: Cipher, context: bytes, body: bytes) -> bytes:
    """The body as it is stored; ``context`` as :func:`context` has it."""
    if len(body) <= SEGMENT:
        return cipher.seal(_NONCE.pack(0, True), body, context)
    last = (len(body) - 1) // SEGMENT
    view = memoryview(body)
    return _joined(
        cipher.seal(_NONCE.pack(number, number == last), view[number * SEGMENT : (number + 1) * SEGMENT], context)
        for number in range(last + 1)
    )


def sealed_chunks(cipher: Cipher, context: bytes, chunks: Iterable[Chunk]) -> Iterator[bytes]:
    """As :func:`sealed`, of a body that comes in chunks of any length: one segment after the other."""
    segments = cut(chunks, SEGMENT)
    segment = next(segments, b"")
    number = 0
    for following in segments:
        yield cipher.seal(_NONCE.pack(number, False), segment, context)
        segment = following
        number += 1
    yield cipher.seal(_NONCE.pack(number, True), segment, context)


def opened(cipher: Cipher, context: bytes, stored: bytes, first: int, size: int) -> bytes:
    """The plain bytes of some segments.

    Arguments:
        stored: whole segments, one after the other.
        first: the number of the first one, counted from 0.
        size: bytes of the whole stored object.

    Raises:
        Broken: they are not what was sealed.
    """
    last = (size - 1) // STORED_SEGMENT
    if len(stored) <= STORED_SEGMENT:
        return cipher.open(_NONCE.pack(first, first == last), stored, context)
    view = memoryview(stored)
    return _joined(
        cipher.open(_NONCE.pack(number, number == last), view[start : start + STORED_SEGMENT], context)
        for number, start in enumerate(range(0, len(stored), STORED_SEGMENT), first)
    )


def _joined(pieces: Iterable[bytes]) -> bytes:
    """The pieces as one; unlike with ``join``, each is let go of once it is copied."""
    whole = io.BytesIO()
    whole.writelines(pieces)
    return whole.getvalue()


def stored_size(size: int) -> int:
    """The bytes in which a body of ``size`` bytes is stored."""
    return size + TAG_BYTES * max(1, -(-size // SEGMENT))


def plain_size(size: int) -> int:
    """The size of a body that is stored in so many bytes.

    Raises:
        Broken: no body is.
    """
    segments, rest = divmod(size, STORED_SEGMENT)
    # only an empty body has an empty segment
    if (0 < rest < TAG_BYTES) or (rest == TAG_BYTES and segments) or not size:
        raise Broken("it has a size that no sealed object has")
    return size - TAG_BYTES * (segments + bool(rest))


@dataclass(frozen=True, slots=True)
class Span:
    """The segments that hold a range of a body.

    Attributes:
        start: the first byte of the range.
        length: bytes of the range, ``None``: to the end.
    """

    start: int
    length: int | None

    @property
    def first(self) -> int:
        """The number of the first segment."""
        return self.start // SEGMENT

    @property
    def low(self) -> int:
        """The byte of the stored object where the first segment begins."""
        return self.first * STORED_SEGMENT

    @property
    def high(self) -> int | None:
        """The byte of the stored object before which the last segment ends, if it has so many; ``None``: to the end."""
        if self.length is None:
            return None
        return ((self.start + max(self.length, 1) - 1) // SEGMENT + 1) * STORED_SEGMENT

    def of(self, plain: bytes) -> bytes:
        """The range, cut out of what its segments hold."""
        skipped = self.start - self.first * SEGMENT
        stop = None if self.length is None else skipped + self.length
        return plain if not skipped and (stop is None or stop >= len(plain)) else plain[skipped:stop]
