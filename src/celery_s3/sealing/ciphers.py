"""The two ways to seal a frame, each with a key of its own for every object.

==========  =======================================  ==================================================
``A256GCM``  AES-256-GCM (see :mod:`.aes`)            the object's key is random, and wrapped by AES Key
                                                     Wrap (RFC 3394) under a key of the ring
``HS256``    the frame as it is, and its HMAC-SHA256  the object's key is derived from a key of the ring
                                                     and 32 random bytes
==========  =======================================  ==================================================

A frame's nonce is its number and whether it is the last one. An object's key seals each number once, in one write,
which is tried again with the same bytes: so no pair of key and nonce ever occurs twice. Both ways add 16 bytes to a
frame; the HMAC is cut to them.
"""

from __future__ import annotations

import hmac
import os
from typing import Protocol

__all__ = ["ENCRYPTION", "KEY_BYTES", "SIGNATURE", "TAG_BYTES", "Broken", "Cipher", "Signature", "derived"]

#: The names that an object's header has for them: JOSE's.
ENCRYPTION = "A256GCM"
SIGNATURE = "HS256"

KEY_BYTES = 32
TAG_BYTES = 16


class Broken(ValueError):
    """This is not what was sealed, or not with this key, or not in this place."""


class Cipher(Protocol):
    """Seals and opens the frames of one object."""

    @classmethod
    def new(cls, ring_key: bytes) -> tuple[bytes, Cipher]:
        """A cipher with a fresh key, and what the object's header must say for :meth:`of`."""
        ...

    @classmethod
    def of(cls, ring_key: bytes, said: bytes) -> Cipher:
        """The cipher with the key of an object whose header says this.

        Raises:
            Broken: the header was not made with that key of the ring.
        """
        ...

    def seal(self, nonce: bytes, frame: bytes | memoryview, context: bytes) -> bytes:
        """The frame, and :data:`TAG_BYTES` more."""
        ...

    def open(self, nonce: bytes, sealed: bytes | memoryview, context: bytes) -> bytes:
        """The frame as it was.

        Raises:
            Broken: frame, nonce or context are not those that were sealed.
        """
        ...


class Signature:
    """HMAC-SHA256, by the standard library alone."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def new(cls, ring_key: bytes) -> tuple[bytes, Signature]:
        said = os.urandom(KEY_BYTES)
        return said, cls.of(ring_key, said)

    @classmethod
    def of(cls, ring_key: bytes, said: bytes) -> Signature:
        return cls(derived(ring_key, b"sign", said))

    def seal(self, nonce: bytes, frame: bytes | memoryview, context: bytes) -> bytes:
        return b"".join((frame, self._tag(nonce, frame, context)))

    def open(self, nonce: bytes, sealed: bytes | memoryview, context: bytes) -> bytes:
        frame, tag = sealed[:-TAG_BYTES], sealed[-TAG_BYTES:]
        if not hmac.compare_digest(tag, self._tag(nonce, frame, context)):
            raise Broken("a frame's signature is wrong")
        return bytes(frame)

    def _tag(self, nonce: bytes, frame: bytes | memoryview, context: bytes) -> bytes:
        # context and nonce are always of the same length: no two triples make the same text
        return hmac.digest(self._key, b"".join((context, nonce, frame)), "sha256")[:TAG_BYTES]


def derived(ring_key: bytes, purpose: bytes, salt: bytes = b"") -> bytes:
    """A key for one purpose, so that no key is used by two algorithms; ``purpose`` has four letters."""
    return hmac.digest(ring_key, b"celery-s3 v1 " + purpose + salt, "sha256")
