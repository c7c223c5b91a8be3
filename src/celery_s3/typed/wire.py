"""``typed+json`` itself: JSON, where ``{"$type": name, "value": …}`` stands for what JSON does not have.

A dict that has a key ``$type``, or a key that is no text, is such a value too: a list of pairs. So no user's data is
ever taken for a type.
"""

from __future__ import annotations

import json
from enum import Enum
from math import isfinite
from types import NoneType
from typing import Any

from celery_s3.errors import NotDecodable, NotEncodable

from .registry import type_named, type_of
from .standard import expect, hashable

__all__ = ["MAX_DEPTH", "dumps", "loads"]

#: How deep the JSON may be nested; a tuple is two levels, a dict with other keys than text three. Far from Python's own
#: limit, so that what one process has written any other can read, however deep its stack is already.
MAX_DEPTH = 200

_MARK, _VALUE = "$type", "value"
_ENVELOPE = {_MARK, _VALUE}
_PLAIN = frozenset({str, bool, NoneType})
#: Integers that JSON readers of other languages take as such. Larger ones travel in hexadecimal digits, on which Python
#: has no limit (``int()`` takes 4,300 decimal ones).
_INTEGERS = range(-(2**63), 2**64)


def dumps(value: Any) -> str:
    """A value as ``typed+json``: ASCII, and standard JSON (no ``NaN``).

    Raises:
        NotEncodable: a type in it is not registered, or it is nested too deeply.
    """
    try:
        return _WRITER.encode(_encode(value, MAX_DEPTH))
    except RecursionError as exc:
        raise NotEncodable(_TOO_DEEP) from exc


def loads(payload: str | bytes | bytearray | memoryview) -> Any:
    """The value that :func:`dumps` has written.

    Raises:
        NotDecodable: it is no ``typed+json``, or names a type that is not registered here.
    """
    try:
        return _READER.decode(payload if isinstance(payload, str) else bytes(payload).decode())
    except RecursionError as exc:
        raise NotDecodable(_TOO_DEEP) from exc
    except ValueError as exc:
        raise NotDecodable(f"not typed+json: {exc}") from exc


# -- writing

_TOO_DEEP = f"the value is nested more than {MAX_DEPTH} levels deep, or contains itself: flatten it"
_WRITER = json.JSONEncoder(allow_nan=False, check_circular=False, separators=(",", ":"))


def _encode(value: Any, levels: int) -> Any:
    """The value as JSON has it; ``levels`` may still follow below it."""
    cls = type(value)
    if cls in _PLAIN:
        return value
    if cls is int:
        return value if value in _INTEGERS else {_MARK: "py.int", _VALUE: hex(value)}
    if cls is float:
        return value if isfinite(value) else {_MARK: "py.float", _VALUE: repr(value)}
    if not levels:
        raise NotEncodable(_TOO_DEEP)
    levels -= 1
    if cls is list:
        return [one if type(one) in _PLAIN else _encode(one, levels) for one in value]
    if cls is dict:
        return _encode_dict(value, levels)
    return _encode_typed(value, cls, levels)


def _encode_dict(value: dict[Any, Any], levels: int) -> Any:
    if _MARK not in value and all(type(key) is str for key in value):
        return {key: one if type(one) in _PLAIN else _encode(one, levels) for key, one in value.items()}
    if levels < 2:
        raise NotEncodable(_TOO_DEEP)
    pairs = [[_encode(key, levels - 2), _encode(one, levels - 2)] for key, one in value.items()]
    return {_MARK: "py.dict", _VALUE: pairs}


def _encode_typed(value: Any, cls: type, levels: int) -> Any:
    try:
        kind = type_of(cls)
        inner = None if kind is None else kind.encode(value)
    except Exception as exc:
        raise NotEncodable(f"a value of type {_path(cls)} cannot be stored as typed+json: {_one_line(exc)}") from exc
    if kind is None:
        return _encode(_as_base(value, cls), levels)
    return {_MARK: kind.name, _VALUE: _encode(inner, levels)}


def _as_base(value: Any, cls: type) -> Any:
    """A value of a subclass of dict, list or str as what it derives from; Celery's signatures are such."""
    if not isinstance(value, Enum):
        if isinstance(value, dict):
            return dict(value)
        if isinstance(value, list):
            return list(value)
        if isinstance(value, str):
            return str.__str__(value)
    raise NotEncodable(
        f"a value of type {_path(cls)} cannot be stored as typed+json: the type is not registered. Register it in a"
        f' module that worker and caller import, celery_s3.typed.register({cls.__name__}, name="…"), or return what'
        " is made of registered types."
    )


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _one_line(exc: BaseException) -> str:
    """An error as one line of at most 300 characters: libraries repeat whole values in theirs."""
    text = " ".join(f"{type(exc).__name__}: {exc}".split())
    return text if len(text) <= 300 else f"{text[:300]}…"


# -- reading


def _decode(found: dict[str, Any]) -> Any:
    """What a JSON object stands for; JSON decodes from the inside, so the objects in it are values already."""
    if _MARK not in found:
        return found
    name = found[_MARK]
    if found.keys() != _ENVELOPE or type(name) is not str:
        raise NotDecodable('not typed+json: an object with a "$type" has just a name and a "value"')
    decode = _OWN.get(name) or _decoder(name)
    try:
        return decode(found[_VALUE])
    except NotDecodable:
        raise
    except Exception as exc:
        raise NotDecodable(f"the value cannot be read as {name[:100]!r}: {_one_line(exc)}") from exc


def _decoder(name: str) -> Any:
    try:
        kind = type_named(name)
    except ImportError as exc:
        package = name.partition(".")[0]
        raise NotDecodable(f"a value of type {name[:100]!r} needs {package}, which cannot be imported: {exc}") from exc
    if kind is None:
        raise NotDecodable(
            f"no type is registered as {name[:100]!r} in this process: import the module that calls"
            f" celery_s3.typed.register(…, name={name[:100]!r}) before reading, in a worker by Celery's `imports`"
        )
    return kind.decode


def _int(value: object) -> int:
    return int(expect(str, value), 16)


def _float(value: object) -> float:
    return float(expect(str, value))


def _dict(value: object) -> dict[Any, Any]:
    pairs = expect(list, value)
    hashable(key for key, _ in pairs)
    return {key: one for key, one in pairs}  # noqa: C416 (dict() would take more than pairs)


_OWN = {"py.int": _int, "py.float": _float, "py.dict": _dict}
_READER = json.JSONDecoder(object_hook=_decode)
