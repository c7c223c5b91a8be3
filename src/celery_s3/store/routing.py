"""Each call to the client that is right for it, in this process and at this moment.

::

    boto3, with short time-outs   the main process of a prefork worker
    boto3                         a process whose ancestor used obstore; gevent and eventlet; what the settings or
                                  the key need (session, empty segments); bodies over 8 MiB; uploads; listings
    obstore                       everything else

obstore is ten times as fast; the module :mod:`.situation` says when it must not be used.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence

from celery_s3 import processes
from celery_s3.errors import ConfigurationError
from celery_s3.processes import PerProcess
from celery_s3.settings import Settings

from .api import Bucket, Entry, Object, Precondition, Store

__all__ = ["Routing"]

logger = logging.getLogger(__name__)

#: Bytes up to which a body is obstore's: its read time-out covers the upload too, boto3's does not.
BIG = 8 * 1024 * 1024

#: Seconds that the event loop of a prefork worker's main process waits at most.
_PARENT_CONNECT, _PARENT_READ = 1.0, 2.0

# Segments that are empty, dots or hold control characters: obstore refuses or changes them.
_UNADDRESSABLE = re.compile(r"(?:^|/)(?:/|\.{1,2}(?:/|\Z))|/\Z|[\x00-\x1f\x7f]")


class Routing:
    """A store that makes its clients lazily, one of each kind for all threads of a process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._reason = settings.boto3_reason
        self._obstore = PerProcess(lambda: _obstore(settings))
        self._boto3 = PerProcess(lambda: _boto3(settings))
        self._brief = PerProcess(lambda: _brief(settings))
        self._told = PerProcess(_tell)

    def put(
        self,
        key: str,
        body: bytes,
        *,
        precondition: Precondition = None,
        metadata: Mapping[str, str] | None = None,
        content_type: str = "",
    ) -> str:
        client = self._client(key, big=len(body) > BIG)
        return client.put(key, body, precondition=precondition, metadata=metadata, content_type=content_type)

    def get(self, key: str, *, start: int = 0, length: int | None = None, if_match: str | None = None) -> Object:
        return self._client(key).get(key, start=start, length=length, if_match=if_match)

    # Uploads are always boto3's: obstore knows no condition for their completion.

    def create_upload(self, key: str, *, metadata: Mapping[str, str] | None = None, content_type: str = "") -> str:
        return self._boto3_client().create_upload(key, metadata=metadata, content_type=content_type)

    def put_part(self, key: str, upload_id: str, number: int, body: bytes) -> str:
        return self._boto3_client().put_part(key, upload_id, number, body)

    def complete_upload(
        self, key: str, upload_id: str, etags: Sequence[str], *, precondition: Precondition = None
    ) -> str:
        return self._boto3_client().complete_upload(key, upload_id, etags, precondition=precondition)

    def abort_upload(self, key: str, upload_id: str) -> None:
        self._boto3_client().abort_upload(key, upload_id)

    def delete(self, key: str) -> None:
        self._client(key).delete(key)

    def delete_many(self, keys: Sequence[str]) -> None:
        odd = next((key for key in keys if _UNADDRESSABLE.search(key)), "")
        self._client(odd).delete_many(keys)

    def delete_unchanged(self, versions: Mapping[str, str]) -> list[str]:
        """Delete what is still the same, always by boto3: obstore knows no condition for it."""
        return self._boto3_client().delete_unchanged(versions)

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[Entry]:
        """The entries under a prefix, always by boto3: obstore does not list keys as they are."""
        return self._boto3_client().list(prefix, start_after=start_after)

    def close(self) -> None:
        for clients in (self._obstore, self._boto3, self._brief):
            client = clients.peek()
            if client is not None:
                client.close()

    def _client(self, key: str, *, big: bool = False) -> Store:
        """The client for a key and, where it matters, a big body."""
        chosen = self._settings.client
        # Whatever the settings say: were it obstore in a prefork parent, the children could not use it.
        if chosen == "boto3" or (big and chosen == "auto") or processes.prefork_parent():
            return self._boto3_client()
        if reason := self._not_obstore(key):
            if chosen == "obstore":
                raise ConfigurationError(f"`client` is 'obstore', but {reason}: set it to 'auto'")
            return self._boto3_client()
        processes.obstore_used()
        return self._obstore.get()

    def _boto3_client(self) -> Bucket:
        return (self._brief if processes.prefork_parent() else self._boto3).get()

    def _not_obstore(self, key: str) -> str:
        """Why obstore cannot serve a key here, empty if it can."""
        if processes.obstore_forbidden():
            if self._settings.client == "auto":
                self._told.get()
            return "it was used before this process was forked, and would hang"
        if processes.greenlets():
            return "it would block the hub of gevent or eventlet"
        if self._reason:
            return self._reason
        return "it cannot address keys with empty or dot segments" if _UNADDRESSABLE.search(key) else ""


def _obstore(settings: Settings) -> Store:
    from celery_s3.store.clients.obstore_client import (
        ObstoreClient,  # imported where it is used: a process needs one client, rarely two
    )

    return ObstoreClient(settings)


def _boto3(settings: Settings) -> Bucket:
    from celery_s3.store.clients.boto3_client import Boto3Client

    return Boto3Client(settings)


def _brief(settings: Settings) -> Bucket:
    from celery_s3.store.clients.boto3_client import Boto3Client

    return Boto3Client(
        settings,
        connect_timeout=min(settings.connect_timeout, _PARENT_CONNECT),
        read_timeout=min(settings.read_timeout, _PARENT_READ),
    )


def _tell() -> bool:
    logger.warning(
        "S3 requests were made before this process was forked: it uses boto3, which takes more CPU and memory than"
        " obstore. Fork before the first result is stored or fetched to avoid that."
    )
    return True
