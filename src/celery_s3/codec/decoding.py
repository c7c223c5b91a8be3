"""What is in an object: the serialised meta, and beside it what a reader wants to know without it.

The body is exactly what Celery's base class produces, so that a person, another program or another backend
can read it. The user metadata repeats what answers ``state`` and ``children`` of a large result.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from celery.result import AsyncResult
from kombu.exceptions import DecodeError
from kombu.serialization import loads as kombu_loads
from kombu.serialization import registry, unpickle
from kombu.utils.json import loads as json_loads

from celery_s3.interruptions import brief
from celery_s3.serializers import TYPED

from . import raw
from .chunks import LARGE
from .compression import decompress_payload

__all__ = [
    "LazyMeta",
    "loads",
    "loads_raw",
]


def loads(payload: bytes, content_type: str, own: str, accept: Collection[str] | None) -> Any:
    """Decode a body by the type that its object declares, where that names a serializer; else by ``own``.

    Of a large body that nobody else holds, no more than two copies are in memory, its value included.

    Arguments:
        own: the content type of this process' `result_serializer`.
        accept: the content types that `result_accept_content` allows; ``None`` allows all.

    Raises:
        kombu.exceptions.ContentDisallowed: the type is not accepted.
        kombu.exceptions.DecodeError: the body is not of that type.
    """
    if payload.startswith(b"\x00"):  # one of the magics; no serializer begins so
        payload = decompress_payload(payload)
        if payload.startswith(raw.MAGIC):
            frame = raw.frame_of(payload)
            return loads_raw(frame, payload[len(frame) :], own, accept)
    declared = _declared(content_type, own)
    body: bytes | str = payload
    if len(payload) > LARGE:
        decoder = registry._decoders.get(declared)  # noqa: SLF001
        if decoder is unpickle:
            return _unpickled(payload, declared, accept)
        body = _text(payload) if decoder in _OF_TEXT else payload
    del payload
    return kombu_loads(body, content_type=declared, content_encoding="utf-8", accept=accept)


def loads_raw(frame: bytes, value: bytes, own: str, accept: Collection[str] | None) -> dict[str, Any]:
    """The meta of a result that is bytes.

    Arguments:
        frame: what stands before them.

    Raises:
        As :func:`loads`, of the meta.
    """
    content_type, meta = raw.unframe(frame)
    declared = _declared(content_type, own)
    return raw.joined(kombu_loads(meta, content_type=declared, content_encoding="utf-8", accept=accept), value)


def _declared(content_type: str, own: str) -> str:
    # kombu has no other way to ask which serializers there are
    return content_type if content_type in registry._decoders else own  # noqa: SLF001


#: Decoders that make text of their bytes first, and keep the bytes meanwhile.
_OF_TEXT = {json_loads, TYPED[1]}


def _text(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError as exc:
        raise DecodeError(f"it is no UTF-8: {exc}") from exc


def _unpickled(payload: bytes, content_type: str, accept: Collection[str] | None) -> Any:
    """What kombu's own decoder makes of it, which would copy a text out of the body first."""
    kombu_loads(b"", content_type=content_type, content_encoding="binary", accept=accept)  # is it accepted?
    try:
        return pickle.loads(payload)  # noqa: S301
    except Exception as exc:
        raise DecodeError(brief(exc)) from exc


#: Where Celery keeps a meta that it was given. It makes results of the children, whoever may want them.
_KEEPING = AsyncResult._set_cache.__code__  # noqa: SLF001
#: Where it looks for those results.
_TELLING = AsyncResult.children.fget.__code__


class LazyMeta(dict[str, Any]):
    """The meta of a large result: its state is known, the rest is fetched when somebody asks for it.

    What a caller sets stays: Celery replaces ``children`` by result objects.

    Arguments:
        to_result: makes a result of a child as it is stored.

    Attributes:
        size: the bytes of its object.
    """

    def __init__(
        self,
        known: Mapping[str, Any],
        load: Callable[[], Mapping[str, Any]],
        size: int = 0,
        to_result: Callable[[Any], Any] = lambda child: child,
    ) -> None:
        super().__init__(known)
        self.size = size
        self._to_result = to_result
        self._load: Callable[[], Mapping[str, Any]] | None = load

    @property
    def partial(self) -> bool:
        """Whether the body has not been fetched yet."""
        return self._load is not None

    def whole(self) -> LazyMeta:
        """Fetch the rest, if that has not been done."""
        load = self._load  # once: another thread may be done meanwhile
        if load is not None:
            rest = load()
            if "status" in rest:  # another one by now, where it was not final
                super().__setitem__("status", rest["status"])
            for name, value in rest.items():
                super().setdefault(name, value)
            self._load = None
        return self

    def __missing__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise KeyError(name)

    def get(self, name: str, default: Any = None) -> Any:
        if name == "children" and not super().__contains__(name):
            asking = sys._getframe(1).f_code  # noqa: SLF001
            if asking is _KEEPING:
                return default
            if asking is _TELLING and (children := self[name]):
                self[name] = [self._to_result(child) for child in children]
        return self[name] if name in self else default  # noqa: SIM401 (dict's own would not load)

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or super(LazyMeta, self.whole()).__contains__(name)

    def __iter__(self) -> Iterator[str]:
        return super(LazyMeta, self.whole()).__iter__()

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        return super(LazyMeta, self.whole()).__len__()

    def keys(self) -> Any:
        return super(LazyMeta, self.whole()).keys()

    def values(self) -> Any:
        return super(LazyMeta, self.whole()).values()

    def items(self) -> Any:
        return super(LazyMeta, self.whole()).items()

    def __reversed__(self) -> Iterator[str]:
        return super(LazyMeta, self.whole()).__reversed__()

    def pop(self, *args: Any) -> Any:
        return super(LazyMeta, self.whole()).pop(*args)

    def popitem(self) -> tuple[str, Any]:
        return super(LazyMeta, self.whole()).popitem()

    def setdefault(self, name: str, default: Any = None) -> Any:
        return super(LazyMeta, self.whole()).setdefault(name, default)

    def clear(self) -> None:
        self._load = None
        super().clear()

    def copy(self) -> dict[str, Any]:
        return dict(self.items())

    def __delitem__(self, name: str) -> None:
        super(LazyMeta, self.whole()).__delitem__(name)

    def __or__(self, other: Any) -> Any:
        return self.copy() | other

    def __ror__(self, other: Any) -> Any:
        return other | self.copy()

    def __eq__(self, other: object) -> bool:
        return super(LazyMeta, self.whole()).__eq__(other)

    def __ne__(self, other: object) -> bool:
        return super(LazyMeta, self.whole()).__ne__(other)

    __hash__ = None

    def __repr__(self) -> str:
        return super().__repr__() if self._load is None else f"<{super().__repr__()} and a body not fetched yet>"

    def __reduce__(self) -> Any:
        return dict, (self.copy(),)
