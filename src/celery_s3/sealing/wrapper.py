"""A store that seals what it writes and opens what it reads, in as many requests as without."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

from celery_s3.errors import BadRequest, ConfigurationError, NotSealed, Tampered, UnknownKey
from celery_s3.metadata import SEAL
from celery_s3.settings import Settings
from celery_s3.store.api import Object, Store
from celery_s3.store.requests import Get, Put, Request

from .ciphers import ENCRYPTION, SIGNATURE, Broken, Cipher, Signature
from .format import Header, Span, context, opened, plain_size, sealed
from .keyring import KeyRing, keyring

__all__ = ["Sealing", "sealing"]

A = TypeVar("A")

#: What an object without a content type gets. The seal binds the content type, and servers differ in their default.
UNTYPED = "application/octet-stream"

_ALGORITHMS = {"encrypt": ENCRYPTION, "sign": SIGNATURE, "off": None}


@dataclass(frozen=True, slots=True)
class Envelope:
    """What one object is sealed with, but its body.

    Attributes:
        cipher: with the object's own key.
        context: what every segment is bound to, see :func:`~celery_s3.sealing.format.context`.
        metadata: the user metadata with the header in it.
        content_type: never empty.
    """

    cipher: Cipher
    context: bytes
    metadata: Mapping[str, str]
    content_type: str


class Sealing(Store):
    """Seals what is put and opens what is got; all else is sent on as it is.

    Sizes in listings are those of the stored objects: 16 bytes more for each 16 KiB.

    Arguments:
        inner: where the sealed objects are.
        ring: the keys to seal and to open with.
        bucket: its name, which is bound into every seal as the key is.
        writes: the name of the algorithm that seals; ``None`` writes plain objects.
        accept_unsealed: plain objects are read as well.

    Raises:
        ConfigurationError: a package is missing.
    """

    def __init__(
        self, inner: Store, ring: KeyRing, bucket: str, *, writes: str | None = ENCRYPTION, accept_unsealed: bool
    ) -> None:
        self._inner = inner
        self._ring = ring
        self._bucket = bucket
        self._writes = writes
        self._accepts = accept_unsealed or writes is None
        if writes is not None:
            algorithm(writes)  # raises now if its package is missing, and not when the first result is stored

    def send(self, request: Request[A]) -> A:
        """Seal a PUT's body, open a GET's answer; any other request is passed on."""
        how = self._HOW.get(type(request))
        answer: A = how(self, request) if how else self._inner.send(request)
        return answer

    def _put(self, put: Put) -> str:
        """Write a sealed object; the same body makes other bytes each time, and another etag."""
        envelope = self.envelope(put.key, put.metadata, put.content_type)
        if envelope is not None:
            body = sealed(envelope.cipher, envelope.context, put.body)
            put = replace(put, body=body, metadata=envelope.metadata, content_type=envelope.content_type)
        return self._inner.send(put)

    def envelope(self, key: str, metadata: Mapping[str, str], content_type: str) -> Envelope | None:
        """What one new object is sealed with, ``None`` where plain objects are written.

        For one body only: two bodies under one envelope would share pairs of key and nonce, which breaks AES-GCM.
        """
        if self._writes is None:
            return None
        content_type = content_type or UNTYPED
        header, cipher = self._new(self._writes)
        bound = context(header, self._bucket, key, content_type, metadata)
        return Envelope(cipher, bound, {**metadata, SEAL: header}, content_type)

    def _new(self, name: str) -> tuple[str, Cipher]:
        token, ring_key = self._ring.first.sealing()
        key_info, cipher = algorithm(name).new(ring_key)
        return Header(name, self._ring.first.id, key_info, token).dumps(), cipher

    def _get(self, get: Get) -> Object:
        """Read a range of the body as it was before sealing: the segments that it lies in are read and checked.

        Raises:
            Untrusted: nothing of the object can be trusted, or this process lacks its key.
        """
        span = Span(get.start, get.length)
        # Only the answer tells whether the object is sealed. In a plain one the range begins at `get.start`, in a
        # sealed one 16 bytes later for each segment before it: where plain ones are accepted, both places are read.
        low = min(get.start, span.low) if self._accepts else span.low
        found = self._inner.send(replace(get, start=low, length=None if span.high is None else span.high - low))
        header = found.metadata.get(SEAL)
        if header is None:
            return self._unsealed(found, get.start - low, get.length)
        try:
            return self._opened(found, header, span, low)
        except Broken as exc:
            raise Tampered(str(exc), "get", self._bucket, get.key) from exc

    def _unsealed(self, found: Object, skipped: int, length: int | None) -> Object:
        if not self._accepts:
            raise NotSealed("", "get", self._bucket, found.key)
        stop = None if length is None else skipped + length
        return replace(found, body=found.body[skipped:stop])

    def _opened(self, found: Object, text: str, span: Span, low: int) -> Object:
        size = plain_size(found.size)
        if span.start and span.start >= size:
            raise BadRequest("the range begins behind the end", "get", self._bucket, found.key, 416, "InvalidRange")
        metadata = {name: value for name, value in found.metadata.items() if name != SEAL}
        bound = context(text, self._bucket, found.key, found.content_type, metadata)
        stored = self._segments(found, span, low)
        plain = opened(self._cipher(found.key, text), bound, stored, span.first, found.size)
        about = found.etag, found.modified, metadata, found.content_type
        return Object(found.key, span.of(plain), size, *about)

    def _segments(self, found: Object, span: Span, low: int) -> bytes:
        high = found.size if span.high is None else min(span.high, found.size)
        if len(found.body) < high - low:
            raise Broken("the answer is cut")
        return found.body[span.low - low : high - low]

    def _cipher(self, key: str, text: str) -> Cipher:
        header = Header.loads(text)
        held = self._ring.get(header.key_id)
        if held is None:
            raise UnknownKey(f"its key has the id {header.key_id[:40]!r}", "get", self._bucket, key)
        return algorithm(header.algorithm).of(held.opening(header.token), header.key_info)

    _HOW: ClassVar[Mapping[type[Request[Any]], Callable[[Sealing, Any], Any]]] = {Put: _put, Get: _get}

    def close(self) -> None:
        """Close the keys and the store inside."""
        self._ring.close()
        self._inner.close()


def sealing(inner: Store, settings: Settings) -> Sealing:
    """A store over another one, as the settings say; no request.

    Raises:
        ConfigurationError: a package is missing.
    """
    return Sealing(
        inner,
        keyring(settings),
        settings.bucket,
        writes=_ALGORITHMS[settings.seal],
        accept_unsealed=settings.accept_unsealed,
    )


def algorithm(name: str) -> type[Cipher]:
    """The cipher of that name.

    Raises:
        Broken: there is none.
        ConfigurationError: the package that it needs is not installed.
    """
    if name == SIGNATURE:
        return Signature
    if name != ENCRYPTION:
        raise Broken(f"this release knows no algorithm {name[:20]!r}")
    try:
        from .aes import Encryption  # imported where somebody encrypts
    except ImportError as exc:
        raise ConfigurationError(
            "`seal_keys`: encryption needs the package cryptography: pip install 'celery-s3[encryption]', or set"
            " `seal` to 'sign'"
        ) from exc
    return Encryption
