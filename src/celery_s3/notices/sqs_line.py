"""Notices by SQS: a queue for each process that waits, which it makes and deletes; to it by `reply_to`, as on RabbitMQ.

Unlike RabbitMQ, SQS keeps the queue of a process that was killed. It costs nothing, what is in it goes after a minute,
and a tag says when it was last in use: `celery s3 sweep` deletes those that nobody has used for a day.

Kombu's channel is asked for a client with the broker's credentials, region and address, and for nothing else: what it
sends to a queue that is gone makes that queue again, and leaves it behind.
"""

from __future__ import annotations

import atexit
import os
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from celery.signals import worker_process_shutdown
from kombu.utils.uuid import uuid

from celery_s3.processes import Remembered

from .notice import PREFIX, Notice, is_address, loads

__all__ = ["SQSLine", "SQSSender", "sweep"]

#: Seconds within which SQS has to answer who stores a result, and who waits or sweeps.
ANSWERS_IN, PATIENCE = 1.0, 5.0
#: Seconds after which SQS lets a new queue be used.
USABLE_AFTER = 1.0
#: Seconds that notices are kept, the least that SQS allows; and, longer than that, hidden from who has received them:
#: so they need not be deleted, and a request a wait is saved.
KEPT, HIDDEN = 60, 3600
#: Messages in one answer, the most that SQS allows.
AT_ONCE = 10
#: Says when a queue was last in use; and how many seconds later it says so again.
USED, USED_EVERY = "celery-s3-used", 3600.0
#: How long a queue is not used before it counts as left behind.
LEFT_AFTER = timedelta(days=1)
#: Queues in one answer of a listing, the most that SQS allows.
PAGE = 1000
#: Addresses that are remembered where notices are sent.
ADDRESSES = 10_000


def _client(app: Any, answers_in: float) -> Any:
    """A botocore client of the broker, which tries everything once."""
    config = dict(app.conf.broker_transport_options.get("client-config") or {})
    config |= {"connect_timeout": ANSWERS_IN, "read_timeout": answers_in, "retries": {"total_max_attempts": 1}}
    # a channel lists the queues of this prefix: as few as there can be
    options = {"client-config": config, "queue_name_prefix": PREFIX}
    with app.connection_for_write(transport_options=options) as connection:
        return connection.channel().sqs()


def _used_now() -> dict[str, str]:
    return {USED: datetime.now(UTC).isoformat(timespec="seconds")}


class SQSSender:
    """Tells, in one request; the first one to an address is two."""

    def __init__(self, app: Any) -> None:
        self._client = _client(app, ANSWERS_IN)
        #: the URLs of queues; empty where there is none any more
        self._urls: Remembered[str, str] = Remembered(ADDRESSES)

    def send(self, key: str, payload: bytes, reply_to: str) -> None:  # noqa: ARG002 - the payload says it
        """Tell the process that waits; nobody if it is gone."""
        url = self._urls.get(reply_to)
        try:
            if url is None:
                url = self._client.get_queue_url(QueueName=reply_to)["QueueUrl"]
                self._urls.put(reply_to, url)
            if url:
                self._client.send_message(QueueUrl=url, MessageBody=b64encode(payload).decode())
        except self._client.exceptions.QueueDoesNotExist:
            self._urls.put(reply_to, "")

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()


class SQSLine:
    """Hears; see :class:`~celery_s3.notices.listener.Line`.

    Arguments:
        knows: whether the task with a key was told an address.
    """

    #: As long as SQS allows: each look is billed.
    turn = 20.0

    def __init__(self, app: Any, knows: Callable[[str, str], bool]) -> None:
        self.address = PREFIX + uuid()
        self._knows = knows
        self._client, self._receiver = _client(app, PATIENCE), _client(app, self.turn + PATIENCE)
        kept = {"MessageRetentionPeriod": str(KEPT), "VisibilityTimeout": str(HIDDEN)}
        queue = self._client.create_queue(QueueName=self.address, Attributes=kept, tags=_used_now())
        self._url = queue["QueueUrl"]
        self._tagged = time.monotonic()
        self._process, self._closed = os.getpid(), False
        atexit.register(self.close)
        worker_process_shutdown.connect(self.close)  # the children of a pool end without that
        time.sleep(USABLE_AFTER)

    def subscribe(self, keys: Collection[str]) -> Collection[str]:
        """Those whose tasks were sent with this address."""
        return [key for key in keys if self._knows(key, self.address)]

    def unsubscribe(self, keys: Collection[str]) -> None:
        """Nothing to do: what comes for nobody is dropped."""

    def receive(self, seconds: float) -> Iterator[Notice]:
        """What has come."""
        if time.monotonic() - self._tagged > USED_EVERY:
            self._client.tag_queue(QueueUrl=self._url, Tags=_used_now())
            self._tagged = time.monotonic()
        try:
            answer = self._receiver.receive_message(
                QueueUrl=self._url, MaxNumberOfMessages=AT_ONCE, WaitTimeSeconds=int(seconds)
            )
        except Exception:
            if not self._closed:
                raise
            time.sleep(seconds)  # the process is about to end
            return
        for message in answer.get("Messages", ()):
            with suppress(ValueError):  # a stranger's
                if (notice := loads(b64decode(message["Body"]))) is not None:
                    yield notice

    def close(self, **_: Any) -> None:
        """Delete the queue, in whichever thread; not in a process that was forked from its own."""
        atexit.unregister(self.close)
        worker_process_shutdown.disconnect(self.close)
        if self._process == os.getpid() and not self._closed:
            self._closed = True
            with suppress(Exception):  # then a sweep does it
                self._client.delete_queue(QueueUrl=self._url)


def sweep(app: Any, *, dry_run: bool) -> int:
    """Delete the queues of processes that ended without doing so.

    Returns:
        How many there were.

    Raises:
        Exception: whatever the broker's client raises.
    """
    client, left = _client(app, PATIENCE), 0
    before = datetime.now(UTC) - LEFT_AFTER
    # without a size SQS tells of the first thousand alone
    for page in client.get_paginator("list_queues").paginate(
        QueueNamePrefix=PREFIX, PaginationConfig={"PageSize": PAGE}
    ):
        for url in page.get("QueueUrls", ()):
            with suppress(client.exceptions.QueueDoesNotExist):  # its process has ended meanwhile
                if is_address(url.rpartition("/")[2]) and _unused_since(before, client, url):
                    if not dry_run:
                        client.delete_queue(QueueUrl=url)
                    left += 1
    return left


def _unused_since(moment: datetime, client: Any, url: str) -> bool:
    """Whether it says so; one that says nothing is not ours."""
    try:
        return datetime.fromisoformat(client.list_queue_tags(QueueUrl=url).get("Tags", {})[USED]) < moment
    except (KeyError, ValueError, TypeError):
        return False
