"""The table of types that ``typed+json`` knows, by class and by name."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar, overload

from .classes import codec_of
from .standard import STANDARD

__all__ = ["register", "type_named", "type_of"]

T = TypeVar("T")

#: Our types of other packages, and the module of this folder that knows each: it imports the package, and is loaded for
#: one of these names alone. Whatever else a payload says imports nothing.
_MODULES = {
    "celery_s3.file": "files",
    "numpy.array": "arrays",
    "numpy.scalar": "arrays",
    "pandas.frame": "frames",
    "pyarrow.table": "tables",
}
#: The same by package, for classes: theirs is imported already.
_FAMILIES = {name.partition(".")[0]: module for name, module in _MODULES.items()}
_RESERVED = ("py", *_FAMILIES)


@dataclass(frozen=True, slots=True)
class Type:
    """How the values of a class travel.

    Attributes:
        name: stands in what is stored.
        encode: from a value to one that ``typed+json`` can hold.
        decode: back again. It gets whatever a payload says, and raises where that makes no value.
    """

    name: str
    cls: type
    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]


_by_class: dict[type, Type] = {}
_by_name: dict[str, Type] = {}


def type_of(cls: type) -> Type | None:
    """The type of exactly this class, not of one it derives from: that would come back as something else.

    Raises:
        ImportError: its package needs another one to be stored, as pandas needs pyarrow.
    """
    found = _by_class.get(cls)
    if found is None and _load(_FAMILIES.get(_package(cls))):
        found = _by_class.get(cls)
    return found


def type_named(name: str) -> Type | None:
    """The type of that name.

    Raises:
        ImportError: it needs a package that is not installed here.
    """
    found = _by_name.get(name)
    if found is None and _load(_MODULES.get(name)):
        found = _by_name.get(name)
    return found


def _package(cls: type) -> str:
    return str(cls.__module__).partition(".")[0]


def _load(module: str | None) -> bool:
    """Add the types of a module of this folder; whether there is one."""
    if module is None:
        return False
    for name, classes, encode, decode in import_module(f"{__package__}.{module}").TYPES:
        _add(name, classes, encode, decode)
    return True


def _add(name: str, classes: tuple[type, ...], encode: Callable[[Any], Any], decode: Callable[[Any], Any]) -> None:
    for cls in classes:
        _by_name[name] = _by_class[cls] = Type(name, cls, encode, decode)


@overload
def register(
    cls: type[T],
    *,
    name: str,
    encode: Callable[[T], Any] | None = None,
    decode: Callable[[Any], T] | None = None,
) -> type[T]: ...


@overload
def register(
    *,
    name: str,
    encode: Callable[[Any], Any] | None = None,
    decode: Callable[[Any], Any] | None = None,
) -> Callable[[type[T]], type[T]]: ...


def register(
    cls: type[Any] | None = None,
    *,
    name: str,
    encode: Callable[[Any], Any] | None = None,
    decode: Callable[[Any], Any] | None = None,
) -> Any:
    """Let values of a class travel as ``typed+json``; as a decorator or a call, in a module that both ends import.

    Dataclasses, named tuples, enums and pydantic models (2.11 or later) need nothing but a name; any other class
    needs both functions.

    Arguments:
        name: stands in what is stored, and must stay the same for as long as that is to be read; the class itself
            may be renamed or moved.
        encode: makes of an instance any value that ``typed+json`` can hold.
        decode: makes an instance of that value again, and raises where it cannot.

    Raises:
        TypeError: the class cannot be taken apart and rebuilt without ``encode`` and ``decode``.
        ValueError: the name or the class is taken.
    """
    if cls is None:
        return lambda decorated: register(decorated, name=name, encode=encode, decode=decode)
    if not isinstance(cls, type):
        raise TypeError(f"register() takes a class, not {cls!r}")
    if (encode is None) != (decode is None):
        raise TypeError(f"{cls.__qualname__}: give both `encode` and `decode`, or neither")
    _check_free(cls, name)
    if encode is None or decode is None:
        encode, decode = codec_of(cls)
    _add(name, (cls,), encode, decode)
    return cls


def _check_free(cls: type, name: str) -> None:
    if not name or name.partition(".")[0] in _RESERVED:
        raise ValueError(
            f"{name!r} cannot be the name of {cls.__qualname__}: it must not be empty, nor start with"
            f" {', '.join(_RESERVED)} and a dot; take one as 'shop.order'"
        )
    with suppress(ImportError):
        _load(_FAMILIES.get(_package(cls)))
    by_name, by_class = _by_name.get(name), _by_class.get(cls)
    if by_name is not None and not _same(by_name.cls, cls):
        raise ValueError(f"{name!r} is the name of {by_name.cls!r} already: give {cls!r} another one")
    if by_class is not None and by_class.name != name:
        raise ValueError(f"{cls!r} is registered as {by_class.name!r} already: a class has one name")


def _same(known: type, cls: type) -> bool:
    """Whether it is the same class, perhaps of a module that was loaded again."""
    return (known.__module__, known.__qualname__) == (cls.__module__, cls.__qualname__)


for _name, _cls, _encode, _decode in STANDARD:
    _add(_name, (_cls,), _encode, _decode)
