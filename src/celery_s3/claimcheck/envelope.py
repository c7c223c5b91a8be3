"""A message's body: with the arguments in it, or with a pointer in their place.

::

    up to `message_threshold`   exactly what the inner serializer makes of it
    above, protocol 2           [[], {}, {"callbacks": …, "chain": …, "celery_s3": <pointer>}]
    above, protocol 1           {"task": …, "args": [], "kwargs": {}, "callbacks": …, "celery_s3": <pointer>}

Callbacks, errbacks, chain and chord stay in the message: a worker's main process needs them to report a failure. Only
where they make the message too large by themselves do the arguments of callbacks, chain and chord go to S3 too, each
signature's by itself, with a pointer in the signature; errbacks the main process may have to call itself.

A pointer is ``{"object": name, "size": bytes, "at": where, "args": bool, "kwargs": bool}``: the object holds
``[args, kwargs]``, encoded by the inner serializer, and is named after its bytes (see :mod:`.names`).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kombu.serialization import dumps, registry

from .content import decoded
from .lazy import Claim, Unfetched, raw_args, raw_kwargs
from .messages import Messages, messages_of_sender

__all__ = ["pack", "unpack"]

#: The key of a pointer, in a message and in a signature.
MARK = "celery_s3"
#: Bytes below which arguments stay where they are: a pointer is hardly smaller.
SMALL = 2048

#: Where a chain, a group or a chord keeps its signatures.
_PARTS = ("tasks", "header", "body")

_Change = Callable[[dict[str, Any]], dict[str, Any]]


def pack(data: Any, inner: str) -> str | bytes:
    """The body of a message. Data of any other kind is encoded as the inner serializer does.

    Raises:
        MessageNotStored: the arguments could not be stored in S3.
        ConfigurationError: nobody has said which app the message is of.
    """
    fields = _fields(data)
    if fields is None:
        return _encoded(data, inner)
    messages = messages_of_sender(inner)
    again = _everywhere(fields, lambda carrier: _pointed_again(carrier, inner))
    payload = _encoded(data if again is fields else _body(data, again), inner)
    if _size(payload) <= messages.threshold:
        return payload
    claimed = _claimed(again, messages, inner)
    payload = _encoded(_body(data, claimed), inner)
    if _size(payload) > messages.threshold:
        claimed = _everywhere(claimed, lambda carrier: _claimed(carrier, messages, inner))
        payload = _encoded(_body(data, claimed), inner)
    return payload


def unpack(payload: str | bytes, inner: str) -> Any:
    """What :func:`pack` encoded; arguments that are in S3 are fetched when they are used, not here."""
    data = decoded(payload, inner)
    fields = _fields(data)
    if fields is None:
        return data
    lazy = _everywhere(fields, lambda carrier: _lazy(carrier, inner))
    return data if lazy is fields else _body(data, lazy)


# -- the two forms of a message


def _fields(data: Any) -> dict[str, Any] | None:
    """A task message as one mapping, whichever its protocol; ``None`` where it is no task message."""
    if isinstance(data, list | tuple):
        if len(data) == 3 and isinstance(data[2], dict) and data[2].keys() >= {"callbacks", "errbacks", "chord"}:
            return {**data[2], "args": data[0], "kwargs": data[1]}
    elif isinstance(data, dict) and data.keys() >= {"task", "id", "args", "kwargs", "callbacks", "errbacks"}:
        return data
    return None


def _body(data: Any, fields: Mapping[str, Any]) -> Any:
    """The fields in the form that ``data`` has."""
    if isinstance(data, dict):
        return dict(fields)
    embed = dict(fields)
    return type(data)((embed.pop("args"), embed.pop("kwargs"), embed))


def _everywhere(fields: dict[str, Any], change: _Change) -> dict[str, Any]:
    """Change the message and the signatures that it carries; the very same fields where nothing is to change."""
    return change(_with(fields, ("callbacks", "chain", "chord"), lambda value: _signatures(value, change)))


def _signatures(value: Any, change: _Change) -> Any:
    """Change a signature or a list of them, and those inside of a chain, a group or a chord."""
    if isinstance(value, list | tuple):
        changed = [_signatures(one, change) for one in value]
        return value if all(map(operator.is_, value, changed)) else changed
    if not isinstance(value, dict) or not value.keys() >= {"args", "kwargs"}:
        return value
    if not value.get("subtask_type"):
        return change(value)
    return _with(value, ("kwargs",), lambda parts: _with(parts, _PARTS, lambda part: _signatures(part, change)))


def _with(mapping: Any, names: Iterable[str], change: Callable[[Any], Any]) -> Any:
    """The mapping with some of its values changed, or the very same where none is."""
    if not isinstance(mapping, dict):
        return mapping
    changed = {name: change(mapping[name]) for name in names if name in mapping}
    return mapping if all(mapping[name] is value for name, value in changed.items()) else {**mapping, **changed}


# -- pointers; a carrier is whatever has args and kwargs: a message, a signature


def _claimed(carrier: dict[str, Any], messages: Messages, inner: str) -> dict[str, Any]:
    """The carrier with its arguments in S3, where they are not there already and are worth it."""
    args, kwargs = carrier["args"], carrier["kwargs"]
    if MARK in carrier or not (args or kwargs):
        return carrier
    content = _bytes(_encoded((args, kwargs), inner))
    if len(content) < SMALL:
        return carrier
    # a signature goes from message to message: nobody could tell when the last of them has gone
    removable = "options" not in carrier
    pointer = messages.put(content, registry.name_to_type[inner], removable=removable)
    return _pointing(carrier, {**pointer, "args": bool(args), "kwargs": bool(kwargs)})


def _pointing(carrier: dict[str, Any], pointer: Mapping[str, Any]) -> dict[str, Any]:
    return {**carrier, "args": [], "kwargs": {}, MARK: dict(pointer)}


def _pointed_again(carrier: dict[str, Any], inner: str) -> dict[str, Any]:
    """The carrier with the pointer back in place of arguments that came by one and were not fetched."""
    args, kwargs = raw_args(carrier["args"]), raw_kwargs(carrier["kwargs"])
    claims = [one.claim for one in (*args, *kwargs.values()) if type(one) is Unfetched]
    if not claims:
        return carrier
    first = claims[0]
    if first.inner == inner and first.stands_for(args, kwargs):
        return _pointing(carrier, first.pointer)
    # others stand beside them, as when the body of a chord gets its values
    return {**carrier, "args": _fetched_args(args), "kwargs": _fetched_kwargs(kwargs)}


def _lazy(carrier: dict[str, Any], inner: str) -> dict[str, Any]:
    if MARK not in carrier:
        return carrier
    rest = {name: value for name, value in carrier.items() if name != MARK}
    return rest | Claim(carrier[MARK], inner).arguments()


def _fetched_args(args: list[Any]) -> list[Any]:
    """The arguments, those that are in S3 in their place."""
    found: list[Any] = []
    for one in args:
        found += one.claim.args if type(one) is Unfetched else [one]
    return found


def _fetched_kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments, those that are in S3 in their place."""
    found: dict[str, Any] = {}
    for name, one in kwargs.items():
        found |= one.claim.kwargs if type(one) is Unfetched else {name: one}
    return found


# -- encoding


def _encoded(data: Any, inner: str) -> str | bytes:
    payload: str | bytes = dumps(data, serializer=inner)[2]
    return payload


def _size(payload: str | bytes) -> int:
    return len(payload) if isinstance(payload, bytes) or payload.isascii() else len(payload.encode())


def _bytes(payload: str | bytes) -> bytes:
    return payload.encode() if isinstance(payload, str) else payload
