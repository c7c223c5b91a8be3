"""Each request to the client that is right for it, in this process and at this moment.

::

    boto3                         the main process of a prefork worker; a process whose ancestor had imported
                                  obstore; gevent and eventlet; what the settings or the key need (session, empty
                                  segments); bodies over 8 MiB; uploads; listings
    obstore                       everything else

obstore is ten times as fast; :mod:`celery_s3.processes` says when it must not be used.
"""

from __future__ import annotations

from typing import Any, TypeVar

from celery_s3 import processes
from celery_s3.errors import ConfigurationError
from celery_s3.printable import get_logger
from celery_s3.processes import PerProcess
from celery_s3.settings import Settings

from .api import Bucket, Store
from .bounded import Bounded
from .clients.translate import ADDRESSABLE
from .requests import Delete, DeleteMany, Get, Put, Request

__all__ = ["Routing"]

logger = get_logger(__name__)

A = TypeVar("A")

#: What obstore does as S3 means it: it does not list keys as they are, and knows no condition for a delete or for the
#: completion of an upload.
_OF_OBSTORE = frozenset({Put, Get, Delete, DeleteMany})

#: Bytes up to which a body is obstore's: its read time-out covers the upload too, boto3's does not.
BIG = 8 * 1024 * 1024


class Routing(Bucket):
    """A store that makes its clients lazily, one of each kind for all threads of a process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._reason = settings.boto3_reason
        self._obstore = PerProcess(lambda: _first_obstore(settings))
        self._boto3 = PerProcess(lambda: _boto3(settings))
        self._warned = PerProcess(_warn)

    def send(self, request: Request[A]) -> A:
        """Let the client that is right for this request make it.

        Raises:
            ConfigurationError: `client` is 'obstore', and obstore cannot serve this request here.
        """
        clients = self._obstore if self._is_for_obstore(request) else self._boto3
        return clients.get().send(request)

    def close(self) -> None:
        """Let go of this process's connections."""
        for clients in (self._obstore, self._boto3):
            client = clients.peek()
            if client is not None:
                client.close()

    def _is_for_obstore(self, request: Request[Any]) -> bool:
        chosen = self._settings.client
        if type(request) not in _OF_OBSTORE or (isinstance(request, Delete) and request.if_match):
            return False
        if chosen == "boto3" or (len(request.body) > BIG and chosen == "auto"):
            return False
        # Whatever the settings say: were it obstore in a prefork parent, the children could not use it.
        if processes.prefork_parent():
            return False
        keys = request.keys if isinstance(request, DeleteMany) else (request.key,)
        if processes.obstore_forbidden():
            if chosen == "auto":
                self._warned.get()
            why_not = "it was imported before this process was forked, and would hang if it was used there"
        elif processes.greenlets():
            why_not = "it would block the hub of gevent or eventlet"
        elif self._reason:
            why_not = self._reason
        elif not all(map(ADDRESSABLE.fullmatch, keys)):
            why_not = "it cannot address keys with empty or dot segments"
        else:
            return True
        if chosen == "obstore":
            raise ConfigurationError(f"`client` is 'obstore', but {why_not}: set it to 'auto'")
        return False


# The clients are imported where they are made: a process needs one of them, rarely two.


def _first_obstore(settings: Settings) -> Store:
    processes.obstore_used()
    return _obstore(settings)


def _obstore(settings: Settings) -> Store:
    from celery_s3.store.clients.obstore_client import ObstoreClient

    return Bounded(ObstoreClient(settings), settings)


def _boto3(settings: Settings) -> Store:
    from celery_s3.store.clients.boto3_client import Boto3Client

    return Bounded(Boto3Client(settings), settings)


def _warn() -> bool:
    logger.warning(
        "S3 requests were made, or obstore was imported, before this process was forked: it uses boto3, which takes"
        " more CPU and memory. Fork before the first result is stored or fetched, and import obstore after it, to avoid"
        " that."
    )
    return True
