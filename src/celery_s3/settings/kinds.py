"""The kinds of values that a setting can have: how one is read from a URL, checked and described.

``parse`` makes the value from a URL's text, ``check`` returns the value to use. Both raise :class:`Wrong`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from .network import PROXY_VARIABLES, Proxies, Proxy
from .secret import Secret

__all__ = [
    "BasePath",
    "CABundle",
    "Choice",
    "Endpoint",
    "Flag",
    "Number",
    "ProxyMap",
    "Session",
    "StorageClass",
    "Tags",
    "Text",
    "Token",
    "ValueKind",
    "Wrong",
    "seconds_of",
    "shown",
    "text_of",
]

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")
_TRUTH = {"true": True, "1": True, "false": False, "0": False}
#: 1,024 bytes is S3's limit on a key: an id and the names between it and the base need room.
_MAX_BASE_BYTES = 700


class Wrong(ValueError):
    """What was given cannot be used; the message has the reason and the remedy, and no secret."""


class ValueKind:
    """What the values of a setting may be.

    Attributes:
        description: what a value is, for the documentation and for messages.
    """

    description: str

    def parse(self, text: str) -> object:
        """The value that stands in a URL as this text.

        Raises:
            Wrong: the text has not the form of one.
        """
        return text

    def check(self, value: object) -> object:
        """The value to use for one that was given.

        Raises:
            Wrong: it cannot be used.
        """
        raise NotImplementedError


def shown(value: object) -> str:
    """A value in a message: short, and with its control characters escaped."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def text_of(value: object) -> str:
    """The value as text that can go into a header, a key or a host name.

    Raises:
        Wrong: it is no text, empty, or holds control characters.
    """
    if not isinstance(value, str):
        raise Wrong(f"must be text, not {type(value).__name__}")
    if not value:
        raise Wrong("is empty: give it a value or leave it out")
    if _CONTROL.search(value):
        raise Wrong("holds a control character or a line break: remove it")
    return str(value)


class Text(ValueKind):
    """Text that matches a pattern."""

    def __init__(self, description: str, pattern: str = r"[!-~]+") -> None:
        self.description = description
        self.pattern = pattern

    def check(self, value: object) -> object:
        """The text, which must match the pattern as a whole."""
        text = text_of(value)
        if not re.fullmatch(self.pattern, text):
            raise Wrong(f"{shown(text)} is not {self.description}")
        return text


class Token(ValueKind):
    """A secret: printable ASCII without white space."""

    description = "secret text"

    def check(self, value: object) -> object:
        """The secret as a :class:`Secret`; no message shows a part of it."""
        text = text_of(value.reveal() if isinstance(value, Secret) else value)
        if not re.fullmatch(r"[!-~]+", text):
            raise Wrong("holds white space or a character outside ASCII: check that it was copied whole")
        return Secret(text)


class Flag(ValueKind):
    """A boolean; in a URL true, false, 1 or 0."""

    description = "true or false"

    def parse(self, text: str) -> object:
        """A boolean, or the text itself, which :meth:`check` refuses then."""
        return _TRUTH.get(text.lower(), text)

    def check(self, value: object) -> object:
        """The boolean; 0, 1 and texts are refused, since ``"false"`` would be true."""
        if not isinstance(value, bool):
            raise Wrong(f"{shown(value)} is not {self.description}: give the boolean, without quotes")
        return value


def seconds_of(value: Any) -> float:
    """A length of time that a setting of Celery's gives: a number of seconds, also as text, or a ``timedelta``.

    Text is what ``os.getenv`` gives; Celery's Redis backend takes it too.

    Raises:
        Wrong: it is none, or less than nothing.
    """
    try:
        seconds = value.total_seconds() if isinstance(value, timedelta) else float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise Wrong(f"is {shown(value)}: give seconds or a timedelta; 0 means for ever")
    return seconds


class Number(ValueKind):
    """A number from `low` to `high`."""

    def __init__(self, low: float, high: float, *, whole: bool = True, unit: str = "") -> None:
        self.low, self.high, self.whole = low, high, whole
        kind = "a whole number" if whole else "a number"
        self.description = f"{kind}{unit and ' of '}{unit} from {low:,} to {high:,}"

    def parse(self, text: str) -> object:
        """A number, or the text itself, which :meth:`check` refuses then."""
        try:
            return int(text) if self.whole else float(text)
        except ValueError:
            return text

    def check(self, value: object) -> object:
        """The number, which must be in the range; a ``float`` unless it is to be whole."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            raise Wrong(f"{shown(value)} is not {self.description}")
        if self.whole and not isinstance(value, int):
            raise Wrong(f"{shown(value)} is not {self.description}")
        return value if self.whole else float(value)


class Choice(ValueKind):
    """One of a few words."""

    def __init__(self, *values: str) -> None:
        self.values = values
        *most, last = (f"`{value}`" for value in values)
        self.description = f"{', '.join(most)} or {last}"

    def check(self, value: object) -> object:
        """The word, which must be one of those."""
        if text_of(value) not in self.values:
            raise Wrong(f"{shown(value)} is not {self.description}")
        return value


class StorageClass(Text):
    """A storage class whose objects can be read at once."""

    def __init__(self) -> None:
        super().__init__("a storage class, as `STANDARD_IA`", "[A-Z][A-Z0-9_]*")

    def check(self, value: object) -> object:
        """The name, in capitals; not that of an archive, from which no object can be read at once."""
        if value in ("GLACIER", "DEEP_ARCHIVE"):
            raise Wrong(f"{shown(value)} archives objects: a result in it cannot be read. Use another class")
        return super().check(value)


class Tags(ValueKind):
    """Object tags; in a URL in S3's own form, percent-encoded: ``tags=team%3Dops%26env%3Dprod``."""

    description = "a dict of at most 10 texts"

    def parse(self, text: str) -> object:
        """A dict of the pairs in ``key=value&key=value``."""
        try:
            pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=True)
        except ValueError:
            raise Wrong(f"{shown(text)} is not of the form team%3Dops%26env%3Dprod") from None
        if len({key for key, _ in pairs}) < len(pairs):
            raise Wrong("names a tag twice: remove one")
        return dict(pairs)

    def check(self, value: object) -> object:
        """The dict, with names of up to 128 and values of up to 256 characters (S3's limits)."""
        if not isinstance(value, Mapping) or len(value) > 10:
            raise Wrong(f"is not {self.description}")
        return {self._part(key, 128, "name"): self._part(item, 256, "value") for key, item in value.items()}

    def _part(self, value: object, limit: int, what: str) -> str:
        text = "" if what == "value" and value == "" else text_of(value)
        if len(text) > limit or text.lower().startswith("aws:"):
            raise Wrong(f"has the {what} {shown(text)}: at most {limit} characters, not starting with aws:")
        return text


class Session(ValueKind):
    """A session of boto3, which no URL can hold."""

    description = "a `boto3.Session`"

    def check(self, value: object) -> object:
        """Whatever makes clients as a session of boto3 does."""
        # boto3 is not imported for this: whoever has a session has it imported already
        if not callable(getattr(value, "client", None)):
            raise Wrong(f"must be {self.description}, not {type(value).__name__}")
        return value


class Endpoint(ValueKind):
    """The URL of a server: scheme, host, port and path."""

    description = "`http://` or `https://`, host, port, path"

    def check(self, value: object) -> object:
        """The URL without a slash at its end; one with credentials in it is refused, and not shown."""
        text = text_of(value)
        if "@" in text or "?" in text or "#" in text:
            # not shown: what stands there may be a password
            raise Wrong("must not hold credentials, a query or a fragment: give scheme, host and port alone")
        try:
            parts = urlsplit(text)
            right = parts.scheme in ("http", "https") and parts.hostname and " " not in text and parts.port != 0
        except ValueError:
            right = False
        if not right:
            raise Wrong(f"{shown(text)} is not an endpoint: give {self.description}, as http://localhost:9000")
        return parts._replace(scheme=parts.scheme).geturl().rstrip("/")  # the scheme in lower case


class BasePath(ValueKind):
    """What stands before every key; `verbatim` as Celery's own backend has it, else normalised."""

    description = "a path in the bucket"

    def __init__(self, *, verbatim: bool = False) -> None:
        self.verbatim = verbatim

    def check(self, value: object) -> object:
        """The path with one slash at its end, or as it was given where it is ``verbatim``."""
        if value == "":
            return ""
        text = text_of(value)
        base = text if self.verbatim else "".join(f"{segment}/" for segment in text.split("/") if segment)
        # the last segment of a verbatim base goes on with the key's name
        if {".", ".."} & set(base.split("/")[:-1]):
            raise Wrong(f"{shown(text)} has a segment `.` or `..`, which HTTP clients fold: rename it")
        if len(base.encode()) > _MAX_BASE_BYTES:
            raise Wrong(f"is longer than {_MAX_BASE_BYTES} bytes, S3 allows 1,024 for a whole key: shorten it")
        return base


class ProxyMap(ValueKind):
    """Proxies by the scheme of the requests that go through them, as ``requests`` and boto3 have them."""

    description = "a dict of `http`, `https` or `all` to a proxy's URL; `{}` for none"

    def check(self, value: object) -> object:
        """The proxies as :class:`Proxies`; no message shows a URL, which may hold a password."""
        if not isinstance(value, Mapping) or not value.keys() <= PROXY_VARIABLES.keys():
            raise Wrong(f"is not {self.description}")
        return Proxies({scheme: Proxy(proxy_url(url)) for scheme, url in value.items()})


def proxy_url(value: object) -> Secret:
    """A proxy's URL as both clients understand it.

    Raises:
        Wrong: one of them would not.
    """
    text = text_of(value.reveal() if isinstance(value, Secret) else value)
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        right = bool(parts.hostname) and parts.port != 0 and re.fullmatch("[!-~]+", text)
    except ValueError:
        right = False
    if not right:
        raise Wrong("is not a proxy's URL: give http://host:port, in user and password %40 for `@` and %3A for `:`")
    if parts.scheme not in ("http", "https"):
        raise Wrong(
            "is not the URL of an HTTP proxy, and neither S3 client can use another (SOCKS): give http://host:port,"
            " name the server's host in NO_PROXY, or set `proxies` to {} for none"
        )
    if bool(parts.username) != bool(parts.password):
        raise Wrong("has one of user and password: give both or neither, for boto3 would send neither")
    return Secret(f"{parts.scheme}://{parts.netloc}")


class CABundle(ValueKind):
    """Whether and by what certificates the server is verified."""

    description = "true, false or the path of a CA bundle (PEM)"

    def parse(self, text: str) -> object:
        """A boolean, or the path itself."""
        return _TRUTH.get(text.lower(), text)

    def check(self, value: object) -> object:
        """A boolean, or the path of a file that exists, with ``~`` expanded."""
        if isinstance(value, bool):
            return value
        path = os.path.expanduser(text_of(os.fspath(value) if isinstance(value, os.PathLike) else value))
        if not os.path.isfile(path):
            raise Wrong(f"there is no file {shown(path)}: give {self.description}")
        return path
