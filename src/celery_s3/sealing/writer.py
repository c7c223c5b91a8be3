"""A writer that seals what passes, segment by segment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from celery_s3.metadata import UPLOAD
from celery_s3.store.api import Chunk, Precondition, Writer
from celery_s3.store.pieces import measured
from celery_s3.store.uploads import new_mark

from .format import sealed_chunks, stored_size
from .wrapper import Sealing

__all__ = ["SealingWriter"]


class SealingWriter:
    """A :class:`~celery_s3.store.api.Writer` over another one; what it writes is read by a :class:`Sealing`.

    Arguments:
        inner: writes the sealed objects.
        sealing: knows the keys.
    """

    def __init__(self, inner: Writer, sealing: Sealing) -> None:
        self._inner = inner
        self._sealing = sealing

    def write(
        self,
        key: str,
        chunks: Iterable[Chunk],
        *,
        size: int | None = None,
        precondition: Precondition = None,
        metadata: Mapping[str, str] | None = None,
        content_type: str = "",
        tags: Mapping[str, str] | None = None,
    ) -> str:
        """Write an object in sealed segments, one after the other; never more than two of them are in memory here."""
        # The seal binds all metadata, so the upload's mark, which the writer inside would add, must be in it already.
        envelope = self._sealing.envelope(key, {UPLOAD: new_mark(), **(metadata or {})}, content_type)
        if envelope is not None:
            metadata, content_type = envelope.metadata, envelope.content_type
            if size is not None:
                chunks, size = measured(key, chunks, size), stored_size(size)
            chunks = sealed_chunks(envelope.cipher, envelope.context, chunks)
        return self._inner.write(
            key,
            chunks,
            size=size,
            precondition=precondition,
            metadata=metadata,
            content_type=content_type,
            tags=tags,
        )
