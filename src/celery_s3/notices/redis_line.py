"""Notices by Redis' PUBLISH and SUBSCRIBE: nothing is stored, and any process can wait for any task.

A channel is named as kombu names those of its fanout exchanges (`global_keyprefix`, `fanout_prefix` with the number of
the database), so that the same ACLs allow it, and then by bucket and key: databases and deployments stay apart.

The connections are this module's own, made by kombu from the broker's settings (TLS, sentinels, credentials): its pool
for messages has ten of them and raises beyond.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from .notice import Notice, loads

__all__ = ["RedisLine", "RedisSender"]

#: Seconds within which Redis has to answer.
ANSWERS_IN = 1.0
#: Seconds after which a quiet connection is asked whether it is still there.
ASKED_EVERY = 10
_OPTIONS = {
    "socket_timeout": ANSWERS_IN,
    "socket_connect_timeout": ANSWERS_IN,
    "socket_keepalive": True,
    "health_check_interval": ASKED_EVERY,
}


class _Client:
    """A client of the broker's Redis, and how channels are named."""

    def __init__(self, app: Any, bucket: str) -> None:
        # imported where the broker is Redis: then it is installed
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        self._connection = app.connection_for_write(transport_options=_OPTIONS)
        channel = self._connection.channel()
        channel.client.connection_pool.disconnect()  # it was for kombu's own PING
        self.redis: Any = Redis(connection_pool=channel.pool)
        self.redis.set_retry(Retry(NoBackoff(), 0))
        self.prefix = f"{channel.global_keyprefix or ''}{channel.keyprefix_fanout}celery-s3-notices/{bucket}/"

    def close(self) -> None:
        self.redis.connection_pool.disconnect()
        self._connection.release()


class RedisSender:
    """Tells, on one connection, past redis-py's pool and client: they would take four times the CPU."""

    def __init__(self, app: Any, bucket: str) -> None:
        self._client = _Client(app, bucket)
        self._connection = self._client.redis.connection_pool.make_connection()

    def send(self, key: str, payload: bytes, reply_to: str) -> None:  # noqa: ARG002 - who listens is asked of Redis
        """Tell whoever listens."""
        self._connection.send_command("PUBLISH", self._client.prefix + key, payload, check_health=False)
        self._connection.read_response()

    def close(self) -> None:
        """Let go of the connection."""
        self._connection.disconnect()
        self._client.close()


class RedisLine:
    """Hears; see :class:`~celery_s3.notices.listener.Line`."""

    address = ""
    turn = 1.0

    def __init__(self, app: Any, bucket: str) -> None:
        self._client = _Client(app, bucket)
        self._prefix = self._client.prefix
        self._pubsub = self._client.redis.pubsub()
        self._pubsub.subscribe(self._prefix)  # connected by this, not by the first who waits
        while not self._pubsub.get_message(timeout=ANSWERS_IN):
            pass

    def subscribe(self, keys: Collection[str]) -> Collection[str]:
        """Subscribe; Redis confirms each one."""
        self._pubsub.subscribe(*(self._prefix + key for key in keys))
        return ()

    def unsubscribe(self, keys: Collection[str]) -> None:
        """Unsubscribe."""
        self._pubsub.unsubscribe(*(self._prefix + key for key in keys))

    def receive(self, seconds: float) -> Iterator[Notice | str]:
        """What has come.

        After it has lost its connection, redis-py connects and subscribes again by itself: then every key is confirmed
        again, at which those who wait look.
        """
        message = self._pubsub.get_message(timeout=seconds)
        while message:
            channel = message["channel"]
            key = (channel if isinstance(channel, str) else channel.decode()).removeprefix(self._prefix)
            if message["type"] == "subscribe":
                yield key
            elif message["type"] == "message":
                notice = loads(message["data"])
                if notice is not None and notice.key == key:
                    yield notice
            message = self._pubsub.get_message(timeout=0)

    def close(self) -> None:
        """Let go of the connection."""
        self._pubsub.close()
        self._client.close()
