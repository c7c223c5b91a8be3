"""How a class is taken apart and rebuilt: by its constructor, never by setting attributes."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum, Flag
from typing import Any

from .standard import expect

__all__ = ["codec_of"]

#: Encoder and decoder: from a value to one that ``typed+json`` can hold, and back.
Codec = tuple[Callable[[Any], Any], Callable[[Any], Any]]


def codec_of(cls: type) -> Codec:
    """Encoder and decoder of an enum, a pydantic model, a dataclass or a named tuple.

    Raises:
        TypeError: it is none of these, or cannot be rebuilt from what it holds.
    """
    if issubclass(cls, Enum):
        return _enum(cls)
    if _is_pydantic(cls):
        return _pydantic(cls)
    if is_dataclass(cls):
        return _dataclass(cls)
    if issubclass(cls, tuple) and (names := getattr(cls, "_fields", None)) is not None:  # a named tuple
        return _by_keyword(cls, names)
    raise TypeError(
        f"{cls.__qualname__} is no dataclass, named tuple, enum or pydantic model: tell how it is taken apart and"
        " rebuilt, as register(cls, name=…, encode=lambda value: …, decode=lambda stored: …)"
    )


def _enum(cls: type[Enum]) -> Codec:
    if issubclass(cls, Flag):
        # by value, since a combination of members need not have a name
        return (lambda member: member.value), (lambda value: cls(expect(int, value)))
    return (lambda member: member.name), (lambda name: cls.__members__[expect(str, name)])


def _by_keyword(cls: type, names: Iterable[str]) -> Codec:
    known = tuple(names)

    def encode(value: Any) -> dict[str, Any]:
        return {name: getattr(value, name) for name in known}

    def decode(stored: object) -> Any:
        return cls(**_checked_fields(known, stored))

    return encode, decode


def _checked_fields(known: Iterable[str], stored: object) -> Mapping[str, Any]:
    """The stored fields, none of them unknown; for one that is missing the class' default is taken."""
    found = expect(dict, stored)
    if strange := found.keys() - set(known):
        raise TypeError(f"it has no field {', '.join(sorted(map(repr, strange)))}")
    return found


def _dataclass(cls: type) -> Codec:
    # What is not passed to the constructor is what the class computes by itself.
    names = [field.name for field in fields(cls) if field.init]
    if odd := _without_counterpart(names, inspect.signature(cls).parameters.values()):
        raise TypeError(
            f"{cls.__qualname__} cannot be rebuilt from its fields: its constructor does not take them, or needs"
            f" others, see {', '.join(odd)}; give register() an `encode` and a `decode`"
        )
    return _by_keyword(cls, names)


def _without_counterpart(names: list[str], parameters: Iterable[inspect.Parameter]) -> list[str]:
    """Parameters that must be given and are no field, as an InitVar is, and fields that are no parameter."""
    named = {one.name: one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
    needed = [one.name for one in named.values() if one.default is one.empty and one.name not in names]
    return needed + [name for name in names if name not in named]


def _is_pydantic(cls: type) -> bool:
    pydantic = sys.modules.get("pydantic")  # a model's class exists only where it was imported
    return pydantic is not None and issubclass(cls, pydantic.BaseModel)


def _pydantic(cls: Any) -> Codec:
    if "by_name" not in inspect.signature(cls.model_validate).parameters:
        raise TypeError(f"{cls.__qualname__}: pydantic 2.11 or later is needed")
    if getattr(cls, "__pydantic_root_model__", False):
        return (lambda model: model.root), cls.model_validate
    names = [name for name, field in cls.model_fields.items() if not field.exclude]
    if lost := [name for name, field in cls.model_fields.items() if field.exclude and field.is_required()]:
        raise TypeError(
            f"{cls.__qualname__} cannot be rebuilt: {', '.join(lost)} must be there, and is excluded from what is"
            " stored; give it a default, or give register() an `encode` and a `decode`"
        )

    def encode(model: Any) -> dict[str, Any]:
        # Not model_dump(): that forgets which class a nested model is of.
        return {name: getattr(model, name) for name in names} | (model.model_extra or {})

    def decode(stored: object) -> Any:
        return cls.model_validate(expect(dict, stored), by_alias=False, by_name=True)

    return encode, decode
