"""Keys of AWS KMS: asked for rarely, and used for a while.

To seal, KMS is asked for a data key (GenerateDataKey), which then stands in for the KMS key: it wraps the keys of
this process's objects for five minutes, and travels in their headers, encrypted. To open, KMS decrypts it (Decrypt),
once in five minutes for each that is met; the last 1,000 are kept. A forked child begins with none.

A request goes the way of those to S3: bounded by its caller's time, tried again in the one place where that is done,
and as long as S3's where what is to be sealed must not be lost.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from celery_s3.errors import Interrupted, KeyRefused, KeyUnavailable, StoreError, Transient, Unreachable
from celery_s3.processes import PerProcess, Remembered
from celery_s3.settings import Settings
from celery_s3.store.api import Bucket
from celery_s3.store.bounded import Bounded
from celery_s3.store.requests import Request
from celery_s3.store.retrying import Retrying, RetryPolicy

from .ciphers import Broken, SecretKey

__all__ = ["KEPT", "LIFETIME", "KMSKey"]

A = TypeVar("A")
#: Encrypted, and itself.
DataKey = tuple[bytes, SecretKey]

#: Seconds that a data key is used without asking KMS again.
LIFETIME = 300.0
#: How many data keys a process keeps for opening.
KEPT = 1000

#: Seconds to connect to KMS, and to wait for its answer, at most.
_CONNECT, _READ = 2.0, 5.0
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
        self._client = PerProcess(lambda: Bounded(_Client(name, settings), settings))
        self._store = Retrying(_Asking(name, self._client), policy=RetryPolicy(settings.max_retries), name="AWS KMS")
        self._cache = PerProcess(_Cache)

    def sealing(self) -> tuple[bytes, SecretKey]:
        """The data key in use, made by KMS every five minutes: encrypted (the token), and itself.

        Raises:
            KeyRefused: KMS does not give it.
            KeyUnavailable: KMS does not answer.
        """
        current = self._cache.get().current
        return current.kept(self._clock) or self._store.send(_Ask("GenerateDataKey", partial(self._made, current)))

    def opening(self, token: bytes) -> SecretKey:
        """The data key that is encrypted in a token.

        Raises:
            Broken: KMS did not make the token, or not with this key and for this bucket.
            KeyRefused: KMS does not decrypt it for these credentials.
            KeyUnavailable: KMS does not answer.
        """
        slot = self._cache.get().slot(token)
        kept = slot.kept(self._clock) or self._store.send(_Ask("Decrypt", partial(self._decrypted, slot, token)))
        return kept[1]

    def close(self) -> None:
        """Close the client's connections; a later request makes a new client."""
        client = self._client.peek()
        self._client.drop()
        if client is not None:
            client.close()

    def _made(self, current: _Slot, client: Any) -> DataKey:
        """The data key that seals; KMS has made it, now or for another thread."""

        def ask() -> DataKey:
            made = self._ask(client, "GenerateDataKey", "generate_data_key", KeySpec="AES_256")
            self._keep(self._cache.get().slot(made[0]), made)
            return self._keep(current, made)

        return current.of_all(self._clock, ask)

    def _decrypted(self, slot: _Slot, token: bytes, client: Any) -> DataKey:
        """The data key of a token; KMS has decrypted it, now or for another thread."""

        def ask() -> DataKey:
            return self._keep(slot, (token, self._ask(client, "Decrypt", "decrypt", CiphertextBlob=token)[1]))

        return slot.of_all(self._clock, ask)

    def _keep(self, slot: _Slot, key: DataKey) -> DataKey:
        slot.held = (key, self._clock() + LIFETIME)
        return key

    def _ask(self, client: Any, operation: str, method: str, **parameters: Any) -> DataKey:
        """The data key that KMS answers: encrypted, where it says so, and itself."""
        from celery_s3.store.clients.boto3_errors import is_failure
        from celery_s3.store.clients.translate import answered

        # KeyId although Decrypt could do without: a token of a stranger's own KMS key is refused. With the context, the
        # token of another bucket is too.
        parameters |= {"KeyId": self._name, "EncryptionContext": {"celery-s3": self._settings.bucket}}

        def ask() -> DataKey:
            with _unlogged():
                answer: dict[str, Any] = getattr(client, method)(**parameters)
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
    """A data key, and when it is to be asked for again; one request is made for all threads that need it."""

    def __init__(self) -> None:
        self.held: tuple[DataKey, float] | None = None
        self._lock = threading.Lock()
        #: the last request that failed: when, and how
        self._failure: tuple[float, StoreError] | None = None

    def kept(self, clock: Callable[[], float]) -> DataKey | None:
        """The data key, ``None`` where it is to be asked for."""
        held = self.held
        return held[0] if held is not None and clock() < held[1] else None

    def of_all(self, clock: Callable[[], float], ask: Callable[[], DataKey]) -> DataKey:
        """The data key; where another thread's request fails meanwhile, this one has failed too.

        One after the other, many that wait would not have asked by the time that the last of them gives up.
        """
        began = time.monotonic()
        with self._lock:
            kept = self.kept(clock)
            if kept is not None:
                return kept
            if self._failure is not None and self._failure[0] >= began:
                raise type(self._failure[1])(*self._failure[1].args)
            try:
                return ask()
            except StoreError as exc:
                self._failure = time.monotonic(), type(exc)(*exc.args)
                raise


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


@dataclass(frozen=True, slots=True)
class _Ask(Request[DataKey]):
    """One request to KMS.

    Attributes:
        answer: makes it, with a client, unless another thread's has been answered meanwhile.
    """

    verb, action = "", ""
    operation: str
    answer: Callable[[Any], Any] = field(repr=False)
    key: str = field(init=False, default="")


class _Client:
    """Makes the requests; botocore's client, made at the first one."""

    def __init__(self, name: str, settings: Settings) -> None:
        self._connect = partial(_client, name, settings)
        self._lock = threading.Lock()
        self._botocore: Any = None
        # no longer than KMS needs, whatever S3 is given
        self._seconds = min(settings.connect_timeout, _CONNECT) + min(settings.read_timeout, _READ)

    def send(self, request: Request[A]) -> A:
        assert isinstance(request, _Ask)
        with self._lock:
            if self._botocore is None:
                self._botocore = self._connect()
        answer: A = request.answer(self._botocore)
        return answer

    def seconds(self, request: Request[Any]) -> tuple[float, bool]:  # noqa: ARG002 - all take the same
        return self._seconds, False

    def cut(self, thread: int) -> None:
        from celery_s3.store.clients.stuck import break_connection

        break_connection(thread)

    def close(self) -> None:
        if self._botocore is not None:
            self._botocore.close()


class _Asking(Bucket):
    """Names the KMS key in what there is to say of a request that was not answered in time."""

    def __init__(self, name: str, client: PerProcess[Bounded]) -> None:
        self._name = name
        self._client = client

    def send(self, request: Request[A]) -> A:
        try:
            return self._client.get().send(request)
        except (Interrupted, Unreachable) as exc:
            raise KeyUnavailable(exc.detail, request.operation, "", self._name) from exc

    def close(self) -> None:
        self._client.get().close()


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
            connect_timeout=min(settings.connect_timeout, _CONNECT),
            read_timeout=min(settings.read_timeout, _READ),
            retries={"mode": "standard", "total_max_attempts": 1},
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
