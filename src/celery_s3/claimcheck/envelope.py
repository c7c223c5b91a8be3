"""A message's body: with the arguments in it, or with a pointer in their place.

::

    up to `message_threshold`   exactly what the inner serializer makes of it
    above, protocol 2           [[], {}, {"callbacks": …, "chain": …, "celery_s3": <pointer>}]
    above, protocol 1           {"task": …, "args": [], "kwargs": {}, "callbacks": …, "celery_s3": <pointer>}

Callbacks, errbacks, chain and chord stay in the message: a worker's main process needs them to report a failure. Only
where they make the message too large by themselves do the arguments of callbacks, chain and chord go to S3 too, those
of each signature as an object of its own, with a pointer in the signature. Errbacks stay as they are: the main process
may have to call them, and fetches nothing.

A pointer is ``{"object": name, "size": bytes, "at": where, "args": bool, "kwargs": bool}``: the object holds
``[args, kwargs]``, encoded by the inner serializer, and is named after its bytes (see :mod:`.names`).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kombu.serialization import registry
from kombu.utils.encoding import str_to_bytes

from .content import decode, encode
from .lazy import StoredArguments, Unfetched, args_as_they_are, kwargs_as_they_are
from .messages import Messages, messages_of_sender

__all__ = ["pack", "unpack"]

#: The key of a pointer, in a message and in a signature.
MARK = "celery_s3"
#: Bytes below which arguments stay where they are: a pointer is hardly smaller.
SMALL = 2048

#: Where a message carries signatures whose arguments may go to S3.
_CARRYING = ("callbacks", "chain", "chord")
#: Where a chain, a group or a chord keeps its signatures.
_PARTS = ("tasks", "header", "body")

_Change = Callable[[dict[str, Any]], dict[str, Any]]


def pack(data: Any, inner: str) -> str | bytes:
    """The body of a message; data that is no task message is encoded as the inner serializer does.

    Arguments:
        data: what Celery sends, of protocol 1 or 2.
        inner: kombu's name of the serializer for everything in it.

    Raises:
        MessageNotStored: the arguments could not be stored in S3.
        ConfigurationError: nobody has said which app the message is of.
    """
    fields = _fields(data)
    if fields is None:
        return encode(data, inner)
    messages = messages_of_sender(inner)
    sent = _change_all(fields, lambda carrier: _put_pointer_back(carrier, inner))
    payload = encode(data if sent is fields else _body(data, sent), inner)
    if _size(payload) <= messages.threshold:
        return payload
    pointing = _store_arguments(sent, messages, inner)
    payload = encode(_body(data, pointing), inner)
    if _size(payload) > messages.threshold:
        pointing = _change_all(pointing, lambda carrier: _store_arguments(carrier, messages, inner))
        payload = encode(_body(data, pointing), inner)
    return payload


def unpack(payload: str | bytes, inner: str) -> Any:
    """What :func:`pack` encoded; arguments that are in S3 are fetched when they are used, not here.

    Raises:
        kombu.exceptions.DecodeError: it is nothing that the inner serializer has written.
    """
    data = decode(payload, inner)
    fields = _fields(data)
    if fields is None:
        return data
    lazy = _change_all(fields, lambda carrier: _make_lazy(carrier, inner))
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
    """A message of these fields, in the protocol of ``data``."""
    if isinstance(data, dict):
        return dict(fields)
    embed = dict(fields)
    return type(data)((embed.pop("args"), embed.pop("kwargs"), embed))


def _change_all(fields: dict[str, Any], change: _Change) -> dict[str, Any]:
    """Change the message and the signatures that it carries; the very same fields where nothing is to change."""
    with_signatures = _change_values(fields, _CARRYING, lambda value: _change_signatures(value, change))
    return change(with_signatures)


def _change_signatures(value: Any, change: _Change) -> Any:
    """Change a signature or a list of them, and those inside of a chain, a group or a chord."""
    if isinstance(value, list | tuple):
        changed = [_change_signatures(one, change) for one in value]
        return value if all(map(operator.is_, value, changed)) else changed
    if not isinstance(value, dict) or not value.keys() >= {"args", "kwargs"}:
        return value
    if not value.get("subtask_type"):
        return change(value)

    def change_parts(kwargs: Any) -> Any:
        return _change_values(kwargs, _PARTS, lambda part: _change_signatures(part, change))

    return _change_values(value, ("kwargs",), change_parts)


def _change_values(mapping: Any, names: Iterable[str], change: Callable[[Any], Any]) -> Any:
    """The mapping with some of its values changed, or the very same where none is."""
    if not isinstance(mapping, dict):
        return mapping
    changed = {name: change(mapping[name]) for name in names if name in mapping}
    return mapping if all(mapping[name] is value for name, value in changed.items()) else {**mapping, **changed}


# -- pointers; a carrier is whatever has args and kwargs: a message, a signature


def _store_arguments(carrier: dict[str, Any], messages: Messages, inner: str) -> dict[str, Any]:
    """The carrier with its arguments in S3; as it is where they are there already, or smaller than :data:`SMALL`."""
    args, kwargs = carrier["args"], carrier["kwargs"]
    if MARK in carrier or not (args or kwargs):
        return carrier
    content = str_to_bytes(encode((args, kwargs), inner))
    if len(content) < SMALL:
        return carrier
    # Only signatures have options. They are copied from message to message, and nobody knows which message is the last
    # to need their arguments: a lifecycle rule removes these, and not a task's success.
    removable = "options" not in carrier
    pointer = messages.put(content, registry.name_to_type[inner], removable=removable)
    return _with_pointer(carrier, {**pointer, "args": bool(args), "kwargs": bool(kwargs)})


def _with_pointer(carrier: dict[str, Any], pointer: Mapping[str, Any]) -> dict[str, Any]:
    return {**carrier, "args": [], "kwargs": {}, MARK: dict(pointer)}


def _put_pointer_back(carrier: dict[str, Any], inner: str) -> dict[str, Any]:
    """The carrier with the pointer in the place of arguments that nobody has fetched: they are not stored again."""
    args, kwargs = args_as_they_are(carrier["args"]), kwargs_as_they_are(carrier["kwargs"])
    unfetched = [one.stored for one in (*args, *kwargs.values()) if type(one) is Unfetched]
    if not unfetched:
        return carrier
    first = unfetched[0]
    if first.inner == inner and first.are_all_of(args, kwargs):
        return _with_pointer(carrier, first.pointer)
    # New arguments stand beside the stored ones, as those that a chord's body gets: all of them are sent in full.
    return {**carrier, "args": _args_in_full(args), "kwargs": _kwargs_in_full(kwargs)}


def _make_lazy(carrier: dict[str, Any], inner: str) -> dict[str, Any]:
    """The carrier with arguments that are fetched when they are used instead of its pointer."""
    if MARK not in carrier:
        return carrier
    rest = {name: value for name, value in carrier.items() if name != MARK}
    return rest | StoredArguments(carrier[MARK], inner).lazily()


def _args_in_full(args: list[Any]) -> list[Any]:
    """The arguments, with those from S3 where one stood for them."""
    found: list[Any] = []
    for one in args:
        found += one.stored.args if type(one) is Unfetched else [one]
    return found


def _kwargs_in_full(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments, with those from S3 where one stood for them."""
    found: dict[str, Any] = {}
    for name, one in kwargs.items():
        found |= one.stored.kwargs if type(one) is Unfetched else {name: one}
    return found


def _size(payload: str | bytes) -> int:
    """Bytes; ASCII, which is most of what there is, is counted without a copy."""
    return len(payload) if isinstance(payload, bytes) or payload.isascii() else len(payload.encode())
