"""The serializers that kombu learns of by their entry points.

Kombu loads this module in every process that imports kombu, while it is being imported itself: so nothing of ours is
imported at the top, and a serializer's own modules come with the first value.
"""

from __future__ import annotations

from typing import Any

from kombu.utils.json import register_type

__all__ = ["FILE", "TYPED"]


def _typed_dumps(value: Any) -> str:
    from .typed import dumps

    return dumps(value)


def _typed_loads(payload: str | bytes) -> Any:
    from .typed import loads

    return loads(payload)


#: Encoder, decoder, content type, encoding: ``typed+json``.
TYPED = (_typed_dumps, _typed_loads, "application/x-typed+json", "utf-8")

#: What kombu's JSON writes in front of a pointer to a file.
FILE = "celery_s3.file"


class _Nothing:
    """The type of no value: kombu takes a decoder only together with a type to encode."""


def _file_of(pointer: object) -> Any:
    from .files.file import S3File

    return S3File.of(pointer)


# Here, since a JSON message with a type that its reader does not know is lost. The encoder comes with the class, in
# files/file.py.
register_type(_Nothing, FILE, lambda nothing: nothing, _file_of)
