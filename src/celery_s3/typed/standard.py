"""The standard library's types that travel without being registered."""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

__all__ = ["STANDARD", "expect", "hashable"]

T = TypeVar("T")

# ZoneInfo opens a file, or a resource of the package tzdata, of that name: no `..`, and nothing absolute.
_ZONE = re.compile(r"[A-Za-z0-9_+-]+(?:/[A-Za-z0-9_+-]+)*")


def expect(cls: type[T], value: object) -> T:
    """The value, which must be of exactly this class.

    Raises:
        TypeError: it is not.
    """
    if type(value) is not cls:
        raise TypeError(f"{cls.__name__} expected, not {type(value).__name__}")
    return value


#: Members of one set, or keys of one dict, that may share a hash.
_SAME_HASH = 64


def hashable(values: Iterable[Any]) -> None:
    """Refuse values that were chosen to share a hash, as numbers can be: a set of them takes the square of their time.

    Raises:
        ValueError: too many of them do.
        TypeError: one has no hash.
    """
    if max(Counter(map(hash, values)).values(), default=0) > _SAME_HASH:
        raise ValueError(f"more than {_SAME_HASH} of its members have the same hash")


def _set_of(cls: Callable[[list[Any]], T]) -> Callable[[object], T]:
    def decode(value: object) -> T:
        found = expect(list, value)
        hashable(found)
        return cls(found)

    return decode


def _bytes(value: object) -> bytes:
    return b64decode(expect(str, value), validate=True)


def _zone(value: object) -> ZoneInfo:
    key = expect(str, value)
    if not _ZONE.fullmatch(key):
        raise ValueError("not the name of a time zone")
    return ZoneInfo(key)


def _zone_key(zone: ZoneInfo) -> str:
    if zone.key is None:
        raise ValueError("a ZoneInfo that was made from a file has no key to name it by")
    return zone.key


def _encode_moment(moment: datetime | time) -> Any:
    """ISO 8601; with zone and fold beside it where that is not all."""
    if isinstance(moment.tzinfo, ZoneInfo) or (moment.fold and moment.tzinfo is None):
        return [moment.replace(tzinfo=None).isoformat(), moment.tzinfo, moment.fold]
    if moment.tzinfo is not None and moment.utcoffset() is None:
        raise ValueError(f"the offset of a time in {moment.tzinfo!r} is not known without a date")
    return moment.isoformat()


def _moment(cls: type[datetime] | type[time]) -> Callable[[Any], datetime | time]:
    def decode(value: Any) -> datetime | time:
        if isinstance(value, str):
            return cls.fromisoformat(value)
        wall, zone, fold = expect(list, value)
        if not isinstance(zone, tzinfo | None):
            raise TypeError(f"time zone expected, not {type(zone).__name__}")
        return cls.fromisoformat(expect(str, wall)).replace(tzinfo=zone, fold=expect(int, fold))

    return decode


def _timedelta(value: object) -> timedelta:
    days, seconds, microseconds = (expect(int, part) for part in expect(list, value))
    return timedelta(days, seconds, microseconds)


def _of_list(cls: Callable[[list[Any]], T]) -> Callable[[object], T]:
    return lambda value: cls(expect(list, value))


def _of_text(cls: Callable[[str], T]) -> Callable[[object], T]:
    return lambda value: cls(expect(str, value))


#: Name, class, encoder, decoder. What JSON has itself, and dicts with other keys than text, are in ``wire.py``.
STANDARD: tuple[tuple[str, type, Callable[[Any], Any], Callable[[Any], Any]], ...] = (
    ("py.tuple", tuple, list, _of_list(tuple)),
    ("py.set", set, list, _set_of(set)),
    ("py.frozenset", frozenset, list, _set_of(frozenset)),
    ("py.bytes", bytes, lambda value: b64encode(value).decode(), _bytes),
    ("py.datetime", datetime, _encode_moment, _moment(datetime)),
    ("py.date", date, date.isoformat, _of_text(date.fromisoformat)),
    ("py.time", time, _encode_moment, _moment(time)),
    ("py.timedelta", timedelta, lambda value: [value.days, value.seconds, value.microseconds], _timedelta),
    ("py.timezone", timezone, lambda value: value.utcoffset(None), timezone),
    ("py.zoneinfo", ZoneInfo, _zone_key, _zone),
    ("py.decimal", Decimal, str, _of_text(Decimal)),
    ("py.uuid", UUID, str, _of_text(UUID)),
)
