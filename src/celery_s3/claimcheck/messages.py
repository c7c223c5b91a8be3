"""What messages point to: objects under ``<base>celery-messages/``, each named after its bytes (see :mod:`.names`).

``message_cleanup``::

    lifecycle   <digest>             stored once, whoever sends the same; a lifecycle rule removes it
    success     <digest>.<random>    one message's own: removed when its task's SUCCESS is stored

An object that is there already is written again: that starts its lifetime anew, so that a message sent today never
points to what the lifecycle rule removes tomorrow.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary

from celery.signals import task_success
from kombu.exceptions import DecodeError

from celery_s3.bucket import open_store
from celery_s3.codec.compression import compress_payload, compression_method, decompress_payload
from celery_s3.errors import (
    ConfigurationError,
    MessageNotRead,
    MessageNotStored,
    ObjectMissing,
    PreconditionFailed,
    StoreError,
)
from celery_s3.keys import MESSAGES, Layout, message_name
from celery_s3.printable import get_logger
from celery_s3.processes import Remembered
from celery_s3.settings import Settings, resolve
from celery_s3.store import ranges
from celery_s3.store.api import Store
from celery_s3.store.parallel import Pool

from .names import Names

__all__ = ["Messages", "is_removable", "messages_of", "messages_of_sender", "sending_app"]

logger = get_logger(__name__)

#: The app whose message is being encoded in this thread or greenlet; set by :mod:`.amqp`.
sending_app: ContextVar[Any] = ContextVar("celery_s3_sending_app", default=None)

#: Bytes that one request fetches.
PART_BYTES = 8 * 1024 * 1024
#: Seconds in which a process does not store the same content again. So an object may be an hour older than its last
#: message; the lifecycle rule keeps it for days.
STORED_FOR = 3600.0
#: How many objects a process remembers to have stored.
REMEMBERED = 256


class Messages:
    """The objects that one app's messages point to.

    Arguments:
        store: the app's bucket.
        pool: fetches the parts of a large object.
        settings: `base`, `message_threshold`, `message_cleanup`, `compression_threshold`, and the keys of names.
        compression: kombu's name of a method for the objects; ``None`` stores them as they are.
        clock: seconds, for how long an object is not stored again.

    Attributes:
        threshold: bytes up to which a message has no object.
    """

    def __init__(
        self,
        store: Store,
        pool: Pool,
        settings: Settings,
        compression: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._pool, self._clock = store, pool, clock
        self._compression, self._compression_threshold = compression, settings.compression_threshold
        self._decompression_limit = settings.decompression_limit
        self._names = Names(settings)
        self._prefix = Layout(settings.base).messages
        self._where = f"s3://{settings.bucket}/{self._prefix}"
        self._remove = settings.message_cleanup == "success"
        self.threshold = settings.message_threshold
        #: until when, by the clock, an object need not be stored again
        self._known_until: Remembered[str, float] = Remembered(REMEMBERED)

    def put(self, content: bytes, content_type: str, *, removable: bool) -> dict[str, Any]:
        """Store what a message will point to.

        Arguments:
            removable: one message alone will point to it, so that the task's success may remove it.

        Returns:
            The beginning of a pointer: ``object`` (its name), ``size`` (bytes of the content), ``at`` (where).

        Raises:
            MessageNotStored: it could not be stored.
        """
        body = self._compressed(content)
        name = self._names.of(body)
        if removable and self._remove:
            name = message_name(name, uuid4().hex)
            self._write(name, body, content_type)
        elif self._clock() >= (self._known_until.get(name) or 0.0):
            self._write(name, body, content_type)
            self._known_until.put(name, self._clock() + STORED_FOR)
        return {"object": name, "size": len(content), "at": self._where}

    def get(self, name: str, at: str) -> bytes:
        """Fetch what a message points to.

        Arguments:
            name: of the object.
            at: where its producer stored it, as the message tells; only for the error's text.

        Raises:
            MessageNotRead: it could not be fetched, or is not what was stored; its cause is an
                :class:`ObjectMissing` where there is none.
        """
        found = MESSAGES.rest.fullmatch(name)
        if found is None:
            raise MessageNotRead(f"the message's pointer is damaged: {name[:80]!r} names no object")
        try:
            body = self._whole(self._prefix + name)
        except ObjectMissing as exc:
            raise MessageNotRead(self._gone(name, at)) from exc
        except StoreError as exc:
            raise MessageNotRead(f"a message's arguments could not be fetched: {exc}") from exc
        if not self._names.fits(found["id"], body):
            raise MessageNotRead(
                f"{self._where}{name} is not what was stored there: its SHA-256 is another. If it is encrypted, this"
                " process needs the `seal_keys` of whoever sent it; else find out who writes there"
            )
        try:
            return decompress_payload(body, self._decompression_limit)
        except DecodeError as exc:
            raise MessageNotRead(f"{self._where}{name} cannot be decompressed: {exc}") from exc

    def remove(self, name: str) -> None:
        """Remove what no message points to any more; should that fail, the lifecycle rule does it later."""
        try:
            self._store.delete(self._prefix + name)
        except StoreError as exc:
            logger.warning("%s%s was not removed: %s", self._where, name, exc)

    def _compressed(self, content: bytes) -> bytes:
        if not self._compression:
            return content
        return b"".join(compress_payload(content, self._compression, self._compression_threshold))

    def _write(self, name: str, body: bytes, content_type: str) -> None:
        try:
            self._store.put(self._prefix + name, body, content_type=content_type)
        except StoreError as exc:
            raise MessageNotStored(f"a message's arguments ({len(body):,} bytes) were not stored: {exc}") from exc

    def _whole(self, key: str) -> bytes:
        while True:
            first = self._store.get(key, length=PART_BYTES)
            # PreconditionFailed: it was stored again between two requests. The content is the same, but it is sealed
            # anew, and parts of two seals do not fit together: read it again from its beginning.
            with suppress(PreconditionFailed):
                rest = sorted(ranges.behind(first, self._store, self._pool, PART_BYTES))
                return b"".join([first.body, *(part for _, part in rest)])

    def _gone(self, name: str, at: str) -> str:
        text = f"a message's arguments are not in {self._where}{name}"
        if at != self._where:
            return f"{text}: its producer stored them in {at}. Give both the same bucket and base_path"
        return f"{text} any more: the message is older than the lifecycle rule keeps them. Let it keep them for longer"


def is_removable(name: str) -> bool:
    """Whether an object is one message's own, so that it can be removed with it."""
    return "." in name


# -- of which app

_messages: WeakKeyDictionary[Any, Messages] = WeakKeyDictionary()


def messages_of(app: Any) -> Messages:
    """The objects of an app: in the bucket of its result backend where that is ours, else in that of its settings.

    Raises:
        ConfigurationError: the app's settings name no bucket, or are wrong.
    """
    found = _messages.get(app)
    if found is None:
        found = _messages[app] = _open(app)
    return found


def _open(app: Any) -> Messages:
    compression = compression_method(app.conf.task_compression, "task_compression")
    backend = app.backend
    settings = getattr(backend, "settings", None)
    if isinstance(settings, Settings):
        return Messages(backend.store, backend.pool, settings, compression)
    settings = resolve(app)
    opened = open_store(settings)
    return Messages(opened.store, opened.pool, settings, compression)


def messages_of_sender(inner: str) -> Messages:
    """The objects of the app whose message is being encoded.

    Raises:
        ConfigurationError: nobody has said which app that is.
    """
    app = sending_app.get()
    if app is None:
        raise ConfigurationError(
            f"the serializer 's3+{inner}' does not know of which app this message is: call"
            " celery_s3.claimcheck.install(app) where the app is made"
        )
    return messages_of(app)


def _remove_used(sender: Any, **_: Any) -> None:
    """Remove a task's own arguments. Celery says ``task_success`` once its SUCCESS is stored, its callbacks sent."""
    request = sender.request
    if request.ignore_result or sender.ignore_result:
        return  # no result: if the message is delivered again, nothing says that the task need not run
    names = {getattr(arguments, "object", "") for arguments in (request.args, request.kwargs)}
    for name in filter(is_removable, names):
        messages_of(sender.app).remove(name)


task_success.connect(_remove_used, weak=False, dispatch_uid="celery_s3.claimcheck")
