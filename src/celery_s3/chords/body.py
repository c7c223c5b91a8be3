"""The signature of a chord's body: where it begins, where it ends, what is said of one that could not be sent."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from typing import Any

from celery import chord, group, maybe_signature
from celery.app.task import Context
from celery.canvas import Signature
from kombu.serialization import dumps, loads, prepare_accept_content

from celery_s3.celery_private import is_chain

from .manifest import Manifest
from .ticket import TICKET

__all__ = ["body_in", "errbacks_of", "first_ids", "last_tasks", "mark_of_errback", "size_hint", "without_ticket"]

#: Serializers whose decoding runs nothing, whoever made what is decoded.
HARMLESS = frozenset({"json", "yaml", "msgpack", "typed+json"})
#: Bytes of a body's message that some broker may refuse.
LARGE_MESSAGE = 32 * 1024


def body_in(manifest: Manifest, app: Any, *, trusted: bool) -> Signature:
    """The body's signature, for who has none of the chord's tasks at hand; decoded by the app's `task_serializer`.

    Arguments:
        trusted: who wrote the manifest has the keys; anybody who may write to the bucket may have, where it is not.

    Raises:
        ValueError: it would be unpickled, and is not trusted.
        Whatever kombu raises for garbage.
    """
    serializer = app.conf.task_serializer
    if serializer.removeprefix("s3+") not in HARMLESS and not trusted:
        raise ValueError(f"{serializer} may run what it decodes, and the manifest is not sealed: set `seal_keys`")
    (content_type,) = prepare_accept_content([serializer])
    body = loads(manifest.body, content_type=content_type, content_encoding="utf-8", accept={content_type})
    return maybe_signature(body, app=app)


def without_ticket(body: Any, app: Any) -> Signature:
    """A copy of a body's signature as it is to be sent: the ticket is the header's."""
    callback = maybe_signature(body, app=app).clone()
    callback.options.pop(TICKET, None)
    return callback


def first_ids(body: Signature) -> Iterator[str]:
    """The ids of the tasks that a body begins with."""
    if isinstance(body, group):
        for task in body.tasks:
            yield from first_ids(task)
    elif is_chain(body):
        yield from first_ids(body.tasks[0])
    elif isinstance(body, chord):
        for task in body.tasks.tasks if isinstance(body.tasks, group) else body.tasks:
            yield from first_ids(task)
    elif body.id:
        yield body.id


def last_tasks(body: Signature) -> Iterator[Context]:
    """The tasks, as requests, that a body ends with, and those of the chain behind it."""
    for follower in body.options.get("chain") or ():
        yield from last_tasks(maybe_signature(follower, app=body.app))
    if isinstance(body, group):
        for task in body.tasks:
            yield from last_tasks(task)
    elif is_chain(body):
        yield from last_tasks(body.tasks[-1])
    elif isinstance(body, chord):
        yield from last_tasks(body.body)
    elif body.id:
        end = Context(body)
        end.update(body.options)
        end.id, end.group, end.chain = body.id, body.options.get("group_id"), None
        yield end


def errbacks_of(body: Signature) -> list[Any]:
    """The errbacks that a body's failure calls."""
    if isinstance(body, group):
        return [errback for task in body.tasks for errback in errbacks_of(task)]
    return list(body.options.get("link_error") or ())


def mark_of_errback(errback: Any, serializer: str) -> str:
    """What tells an errback from others, however often it has travelled."""
    _, _, text = dumps([errback["task"], list(errback["args"]), errback["kwargs"]], serializer=serializer)
    return sha256(text if isinstance(text, bytes) else text.encode()).hexdigest()[:16]


def size_hint(values: list[Any], serializer: str) -> str:
    """What to say about a body that could not be sent, perhaps because it was too large for the broker."""
    if serializer.startswith("s3+"):
        return ""  # it would have gone by S3
    try:
        size = len(dumps((values,), serializer=serializer)[2])
    except Exception:  # noqa: BLE001 (they are not what the error is about, or are it themselves)
        return ""
    if size < LARGE_MESSAGE:
        return ""
    return (
        f". The {len(values)} values make a message of {size:,} bytes before the broker's own encoding (SQS, for one,"
        " takes 262,144 after it, or up to 1,048,576): let them go by S3 (task_serializer 's3+json', see"
        " celery_s3.claimcheck), or let the header's tasks store what is large, and return where"
    )
