"""From the body of an object to what was stored."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from kombu.exceptions import DecodeError
from kombu.serialization import unpickle
from kombu.utils.json import loads as json_loads

from celery_s3.celery_private import DECODERS
from celery_s3.interruptions import INTERRUPTIONS, INTERRUPTIONS_OF_LARGE, brief, reraise_interruption
from celery_s3.serializers import TYPED
from celery_s3.store.api import Object

from . import raw
from .chunks import LARGE
from .compression import LIMIT, decompress_payload
from .kombu_json import loads

__all__ = ["Decoder", "Whole"]

#: Decoders that make text of their bytes first, and keep the bytes meanwhile.
_OF_TEXT = {json_loads, TYPED[1]}


@dataclass(slots=True)
class Whole:
    """All of an object that was read.

    Attributes:
        about: its first bytes, and all that came with them.
        body: its bytes, or those behind the preamble.
        preamble: what stands before a value that was stored as raw bytes: apart, so that a large value is not copied.
    """

    about: Object
    body: bytes = field(repr=False)
    preamble: bytes = field(default=b"", repr=False)

    def pop_body(self) -> bytes:
        """The body, which is not kept here any longer: its value needs the room."""
        body, self.body = self.body, b""
        return body

    @property
    def interruptions(self) -> tuple[type[Exception], ...]:
        """The errors that say nothing of this object when they are met while it is decoded."""
        return INTERRUPTIONS_OF_LARGE if self.about.size > LARGE else INTERRUPTIONS


class Decoder:
    """Decodes bodies by the serializer that their object declares, where this process accepts it.

    All methods raise :class:`kombu.exceptions.ContentDisallowed` where it does not,
    :class:`kombu.exceptions.DecodeError` for a body that is not of the type it declares, and
    :class:`~celery_s3.errors.NotDecompressed` where kombu needs a package to decompress it.

    Arguments:
        content_type: of this process' `result_serializer`, for what declares none that names a serializer.
        accept: the content types of `result_accept_content`; ``None`` accepts all.
        limit: bytes that may come out of what is compressed, see `decompress_payload`.
    """

    def __init__(self, content_type: str, accept: Collection[str] | None, limit: int = LIMIT) -> None:
        self.content_type = content_type
        self.accept = accept
        self._limit = limit

    def loads(self, payload: bytes, content_type: str = "") -> Any:
        """Decode a payload of the given type."""
        handled = sys.exception()
        try:
            return self._loads(payload, content_type)
        except Exception as exc:
            reraise_interruption(exc, handled)
            raise

    def decode(self, whole: Whole) -> Any:
        """Decode all of an object, which has no body any more afterwards."""
        handled = sys.exception()
        try:
            if whole.preamble:
                return self._joined(whole.preamble, whole.pop_body())
            # Pass the body without binding it: a local would keep up to 5 GB alive while it is decoded.
            return self._loads(whole.pop_body(), whole.about.content_type)
        except Exception as exc:
            reraise_interruption(exc, handled, whole.interruptions)
            raise

    def state_in(self, whole: Whole) -> str | None:
        """The state that an object's body tells, ``None`` where it cannot be read."""
        handled = sys.exception()
        try:
            return str(self.decode(whole)["status"])
        except Exception as exc:  # noqa: BLE001 (whatever a decoder makes of garbage)
            reraise_interruption(exc, handled)
            return None

    def _loads(self, payload: bytes, content_type: str) -> Any:
        """Of a large body that nobody else holds, no more than two copies are in memory, its value included."""
        if payload.startswith(b"\x00"):  # one of the magics; no serializer begins so
            payload = decompress_payload(payload, self._limit)
            if payload.startswith(raw.MAGIC):
                preamble = raw.preamble_of(payload)
                return self._joined(preamble, payload[len(preamble) :])
        if content_type not in DECODERS:
            content_type = self.content_type
        decoder = DECODERS.get(content_type)
        body: bytes | str = payload
        if len(payload) > LARGE:
            if decoder is unpickle:
                return self._unpickled(payload, content_type)
            body = _text(payload) if decoder in _OF_TEXT else payload
        del payload
        return loads(body, content_type, self.accept)

    def _joined(self, preamble: bytes, value: bytes) -> dict[str, Any]:
        """The meta of a result that is bytes, from what stands before them."""
        content_type, meta = raw.split_preamble(preamble)
        declared = content_type if content_type in DECODERS else self.content_type
        return raw.joined(loads(meta, declared, self.accept), value)

    def _unpickled(self, payload: bytes, content_type: str) -> Any:
        """What kombu's own decoder makes of it, which would copy a text out of the body first."""
        loads(b"", content_type, self.accept)  # is it accepted?
        try:
            return pickle.loads(payload)  # noqa: S301
        except Exception as exc:
            raise DecodeError(brief(exc)) from exc


def _text(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError as exc:
        raise DecodeError(f"it is no UTF-8: {exc}") from exc
