"""The serializers that kombu learns of by their entry points.

kombu loads this module in every process that imports kombu, while it is being imported itself: so nothing is imported
here, and a serializer's own modules come with the first value.
"""

from __future__ import annotations

from typing import Any

__all__ = ["TYPED"]


def _typed_dumps(value: Any) -> str:
    from .typed import dumps

    return dumps(value)


def _typed_loads(payload: str | bytes) -> Any:
    from .typed import loads

    return loads(payload)


#: Encoder, decoder, content type, encoding: ``typed+json``.
TYPED = (_typed_dumps, _typed_loads, "application/x-typed+json", "utf-8")
