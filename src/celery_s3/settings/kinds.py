"""The kinds of values that a setting can have: how one is read from a URL, checked and described.

``parse`` makes the value from a URL's text, ``check`` returns the value to use. Both raise :class:`Wrong`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Protocol
from urllib.parse import parse_qsl

from .model import Secret

__all__ = [
    "Choice",
    "Flag",
    "Kind",
    "Number",
    "Session",
    "StorageClass",
    "Tags",
    "Text",
    "Token",
    "Wrong",
    "shown",
    "text_of",
]

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")
TRUTH = {"true": True, "1": True, "false": False, "0": False}


class Wrong(ValueError):
    """What was given cannot be used; the message has the reason and the remedy, and no secret."""


class Kind(Protocol):
    @property
    def says(self) -> str:
        """What a value is, for the documentation and for messages."""
        ...

    def parse(self, text: str) -> object: ...

    def check(self, value: object) -> object: ...


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


class Text:
    """Text that matches a pattern."""

    def __init__(self, says: str, pattern: str = r"[!-~]+") -> None:
        self.says = says
        self.pattern = pattern

    def parse(self, text: str) -> object:
        return text

    def check(self, value: object) -> object:
        text = text_of(value)
        if not re.fullmatch(self.pattern, text):
            raise Wrong(f"{shown(text)} is not {self.says}")
        return text


class Token:
    """A secret: printable ASCII without white space."""

    says = "secret text"

    def parse(self, text: str) -> object:
        return text

    def check(self, value: object) -> object:
        text = text_of(value.reveal() if isinstance(value, Secret) else value)
        if not re.fullmatch(r"[!-~]+", text):
            raise Wrong("holds white space or a character outside ASCII: check that it was copied whole")
        return Secret(text)


class Flag:
    says = "true or false"

    def parse(self, text: str) -> object:
        return TRUTH.get(text.lower(), text)

    def check(self, value: object) -> object:
        if not isinstance(value, bool):
            raise Wrong(f"{shown(value)} is not {self.says}: give the boolean, without quotes")
        return value


class Number:
    """A number from `low` to `high`."""

    def __init__(self, low: float, high: float, *, whole: bool = True, unit: str = "") -> None:
        self.low, self.high, self.whole = low, high, whole
        kind = "a whole number" if whole else "a number"
        self.says = f"{kind}{unit and ' of '}{unit} from {low:,} to {high:,}"

    def parse(self, text: str) -> object:
        try:
            return int(text) if self.whole else float(text)
        except ValueError:
            return text

    def check(self, value: object) -> object:
        right = isinstance(value, int if self.whole else (int, float)) and not isinstance(value, bool)
        if not right or not self.low <= value <= self.high:  # type: ignore[operator]
            raise Wrong(f"{shown(value)} is not {self.says}")
        return value if self.whole else float(value)  # type: ignore[arg-type]


class Choice:
    def __init__(self, *values: str) -> None:
        self.values = values
        *most, last = (f"`{value}`" for value in values)
        self.says = f"{', '.join(most)} or {last}"

    def parse(self, text: str) -> object:
        return text

    def check(self, value: object) -> object:
        if text_of(value) not in self.values:
            raise Wrong(f"{shown(value)} is not {self.says}")
        return value


class StorageClass(Text):
    def __init__(self) -> None:
        super().__init__("a storage class, as `STANDARD_IA`", "[A-Z][A-Z0-9_]*")

    def check(self, value: object) -> object:
        if value in ("GLACIER", "DEEP_ARCHIVE"):
            raise Wrong(f"{shown(value)} archives objects: a result in it cannot be read. Use another class")
        return super().check(value)


class Tags:
    """Object tags; in a URL in S3's own form, percent-encoded: ``tags=team%3Dops%26env%3Dprod``."""

    says = "a dict of at most 10 texts"

    def parse(self, text: str) -> object:
        try:
            pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=True)
        except ValueError:
            raise Wrong(f"{shown(text)} is not of the form team%3Dops%26env%3Dprod") from None
        if len({key for key, _ in pairs}) < len(pairs):
            raise Wrong("names a tag twice: remove one")
        return dict(pairs)

    def check(self, value: object) -> object:
        if not isinstance(value, Mapping) or len(value) > 10:
            raise Wrong(f"is not {self.says}")
        return {self._part(key, 128, "name"): self._part(item, 256, "value") for key, item in value.items()}

    def _part(self, value: object, limit: int, what: str) -> str:
        text = "" if what == "value" and value == "" else text_of(value)
        if len(text) > limit or text.lower().startswith("aws:"):
            raise Wrong(f"has the {what} {shown(text)}: at most {limit} characters, not starting with aws:")
        return text


class Session:
    says = "a `boto3.Session`"

    def parse(self, text: str) -> object:
        return text

    def check(self, value: object) -> object:
        # boto3 is not imported for this: whoever has a session has it imported already
        if not callable(getattr(value, "client", None)):
            raise Wrong(f"must be {self.says}, not {type(value).__name__}")
        return value
