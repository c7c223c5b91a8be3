"""A result that is bytes, stored as it is: not as text, which the serializer would have to make of it.

The body of its object, whose content type is :data:`CONTENT_TYPE`::

    \\x00celery-bytes\\x00  <content type of the meta>  \\x00  <its length: 4 bytes>  <the meta>  <the bytes>

The meta is serialised as that of any result, with the number of the bytes in the place of its result. Everything before
the bytes is called the preamble.
"""

from __future__ import annotations

import struct
from typing import Any

from celery.states import SUCCESS
from kombu.exceptions import DecodeError
from kombu.utils.encoding import str_to_bytes

from celery_s3.serializers import TYPED

__all__ = ["CONTENT_TYPE", "MAGIC", "PLAIN", "joined", "preamble", "preamble_of", "split_preamble", "value_start"]

MAGIC = b"\x00celery-bytes\x00"
CONTENT_TYPE = "application/octet-stream"

_PLAIN = ("application/json", "application/x-yaml", TYPED[2])
#: The content types of the serializers that make plain text of bytes. Any other may sign or encrypt what it is given,
#: and bytes are no way round it.
PLAIN = frozenset(_PLAIN) | {f"application/x-celery-s3+{name}" for name in ("json", "yaml", "typed+json")}

_LENGTH = struct.Struct(">I")
#: Bytes of the longest content type.
_LONGEST_TYPE = 128


def preamble(meta: bytes | str, content_type: str) -> bytes:
    """The preamble to store before the bytes.

    Arguments:
        meta: the meta, serialised.
        content_type: of its serializer.
    """
    payload = str_to_bytes(meta)
    return b"".join((MAGIC, content_type.encode(), b"\x00", _LENGTH.pack(len(payload)), payload))


def value_start(body: bytes) -> int:
    """Where the bytes begin, as the beginning of a body tells; 0 where it has no preamble."""
    start = _meta_start(body)
    return start + int(_LENGTH.unpack_from(body, start - _LENGTH.size)[0]) if start else 0


def preamble_of(body: bytes) -> bytes:
    """The preamble that a body begins with; empty where there is none, or not all of it."""
    stop = value_start(body)
    return body[:stop] if stop <= len(body) else b""


def split_preamble(preamble: bytes) -> tuple[str, bytes]:
    """The content type of the meta, one of :data:`PLAIN`, and the meta.

    Raises:
        DecodeError: that is no preamble, or none that may stand before bytes.
    """
    start = _meta_start(preamble)
    if not start:
        raise DecodeError("what stands before the bytes is cut, or garbage")
    content_type = preamble[len(MAGIC) : start - _LENGTH.size - 1].decode("ascii", "replace")
    if content_type not in PLAIN:
        raise DecodeError(f"{content_type!r} does not stand before bytes")
    return content_type, preamble[start:]


def joined(meta: object, value: bytes) -> dict[str, Any]:
    """The meta with its bytes for a result.

    Raises:
        DecodeError: they do not belong together.
    """
    if not isinstance(meta, dict) or meta.get("status") != SUCCESS:
        raise DecodeError("what stands before the bytes is no SUCCESS")
    if meta.get("result") != len(value):
        raise DecodeError(f"{len(value)} bytes are there, {meta.get('result')!r:.40} were stored")
    return {**meta, "result": value}


def _meta_start(body: bytes) -> int:
    """Where the meta begins, 0 where none does."""
    if not body.startswith(MAGIC):
        return 0
    end = body.find(b"\x00", len(MAGIC), len(MAGIC) + _LONGEST_TYPE)
    start = end + 1 + _LENGTH.size
    return start if end > 0 and start <= len(body) else 0
