"""The serializers, as kombu finds them: entry points of the group ``kombu.serializers``.

Kombu imports this module while it is itself being imported, in every process that has this package installed: nothing
else may be imported at the top.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kombu.serialization import registry

__all__ = ["json", "msgpack", "pickle", "typed", "yaml"]

_Serializer = tuple[Callable[[Any], "str | bytes"], Callable[["str | bytes"], Any], str, str]


def _serializer(inner: str, encoding: str) -> _Serializer:
    """The serializer ``s3+<inner>``: its name alone says how everything is encoded, in a message and in S3."""
    content_type = f"application/x-celery-s3+{inner}"
    # As kombu does with its own but json: a consumer takes it only where `accept_content` names it.
    registry.disable(content_type)

    def encode(data: Any) -> str | bytes:
        from .envelope import pack

        return pack(data, inner)

    def decode(payload: str | bytes) -> Any:
        from .envelope import unpack

        return unpack(payload, inner)

    return encode, decode, content_type, encoding


json = _serializer("json", "utf-8")
yaml = _serializer("yaml", "utf-8")
pickle = _serializer("pickle", "binary")
msgpack = _serializer("msgpack", "binary")
typed = _serializer("typed+json", "utf-8")
