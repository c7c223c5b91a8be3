"""Kombu's serializers; of its JSON one encoder and one decoder for all calls.

Kombu makes both anew for each value, which takes longer than a small value itself. What they do with it is the same.
"""

from __future__ import annotations

from collections.abc import Collection
from json import JSONDecoder
from typing import Any

from kombu.exceptions import DecodeError, EncodeError
from kombu.serialization import dumps as kombu_dumps
from kombu.serialization import loads as kombu_loads
from kombu.utils.json import JSONEncoder, object_hook
from kombu.utils.json import dumps as json_dumps
from kombu.utils.json import loads as json_loads

from celery_s3.celery_private import DECODERS, ENCODERS

__all__ = ["dumps", "loads"]

_NAME, _TYPE = "json", "application/json"
_encoder, _decoder = JSONEncoder(), JSONDecoder(object_hook=object_hook)


def dumps(data: Any, serializer: str) -> bytes | str:
    """What the serializer of that name makes of ``data``.

    Raises:
        kombu.exceptions.EncodeError: it cannot hold it.
    """
    if serializer != _NAME or ENCODERS[_NAME].encoder is not json_dumps:  # an application may have registered its own
        payload: bytes | str = kombu_dumps(data, serializer=serializer)[2]
        return payload
    try:
        text: str = _encoder.encode(data)
    except Exception as exc:  # noqa: BLE001 - as kombu does
        raise EncodeError(exc).with_traceback(exc.__traceback__)  # noqa: B904
    return text


def loads(payload: bytes | str, content_type: str, accept: Collection[str] | None, encoding: str = "utf-8") -> Any:
    """What a payload of that content type was made of.

    Arguments:
        accept: the content types that may be decoded; ``None``: all that kombu has not disabled.

    Raises:
        kombu.exceptions.ContentDisallowed: it is none of them.
        kombu.exceptions.DecodeError: it is not of that type.
    """
    accepted = accept is not None and content_type in accept
    if not (payload and accepted and content_type == _TYPE and DECODERS.get(_TYPE) is json_loads):
        return kombu_loads(payload, content_type=content_type, content_encoding=encoding, accept=accept)
    try:
        return _decoder.decode(payload if isinstance(payload, str) else payload.decode())
    except Exception as exc:  # noqa: BLE001 - as kombu does
        raise DecodeError(exc).with_traceback(exc.__traceback__)  # noqa: B904
