"""The names of what messages point to: made of the content, so that the same bytes are one object.

::

    without keys, or with one of AWS KMS   SHA-256 of the bytes
    encrypted with a key in `seal_keys`    HMAC-SHA-256 of the bytes, with a key derived from the first of `seal_keys`

A plain hash lets whoever may list the bucket find out whether a guess of a message's content is right. With AWS KMS it
cannot be helped: its key never leaves KMS, and the data keys that it gives out change every five minutes.
"""

from __future__ import annotations

import hashlib
import hmac
from binascii import a2b_base64
from collections.abc import Iterator

from celery_s3.sealing.ciphers import SecretKey
from celery_s3.settings import Settings

__all__ = ["Names"]


class Names:
    """Names for contents, 64 hexadecimal digits each.

    Arguments:
        settings: `seal_keys` and `seal`. A name is checked with all of the keys: any of them may have made it.
    """

    def __init__(self, settings: Settings) -> None:
        keys = list(_keys(settings))
        self._names_with = keys[0] if keys and settings.seal == "encrypt" else None
        self._known = [*filter(None, keys), None]

    def of(self, content: bytes) -> str:
        """The name for new content."""
        return _digest(self._names_with, content)

    def fits(self, name: str, content: bytes) -> bool:
        """Whether it is the name of that content, made with any of the keys or without one."""
        return any(hmac.compare_digest(name, _digest(key, content)) for key in self._known)


def _digest(key: SecretKey | None, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if key is None else key.digest(content).hex()


def _keys(settings: Settings) -> Iterator[SecretKey | None]:
    """For each of `seal_keys` the key that makes names; ``None`` for those of AWS KMS."""
    for secret in settings.seal_keys:
        of_kms = secret.reveal().startswith("kms://")
        yield None if of_kms else SecretKey(a2b_base64(secret.reveal())).derived(b"mail")
