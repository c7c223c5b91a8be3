"""The two ways to seal a segment, each with a key of its own for every object.

==========  =========================================  ==========================================================
``A256GCM``  AES-256-GCM (see :mod:`.aes`)              the object's key is random, and wrapped by AES Key Wrap
                                                       (RFC 3394) under a key of the ring
``HS256``    the segment as it is, and its HMAC-SHA256  the object's key is derived from a key of the ring and 32
                                                       random bytes
==========  =========================================  ==========================================================

A segment's nonce is its number and whether it is the last one. An object's key seals each number once, in one write,
which is tried again with the same bytes: so no pair of key and nonce ever occurs twice. Both ways add 16 bytes to a
segment; the HMAC is cut to them.
"""

from __future__ import annotations

import hmac
import os
from typing import Protocol

__all__ = ["ENCRYPTION", "KEY_BYTES", "SIGNATURE", "TAG_BYTES", "Broken", "Cipher", "Signature", "derive"]

#: The names that an object's header has for them: JOSE's.
ENCRYPTION = "A256GCM"
SIGNATURE = "HS256"

KEY_BYTES = 32
TAG_BYTES = 16


class Broken(ValueError):
    """What was to be opened is not what was sealed, or not with this key, or not in this place."""


class Cipher(Protocol):
    """Seals and opens the segments of one object."""

    @classmethod
    def new(cls, ring_key: bytes) -> tuple[bytes, Cipher]:
        """For a new object: the ``key_info`` that its header needs for :meth:`of`, and a cipher with a fresh key.

        Arguments:
            ring_key: 32 bytes.
        """
        ...

    @classmethod
    def of(cls, ring_key: bytes, key_info: bytes) -> Cipher:
        """For a stored object: the cipher with its key.

        Raises:
            Broken: the header was not made with that key of the ring.
        """
        ...

    def seal(self, nonce: bytes, segment: bytes | memoryview, context: bytes) -> bytes:
        """The sealed segment, :data:`TAG_BYTES` longer.

        Arguments:
            nonce: 12 bytes, never twice with one cipher.
            context: 32 bytes, the same for all segments of an object.
        """
        ...

    def open(self, nonce: bytes, sealed: bytes | memoryview, context: bytes) -> bytes:
        """The segment as it was before :meth:`seal`.

        Raises:
            Broken: segment, nonce or context are not those that were sealed.
        """
        ...


class Signature:
    """A :class:`Cipher` that hides nothing: HMAC-SHA256, by the standard library alone."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def new(cls, ring_key: bytes) -> tuple[bytes, Signature]:
        """``key_info`` is 32 random bytes, from which and the ring's key the object's key is derived."""
        key_info = os.urandom(KEY_BYTES)
        return key_info, cls.of(ring_key, key_info)

    @classmethod
    def of(cls, ring_key: bytes, key_info: bytes) -> Signature:
        """Derive the object's key; it never raises, a wrong key shows when a segment is opened."""
        return cls(derive(ring_key, b"sign", key_info))

    def seal(self, nonce: bytes, segment: bytes | memoryview, context: bytes) -> bytes:
        """The segment as it is and 16 bytes of its HMAC-SHA256."""
        return b"".join((segment, self._tag(nonce, segment, context)))

    def open(self, nonce: bytes, sealed: bytes | memoryview, context: bytes) -> bytes:
        """Check the HMAC.

        Raises:
            Broken: segment, nonce or context are not those that were sealed.
        """
        segment, tag = sealed[:-TAG_BYTES], sealed[-TAG_BYTES:]
        if not hmac.compare_digest(tag, self._tag(nonce, segment, context)):
            raise Broken("a segment's signature is wrong")
        return bytes(segment)

    def _tag(self, nonce: bytes, segment: bytes | memoryview, context: bytes) -> bytes:
        # without separators: context and nonce always have the same length, so no two triples make the same text
        return hmac.digest(self._key, b"".join((context, nonce, segment)), "sha256")[:TAG_BYTES]


def derive(ring_key: bytes, purpose: bytes, salt: bytes = b"") -> bytes:
    """A key of 32 bytes for one purpose, so that no key is used by two algorithms.

    Arguments:
        ring_key: 32 bytes.
        purpose: four letters: all have the same length, so that no purpose and salt look like another purpose.
        salt: any bytes.
    """
    return hmac.digest(ring_key, b"celery-s3 v1 " + purpose + salt, "sha256")
