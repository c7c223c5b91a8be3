"""What is in an object: the serialised meta, and beside it what a reader wants to know without it.

The body is exactly what Celery's base class produces, so that a person, another program or another backend
can read it. The user metadata repeats what answers ``state`` and ``children`` of a large result.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote

from celery.exceptions import ImproperlyConfigured
from celery.result import ResultBase
from kombu.compression import compress, decompress, encoders, get_encoder
from kombu.exceptions import DecodeError
from kombu.serialization import loads as kombu_loads
from kombu.serialization import registry

from . import lifetime

__all__ = [
    "LazyMeta",
    "are_children",
    "children_in",
    "compress_payload",
    "compression_method",
    "loads",
    "metadata",
    "state_of",
    "task_of",
]

#: In front of a compressed payload stands ``MAGIC + content-type + NUL``, as in Celery 5.7.
COMPRESSED_PAYLOAD_MAGIC = b"\x00celery-compressed\x00"

_STATE = "celery-state"
_TASK = "celery-task"
_CHILDREN = "celery-children"
_CHILDLESS = ("[]", "null")
#: S3 allows 2 KB of user metadata in all, names included; a seal takes 100 bytes, with AWS KMS 350.
_ROOM = 1600


def compression_method(name: str | None) -> str | None:
    """The kombu compression that `result_compression` names.

    Raises:
        ImproperlyConfigured: kombu knows no such method.
    """
    if not name:
        return None
    try:
        get_encoder(name)
    except KeyError as exc:
        known = ", ".join(sorted(encoders()))
        raise ImproperlyConfigured(f"result_compression is {name!r}; this process knows {known}.") from exc
    return name


def compress_payload(payload: bytes | str, method: str) -> bytes:
    """A payload that names its own compression."""
    body, content_type = compress(payload, method)
    return b"".join([COMPRESSED_PAYLOAD_MAGIC, content_type.encode(), b"\x00", body])


def decompress_payload(payload: bytes) -> bytes:
    """The payload as it was before :func:`compress_payload`; one without the marker is returned as it is."""
    if not payload.startswith(COMPRESSED_PAYLOAD_MAGIC):
        return payload
    content_type, _, body = payload[len(COMPRESSED_PAYLOAD_MAGIC) :].partition(b"\x00")
    try:
        restored: bytes = decompress(body, content_type.decode())
    except Exception as exc:  # every compressor has errors of its own
        raise DecodeError(f"compressed with {content_type!r}: {exc!r}") from exc
    return restored


def loads(payload: bytes, content_type: str, own: str, accept: Collection[str] | None) -> Any:
    """Decode a body by the type that its object declares, where that names a serializer; else by ``own``.

    Arguments:
        own: the content type of this process' `result_serializer`.
        accept: the content types that `result_accept_content` allows; ``None`` allows all.

    Raises:
        kombu.exceptions.ContentDisallowed: the type is not accepted.
        kombu.exceptions.DecodeError: the body is not of that type.
    """
    # kombu has no other way to ask which serializers there are
    declared = content_type if content_type in registry._decoders else own  # noqa: SLF001
    return kombu_loads(decompress_payload(payload), content_type=declared, content_encoding="utf-8", accept=accept)


def metadata(
    state: str, task: str | None = None, children: object = None, expires: float | None = None
) -> dict[str, str]:
    """The user metadata of a result: ASCII, short; what does not fit is left to the body.

    Arguments:
        expires: the seconds that this result lives, 0 for ever; ``None``: like any.
    """
    wanted = {
        _STATE: _ascii(state),
        **lifetime.metadata(expires),
        _TASK: _ascii(task or ""),
        # JSON's own escapes keep it ASCII
        _CHILDREN: json.dumps(children, separators=(",", ":"), default=str)
        if children
        else _CHILDLESS[children is None],
    }
    room = _ROOM
    fitting = {}
    for name, value in wanted.items():
        if value and len(name) + len(value) <= room:
            fitting[name] = value
            room -= len(name) + len(value)
    return fitting


def state_of(stored: Mapping[str, str]) -> str | None:
    """The state that the user metadata tells, ``None`` where another writer left none."""
    state = stored.get(_STATE)
    return unquote(state) if state else None


def task_of(stored: Mapping[str, str]) -> str | None:
    """The task's name as the user metadata tells it, ``None`` where it does not."""
    task = stored.get(_TASK)
    return unquote(task) if task else None


def children_in(stored: Mapping[str, str]) -> dict[str, Any]:
    """``{"children": …}`` (Celery's tuples, or ``None``) as the user metadata tells; empty where it does not."""
    try:
        children = json.loads(stored.get(_CHILDREN, ""))
        return {"children": children} if are_children(children) else {}
    except (ValueError, RecursionError):
        return {}


def are_children(found: object) -> bool:
    """Whether it is ``None`` or a list of results as tuples; Celery makes results of them whenever a state is asked.

    Raises:
        RecursionError: it is nested without end.
    """
    return found is None or (isinstance(found, list | tuple) and all(map(_is_result, found)))


def _is_result(found: object) -> bool:
    """Whether it is ``((id, parent), members)`` or ``(id, members)``; a plain result has no members."""
    if isinstance(found, ResultBase):
        return True  # pickled
    if not (isinstance(found, list | tuple) and len(found) == 2):
        return False
    name, members = found
    id, parent = name if isinstance(name, list | tuple) and len(name) == 2 else (name, None)
    return isinstance(id, str) and (parent is None or _is_result(parent)) and are_children(members)


@lru_cache(maxsize=1024)  # a few states, some task names
def _ascii(text: str) -> str:
    return quote(text, safe="!#$&'()*+,/:;=?@[] ~<>^`{|}")


class LazyMeta(dict[str, Any]):
    """The meta of a large result: its state is known, the rest is fetched when somebody asks for it.

    What a caller sets stays: Celery replaces ``children`` by result objects.
    """

    def __init__(self, known: Mapping[str, Any], load: Callable[[], Mapping[str, Any]]) -> None:
        super().__init__(known)
        self._load: Callable[[], Mapping[str, Any]] | None = load

    @property
    def partial(self) -> bool:
        """Whether the body has not been fetched yet."""
        return self._load is not None

    def _whole(self) -> LazyMeta:
        load = self._load  # once: another thread may be done meanwhile
        if load is not None:
            for name, value in load().items():
                super().setdefault(name, value)
            self._load = None
        return self

    def __missing__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise KeyError(name)

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default  # noqa: SIM401 (dict's own would not load)

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or super(LazyMeta, self._whole()).__contains__(name)

    def __iter__(self) -> Iterator[str]:
        return super(LazyMeta, self._whole()).__iter__()

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        return super(LazyMeta, self._whole()).__len__()

    def keys(self) -> Any:
        return super(LazyMeta, self._whole()).keys()

    def values(self) -> Any:
        return super(LazyMeta, self._whole()).values()

    def items(self) -> Any:
        return super(LazyMeta, self._whole()).items()

    def __reversed__(self) -> Iterator[str]:
        return super(LazyMeta, self._whole()).__reversed__()

    def pop(self, *args: Any) -> Any:
        return super(LazyMeta, self._whole()).pop(*args)

    def popitem(self) -> tuple[str, Any]:
        return super(LazyMeta, self._whole()).popitem()

    def setdefault(self, name: str, default: Any = None) -> Any:
        return super(LazyMeta, self._whole()).setdefault(name, default)

    def copy(self) -> dict[str, Any]:
        return dict(self.items())

    def __eq__(self, other: object) -> bool:
        return super(LazyMeta, self._whole()).__eq__(other)

    __hash__ = None

    def __repr__(self) -> str:
        return super().__repr__() if self._load is None else f"<{super().__repr__()} and a body not fetched yet>"

    def __reduce__(self) -> Any:
        return dict, (self.copy(),)
