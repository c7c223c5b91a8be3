"""From a meta to the body of its object."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from celery.states import SUCCESS

from celery_s3.interruptions import reraise_interruption

from . import raw
from .chunks import Chunks, one_body
from .compression import compress_payload

__all__ = ["Encoder"]


class Encoder:
    """Makes bodies that are exactly what Celery's base class makes: a person or another backend can read them.

    Arguments:
        serialize: the serializer that ``result_serializer`` names; raises kombu's EncodeError.
        content_type: of what that makes.
        compression: kombu's name of the method, ``None`` for none.
        threshold: bytes below which nothing is compressed.
    """

    def __init__(
        self,
        serialize: Callable[[Mapping[str, Any]], bytes | str],
        content_type: str,
        compression: str | None,
        threshold: int,
    ) -> None:
        self._serializer = serialize
        self._content_type = content_type
        self._compression = compression
        self._threshold = threshold

    def payload(self, data: Any) -> bytes | str:
        """Anything, serialised, and compressed where that helps."""
        payload = self._serialize(data)
        return b"".join(self._compressed(payload)) if self._compression else payload

    def body(self, meta: Mapping[str, Any]) -> tuple[bytes | Chunks, str]:
        """The body of a result's object, and its content type.

        A SUCCESS whose value is bytes is stored as these bytes behind a preamble (see :mod:`celery_s3.codec.raw`)
        where the serializer would make text of them.
        """
        value = meta["result"]
        if type(value) is bytes and meta["status"] == SUCCESS and self._content_type in raw.PLAIN:
            preamble = raw.preamble(self._serialize({**meta, "result": len(value)}), self._content_type)
            return one_body(*self._with_preamble(preamble, value)), raw.CONTENT_TYPE
        payload = self._serialize(meta)
        pieces = self._compressed(payload) if self._compression else (payload,)
        return one_body(*pieces), self._content_type

    def _serialize(self, data: Any) -> bytes | str:
        handled = sys.exception()
        try:
            return self._serializer(data)
        except Exception as exc:
            reraise_interruption(exc, handled)
            raise

    def _with_preamble(self, preamble: bytes, value: bytes) -> tuple[bytes, ...]:
        if self._compression:
            compressed = self._compressed(preamble + value)
            if len(compressed) > 1:
                return compressed
        return preamble, value  # the joined copy that compression did not make smaller is not kept

    def _compressed(self, payload: bytes | str) -> tuple[bytes, ...]:
        return compress_payload(payload, self._compression or "", self._threshold)
