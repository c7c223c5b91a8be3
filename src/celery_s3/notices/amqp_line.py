"""Notices by RabbitMQ: a queue for each process that waits, gone with its connection; to it by the default exchange.

A task's message says in `reply_to` where its notice is wanted. Nobody listens for a task whose message did not say so:
those who wait for it poll.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from typing import Any

from kombu.entity import Exchange, Queue
from kombu.messaging import Consumer, Producer
from kombu.utils.uuid import uuid

from .notice import PREFIX, Notice, loads

__all__ = ["AMQPLine", "AMQPSender"]

#: Seconds within which the broker has to answer.
ANSWERS_IN = 1.0
_DEFAULT = Exchange("", type="direct")


def _connected(app: Any) -> Any:
    options = {"write_timeout": ANSWERS_IN, "confirm_publish": False}
    connection = app.connection_for_write(heartbeat=0, connect_timeout=ANSWERS_IN, transport_options=options)
    connection.connect()
    return connection


class AMQPSender:
    """Tells, on a connection of its own, without waiting for a confirmation."""

    def __init__(self, app: Any) -> None:
        self._connection = _connected(app)
        self._producer = Producer(self._connection.channel(), _DEFAULT, auto_declare=False)

    def send(self, key: str, payload: bytes, reply_to: str) -> None:  # noqa: ARG002 - the payload says it
        """Tell the process that waits; nobody if it is gone."""
        self._producer.publish(
            payload,
            routing_key=reply_to,
            content_type="application/octet-stream",
            content_encoding="binary",
            delivery_mode=1,
        )

    def close(self) -> None:
        """Let go of the connection."""
        self._connection.release()


class AMQPLine:
    """Hears; see :class:`~celery_s3.notices.listener.Line`.

    Arguments:
        knows: whether the task with a key was told an address.
    """

    turn = 1.0

    def __init__(self, app: Any, knows: Callable[[str, str], bool]) -> None:
        self.address = PREFIX + uuid()
        self._knows = knows
        self._came: deque[Notice] = deque()
        self._connection = _connected(app)
        queue = Queue(self.address, _DEFAULT, self.address, durable=False, exclusive=True, auto_delete=True)
        self._consumer = Consumer(self._connection.channel(), [queue], on_message=self._take, no_ack=True)
        self._consumer.consume()

    def _take(self, message: Any) -> None:
        notice = loads(message.body)
        if notice is not None:
            self._came.append(notice)

    def subscribe(self, keys: Collection[str]) -> Collection[str]:
        """Those whose tasks were sent with this address."""
        return [key for key in keys if self._knows(key, self.address)]

    def unsubscribe(self, keys: Collection[str]) -> None:
        """Nothing to do: what comes for nobody is dropped."""

    def receive(self, seconds: float) -> Collection[Notice]:
        """What has come."""
        try:
            self._connection.drain_events(timeout=seconds)
        except TimeoutError:  # nothing has
            return ()
        came, self._came = self._came, deque()
        return came

    def close(self) -> None:
        """Let go of the connection; the queue goes with it."""
        self._connection.release()
