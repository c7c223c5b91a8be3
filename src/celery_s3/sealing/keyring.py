"""The keys of this process: the first one seals, all of them open."""

from __future__ import annotations

from binascii import a2b_base64
from collections.abc import Sequence
from typing import Protocol

from celery_s3.settings import Secret, Settings

from .ciphers import Broken, SecretKey
from .kms import KMSKey

__all__ = ["KeyRing", "SealKey", "StaticKey", "keyring"]


class SealKey(Protocol):
    """One key of the ring; ``id`` names it in the objects that it sealed, and tells nothing about it."""

    id: str

    def sealing(self) -> tuple[bytes, SecretKey]:
        """A token and 32 secret bytes to seal with; by the token, :meth:`opening` finds them again.

        Raises:
            StoreError: the key could not be had.
        """
        ...

    def opening(self, token: bytes) -> SecretKey:
        """The 32 secret bytes that :meth:`sealing` gave with this token.

        Raises:
            Broken: this key never gave that token.
            StoreError: the key could not be had.
        """
        ...

    def close(self) -> None:
        """Let go of connections; the key may be used again."""
        ...


class StaticKey:
    """A :class:`SealKey` that the settings hold: 32 bytes."""

    def __init__(self, secret: SecretKey) -> None:
        self._secret = secret
        # Derived from the key and not chosen: all who have the key agree on its id, and two keys never share one.
        self.id = secret.derived(b"name").reveal()[:8].hex()

    def sealing(self) -> tuple[bytes, SecretKey]:
        """An empty token and the key itself."""
        return b"", self._secret

    def opening(self, token: bytes) -> SecretKey:
        """The key itself.

        Raises:
            Broken: there is a token, so the object was sealed by AWS KMS.
        """
        if token:
            raise Broken("its header has a token that its key has no use for")
        return self._secret

    def close(self) -> None:
        """Nothing to do."""


class KeyRing:
    """Finds a key by its id.

    Arguments:
        keys: at least one.

    Attributes:
        first: the key that seals.
    """

    def __init__(self, keys: Sequence[SealKey]) -> None:
        self.first = keys[0]
        self._keys = {key.id: key for key in keys}

    def get(self, id: str) -> SealKey | None:
        """The key with that id, ``None`` where this process has none."""
        return self._keys.get(id)

    def close(self) -> None:
        """Let go of connections; the keys may be used again."""
        for key in self._keys.values():
            key.close()


def keyring(settings: Settings) -> KeyRing:
    """The keys that the settings name; no request."""
    return KeyRing([_key(secret, settings) for secret in settings.seal_keys])


def _key(said: Secret, settings: Settings) -> SealKey:
    if said.reveal().startswith("kms://"):
        return KMSKey(said.reveal().removeprefix("kms://"), settings)
    return StaticKey(SecretKey(a2b_base64(said.reveal())))
