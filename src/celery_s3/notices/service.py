"""Notices as the backend uses them: to tell, and to be told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property, partial
from typing import Any, Literal, Protocol

from celery import states
from celery.signals import before_task_publish

from celery_s3.celery_private import current_task, parents_of, reply_to_of, set_reply_to
from celery_s3.interruptions import brief, reraise_interruption
from celery_s3.printable import get_logger
from celery_s3.processes import PerProcess, Remembered, prefork_parent
from celery_s3.settings import Settings
from celery_s3.store.requests import Put

from .amqp_line import AMQPLine, AMQPSender
from .listener import Line, Listener
from .notice import PREFIX, dumps, is_address
from .redis_line import RedisLine, RedisSender
from .sqs_line import SQSLine, SQSSender, sweep
from .subscription import Subscription

__all__ = ["Notices", "Tell"]

logger = get_logger(__name__)

#: Tells that what has this key is stored, and how, where its bytes may go along.
Tell = Callable[[str, Put | None], None]

#: By what notices go; empty where they do not.
Kind = Literal["redis", "amqp", "sqs", ""]
#: That of a broker, by kombu's names of the transports.
_TRANSPORTS: dict[str, Kind] = {
    **dict.fromkeys(("redis", "rediss", "sentinel"), "redis"),
    **dict.fromkeys(("amqp", "amqps", "pyamqp"), "amqp"),
    **dict.fromkeys(("sqs", "SQS"), "sqs"),
}
#: Those by which a message says where its notice is wanted; on the others anybody may listen for any task.
_ADDRESSED = ("amqp", "sqs")
#: Seconds after a failure for which nothing is told.
SILENT = 10.0
#: Tasks that this process has sent and may wait for.
SENT = 100_000


class _Sender(Protocol):
    def send(self, key: str, payload: bytes, reply_to: str) -> None: ...

    def close(self) -> None: ...


class Notices:
    """Of one application, by its broker, as `notices` says.

    Arguments:
        key_of: the key of a task's result.
    """

    def __init__(self, app: Any, settings: Settings, key_of: Callable[[str], str]) -> None:
        self._app = app
        self._settings = settings
        self._key_of = key_of
        self._outgoing = PerProcess(lambda: _Outgoing(self._connect_sender))
        self._listeners = PerProcess(lambda: Listener(self._connect_line, confirms=self.kind not in _ADDRESSED))
        #: the keys of tasks sent, with the address that they have; True: what follows them in a canvas has it too
        self._sent: Remembered[str, tuple[str, bool]] = Remembered(SENT)

    @cached_property
    def kind(self) -> Kind:
        """By what notices go; empty where they do not."""
        if self._settings.notices == "off" or not self._app.conf.broker_write_url:  # Celery would take one for granted
            return ""
        with self._app.connection_for_write() as connection:  # not connected
            transport = str(connection.transport_cls)
        kind = _TRANSPORTS.get(transport, "")
        return "" if kind == "sqs" and self._settings.notices != "on" else kind  # each notice is billed

    def close(self) -> None:
        """Let go of connections and the thread."""
        before_task_publish.disconnect(dispatch_uid=self._uid)
        listener, outgoing = self._listeners.peek(), self._outgoing.peek()
        if listener is not None:
            listener.close()
            self._listeners.drop()
        if outgoing is not None:
            outgoing.close()
            self._outgoing.drop()

    # -- telling

    def telling(self, state: str, request: Any) -> Tell | None:
        """How to tell who waits that a state is stored; ``None`` where nobody does.

        Not where a chain or a chord goes on after a success: its end is what is waited for.

        Arguments:
            request: the task's; ``None`` where another process or task reports for it.
        """
        if state not in states.READY_STATES or not self.kind:
            return None
        if state == states.SUCCESS and (getattr(request, "chain", None) or getattr(request, "chord", None)):
            return None
        if self.kind not in _ADDRESSED:
            return partial(self._tell, "")
        reply_to = getattr(request, "reply_to", None)
        if request is None and (task := current_task()) is not None:  # a chord's body that fails
            reply_to = task.request.reply_to
        # whoever can send a task names a queue here: none but our own is written to
        return partial(self._tell, reply_to) if isinstance(reply_to, str) and is_address(reply_to) else None

    def _tell(self, reply_to: str, key: str, stored: Put | None) -> None:
        self._outgoing.get().send(key, dumps(key, stored if self._settings.notices != "ids" else None), reply_to)

    def _connect_sender(self) -> _Sender:
        if self.kind == "redis":
            return RedisSender(self._app, self._settings.bucket)
        return SQSSender(self._app) if self.kind == "sqs" else AMQPSender(self._app)

    # -- being told

    def subscribe(self) -> Subscription:
        """Be told of tasks, which are added to it."""
        if not self.kind or prefork_parent():
            return Subscription()
        if self.kind in _ADDRESSED:
            self._stamp()
        return Subscription(self._listeners.get(), self._key_of)

    def round_trip(self, id: str, seconds: float) -> float | None:
        """Tell this process of a task that nobody else knows, and hear it.

        Returns:
            The seconds from one to the other; ``None`` where nothing has come after ``seconds``, or can.
        """
        end = time.monotonic() + seconds
        with self.subscribe() as told:
            listener = self._listeners.peek()
            told.add([id])
            told.get_ready(seconds)
            while time.monotonic() < end and listener is not None:
                address = listener.address
                if told.listening or address:
                    began = time.monotonic()
                    self._tell(address, self._key_of(id), None)
                    told.wait(end - began)
                    return time.monotonic() - began if id in told.news() else None
                time.sleep(0.01)
        return None

    def _connect_line(self) -> Line:
        if self.kind == "redis":
            return RedisLine(self._app, self._settings.bucket)
        return SQSLine(self._app, self._knows) if self.kind == "sqs" else AMQPLine(self._app, self._knows)

    def sweep(self, *, dry_run: bool) -> int:
        """Delete what waiting processes have left behind at the broker, SQS alone keeps anything; how much it was.

        Raises:
            Exception: whatever the broker's client raises.
        """
        return sweep(self._app, dry_run=dry_run) if self.kind == "sqs" else 0

    # -- addresses

    @property
    def _uid(self) -> str:
        return f"celery-s3-notices-{id(self)}"

    def _stamp(self) -> None:
        """From now on, tasks that this process sends say where it is told of them, as long as it waits at all."""
        before_task_publish.connect(self._sending, dispatch_uid=self._uid)

    def _sending(self, headers: dict[str, Any], properties: dict[str, Any], **_: Any) -> None:
        said = properties.get("reply_to")
        if said != reply_to_of(self._app):
            return  # another application's task, or its caller wants a reply elsewhere
        listener = self._listeners.peek()
        address = listener.address if listener is not None else ""
        # What is frozen, as the rest of a chain, has the address that this thread had then.
        if said != address and (address or said.startswith(PREFIX)):
            set_reply_to(self._app, address)
            properties["reply_to"] = reply_to_of(self._app)
        if address and "id" in headers:
            with suppress(ValueError):  # an id that makes no key
                self._sent.put(self._key_of(headers["id"]), (address, said == address))

    def _knows(self, key: str, address: str) -> bool:
        return self._sent.get(key, ("",))[0] == address

    def follows(self, result: Any) -> None:
        """Somebody waits for a result: it has the address of the tasks before it, sent from the same canvas."""
        if self.kind not in _ADDRESSED:
            return
        key = self._key_of(str(result.id))
        for node in parents_of(result) if key not in self._sent else ():
            for one in getattr(node, "results", None) or (node,):
                address, whole = self._sent.get(self._key_of(str(one.id)), ("", False))
                if whole:
                    self._sent.put(key, (address, True))
                    return


class _Outgoing:
    """One connection of a process, over which it tells, and never waits long."""

    def __init__(self, connect: Callable[[], _Sender]) -> None:
        self._connect = connect
        self._lock = threading.Lock()
        self._sender: _Sender | None = None
        self._silent_until = 0.0

    def send(self, key: str, payload: bytes, reply_to: str) -> None:
        """Tell; whatever goes wrong is logged at most: who waits looks by himself."""
        if time.monotonic() < self._silent_until:
            return
        with self._lock:
            try:
                self._send_once_more(key, payload, reply_to)
            except BaseException as exc:
                self._give_up()
                if not isinstance(exc, Exception):
                    raise
                reraise_interruption(exc, None)
                self._silent_until = time.monotonic() + SILENT
                logger.warning("Notices are not sent for %d s, results are polled for: %s", SILENT, brief(exc))

    def _send_once_more(self, key: str, payload: bytes, reply_to: str) -> None:
        """Send it, on a new connection where the one that there was is broken: brokers close idle ones."""
        sender = self._sender
        if sender is not None:
            try:
                sender.send(key, payload, reply_to)
            except Exception as exc:  # noqa: BLE001 - whatever the broker's client raises
                reraise_interruption(exc, None)
                self._give_up()
            else:
                return
        self._sender = self._connect()
        self._sender.send(key, payload, reply_to)

    def _give_up(self) -> None:
        sender, self._sender = self._sender, None
        if sender is not None:
            with suppress(Exception):
                sender.close()

    def close(self) -> None:
        """Let go of the connection."""
        with self._lock:
            self._give_up()
