"""Each request to the client that is right for it, in this process and at this moment.

::

    boto3, with short time-outs   the main process of a prefork worker
    boto3                         a process whose ancestor had imported obstore; gevent and eventlet; what the
                                  settings or the key need (session, empty segments); bodies over 8 MiB; uploads;
                                  listings
    obstore                       everything else

obstore is ten times as fast; :mod:`celery_s3.processes` says when it must not be used.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from celery_s3 import processes
from celery_s3.errors import ConfigurationError
from celery_s3.printable import get_logger
from celery_s3.processes import PerProcess
from celery_s3.settings import Settings

from .api import Bucket, Store
from .clients.translate import UNADDRESSABLE
from .requests import Delete, DeleteMany, Get, Put, Request

__all__ = ["Routing"]

logger = get_logger(__name__)

A = TypeVar("A")

#: What obstore does as S3 means it: it does not list keys as they are, and knows no condition for a delete or for the
#: completion of an upload.
_OF_OBSTORE = frozenset({Put, Get, Delete, DeleteMany})

#: Bytes up to which a body is obstore's: its read time-out covers the upload too, boto3's does not.
BIG = 8 * 1024 * 1024

#: Seconds that the event loop of a prefork worker's main process waits at most.
_PARENT_CONNECT, _PARENT_READ = 1.0, 2.0


class Routing(Bucket):
    """A store that makes its clients lazily, one of each kind for all threads of a process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._reason = settings.boto3_reason
        self._obstore = PerProcess(lambda: _obstore(settings))
        self._boto3 = PerProcess(lambda: _boto3(settings))
        self._brief = PerProcess(lambda: _brief(settings))
        self._warned = PerProcess(_warn)

    def send(self, request: Request[A]) -> A:
        return self._client(request).send(request)

    def close(self) -> None:
        for clients in (self._obstore, self._boto3, self._brief):
            client = clients.peek()
            if client is not None:
                client.close()

    def _client(self, request: Request[Any]) -> Store:
        chosen = self._settings.client
        if type(request) not in _OF_OBSTORE or chosen == "boto3" or (request.up > BIG and chosen == "auto"):
            return self._boto3_client()
        # Whatever the settings say: were it obstore in a prefork parent, the children could not use it.
        if processes.prefork_parent():
            return self._boto3_client()
        if reason := self._not_obstore(request):
            if chosen == "obstore":
                raise ConfigurationError(f"`client` is 'obstore', but {reason}: set it to 'auto'")
            return self._boto3_client()
        processes.obstore_used()
        return self._obstore.get()

    def _boto3_client(self) -> Store:
        return (self._brief if processes.prefork_parent() else self._boto3).get()

    def _not_obstore(self, request: Request[Any]) -> str:
        """Why obstore cannot serve a request here, empty if it can."""
        if processes.obstore_forbidden():
            if self._settings.client == "auto":
                self._warned.get()
            return "it was imported before this process was forked, and would hang if it was used there"
        if processes.greenlets():
            return "it would block the hub of gevent or eventlet"
        if self._reason:
            return self._reason
        keys = request.keys if isinstance(request, DeleteMany) else (request.key,)
        odd = any(map(UNADDRESSABLE.search, keys))
        return "it cannot address keys with empty or dot segments" if odd else ""


# The clients are imported where they are made: a process needs one of them, rarely two.


def _obstore(settings: Settings) -> Store:
    from celery_s3.store.clients.obstore_client import ObstoreClient

    return ObstoreClient(settings)


def _boto3(settings: Settings) -> Store:
    from celery_s3.store.clients.boto3_client import Boto3Client

    return Boto3Client(settings)


def _brief(settings: Settings) -> Store:
    connect, read = min(settings.connect_timeout, _PARENT_CONNECT), min(settings.read_timeout, _PARENT_READ)
    return _boto3(replace(settings, connect_timeout=connect, read_timeout=read))


def _warn() -> bool:
    logger.warning(
        "S3 requests were made, or obstore was imported, before this process was forked: it uses boto3, which takes"
        " more CPU and memory. Fork before the first result is stored or fetched, and import obstore after it, to avoid"
        " that."
    )
    return True
