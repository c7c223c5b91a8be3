"""Encoding and decoding by the one serializer that a name stands for, whatever the data says of itself."""

from __future__ import annotations

from typing import Any

from kombu.serialization import dumps, loads, registry

__all__ = ["decode", "encode"]


def encode(data: Any, inner: str) -> str | bytes:
    """Data as a kombu serializer writes it.

    Arguments:
        inner: kombu's name of it.
    """
    payload: str | bytes = dumps(data, serializer=inner)[2]
    return payload


def decode(payload: str | bytes, inner: str) -> Any:
    """What :func:`encode` has written.

    Raises:
        kombu.exceptions.DecodeError: it is not of that type.
    """
    content_type = registry.name_to_type[inner]
    return loads(payload, content_type, "utf-8", accept={content_type})
