"""The serializers that kombu learns of by their entry points.

kombu loads this module in every process that imports kombu, while it is being imported itself: so nothing of ours is
imported here, and a serializer's own modules come with the first value.
"""

from __future__ import annotations

from typing import Any

from kombu.utils.json import register_type

__all__ = ["TYPED", "Pointed"]


def _typed_dumps(value: Any) -> str:
    from .typed import dumps

    return dumps(value)


def _typed_loads(payload: str | bytes) -> Any:
    from .typed import loads

    return loads(payload)


#: Encoder, decoder, content type, encoding: ``typed+json``.
TYPED = (_typed_dumps, _typed_loads, "application/x-typed+json", "utf-8")


class Pointed:
    """What JSON has a pointer for: the base of :class:`celery_s3.files.S3File`.

    It is here, so that every process can decode one: an unknown type in a message would lose the task.
    """

    def pointer(self) -> Any:
        raise NotImplementedError


def _pointed(value: Any) -> Any:
    from celery_s3.files.file import S3File

    return S3File.of(value)


register_type(Pointed, "celery_s3.file", lambda one: one.pointer(), _pointed)
