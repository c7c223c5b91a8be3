"""Typed values without pickle: the serializer ``typed+json``, which builds only the types that were registered.

::

    @celery_s3.typed.register(name="shop.order")
    @dataclass(frozen=True)
    class Order:
        id: UUID
        total: Decimal
        placed: datetime

    app.conf.update(result_serializer="typed+json", accept_content=["json", "typed+json"])

What travels is JSON. A value that JSON does not have is ``{"$type": name, "value": …}``, and a name is looked up in
a table of this process: nothing is imported, called or set because a payload says so.
"""

from .registry import register
from .wire import MAX_DEPTH, dumps, loads

__all__ = ["MAX_DEPTH", "dumps", "loads", "register"]
