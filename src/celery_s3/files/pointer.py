"""What stands for a file in a result or a message; nothing in one can name an object that is no file of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from celery_s3.keys import FILES

__all__ = ["Pointer", "check_content_type", "check_name", "clean_name", "printable"]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SERVER = re.compile(r"(?:[0-9a-f]{16})?")
_CONTENT_TYPE = re.compile(r"[!-.0-~]+/[ -~]+")
#: No separator, control character or lone surrogate.
_NAME = re.compile(r"[^/\\\x00-\x1f\x7f-\x9f\ud800-\udfff]*")
#: Bytes of the largest object that S3 may ever hold, by far.
_LARGEST = 2**50
#: Bytes of the longest name: a file system's limit.
_LONGEST = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointer:
    """A stored file.

    Attributes:
        key: of the object, without the prefix of all files.
        at: bucket and prefix, as ``s3://bucket/prefix``: only to be compared and shown, never to be read from.
        server: what tells servers apart: a part of the SHA-256 of `endpoint_url`, empty for AWS.
        size: in bytes.
        sha256: of the file's content, in 64 hexadecimal digits.
        name: without a folder, empty where it has none.
        content_type: as ``application/pdf``.
        sealed: the object is not the file as it is: `seal_keys` were set.
    """

    key: str
    at: str
    size: int
    sha256: str
    name: str
    content_type: str
    sealed: bool = False
    server: str = ""

    def dumps(self) -> dict[str, Any]:
        """The pointer as JSON has it."""
        return asdict(self)

    @classmethod
    def loads(cls, value: object) -> Pointer:
        """The pointer that :meth:`dumps` has written; fields of later releases are passed over.

        Raises:
            ValueError: it is no pointer.
        """
        if not isinstance(value, Mapping):
            raise ValueError("it is no mapping")  # noqa: TRY004 (whatever is wrong with it)
        size, sealed = value.get("size"), value.get("sealed", False)
        if type(size) is not int or not 0 <= size < _LARGEST:
            raise ValueError("its size is no size")
        if type(sealed) is not bool:
            raise ValueError("it does not say whether it is sealed")
        return cls(
            key=_matching(value, "key", FILES.rest),
            at=_place(value),
            size=size,
            sha256=_matching(value, "sha256", _SHA256),
            name=check_name(_text(value, "name")),
            content_type=check_content_type(_text(value, "content_type")),
            sealed=sealed,
            server=_matching({"server": "", **value}, "server", _SERVER),
        )


def _text(value: Mapping[Any, Any], field: str) -> str:
    found = value.get(field)
    if type(found) is not str or len(found) > 2048:
        raise ValueError(f"its {field} is no short text")
    return found


def _matching(value: Mapping[Any, Any], field: str, pattern: re.Pattern[str]) -> str:
    found = _text(value, field)
    if not pattern.fullmatch(found):
        raise ValueError(f"its {field} is none")
    return found


def _place(value: Mapping[Any, Any]) -> str:
    """Printable, since errors, logs and terminals show it, and anybody who can send messages may have written it."""
    at = _text(value, "at")
    if not at.startswith("s3://") or not at.isprintable():
        raise ValueError("its place is none")
    return at


def printable(text: str) -> str:
    """The text as a line of a log may show it."""
    return "".join(char if char.isprintable() else "_" for char in text)


def check_name(name: str) -> str:
    """The name, which must be one that a file may have in any folder.

    Raises:
        ValueError: it is not.
    """
    if name in (".", "..") or not _NAME.fullmatch(name) or len(name.encode()) > _LONGEST:
        raise ValueError(f"name is {name[:80]!r}: give a file's name, without a folder, of {_LONGEST} bytes at most")
    return name


def clean_name(found: object) -> str:
    """The name of a path or a file object as far as it may be one; empty where it is none."""
    if not isinstance(found, str) or found.startswith("<"):  # a descriptor's number, or <stdin>
        return ""
    name = re.sub(r"[\\\x00-\x1f\x7f-\x9f\ud800-\udfff]", "_", found.rpartition("/")[2])
    try:
        return check_name(name)
    except ValueError:
        return ""


def check_content_type(content_type: str) -> str:
    """The content type, which must be one that a header can hold.

    Raises:
        ValueError: it cannot stand in a header.
    """
    if not _CONTENT_TYPE.fullmatch(content_type) or len(content_type) > _LONGEST:
        raise ValueError(f"content_type is {content_type[:80]!r}: give one as 'application/pdf'")
    return content_type
