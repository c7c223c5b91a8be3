"""Decoding by the one serializer that a name stands for, whatever a message or an object says about itself."""

from __future__ import annotations

from typing import Any

from kombu.serialization import loads, registry

__all__ = ["decoded"]


def decoded(payload: str | bytes, inner: str) -> Any:
    """What a kombu serializer encoded.

    Raises:
        kombu.exceptions.DecodeError: it is not of that type.
    """
    content_type = registry.name_to_type[inner]
    return loads(payload, content_type, "utf-8", accept={content_type})
