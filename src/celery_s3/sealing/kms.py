"""Keys of AWS KMS: asked for rarely, and used for a while.

To seal, KMS is asked for a data key (GenerateDataKey), which then stands in for the KMS key: it wraps the keys of
this process's objects for five minutes, and travels in their headers, encrypted. To open, KMS decrypts it (Decrypt),
once in five minutes for each that is met; the last 1,000 are kept. A forked child begins with none.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from celery_s3.errors import KeyRefused, KeyUnavailable, StoreError, Transient
from celery_s3.processes import PerProcess, Remembered
from celery_s3.settings import Settings

from .ciphers import Broken, SecretKey

__all__ = ["KEPT", "LIFETIME", "KMSKey"]

#: Seconds that a data key is used without asking KMS again.
LIFETIME = 300.0
#: How many data keys a process keeps for opening.
KEPT = 1000

#: KMS' answers to a token that it did not make, or not with this key and for this bucket.
_NOT_OURS = ("InvalidCiphertextException", "IncorrectKeyException")


class KMSKey:
    """A :class:`~celery_s3.sealing.keyring.SealKey` that KMS holds.

    Arguments:
        name: the key's id, ARN or alias. Objects are found by it: it must stay as it is for as long as they live.
        clock: seconds, for how long a data key is used.
    """

    def __init__(self, name: str, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self.id = hashlib.sha256(f"kms://{name}".encode()).hexdigest()[:16]
        self._name = name
        self._settings = settings
        self._clock = clock
        self._client = PerProcess(lambda: _client(name, settings))
        self._cache = PerProcess(_Cache)

    def sealing(self) -> tuple[bytes, SecretKey]:
        """The data key in use, made by KMS every five minutes: encrypted (the token), and itself.

        Raises:
            KeyRefused: KMS does not give it.
            KeyUnavailable: KMS does not answer.
        """
        cache = self._cache.get()
        current = cache.current
        with current.lock:
            if self._clock() >= current.until:
                current.token, key = self._ask("GenerateDataKey", "generate_data_key", KeySpec="AES_256")
                self._keep(current, key)
                self._keep(cache.slot(current.token), key)
            return current.token, current.key

    def opening(self, token: bytes) -> SecretKey:
        """The data key that is encrypted in a token.

        Raises:
            Broken: KMS did not make the token, or not with this key and for this bucket.
            KeyRefused: KMS does not decrypt it for these credentials.
            KeyUnavailable: KMS does not answer.
        """
        slot = self._cache.get().slot(token)
        # one request for all threads that meet the same token
        with slot.lock:
            if self._clock() >= slot.until:
                self._keep(slot, self._ask("Decrypt", "decrypt", CiphertextBlob=token)[1])
            return slot.key

    def close(self) -> None:
        """Close the client's connections; a later request makes a new client."""
        client = self._client.peek()
        self._client.drop()
        if client is not None:
            client.close()

    def _keep(self, slot: _Slot, key: SecretKey) -> None:
        slot.key, slot.until = key, self._clock() + LIFETIME

    def _ask(self, operation: str, method: str, **parameters: Any) -> tuple[bytes, SecretKey]:
        """The data key that KMS answers: encrypted, where it says so, and itself."""
        from celery_s3.store.clients.boto3_errors import is_failure
        from celery_s3.store.clients.translate import answered

        # KeyId although Decrypt could do without: a token of a stranger's own KMS key is refused. With the context, the
        # token of another bucket is too.
        parameters |= {"KeyId": self._name, "EncryptionContext": {"celery-s3": self._settings.bucket}}

        def ask() -> tuple[bytes, SecretKey]:
            with _unlogged():
                answer: dict[str, Any] = getattr(self._client.get(), method)(**parameters)
            key = SecretKey(answer.pop("Plaintext"))
            return answer.get("CiphertextBlob", b""), key

        return answered(ask, is_failure, lambda exc: self._translated(exc, operation))

    def _translated(self, exc: BaseException, operation: str) -> Exception:
        from celery_s3.store.clients.boto3_errors import translated
        from celery_s3.store.clients.translate import Operation

        found = translated(exc, Operation(operation, url=_url(self._name, self._settings)), self._settings)
        if found.code in _NOT_OURS:
            return Broken(f"AWS KMS does not know its key: {found.code}")
        kind: type[StoreError] = KeyUnavailable if isinstance(found, Transient) else KeyRefused
        return kind(found.detail or found.what, operation, "", self._name, found.status, found.code)


class _Slot:
    """A data key, used until ``until`` by the clock; its lock lets one thread ask KMS for all that need the key."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.token = b""
        self.key = SecretKey(b"")
        self.until = float("-inf")


class _Cache:
    """One process's data keys: the one that seals, and those that open, by token."""

    def __init__(self) -> None:
        self.current = _Slot()
        self._lock = threading.Lock()
        self._slots: Remembered[bytes, _Slot] = Remembered(KEPT)

    def slot(self, token: bytes) -> _Slot:
        """The slot of a token, new and empty where it was not met before."""
        with self._lock:  # threads that meet a token at the same time share its slot
            slot = self._slots.get(token)
            if slot is None:
                slot = _Slot()
                self._slots.put(token, slot)
            return slot


def _region(name: str, settings: Settings) -> str:
    return name.split(":")[3] if name.startswith("arn:") else settings.region


def _url(name: str, settings: Settings) -> str:
    return f"https://kms.{_region(name, settings)}.amazonaws.com"


def _client(name: str, settings: Settings) -> Any:
    from botocore.config import Config

    from celery_s3.store.clients.network import proxies_to, trusted
    from celery_s3.store.clients.session import client_factory

    verify = trusted(settings) if settings.on_aws else None  # another server's CA says nothing of Amazon's
    if not settings.on_aws:
        # These belong to another server than Amazon's: KMS is asked with the credentials of the AWS environment.
        settings = replace(settings, access_key_id=None, secret_access_key=None, session_token=None)
    logging.getLogger("botocore.parsers").addFilter(_silent)
    return client_factory(settings)(
        "kms",
        region_name=_region(name, settings),
        verify=verify,
        config=Config(
            proxies=proxies_to(_url(name, settings), settings),
            connect_timeout=min(settings.connect_timeout, 2.0),
            read_timeout=min(settings.read_timeout, 5.0),
            retries={"mode": "standard", "total_max_attempts": 3},
        ),
    )


# -- botocore logs every answer at level DEBUG, and those of KMS hold keys: they are left out of the log

_asking: ContextVar[bool] = ContextVar("celery-s3-kms", default=False)


@contextmanager
def _unlogged() -> Iterator[None]:
    token = _asking.set(True)
    try:
        yield
    finally:
        _asking.reset(token)


class _Silent(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno > logging.DEBUG or not _asking.get()


_silent = _Silent()
