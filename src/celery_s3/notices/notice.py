"""What a notice says, and how the bytes that come with it take the place of a GET.

On the wire: a line of JSON with the key of the result, its content type and user metadata, then the body of the object
as it was sent to S3. What was sealed stays sealed. Without content type nothing came along but the key.

:class:`Noticing` stands below ``Sealing``: there it sees the bytes as they are stored, and there it answers the one GET
that a notice has answered already. So what was told goes through the same checks as what was fetched: seals, terms,
`result_accept_content`, `decompression_limit`. Whoever can forge a notice can do nothing that whoever can write to the
bucket could not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

from celery_s3.store.api import Object, Store
from celery_s3.store.requests import Get, Put, Request

__all__ = ["LARGEST", "PREFIX", "Notice", "Noticing", "answered_by", "dumps", "is_address", "loads", "watched"]

A = TypeVar("A")

#: Bytes of the largest body that goes along.
LARGEST = 2048
#: Bytes of the largest notice: such a body, the 2 KB of metadata that S3 allows, a key, and JSON's escapes.
_LONGEST = 32 * 1024
#: What the names of queues for notices begin with; the rest is a UUID.
PREFIX = "celery-s3-notices-"
_ADDRESS = re.compile(PREFIX + "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Notice:
    """A result is there.

    Attributes:
        key: of its object.
        stored: the object, where its bytes came along.
    """

    key: str
    stored: Object | None


def dumps(key: str, stored: Put | None) -> bytes:
    """The notice that ``key`` was written, with what was ``stored`` there unless that is ``None`` or too large."""
    head: dict[str, Any] = {"key": key}
    if stored is None or len(stored.body) > LARGEST:
        return json.dumps(head).encode()
    head |= {"type": stored.content_type, "metadata": dict(stored.metadata)}
    return json.dumps(head).encode() + b"\n" + _bytes(stored.body)


def loads(payload: object) -> Notice | None:
    """A notice; ``None`` for anything else, which a stranger may have sent."""
    if not isinstance(payload, bytes | memoryview) or len(payload) > _LONGEST:
        return None
    head, _, body = bytes(payload).partition(b"\n")
    try:
        said = json.loads(head)
        key, content_type, metadata = said["key"], said.get("type"), said.get("metadata")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    if not isinstance(key, str):
        return None
    if not isinstance(content_type, str) or not _are_texts(metadata):
        return Notice(key, None)
    # It was stored just now, by whatever clock: nobody is told when by a message.
    about = "", datetime.now(UTC).replace(microsecond=0), metadata, content_type
    return Notice(key, Object(key, body, len(body), *about))


def is_address(name: str) -> bool:
    """Whether a queue for notices may have this name: workers send them to no others, and no others are deleted."""
    return _ADDRESS.fullmatch(name) is not None


def _are_texts(found: object) -> bool:
    return isinstance(found, dict) and all(isinstance(one, str) for pair in found.items() for one in pair)


def _bytes(body: bytes | str) -> bytes:
    return body.encode() if isinstance(body, str) else body


_writes: ContextVar[list[Put] | None] = ContextVar("celery-s3-writes", default=None)
_answer: ContextVar[Object | None] = ContextVar("celery-s3-answer", default=None)


@contextmanager
def watched() -> Iterator[list[Put]]:
    """The PUTs that are done in here by this thread, as they were stored."""
    writes: list[Put] = []
    token = _writes.set(writes)
    try:
        yield writes
    finally:
        _writes.reset(token)


@contextmanager
def answered_by(stored: Object | None) -> Iterator[None]:
    """Inside, a GET of this object from its beginning is no request."""
    token = _answer.set(stored)
    try:
        yield
    finally:
        _answer.reset(token)


class Noticing(Store):
    """Lets who wants to know see what is stored, and what was told stand for what is stored."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner

    def send(self, request: Request[A]) -> A:
        """Pass a request on, but for a GET that is answered already."""
        if isinstance(request, Get):
            told = _answer.get()
            if told is not None and told.key == request.key and not request.start and request.if_match is None:
                return cast("A", told)
        answer = self._inner.send(request)
        if isinstance(request, Put) and (writes := _writes.get()) is not None:
            writes.append(request)
        return answer

    def close(self) -> None:
        """Close the store inside."""
        self._inner.close()
