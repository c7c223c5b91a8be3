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
from typing import NoReturn, Protocol

from celery_s3.settings.secret import MASK

__all__ = ["ENCRYPTION", "KEY_BYTES", "SIGNATURE", "TAG_BYTES", "Broken", "Cipher", "SecretKey", "Signature"]

#: The names that an object's header has for them: JOSE's.
ENCRYPTION = "A256GCM"
SIGNATURE = "HS256"

KEY_BYTES = 32
TAG_BYTES = 16


class Broken(ValueError):
    """What was to be opened is not what was sealed, or not with this key, or not in this place."""


class SecretKey:
    """Secret bytes that mask themselves wherever they are printed, as by an error tracker, and are not pickled."""

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def reveal(self) -> bytes:
        """The bytes, to be kept out of locals of what may raise."""
        return self._secret

    def digest(self, data: bytes) -> bytes:
        """The HMAC-SHA256 of the data."""
        return hmac.digest(self._secret, data, "sha256")

    def derived(self, purpose: bytes, salt: bytes = b"") -> SecretKey:
        """A key of 32 bytes for one purpose, so that no key is used by two algorithms.

        Arguments:
            purpose: four letters: all have the same length, so that no purpose and salt look like another purpose.
            salt: any bytes.
        """
        return SecretKey(self.digest(b"celery-s3 v1 " + purpose + salt))

    def __repr__(self) -> str:
        return MASK

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecretKey) and hmac.compare_digest(other._secret, self._secret)

    def __hash__(self) -> int:
        return hash(self._secret)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret key is not pickled")


class Cipher(Protocol):
    """Seals and opens the segments of one object."""

    @classmethod
    def new(cls, ring_key: SecretKey) -> tuple[bytes, Cipher]:
        """For a new object: the ``key_info`` that its header needs for :meth:`of`, and a cipher with a fresh key.

        Arguments:
            ring_key: of 32 bytes.
        """
        ...

    @classmethod
    def of(cls, ring_key: SecretKey, key_info: bytes) -> Cipher:
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

    def __init__(self, key: SecretKey) -> None:
        self._key = key

    @classmethod
    def new(cls, ring_key: SecretKey) -> tuple[bytes, Signature]:
        """``key_info`` is 32 random bytes, from which and the ring's key the object's key is derived."""
        key_info = os.urandom(KEY_BYTES)
        return key_info, cls.of(ring_key, key_info)

    @classmethod
    def of(cls, ring_key: SecretKey, key_info: bytes) -> Signature:
        """Derive the object's key; it never raises, a wrong key shows when a segment is opened."""
        return cls(ring_key.derived(b"sign", key_info))

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
        return self._key.digest(b"".join((context, nonce, segment)))[:TAG_BYTES]
