"""A store that seals what it writes and opens what it reads, in as many requests as without."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from celery_s3.errors import BadRequest, ConfigurationError, NotSealed, Tampered, UnknownKey
from celery_s3.metadata import SEAL
from celery_s3.settings import Settings
from celery_s3.store.api import Entry, Object, Precondition, Store

from .ciphers import ENCRYPTION, SIGNATURE, Broken, Cipher, Signature
from .format import Header, Span, context, opened, plain_size, sealed
from .keyring import KeyRing, keyring

__all__ = ["Sealing", "sealing"]

#: What an object without a content type gets: it is bound too, and servers differ in what they would put there.
UNTYPED = "application/octet-stream"

_ALGORITHMS = {"encrypt": ENCRYPTION, "sign": SIGNATURE, "off": None}


@dataclass(frozen=True, slots=True)
class Envelope:
    """What goes with the frames of one object.

    Attributes:
        context: what every frame is bound to.
        metadata: with the header.
    """

    cipher: Cipher
    context: bytes
    metadata: Mapping[str, str]
    content_type: str


class Sealing:
    """A :class:`~celery_s3.store.api.Store` over another one.

    Sizes in listings are those of the stored objects: 16 bytes more for each 16 KiB.

    Arguments:
        inner: where the sealed objects are.
        bucket: its name, which is bound into every seal like the key.
        writes: the algorithm that seals; ``None`` writes plain objects.
        accept_unsealed: plain objects are read as well.
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
            algorithm(writes)  # what it needs is missing now, or never

    def put(
        self,
        key: str,
        body: bytes,
        *,
        precondition: Precondition = None,
        metadata: Mapping[str, str] | None = None,
        content_type: str = "",
    ) -> str:
        """Write a sealed object; the same body makes other bytes each time, and another etag."""
        envelope = self.envelope(key, metadata or {}, content_type)
        if envelope is not None:
            body = sealed(envelope.cipher, envelope.context, body)
            metadata, content_type = envelope.metadata, envelope.content_type
        return self._inner.put(key, body, precondition=precondition, metadata=metadata, content_type=content_type)

    def envelope(self, key: str, metadata: Mapping[str, str], content_type: str) -> Envelope | None:
        """What a new object is sealed with, ``None`` where plain objects are written; never to be used twice."""
        if self._writes is None:
            return None
        content_type = content_type or UNTYPED
        header, cipher = self._new(self._writes)
        bound = context(header, self._bucket, key, content_type, metadata)
        return Envelope(cipher, bound, {**metadata, SEAL: header}, content_type)

    def _new(self, name: str) -> tuple[str, Cipher]:
        token, ring_key = self._ring.first.sealing()
        said, cipher = algorithm(name).new(ring_key)
        return Header(name, self._ring.first.id, said, token).dumps(), cipher

    def get(self, key: str, *, start: int = 0, length: int | None = None, if_match: str | None = None) -> Object:
        """Read a range of the body as it was before; the frames that it lies in are read and checked.

        Raises:
            Untrusted: nothing of the object can be trusted, or this process lacks its key.
        """
        span = Span(start, length)
        # Should the object be plain, the range lies where it was asked for.
        low = min(start, span.low) if self._accepts else span.low
        asked = None if span.high is None else span.high - low
        found = self._inner.get(key, start=low, length=asked, if_match=if_match)
        header = found.metadata.get(SEAL)
        if header is None:
            return self._unsealed(found, start - low, length)
        try:
            return self._opened(found, header, span, low)
        except Broken as exc:
            raise Tampered(str(exc), "get", self._bucket, key) from exc

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
        stored = self._frames(found, span, low)
        plain = opened(self._cipher(found.key, text), bound, stored, span.first, found.size)
        about = found.etag, found.modified, metadata, found.content_type
        return Object(found.key, span.of(plain), size, *about)

    def _frames(self, found: Object, span: Span, low: int) -> bytes:
        high = found.size if span.high is None else min(span.high, found.size)
        if len(found.body) < high - low:
            raise Broken("the answer is cut")
        return found.body[span.low - low : high - low]

    def _cipher(self, key: str, text: str) -> Cipher:
        header = Header.loads(text)
        held = self._ring.get(header.key_id)
        if held is None:
            raise UnknownKey(f"its key has the id {header.key_id[:40]!r}", "get", self._bucket, key)
        return algorithm(header.algorithm).of(held.opening(header.token), header.said)

    def delete(self, key: str) -> None:
        self._inner.delete(key)

    def delete_many(self, keys: Sequence[str]) -> None:
        self._inner.delete_many(keys)

    def delete_unchanged(self, versions: Mapping[str, str]) -> list[str]:
        return self._inner.delete_unchanged(versions)

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[Entry]:
        return self._inner.list(prefix, start_after=start_after)

    def close(self) -> None:
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
