"""The kinds of settings that name a place: a server, a path in the bucket, a file."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from .kinds import TRUTH, Wrong, shown, text_of

__all__ = ["BasePath", "CABundle", "Endpoint"]

#: 1,024 bytes is S3's limit on a key: an id and the names between it and the base need room.
MAX_BASE_BYTES = 700


class Endpoint:
    """The URL of a server: scheme, host, port and path."""

    says = "`http://` or `https://`, host, port, path"

    def parse(self, text: str) -> object:
        return text

    def check(self, value: object) -> object:
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
            raise Wrong(f"{shown(text)} is not an endpoint: give {self.says}, as http://localhost:9000")
        return text.rstrip("/")


class BasePath:
    """What stands before every key; `verbatim` as Celery's own backend has it, else normalised."""

    says = "a path in the bucket"

    def __init__(self, *, verbatim: bool = False) -> None:
        self.verbatim = verbatim

    def parse(self, text: str) -> object:
        return text

    def check(self, value: object) -> object:
        if value == "":
            return ""
        text = text_of(value)
        base = text if self.verbatim else "".join(f"{segment}/" for segment in text.split("/") if segment)
        # the last segment of a verbatim base goes on with the key's name
        if {".", ".."} & set(base.split("/")[:-1]):
            raise Wrong(f"{shown(text)} has a segment `.` or `..`, which HTTP clients fold: rename it")
        if len(base.encode()) > MAX_BASE_BYTES:
            raise Wrong(f"is longer than {MAX_BASE_BYTES} bytes, S3 allows 1,024 for a whole key: shorten it")
        return base


class CABundle:
    """Whether and by what certificates the server is verified."""

    says = "true, false or the path of a CA bundle (PEM)"

    def parse(self, text: str) -> object:
        return TRUTH.get(text.lower(), text)

    def check(self, value: object) -> object:
        if isinstance(value, bool):
            return value
        path = os.path.expanduser(text_of(os.fspath(value) if isinstance(value, os.PathLike) else value))
        if not os.path.isfile(path):
            raise Wrong(f"there is no file {shown(path)}: give {self.says}")
        return path
