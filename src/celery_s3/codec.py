"""What is in an object: the serialised meta, and beside it what a reader wants to know without it.

The body is exactly what Celery's base class produces, so that a person, another program or another backend
can read it. The user metadata repeats what answers ``state`` and ``children`` of a large result.
"""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote

from celery import states
from celery.result import AsyncResult, ResultBase
from kombu.exceptions import DecodeError
from kombu.serialization import loads as kombu_loads
from kombu.serialization import registry, unpickle
from kombu.utils.json import loads as json_loads

from . import lifetime, raw
from .causes import brief
from .chunks import LARGE
from .compression import decompress_payload
from .serializers import TYPED

__all__ = [
    "LazyMeta",
    "are_children",
    "children_in",
    "files_in",
    "loads",
    "loads_raw",
    "metadata",
    "state_of",
    "task_of",
]

_STATE = "celery-state"
_TASK = "celery-task"
_FILES = "celery-files"
_UNKNOWN = "?"
_CHILDREN = "celery-children"
_CHILDLESS = ("[]", "null")
#: S3 allows 2 KB of user metadata in all, names included; a seal takes 100 bytes, with AWS KMS 350.
_ROOM = 1600


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


def metadata(
    state: str, task: str | None = None, children: object = None, expires: float | None = None, files: int | None = 0
) -> dict[str, str]:
    """The user metadata of a result: ASCII, short; what does not fit is left to the body.

    Arguments:
        expires: the seconds that this result lives, 0 for ever; ``None``: like any.
        files: how many its task has uploaded, ``None`` where nobody knows.
    """
    wanted = {
        _STATE: _ascii(state),
        **lifetime.metadata(expires),
        _FILES: _UNKNOWN if files is None else str(files or ""),
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


def files_in(stored: Mapping[str, str]) -> int | None:
    """How many files its task has uploaded, as the user metadata tells; ``None`` where it does not know.

    The state that another process writes when a run was lost, or a run has still to come, knows of none.
    """
    told = stored.get(_FILES, "")
    if told.isdecimal():
        return int(told)
    return None if told or state_of(stored) not in (None, states.SUCCESS) else 0


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
