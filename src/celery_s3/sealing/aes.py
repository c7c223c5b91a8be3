"""AES-256-GCM with a random key for every object: the one module that needs the package cryptography."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from celery_s3.interruptions import forget_locals

from .ciphers import KEY_BYTES, Broken, SecretKey

__all__ = ["Encryption"]

T = TypeVar("T")


@lru_cache(maxsize=32)
def _wrapping(ring_key: SecretKey) -> SecretKey:
    return ring_key.derived(b"wrap")


class Encryption:
    """A :class:`~celery_s3.sealing.ciphers.Cipher`; the key of an object is random and wrapped by one of the ring."""

    def __init__(self, key: SecretKey) -> None:
        self._gcm = AESGCM(key.reveal())

    @classmethod
    def new(cls, ring_key: SecretKey) -> tuple[bytes, Encryption]:
        """``key_info`` is the object's random key, wrapped by RFC 3394: 40 bytes."""
        key = SecretKey(os.urandom(KEY_BYTES))
        return _forgetting(lambda: aes_key_wrap(_wrapping(ring_key).reveal(), key.reveal())), cls(key)

    @classmethod
    def of(cls, ring_key: SecretKey, key_info: bytes) -> Encryption:
        """Unwrap the object's key.

        Raises:
            Broken: it was wrapped by another key of the ring.
        """
        try:
            key = _forgetting(lambda: SecretKey(aes_key_unwrap(_wrapping(ring_key).reveal(), key_info)))
            return cls(key)
        except (InvalidUnwrap, ValueError) as exc:
            raise Broken("the object's key cannot be unwrapped") from exc

    def seal(self, nonce: bytes, segment: bytes | memoryview, context: bytes) -> bytes:
        """The ciphertext and GCM's tag of 16 bytes."""
        return self._gcm.encrypt(nonce, segment, context)

    def open(self, nonce: bytes, sealed: bytes | memoryview, context: bytes) -> bytes:
        """Decrypt.

        Raises:
            Broken: segment, nonce or context are not those that were sealed.
        """
        try:
            return self._gcm.decrypt(nonce, sealed, context)
        except InvalidTag as exc:
            raise Broken("a segment does not open") from exc


def _forgetting(action: Callable[[], T]) -> T:
    """What ``action`` returns; whatever it raises holds none of the keys that are locals of cryptography's frames."""
    handled = sys.exception()
    try:
        return action()
    except BaseException as exc:
        forget_locals(exc, handled)
        raise
